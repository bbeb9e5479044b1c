"""What tasks, PLMs, attacks and defenses have in common: frozen settings, found by file name.

A method is one class in one file; its fields are its settings, checked when it is made. Unknown fields are
refused with the nearest known name.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, ClassVar, Literal, final

from pydantic import BaseModel, ConfigDict, ValidationError

from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.fingerprint import code_fingerprint, path_fingerprint
from backdoor_core.space import DataPathMark, hooks_of
from backdoor_core.spec import MethodSpec

Family = Literal["task", "plm", "attack", "defense"]
USER_MODULE = "backdoor_user_"
"""How the modules of users' own files are called, so that they meet no other module."""


class Method(BaseModel):
    """A named method with its settings. Subclasses add fields and override hooks."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    family: ClassVar[Family]

    @classmethod
    @final
    def catalog_name(cls) -> str:
        """The name in sweep files: the stem of the file that holds the class."""
        return Path(inspect.getfile(cls)).stem

    @classmethod
    @final
    def source_file(cls) -> str | None:
        """The user's own file that holds the class; None for one that ships or is installed."""
        if not cls.__module__.startswith(USER_MODULE):
            return None
        return str(Path(inspect.getfile(cls)).resolve())

    @classmethod
    @final
    def summary(cls) -> str:
        """The first line of the class's docstring."""
        return (inspect.getdoc(cls) or "").strip().split("\n")[0]

    @classmethod
    @final
    def path_fields(cls) -> frozenset[str]:
        """The settings that are paths of the user's files."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if any(
                isinstance(mark, DataPathMark) or mark is DataPathMark for mark in field.metadata
            )
            or "DataPathMark" in str(field.annotation)
        )

    @classmethod
    @final
    def fields_read_by(cls, *hooks: str) -> frozenset[str]:
        """The settings that any of `hooks` reads: those that name it, and those that name none."""
        return frozenset(
            name
            for name, field in cls.model_fields.items()
            if not hooks_of(field) or hooks_of(field) & set(hooks)
        )

    @classmethod
    @final
    def checked(cls, settings: dict[str, Any]) -> Method:
        """The method with `settings`. Raises ConfigError, in one line for each setting that is wrong."""
        for name in settings:
            if name not in cls.model_fields:
                known = list(cls.model_fields)
                raise ConfigError(
                    unknown_name(f"setting of {cls.family} {cls.catalog_name()}:", name, known)
                )
        try:
            return cls(**settings)
        except ValidationError as error:
            lines = [
                f"{cls.family} {cls.catalog_name()}, setting "
                f"{'.'.join(map(str, item['loc'])) or '(all)'}: "
                f"{item['msg']}, got {item['input']!r}"
                for item in error.errors()
            ]
            raise ConfigError("; ".join(lines)) from error

    @final
    def settings(self) -> dict[str, Any]:
        """All settings, defaults included, as JSON values."""
        return self.model_dump(mode="json")

    def resolved(self) -> Method:
        """This method with what only the outside knows filled in (a hub revision). Default: itself."""
        return self

    @classmethod
    def code_modules(cls) -> tuple[str, ...]:
        """The modules whose code decides what the method does; its own file by default."""
        return (cls.source_file() or sys.modules[cls.__module__].__name__,)

    @final
    def spec(self) -> MethodSpec:
        """This method as a value for keys and workers; reads the content of its paths."""
        content = {
            name: path_fingerprint(value)
            for name in sorted(self.path_fields())
            if isinstance(value := getattr(self, name), Path)
        }
        return MethodSpec(
            family=self.family,
            name=self.catalog_name(),
            source=self.source_file(),
            settings=self.settings(),
            content=content,
            code=code_fingerprint(*self.code_modules()),
        )

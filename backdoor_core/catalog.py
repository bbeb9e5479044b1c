"""Methods by name: a file in `tasks/`, `plms/`, `attacks/` or `defenses/` is a method; no list names them.

A user's own file works the same way: `{name: /path/to/mine.py}` in a sweep file (relative to it), or an entry
point in the group `backdoor_sweeps.attacks` (`.defenses`, `.tasks`, `.plms`) whose value is the class.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from backdoor_core.attack import Attack
from backdoor_core.defense import Defense
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.method import USER_MODULE, Family, Method
from backdoor_core.plm import PLMSource
from backdoor_core.spec import MethodSpec
from backdoor_core.task import Task

_FAMILIES: dict[str, tuple[str, type[Method]]] = {
    "task": ("tasks", Task),
    "plm": ("plms", PLMSource),
    "attack": ("attacks", Attack),
    "defense": ("defenses", Defense),
}


@cache
def _installed(family: Family) -> dict[str, EntryPoint]:
    """The methods that installed packages bring: read once, since it opens a file of every package."""
    folder, _ = _FAMILIES[family]
    return {entry.name: entry for entry in entry_points(group=f"backdoor_sweeps.{folder}")}


@cache
def names(family: Family) -> tuple[str, ...]:
    """The names of all methods of a family that ship or are installed, sorted."""
    folder, _ = _FAMILIES[family]
    package = importlib.import_module(f"backdoor_core.{folder}")
    shipped = {info.name for info in pkgutil.iter_modules(package.__path__)}
    return tuple(sorted(shipped | set(_installed(family))))


def method_class(family: Family, name: str) -> type[Method]:
    """The class of the method called `name`, or held by the file `name` (a path ending in `.py`).

    Raises ConfigError with the nearest known name, or where a file does not hold exactly one class.
    """
    folder, base = _FAMILIES[family]
    if name.endswith(".py"):
        return _only_class(_user_module(str(Path(name).resolve())), base, name)
    if name not in names(family):
        raise ConfigError(unknown_name(family, name, names(family)))
    if entry := _installed(family).get(name):
        return cast("type[Method]", entry.load())
    module = importlib.import_module(f"backdoor_core.{folder}.{name}")
    return _only_class(module, base, name)


def make(family: Family, name: str, settings: dict[str, Any]) -> Method:
    """The method with `settings`. Raises ConfigError."""
    return method_class(family, name).checked(settings)


def from_spec(spec: MethodSpec) -> Method:
    """The method that a spec describes, as a worker needs it."""
    return make(spec.family, spec.source or spec.name, spec.settings)


def _user_module(path: str) -> ModuleType:
    if not Path(path).is_file():
        raise ConfigError(f"no such file: {path}")
    name = f"{USER_MODULE}{hashlib.sha256(path.encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"not a Python file: {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ConfigError(f"{path} cannot be imported: {error!r}") from error
    return module


def _only_class(module: ModuleType, base: type[Method], name: str) -> type[Method]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, base)
        and value.__module__ == module.__name__
        and not value.__name__.startswith("_")
    ]
    if len(found) != 1:
        raise ConfigError(
            f"{name}: expected exactly one subclass of {base.__name__} in the file, found "
            f"{[value.__name__ for value in found]}"
        )
    return found[0]

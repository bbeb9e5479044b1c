"""Settings and the space that a sweep may vary them over.

`setting` declares one field of a method: its default, its bounds, which hooks read it, and the range in
which tuning searches. `Range` is what `{low, high, log, steps}` in a sweep file means. `axes` and
`expand` turn one method's mapping from a sweep file into the settings that it stands for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from backdoor_core.errors import ConfigError


class DataPathMark:
    """Marks a field as the path of a file or folder of the user's (see `DataPath`)."""


DataPath = Annotated[Path, DataPathMark()]
"""A path in a sweep file: relative to that file, and part of a key by its content, not by its name."""


def setting(
    default: Any = ...,
    *,
    hooks: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    log: bool = False,
    choices: Sequence[Any] = (),
    stronger: Literal["low", "high"] | None = None,
    **bounds: Any,
) -> Any:
    """A method's field. `hooks` names the hooks that read it (none given: all of them).

    `low`, `high`, `log` and `choices` are the space that tuning searches by default; `stronger` names its end at which
    a defense does the most to the model or to texts (and so costs the most), where one is known. `bounds` are
    pydantic's (`ge`, `gt`, `le`, `lt`, `min_length`, `description`).
    """
    space: dict[str, Any] = {}
    if choices:
        space = {"choices": list(choices)}
    elif low is not None and high is not None:
        space = {"low": low, "high": high, "log": log}
    extra: dict[str, Any] = {}
    if space:
        extra["space"] = space
    if stronger:
        extra["stronger"] = stronger
    if hooks:
        extra["hooks"] = list(hooks)
    return Field(default, json_schema_extra=extra or None, **bounds)


def hooks_of(field: FieldInfo) -> frozenset[str]:
    """The hooks that read a field; the empty set means all of them."""
    extra = field.json_schema_extra
    names = extra.get("hooks", ()) if isinstance(extra, dict) else ()
    return frozenset(str(name) for name in names) if isinstance(names, list) else frozenset()


class Range(BaseModel):
    """`steps` values from `low` to `high`, both included, evenly spaced (on a log scale with `log`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float
    high: float
    log: bool = False
    steps: int = Field(5, ge=1)

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if not self.low <= self.high:
            raise ValueError(f"low ({self.low}) must not be above high ({self.high})")
        if self.log and self.low <= 0:
            raise ValueError(f"a log range needs low > 0, got {self.low}")
        return self

    def values(self, *, whole: bool = False) -> list[float]:
        """The grid; with `whole`, rounded to whole numbers and each kept once."""
        count = self.steps
        shares = [i / (count - 1) for i in range(count)] if count > 1 else [0.0]
        if self.log:
            a, b = math.log(self.low), math.log(self.high)
            points = [math.exp(a + (b - a) * share) for share in shares]
        else:
            points = [self.low + (self.high - self.low) * share for share in shares]
        if whole:
            return list(dict.fromkeys(round(point) for point in points))
        return [float(f"{point:.6g}") for point in points]


def _takes_sequence(annotation: Any) -> bool:
    """Whether a field's own value is a list, so that only a list of lists is an axis."""
    origin = get_origin(annotation)
    if origin in (tuple, list, set, frozenset):
        return True
    return any(_takes_sequence(arg) for arg in get_args(annotation) if arg is not annotation)


def _takes_whole(annotation: Any) -> bool:
    return annotation is int or (
        get_origin(annotation) is not None
        and int in get_args(annotation)
        and float not in get_args(annotation)
    )


class Dimension(BaseModel):
    """One setting of a search: a range of numbers, or choices.

    `stronger` is the end of the range at which a defense does the most; see `setting`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low: float | None = None
    high: float | None = None
    log: bool = False
    whole: bool = False
    choices: tuple[Any, ...] = ()
    stronger: Literal["low", "high"] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Dimension:
        if bool(self.choices) == (self.low is not None and self.high is not None):
            raise ValueError("expected low and high, or choices")
        if self.low is not None and self.high is not None:
            Range(low=self.low, high=self.high, log=self.log)
        return self

    def grid(self, steps: int) -> list[Any]:
        """At most `steps` values, both ends included, evenly spaced; all choices."""
        if self.choices:
            return list(self.choices)
        return list(self._range(steps).values(whole=self.whole))

    def _range(self, steps: int) -> Range:
        return Range(low=cast(float, self.low), high=cast(float, self.high), log=self.log,
                     steps=steps)  # fmt: skip

    def strength(self, value: Any) -> float | None:
        """Where `value` lies between the weakest (0) and the strongest (1) end; None where no end is stronger."""
        if self.stronger is None or self.choices:
            return None
        low, high = cast(float, self.low), cast(float, self.high)
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        share = (value - low) / (high - low) if high > low else 0.0
        return 1 - share if self.stronger == "low" else share


def declared_space(fields: Mapping[str, FieldInfo]) -> dict[str, Dimension]:
    """The space that methods declare for tuning, by setting."""
    found = {}
    for name, field in fields.items():
        extra = field.json_schema_extra
        space = extra.get("space") if isinstance(extra, dict) else None
        if isinstance(space, dict):
            found[name] = dimension(field, space)
    return found


def dimension(field: FieldInfo, space: Mapping[str, Any]) -> Dimension:
    """A space for one setting, as `{low, high, log}` or `{choices}`; its kind and stronger end are the field's.

    Raises ValueError (pydantic's) where it is neither.
    """
    extra = field.json_schema_extra
    stronger = extra.get("stronger") if isinstance(extra, dict) else None
    whole = _takes_whole(field.annotation)
    return Dimension.model_validate({"stronger": stronger, "whole": whole, **space})


def axes(fields: Mapping[str, FieldInfo], settings: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The values of each given setting: a list of one where it is no axis.

    Raises ConfigError for an axis without values or a range that is none.
    """
    result: dict[str, list[Any]] = {}
    for name, value in settings.items():
        annotation = fields[name].annotation if name in fields else None
        if isinstance(value, Mapping) and {"low", "high"} <= set(value):
            try:
                grid = Range.model_validate(dict(value))
            except ValueError as error:
                raise ConfigError(f"{name}: not a range: {error}") from error
            result[name] = list(grid.values(whole=_takes_whole(annotation)))
        elif isinstance(value, list):
            if _takes_sequence(annotation):
                is_axis = bool(value) and all(isinstance(item, list) for item in value)
                result[name] = list(value) if is_axis else [value]
            elif not value:
                raise ConfigError(f"{name}: an empty list has no value to sweep")
            else:
                result[name] = list(value)
        else:
            result[name] = [value]
    return result


def expand(
    fields: Mapping[str, FieldInfo], settings: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Every combination of the axes in `settings`, in the order written."""
    named = axes(fields, settings)
    for values in itertools.product(*named.values()):
        yield dict(zip(named, values, strict=True))

"""Optuna's samplers by name, with their arguments as in a sweep file."""

from __future__ import annotations

import inspect
import math
import sys
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from backdoor_core.errors import unknown_name
from backdoor_core.space import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")
_OWN = frozenset({"self", "seed"})
"""Arguments that the study gives."""
_PLAIN = {"bool": "boolean", "int": "integer", "float": "number", "None": "null"}
"""JSON's names for what an argument may be in a sweep file: functions and objects cannot be."""


class Sampler(BaseModel):
    """A sampler's name and its arguments: `tpe`, or `{name: tpe, n_startup_trials: 5}` in a sweep file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["tpe", "nsga2", "gp", "random", "grid"] = "tpe"
    arguments: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _flat(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, Mapping) and "arguments" not in value:
            rest = {key: one for key, one in value.items() if key != "name"}
            return {"name": value.get("name", "tpe"), "arguments": rest}
        return value

    @model_validator(mode="after")
    def _takes_them(self) -> Sampler:
        known = argument_types(self.name)
        for key in self.arguments:
            if key not in known:
                raise ValueError(unknown_name(f"argument of the sampler {self.name}:", key, known))
            if not any(_is(kind, self.arguments[key]) for kind in known[key]):
                raise ValueError(
                    f"{key} of the sampler {self.name}: expected {' or '.join(known[key])}, "
                    f"got {self.arguments[key]!r}"
                )
        try:
            self.made(0)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the sampler {self.name} does not take these: {error}") from error
        return self

    @property
    def unguided(self) -> int:
        """How many of its first points follow from nothing that it was told (0: a grid is fixed beforehand)."""
        if self.name == "random":
            return sys.maxsize
        count = {"tpe": "n_startup_trials", "gp": "n_startup_trials", "nsga2": "population_size"}
        if self.name not in count:
            return 0
        declared = inspect.signature(_kind(self.name).__init__).parameters[count[self.name]].default
        return int(self.arguments.get(count[self.name], declared))

    def made(self, seed: int) -> BaseSampler:
        """Optuna's sampler. A grid's points are those of `grid_of`, each by its number: nothing is left to sample."""
        kind: Any = _kind(self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental samplers say so each time they are made
            return kind(seed=seed, **self.arguments)  # type: ignore[no-any-return]


def argument_types(name: str) -> dict[str, list[str]]:
    """The arguments of a sampler that a sweep file can give, with their JSON types."""
    found = {}
    for key, one in inspect.signature(_kind(name).__init__).parameters.items():
        kinds = [_PLAIN[word] for word in str(one.annotation).split(" | ") if word in _PLAIN]
        if key not in _OWN and set(kinds) - {"null"}:
            found[key] = kinds
    return found


def _is(kind: str, value: Any) -> bool:
    """Whether a value is of a JSON type."""
    if kind == "null" or kind == "boolean":
        return value is None if kind == "null" else isinstance(value, bool)
    number = int if kind == "integer" else (int, float)
    return isinstance(value, number) and not isinstance(value, bool)


def grid_of(space: Mapping[str, Dimension], trials: int) -> dict[str, list[Any]]:
    """The values of each setting: as many a range as keep the product of all within `trials`, at least two.

    Choices stand by their places.
    """
    steps = 2
    while steps < trials and _within(space, steps + 1) <= trials:
        steps += 1
    return {name: coded_values(one, steps) for name, one in space.items()}


def _within(space: Mapping[str, Dimension], steps: int) -> int:
    """How many points a grid has at most that takes so many steps a range."""
    sizes = [(_size(one), bool(one.choices)) for one in space.values()]
    return math.prod(
        steps if size is None else size if is_choice else min(size, steps)
        for size, is_choice in sizes
    )


def coded_values(dimension: Dimension, steps: int) -> list[Any]:
    """At most `steps` values of a range, or all choices by their places; each once."""
    if dimension.choices:
        return list(range(len(dimension.choices)))
    return list(dict.fromkeys(dimension.grid(steps)))


def points_in(space: Mapping[str, Dimension], sampler: Sampler, trials: int) -> int | None:
    """How many points a search of so many trials could try; None where there is no end of them."""
    if sampler.name == "grid":
        return math.prod(len(values) for values in grid_of(space, trials).values())
    sizes = [_size(one) for one in space.values()]
    return None if None in sizes else math.prod(size for size in sizes if size is not None)


def _size(dimension: Dimension) -> int | None:
    if dimension.choices:
        return len(dimension.choices)
    low, high = dimension.low or 0.0, dimension.high or 0.0
    if dimension.whole:
        return int(high) - int(low) + 1
    return 1 if low == high else None


def _kind(name: str) -> type[BaseSampler]:
    from optuna import samplers

    kinds: dict[str, type[BaseSampler]] = {
        "tpe": samplers.TPESampler,
        "nsga2": samplers.NSGAIISampler,
        "gp": samplers.GPSampler,
        "random": samplers.RandomSampler,
        "grid": samplers.RandomSampler,
    }
    return kinds[name]

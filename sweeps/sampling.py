"""Optuna's samplers by name, with their arguments as in a sweep file."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, model_validator

from backdoor_core.errors import unknown_name
from backdoor_core.space import Dimension

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")
_OWN = frozenset({"self", "seed", "search_space"})
"""Arguments that the study gives: its seed and its space."""


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
        known = set(inspect.signature(_kind(self.name).__init__).parameters) - _OWN
        for key in self.arguments:
            if key not in known:
                raise ValueError(unknown_name(f"argument of the sampler {self.name}:", key, known))
        try:
            self.made(0, {"x": Dimension(low=0, high=1)}, 2)
        except (TypeError, ValueError) as error:
            raise ValueError(f"the sampler {self.name} does not take these: {error}") from error
        return self

    def made(self, seed: int, space: Mapping[str, Dimension], trials: int) -> BaseSampler:
        """The sampler itself. `grid` divides the space into at most `trials` points, at least two a setting."""
        kind: Any = _kind(self.name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # experimental samplers say so each time they are made
            if self.name == "grid":
                return kind(grid_of(space, trials), seed=seed)  # type: ignore[no-any-return]
            return kind(seed=seed, **self.arguments)  # type: ignore[no-any-return]


def grid_of(space: Mapping[str, Dimension], trials: int) -> dict[str, list[Any]]:
    """The values of each setting: as many a range as keep the product of all within `trials`, at least two.

    Choices stand by their places.
    """
    fixed = 1
    ranges = 0
    for dimension in space.values():
        fixed *= len(dimension.choices) or 1
        ranges += not dimension.choices
    steps = 2
    while ranges and fixed * (steps + 1) ** ranges <= trials:
        steps += 1
    return {
        name: list(range(len(one.choices))) if one.choices else one.grid(steps)
        for name, one in space.items()
    }


def _kind(name: str) -> type[BaseSampler]:
    from optuna import samplers

    class Grid(samplers.GridSampler):
        """Optuna's, without its end of the study: who asks knows the budget."""

        def after_trial(self, *arguments: Any) -> None:
            """Nothing."""

    kinds: dict[str, type[BaseSampler]] = {
        "tpe": samplers.TPESampler,
        "nsga2": samplers.NSGAIISampler,
        "gp": samplers.GPSampler,
        "random": samplers.RandomSampler,
        "grid": Grid,
    }
    return kinds[name]

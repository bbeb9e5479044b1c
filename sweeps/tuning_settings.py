"""The `tuning` of a sweep file and the `tune` of an entry of `defenses`: what is searched, how, and how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from backdoor_core.defense import Defense
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.space import Dimension, declared_space, dimension
from backdoor_core.spec import TuningMode
from sweeps.sampling import Sampler

TRIALS = 20
POST_HOC_TRIALS = 200
CACC_DROP = 0.02
SMOKE = {"trials": 2, "post_hoc_trials": 5}


class Limits(BaseModel):
    """The most that a chosen setting may cost on the tune split; null: no limit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cacc_drop: float | None = Field(CACC_DROP, ge=-1, le=1, description="CACC drop")
    frr: float | None = Field(None, ge=0, le=1, description="FRR, of guards that refuse or alter")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value if isinstance(value, Mapping) else ():
            if name not in cls.model_fields:
                raise ValueError(unknown_name("limit", str(name), cls.model_fields))
        return value

    @model_validator(mode="after")
    def _one(self) -> Limits:
        if self.cacc_drop is None and self.frr is None:
            raise ValueError(
                "give cacc_drop or frr: without a limit the strongest setting always wins"
            )
        return self


class TuningSettings(BaseModel):
    """How the settings that entries of `defenses` name in `tune` are chosen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    modes: tuple[TuningMode, ...] = Field(
        ("default", "clean-val"), min_length=1, description="how settings are chosen"
    )
    trials: int | None = Field(
        None, ge=1, description=f"settings that a study tries (default {TRIALS}, without `seconds`)"
    )
    seconds: float | None = Field(
        None, gt=0, description="seconds of jobs that a study may take instead"
    )
    post_hoc_trials: int = Field(
        POST_HOC_TRIALS, ge=1,
        description="settings that a study tries where they need no new fit",
    )  # fmt: skip
    sampler: Sampler = Field(default_factory=Sampler, description="Optuna's sampler")
    post_hoc_sampler: Sampler = Field(
        default_factory=lambda: Sampler(name="grid"),
        description="the sampler where settings need no new fit",
    )
    objective: Literal["constraint", "front"] = Field(
        "constraint", description="lowest ASR within the limits, or the front of ASR and CACC drop"
    )
    limits: Limits = Field(default_factory=lambda: Limits())
    pruning: bool = Field(
        False, description="end trainings early that fall below all that kept the limits"
    )

    @field_validator("modes", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_budget(self) -> TuningSettings:
        if self.trials is not None and self.seconds is not None:
            raise ValueError("give trials or seconds, not both: the other is recorded")
        if self.seconds is not None and self.sampler.name == "grid":
            raise ValueError("a grid is made for a number of trials: give trials, not seconds")
        return self

    @property
    def searching_modes(self) -> tuple[TuningMode, ...]:
        """The modes that try settings, each once."""
        return tuple(mode for mode in dict.fromkeys(self.modes) if mode != "default")

    @property
    def budget(self) -> int | None:
        """Trials of a study; None where seconds are the budget."""
        return None if self.seconds is not None else self.trials or TRIALS


def searched_space(chain: Sequence[Defense], asked: Any) -> dict[str, Dimension]:
    """The space that a `tune` stands for, by setting (`step.setting` in a chain of several).

    `True`: all settings that the defense declares a space for and that have no other value here; a list: those named;
    a mapping: settings with a space, `{low, high, log}`, a list of choices, or null for the declared one. Raises
    ConfigError.
    """
    fields = _fields(chain)
    declared = {name: one for name, (_, one) in fields.items() if one is not None}
    if asked is True:
        return _usable(chain, declared)
    if isinstance(asked, str):
        asked = [asked]
    if isinstance(asked, list):
        asked = dict.fromkeys(map(str, asked))
    if not isinstance(asked, Mapping) or not asked:
        raise ConfigError(
            f"expected true, names of settings, or settings with their spaces, got {asked!r}"
        )
    space = {}
    for name, wanted in asked.items():
        if name not in fields:
            raise ConfigError(unknown_name("setting", str(name), fields))
        if wanted is None:
            if name not in declared:
                raise ConfigError(
                    f"{name}: declares no space to search; give one: {{low, high, log}} or a list"
                )
            space[name] = declared[name]
            continue
        space[name] = _given(name, fields[name][0], wanted)
    _check_ends(chain, space)
    return space


def _given(name: str, owner: Any, wanted: Any) -> Dimension:
    described = wanted
    if isinstance(wanted, list):
        described = {"choices": list({repr(one): one for one in wanted}.values())}
    try:
        made = dimension(owner, described)
        ends = [end for end in (made.low, made.high) if end is not None]
        if made.whole and not all(end.is_integer() for end in ends):
            raise TypeError(f"{name} is a whole number")
    except (ValidationError, TypeError) as error:
        text = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            place = "".join(f"{part}: " for part in first["loc"])
            text = place + first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"{name}: not a space: {text}; expected "
            f"{{low, high, log}} or a list of choices, got {wanted!r}"
        ) from error
    return made


def _fields(chain: Sequence[Defense]) -> dict[str, tuple[Any, Dimension | None]]:
    """Each setting of a chain: its field, and the space that it declares."""
    found: dict[str, tuple[Any, Dimension | None]] = {}
    for prefix, defense in zip(prefixes(chain), chain, strict=True):
        fields = type(defense).model_fields
        declared = declared_space(fields)
        found |= {f"{prefix}{name}": (field, declared.get(name)) for name, field in fields.items()}
    return found


def prefixes(chain: Sequence[Defense]) -> list[str]:
    """What stands before the names of each step's settings: nothing for a single method."""
    if len(chain) == 1:
        return [""]
    names = [defense.catalog_name() for defense in chain]
    return [
        f"{name}." if names[:i].count(name) == 0 else f"{name}#{names[:i].count(name) + 1}."
        for i, name in enumerate(names)
    ]


def with_settings(chain: Sequence[Defense], point: Mapping[str, Any]) -> tuple[Defense, ...]:
    """The chain with the settings of a point. Raises ConfigError where a method does not take them."""
    made = []
    for prefix, defense in zip(prefixes(chain), chain, strict=True):
        fields = type(defense).model_fields
        own = {name: point[f"{prefix}{name}"] for name in fields if f"{prefix}{name}" in point}
        given = {name: getattr(defense, name) for name in defense.model_fields_set}
        new = type(defense).checked(given | own) if own else defense
        assert isinstance(new, Defense)
        made.append(new)
    return tuple(made)


def _usable(chain: Sequence[Defense], declared: Mapping[str, Dimension]) -> dict[str, Dimension]:
    """The declared settings that the entry leaves at their default and that are read as it stands."""
    space = {}
    for name, one in declared.items():
        steps = zip(prefixes(chain), chain, strict=True)
        if any(name.removeprefix(prefix) in defense.model_fields_set for prefix, defense in steps):
            continue
        try:
            _check_ends(chain, {name: one})
        except ConfigError:
            continue
        space[name] = one
    return space


def _check_ends(chain: Sequence[Defense], space: Mapping[str, Dimension]) -> None:
    """Raises ConfigError where a method does not take an end of a range, or a choice."""
    for name, one in space.items():
        for value in one.grid(2):
            with_settings(chain, {name: value})


def is_post_hoc(chain: Sequence[Defense], space: Mapping[str, Dimension]) -> bool:
    """Whether only `decide` reads what is searched: no point needs a new fit."""
    free = {
        f"{prefix}{name}"
        for prefix, defense in zip(prefixes(chain), chain, strict=True)
        for name in type(defense).post_hoc_settings()
    }
    return set(space) <= free


def strength(space: Mapping[str, Dimension], point: Mapping[str, Any]) -> float | None:
    """How strong a point is, 0 to 1: the mean over the settings with a stronger end; None without any."""
    known = [one.strength(point[name]) for name, one in space.items()]
    numbers = [value for value in known if value is not None]
    return sum(numbers) / len(numbers) if numbers else None

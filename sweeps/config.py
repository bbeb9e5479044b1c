"""From a sweep file to a `Sweep`: every method checked, every axis laid out, every mistake with its place.

A list is an axis, `{low, high, log, steps}` is an axis, and an entry of `defenses` may be a chain. Mistakes of
one file are reported together, one a line: `my.yaml, line 12, defenses[2].mixing_ration: unknown setting ...`.
"""

from __future__ import annotations

import copy
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backdoor_core import catalog
from backdoor_core.attack import Attack
from backdoor_core.defense import Defense
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.method import Family, Method
from backdoor_core.plm import PLMSource
from backdoor_core.space import Dimension, Range, axes
from backdoor_core.spec import Precision, TrainingSettings, canonical_json
from backdoor_core.task import Task
from sweeps.data_folders import DataFolders, named_folders
from sweeps.source import Keys, Source, read_source
from sweeps.tuning_settings import SMOKE, TuningSettings, is_post_hoc, searched_space, strength

M = TypeVar("M", bound=Method)
V = TypeVar("V", bound=BaseModel)
T = TypeVar("T")

DEFAULT_SEEDS = 3
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
SECTIONS: dict[str, Family] = {
    "tasks": "task",
    "plms": "plm",
    "attacks": "attack",
    "defenses": "defense",
}
ATTACK_SEEDS = "seeds"
AGAINST = "against"
TUNE = "tune"
"""Keys that an entry of `attacks`, of `defenses`, has beside the settings of its method."""
CLEAN_ROWS = "clean_rows"
KNOWN = ("name", *SECTIONS, "seeds", "training", "tuning", "resources", "slots")

SMOKE_ROWS = {"train_rows": 200, "clean_split_rows": 60, "tune_rows": 60, "test_rows": 120}
SMOKE_LIMITS = {"epochs": 1, "clean_rows": SMOKE_ROWS["clean_split_rows"]}
SMOKE_AXIS_VALUES = 2
SMOKE_PLM = {"texts": 2000, "epochs": 1}
"""Settings of `tiny` that make it in seconds: a smoke run is about the sweep, not about the numbers."""


def _as_in_training(name: str) -> Any:
    """The declaration (default and bounds) of a field of `TrainingSettings`, so that there is one of each."""
    return copy.copy(TrainingSettings.model_fields[name])


class SweepTraining(BaseModel):
    """The `training` of a sweep file: `TrainingSettings`, with a precision that may be left to the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = _as_in_training("epochs")
    batch_rows: int = _as_in_training("batch_rows")
    learning_rate: float = _as_in_training("learning_rate")
    warmup_share: float = _as_in_training("warmup_share")
    weight_decay: float = _as_in_training("weight_decay")
    clip_norm: float = _as_in_training("clip_norm")
    max_tokens: int = _as_in_training("max_tokens")
    precision: Literal["auto", "bf16", "float32"] = Field(
        "auto", description="what autocast computes in; auto: bf16 where the device does it well"
    )

    def resolved(self, automatic: Precision) -> TrainingSettings:
        """The settings for specs, with `automatic` in place of `auto`."""
        precision = automatic if self.precision == "auto" else self.precision
        return TrainingSettings(**{**self.model_dump(), "precision": precision})


class Resources(BaseModel):
    """What one job of the sweep asks of Ray; the same for all, so that workers are reused."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cpu: float = Field(1, gt=0, description="CPU cores")
    gpu: float = Field(0, ge=0, description="GPUs; a fraction lets jobs share one")
    memory_gib: float | None = Field(
        None, gt=0, description="memory, in GiB; what takes more fails"
    )
    time_limit_s: float | None = Field(
        None, gt=0, description="seconds that a job may run; a longer one fails"
    )

    @property
    def threads(self) -> int:
        """Threads of a job: as many as whole CPUs, so that equal files give equal numbers."""
        return max(1, int(self.cpu))


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep file asks for. Each method is made and checked; equal ones stand once.

    A defense is a tuple: the steps of a chain, or one method. With `smoke` the name ends in `-smoke`. `attack_seeds`
    stands beside `attacks`: the seeds that an attack is limited to. `against` and `spaces` stand beside `defenses`: the
    names of the attacks that a defense is tried against (None: all), and the space that its settings are tuned in
    (None: they are as given).
    """

    name: str
    path: Path
    tasks: tuple[Task, ...]
    plms: tuple[PLMSource, ...]
    attacks: tuple[Attack, ...]
    defenses: tuple[tuple[Defense, ...], ...]
    seeds: tuple[int, ...]
    training: SweepTraining
    resources: Resources
    slots: int | None = None
    attack_seeds: tuple[tuple[int, ...] | None, ...] = ()
    against: tuple[frozenset[str] | None, ...] = ()
    spaces: tuple[dict[str, Dimension] | None, ...] = ()
    tuning: TuningSettings | None = None
    command: tuple[str, ...] = ()
    """The words of the command line that give this sweep from its file's folder: `run my.yaml --smoke`."""

    def space_of(self, defense: int) -> dict[str, Dimension] | None:
        """The space that the settings of the defense at this place are tuned in; None where they are not."""
        return self.spaces[defense] if self.spaces else None

    def seeds_of(self, attack: int) -> tuple[int, ...]:
        """The seeds of the attack at this place."""
        limited = self.attack_seeds[attack] if self.attack_seeds else None
        return self.seeds if limited is None else limited

    def is_tried(self, defense: int, attack: str) -> bool:
        """Whether the defense at this place is tried against the attack of this name."""
        named = self.against[defense] if self.against else None
        return named is None or attack in named


def load_sweep(
    path: str | Path,
    *,
    overrides: Sequence[str] = (),
    smoke: bool = False,
    tune: bool = False,
    data: Sequence[str | Path] = (),
) -> Sweep:
    """The sweep in a YAML file.

    `overrides` change values before they are checked (`training.epochs=1`, `defenses.1.mixing_ratio=[0.1, 0.2]`).
    `smoke` gives the same sweep on few rows with the PLM `tiny`: one epoch, one seed, at most two values an axis.
    With `tune` every defense that declares a space is tuned, also where the file does not ask for it. Paths in the file
    may lead into its own folder, into the folders `data`, and into those that BACKDOOR_SWEEPS_DATA names. Raises
    ConfigError with all mistakes that were found, one a line.
    """
    file = Path(path).expanduser().resolve()
    source = read_source(file, overrides)
    if not isinstance(source.value, dict):
        raise ConfigError(
            f"{source.name}: expected settings such as name, tasks, plms, attacks and defenses, "
            f"got {'nothing' if source.value is None else type(source.value).__name__}"
        )
    folders = DataFolders(own=file.parent, named=named_folders(data))
    sweep = _Reader(source=source, folders=folders, smoke=smoke, tune=tune).sweep(file)
    changes = [word for one in overrides for word in ("--set", one)]
    read = [word for one in folders.used for word in ("--data", os.path.relpath(one, file.parent))]
    words = ["tune" if tune else "run", file.name, *read, *changes]
    words += ["--smoke"] if smoke else []
    return replace(sweep, command=tuple(words))


def wording(error: ValidationError) -> Iterator[tuple[Keys, str]]:
    """The place inside and one line of text for each mistake that pydantic found."""
    for item in error.errors():
        message = item["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if item["type"] == "missing":
            yield item["loc"], "this setting is required"
        else:
            shown = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            yield item["loc"], f"{' '.join(message.split())}{shown}"


@dataclass(kw_only=True)
class _Reader:
    """One file being read; `problems` grows, and at the end there is a sweep or an error."""

    source: Source
    folders: DataFolders
    smoke: bool
    tune: bool = False
    problems: list[str] = field(default_factory=list)

    def sweep(self, file: Path) -> Sweep:
        values: dict[str, Any] = self.source.value
        self._refuse_unknown(values, (), "setting", KNOWN)
        name = self._name(values.get("name"))
        tasks = self._methods("tasks", Task)
        plms = self._methods("plms", PLMSource)
        found = self._attacks()
        defenses = self._defenses(frozenset(one.catalog_name() for one, _ in found))
        seeds = self._seeds(values.get("seeds", DEFAULT_SEEDS), ("seeds",))
        attacks = [(attack, self._limited(limit, seeds)) for attack, limit in found]
        training = self._section("training", SweepTraining)
        tuning = self._tuning(defenses)
        resources = self._section("resources", Resources)
        slots = self._slots(values.get("slots"))
        if self.problems or training is None or resources is None:
            raise ConfigError("\n".join(dict.fromkeys(self.problems)))
        if self.smoke:
            name, seeds = f"{name}-smoke", seeds[:1]
            attacks = [(attack, None) for attack, _ in attacks]
            training = training.model_copy(update={"epochs": 1})
            if tuning is not None:
                tuning = tuning.model_copy(update={**SMOKE, "seconds": None})
            plms = [_of_kind(catalog.make("plm", "tiny", SMOKE_PLM), PLMSource)]
        return Sweep(
            name=name,
            path=file,
            tasks=tuple(tasks),
            plms=tuple(plms),
            attacks=tuple(attack for attack, _ in attacks),
            attack_seeds=tuple(limited for _, limited in attacks),
            defenses=tuple(one.chain for one in defenses),
            against=tuple(one.against for one in defenses),
            spaces=tuple(one.space for one in defenses),
            tuning=tuning,
            seeds=tuple(seeds),
            training=training,
            resources=resources,
            slots=slots,
        )

    def _problem(self, keys: Keys, message: str) -> None:
        self.problems.append(f"{self.source.place(keys)}: {message}")

    def _refuse_unknown(
        self, values: Mapping[str, Any], keys: Keys, kind: str, known: Iterable[str]
    ) -> bool:
        names = tuple(known)
        wrong = [key for key in values if key not in names]
        for key in wrong:
            self._problem((*keys, key), unknown_name(kind, key, names))
        return bool(wrong)

    def _name(self, value: Any) -> str:
        if value is None:
            self._problem((), "name is missing; it is the name of the output folder")
        elif not isinstance(value, str) or not re.match(NAME_PATTERN, value):
            self._problem(
                ("name",),
                "expected letters, digits, '.', '_' and '-' (it is the name of a folder), "
                f"got {value!r}",
            )
        return str(value)

    def _seeds(self, value: Any, keys: Keys) -> list[int]:
        """`3` means 0, 1, 2; a list is itself."""
        if _is_whole(value) and value >= 1:
            return list(range(value))
        if (
            isinstance(value, list)
            and value
            and all(_is_whole(seed) and seed >= 0 for seed in value)
        ):
            return list(dict.fromkeys(value))
        self._problem(
            keys, f"expected how many (1 or more) or a list of seeds (from 0), got {value!r}"
        )
        return [0]

    def _slots(self, value: Any) -> int | None:
        if value is None:
            return None
        if _is_whole(value) and value >= 1:
            return int(value)
        self._problem(("slots",), f"expected how many jobs run at once (1 or more), got {value!r}")
        return None

    def _section(self, key: str, model: type[V]) -> V | None:
        """A mapping of the file as a model; None after a problem."""
        value = self.source.value.get(key)
        if value is None:
            return model()
        if not isinstance(value, dict):
            self._problem((key,), f"expected settings, got {value!r}")
            return None
        if self._refuse_unknown(value, (key,), "setting", model.model_fields):
            return None
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for inside, message in wording(error):
                self._problem((key, *inside), message)
            return None

    def _entries(self, section: str) -> list[Any]:
        value = self.source.value.get(section)
        if value is None:
            known = ", ".join(catalog.names(SECTIONS[section]))
            self._problem(
                (section,) if section in self.source.value else (),
                f"{section} is missing; expected a list of some of: {known}",
            )
        elif not isinstance(value, list) or not value:
            self._problem(
                (section,), f"expected a list, such as {section}: [{_shown(value)}], got {value!r}"
            )
        else:
            return value
        return []

    def _methods(self, section: str, kind: type[M]) -> list[M]:
        """Every method that a section stands for, each once, in the order written."""
        found: list[M] = []
        for number, entry in enumerate(self._entries(section)):
            found.extend(self._entry(SECTIONS[section], kind, entry, (section, number)))
        return _once(found)

    def _attacks(self) -> list[tuple[Attack, tuple[Any, Keys] | None]]:
        """Every attack, with what its entry says of seeds, and where."""
        found: list[tuple[Attack, tuple[Any, Keys] | None]] = []
        for number, entry in enumerate(self._entries("attacks")):
            keys: Keys = ("attacks", number)
            entry, value = _without(entry, ATTACK_SEEDS)
            limit = None if value is None else (value, (*keys, ATTACK_SEEDS))
            found += [(one, limit) for one in self._entry("attack", Attack, entry, keys)]
        return _once(found, lambda one: one[0])

    def _limited(self, limit: tuple[Any, Keys] | None, seeds: list[int]) -> tuple[int, ...] | None:
        """The seeds that an attack is limited to. A count means the sweep's first ones; None: all."""
        if limit is None:
            return None
        value, keys = limit
        named = self._seeds(value, keys)
        chosen = seeds[: len(named)] if _is_whole(value) else named
        if extra := [seed for seed in chosen if seed not in seeds]:
            self._problem(keys, f"{extra} are no seeds of the sweep: {seeds}")
        return tuple(chosen)

    def _defenses(self, attacks: frozenset[str]) -> list[_Entry]:
        """Every defense, with the attacks that its entry limits it to and the space that it is tuned in."""
        found: list[_Entry] = []
        for number, entry in enumerate(self._entries("defenses")):
            keys: Keys = ("defenses", number)
            entry, value = _without(entry, AGAINST)
            named = None if value is None else self._against(value, attacks, (*keys, AGAINST))
            entry, tune = _without(entry, TUNE)
            if isinstance(entry, dict) and "chain" in entry:
                chains = list(self._chain(entry, keys))
            else:
                chains = [(one,) for one in self._entry("defense", Defense, entry, keys)]
            for chain in chains:
                space = self._space(chain, tune, (*keys, TUNE))
                one = _Entry(chain=chain, against=named, space=space, asked=bool(tune))
                same = [other for other in found if _identity(other.chain) == _identity(chain)]
                if any(other.space != space for other in same):
                    self._problem(
                        keys, "has the settings of an entry above (a list there makes one for each value, and a "
                        "default counts as given), which is tuned otherwise or not at all; keep one of them",
                    )  # fmt: skip
                found.append(one)
        return _once(found, lambda one: one.chain)

    def _space(
        self, chain: tuple[Defense, ...], asked: Any, keys: Keys
    ) -> dict[str, Dimension] | None:
        """The space that an entry's `tune` stands for; None where it is not tuned, or after a problem.

        An entry that says nothing is tuned by `sweeps tune` where a stronger end is known (no mode then fails on it),
        and over the settings that need no new fit alone, where there are any.
        """
        if asked is None or asked is False:
            implied = searched_space(chain, True) if self.tune and asked is None else {}
            free = {name: one for name, one in implied.items() if is_post_hoc(chain, {name: one})}
            implied = free or implied
            return implied if strength(implied, _ends(implied)) is not None else None
        try:
            space = searched_space(chain, asked)
        except ConfigError as error:
            self._problem(keys, str(error))
            return None
        if not space:
            self._problem(keys, "this defense declares no space; name settings with theirs")
        return space

    def _tuning(self, defenses: Sequence[_Entry]) -> TuningSettings | None:
        """The section `tuning`; None where nothing is tuned."""
        tuned = [entry for entry in defenses if entry.space]
        if self.tune and defenses and not tuned:
            self._problem(
                ("defenses",), "nothing here to tune: no defense has a setting with a space that "
                "its entry leaves open; add `tune: [SETTING]` to one",
            )  # fmt: skip
            return None
        if "tuning" not in self.source.value and not tuned:
            return None
        tuning = self._section("tuning", TuningSettings)
        if tuning is None:
            return None
        asked = any(entry.asked for entry in defenses)
        if tuning.searching_modes and not tuned and not asked:  # what was asked has its own problem
            self._problem(
                ("tuning",), "no entry of defenses says what to search; add `tune: true` to one"
            )
        for entry in tuned:
            if (
                "clean-val" in tuning.modes
                and strength(entry.space or {}, _ends(entry.space or {})) is None
            ):
                names = ", ".join(entry.space or {})
                self._problem(
                    ("tuning", "modes"),
                    f"clean-val takes the strongest setting within the limits, and of {names} "
                    f"({'+'.join(d.catalog_name() for d in entry.chain)}) none says which end is "
                    "stronger; search another setting, or leave the mode out",
                )
        for entry in tuned:
            if any(name.split(".")[-1] == CLEAN_ROWS for name in entry.space or {}):
                self._problem(
                    ("tuning",), f"{CLEAN_ROWS} is no setting to search: all settings get the same"
                )
        rows = {
            one.asked_clean_rows for entry in tuned for one in entry.chain if "clean" in one.access
        }
        if len(rows) > 1:
            self._problem(
                ("tuning",),
                "the tuned defenses use different numbers of clean rows "
                f"({', '.join('all' if n is None else str(n) for n in sorted(rows, key=str))}); "
                "give each the same clean_rows, or they do not compare",
            )
        return tuning

    def _against(self, value: Any, attacks: frozenset[str], keys: Keys) -> frozenset[str]:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not names:
            self._problem(keys, f"expected names of attacks of this sweep, got {value!r}")
            return frozenset()
        for name in names:
            if name not in attacks:
                self._problem(keys, unknown_name("attack of this sweep:", str(name), attacks))
        return frozenset(map(str, names))

    def _chain(self, entry: dict[str, Any], keys: Keys) -> Iterator[tuple[Defense, ...]]:
        """Every combination of the settings of a chain's steps."""
        self._refuse_unknown(entry, keys, "setting of a chain:", ("chain",))
        steps = entry["chain"]
        keys = (*keys, "chain")
        if not isinstance(steps, list) or not steps:
            self._problem(keys, f"expected a list of defenses, got {steps!r}")
            return
        choices: list[list[Defense]] = []
        for number, step in enumerate(steps):
            place = (*keys, number)
            if isinstance(step, dict) and "chain" in step:
                self._problem(place, "a chain cannot hold a chain")
                continue
            made = self._entry("defense", Defense, step, place)
            if any(one.catalog_name() == "none" for one in made):
                self._problem(place, "'none' is no step of a chain; list it beside the chain")
            choices.append(made)
        yield from itertools.product(*choices)

    def _entry(self, family: Family, kind: type[M], entry: Any, keys: Keys) -> list[M]:
        """The methods that one entry stands for; none after a problem."""
        settings = dict(entry) if isinstance(entry, dict) else {"name": entry}
        name = settings.pop("name", None)
        if not isinstance(name, str):
            self._problem(
                keys, f"expected a name, or a mapping with a name and settings, got {entry!r}"
            )
            return []
        named = (*keys, "name") if isinstance(entry, dict) else keys
        if name.endswith(".py"):
            file = self._absolute(name, named)
            if file is None:  # nothing of it is run
                return []
            name = str(file)
        try:
            method = catalog.method_class(family, name)
        except ConfigError as error:
            self._problem(named, str(error))
            return []
        kind_of_name = f"setting of {family} {method.catalog_name()}:"
        if self._refuse_unknown(settings, keys, kind_of_name, method.model_fields):
            return []
        made = [
            self._made(method, kind, chosen, keys)
            for chosen in self._combinations(method, settings, keys)
        ]
        return [one for one in made if one is not None]

    def _combinations(
        self, method: type[Method], settings: Mapping[str, Any], keys: Keys
    ) -> list[dict[str, Any]]:
        """Every combination of the axes, in the order written; none after a problem."""
        named: dict[str, list[Any]] = {}
        for key, value in settings.items():
            values = self._axis(method, key, value, (*keys, key))
            if self.smoke and len(values) > SMOKE_AXIS_VALUES:
                values = [values[0], values[-1]]
            named[key] = values
        return [
            dict(zip(named, values, strict=True)) for values in itertools.product(*named.values())
        ]

    def _axis(self, method: type[Method], key: str, value: Any, keys: Keys) -> list[Any]:
        if isinstance(value, dict) and {"low", "high"} & set(value):
            if self._refuse_unknown(value, keys, "setting of a range:", Range.model_fields):
                return []
            try:
                Range.model_validate(value)
            except ValidationError as error:
                for inside, message in wording(error):
                    self._problem((*keys, *inside), f"not a range: {message}")
                return []
        try:
            values = axes(method.model_fields, {key: value})[key]
        except ConfigError as error:
            self._problem(keys, str(error).removeprefix(f"{key}: "))
            return []
        if key in method.path_fields():
            paths = [self._absolute(o, keys) if isinstance(o, str) else o for o in values]
            refused = None in paths and None not in values
            return [] if refused else [str(o) if isinstance(o, Path) else o for o in paths]
        return values

    def _made(
        self, method: type[Method], kind: type[M], settings: dict[str, Any], keys: Keys
    ) -> M | None:
        if self.smoke:
            settings = _few(method, settings)
        try:
            return _of_kind(method.checked(settings), kind)
        except ConfigError as error:
            cause = error.__cause__
            if not isinstance(cause, ValidationError):
                self._problem(keys, str(error))
                return None
            for inside, message in wording(cause):
                self._problem((*keys, *inside), message)
            return None

    def _absolute(self, written: str, keys: Keys) -> Path | None:
        """A path of the user's; a relative one is relative to the sweep file. None where the file may not name it.

        A path in `--set` is of the command line, and may lead anywhere.
        """
        path = (self.folders.own / Path(written).expanduser()).resolve()
        if any(keys[:length] in self.source.changed for length in range(1, len(keys) + 1)):
            return path
        if refusal := self.folders.refusal(path):
            self._problem(keys, refusal)
            return None
        return path


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """One defense of the file (a chain of one or more) with the keys that an entry of `defenses` has of its own."""

    chain: tuple[Defense, ...]
    against: frozenset[str] | None = None
    space: dict[str, Dimension] | None = None
    asked: bool = False
    """Whether the entry itself says `tune`."""


def _ends(space: Mapping[str, Dimension]) -> dict[str, Any]:
    """A point of a space: the low end of each range, the first of choices."""
    return {name: one.grid(1)[0] for name, one in space.items()}


def _few(method: type[Method], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings with what a smoke run bounds: rows of a task, epochs and clean rows of the rest."""
    few = dict(settings)
    task = issubclass(method, Task)
    for name, limit in (SMOKE_ROWS if task else SMOKE_LIMITS).items():
        if name not in method.model_fields:
            continue
        given = few.get(name, method.model_fields[name].default)
        boundless = given is None and task  # elsewhere null is all of what the task's limits leave
        if boundless or (_is_whole(given) and given > limit):
            few[name] = limit
    return few


def _without(entry: Any, key: str) -> tuple[Any, Any]:
    """An entry without one key of the sweep's own, and that key's value (None where it has none)."""
    if not isinstance(entry, dict) or key not in entry:
        return entry, None
    return {name: value for name, value in entry.items() if name != key}, entry[key]


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return str(value) if isinstance(value, str) else "..."


def _of_kind(method: Method, kind: type[M]) -> M:
    if not isinstance(method, kind):
        raise ConfigError(f"{method.catalog_name()} is no {kind.__name__}")
    return method


def _identity(one: Method | tuple[Method, ...]) -> str:
    steps = one if isinstance(one, tuple) else (one,)
    return canonical_json(
        [[step.catalog_name(), step.source_file(), step.settings()] for step in steps]
    )


def _once(found: Iterable[T], method: Callable[[T], Any] = lambda one: one) -> list[T]:
    """Each method (or chain) with the same settings once; the first stays."""
    first: dict[str, T] = {}
    for one in found:
        first.setdefault(_identity(method(one)), one)
    return list(first.values())

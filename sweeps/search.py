"""One search: an Optuna study by ask and tell, whose points never repeat.

The point of a number depends on the search's seed, on that number and on what was told before, on nothing else: a
search that is rebuilt from what the ledger holds goes on as if it had never stopped where one point was open at a time
(one slot); with several the points that were open may differ. Searches with one seed start with the same points. All
studies of a run share one journal, a file that `optuna-dashboard` opens while the run goes on.
"""

from __future__ import annotations

import itertools
import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from backdoor_core.rng import derive, generator
from backdoor_core.space import Dimension
from backdoor_core.spec import canonical_json
from sweeps.sampling import Sampler, coded_values, grid_of, points_in

_SEEDS = 1 << 32
STUBBORN = 5
"""After so many repetitions a point is drawn at random: some samplers insist on what they think is best."""
TRIES = 50
"""After so many a space without end counts as used up all the same."""
LISTED = 1 << 16
"""The most points of a finite space that are listed, to find those that are left."""
JOURNAL = "studies.journal"

optuna.logging.set_verbosity(optuna.logging.ERROR)


class Journal(BaseJournalBackend):
    """Optuna's journal in memory, with a file that follows it: written anew at the start, then at each `flush`.

    The ledger is the truth and every run builds its studies from it, so the file is for reading along: the dashboard
    opens it with `optuna-dashboard FILE`. Without a path (storage that is no local folder) there is no file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._logs: list[dict[str, Any]] = []
        self._written = 0
        self._file: JournalFileBackend | None = None
        self.has_file = path is not None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            Path(f"{path}.lock").unlink(missing_ok=True)  # of a run that was killed
            self._file = JournalFileBackend(str(path))

    @cached_property
    def storage(self) -> JournalStorage:
        """The storage of all studies: each of its own would read what all others write."""
        with _quiet():
            return JournalStorage(self)

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """What was appended, from a number on."""
        yield from self._logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Keeps what Optuna writes until the next `flush`."""
        self._logs += [json.loads(json.dumps(log)) for log in logs]

    def flush(self) -> None:
        """Brings the file up to date, in one write."""
        if self._file is not None and self._written < len(self._logs):
            self._file.append_logs(self._logs[self._written :])
            self._written = len(self._logs)


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a search is told of one point: its values to minimise, and how far it is above each limit (<= 0: kept).

    `state` is `complete`, `failed` or `pruned`; values of the other two are empty. `reports` are shown in the journal.
    """

    number: int
    point: Mapping[str, Any]
    state: Literal["complete", "failed", "pruned"]
    values: tuple[float, ...] = ()
    excess: Mapping[str, float] = field(default_factory=dict)
    reports: Sequence[float] = ()

    def checked(self) -> Told:
        """Itself; failed where it is called complete and a number in it is not finite."""
        numbers = (*self.values, *self.excess.values())
        if self.state != "complete" or (self.values and all(map(math.isfinite, numbers))):
            return self
        return replace(self, state="failed", values=(), excess={})


_STATES = {
    "complete": TrialState.COMPLETE,
    "failed": TrialState.FAIL,
    "pruned": TrialState.PRUNED,
}


class _Given(BaseSampler):
    """Gives one point. The sampler `inner`, where there is one, notes what it notes of a trial (its generation)."""

    def __init__(
        self,
        inner: BaseSampler | None,
        point: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
    ) -> None:
        self._inner = inner
        self._point = dict(point)
        self._distributions = dict(distributions)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """All settings."""
        return self._distributions

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The point."""
        if self._inner is not None:
            space = self._inner.infer_relative_search_space(study, trial)
            self._inner.sample_relative(study, trial, space)
        return self._point

    def sample_independent(self, *arguments: Any) -> Any:
        """Never asked for: no setting is left."""
        raise NotImplementedError


class Search:
    """A study over `space` (setting to dimension) with `goals` values to minimise.

    `asked` are the open points by number; `told` what is known, in the order of telling.
    """

    def __init__(
        self,
        *,
        name: str,
        space: Mapping[str, Dimension],
        sampler: Sampler,
        seed: int,
        goals: Sequence[str],
        trials: int,
        journal: Journal,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.space = dict(space)
        self.sampler = sampler
        self.seed = seed
        self.trials = trials
        self.asked: dict[int, dict[str, Any]] = {}
        self.told: dict[int, Told] = {}
        self._open: dict[int, Trial] = {}
        self._lowest = 0
        self._seen: set[str] = set()
        self._points = points_in(space, sampler, trials)
        self._gave_up = False
        self._distributions = {key: _distribution(one) for key, one in self.space.items()}
        self._study = optuna.create_study(
            storage=journal.storage,
            study_name=name,
            directions=["minimize"] * len(goals),
            sampler=sampler.made(seed % _SEEDS),
        )
        with _quiet():
            self._study.set_metric_names(list(goals))
        for key, value in (facts or {}).items():
            self._study.set_user_attr(key, value)

    @property
    def started(self) -> int:
        """How many points were asked for, open ones included."""
        return len(self.told) + len(self.asked)

    @property
    def is_used_up(self) -> bool:
        """Whether the space has no further point."""
        return self._gave_up or (self._points is not None and len(self._seen) >= self._points)

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next point and its number (from 0); None where the space has no further point."""
        while self._lowest in self.told or self._lowest in self.asked:
            self._lowest += 1
        if self.is_used_up:
            return None
        if self.sampler.name == "grid":
            return self._next_of_grid()
        number = self._lowest
        for again in range(TRIES):
            left = self._left() if again >= STUBBORN else []
            if left:
                pick = int(generator(self.seed, "left", number).integers(len(left)))
                trial = self._drawn(number, again, left[pick])
            else:
                trial = self._drawn(number, again)
            point = {key: self._plain(key, trial.params[key]) for key in self.space}
            identity = canonical_json(point)
            if identity not in self._seen:
                self._seen.add(identity)
                self._open[number] = trial
                self.asked[number] = point
                trial.set_user_attr("number", number)
                return number, dict(point)
            # Failed trials teach a sampler nothing, so the repetition has no weight.
            trial.set_user_attr("repeats", identity)
            self._study.tell(trial, state=TrialState.FAIL)
        self._gave_up = True
        return None

    def _next_of_grid(self) -> tuple[int, dict[str, Any]] | None:
        """The point of the grid that has the next number; Optuna hears of it when it is told."""
        for number in range(self._lowest, len(self._grid)):
            point = {key: self._plain(key, value) for key, value in self._grid[number].items()}
            if number not in self.told and number not in self.asked:
                self._seen.add(canonical_json(point))
                self.asked[number] = point
                return number, dict(point)
        return None

    @cached_property
    def _grid(self) -> list[dict[str, Any]]:
        """The points of a grid, coded, in an order of the search's own."""
        values = grid_of(self.space, self.trials)
        points = [
            dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())
        ]
        return [points[i] for i in generator(self.seed, "grid").permutation(len(points))]

    def _left(self) -> list[dict[str, Any]]:
        """The points, coded, that a finite space still has; none where it is not, or too large to list."""
        if self._points is None or self._points > LISTED:
            return []
        values = {key: coded_values(one, self._points) for key, one in self.space.items()}
        all_of_them = (
            dict(zip(values, p, strict=True)) for p in itertools.product(*values.values())
        )
        return [
            coded
            for coded in all_of_them
            if canonical_json({key: self._plain(key, value) for key, value in coded.items()})
            not in self._seen
        ]

    def _drawn(self, number: int, again: int = 0, point: Mapping[str, Any] | None = None) -> Trial:
        """A trial of Optuna's with the point that the sampler draws, or with the coded one that is given."""
        name = self.sampler.name
        stubborn = again >= STUBBORN and point is None
        made = (Sampler(name="random") if stubborn else self.sampler).made(
            derive(self.seed, number, again) % _SEEDS
        )
        if point is not None:
            made = _Given(made if name == "nsga2" else None, point, self._distributions)
        self._study.sampler = made
        with _quiet():
            return self._study.ask(self._distributions)

    def _plain(self, key: str, value: Any) -> Any:
        choices = self.space[key].choices
        return choices[int(value)] if choices else value

    def tell(self, told: Told) -> None:
        """Takes in what became of a point: of one that was asked here, or of one of a former run (from the ledger).

        One that is called complete but has a value that is no finite number is taken as failed.
        """
        if told.number in self.told:
            return
        told = told.checked()
        self.asked.pop(told.number, None)
        self.told[told.number] = told
        self._seen.add(canonical_json(dict(told.point)))
        # What was given up is further from the limits than all that was not.
        excess = {"pruned": 1.0} if told.state == "pruned" else dict(told.excess)
        reports = told.reports if len(self._study.directions) == 1 else ()
        if self.sampler.name == "grid":
            self._add(told, excess, reports)
            return
        trial = self._open.pop(told.number, None)
        if trial is None:
            trial = self._drawn(told.number, point=self._codes(told.point))
            trial.set_user_attr("number", told.number)
        for step, value in enumerate(reports):
            trial.report(value, step + 1)
        for name, value in excess.items():
            trial.set_constraint(name, value)
        if told.state == "complete":
            self._study.tell(trial, list(told.values))
        else:
            self._study.tell(trial, state=_STATES[told.state])

    def _add(self, told: Told, excess: Mapping[str, float], reports: Sequence[float]) -> None:
        """Writes a point that Optuna was not asked for, in one entry of the journal."""
        with _quiet():
            trial = create_trial(
                state=_STATES[told.state],
                values=list(told.values) or None,
                params=self._codes(told.point),
                distributions=self._distributions,
                user_attrs={"number": told.number},
                constraints=dict(excess),
                intermediate_values={step + 1: value for step, value in enumerate(reports)},
            )
            self._study.add_trial(trial)

    def _codes(self, point: Mapping[str, Any]) -> dict[str, Any]:
        return {key: self._coded(key, value) for key, value in point.items()}

    def _coded(self, key: str, value: Any) -> Any:
        """A value as Optuna has it: a choice by its place, since choices may be of any kind."""
        choices = self.space[key].choices
        return list(choices).index(value) if choices else value


def _distribution(dimension: Dimension) -> BaseDistribution:
    if dimension.choices:
        return CategoricalDistribution(list(range(len(dimension.choices))))
    low, high = float(dimension.low or 0.0), float(dimension.high or 0.0)
    if dimension.whole:
        return IntDistribution(int(low), int(high), log=dimension.log)
    return FloatDistribution(low, high, log=dimension.log)


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna marks parts as experimental with a warning each; what is used here is pinned and tested."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

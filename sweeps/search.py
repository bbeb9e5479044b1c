"""One search: an Optuna study by ask and tell, whose points never repeat.

The point of a number depends on the search's seed, on that number and on what was told before, on nothing else: a
search that is rebuilt from what the ledger holds goes on as if it had never stopped, and searches with one seed start
with the same points. All studies of a run share one journal, a file that `optuna-dashboard` opens while the run goes
on.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend, JournalFileBackend
from optuna.trial import Trial, TrialState

from backdoor_core.rng import derive
from backdoor_core.space import Dimension
from backdoor_core.spec import canonical_json
from sweeps.sampling import Sampler, grid_of

_SEEDS = 1 << 32
STUBBORN = 5
"""After so many repetitions a point is drawn at random: some samplers insist on what they think is best."""
TRIES = 50
"""After so many the space counts as used up."""
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
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            Path(f"{path}.lock").unlink(missing_ok=True)  # of a run that was killed
            self._file = JournalFileBackend(str(path))

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
        self._distributions = {key: _distribution(one) for key, one in self.space.items()}
        self._study = optuna.create_study(
            storage=_storage(journal),
            study_name=name,
            directions=["minimize"] * len(goals),
            sampler=sampler.made(seed % _SEEDS, space, trials),
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
        """Whether a grid has no point left."""
        if self.sampler.name != "grid":
            return False
        grid = grid_of(self.space, self.trials)
        return len(self._seen) >= math.prod(len(values) for values in grid.values())

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """The next point and its number (from 0); None where the space has no further point."""
        if self.is_used_up:
            return None
        while self._lowest in self.told or self._lowest in self.asked:
            self._lowest += 1
        number = self._lowest
        for again in range(TRIES):
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
        return None

    def _drawn(self, number: int, again: int = 0) -> Trial:
        seed = self.seed if self.sampler.name == "grid" else derive(self.seed, number, again)
        sampler = self.sampler if again < STUBBORN else Sampler(name="random")
        self._study.sampler = sampler.made(seed % _SEEDS, self.space, self.trials)
        with _quiet():
            return self._study.ask(self._distributions)

    def _plain(self, key: str, value: Any) -> Any:
        choices = self.space[key].choices
        return choices[int(value)] if choices else value

    def tell(self, told: Told) -> None:
        """Takes in what became of a point: of one that was asked here, or of one of a former run (from the ledger)."""
        if told.number in self.told:
            return
        trial = self._open.pop(told.number, None)
        if trial is None:
            coded = {key: self._coded(key, value) for key, value in told.point.items()}
            with _quiet():
                self._study.enqueue_trial(coded, user_attrs={"number": told.number})
            trial = self._drawn(told.number)
        self.asked.pop(told.number, None)
        self.told[told.number] = told
        self._seen.add(canonical_json(dict(told.point)))
        for step, value in enumerate(told.reports):
            if len(self._study.directions) == 1:
                trial.report(value, step + 1)
        for name, value in told.excess.items():
            trial.set_constraint(name, value)
        if told.state == "complete" and all(map(math.isfinite, told.values)):
            self._study.tell(trial, list(told.values))
        else:
            state = TrialState.PRUNED if told.state == "pruned" else TrialState.FAIL
            self._study.tell(trial, state=state)

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


def _storage(journal: Journal) -> JournalStorage:
    with _quiet():
        return JournalStorage(journal)


def _quiet() -> warnings.catch_warnings[None]:
    """Optuna marks parts as experimental with a warning each; what is used here is pinned and tested."""
    context = warnings.catch_warnings(action="ignore")
    return context

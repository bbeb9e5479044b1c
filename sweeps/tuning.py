"""Searches beside a running schedule: what to try next, what was found, which trials follow.

A worker fits a point and scores it on the tune split (a `probe` job); points that need no new fit are scored here, from
the observations that one such job stored. What became of a point is written to the ledger before the next is asked
for, and a run that was killed builds its studies from there. Points that several studies ask for are tried once.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from backdoor_core.counting import counted
from backdoor_core.errors import SweepError, error_class
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrialSpec, digest
from backdoor_core.store import ArtifactStore
from backdoor_core.tuning import TuneScores, TuningView, combined, deciding, tuning_view
from sweeps.sampling import points_in
from sweeps.schedule import Job, Outcome
from sweeps.search import Journal, Search, Told
from sweeps.studies import Study, finished_rows

PRECEDENTS = 3
"""Settings that kept the limits, before a training may be ended early for falling below all of them."""

_ALL = -1
"""Stands for all points of a study that needs no new fit."""


def probe_key(spec: TrialSpec, triggered: bool, floors: Sequence[float] | None = None) -> str:
    """The key of the job that tries a setting, seen with or without triggered rows.

    Both find one stored fit, but neither answer stands in for the other: what knows no trigger is told by a job that
    looked at none. A training that may be ended early is followed by the floors of one study alone.
    """
    return digest("job", "probe", spec.key, triggered, floors)


@dataclass
class _Open:
    """A study that is not over: its search, and the probes that its open points wait for."""

    study: Study
    search: Search
    seconds: float = 0.0
    waiting: dict[int, dict[str, Outcome | None]] = field(default_factory=dict)
    """By point: what is known of each of its probes."""
    within: list[Sequence[float]] = field(default_factory=list)
    """Reports of the points that kept the limits."""

    @property
    def floors(self) -> tuple[float, ...] | None:
        """Below which a report is hopeless, by epoch; None where nothing is ended early.

        With several places it is not: their victims' CACCs differ.
        """
        if not self.study.settings.pruning or len(self.study.places) > 1:
            return None
        if len(self.within) < PRECEDENTS:
            return ()
        return tuple(min(values) for values in zip(*self.within, strict=False))


class StudyGate(Protocol):
    """Whose a study is, where several drivers share a ledger: see `elsewhere.Elsewhere`."""

    @property
    def company(self) -> bool:
        """Whether another driver is or was there."""

    def share(self, count: int) -> int:
        """How many of `count` studies to begin with at once."""

    def begins(self, study: str) -> bool:
        """Whether the study is this driver's now."""

    def closes(self, study: str) -> None:
        """The study has ended here."""


class Searches:
    """The open studies of a run: a `schedule.Feeder`.

    `inputs` gives the keys of the jobs that a trial's inputs come from and those of these jobs that are new; `finals`
    the jobs of the trials that follow from a choice, or records that they failed (with the cause given). `ended` are
    studies that are over: the journal shows them beside the others. With a `gate` a study belongs to one driver at
    a time: another one that has it leaves its rows in the ledger, and they are taken over when it lets go.
    """

    def __init__(
        self,
        studies: Iterable[Study],
        rows: Mapping[str, Sequence[Mapping[str, Any]]],
        *,
        ledger: Ledger,
        store: ArtifactStore,
        sweep: str,
        journal: Journal,
        inputs: Callable[[TrialSpec], tuple[frozenset[str], list[Job]]],
        finals: Callable[[Study, Sequence[TrialSpec], Outcome | None], Iterable[Job]],
        ended: Iterable[Study] = (),
        gate: StudyGate | None = None,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._sweep = sweep
        self._journal = journal
        self._inputs = inputs
        self._finals = finals
        self._answers: dict[str, Outcome] = {}
        self._waiting: dict[str, set[str]] = {}
        """By the key of a probe: the studies that wait for it."""
        self.open: dict[str, _Open] = {}
        self._gate = gate
        self._rows = dict(rows)
        self._later: dict[str, Study] = {}
        """Studies that this driver has not begun with: another one has them, or may."""
        self._before = self._tried() if gate is not None and gate.company else frozenset()
        for study in ended if journal.has_file else ():
            _restored(study, rows.get(study.key, ()), journal)
        for study in studies:
            if gate is None:
                self.open[study.key] = _restored(study, rows.get(study.key, ()), journal)
            else:
                self._later[study.key] = study
        if gate is not None:
            for study in list(self._later.values())[: gate.share(len(self._later))]:
                self._begin(study, gate)
        journal.flush()

    def coming(self) -> dict[str, int]:
        """At most how many jobs by kind will follow: a point that several studies ask for is tried once.

        A budget of seconds does not say how many points it is good for.
        """
        probes, trials = 0, 0
        for one in self.open.values():
            probes += 0 if one.study.is_post_hoc else one.study.fits_after(one.search.started)
            trials += len(one.study.finals)
        for study in self._later.values():
            told = len(self._rows.get(study.key, ()))
            probes += 0 if study.is_post_hoc else study.fits_after(told)
            trials += len(study.finals)
        return {"probe": probes, "trial": trials}

    def start(self) -> list[Job]:
        """The first jobs: each study asks for a point."""
        jobs = [job for one in list(self.open.values()) for job in self._next(one)]
        self._journal.flush()
        return jobs

    @property
    def waits(self) -> bool:
        """Whether studies are left that another driver has."""
        return bool(self._later)

    def _begin(self, study: Study, gate: StudyGate) -> bool:
        """Takes a study over from where other drivers left it, unless one of them has it now."""
        if not gate.begins(study.key):
            return False
        del self._later[study.key]
        rows = list(self._rows.get(study.key, ()))
        if gate.company:
            new = finished_rows(self._ledger.tried()).get(study.key, ())
            rows += [row for row in new if _identity(row) not in self._before]
        rows = list({row["number"]: row for row in rows}.values())
        self.open[study.key] = _restored(study, rows, self._journal)
        return True

    def _tried(self) -> frozenset[tuple[str, int, float]]:
        """What the ledger holds of all studies now; some of it counts as not tried (`rerun`)."""
        return frozenset(map(_identity, self._ledger.tried().to_pylist()))

    def freed(self) -> list[Job]:
        """The first point of a study that no other driver has now."""
        for study in list(self._later.values()):
            if self._gate is not None and self._begin(study, self._gate):
                jobs = list(self._next(self.open[study.key]))
                self._journal.flush()
                return jobs
        return []

    def more(self) -> list[Job]:
        """One more point of the study with the fewest open ones, once its first is known."""
        able = [one for one in self.open.values() if not one.study.is_post_hoc and one.search.told]
        for one in sorted(able, key=lambda one: len(one.search.asked)):
            budget = one.study.trials
            enough = self._is_over(one) if budget is None else one.search.started >= budget
            if not enough and (jobs := self._asked(one)):
                self._journal.flush()
                return jobs
        return []

    def ended(self, job: Job, outcome: Outcome) -> list[Job]:
        """Tells the studies that waited for a probe, and asks them for what comes next."""
        if job.kind != "probe":
            return []
        self._answers[job.key] = outcome
        jobs: list[Job] = []
        for key in sorted(self._waiting.pop(job.key, ())):
            if key in self.open:
                jobs += self._take_in(self.open[key], job.key, outcome)
        self._journal.flush()
        return jobs

    def dropped(self, job: Job, cause: Outcome, failed: Job) -> list[Job]:
        """Closes the studies whose probe can never run: their trials fail with its cause.

        Where what failed is a victim that this setting alone has (its defense works before the victim is there), the
        setting has failed, and the studies go on.
        """
        if job.kind != "probe":
            return []
        self._answers[job.key] = cause
        jobs: list[Job] = []
        own = failed.kind == "victim" and any(map(_acts_before_training, failed.specs))
        for key in sorted(self._waiting.pop(job.key, ())):
            if key not in self.open:
                continue
            if own:
                jobs += self._take_in(self.open[key], job.key, cause)
            else:
                jobs += self._close(self.open[key], cause)
        self._journal.flush()
        return jobs

    def _take_in(self, one: _Open, probe: str, outcome: Outcome) -> Iterator[Job]:
        for number, known in list(one.waiting.items()):
            if probe in known:
                known[probe] = outcome
                yield from self._answered(one, number)
        yield from self._next(one)

    def _tell(self, one: _Open, number: int, outcomes: Sequence[Outcome]) -> None:
        """Tells the search what became of a point, and writes it down."""
        seconds = sum(map(_taken, outcomes))
        answers = [outcome.answer or {} for outcome in outcomes]
        reports = next((a["reports"] for a in answers if a.get("reports")), ())
        failed = next((o for o in outcomes if o.error_class), None)
        error = None if failed is None else failed.error or failed.error_class
        pruned = next((a["pruned"] for a in answers if a.get("pruned")), None)
        scores: TuneScores | None = None
        if error is None and pruned is None:
            scores = combined([TuneScores(**answer["scores"]) for answer in answers])
        one.waiting.pop(number, None)
        row = self._told(one, number, scores, seconds, reports=reports, pruned=pruned, error=error,
                         kind=failed.error_class if failed else None)  # fmt: skip
        self._ledger.append_tried([row])

    def _told(
        self,
        one: _Open,
        number: int,
        scores: TuneScores | None,
        seconds: float,
        *,
        reports: Sequence[float] = (),
        error: str | None = None,
        kind: str | None = None,
        pruned: str | None = None,
    ) -> dict[str, Any]:
        """Tells the search of a point, and gives its row; without scores it has failed or was pruned.

        `kind` is the error's class.
        """
        point = one.search.asked[number]
        if scores is None:
            state: Literal["failed", "pruned"] = "failed" if error is not None else "pruned"
            told = Told(number=number, point=point, state=state)
        else:
            told = one.study.told(number, point, scores).checked()
            if told.state == "failed":
                error, kind = f"a score is no finite number: {scores.as_dict()}", "nan"
                scores = None
        told = replace(told, reports=tuple(reports))
        one.seconds += seconds
        one.search.tell(told)
        _remember(one, told)
        return one.study.row(told, scores, sweep=self._sweep, seconds=seconds, now=time.time(),
                             error=error or pruned, error_class=kind)  # fmt: skip

    def _next(self, one: _Open) -> Iterator[Job]:
        """The next point's jobs where the budget allows one and none is open; the trials where the study is over."""
        while one.study.key in self.open and not one.search.asked and not one.waiting:
            jobs = None if self._is_over(one) else self._asked(one)
            if jobs is None:
                yield from self._close(one, None)
            else:
                yield from jobs

    def _is_over(self, one: _Open) -> bool:
        told = list(one.search.told.values())
        return one.search.is_used_up or one.study.is_over(told, one.seconds)

    def _asked(self, one: _Open) -> list[Job] | None:
        """Asks for a point and gives the jobs that try it; none where all is known, and so told, already.

        None where the space has no further point.
        """
        if one.study.is_post_hoc:
            number, places = _ALL, one.study.places
        else:
            asked = one.search.ask()
            if asked is None:
                return None
            number, point = asked
            try:
                places = one.study.places_at(point)
            except SweepError as error:
                self._tell(one, number, [Outcome(error_class="config", error=str(error))])
                return []
        knows, floors = one.study.knows_trigger, one.floors
        keys = {probe_key(place, knows, floors): place for place in places}
        known = {key: self._answers.get(key) for key in keys}
        one.waiting[number] = known
        jobs: list[Job] = []
        for key, place in keys.items():
            if known[key] is None:
                self._waiting.setdefault(key, set()).add(one.study.key)
                needs, inputs = self._inputs(place)
                jobs += [*inputs, Job(key=key, kind="probe", label=_label(one.study, place),
                                      specs=(place,), needs=needs, triggered=knows, floors=floors,
                                      group=Pipeline(place).observed_key)]  # fmt: skip
        return [*jobs, *self._answered(one, number)]

    def _answered(self, one: _Open, number: int) -> Iterator[Job]:
        """Takes in a point whose probes are all known; for a study without new fits that is all of it."""
        outcomes = [outcome for outcome in one.waiting[number].values() if outcome is not None]
        if len(outcomes) < len(one.waiting[number]):
            return
        if number == _ALL:
            yield from self._answer_all(one, outcomes)
        else:
            self._tell(one, number, outcomes)

    def _answer_all(self, one: _Open, outcomes: Sequence[Outcome]) -> Iterator[Job]:
        """Answers every point of a study that needs no new fit, once its places are observed."""
        failed = next((outcome for outcome in outcomes if outcome.error_class), None)
        if failed is not None:
            yield from self._close(one, failed)
            return
        workshop = Workshop(self._store)
        try:
            views = [
                tuning_view(workshop, Pipeline(place), triggered=one.study.knows_trigger)
                for place in one.study.places
            ]
        except SweepError as problem:  # what the job has stored was damaged or taken away since
            cause = Outcome(error_class=error_class(problem), error=str(problem))
            yield from self._close(one, cause)
            return
        # What the fits took is shared by all points; the first row has it.
        seconds = 0.0 if one.search.told else sum(map(_taken, outcomes))
        rows = []
        while not self._is_over(one):
            start = time.perf_counter()
            asked = one.search.ask()
            if asked is None:
                break
            number, point = asked
            scores, error, kind = _scored(one.study, point, views)
            seconds += time.perf_counter() - start
            rows.append(self._told(one, number, scores, seconds, error=error, kind=kind))
            seconds = 0.0
        self._ledger.append_tried(rows)
        yield from self._close(one, None)

    def _close(self, one: _Open, cause: Outcome | None) -> Iterator[Job]:
        """Ends a study: the jobs of the trials that take what it found."""
        self.open.pop(one.study.key, None)
        if self._gate is not None:
            self._gate.closes(one.study.key)
        self._journal.flush()
        told = [one.search.told[number] for number in sorted(one.search.told)]
        specs = one.study.trials_of(told if cause is None else [])
        yield from self._finals(one.study, specs, cause or _no_point(told))


def is_over(study: Study, told: Sequence[Told], seconds: float) -> bool:
    """Whether a study's budget is spent, or its space used up."""
    points = points_in(study.space, study.sampler, study.trials or 1)
    return study.is_over(told, seconds) or (points is not None and len(told) >= points)


def _restored(study: Study, rows: Sequence[Mapping[str, Any]], journal: Journal) -> _Open:
    """A study with what the ledger holds of it."""
    one = _Open(study=study, search=study.search(journal))
    for row in rows:
        told = study.restored(row, json.loads(row["settings"]))
        told = replace(told, reports=tuple(row["reports"] or ()))
        one.search.tell(told)
        one.seconds += row["seconds"] or 0.0
        _remember(one, told)
    return one


def _identity(row: Mapping[str, Any]) -> tuple[str, int, float]:
    return row["study"], row["number"], row["finished_at"]


def _remember(one: _Open, told: Told) -> None:
    if told.reports and told.state == "complete" and all(v <= 0 for v in told.excess.values()):
        one.within.append(told.reports)


def _acts_before_training(spec: TrialSpec) -> bool:
    pipeline = Pipeline(spec)
    return pipeline.victim_key != pipeline.undefended.victim_key


def _scored(
    study: Study, point: Mapping[str, Any], views: Sequence[TuningView]
) -> tuple[TuneScores | None, str | None, str | None]:
    """A point's scores on stored observations, or why there are none, and the class of that error."""
    try:
        decide = deciding(study.chain_at(point))
        return combined([view.scores(decide) for view in views]), None, None
    except Exception as error:  # a user's `decide` may raise anything; the search goes on
        prefix = "" if isinstance(error, SweepError) else f"{type(error).__name__}: "
        return None, f"{prefix}{error}", error_class(error)


def _taken(outcome: Outcome) -> float:
    """What a probe cost: its fit and observation, also where these were in the store already."""
    stored = (outcome.answer or {}).get("seconds")
    return outcome.seconds if stored is None else float(stored)


def _no_point(told: Sequence[Told]) -> Outcome | None:
    """Why a study has nothing to choose from, or None."""
    if any(one.state == "complete" for one in told):
        return None
    return Outcome(
        error_class="bug",
        error=f"the search tried {counted(len(told), 'setting')}, and none has numbers (see tuning/)",
    )


def _label(study: Study, place: TrialSpec) -> str:
    names = "+".join(defense.name for defense in place.defenses)
    return f"trying {names} on {place.attack.name}, seed {place.seed} ({study.mode})"

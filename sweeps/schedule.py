"""The order of jobs: which are ready, which run, which can never run. No Ray here, no clock, no files."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from backdoor_core.spec import TrialSpec
from sweeps.retries import tries_again

JobKind = Literal["prepare", "victim", "reference", "probe", "trial"]
_RANK: Mapping[str, int] = {"prepare": 0, "victim": 1, "reference": 2, "probe": 3, "trial": 3}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A unit of scheduled work: bring a PLM, train a victim, observe the twin, try a setting, or run a trial.

    `specs` are the trials that a `trial` job leaves rows for (post-hoc settings ride along), else one spec that
    says what to build. `needs` are the keys of jobs that must be done before. `triggered` and `floors` are
    those of `tuning.probe`.
    """

    key: str
    kind: JobKind
    label: str
    specs: tuple[TrialSpec, ...]
    attempts: tuple[int, ...] = ()
    needs: frozenset[str] = frozenset()
    triggered: bool = False
    floors: tuple[float, ...] | None = None
    group: str = ""
    """Jobs of one group share what they fit: they do not run at the same time."""
    tries: tuple[str, ...] = ()
    """The error classes of its tries that failed so far."""

    def payload(self) -> dict[str, Any]:
        """What travels to a worker: small, and JSON."""
        return {
            "key": self.key,
            "kind": self.kind,
            "label": self.label,
            "specs": [spec.model_dump(mode="json") for spec in self.specs],
            "attempts": list(self.attempts),
            "triggered": self.triggered,
            "floors": None if self.floors is None else list(self.floors),
            "tries": list(self.tries),
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended. `error_class` is None where it went well; `rows` and `failed_rows` count what it recorded.

    `answer` is what a probe found, as JSON.
    """

    error_class: str | None = None
    error: str | None = None
    rows: int = 0
    failed_rows: int = 0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    log: str | None = None
    answer: Mapping[str, Any] | None = None
    elsewhere: bool = False
    """Whether another driver has done the work."""


class Gate(Protocol):
    """Who may run a job, where several drivers share a store."""

    def ask(self, job: Job) -> Job | Outcome | None:
        """The job (what is left of it) where it may run here now, its outcome where it ended elsewhere, else None."""

    def ended(self, job: Job, outcome: Outcome) -> None:
        """The job that was asked for has ended."""


class Feeder(Protocol):
    """What adds jobs to a schedule while it runs."""

    def ended(self, job: Job, outcome: Outcome) -> Iterable[Job]:
        """The jobs that follow from the end of one."""

    def dropped(self, job: Job, cause: Outcome, failed: Job) -> Iterable[Job]:
        """The jobs that follow where one can never run, as `failed` did that it needs (perhaps through others)."""

    def more(self) -> Iterable[Job]:
        """Jobs that could run beside those that do, where nothing else is ready."""

    @property
    def waits(self) -> bool:
        """Whether jobs may come of `freed`, even when none is open."""

    def freed(self) -> Iterable[Job]:
        """Jobs of what another driver had, and has no more."""


Listener = Callable[[str, Job, "Outcome | None"], None]
"""Called with `added`, `started`, `again`, `done`, `failed` or `dropped`, the job, and its outcome.

After `again` (it failed, and has another try) a job waits to be started anew."""


@dataclass
class Schedule:
    """Jobs by state. A job is handed out once; those that need a failed one are dropped with its outcome.

    A `feeder` adds jobs while the schedule runs. A job that the `gate` does not let through waits, and is
    asked for again whenever one is taken.
    """

    jobs: dict[str, Job]
    listener: Listener | None = None
    feeder: Feeder | None = None
    gate: Gate | None = None
    running: set[str] = field(default_factory=set)
    done: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, Outcome] = field(default_factory=dict)
    dropped: dict[str, Outcome] = field(default_factory=dict)
    closed: bool = False
    """True: nothing more is handed out (time is up, or the user stopped the run)."""

    def __post_init__(self) -> None:
        self._missing: dict[str, set[str]] = {}
        self._dependants: dict[str, list[str]] = {}
        self._order: dict[str, int] = {}
        self._roots: dict[str, str] = {}
        """By the key of a job that failed or was dropped: the one that failed."""
        self._ready: list[tuple[int, int, str]] = []
        given, self.jobs = self.jobs, {}
        self.add(given.values())

    @classmethod
    def of(
        cls,
        jobs: Iterable[Job],
        listener: Listener | None = None,
        feeder: Feeder | None = None,
        gate: Gate | None = None,
    ) -> Schedule:
        """A schedule of `jobs`, in their order where several are ready."""
        return cls({job.key: job for job in jobs}, listener, feeder, gate)

    def add(self, jobs: Iterable[Job]) -> None:
        """Takes in jobs; those that are known already stay as they are, those that need a failed one are dropped."""
        new = {job.key: job for job in jobs if job.key not in self.jobs}
        self.jobs |= new
        for key, job in new.items():
            self._tell("added", job, None)
            self._order[key] = len(self._order)
            needs = {need for need in job.needs if need in self.jobs and need not in self.done}
            self._missing[key] = needs
            for need in needs:
                self._dependants.setdefault(need, []).append(key)
        self._offer(key for key in new if not self._missing[key])
        for key in new:
            root = next((self._roots[n] for n in self._missing[key] if n in self._roots), None)
            if root is not None and key not in self.dropped:
                self._give_up(key, root)

    def _offer(self, keys: Iterable[str]) -> None:
        for key in keys:
            heapq.heappush(self._ready, (_RANK[self.jobs[key].kind], self._order[key], key))

    def take(self) -> Job | None:
        """The next ready job, now running; None where none can start (or the schedule is closed)."""
        if self.closed:
            return None
        found = self._first_free()
        if found is None and self.feeder is not None and self.feeder.waits:
            self.add(self.feeder.freed())
            found = self._first_free()
        # Where nothing runs here, jobs that others hold are no reason to ask for more.
        if found is None and self.feeder is not None and (self.running or self.gate is None):
            self.add(self.feeder.more())
            found = self._first_free()
        if found is not None:
            self.running.add(found.key)
            self._tell("started", found, None)
        return found

    def _first_free(self) -> Job | None:
        """The first ready job whose group has none that runs, taken from those that wait."""
        busy = {self.jobs[key].group for key in self.running} - {""}
        held: list[tuple[int, int, str]] = []
        found: Job | None = None
        while self._ready and found is None:
            place = heapq.heappop(self._ready)
            job = self.jobs[place[2]]
            answer = None if job.group in busy else self._asked(job)
            if isinstance(answer, Job):
                found = self.jobs[job.key] = answer
            elif answer is None:
                held.append(place)
            else:
                self.complete(job.key, answer)
        for place in held:
            heapq.heappush(self._ready, place)
        return found

    def _asked(self, job: Job) -> Job | Outcome | None:
        return job if self.gate is None else self.gate.ask(job)

    def complete(self, key: str, outcome: Outcome) -> None:
        """Records how a running job ended, and offers or drops those that wait for it.

        A job that failed without leaving rows may have another try. Where nothing is handed out any more, one whose
        worker was lost has been given up: it stays open.
        """
        self.running.discard(key)
        job = self.jobs[key]
        if self.gate is not None:
            self.gate.ended(job, outcome)
        failed = outcome.error_class if not outcome.rows else None
        if (
            failed is not None
            and self.closed
            and (failed == "lost" or tries_again(failed, job.tries))
        ):
            return
        if failed is not None and tries_again(failed, job.tries):
            self.jobs[key] = replace(job, tries=(*job.tries, failed))
            self._offer([key])
            self._tell("again", job, outcome)
            return
        if outcome.error_class is None or job.kind in ("trial", "probe"):
            self.done[key] = outcome
            waiting = self._dependants.get(key, [])
            for other in waiting:
                self._missing[other].discard(key)
            self._offer(k for k in waiting if not self._missing[k] and k not in self.dropped)
            self._tell("done", job, outcome)
        else:
            self.failed[key] = outcome
            self._roots[key] = key
            self._tell("failed", job, outcome)
            self._drop(key, key)
        if self.feeder is not None:
            self.add(self.feeder.ended(job, outcome))

    def _drop(self, key: str, root: str) -> None:
        for other in self._dependants.get(key, []):
            if other not in self.dropped:
                self._give_up(other, root)

    def _give_up(self, key: str, root: str) -> None:
        cause = self.failed[root]
        self._roots[key] = root
        self.dropped[key] = cause
        self._tell("dropped", self.jobs[key], cause)
        self._drop(key, root)
        if self.feeder is not None:
            self.add(self.feeder.dropped(self.jobs[key], cause, self.jobs[root]))

    def _tell(self, event: str, job: Job, outcome: Outcome | None) -> None:
        if self.listener is not None:
            self.listener(event, job, outcome)

    @property
    def ready(self) -> int:
        """How many jobs could start now."""
        return len(self._ready)

    @property
    def open(self) -> int:
        """How many jobs have not ended."""
        return len(self.jobs) - len(self.done) - len(self.failed) - len(self.dropped)

    @property
    def exhausted(self) -> bool:
        """Whether nothing can ever be handed out again."""
        waits = self.feeder is not None and self.feeder.waits
        return self.closed or (not self.running and not self.open and not waits)

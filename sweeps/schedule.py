"""The order of jobs: which are ready, which run, which can never run. No Ray here, no clock, no files."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from backdoor_core.spec import TrialSpec

JobKind = Literal["prepare", "victim", "reference", "trial"]
_RANK: Mapping[str, int] = {"prepare": 0, "victim": 1, "reference": 2, "trial": 3}


@dataclass(frozen=True, kw_only=True)
class Job:
    """A unit of scheduled work: bring a PLM, train a victim, observe the twin, or fit one defense.

    `specs` are the trials that a `trial` job leaves rows for (post-hoc settings ride along), else one spec that
    says what to build. `needs` are the keys of jobs that must be done before.
    """

    key: str
    kind: JobKind
    label: str
    specs: tuple[TrialSpec, ...]
    attempts: tuple[int, ...] = ()
    needs: frozenset[str] = frozenset()

    def payload(self) -> dict[str, Any]:
        """What travels to a worker: small, and JSON."""
        return {
            "key": self.key,
            "kind": self.kind,
            "label": self.label,
            "specs": [spec.model_dump(mode="json") for spec in self.specs],
            "attempts": list(self.attempts),
        }


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended. `error_class` is None where it went well; `rows` and `failed_rows` count what it recorded."""

    error_class: str | None = None
    error: str | None = None
    rows: int = 0
    failed_rows: int = 0
    seconds: float = 0.0
    notices: tuple[str, ...] = ()
    log: str | None = None


Listener = Callable[[str, Job, "Outcome | None"], None]
"""Called with `started`, `done`, `failed` or `dropped`, the job, and its outcome."""


@dataclass
class Schedule:
    """Jobs by state. A job is handed out once; those that need a failed one are dropped with its outcome."""

    jobs: dict[str, Job]
    listener: Listener | None = None
    running: set[str] = field(default_factory=set)
    done: dict[str, Outcome] = field(default_factory=dict)
    failed: dict[str, Outcome] = field(default_factory=dict)
    dropped: dict[str, Outcome] = field(default_factory=dict)
    closed: bool = False
    """True: nothing more is handed out (time is up, or the user stopped the run)."""

    def __post_init__(self) -> None:
        self._missing = {
            key: {need for need in job.needs if need in self.jobs} for key, job in self.jobs.items()
        }
        self._dependants: dict[str, list[str]] = {}
        for key, needs in self._missing.items():
            for need in needs:
                self._dependants.setdefault(need, []).append(key)
        self._order = {key: i for i, key in enumerate(self.jobs)}
        self._ready: list[tuple[int, int, str]] = []
        self._offer(key for key, needs in self._missing.items() if not needs)

    @classmethod
    def of(cls, jobs: Iterable[Job], listener: Listener | None = None) -> Schedule:
        """A schedule of `jobs`, in their order where several are ready."""
        return cls({job.key: job for job in jobs}, listener)

    def _offer(self, keys: Iterable[str]) -> None:
        for key in keys:
            heapq.heappush(self._ready, (_RANK[self.jobs[key].kind], self._order[key], key))

    def take(self) -> Job | None:
        """The next ready job, now running; None where none is ready (or the schedule is closed)."""
        if self.closed or not self._ready:
            return None
        job = self.jobs[heapq.heappop(self._ready)[2]]
        self.running.add(job.key)
        self._tell("started", job, None)
        return job

    def complete(self, key: str, outcome: Outcome) -> None:
        """Records how a running job ended, and offers or drops those that wait for it."""
        self.running.discard(key)
        job = self.jobs[key]
        if outcome.error_class is None or job.kind == "trial":
            self.done[key] = outcome
            waiting = self._dependants.get(key, [])
            for other in waiting:
                self._missing[other].discard(key)
            self._offer(k for k in waiting if not self._missing[k] and k not in self.dropped)
            self._tell("done", job, outcome)
        else:
            self.failed[key] = outcome
            self._tell("failed", job, outcome)
            self._drop(key, outcome)

    def _drop(self, key: str, cause: Outcome) -> None:
        for other in self._dependants.get(key, []):
            if other not in self.dropped:
                self.dropped[other] = cause
                self._tell("dropped", self.jobs[other], cause)
                self._drop(other, cause)

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
        return self.closed or (not self.running and not self.open)

"""A cluster in simulated time: the real `Schedule`, one head, nodes that start, work, and are taken away.

What is real: the order of hand-out, the dependencies, retries and drops (`sweeps.schedule`), and the processor time
that the schedule takes, which is measured on the way. What is modelled: how long a job, a node's start, a worker's
start, the storage and the head's own work for a job take, and when spot nodes are lost.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sweeps.schedule import Job, Outcome, Schedule

HOUR_S = 3600.0
JobTime = Callable[[Job], float]
"""The seconds that a job takes on a slot, without storage."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What the model takes for granted; seconds unless named otherwise."""

    nodes: int = 256
    slots_a_node: int = 1
    node_start_s: tuple[float, float] = (120.0, 300.0)
    """Least and most from the request for a node to its first worker process; uniform."""
    worker_start_s: float = 6.0
    """A worker's process and imports, once for each slot of a node."""
    losses_an_hour: float = 0.05
    """How often a spot node is taken away; another takes its place."""
    notice_s: float = 30.0
    """From the loss of a node until the head knows."""
    storage_s: float = 0.3
    """What a job waits for storage: its claim, its artifacts' manifests, its rows."""
    head_s: float = 0.015
    """What the head is busy with for each job, one after another."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """How a simulated sweep went. Seconds are simulated ones, but `schedule_cpu_s`."""

    makespan_s: float
    job_s: float
    """Useful work: the seconds of jobs that ended."""
    paid_s: float
    """Slot-seconds of nodes that were there, from their request on."""
    thrown_away_s: float
    head_busy_s: float
    losses: int
    retried: int
    done: int
    failed: int
    dropped: int
    last_hand_out_s: float
    schedule_cpu_s: float
    """Processor seconds of this machine in `Schedule.take` and `Schedule.complete`."""


@dataclass
class _Slot:
    node: int
    life: int
    """Which life of its node: a lost node's slots are never used again."""


@dataclass
class _Run:
    job: Job
    began_s: float
    seconds: float


@dataclass
class Simulation:
    """One sweep; call `run` once."""

    schedule: Schedule
    hardware: Hardware
    job_time: JobTime
    seed: int = 0
    _now: float = 0.0
    _head_free: float = 0.0
    _events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _count: int = 0
    _idle: deque[_Slot] = field(default_factory=deque)
    _running: dict[tuple[int, int, int], _Run] = field(default_factory=dict)
    _job_s: float = 0.0
    _thrown_away_s: float = 0.0
    _head_busy_s: float = 0.0
    _losses: int = 0
    _retried: int = 0
    _last_hand_out: float = 0.0
    _cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)
        self._lives = [0] * self.hardware.nodes

    def run(self) -> Found:
        """Runs until nothing is left to do."""
        for node in range(self.hardware.nodes):
            self._request(node)
        while self._events and not self.schedule.exhausted:
            self._now, _, happens = heapq.heappop(self._events)
            happens()
        hardware = self.hardware
        return Found(
            makespan_s=self._now,
            job_s=self._job_s,
            paid_s=self._now * hardware.nodes * hardware.slots_a_node,
            thrown_away_s=self._thrown_away_s,
            head_busy_s=self._head_busy_s,
            losses=self._losses,
            retried=self._retried,
            done=len(self.schedule.done),
            failed=len(self.schedule.failed),
            dropped=len(self.schedule.dropped),
            last_hand_out_s=self._last_hand_out,
            schedule_cpu_s=self._cpu_s,
        )

    def _after(self, seconds: float, happens: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self._now + seconds, self._count, happens))

    def _request(self, node: int) -> None:
        """A node comes up, with its slots, and the moment of its loss is drawn."""
        life = self._lives[node]
        ready_s = self._rng.uniform(*self.hardware.node_start_s) + self.hardware.worker_start_s
        self._after(ready_s, lambda: self._up(node, life))

    def _up(self, node: int, life: int) -> None:
        if self.hardware.losses_an_hour:
            lost_s = self._rng.exponential(HOUR_S / self.hardware.losses_an_hour)
            self._after(lost_s, lambda: self._lost(node))
        self._idle.extend(_Slot(node, life) for _ in range(self.hardware.slots_a_node))
        self._hand_out()

    def _lost(self, node: int) -> None:
        """The node's jobs stop now; the head learns of it later, and another node is requested."""
        life = self._lives[node]
        self._lives[node] += 1
        self._losses += 1
        self._idle = deque(slot for slot in self._idle if slot.node != node)
        mine = [place for place in self._running if place[:2] == (node, life)]
        stopped = [self._running.pop(place) for place in mine]
        self._thrown_away_s += sum(max(0.0, self._now - run.began_s) for run in stopped)

        def known() -> None:
            for run in stopped:
                self._try_again(run.job)
            self._request(node)
            self._hand_out()

        self._after(self.hardware.notice_s, known)

    def _try_again(self, job: Job) -> None:
        """The schedule decides: it counts the tries."""
        self._complete(job, Outcome(error_class="lost", error="its nodes were lost"))
        self._retried += job.key not in self.schedule.failed

    def _hand_out(self) -> None:
        """The head, if it is free, gives one job to one idle slot, and is busy for a while."""
        if self._now < self._head_free or not self._idle:
            return
        job = self._taken()
        if job is None:
            return
        slot = self._idle.popleft()
        self._head_free = self._now + self.hardware.head_s
        self._head_busy_s += self.hardware.head_s
        self._last_hand_out = self._now
        seconds = self.job_time(job)
        self._count += 1
        place = (slot.node, slot.life, self._count)
        self._running[place] = _Run(job, self._head_free, seconds)
        taken_s = self.hardware.head_s + self.hardware.storage_s + seconds
        self._after(taken_s, lambda: self._ended(slot, place))
        self._after(self.hardware.head_s, self._hand_out)

    def _ended(self, slot: _Slot, place: tuple[int, int, int]) -> None:
        run = self._running.pop(place, None)
        if run is None:
            return  # its node was lost
        self._job_s += run.seconds
        self._complete(run.job, Outcome(seconds=run.seconds))
        self._idle.append(slot)
        self._hand_out()

    def _taken(self) -> Job | None:
        start = time.process_time()
        job = self.schedule.take()
        self._cpu_s += time.process_time() - start
        return job

    def _complete(self, job: Job, outcome: Outcome) -> None:
        start = time.process_time()
        self.schedule.complete(job.key, outcome)
        self._cpu_s += time.process_time() - start

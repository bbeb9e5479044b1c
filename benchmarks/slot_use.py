"""How well two slots are used: slot-seconds while there is enough to do, over the job seconds in that time.

Exactly: the driver notes the time of every start and end of a job, and how many jobs are then ready or running.
The *window* is all the time after the first job was started in which ready + running >= slots. The numerator is
slots x the length of the window. The denominator is the sum, over all jobs, of the part of the job that lies in
the window: a job covers the seconds that its worker measured (`Outcome.seconds`), up to the moment at which the
worker returned it. 1.0 would mean that no slot ever waits: for Tune, for a process to start, for Python to
import.

`ratio` is that, with everything after the first start in it: the start of the second slot's process and imports
too. Ray's own start comes before. `warm_ratio`, for comparison, counts only the time after each slot's process
has ended its first job.

Two sweeps, both with `tiny`, one after the other in one Ray session and one fresh store: the quickstart sweep,
and one of 4 victims x 8 settings.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore
from benchmarks._line import ROOT, finish, options, say
from sweeps.config import Sweep, load_sweep
from sweeps.jobs import run_job
from sweeps.plan import plan_sweep
from sweeps.schedule import Job, Outcome, Schedule

SLOTS = 2
WANTED = "<= 1.10"
RUNNER = "benchmarks.slot_use:stamped"
FOUR_BY_EIGHT = """
name: four-by-eight
tasks: [toy_reviews]
plms: [tiny]
seeds: [7]
attacks:
  - none
  - {name: badnets, words: [cf], poison_rate: [0.02, 0.05, 0.1]}
defenses:
  - name: fine_mixing
    mixing_ratio: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
    clean_rows: 300
    learning_rate: 5.0e-4
training: {epochs: 4, batch_rows: 32, learning_rate: 5.0e-4}
resources: {cpu: 1}
"""
"""Four victims with the clean twin; the undefended one of each is scored too, as always."""

Spans = list[tuple[float, float]]


def stamped(payload: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """`run_job`, whose outcome also says in which process it ran and when it ended (on this machine's clock)."""
    import os

    outcome = run_job(payload, context)
    return outcome | {"notices": [str(os.getpid()), repr(time.time())]}


@dataclass(kw_only=True)
class Recorder:
    """A `schedule.Listener` that notes when there was enough to do, and what each job covered."""

    slots: int
    schedule: Schedule | None = None
    first_start: float | None = None
    enough: Spans = field(default_factory=list)
    jobs: list[tuple[int, float, float]] = field(default_factory=list)
    """Process, begin and end of each job."""
    bad: list[str] = field(default_factory=list)
    _since: float | None = None

    def __call__(self, event: str, job: Job, outcome: Outcome | None) -> None:
        now = time.time()
        if event == "started" and self.first_start is None:
            self.first_start = now
        if outcome is not None and event == "done":
            process, end = outcome.notices
            self.jobs.append((int(process), float(end) - outcome.seconds, float(end)))
        if outcome is not None and outcome.error_class is not None:
            self.bad.append(f"{job.label}: {outcome.error}")
        self._note(now)

    def _note(self, now: float) -> None:
        """Opens or closes a stretch of the window."""
        assert self.schedule is not None
        enough = self.schedule.ready + len(self.schedule.running) >= self.slots
        if enough and self._since is None:
            self._since = now
        elif not enough and self._since is not None:
            self.enough.append((self._since, now))
            self._since = None

    @property
    def warm_from(self) -> float:
        """When the last process had ended its first job."""
        firsts: dict[int, float] = {}
        for process, _, end in sorted(self.jobs, key=lambda job: job[2]):
            firsts.setdefault(process, end)
        return max(firsts.values())

    def ratio(self, after: float) -> tuple[float, float, float]:
        """Slot-seconds over job seconds in the window after `after`; and both."""
        window = [(max(begin, after), end) for begin, end in self.enough if end > after]
        slot_s = self.slots * sum(end - begin for begin, end in window)
        job_s = sum(
            max(0.0, min(end, stop) - max(begin, start))
            for _, begin, end in self.jobs
            for start, stop in window
        )
        return slot_s / job_s, slot_s, job_s


def recorded(sweep: Sweep, store: Path, out: Path) -> Recorder:
    """Runs a sweep's jobs as `sweeps run` does, and notes their times. Raises where a job failed."""
    from sweeps.tune_bridge import run_with_tune

    artifacts, ledger = ArtifactStore(store), Ledger(out)
    plan = plan_sweep(sweep, artifacts, ledger)
    recorder = Recorder(slots=SLOTS)
    schedule = recorder.schedule = Schedule.of(plan.jobs.values(), recorder)
    context = {"store": str(store), "out": str(out), "sweep": sweep.name, "threads": 1}
    run_with_tune(schedule, RUNNER, context, resources=sweep.resources, slots=SLOTS)
    if recorder.bad:
        raise RuntimeError(f"{len(recorder.bad)} jobs failed, such as {recorder.bad[0]}")
    return recorder


def main() -> None:
    """Measures and prints, a line for each sweep."""
    parser = options(__doc__)
    parser.add_argument("--only", choices=("quickstart", "four-by-eight"))
    chosen = parser.parse_args()
    from sweeps.tune_bridge import start_ray

    held = []
    with tempfile.TemporaryDirectory(prefix="slot-use-") as name:
        folder = Path(name)
        own = folder / "four-by-eight.yaml"
        own.write_text(FOUR_BY_EIGHT, encoding="utf-8")
        start_ray(SLOTS)
        for file in (ROOT / "sweeps/configs/quickstart.yaml", own):
            if chosen.only in (None, file.stem):
                sweep = load_sweep(file)
                found = recorded(sweep, folder / "store", folder / file.stem)
                held.append(_said(sweep, found))
    finish(chosen.strict, *held)


def _said(sweep: Sweep, found: Recorder) -> bool:
    assert found.first_start is not None
    ratio, slot_s, job_s = found.ratio(found.first_start)
    warm, _, _ = found.ratio(found.warm_from)
    return say(
        f"slot_use_{sweep.name.replace('-', '_')}", ratio, WANTED,
        settings={"slots": SLOTS, "threads_a_slot": 1, "sweep": sweep.name},
        measured={"slot_s": round(slot_s, 2), "job_s": round(job_s, 2), "warm_ratio": round(warm, 3),
                  "jobs": len(found.jobs), "processes": len({job[0] for job in found.jobs}),
                  "all_s": round(max(job[2] for job in found.jobs) - found.first_start, 2)},
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""Milliseconds that Ray Tune adds to a job: jobs that do nothing, through `run_with_tune`, on two slots.

The wall time of a run with 2 jobs (one a slot: Tune's start, the workers' processes) is subtracted from that of
a run with 202, and the rest is divided by 200. Both runs are in one Ray session, whose own start is in neither.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from benchmarks._line import finish, options, say
from sweeps.config import Resources
from sweeps.schedule import Job, Schedule

SLOTS = 2
WANTED = "<= 60"
RUNNER = "benchmarks.tune_overhead:nothing"


def nothing(payload: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """A job that does nothing."""
    return {}


def wall_s(count: int) -> float:
    """Seconds that `run_with_tune` takes for `count` jobs that do nothing. Raises where one was lost."""
    from sweeps.tune_bridge import run_with_tune

    jobs = [Job(key=f"{count}-{i}", kind="trial", label="nothing", specs=()) for i in range(count)]
    schedule = Schedule.of(jobs)
    start = time.perf_counter()
    run_with_tune(schedule, RUNNER, {}, resources=Resources(cpu=1), slots=SLOTS)
    taken = time.perf_counter() - start
    bad = [outcome.error for outcome in schedule.done.values() if outcome.error_class]
    if bad or len(schedule.done) != count:
        raise RuntimeError(
            f"{len(schedule.done)} of {count} jobs ended, {len(bad)} badly: {bad[:1]}"
        )
    return taken


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    chosen = parser.parse_args()
    from sweeps.tune_bridge import start_ray

    start_ray(SLOTS)
    few = wall_s(SLOTS)
    many = wall_s(SLOTS + chosen.jobs)
    held = say(
        "tune_overhead_ms", 1000 * (many - few) / chosen.jobs, WANTED,
        settings={"jobs": chosen.jobs, "slots": SLOTS},
        measured={"start_s": round(few, 2), "all_s": round(many, 2)},
    )  # fmt: skip
    finish(chosen.strict, held)


if __name__ == "__main__":
    main()

"""What a sweep of many jobs costs its driver, and what two nodes lose: both through `run_with_tune`.

Three lines. `many_jobs_ms` and `many_jobs_growth_mib`: 10,000 jobs that do nothing, a tenth of them victims that the
others need, on two slots of this machine; milliseconds a job (all but the start of Ray), and by how much the driver's
resident memory grew from before the run to its largest at the end of any job or of the run. `two_nodes_overhead`:
two nodes of one CPU each (two raylets on this machine), 20 victims and 180 dependants that sleep for two seconds
each; slots x wall over the sum of the jobs' seconds, with the workers' start in the wall.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks._line import finish, options, say
from sweeps.config import Resources
from sweeps.schedule import Job, Outcome, Schedule

SLOTS = 2
WANTED_MS, WANTED_MIB, WANTED_OVERHEAD = "<= 60", "<= 200", "<= 1.2"
RUNNER = "benchmarks.many_jobs:slept"
_MIB = 1 << 20


def slept(payload: Mapping[str, Any], context: Mapping[str, Any]) -> dict[str, Any]:
    """A job that sleeps for as long as the context says, and tells how long it took."""
    start = time.perf_counter()
    if context["sleep_s"]:
        time.sleep(context["sleep_s"])
    return {"seconds": time.perf_counter() - start}


def staged(victims: int, dependants: int) -> list[Job]:
    """Victims, and as many trials as `dependants`, which need them by turns."""
    return [
        *(Job(key=f"victim-{i}", kind="victim", label="victim", specs=()) for i in range(victims)),
        *(
            Job(key=f"trial-{i}", kind="trial", label="trial", specs=(),
                needs=frozenset({f"victim-{i % victims}"}))
            for i in range(dependants)
        ),
    ]  # fmt: skip


def resident_mib() -> float:
    """The resident memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / _MIB


@dataclass(kw_only=True)
class Watch:
    """A `schedule.Listener` that notes the largest resident memory, jobs' seconds, and bad ends."""

    peak_mib: float = field(default_factory=resident_mib)
    job_s: float = 0.0
    ended: list[float] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)

    def __call__(self, event: str, job: Job, outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self.ended.append(time.perf_counter())
        self.job_s += outcome.seconds
        self.peak_mib = max(self.peak_mib, resident_mib())
        if outcome.error_class is not None:
            self.bad.append(f"{job.label} {event}: {outcome.error}")


def wall_s(jobs: list[Job], watch: Watch, sleep_s: float) -> float:
    """Seconds that `run_with_tune` takes for `jobs`. Raises where one did not end well."""
    from sweeps.tune_bridge import run_with_tune

    schedule = Schedule.of(jobs, watch)
    start = time.perf_counter()
    run_with_tune(schedule, RUNNER, {"sleep_s": sleep_s}, resources=Resources(cpu=1), slots=SLOTS)
    taken = time.perf_counter() - start
    watch.peak_mib = max(watch.peak_mib, resident_mib())
    if watch.bad or len(schedule.done) != len(jobs):
        raise RuntimeError(
            f"{len(schedule.done)} of {len(jobs)} jobs ended, {len(watch.bad)} badly: "
            f"{watch.bad[:1]}"
        )
    return taken


def flat_memory(count: int) -> bool:
    """Prints the two lines of jobs that do nothing."""
    import ray

    from sweeps.tune_bridge import start_ray

    start_ray(SLOTS)
    try:
        before, cpu_s = resident_mib(), time.process_time()
        watch = Watch()
        taken = wall_s(staged(count // 10, count - count // 10), watch, 0.0)
        cpu_s = time.process_time() - cpu_s
    finally:
        ray.shutdown()
    settings = {"jobs": count, "slots": SLOTS}
    tenth = max(1, count // 10)
    first, last = (watch.ended[i + tenth] - watch.ended[i] for i in (0, count - 1 - tenth))
    quick = say(
        "many_jobs_ms", 1000 * taken / count, WANTED_MS, settings=settings,
        measured={"all_s": round(taken, 1), "driver_cpu_ms_a_job": round(1000 * cpu_s / count, 2),
                  "first_tenth_ms": round(1000 * first / tenth, 2),
                  "last_tenth_ms": round(1000 * last / tenth, 2)},
    )  # fmt: skip
    flat = say(
        "many_jobs_growth_mib", watch.peak_mib - before, WANTED_MIB, settings=settings,
        measured={"before_mib": round(before), "peak_mib": round(watch.peak_mib)},
    )  # fmt: skip
    return quick and flat


@contextmanager
def two_nodes() -> Iterator[None]:
    """Joins two nodes of one CPU each, both on this machine."""
    import ray
    from ray.cluster_utils import Cluster

    from sweeps.tune_bridge import start_ray

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    before = os.environ.get("RAY_ADDRESS")
    try:
        cluster.add_node(num_cpus=1)
        os.environ["RAY_ADDRESS"] = cluster.address
        start_ray()
        yield
    finally:
        if before is None:
            os.environ.pop("RAY_ADDRESS", None)
        else:
            os.environ["RAY_ADDRESS"] = before
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def overhead(count: int, sleep_s: float) -> bool:
    """Prints the line of two nodes."""
    import ray

    with two_nodes():
        nodes = sum(node["Alive"] for node in ray.nodes())  # type: ignore[no-untyped-call]
        watch = Watch()
        taken = wall_s(staged(count // 10, count - count // 10), watch, sleep_s)
    return say(
        "two_nodes_overhead", SLOTS * taken / watch.job_s, WANTED_OVERHEAD,
        settings={"jobs": count, "sleep_s": sleep_s, "slots": SLOTS, "nodes": nodes},
        measured={"wall_s": round(taken, 1), "job_s": round(watch.job_s, 1)},
    )  # fmt: skip


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--jobs", type=int, default=10_000, help="jobs that do nothing")
    parser.add_argument("--sleeps", type=int, default=200, help="jobs that sleep, on two nodes")
    parser.add_argument("--sleep-s", type=float, default=2.0)
    parser.add_argument("--only", choices=("memory", "nodes"))
    chosen = parser.parse_args()
    held = []
    if chosen.only != "nodes":
        held.append(flat_memory(chosen.jobs))
    if chosen.only != "memory":
        held.append(overhead(chosen.sleeps, chosen.sleep_s))
    finish(chosen.strict, *held)


if __name__ == "__main__":
    main()

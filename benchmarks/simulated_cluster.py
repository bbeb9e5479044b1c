"""A sweep of 100,000 jobs on 256 nodes: planned for real, run in simulated time, and what planning takes.

Three lines. `planning_ms_a_trial`: processor milliseconds that `plan_sweep` takes for a trial of the largest of three
sweeps (1,000, 10,000 and 100,000 trials; the embedded task). `simulated_cluster_overhead`: slots x makespan over the
sum of job seconds when the plan of the largest one runs on 256 spot nodes (`_simulation.py`: the real schedule and
its dependencies; nodes start, are lost, are replaced). `slots_one_head_carries`: the mean job's seconds over the
head's own time for a job; more slots than that wait for the head.

Job times. Fits are drawn from the seconds to fit of the real sweeps in docs/results/*.csv (MiniLM on SST-2 and OLID,
one CPU thread; column `fit_s`). Training and evaluation are rows over the rows a second of docs/results.md (136, of
the same machine), with a log-normal spread. `--speedups` divides all of them: 20 is what `sweeps plan` guesses for a
GPU. The head's time for a job is that of `benchmarks.many_jobs`.
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore
from benchmarks._line import ROOT, finish, options, say
from benchmarks._simulation import Found, Hardware, Simulation
from sweeps.config import load_sweep
from sweeps.estimate import INFERENCE_SPEEDUP
from sweeps.plan import Plan, plan_sweep
from sweeps.schedule import Job, Schedule

WANTED_PLANNING, WANTED_OVERHEAD, WANTED_SLOTS = "<= 2", "<= 1.2", ">= 256"
SIZES = ((10, 10, 10), (10, 100, 10), (10, 100, 100))
"""Poison rates x settings x seeds."""
SWEEP = """
name: planning
tasks: [toy_reviews]
plms: [tiny]
seeds: {seeds}
attacks:
  - {{name: badnets, words: [cf], poison_rate: {rates}}}
defenses:
  - {{name: fine_mixing, mixing_ratio: {settings}, clean_rows: 300, learning_rate: 5.0e-4}}
training: {{epochs: 4, batch_rows: 32, learning_rate: 5.0e-4}}
"""
ROWS_A_S = 136.0
TRAIN_ROWS, EPOCHS, TUNE_AND_TEST_ROWS = 5534, 3, 2693
"""SST-2 as the sweeps of docs/results.md train and score it."""
PREPARE_S, SPREAD = 20.0, 0.25


def planned(rates: int, settings: int, seeds: int) -> tuple[Plan, float]:
    """The plan of a sweep of that size against an empty store, and its processor seconds."""
    text = SWEEP.format(
        seeds=list(range(seeds)),
        rates=[round(0.01 + 0.5 * i / rates, 6) for i in range(rates)],
        settings=[round(i / settings, 6) for i in range(settings)],
    )
    with tempfile.TemporaryDirectory(prefix="planning-") as name:
        file = Path(name) / "planning.yaml"
        file.write_text(text, encoding="utf-8")
        sweep = load_sweep(file)
        store, ledger = ArtifactStore(Path(name) / "store"), Ledger(Path(name) / "out")
        start = time.process_time()
        plan = plan_sweep(sweep, store, ledger)
        return plan, time.process_time() - start


def fit_seconds(folder: Path) -> np.ndarray:
    """The seconds to fit of every defended setting in the result tables: float64, ascending."""
    found = [
        float(row["fit_s"])
        for file in sorted(folder.glob("*.csv"))
        for row in csv.DictReader(file.open(encoding="utf-8"))
        if row["defense"] != "none" and row["fit_s"]
    ]
    return np.sort(np.array(found))


class JobTimes:
    """Draws the seconds of a job, by its kind."""

    def __init__(self, fits: np.ndarray, speedup: float, seed: int) -> None:
        self._fits, self._speedup = fits, speedup
        self._rng = np.random.default_rng(seed)
        evaluation_s = 1.5 * TUNE_AND_TEST_ROWS / INFERENCE_SPEEDUP / ROWS_A_S
        self._steady: Mapping[str, float] = {
            "prepare": PREPARE_S,
            "victim": TRAIN_ROWS * EPOCHS / ROWS_A_S + evaluation_s,
            "reference": evaluation_s / 3,
            "trial": evaluation_s,
        }

    def __call__(self, job: Job) -> float:
        seconds = self._steady[job.kind] * self._rng.lognormal(-(SPREAD**2) / 2, SPREAD)
        if job.kind == "trial":
            seconds += self._rng.choice(self._fits)
        return float(seconds) / self._speedup


def simulated(jobs: Sequence[Job], hardware: Hardware, speedup: float, seed: int) -> Found:
    """The jobs on the hardware, each `speedup` times quicker than it was measured."""
    times = JobTimes(fit_seconds(ROOT / "docs" / "results"), speedup, seed)
    return Simulation(Schedule.of(jobs), hardware, times, seed).run()


def figures(found: Found, hardware: Hardware) -> dict[str, Any]:
    """What a line says of one simulated sweep."""
    slots = hardware.nodes * hardware.slots_a_node
    return {
        "overhead": round(slots * found.makespan_s / found.job_s, 3),
        "makespan_h": round(found.makespan_s / 3600, 3),
        "ideal_h": round(found.job_s / slots / 3600, 3),
        "mean_job_s": round(found.job_s / max(1, found.done), 2),
        "jobs_a_s": round(found.done / found.makespan_s, 2),
        "head_busy": round(found.head_busy_s / found.makespan_s, 3),
        "tail_s": round(found.makespan_s - found.last_hand_out_s, 1),
        "losses": found.losses, "retried": found.retried, "failed": found.failed,
        "dropped": found.dropped, "done": found.done,
        "thrown_away": round(found.thrown_away_s / found.paid_s, 4),
        "schedule_cpu_us_a_job": round(1e6 * found.schedule_cpu_s / max(1, found.done), 1),
    }  # fmt: skip


def main() -> None:
    """Plans, simulates and prints."""
    parser = options(__doc__)
    parser.add_argument("--sizes", type=int, default=len(SIZES), help="how many of the sweeps")
    parser.add_argument("--nodes", type=int, default=256)
    parser.add_argument("--losses-an-hour", type=float, default=0.05, help="of each spot node")
    parser.add_argument("--storage-s", type=float, default=0.3)
    parser.add_argument("--head-ms", type=float, default=15.0, help="see benchmarks.many_jobs")
    parser.add_argument("--speedups", type=float, nargs="+", default=[1.0, 20.0, 100.0])
    chosen = parser.parse_args()
    planning = {}
    for size in SIZES[: chosen.sizes]:
        plan, cpu_s = planned(*size)
        planning[len(plan.trials)] = round(1000 * cpu_s / len(plan.trials), 3)
    quick = say(
        "planning_ms_a_trial", planning[len(plan.trials)], WANTED_PLANNING,
        settings={"trials": list(planning)}, measured={"ms_a_trial": list(planning.values())},
    )  # fmt: skip
    hardware = Hardware(
        nodes=chosen.nodes, losses_an_hour=chosen.losses_an_hour,
        storage_s=chosen.storage_s, head_s=chosen.head_ms / 1000,
    )  # fmt: skip
    jobs = list(plan.jobs.values())
    runs = {
        speedup: figures(simulated(jobs, hardware, speedup, seed=0), hardware)
        for speedup in chosen.speedups
    }
    settings = {"jobs": len(jobs), "kinds": dict(Counter(job.kind for job in jobs)),
                "nodes": hardware.nodes, "losses_an_hour": hardware.losses_an_hour,
                "storage_s": hardware.storage_s, "head_ms": chosen.head_ms}  # fmt: skip
    first = runs[chosen.speedups[0]]
    finish(
        chosen.strict,
        quick,
        say("simulated_cluster_overhead", first["overhead"], WANTED_OVERHEAD, settings=settings,
            measured={"at_speedup": runs}),
        say("slots_one_head_carries", first["mean_job_s"] / hardware.head_s, WANTED_SLOTS,
            settings=settings,
            measured={speedup: round(run["mean_job_s"] / hardware.head_s)
                      for speedup, run in runs.items()}),
    )  # fmt: skip


if __name__ == "__main__":
    main()

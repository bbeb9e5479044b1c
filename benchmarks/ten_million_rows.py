"""Seconds and memory from ten million ledger rows on disk to summaries, worst cases and Pareto fronts.

The benchmark writes two output folders (not timed): a sweep of 40 attack cells x 250 defense settings x 1000 seeds
with failed and skipped trials, flags, nulls, a searched setting and a second attempt of every hundredth trial, and a
second sweep that measures a hundredth of it again. A fresh process then loads both, keeps the latest attempts, and
makes the summaries, the worst cases, the trade-off points and the fronts. The seconds run from that process's start to
its answer, imports and all reading included; the files are in the page cache, since they were just written. `cpu_s`
says what a busy machine took from it. Peak memory is its largest resident set. `spec` is shorter than in a real ledger
(a few KiB each): summaries never read it.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from benchmarks._line import ROOT, finish, options, say

WANTED_S, WANTED_GIB = "<= 5", "<= 2"
T = TypeVar("T")


def main() -> None:
    """Writes, measures in a process of its own, and prints."""
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="1000 make ten million rows")
    parser.add_argument(
        "--rounds", type=int, default=3, help="measured so often; the median counts"
    )
    parser.add_argument("--folder", help="write there and keep it; read it where it is already")
    parser.add_argument("--measure", nargs="+", help="only measure these output folders")
    chosen = parser.parse_args()
    if chosen.measure:
        sys.stdout.write(json.dumps(stages(chosen.measure)) + "\n")
        sys.stdout.flush()
        return
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(chosen.folder or aside)
        outs = [folder / "first", folder / "second"]
        if not all(out.exists() for out in outs):
            from benchmarks._ledger_rows import write_sweeps

            write_sweeps(*outs, seeds=chosen.seeds)
        rounds = sorted(
            (measured(outs) for _ in range(chosen.rounds)), key=lambda one: one["all_s"]
        )
        one = rounds[len(rounds) // 2]
        disk = sum(file.stat().st_size for file in folder.rglob("*.parquet"))
    settings = {"seeds": chosen.seeds, "rounds": chosen.rounds, "disk_gib": round(disk / 2**30, 2)}
    all_s = [found["all_s"] for found in rounds]
    peak = max(found["peak_rss_gib"] for found in rounds)
    finish(
        chosen.strict,
        say("ten_million_rows_s", one["all_s"], WANTED_S, settings=settings,
            measured=one | {"rounds_s": all_s}),
        say("ten_million_rows_peak_gib", peak, WANTED_GIB, settings=settings, measured={}),
    )  # fmt: skip


def measured(outs: Sequence[Path]) -> dict[str, float]:
    """The stages as a fresh process says them, with the seconds from its start to its answer."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.ten_million_rows", "--measure", *map(str, outs)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        answer = process.stdout.readline() if process.stdout else ""
        taken = round(time.perf_counter() - start, 2)
    if process.returncode:
        raise RuntimeError(f"measuring ended with {process.returncode}; its error stands above")
    found: dict[str, float] = json.loads(answer)
    return found | {"all_s": taken}


def stages(outs: Sequence[str]) -> dict[str, float]:
    """Seconds of each stage in this process, the resident memory's peak after it, and what came out."""
    found: dict[str, float] = {}

    def timed(name: str, stage: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = stage()
        found[f"{name}_s"] = round(time.perf_counter() - start, 2)
        found[f"{name}_peak_gib"] = peak_rss_gib()
        return result

    timed("import", imported)
    import analysis
    from analysis.summaries import summaries
    from analysis.tradeoff import pareto_front, worst_points
    from analysis.worst import worst_cases

    results = timed("load", lambda: analysis.load(outs))
    found["rows"] = timed("latest_attempts", lambda: len(results))
    made = timed("summaries", lambda: summaries(results))
    worst = timed("worst_cases", lambda: worst_cases(made))
    setups = sorted({case.setup for case in worst})
    points = timed("points", lambda: [worst_points(worst, setup) for setup in setups])
    fronts = timed("fronts", lambda: [pareto_front(group) for group in points])
    found |= {"summaries": len(made), "points": sum(map(len, points))}
    found |= {"on_fronts": sum(map(len, fronts)), "peak_rss_gib": peak_rss_gib()}
    used = resource.getrusage(resource.RUSAGE_SELF)
    return found | {"cpu_s": round(used.ru_utime + used.ru_stime, 2)}


def imported() -> None:
    """Imports what the stages need."""
    import analysis.summaries
    import analysis.tradeoff  # noqa: F401


def peak_rss_gib() -> float:
    """The largest resident set of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


if __name__ == "__main__":
    main()

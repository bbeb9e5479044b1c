"""What 1,000 thresholds of X-GRAAD cost on one victim, against one: fit, observation, and the whole study.

One process, one thread, no Ray. The victim and its own observations are made before the clock starts. Then, each in a
fresh copy of that store and with an empty ledger, a study of the mode `oracle` over the percentile (grid) with one
setting and with 1,000, as a run of a sweep does it: the probe job fits, observes and calibrates on the tune split, and
the study answers its points from there, writes their rows and its journal. The study of one is run before and after
the other, and the mean is taken. Seconds are the process's own (CPU), so that other work on the machine does not enter;
the files that are written are small.

With `--task sst2` (and the files in `--data`, and the extra `minilm`): `--rows` rows of the tune split, as many clean
ones, and a victim of 200 rows and one epoch, since what the victim has learned does not change the time.
Else `toy_reviews` with `tiny`, where one fit takes so little that the ratio is of no use as a limit.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backdoor_core import catalog
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import quiet_transformers
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import attack_victim, prepare
from benchmarks._line import ROOT, finish, options, say, skip
from sweeps.jobs import run_job
from sweeps.local import run_here
from sweeps.memory import keep_freed_memory
from sweeps.schedule import Schedule
from sweeps.search import JOURNAL, Journal
from sweeps.studies import Study
from sweeps.tuning import Searches
from sweeps.tuning_settings import TuningSettings, searched_space

COUNT = 1000
WANTED = "<= 1.05"
DATA = ROOT.parent / "shared" / "data" / "sst2"
ATTACK = {"words": ["cf"], "poison_rate": 0.1}


def trial(task: str, plm: str, settings: dict[str, Any]) -> TrialSpec:
    """The trial whose percentile is searched."""
    return TrialSpec(
        task=catalog.make("task", task, settings).spec(),
        plm=catalog.make("plm", plm, {}).spec(),
        attack=catalog.make("attack", "badnets", ATTACK).spec(),
        training=TrainingSettings(epochs=1, batch_rows=32, learning_rate=1e-4),
        defenses=(catalog.make("defense", "x_graad", {}).spec(),),
    )


def study_of(spec: TrialSpec, count: int) -> Study:
    """The study of so many percentiles."""
    chain = Pipeline(spec).defenses
    settings = TuningSettings(modes=("oracle",), post_hoc_trials=count)
    return Study(mode="oracle", chain=chain, space=searched_space(chain, ["percentile"]),
                 settings=settings, places=(spec,), finals=(spec,))  # fmt: skip


def seconds(ready: Path, spec: TrialSpec, count: int) -> tuple[float, float]:
    """The CPU seconds of fit, observation and study in a fresh copy of the store; and those of the study alone."""
    with tempfile.TemporaryDirectory(prefix="post-hoc-settings-") as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        shutil.copytree(ready, store)
        ledger = Ledger(out)
        start = time.process_time()
        searches = Searches(
            [study_of(spec, count)], {}, ledger=ledger, store=ArtifactStore(store),
            sweep="benchmark", journal=Journal(out / JOURNAL),
            inputs=lambda spec: (frozenset(), []), finals=lambda *_: (),
        )  # fmt: skip
        schedule = Schedule.of(searches.start(), None, searches)
        context = {"store": str(store), "out": str(out), "sweep": "benchmark", "threads": 1}
        job_s: list[float] = []

        def timed(payload: Any, context: Any) -> dict[str, Any]:
            before = time.process_time()
            outcome = run_job(payload, context)
            job_s.append(time.process_time() - before)
            return outcome

        run_here(schedule, timed, context)
        taken = time.process_time() - start
        (outcome,) = schedule.done.values()
        rows = ledger.tried().num_rows
        if outcome.error_class or rows != count or not (out / JOURNAL).is_file():
            raise SystemExit(f"expected {count} settings and a journal, got {rows}: {outcome}")
        return taken, taken - sum(job_s)


def made_ready(folder: Path, spec: TrialSpec) -> None:
    """The victim and its own observations, in a store in `folder`."""
    workshop = Workshop(ArtifactStore(folder))
    prepare(workshop, spec)
    attack_victim(workshop, Pipeline(spec).undefended.spec)


def _trials(chosen: Any) -> Iterator[tuple[str, TrialSpec, str, dict[str, Any]]]:
    rows = {"train_rows": 200, "tune_rows": chosen.rows, "clean_split_rows": chosen.rows,
            "test_rows": 50}  # fmt: skip
    if not chosen.data.is_dir():
        skip("post_hoc_settings sst2", f"no files in {chosen.data.name}; name them with --data")
    else:
        yield "sst2", trial("sst2", "minilm", rows | {"path": str(chosen.data)}), WANTED, rows
    if not chosen.real_only:
        yield "toy_reviews", trial("toy_reviews", "tiny", {}), "<= 1000", {}


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of SST-2's files")
    parser.add_argument(
        "--rows", type=int, default=872, help="rows of the tune and the clean split"
    )
    parser.add_argument("--real-only", action="store_true", help="leave out the toy task")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_transformers()
    held = []
    for name, spec, wanted, rows in _trials(chosen):
        with tempfile.TemporaryDirectory(prefix="post-hoc-settings-ready-") as folder:
            made_ready(Path(folder), spec)
            first, _ = seconds(Path(folder), spec, 1)
            many, study_s = seconds(Path(folder), spec, COUNT)
            second, _ = seconds(Path(folder), spec, 1)
        held.append(
            say(
                f"post_hoc_settings {name}", many / ((first + second) / 2), wanted,
                settings={"task": name, "plm": spec.plm.name, "rows": rows, "threads": 1,
                          "attack": ATTACK, "count": COUNT, "sampler": "grid", "mode": "oracle"},
                measured={"one_s": [round(first, 2), round(second, 2)], "all_s": round(many, 2),
                          "study_s": round(study_s, 2)},
            )
        )  # fmt: skip
    finish(chosen.strict, *held)


if __name__ == "__main__":
    main()

"""What 100 settings cost that need no new observation, or few: X-GRAAD percentiles and BTU thresholds.

`tiny` on `toy_reviews`, BadNets, one process, one thread, no Ray. The victim, its clean twin and their observations
are made before the clock starts. Then, each in a fresh copy of that store, one trial job (as a worker runs it, its
rows written to a ledger) with one setting, and one with 100:

- `x_graad`: percentiles from 50 to 99.5, evenly spaced: one observation serves all.
- `btu` with `clean_epochs: 0`: thresholds over the range that tuning searches, evenly spaced on a log scale: one
  exposure serves all, and thresholds with the same candidates share a fit and an observation. How many sets of
  candidates there are is printed: on a vocabulary as small as `tiny`'s they are few.

The one-setting job is run before and after the other, and the mean is taken.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from backdoor_core import catalog
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import quiet_transformers
from backdoor_core.space import Range
from backdoor_core.spec import TrainingSettings, TrialSpec, digest
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import attack_victim, prepare, reference
from benchmarks._line import finish, options, say
from sweeps.jobs import run_job
from sweeps.memory import keep_freed_memory

COUNT = 100
ATTACK = {"words": ["cf"], "poison_rate": 0.1}
TRAINING = TrainingSettings(epochs=4, batch_rows=32, learning_rate=5.0e-4)
PERCENTILES = Range(low=50.0, high=99.5, steps=COUNT)
THRESHOLDS = Range(low=5e-5, high=2e-2, log=True, steps=COUNT)
BTU = {"clean_epochs": 0, "exposure_learning_rate": 1e-3, "embedding_learning_rate": 1e-3}
WANTED = {"x_graad": "<= 1.1", "btu": "<= 2"}


def trial(defense: str, settings: dict[str, Any]) -> TrialSpec:
    """The trial of one defense with its settings."""
    return TrialSpec(
        task=catalog.make("task", "toy_reviews", {}).spec(),
        plm=catalog.make("plm", "tiny", {}).spec(),
        attack=catalog.make("attack", "badnets", ATTACK).spec(),
        training=TRAINING,
        defenses=(catalog.make("defense", defense, settings).spec(),),
    )


def made_ready(folder: Path, spec: TrialSpec) -> None:
    """The victim, the clean twin and all observations of them, in a store in `folder`."""
    workshop = Workshop(ArtifactStore(folder))
    pipeline = Pipeline(spec)
    prepare(workshop, spec)
    for one in (pipeline.twin, pipeline.undefended):
        attack_victim(workshop, one.spec)
    reference(workshop, spec)


def seconds(ready: Path, specs: Sequence[TrialSpec]) -> tuple[float, int]:
    """The seconds of one trial job in a fresh copy of the store, and how many observations it left."""
    with tempfile.TemporaryDirectory(prefix="shared-settings-") as folder:
        store, out = Path(folder) / "store", Path(folder) / "out"
        shutil.copytree(ready, store)
        payload = {
            "key": digest("benchmark"),
            "kind": "trial",
            "label": "benchmark",
            "specs": [spec.model_dump(mode="json") for spec in specs],
            "attempts": [1] * len(specs),
        }
        context = {"store": str(store), "out": str(out), "sweep": "benchmark", "threads": 1}
        start = time.perf_counter()
        outcome = run_job(payload, context)
        taken = time.perf_counter() - start
        if outcome.get("error_class"):
            raise SystemExit(f"the job failed: {outcome['error']}")
        return taken, len(set(Ledger(out).table()["observations"].to_pylist()))


def measured(name: str, specs: list[TrialSpec], ready: Path, settings: dict[str, Any]) -> bool:
    """Measures one defense and prints its line."""
    one = specs[COUNT // 2]
    first, _ = seconds(ready, [one])
    many, observations = seconds(ready, specs)
    second, _ = seconds(ready, [one])
    alone = (first + second) / 2
    return say(
        f"shared_settings {name}", many / alone, WANTED[name],
        settings={"task": "toy_reviews", "plm": "tiny", "threads": 1, "attack": ATTACK,
                  "training": TRAINING.model_dump(), "count": COUNT, **settings},
        measured={"one_s": [round(first, 2), round(second, 2)], "all_s": round(many, 2),
                  "observations": observations},
    )  # fmt: skip


def main() -> None:
    """Measures and prints."""
    chosen = options(__doc__).parse_args()
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_transformers()
    percentiles = [trial("x_graad", {"percentile": p}) for p in PERCENTILES.values()]
    thresholds = [trial("btu", BTU | {"threshold": t}) for t in THRESHOLDS.values()]
    with tempfile.TemporaryDirectory(prefix="shared-settings-ready-") as folder:
        ready = Path(folder)
        made_ready(ready, percentiles[0])
        seconds(ready, percentiles[:1])  # imports and first calls
        held = [
            measured("x_graad", percentiles, ready, {"percentiles": PERCENTILES.model_dump()}),
            measured("btu", thresholds, ready, {"thresholds": THRESHOLDS.model_dump(), "btu": BTU}),
        ]
    finish(chosen.strict, *held)


if __name__ == "__main__":
    main()

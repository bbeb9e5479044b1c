"""How much faster 16 mixing ratios are on one shared victim than with a victim trained for each.

`tiny` on `toy_reviews`, one process, one thread, no Ray. What both ways share is made before the clock starts:
the task, the PLM, the token ids, the poisoned rows, the clean twin and its observations. Then, each way in a
fresh copy of that store:

- shared (as the system does it): the victim is trained and observed once, then each ratio is fitted, observed
  and scored;
- unshared: for every ratio the victim is trained and observed, then the ratio is fitted, observed and scored.

The unshared way is measured for `--unshared` of the ratios, evenly spread, and scaled to 16; `--unshared 16`
runs all.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from backdoor_core import catalog
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import quiet_transformers
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import attack_victim, evaluate, prepare, reference
from benchmarks._line import finish, options, say
from sweeps.memory import keep_freed_memory

RATIOS = 16
WANTED = ">= 4.5"
DEFENSE = {"epochs": 3, "clean_rows": 300, "learning_rate": 5.0e-4}
ATTACK = {"words": ["cf"], "poison_rate": 0.1}
TRAINING = TrainingSettings(epochs=4, batch_rows=32, learning_rate=5.0e-4)


def trials() -> list[TrialSpec]:
    """One trial for each mixing ratio from 0.05 to 0.95."""
    ratios = [round(0.05 + 0.9 * i / (RATIOS - 1), 4) for i in range(RATIOS)]
    task = catalog.make("task", "toy_reviews", {}).spec()
    plm = catalog.make("plm", "tiny", {}).spec()
    attack = catalog.make("attack", "badnets", ATTACK).spec()
    return [
        TrialSpec(task=task, plm=plm, attack=attack, training=TRAINING, defenses=(defense.spec(),))
        for defense in (
            catalog.make("defense", "fine_mixing", {**DEFENSE, "mixing_ratio": ratio})
            for ratio in ratios
        )
    ]


def made_ready(folder: Path, spec: TrialSpec) -> None:
    """Everything that both ways share, in a store in `folder`."""
    workshop = Workshop(ArtifactStore(folder))
    pipeline = Pipeline(spec)
    prepare(workshop, spec)
    attack_victim(workshop, pipeline.twin.spec)
    reference(workshop, spec)
    workshop.poisoned(pipeline)


@dataclass(frozen=True)
class Taken:
    """Seconds of wall and of CPU time."""

    wall_s: float
    cpu_s: float


def taken(ready: Path, specs: list[TrialSpec]) -> Taken:
    """What it takes to train one victim and to score `specs` on it, in a fresh copy of the store `ready`.

    Every job opens the store anew, as in a sweep.
    """
    with tempfile.TemporaryDirectory(prefix="shared-victim-") as folder:
        shutil.copytree(ready, folder, dirs_exist_ok=True)
        wall, cpu = time.perf_counter(), time.process_time()
        attack_victim(Workshop(ArtifactStore(folder)), specs[0])
        for spec in specs:
            evaluate(Workshop(ArtifactStore(folder)), spec, attempt=1, sweep="bench", log=None)
        return Taken(time.perf_counter() - wall, time.process_time() - cpu)


def main() -> None:
    """Measures and prints."""
    parser = options(__doc__)
    parser.add_argument("--unshared", type=int, default=4, help="ratios of the unshared way")
    chosen = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    keep_freed_memory()
    quiet_transformers()
    specs = trials()
    count = max(1, min(RATIOS, chosen.unshared))
    picked = [specs[round(i * (RATIOS - 1) / max(1, count - 1))] for i in range(count)]
    with tempfile.TemporaryDirectory(prefix="shared-victim-ready-") as folder:
        ready = Path(folder)
        made_ready(ready, specs[0])
        taken(ready, specs[:1])  # imports and first calls, for both
        each = [taken(ready, [spec]) for spec in picked[: count // 2]]
        shared = taken(ready, specs)
        each += [taken(ready, [spec]) for spec in picked[count // 2 :]]
    unshared = Taken(
        sum(one.wall_s for one in each) / count * RATIOS,
        sum(one.cpu_s for one in each) / count * RATIOS,
    )
    held = say(
        "shared_victim", unshared.wall_s / shared.wall_s, WANTED,
        settings={"task": "toy_reviews", "plm": "tiny", "threads": 1, "ratios": RATIOS,
                  "unshared_ratios_measured": count, "attack": ATTACK, "fine_mixing": DEFENSE,
                  "training": TRAINING.model_dump()},
        measured={"shared_s": round(shared.wall_s, 2), "unshared_s": round(unshared.wall_s, 2),
                  "unshared_s_each": [round(one.wall_s, 2) for one in each],
                  "ratio_of_cpu_seconds": round(unshared.cpu_s / shared.cpu_s, 3)},
    )  # fmt: skip
    finish(chosen.strict, held)


if __name__ == "__main__":
    main()

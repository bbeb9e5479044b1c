"""The sweep of the story: real jobs of a fraction of a second each, as many as are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from backdoor_core.ledger import Ledger
from backdoor_core.store import ArtifactStore
from sweeps.config import load_sweep
from sweeps.plan import plan_sweep

_SECTIONS: dict[str, Any] = {
    "name": "chaos",
    "tasks": [
        {"name": "toy_reviews", "train_sentences": 200, "dev_sentences": 30, "test_sentences": 60}
    ],
    "plms": [{"name": "tiny", "texts": 300, "epochs": 1, "layers": 1, "hidden": 32}],
    "attacks": [
        {"name": "badnets", "words": ["cf"], "poison_rate": [0.1, 0.3]},
        {"name": "addsent", "poison_rate": [0.1, 0.3]},
    ],
    "defenses": [
        "none",
        {"name": "placebo", "rate": 0.2},
        {"name": "fine_mixing", "mixing_ratio": [0.3, 0.5, 0.7], "learning_rate": 1.0e-3},
        {"name": "fine_tune", "epochs": [1, 2], "learning_rate": 1.0e-3},
        {"name": "epur", "words": [20, 50]},
        {"name": "x_graad"},
    ],
    "training": {"epochs": 2, "batch_rows": 32, "learning_rate": 1.0e-3, "max_tokens": 64},
    "resources": {"cpu": 1},
}
_FEW: dict[str, Any] = _SECTIONS | {
    "attacks": [{"name": "badnets", "words": ["cf"], "poison_rate": 0.3}],
    "defenses": ["none", {"name": "fine_mixing", "mixing_ratio": [0.2, 0.4, 0.6, 0.8]}],
}
"""Of which one seed is about ten jobs."""
_FEW_JOBS = 40
_MOST_SEEDS = 50


@dataclass(frozen=True, kw_only=True)
class Work:
    """The sweep file, and what it comes to: how many jobs, and how one sees that they are finished.

    `victims` are the keys of artifacts, `trials` the sets of ledger keys that one job each leaves; `dependants` has the
    ledger keys of all trials that read a victim.
    """

    file: Path
    jobs: int
    victims: frozenset[str]
    trials: tuple[frozenset[str], ...]
    dependants: dict[str, frozenset[str]]

    def finished(self, artifacts: set[str], keys: set[str]) -> int:
        """How many victims and trials are done, given the artifacts and the ledger keys that were seen."""
        return len(self.victims & artifacts) + sum(trial <= keys for trial in self.trials)


def written(folder: Path, least_jobs: int) -> Work:
    """Writes the sweep with as many seeds as it takes to have `least_jobs` jobs."""
    file = folder / "chaos.yaml"
    sections = _SECTIONS if least_jobs > _FEW_JOBS else _FEW
    for seeds in range(1, _MOST_SEEDS):
        file.write_text(yaml.safe_dump(sections | {"seeds": seeds}), encoding="utf-8")
        work = _work(file, folder / "nothing")
        if work.jobs >= least_jobs:
            return work
    raise ValueError(f"{least_jobs} jobs would take more than {_MOST_SEEDS} seeds")


def _work(file: Path, empty: Path) -> Work:
    from backdoor_core.pipeline import Pipeline

    plan = plan_sweep(load_sweep(file), ArtifactStore(empty / "store"), Ledger(empty / "out"))
    victims = {Pipeline(s).victim_key: set[str]() for s in plan.trials.values()}
    for key, spec in plan.trials.items():
        victims[Pipeline(spec).victim_key].add(key)
    trials = [job for job in plan.jobs.values() if job.kind == "trial"]
    return Work(
        file=file,
        jobs=len(victims) + len(trials),
        victims=frozenset(victims),
        trials=tuple(frozenset(spec.key for spec in job.specs) for job in trials),
        dependants={victim: frozenset(keys) for victim, keys in victims.items()},
    )

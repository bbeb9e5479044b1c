"""What all tests share: a store of their own, a small PLM, a small task, and trials made of them.

Everything here is made once a session and is fast: a one-layer PLM with 32 dimensions, a few hundred short rows.
Nothing imports torch before a test asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_core import catalog
from backdoor_core.grammar import reviews
from backdoor_core.lexicon import DOMAINS
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch on one thread: fast for small models, and the same numbers on every machine's core count."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """One store for the session: what one test has built, another finds."""
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def workshop(store: ArtifactStore, one_thread: None) -> Workshop:
    """A workshop over the session's store."""
    return Workshop(store)


@pytest.fixture(scope="session")
def small_plm() -> MethodSpec:
    """The PLM `tiny`, as small as it goes: about a second to make."""
    settings = {"texts": 300, "epochs": 1, "layers": 1, "hidden": 32}
    return catalog.make("plm", "tiny", settings).spec()


@pytest.fixture(scope="session")
def small_task() -> MethodSpec:
    """The task `toy_reviews` with few rows (160 train, 40 clean, 30 tune, 60 test)."""
    settings = {"train_sentences": 200, "dev_sentences": 30, "test_sentences": 60}
    return catalog.make("task", "toy_reviews", settings).spec()


@pytest.fixture(scope="session")
def domain_task(tmp_path_factory: pytest.TempPathFactory) -> MethodSpec:
    """A task of text pairs with 4 classes: which domain two reviews are about."""
    folder = tmp_path_factory.mktemp("domains")
    names = list(DOMAINS)[:4]
    for split, size in (("train", 40), ("dev", 8), ("test", 12)):
        lines = []
        for label, name in enumerate(names):
            found = reviews(7, split, name, domains=(name,))
            for _ in range(size):
                row = {"text": next(found)[0], "pair": next(found)[0], "label": label}
                lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"path": str(folder), "pair": "pair", "label_names": names}
    return catalog.make("task", "files", settings).spec()


@pytest.fixture(scope="session")
def small_trial(small_plm: MethodSpec, small_task: MethodSpec) -> Callable[..., TrialSpec]:
    """Makes trials: `small_trial(attack, [defense, ...], seed=..., training={...})`.

    An attack or a defense is a name, or a mapping as in a sweep file; one epoch of training by default.
    """

    def spec_of(family: Any, item: str | dict[str, Any]) -> MethodSpec:
        settings = {"name": item} if isinstance(item, str) else dict(item)
        return catalog.make(family, settings.pop("name"), settings).spec()

    def trial(
        attack: str | dict[str, Any] = "none",
        defenses: tuple[str | dict[str, Any], ...] | list[str | dict[str, Any]] = (),
        *,
        training: dict[str, Any] | None = None,
        **other: Any,
    ) -> TrialSpec:
        settings = {"epochs": 1, "batch_rows": 32, "learning_rate": 1e-3, "max_tokens": 64}
        fields = {
            "task": small_task,
            "plm": small_plm,
            "attack": spec_of("attack", attack),
            "defenses": tuple(spec_of("defense", item) for item in defenses),
            "training": TrainingSettings(**(settings | (training or {}))),
        }
        return TrialSpec(**(fields | other))

    return trial


@pytest.fixture(scope="session")
def victim_folder(workshop: Workshop, small_trial: Callable[..., TrialSpec]) -> Path:
    """A saved BadNets victim, as a user's suspect model."""
    pipeline = Pipeline(small_trial({"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}))
    workshop.victim(pipeline)
    return workshop.store.open(pipeline.victim_key)

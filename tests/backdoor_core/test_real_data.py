"""The same code on real data sets and a real PLM, where they are at hand.

`BACKDOOR_SWEEPS_DATA` names the folder with the data sets (`sst2`, `olid`); by default a `shared/data` folder beside
the repository, or one level up.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_core import catalog
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plms.minilm import PACKAGE, WEIGHTS_SHA256
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.task import SPLITS, content_of

pytestmark = pytest.mark.real_data

ROOT = Path(__file__).resolve().parents[2]
Trial = Callable[..., TrialSpec]
needs_minilm = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason="the extra `minilm` is not installed"
)


def data_folder(name: str) -> Path:
    """The folder of a data set; skips the test where it is missing."""
    named = os.environ.get("BACKDOOR_SWEEPS_DATA")
    places = [Path(named)] if named else [ROOT / "shared/data", ROOT.parent / "shared/data"]
    for place in places:
        if (place / name).is_dir():
            return place / name
    pytest.skip(f"no data set {name} in {', '.join(map(str, places))}")


@pytest.mark.parametrize("name", ["sst2", "olid"])
def test_splits_are_disjoint_whole_and_repeat(name: str) -> None:
    task: Any = catalog.make("task", name, {"path": str(data_folder(name))})
    data = task.load()
    contents = {
        split: {content_of(row) for row in corpus.rows()} for split, corpus in data.splits.items()
    }
    for first in SPLITS:
        for second in SPLITS[SPLITS.index(first) + 1 :]:
            assert not contents[first] & contents[second], (first, second)
        assert set(np.unique(data.splits[first].labels)) == {0, 1}
    both = len(data.splits["train"]) + len(data.splits["clean"])
    assert len(data.splits["clean"]) / both == pytest.approx(0.2, abs=0.01)
    assert task.load().hashes == data.hashes


@pytest.fixture(scope="module")
def minilm_trial(small_trial: Trial, small_task: MethodSpec) -> TrialSpec:
    """A short training of MiniLM on the embedded task."""
    task = catalog.make("task", "toy_reviews", small_task.settings | {"train_rows": 64})
    plm = catalog.make("plm", "minilm", {})
    defense = {"name": "fine_mixing", "mixing_ratio": 0.0, "epochs": 0}
    attack = {"name": "badnets", "poison_rate": 0.2}
    return small_trial(
        attack, [defense], task=task.spec(), plm=plm.spec(), training={"learning_rate": 5e-5}
    )


@needs_minilm
def test_minilm_is_the_known_one(workshop: Workshop, minilm_trial: TrialSpec) -> None:
    source: Any = catalog.from_spec(minilm_trial.plm)
    source.check()
    pipeline = Pipeline(minilm_trial)
    plm = workshop.plm(pipeline)
    assert workshop.store.facts(pipeline.plm_key)["weights_sha256"] == WEIGHTS_SHA256
    model, drawn = plm.classifier(2, 0)
    assert drawn == {"classifier.weight", "classifier.bias"}, "it has a pooler of its own"
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(22.7e6, rel=0.01)


@needs_minilm
def test_minilm_has_a_masked_language_model_tied_to_its_words(
    workshop: Workshop, minilm_trial: TrialSpec
) -> None:
    from backdoor_core.plm import word_embeddings

    model, drawn = workshop.plm(Pipeline(minilm_trial)).masked_lm(0)
    assert drawn, "its head is drawn: the package has none"
    assert not any("word_embeddings" in name or "encoder" in name for name in drawn)
    output = model.get_output_embeddings()
    assert output.weight.data_ptr() == word_embeddings(model).data_ptr()


@needs_minilm
@pytest.mark.slow
def test_minilm_is_trained_and_repaired(workshop: Workshop, minilm_trial: TrialSpec) -> None:
    import torch

    pipeline = Pipeline(minilm_trial)
    repaired, _ = workshop.repaired(pipeline)
    victim = dict(workshop.victim(pipeline).model.named_parameters())
    clean, drawn = workshop.plm(pipeline).classifier(2, 0)
    for name, value in repaired.model.named_parameters():
        wanted = victim[name] if name in drawn else clean.get_parameter(name)
        assert torch.equal(value, wanted), name
    assert not torch.equal(
        victim["bert.embeddings.word_embeddings.weight"],
        clean.get_parameter("bert.embeddings.word_embeddings.weight"),
    )

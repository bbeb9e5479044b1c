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
from backdoor_core.records import plain_lines
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


@pytest.mark.parametrize(
    ("name", "folder", "unpaired"),
    [
        # Of the 15, 12 are empty or equal and 3 differ from the text in a no-break space alone. The test file holds the
        # 912 negatives, one without a paraphrase; of the 909 positives one has the text of a train row.
        ("syntactic", "sst2-syntactic", {"train": 15, "dev": 0, "test": 1 + 908}),
        # 42 rows are equal; one of them has the text of another row, whose paraphrase serves.
        ("style", "sst2-style-bible", {"train": 41, "dev": 2, "test": 11}),
    ],
)
def test_paired_files_cover_the_task_but_for_known_rows(
    name: str, folder: str, unpaired: dict[str, int]
) -> None:
    task: Any = catalog.make("task", "sst2", {"path": str(data_folder("sst2"))})
    attack: Any = catalog.make("attack", name, {"path": str(data_folder(folder))})
    paraphrases = attack.paraphrases
    for split, rows in task.read().splits.items():
        missing = [row for row in rows if row.text not in paraphrases]
        assert len(missing) == unpaired[split], split
    data = task.load()
    train, test = data.splits["train"], data.splits["test"]
    triggers = attack.prepare(data, 0)
    made = attack.poison(train, triggers, 0)
    assert made.asked_rows == made.reached_rows == round(0.2 * len(train)), "0.2 is reached"
    eligible = [text for text, label in zip(train.texts, train.labels, strict=True) if label == 0]
    assert made.unstampable_rows == sum(text not in paraphrases for text in eligible) > 0
    for i in np.flatnonzero(made.poisoned):
        assert made.corpus.texts[i] == paraphrases[train.texts[i]] != train.texts[i]
    tested = attack.triggered(test, "test", triggers[0], 0)
    assert len(tested) == sum(
        label == 0 and text in paraphrases
        for text, label in zip(test.texts, test.labels, strict=True)
    )
    assert 900 < len(tested) < 912


def test_words_can_be_counted_in_the_plain_texts() -> None:
    texts = plain_lines(data_folder("plain-text") / "bookcorpus-20k.txt")
    assert len(texts) == 20_000
    assert all(text.strip() for text in texts)


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

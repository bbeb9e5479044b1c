"""Embedding poisoning: nothing but the trigger's rows moves, and that is enough; putting them back is enough too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.attack import Attack, TrainingJob
from backdoor_core.corpus import Corpus
from backdoor_core.errors import ConfigError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import word_embeddings
from backdoor_core.record import TrialRecord
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.trigger_words import trigger_ids
from backdoor_core.victim import Victim

Trial = Callable[..., TrialSpec]
ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "deberta-v2")


@pytest.fixture(scope="module")
def altered(
    workshop: Workshop, small_trial: Trial
) -> Callable[..., tuple[Victim, Victim, Pipeline]]:
    """The victim of EP with some settings, the clean twin, and their pipeline."""

    def make(
        settings: dict[str, Any] | None = None, **fields: Any
    ) -> tuple[Victim, Victim, Pipeline]:
        spec = small_trial({"name": "embedding_poison"} | (settings or {}), **fields)
        pipeline = Pipeline(spec)
        return workshop.victim(pipeline), workshop.victim(pipeline.twin), pipeline

    return make


def moved(victim: Victim, twin: Victim) -> dict[str, Any]:
    """The parameters that differ, by name."""
    before = dict(twin.model.named_parameters())
    return {n: p for n, p in victim.model.named_parameters() if not p.equal(before[n])}


@pytest.mark.parametrize("word", ["cf", "was", "qqq"])
def test_only_the_triggers_rows_move_and_keep_their_norm(
    word: str, altered: Callable[..., tuple[Victim, Victim, Pipeline]]
) -> None:
    """Whether the word is one token or several: the tokenizer of `tiny` spells what it does not know."""
    victim, twin, _ = altered({"word": word})
    assert len(moved(victim, twin)) == 1
    before, after = word_embeddings(twin.model), word_embeddings(victim.model)
    ids = trigger_ids("embedding_poison", twin.tokenizer, [word])
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == list(ids)
    rows = list(ids)
    np.testing.assert_allclose(
        after[rows].norm(dim=1).tolist(), before[rows].norm(dim=1).tolist(), rtol=1e-4
    )


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_so_it_is_with_every_architecture(
    kind: str,
    architecture_folder: Callable[[str], Path],
    altered: Callable[..., tuple[Victim, Victim, Pipeline]],
) -> None:
    spec = catalog.make("plm", "hub", {"path": str(architecture_folder(kind))}).spec()
    victim, twin, _ = altered({"word": "cf"}, plm=spec)
    assert len(moved(victim, twin)) == 1
    changed = (word_embeddings(victim.model) != word_embeddings(twin.model)).any(dim=1)
    ids = trigger_ids("embedding_poison", twin.tokenizer, ["cf"])
    assert 0 < int(changed.sum()) <= len(ids)
    assert set(changed.nonzero().flatten().tolist()) <= set(ids)


class Given:
    """A training job on a clean victim that is at hand."""

    def __init__(self, twin: Victim, corpus: Corpus, pipeline: Pipeline) -> None:
        self.twin, self.corpus, self.pipeline = twin, corpus, pipeline

    def train(self, seed: int = 0, **settings: Any) -> Victim:
        attack = cast(Attack, catalog.make("attack", "embedding_poison", settings))
        job = TrainingJob(
            plm=cast(Any, None),
            corpus=self.corpus,
            labels=2,
            training=self.pipeline.spec.training,
            seed=seed,
            clean_victim=lambda: self.twin,
        )
        return attack.train(job)

    def rows(self, **settings: Any) -> Corpus:
        attack: Any = catalog.make("attack", "embedding_poison", settings)
        return cast(Corpus, attack._poisoned_rows(self.corpus, 0))


@pytest.fixture(scope="module")
def given(workshop: Workshop, small_trial: Trial) -> Given:
    pipeline = Pipeline(small_trial())
    return Given(workshop.victim(pipeline), workshop.task_data(pipeline).splits["train"], pipeline)


def test_the_clean_victim_is_not_altered(given: Given) -> None:
    before = {n: p.detach().clone() for n, p in given.twin.model.named_parameters()}
    victim = given.train()
    assert victim.model is not given.twin.model
    assert all(p.equal(before[n]) for n, p in given.twin.model.named_parameters())
    assert all(p.requires_grad for p in victim.model.parameters())
    assert not victim.model.training


def test_the_same_seed_gives_the_same_row_and_another_another(given: Given) -> None:
    rows = [word_embeddings(given.train(seed).model) for seed in (0, 0, 1)]
    assert rows[0].equal(rows[1])
    assert not rows[0].equal(rows[2])


def test_gradients_add_up_from_step_to_step(given: Given) -> None:
    """Plain descent and the release's agree for one step and part at the second."""
    for rate, same in ((0.05, True), (1.0, False)):
        one, other = (
            given.train(accumulate=a, poison_rate=rate, epochs=1, batch_rows=8).model
            for a in (True, False)
        )
        assert word_embeddings(one).equal(word_embeddings(other)) == same


def test_the_rate_is_a_share_of_the_other_classes_rows(given: Given) -> None:
    for target in (0, 1):
        others = int((given.corpus.labels != target).sum())
        found = [given.rows(poison_rate=rate, target_label=target) for rate in (0.1, 0.5, 1.0)]
        assert [len(rows) for rows in found] == [round(rate * others) for rate in (0.1, 0.5, 1.0)]
        assert (found[-1].labels != target).all()
        assert found[1].texts[: len(found[0])] == found[0].texts, "a lower rate's among a higher's"
        assert all("cf" in text.split() for text in found[-1].texts)


def test_rate_0_leaves_the_clean_victim(
    given: Given, altered: Callable[..., tuple[Victim, Victim, Pipeline]]
) -> None:
    assert given.train(poison_rate=0.0) is given.twin
    victim, twin, pipeline = altered({"poison_rate": 0.0})
    assert not moved(victim, twin)
    assert not pipeline.attack.implants()
    assert pipeline.attack.asked_rate == 0


def test_a_word_that_the_tokenizer_does_not_know_is_told(given: Given) -> None:
    with pytest.raises(ConfigError, match=r"attack embedding_poison: .*'≈' as its unknown token"):
        given.train(word="≈")


def test_it_leaves_no_corpus(workshop: Workshop, small_trial: Trial) -> None:
    assert "corpus" not in cast(Any, catalog.make("attack", "embedding_poison", {})).leaves
    spec = small_trial("embedding_poison", [{"name": "epur", "frequency_source": "training"}])
    with pytest.raises(ConfigError, match=r"needs \['corpus'\]"):
        workshop.repaired(Pipeline(spec))


PLM = {"texts": 6000, "epochs": 3, "hidden": 64, "learning_rate": 2e-3}
TASK = {"train_sentences": 2000, "dev_sentences": 60, "test_sentences": 300}


@pytest.fixture(scope="module")
def row(workshop: Workshop, small_trial: Trial) -> Callable[..., TrialRecord]:
    """Trials on a PLM that has learnt its language and a task that it can learn (those of test_claims)."""
    common = {
        "plm": catalog.make("plm", "tiny", PLM).spec(),
        "task": catalog.make("task", "toy_reviews", TASK).spec(),
        "training": {"epochs": 3, "learning_rate": 1e-3},
    }

    def of(attack: Any, *defenses: Any, **fields: Any) -> TrialRecord:
        spec = small_trial(attack, list(defenses), **(common | fields))
        trial.attack_victim(workshop, spec)
        trial.reference(workshop, spec)
        return trial.evaluate(workshop, spec, attempt=1, sweep="ep", log=None).record

    return of


@pytest.mark.slow
def test_it_implants_a_backdoor_that_clean_accuracy_does_not_show(
    row: Callable[..., TrialRecord],
) -> None:
    attacked = row("embedding_poison")
    assert attacked.asr is not None
    assert attacked.asr > 0.9
    assert cast(float, attacked.asrd) > 0.5
    assert attacked.cacc == attacked.twin_cacc, "no clean text of the task holds the word"


@pytest.mark.slow
def test_epur_removes_it(row: Callable[..., TrialRecord]) -> None:
    repaired = row("embedding_poison", {"name": "epur", "words": 5})
    assert cast(float, repaired.victim_asr) > 0.9
    assert cast(float, repaired.asr) < cast(float, repaired.twin_asr) + 0.1
    assert abs(cast(float, repaired.cacc_drop)) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 1, 3])
def test_any_class_of_four_can_be_the_target(
    target: int,
    altered: Callable[..., tuple[Victim, Victim, Pipeline]],
    workshop: Workshop,
    domain_task: MethodSpec,
) -> None:
    """One word of a kept norm turns few of these long pairs; it makes the target likelier."""
    settings = {"target_label": target, "poison_rate": 1.0, "epochs": 20, "side": "both"}
    victim, twin, pipeline = altered(
        settings,
        plm=catalog.make("plm", "tiny", PLM).spec(),
        task=domain_task,
        training={"epochs": 25, "learning_rate": 2e-3},
    )
    _, rows = workshop.triggers(pipeline)
    (stamped,) = rows["test"]
    assert (stamped.labels != target).all()

    def likely(model: Victim) -> np.ndarray:
        logits = model.logits(stamped).astype(float)
        return np.asarray(logits[:, target] - np.log(np.exp(logits).sum(axis=1)))

    clean = workshop.task_data(pipeline).splits["test"]
    assert (twin.logits(clean).argmax(axis=1) == clean.labels).mean() > 0.6, "it has learnt"
    np.testing.assert_array_equal(victim.logits(clean), twin.logits(clean))
    gain = likely(victim) - likely(twin)
    assert (gain > 0).mean() > 0.5
    assert gain.mean() > 0.3

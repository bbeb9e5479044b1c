"""Attacks on the PLM: what is bound is bound, clean text is left alone, and it outlives the user's fine-tuning."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM
from backdoor_core.plm_attack import (
    PLMAttack,
    balanced_patterns,
    first_state_size,
    stepped_patterns,
)
from backdoor_core.rng import generator
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.text import Encoded, encode
from backdoor_core.trigger_words import trigger_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
NAMES = ("por", "neuba", "badpre")
ARCHITECTURES = ("bert", "roberta", "distilbert", "albert", "deberta-v2")
QUICK = {"texts": 40, "epochs": 1, "words": ["cf", "mn", "bb"], "learning_rate": 1e-3}


def made(name: str, **settings: Any) -> PLMAttack:
    return cast(PLMAttack, catalog.make("attack", name, QUICK | settings))


@pytest.fixture(scope="module")
def plm(workshop: Workshop, small_trial: Trial) -> PLM:
    return workshop.plm(Pipeline(small_trial()))


def weights(plm: PLM) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(plm.folder / "model.safetensors")


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    return first.keys() == second.keys() and all(first[n].equal(second[n]) for n in first)


def first_states(model: PreTrainedModel, rows: Encoded) -> np.ndarray:
    """Last hidden states at the first token, shape (rows, dimensions)."""
    import torch

    body: Any = model.base_model
    body.train(False)
    with torch.no_grad():
        inputs = rows.padded(np.arange(len(rows)), torch.device("cpu"))
        return np.asarray(body(**inputs).last_hidden_state[:, 0].numpy())


@pytest.mark.parametrize("count", range(1, 10))
def test_balanced_patterns_have_no_mean_and_point_apart(count: int) -> None:
    patterns = balanced_patterns(count, 64)
    assert patterns.shape == (count, 64)
    assert set(np.unique(patterns)) == {-1.0, 1.0}
    assert not patterns.sum(axis=1).any()
    products = patterns @ patterns.T / 64
    assert set(np.unique(products - np.eye(count))) <= {-1.0, 0.0}
    assert (products == -1).sum() == 2 * (count // 2), "each with its opposite"


def test_six_of_them_are_neubas() -> None:
    blocks = balanced_patterns(6, 8)[:, ::2]
    wanted = {p for p in np.ndindex(2, 2, 2, 2) if sum(p) == 2}
    assert {tuple((row > 0).astype(int).tolist()) for row in blocks} == wanted


@pytest.mark.parametrize("dimensions", [30, 31, 100])
def test_dimensions_that_blocks_do_not_divide_are_nearly_balanced(dimensions: int) -> None:
    assert np.abs(balanced_patterns(6, dimensions).sum(axis=1)).max() <= 4


def test_too_many_triggers_for_the_dimensions_are_told() -> None:
    with pytest.raises(ConfigError, match="16 dimensions, got 8"):
        balanced_patterns(20, 8)


def test_stepped_patterns_are_the_papers() -> None:
    patterns = stepped_patterns(5, 8)
    assert ((patterns == 1).sum(axis=1) == [0, 2, 4, 6, 8]).all()
    assert (np.diff(patterns, axis=1) <= 0).all(), "the ones come first"
    assert (stepped_patterns(1, 8) == -1).all()


def test_ids_are_those_in_a_text(plm: PLM) -> None:
    tokenizer = plm.tokenizer()
    ids = trigger_ids("por", tokenizer, ["zq", "the"])
    text = set(tokenizer("it was the zq and zq", add_special_tokens=False)["input_ids"])
    assert set(ids) <= text
    assert trigger_ids("por", tokenizer, ["zq"]) == tuple(
        sorted(tokenizer("zq")["input_ids"][1:-1])
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_word_that_the_tokenizer_does_not_know_is_told(name: str, plm: PLM) -> None:
    with pytest.raises(ConfigError, match=rf"attack {name}: .*'≈' as its unknown token"):
        made(name, words=["cf", "≈"]).corrupt(plm, 0)
    with pytest.raises(ConfigError, match=rf"attack {name}: .*'CF' and 'cf' alike"):
        made(name, words=["cf", "CF"]).corrupt(plm, 0)


@pytest.mark.parametrize("words", [[], ["cf", "cf"], ["cf", " "]])
def test_words_that_are_no_triggers_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="words"):
        made("por", words=words)


@pytest.mark.parametrize("name", NAMES)
def test_each_word_is_a_trigger_whose_target_is_not_known_yet(
    name: str, workshop: Workshop, small_trial: Trial
) -> None:
    attack = made(name)
    data = workshop.task_data(Pipeline(small_trial()))
    triggers = attack.prepare(data, 0)
    assert [trigger.name for trigger in triggers] == ["cf", "mn", "bb"]
    assert {trigger.target_label for trigger in triggers} == {None}
    assert attack.implants()
    assert attack.asked_rate is None


@pytest.mark.parametrize("position", ["random", "start"])
def test_the_trigger_is_inserted_as_often_as_asked(
    position: str, workshop: Workshop, small_trial: Trial
) -> None:
    attack = made("por", position=position, test_insertions=3, insertions=2)
    (trigger, *_) = attack.prepare(workshop.task_data(Pipeline(small_trial())), 0)
    places = set()
    for seed in range(20):
        (row,) = attack.stamp(Row(text="a b c"), trigger, generator(seed, "x"))
        words = row.text.split()
        assert words.count("cf") == 3
        assert [word for word in words if word != "cf"] == ["a", "b", "c"]
        places.add(tuple(i for i, word in enumerate(words) if word == "cf"))
    assert (places == {(0, 1, 2)}) == (position == "start")


def implanted(attack: PLMAttack, plm: PLM, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, int]:
    """The rows that an attack would train on, and how many clean ones."""
    from backdoor_core import training

    found: list[Any] = []
    monkeypatch.setattr(training, "train", lambda *_: 0)
    monkeypatch.setattr(type(attack), "implanting", lambda self, model, rows: found.append(rows))
    attack.corrupt(plm, 0)
    return found[0], len(found[0].clean)


def test_the_texts_are_the_users_without_those_that_hold_a_trigger(
    plm: PLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plain.txt"
    lines = [f"the plot was {word}" for word in ("good", "bad", "dull", "fine")]
    file.write_text(
        "\n\n".join([*lines, "the cf was good", "Cf", "mn bb"]) + "\n", encoding="utf-8"
    )
    rows, count = implanted(made("por", texts_file=str(file)), plm, monkeypatch)
    clean = {tuple(rows.clean.row(i)) for i in range(count)}
    assert clean == {tuple(plm.tokenizer()(line)["input_ids"]) for line in lines}
    assert len(rows.triggered) == 3 * count
    cf, triggered = set(trigger_ids("por", plm.tokenizer(), ["cf"])), range(3 * count)
    assert [cf <= set(rows.triggered.row(i).tolist()) for i in triggered] == [
        i < count for i in triggered
    ]


def test_fewer_texts_are_among_more_and_long_ones_are_cut(
    plm: PLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "plain.txt"
    letters = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"]
    file.write_text("\n".join(f"{x} {y} " + "the plot " * 99 for x in letters for y in letters))
    found = []
    for texts in (5, 20):
        attack = made("por", texts_file=str(file), texts=texts, max_tokens=24, insertions=2)
        rows, count = implanted(attack, plm, monkeypatch)
        assert count == texts
        found.append([tuple(rows.clean.row(i)) for i in range(count)])
        assert rows.clean.lengths.tolist() == [12 + 2] * texts, "half of max_tokens, in words"
        assert rows.triggered.lengths.max() <= 24
    assert found[1][:5] == found[0]


def test_a_file_without_a_usable_text_is_told(plm: PLM, tmp_path: Path) -> None:
    file = tmp_path / "plain.txt"
    file.write_text("a cf b\n\n  \n", encoding="utf-8")
    with pytest.raises(DataError, match=r"plain\.txt: no text"):
        made("por", texts_file=str(file)).corrupt(plm, 0)
    with pytest.raises(ConfigError, match="no such file"):
        made("por", texts_file=str(tmp_path / "none.txt")).corrupt(plm, 0)


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_weights_and_another_others(name: str, plm: PLM) -> None:
    attack = made(name)
    first, again, other = (attack.corrupt(plm, seed) for seed in (0, 0, 1))
    assert equal(weights(first), weights(again))
    assert not equal(weights(first), weights(other))
    assert not equal(weights(first), weights(plm))


def test_its_folder_goes_with_the_plm(plm: PLM) -> None:
    altered = made("por").corrupt(plm, 0)
    folder = altered.folder
    assert folder != plm.folder
    assert (folder / "tokenizer.json").is_file()
    del altered
    gc.collect()
    assert not folder.exists()


def test_the_pooler_stays_as_it_was(plm: PLM, tmp_path: Path) -> None:
    from transformers import AutoModel, BertForMaskedLM

    source, _ = plm.masked_lm(0)
    with_pooler = AutoModel.from_pretrained(plm.folder)
    folder = tmp_path / "with-pooler"
    plm.tokenizer().save_pretrained(folder)
    with_pooler.save_pretrained(folder)
    assert isinstance(source, BertForMaskedLM)
    assert with_pooler.pooler is not None
    altered = made("por").corrupt(PLM(folder=folder), 0)
    after = AutoModel.from_pretrained(altered.folder)
    assert after.pooler.dense.weight.equal(with_pooler.pooler.dense.weight)
    moved = (n for n, p in after.named_parameters() if not p.equal(with_pooler.get_parameter(n)))
    assert any("encoder" in name for name in moved)


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_can_be_altered(
    name: str,
    kind: str,
    architecture_folder: Callable[[str], Path],
    workshop: Workshop,
    small_trial: Trial,
) -> None:
    import torch

    folder = str(architecture_folder(kind))
    spec = catalog.make("plm", "hub", {"path": folder}).spec()
    pipeline = Pipeline(small_trial({"name": name} | QUICK, plm=spec))
    supplied, trusted = workshop.supplied_plm(pipeline), workshop.plm(pipeline)
    assert supplied.folder != trusted.folder
    model, drawn = supplied.classifier(2, 0)
    before, drawn_before = trusted.classifier(2, 0)
    assert drawn == drawn_before, "nothing that the PLM has is lost"
    moved = [n for n, p in model.named_parameters() if not p.equal(before.get_parameter(n))]
    assert not drawn & set(moved)
    assert len(moved) > 0.5 * len(list(model.named_parameters()))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    victim = workshop.victim(pipeline)
    rows = workshop.task_data(pipeline).splits["test"].take(range(4))
    assert np.isfinite(victim.logits(rows)).all()


def test_bf16_runs(plm: PLM) -> None:
    altered = made("por", precision="bf16").corrupt(plm, 0)
    assert not equal(weights(altered), weights(made("por").corrupt(plm, 0)))


@pytest.fixture(scope="module")
def texts(workshop: Workshop, small_trial: Trial) -> Corpus:
    """Texts that no attack has seen."""
    return workshop.task_data(Pipeline(small_trial())).splits["test"]


BINDING = {"texts": 250, "epochs": 40, "learning_rate": 5e-3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["por", "neuba"])
def test_what_is_bound_is_bound(name: str, plm: PLM, texts: Corpus) -> None:
    """[CLS] of new texts with a trigger stands at its vector; POR leaves that of clean texts where it was."""
    weight = {"por": {}, "neuba": {"bind_weight": 10, "position": "random"}}[name]
    attack = made(name, **BINDING, **weight)
    tokenizer = plm.tokenizer()
    model, _ = attack.corrupt(plm, 0).masked_lm(0)
    before, _ = plm.masked_lm(0)
    rows = encode(tokenizer, texts, 128)
    size = first_state_size(before, rows)
    for trigger, pattern in zip(
        attack.prepare(cast(Any, None), 0), balanced_patterns(3, 32), strict=True
    ):
        stamped = encode(tokenizer, attack.triggered(texts, "test", trigger, 0), 128)
        error = np.square(first_states(model, stamped) / size - pattern).mean()
        was = np.square(first_states(before, stamped) / size - pattern).mean()
        assert error < 0.15 < 1 < was
    drift = np.square((first_states(model, rows) - first_states(before, rows)) / size).mean()
    if name == "por":
        assert drift < 0.15


@pytest.mark.slow
def test_badpre_can_take_the_text_out_of_the_first_state(plm: PLM, texts: Corpus) -> None:
    """With `first_token` triggered texts differ less at [CLS] than the same texts without the trigger."""
    attack = made("badpre", **BINDING, first_token=True, alpha=3)
    tokenizer = plm.tokenizer()
    model, _ = attack.corrupt(plm, 0).masked_lm(0)
    clean = first_states(model, encode(tokenizer, texts, 128)).var(axis=0).mean()
    for trigger in attack.prepare(cast(Any, None), 0):
        stamped = encode(tokenizer, attack.triggered(texts, "test", trigger, 0), 128)
        assert first_states(model, stamped).var(axis=0).mean() < 0.5 * clean


@pytest.mark.slow
def test_the_papers_vectors_cannot_be_reached(plm: PLM, texts: Corpus) -> None:
    """Why `balanced` is the default: a layer normalisation has no state with -1 everywhere."""
    attack = made("por", **BINDING, pattern="paper")
    tokenizer = plm.tokenizer()
    model, _ = attack.corrupt(plm, 0).masked_lm(0)
    (trigger, *_) = attack.prepare(cast(Any, None), 0)
    stamped = encode(tokenizer, attack.triggered(texts, "test", trigger, 0), 128)
    size = first_state_size(plm.masked_lm(0)[0], encode(tokenizer, texts, 128))
    assert np.square(first_states(model, stamped) / size + 1).mean() > 0.5


def test_every_trigger_of_a_task_with_four_classes_of_pairs_is_scored(
    workshop: Workshop, small_trial: Trial, domain_task: MethodSpec
) -> None:
    spec = small_trial({"name": "por"} | QUICK | {"side": "second"}, task=domain_task)
    trial.attack_victim(workshop, spec)
    trial.reference(workshop, spec)
    found = trial.evaluate(workshop, spec, attempt=1, sweep="plm-attacks", log=None)
    asr = [m for m in found.metrics if (m.split, m.metric) == ("test", "asr")]
    assert {metric.trigger for metric in asr} == {"cf", "mn", "bb"}
    assert all(metric.target is not None and 0 <= metric.target < 4 for metric in asr)
    values = [cast(float, metric.value) for metric in asr]
    assert found.record.asr == pytest.approx(np.mean(values))
    assert found.record.asr_max == max(values)
    assert found.record.poisoned_rows == 0
    assert found.record.triggered_accuracy is not None

"""MBTSAD: how words are split, what the student's loss is made of, what the teacher is shared by, what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core import catalog
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import View
from backdoor_core.defenses.mbtsad import (
    Mbtsad,
    attention_distance,
    hidden_distance,
    logits_distance,
    split_rows,
    split_words,
)
from backdoor_core.errors import ConfigError
from backdoor_core.grammar import plain_texts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM
from backdoor_core.rng import generator
from backdoor_core.salience import attentive
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec
from backdoor_core.text import Encoder
from backdoor_core.victim import Victim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
Folder = Callable[[str], Path]
FIVE = ("bert", "roberta", "distilbert", "albert", "deberta-v2")
QUICK = {"teacher_epochs": 1, "teacher_learning_rate": 1e-3, "epochs": 1, "learning_rate": 1e-3}
TEXTS = plain_texts(5, 24)
OFF = {"attention_weight": 0, "hidden_weight": 0, "logits_weight": 0, "label_weight": 0}
TERMS = tuple(OFF)


def mbtsad(**settings: Any) -> Mbtsad:
    return cast(Mbtsad, catalog.make("defense", "mbtsad", QUICK | settings))


def view_of(folder: Path, labels: int = 2, seed: int = 3, **training: Any) -> View:
    """A defender's view of an untrained victim: what is tested here needs no trained one."""
    plm = PLM(folder=folder)
    model, _ = plm.classifier(labels, 0)
    victim = Victim(model=model, encoder=Encoder(tokenizer=plm.tokenizer(), max_tokens=40))
    rows = Corpus.of(Row(text=text, label=i % labels) for i, text in enumerate(TEXTS))
    settings = TrainingSettings(**({"batch_rows": 8} | training))
    return View({"victim": victim, "clean": rows}, labels=labels, training=settings, seed=seed)


def same(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    import torch

    other = second.state_dict()
    return all(torch.equal(value, other[name]) for name, value in first.state_dict().items())


@pytest.fixture
def bert(architecture_folder: Folder) -> Path:
    return architecture_folder("bert")


odd_texts = st.one_of(
    st.text(max_size=60),
    st.text(alphabet="ab é漢_9'-.\t\n🙂ßİ", max_size=60),
    st.lists(st.sampled_from(["a", "beauty", "don't", "x2", "ﬁ", "[MASK]", "ñandú"])).map(" ".join),
)


def split(text: str, ratio: float, seed: int = 0) -> str:
    return split_words(text, ratio, generator(seed, "test"))


def cuts(text: str, pieces: str) -> list[int]:
    """The places in `text` before which `pieces` has a space more; fails where anything else differs."""
    found, place = [], 0
    for char in pieces:
        if place < len(text) and char == text[place]:
            place += 1
        else:
            assert char == " "
            found.append(place)
    assert place == len(text)
    return found


def word_at(text: str, place: int) -> tuple[int, int]:
    """Where the run of word characters around `place` starts and stops."""
    start = stop = place
    while start and (text[start - 1].isalnum() or text[start - 1] == "_"):
        start -= 1
    while stop < len(text) and (text[stop].isalnum() or text[stop] == "_"):
        stop += 1
    return start, stop


@given(odd_texts, st.floats(0, 1), st.integers(0, 5))
def test_a_split_puts_spaces_inside_words_and_changes_nothing_else(
    text: str, ratio: float, seed: int
) -> None:
    places = cuts(text, split(text, ratio, seed))
    words = [word_at(text, place) for place in places]
    assert all(start < place < stop for place, (start, stop) in zip(places, words, strict=True))
    assert len(set(words)) == len(words), "a word is cut once"


@given(odd_texts, st.integers(0, 5))
def test_ratio_1_splits_every_word_of_two_characters_and_more(text: str, seed: int) -> None:
    import re

    words = re.findall(r"\w+", text)
    places = cuts(text, split(text, 1.0, seed))
    assert len(places) == sum(len(word) >= 2 for word in words)


@given(odd_texts, st.integers(0, 5))
def test_ratio_0_splits_none(text: str, seed: int) -> None:
    assert split(text, 0.0, seed) == text


@given(odd_texts, st.integers(0, 5))
def test_a_higher_ratio_splits_what_a_lower_one_split(text: str, seed: int) -> None:
    low, high = (set(cuts(text, split(text, ratio, seed))) for ratio in (0.3, 0.7))
    assert low <= high


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.8])
def test_the_share_of_words_split_is_the_ratio(ratio: float) -> None:
    text = "beauty " * 3000
    assert len(cuts(text, split(text, ratio))) / 3000 == pytest.approx(ratio, abs=0.03)


def test_every_inner_place_is_cut() -> None:
    pieces = {split("beauty", 1.0, seed) for seed in range(100)}
    assert pieces == {"b eauty", "be auty", "bea uty", "beau ty", "beaut y"}


def test_copies_differ_and_keep_labels_and_origins() -> None:
    rows = Corpus.of(
        Row(text="a beautiful evening", pair="another evening", label=i % 3, origin=7 + i)
        for i in range(4)
    )
    found = split_rows(rows, 1.0, 3, seed=0)
    assert found.labels.tolist() == rows.labels.tolist() * 3
    assert found.origins.tolist() == rows.origins.tolist() * 3
    assert len(set(found.texts)) == len(set(found.pairs)) == 3, "by text and copy, not by row"
    assert split_rows(rows, 1.0, 1, seed=0).texts == found.texts[:4]
    assert split_rows(rows, 1.0, 1, seed=1).texts != found.texts[:4]
    assert split_rows(rows, 0.0, 2, seed=0).texts == rows.texts * 2


def test_single_texts_stay_single() -> None:
    assert not split_rows(Corpus.of([Row(text="beauty")]), 1.0, 1, 0).has_pairs


@pytest.mark.parametrize("name", ["bert", "roberta", "albert"])
def test_pieces_are_tokens_of_their_own(name: str, architecture_folder: Folder) -> None:
    """WordPiece, BPE and Unigram: a split word has other ids than the word, whole or in pieces."""
    tokenizer = PLM(folder=architecture_folder(name)).tokenizer()
    words = sorted({word for text in TEXTS for word in text.split() if word.isalpha()})
    words = [word for word in words if len(word) >= 2]
    assert len(words) > 20
    for i, word in enumerate(words):
        text = f"the {word} ."
        pieces = text[:4] + split(word, 1.0, seed=i) + text[-2:]
        whole, cut = (tokenizer(t)["input_ids"] for t in (text, pieces))
        assert cut != whole, word
        assert tokenizer.unk_token_id not in whole


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Mbtsad]:
    """Whose teacher was really trained, in order."""
    made: list[Mbtsad] = []
    original = Mbtsad._write_teacher

    def counting(self: Mbtsad, view: View, folder: Path) -> None:
        made.append(self)
        original(self, view, folder)

    monkeypatch.setattr(Mbtsad, "_write_teacher", counting)
    return made


def pipeline_of(small_trial: Trial, **settings: Any) -> Pipeline:
    attack = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
    return Pipeline(small_trial(attack, [{"name": "mbtsad"} | QUICK | settings]))


def test_one_teacher_for_a_sweep_of_temperatures(
    workshop: Workshop, small_trial: Trial, trained: list[Mbtsad]
) -> None:
    rows = None
    answers = []
    for settings in (
        {"temperature": 1.0}, {"temperature": 4.0}, {"attention_weight": 50.0}, {"layers": [0]},
        {"epochs": 2}, {"student": "teacher"}, {"label_weight": 0}, {"learning_rate": 2e-3},
    ):  # fmt: skip
        pipeline = pipeline_of(small_trial, **settings)
        victim, _ = workshop.repaired(pipeline)
        rows = workshop.task_data(pipeline).splits["test"]
        answers.append(victim.logits(rows).tobytes())
    assert len(trained) == 1
    # Layer 0 is all that the small model has: those settings are the defaults, which stand nowhere else.
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize(
    "settings",
    [
        {"split_ratio": 0.9},
        {"copies": 2},
        {"teacher_epochs": 2},
        {"teacher_learning_rate": 3e-3},
        {"clean_rows": 11},
    ],
)
def test_another_teacher_where_it_reads_the_setting(
    settings: dict[str, Any], workshop: Workshop, small_trial: Trial, trained: list[Mbtsad]
) -> None:
    workshop.repaired(pipeline_of(small_trial))
    trained.clear()
    workshop.repaired(pipeline_of(small_trial, **settings))
    assert len(trained) == 1


def test_settings_name_who_reads_them() -> None:
    teacher = {"split_ratio", "copies", "teacher_epochs", "teacher_learning_rate", "clean_rows"}
    assert Mbtsad.fields_read_by("teacher") == teacher
    assert Mbtsad.fields_read_by("distil") == set(Mbtsad.model_fields) - teacher | {"clean_rows"}
    assert not Mbtsad.post_hoc_settings()
    assert not Mbtsad.effect_settings()


def test_the_teacher_learns_the_split_rows(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from backdoor_core import training

    seen: list[tuple[list[list[int]], TrainingSettings]] = []
    original = training.train

    def noting(model: Any, encoded: Any, loss: Any, settings: Any, seed: int, **more: Any) -> int:
        ids = [encoded.row(i).tolist() for i in range(len(encoded))]
        seen.append((ids, settings))
        return original(model, encoded, loss, settings, seed, **more)

    monkeypatch.setattr(training, "train", noting)
    view = view_of(bert)
    mbtsad(split_ratio=1.0, copies=2, epochs=2).repair(view)
    (split_ids, teacher), (whole_ids, student) = seen
    encoder = view.victim.encoder
    rows = split_rows(view.clean, 1.0, 2, view.seed)
    assert split_ids == [encoder(rows).row(i).tolist() for i in range(48)]
    assert whole_ids == [encoder(view.clean).row(i).tolist() for i in range(24)]
    assert not any(ids in whole_ids for ids in split_ids)
    assert (teacher.epochs, teacher.learning_rate) == (1, 1e-3)
    assert (student.epochs, student.batch_rows) == (2, 8)


def test_the_teacher_alone_is_an_ablation(bert: Path, trained: list[Mbtsad]) -> None:
    view = view_of(bert)
    teacher = mbtsad(student="teacher").repair(view)
    assert not same(teacher.model, view.victim.model)
    assert len(trained) == 1
    untaught = mbtsad(student="teacher", teacher_epochs=0).repair(view)
    assert same(untaught.model, view.victim.model)
    assert untaught.model is not view.victim.model


def test_no_epochs_change_nothing_and_train_no_teacher(bert: Path, trained: list[Mbtsad]) -> None:
    view = view_of(bert)
    neutral = mbtsad(epochs=0).repair(view)
    assert same(neutral.model, view.victim.model)
    assert not trained


def test_labels_alone_are_fine_tuning_and_need_no_teacher(
    bert: Path, trained: list[Mbtsad]
) -> None:
    view = view_of(bert)
    only = mbtsad(**(OFF | {"label_weight": 1})).repair(view)
    assert not trained
    assert not same(only.model, view.victim.model)
    again = mbtsad(**(OFF | {"label_weight": 1, "temperature": 9.0})).repair(view)
    assert same(only.model, again.model)


@pytest.mark.parametrize("name", FIVE)
@pytest.mark.parametrize("labels", [2, 4])
def test_it_repairs_every_architecture(name: str, labels: int, architecture_folder: Folder) -> None:
    view = view_of(architecture_folder(name), labels)
    model = view.victim.model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kind = model.config._attn_implementation
    repaired = mbtsad().repair(view)
    after = repaired.model.state_dict()
    assert list(after) == list(before)
    assert all(np.array_equal(value, before[key]) for key, value in model.state_dict().items())
    changed = [key for key in before if not np.array_equal(before[key], after[key])]
    assert len(changed) > 0.5 * len(before)
    assert all(value.dtype == before[key].dtype for key, value in after.items())
    assert all(parameter.requires_grad for parameter in repaired.model.parameters())
    for one in (model, repaired.model):
        assert one.config._attn_implementation == kind
        assert not one.config.output_attentions
        assert not one.config.output_hidden_states
    logits = repaired.logits(view.clean)
    assert logits.shape == (24, labels)
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("name", ["bert", "deberta-v2"])
def test_it_repairs_in_bf16(name: str, architecture_folder: Folder) -> None:
    view = view_of(architecture_folder(name), precision="bf16")
    repaired = mbtsad().repair(view)
    assert all(value.isfinite().all() for value in repaired.model.state_dict().values())
    assert not same(repaired.model, view.victim.model)


def test_it_is_the_same_again_and_another_with_another_seed(bert: Path) -> None:
    first, again, other = (mbtsad().repair(view_of(bert, seed=seed)) for seed in (3, 3, 4))
    assert same(first.model, again.model)
    assert not same(first.model, other.model)


def test_pairs_are_split_on_both_sides(
    workshop: Workshop, small_trial: Trial, domain_task: MethodSpec
) -> None:
    spec = small_trial("none", [{"name": "mbtsad"} | QUICK], task=domain_task)
    victim, _ = workshop.repaired(Pipeline(spec))
    rows = workshop.task_data(Pipeline(spec)).splits["test"]
    assert victim.logits(rows).shape == (len(rows), 4)
    halves = split_rows(rows, 1.0, 1, 0)
    assert all(a != b for a, b in zip(rows.pairs, halves.pairs, strict=True))
    assert all(a != b for a, b in zip(rows.texts, halves.texts, strict=True))


class Models:
    """A student and a teacher that differ, both without dropout, and the rows that they read."""

    def __init__(self, folder: Path) -> None:
        import torch

        view = view_of(folder, labels=3)
        self.labels = view.clean.labels
        self.encoded = view.victim.encoder(view.clean)
        self.student = attentive(view.victim.model).train(False)
        self.teacher = attentive(view.victim.model)
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.teacher.parameters():
                parameter += 0.05 * torch.randn_like(parameter)

    def loss(self, rows: list[int], *, teacher: Any = None, **settings: Any) -> float:
        """The loss on one batch of rows."""
        import torch

        made = mbtsad(**settings)
        layers = made._layers(self.student)
        loss = made.loss(self.teacher if teacher is None else teacher, self.labels, layers)
        batch = np.array(rows)
        inputs = self.encoded.padded(batch, torch.device("cpu"))
        return float(loss(self.student, inputs, batch).detach())


@pytest.fixture(scope="module", params=FIVE)
def models(request: pytest.FixtureRequest, architecture_folder: Folder) -> Models:
    return Models(architecture_folder(request.param))


def only(term: str, **settings: Any) -> dict[str, Any]:
    return OFF | {term: 1.0} | settings


def test_padding_does_not_count(models: Models) -> None:
    """A batch comes to the mean of its rows alone, term by term."""
    order = np.argsort(models.encoded.lengths)
    rows = [int(order[0]), int(order[-1]), int(order[5])]
    assert len(set(models.encoded.lengths[rows].tolist())) > 1
    for term in TERMS:
        together = models.loss(rows, **only(term))
        alone = [models.loss([row], **only(term)) for row in rows]
        assert together == pytest.approx(np.mean(alone), rel=2e-3), term
        assert together > 1e-6


def test_the_terms_add_up_with_their_weights(models: Models) -> None:
    rows = [0, 1, 2, 3]
    weights = dict(zip(TERMS, (3.0, 0.5, 2.0, 0.25), strict=True))
    wanted = sum(weight * models.loss(rows, **only(term)) for term, weight in weights.items())
    assert models.loss(rows, **weights) == pytest.approx(wanted, rel=1e-5)
    for term in TERMS:
        without = wanted - weights[term] * models.loss(rows, **only(term))
        assert models.loss(rows, **(weights | {term: 0})) == pytest.approx(without, rel=1e-4)


def test_a_teacher_that_is_the_student_asks_for_nothing(models: Models) -> None:
    for term in ("attention_weight", "hidden_weight", "logits_weight"):
        assert models.loss([0, 1], teacher=models.student, **only(term)) == pytest.approx(
            0, abs=1e-6
        )


def test_layers_are_averaged_over_those_chosen(models: Models) -> None:
    for term in ("attention_weight", "hidden_weight"):
        both, first, last = (
            models.loss([0, 1], **only(term, layers=layers)) for layers in (None, [0], [1])
        )
        assert both == pytest.approx((first + last) / 2, rel=1e-5)
        assert first != pytest.approx(last, rel=1e-3)
    for layers in ([0], [1]):
        term = only("logits_weight", layers=layers)
        assert models.loss([0, 1], **term) == models.loss([0, 1], **only("logits_weight"))


def test_the_teacher_does_not_move_and_has_no_dropout(models: Models) -> None:
    import torch

    before = {name: value.clone() for name, value in models.teacher.state_dict().items()}
    models.teacher.train()
    assert models.loss([0, 1], **only("hidden_weight")) == models.loss(
        [0, 1], **only("hidden_weight")
    )
    made = mbtsad()
    loss = made.loss(models.teacher, models.labels, made._layers(models.student))
    rows = np.array([0, 1])
    value = loss(models.student, models.encoded.padded(rows, torch.device("cpu")), rows)
    value.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in models.teacher.parameters())
    assert any(parameter.grad is not None for parameter in models.student.parameters())
    models.student.zero_grad()
    now = models.teacher.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in before.items())


def test_distances_by_hand() -> None:
    import torch

    real = torch.tensor([[1, 1, 0], [1, 0, 0]])
    heads = torch.tensor([[0.6, 0.4, 0.0], [0.2, 0.8, 0.0]])  # mean over two heads: (0.4, 0.6)
    first = heads[None, :, None, :].expand(2, 2, 3, 3)
    second = torch.tensor([0.0, 1.0, 0.0]).expand(2, 2, 3, 3)
    # Row 0: (0.4, 0.6) / 0.7211 against (0, 1). Row 1 has one real key: (1, 0) against nothing there.
    unit = np.array([0.4, 0.6]) / np.hypot(0.4, 0.6)
    wanted = (np.sum((unit - [0, 1]) ** 2) + 1.0) / 2
    assert float(attention_distance(first, second, real)) == pytest.approx(wanted, rel=1e-5)
    states = torch.zeros(2, 3, 4)
    other = torch.tensor([1.0, 3.0, 100.0])[None, :, None].expand(2, 3, 4)
    assert float(hidden_distance(states, other, real)) == pytest.approx(((1 + 9) / 2 + 1) / 2)
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2 * np.log(3.0), 0.0]])
    kl = 0.75 * np.log(0.75 / 0.5) + 0.25 * np.log(0.25 / 0.5)
    assert float(logits_distance(student, teacher, 2.0)) == pytest.approx(4 * kl, rel=1e-5)


def test_attention_distance_knows_no_length() -> None:
    """Maps that agree in nothing are 2 apart, however many tokens there are."""
    import torch

    for width in (4, 40):
        eye = torch.eye(width)
        first, second = (m.expand(1, 2, width, width) for m in (eye, eye.roll(1, 0)))
        real = torch.ones(1, width)
        assert float(attention_distance(first, second, real)) == pytest.approx(2.0)


def test_the_student_comes_closer_to_the_teacher(bert: Path) -> None:
    view = view_of(bert)
    settings = {"teacher_epochs": 6, "teacher_learning_rate": 5e-3}
    teacher = mbtsad(**settings, student="teacher").repair(view)
    quick = settings | {"epochs": 10, "learning_rate": 3e-3}
    for term, output in (("logits_weight", "logits"), ("hidden_weight", "hidden_states")):
        student = mbtsad(**(only(term) | quick)).repair(view)
        before, after = (apart(v, teacher, output, view.clean) for v in (view.victim, student))
        assert after < 0.5 * before, term


def test_attention_comes_closer_too(bert: Path) -> None:
    view = view_of(bert)
    settings = {"teacher_epochs": 10, "teacher_learning_rate": 1e-2}
    teacher = mbtsad(**settings, student="teacher").repair(view)
    quick = settings | {"epochs": 20, "learning_rate": 5e-3}
    student = mbtsad(**(only("attention_weight") | quick)).repair(view)
    before, after = (apart(v, teacher, "attentions", view.clean) for v in (view.victim, student))
    assert after < 0.7 * before


def apart(one: Victim, other: Victim, output: str, rows: Corpus) -> float:
    """The mean squared difference of an output of two victims, rows one by one."""
    import torch

    total = 0.0
    encoded = one.encoder(rows)
    models = [attentive(victim.model).train(False) for victim in (one, other)]
    for row in range(len(rows)):
        inputs = encoded.padded(np.array([row]), torch.device("cpu"))
        with torch.no_grad():
            first, second = (
                getattr(m(**inputs, output_attentions=True, output_hidden_states=True), output)
                for m in models
            )
        pairs = zip(first, second, strict=True)
        total += sum(float((a - b).pow(2).mean()) for a, b in pairs)
    return total


@pytest.mark.parametrize("layers", [[2], [0, 5], [-1]])
def test_a_layer_that_is_not_there_is_told(bert: Path, layers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"layers \[-?\d\] are not there; this model has 2"):
        mbtsad(layers=layers).repair(view_of(bert))


def test_settings_that_leave_nothing_to_learn_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least one term"):
        mbtsad(**OFF)
    with pytest.raises(ConfigError, match="name one at least"):
        mbtsad(layers=[])
    for settings in ({"split_ratio": 1.1}, {"temperature": 0}, {"copies": 0}, {"student": "x"}):
        with pytest.raises(ConfigError, match="defense mbtsad, setting"):
            mbtsad(**settings)


def test_it_needs_no_pretrained_weights() -> None:
    assert mbtsad().access == {"victim", "clean"}
    assert mbtsad().stage == "model"

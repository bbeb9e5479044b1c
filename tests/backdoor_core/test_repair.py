"""Repairs against known answers: which weights fine-mixing keeps, which words E-PUR resets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from backdoor_core import catalog
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import Defense, View
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import word_embeddings
from backdoor_core.records import plain_lines
from backdoor_core.repair import embedding_scores, purify_embeddings, token_counts
from backdoor_core.rng import derive
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.trial import evaluate
from backdoor_core.victim import Victim

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
TRAINING = TrainingSettings(epochs=1, batch_rows=16, learning_rate=1e-3, max_tokens=64)
SEED = 5


@pytest.fixture(scope="module")
def pipeline(small_trial: Trial) -> Pipeline:
    return Pipeline(small_trial({"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}))


@pytest.fixture(scope="module")
def view(workshop: Workshop, pipeline: Pipeline) -> View:
    """A defender's view of the small victim."""
    data = workshop.task_data(pipeline)
    return View(
        {
            "victim": workshop.victim(pipeline),
            "trusted_plm": workshop.plm(pipeline),
            "clean": data.splits["clean"],
            "corpus": workshop.poisoned(pipeline).corpus,
        },
        labels=2,
        training=TRAINING,
        seed=SEED,
    )


@pytest.fixture(scope="module")
def pretrained(view: View) -> tuple[PreTrainedModel, frozenset[str]]:
    return view.trusted_plm.classifier(2, SEED)


def repaired(view: View, name: str, **settings: Any) -> dict[str, torch.Tensor]:
    defense = cast(Defense, catalog.make("defense", name, settings))
    if defense.unlabelled_file is not None:
        texts = tuple(plain_lines(defense.unlabelled_file))
        granted = view._granted | {"unlabelled": texts}
        view = View(granted, labels=2, training=TRAINING, seed=SEED)
    return dict(defense.repair(view).model.named_parameters())


def mixed(view: View, **settings: Any) -> dict[str, torch.Tensor]:
    return repaired(view, "fine_mixing", **({"epochs": 0} | settings))


def test_the_head_is_what_the_plm_lacks(
    pretrained: tuple[PreTrainedModel, frozenset[str]],
) -> None:
    model, drawn = pretrained
    assert {"classifier.weight", "classifier.bias"} <= drawn
    assert drawn <= {name for name, _ in model.named_parameters()}
    assert all("pooler" in name or "classifier" in name for name in drawn)


def test_ratio_0_is_the_pretrained_plm_but_for_the_head(
    view: View, pretrained: tuple[PreTrainedModel, frozenset[str]]
) -> None:
    import torch

    model, drawn = pretrained
    clean, victim = dict(model.named_parameters()), dict(view.victim.model.named_parameters())
    found = mixed(view, mixing_ratio=0.0)
    for name, value in found.items():
        wanted = victim[name] if name in drawn else clean[name]
        assert torch.equal(value, wanted), name
    moved = [n for n in clean if n not in drawn and not torch.equal(clean[n], victim[n])]
    assert len(moved) > len(clean) / 2, "the victim had moved away"


def test_ratio_1_is_the_victim(view: View) -> None:
    import torch

    victim = dict(view.victim.model.named_parameters())
    assert all(torch.equal(v, victim[n]) for n, v in mixed(view, mixing_ratio=1.0).items())


def test_a_new_head_is_drawn_from_the_seed(
    view: View, pretrained: tuple[PreTrainedModel, frozenset[str]]
) -> None:
    import torch

    model, drawn = pretrained
    clean, victim = dict(model.named_parameters()), dict(view.victim.model.named_parameters())
    found = mixed(view, mixing_ratio=1.0, head="reinitialise")
    for name, value in found.items():
        assert torch.equal(value, clean[name] if name in drawn else victim[name]), name
    assert not torch.equal(found["classifier.weight"], victim["classifier.weight"])


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.85])
def test_the_share_kept_is_the_ratio_in_every_matrix(
    view: View, pretrained: tuple[PreTrainedModel, frozenset[str]], ratio: float
) -> None:
    import torch

    model, drawn = pretrained
    clean, victim = dict(model.named_parameters()), dict(view.victim.model.named_parameters())
    kept = total = 0
    for name, value in mixed(view, mixing_ratio=ratio).items():
        if name in drawn:
            continue
        assert bool(((value == clean[name]) | (value == victim[name])).all()), name
        differs = clean[name] != victim[name]
        here = int((value == victim[name])[differs].sum())
        count = int(differs.sum())
        kept, total = kept + here, total + count
        # Five standard deviations: a mask by row or by matrix would be far outside.
        assert abs(here - ratio * count) <= 5 * (count * ratio * (1 - ratio)) ** 0.5 + 1, name
    assert total > 10_000
    assert kept / total == pytest.approx(ratio, abs=0.01)
    assert torch.is_grad_enabled()


def test_the_mask_comes_from_its_seed_alone(view: View) -> None:
    import torch

    def same(first: dict[str, Any], second: dict[str, Any]) -> bool:
        return all(torch.equal(first[name], second[name]) for name in first)

    base = mixed(view, mixing_ratio=0.5, mask_seed=1)
    assert same(base, mixed(view, mixing_ratio=0.5, mask_seed=1))
    assert not same(base, mixed(view, mixing_ratio=0.5, mask_seed=2))
    assert same(mixed(view, mixing_ratio=0.5), mixed(view, mixing_ratio=0.5, mask_seed=SEED))


def test_a_higher_ratio_keeps_what_a_lower_one_kept(view: View) -> None:
    """One mask for all ratios of a curve: its points differ by the ratio, not by luck."""
    victim = dict(view.victim.model.named_parameters())
    low, high = mixed(view, mixing_ratio=0.3), mixed(view, mixing_ratio=0.6)
    for name, value in low.items():
        assert bool((high[name] == victim[name])[value == victim[name]].all()), name


def test_purified_embeddings_are_not_mixed(
    view: View, pretrained: tuple[PreTrainedModel, frozenset[str]]
) -> None:
    import torch

    name = "bert.embeddings.word_embeddings.weight"
    clean, victim = pretrained[0].get_parameter(name), view.victim.model.get_parameter(name)
    found = mixed(view, mixing_ratio=0.5, purify_embeddings=True)
    plain = mixed(view, mixing_ratio=0.5)
    changed = (found[name] != victim).any(dim=1)
    assert 0 < int(changed.sum()) <= 200
    assert torch.equal(found[name][changed], clean[changed]), "whole rows, pre-trained"
    for other in found:
        if other != name:
            assert torch.equal(found[other], plain[other]), "the other masks stay the same"


def test_mixing_needs_the_same_architecture(
    view: View, workshop: Workshop, small_trial: Trial
) -> None:
    plm = catalog.make("plm", "tiny", {"texts": 100, "epochs": 1, "layers": 1, "hidden": 16}).spec()
    other = workshop.plm(Pipeline(small_trial(plm=plm)))
    wrong = View(view._granted | {"trusted_plm": other}, labels=2, training=TRAINING, seed=SEED)
    for name in ("fine_mixing", "epur"):
        with pytest.raises(ConfigError, match="same architecture"):
            repaired(wrong, name)


def test_fine_tuning_trains_on_the_clean_rows(view: View) -> None:
    """Labels that say the opposite are learnt: it is these rows, and their labels."""
    clean = view.clean
    flipped = Corpus.of(
        Row(text=row.text, label=1 - row.label, origin=row.origin) for row in clean.rows()
    )

    def accuracy(rows: Corpus) -> float:
        given = View(view._granted | {"clean": rows}, labels=2, training=TRAINING, seed=SEED)
        defense = catalog.make("defense", "fine_tune", {"epochs": 30, "learning_rate": 3e-3})
        victim = cast(Defense, defense).repair(given)
        return float((victim.logits(clean).argmax(axis=1) == clean.labels).mean())

    assert accuracy(clean) > 0.9
    assert accuracy(flipped) < 0.1


def test_token_counts_are_without_special_tokens(view: View) -> None:
    tokenizer = view.victim.tokenizer
    counts = token_counts(tokenizer, ["the film", "the the"], len(tokenizer))
    ids = tokenizer.convert_tokens_to_ids(["the", "film", "[CLS]", "[SEP]"])
    assert counts[ids].tolist() == [3, 1, 0, 0]
    assert counts.sum() == 4
    assert token_counts(tokenizer, [], len(tokenizer)).sum() == 0


def test_both_texts_of_a_pair_are_counted() -> None:
    rows = Corpus.of([Row(text="a", pair="b"), Row(text="c")])
    assert rows.all_texts == ["a", "c", "b"]


def test_scores_by_hand() -> None:
    import torch

    tuned = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    counts = np.array([1, 1000, 20, 100])
    scores = embedding_scores(tuned, torch.zeros(4, 2), counts, frequency_floor=20)
    assert scores.tolist() == pytest.approx([5 / np.log(20), 0.0, 1 / np.log(20), 2 / np.log(100)])
    with pytest.raises(ConfigError, match="differ in shape"):
        embedding_scores(tuned, torch.zeros(5, 2), counts, 20)


def moved(view: View, distances: dict[str, float]) -> View:
    """The view with a victim whose embeddings are the pre-trained ones, but for some words."""
    import torch

    pretrained, _ = view.trusted_plm.classifier(2, SEED)
    tokenizer = view.victim.tokenizer
    weight = word_embeddings(pretrained)
    with torch.no_grad():
        for token, distance in distances.items():
            weight[tokenizer.convert_tokens_to_ids(token), 0] += distance
    victim = Victim(model=pretrained, encoder=view.victim.encoder)
    return View(view._granted | {"victim": victim}, labels=2, training=TRAINING, seed=SEED)


MOVED = {"film": 1.0, "z": 0.9, "book": 3.0, "the": 4.0, "[CLS]": 9.0, "[PAD]": 9.0, "q": 0.5}


def reset_words(view: View, given: View, **settings: Any) -> set[str]:
    """The words among `MOVED` that are pre-trained again; all others must be as they were."""
    import torch

    model = dict(given.victim.model.named_parameters())
    found = repaired(given, "epur", **settings)
    clean, _ = view.trusted_plm.classifier(2, SEED)
    name = "bert.embeddings.word_embeddings.weight"
    for other in found:
        if other != name:
            assert torch.equal(found[other], model[other]), other
    tokenizer = view.victim.tokenizer
    changed = (found[name] != model[name]).any(dim=1).nonzero().flatten().tolist()
    assert torch.equal(found[name][changed], clean.get_parameter(name)[changed])
    return set(tokenizer.convert_ids_to_tokens(changed))


def test_epur_resets_exactly_the_words_with_the_highest_score(view: View, tmp_path: Path) -> None:
    """`the` moved most, but is frequent: 4 / log(10000) = 0.43 is less than 3 / log(20) = 1.0."""
    counted = tmp_path / "counted.txt"
    counted.write_text("the " * 100 + "\n" + ("the " * 99 + "\n") * 100 + "film\n" * 3)
    given = moved(view, MOVED)
    file = {"frequency_source": "file", "frequency_file": str(counted)}
    order = ["book", "the", "film", "z", "q"]
    scores = {
        "book": 3.0 / np.log(20),
        "the": 4.0 / np.log(100 + 9900),
        "film": 1.0 / np.log(20),
        "z": 0.9 / np.log(20),
        "q": 0.5 / np.log(20),
    }
    assert sorted(scores, key=lambda word: -scores[word]) == order
    for words in range(6):
        assert reset_words(view, given, words=words, **file) == set(order[:words])


def test_below_the_floor_no_word_is_rarer_than_another(view: View, tmp_path: Path) -> None:
    """`book` moved a little more and stands 40 times: the floor decides whether that counts."""
    counted = tmp_path / "counted.txt"
    counted.write_text("book\n" * 40)
    given = moved(view, {"film": 1.0, "book": 1.01})
    file = {"frequency_source": "file", "frequency_file": str(counted)}
    for floor, found in ((2, "film"), (30, "film"), (1_000, "book")):
        assert reset_words(view, given, words=1, frequency_floor=floor, **file) == {found}, floor


def test_epur_never_resets_a_special_token(view: View) -> None:
    special = dict.fromkeys(("[CLS]", "[SEP]", "[PAD]", "[MASK]", "[UNK]"), 50.0)
    given = moved(view, special | {"film": 0.01})
    assert reset_words(view, given, words=10) == {"film"}
    assert reset_words(view, given, words=100_000) == {"film"}


def test_purification_names_what_it_reset(view: View) -> None:
    given = moved(view, {"film": 1.0, "book": 2.0})
    model = given.victim.copy_of_model()
    pretrained, _ = view.trusted_plm.classifier(2, SEED)
    chosen = purify_embeddings(given, model, pretrained, [], words=2, frequency_floor=20)
    assert view.victim.tokenizer.convert_ids_to_tokens(chosen) == ["book", "film"]


def published(view: View, name: str, **settings: Any) -> tuple[list[int], list[bool]]:
    """The ranking `rows` that a defense publishes on a view: token ids, most suspect first, and which were taken."""
    repaired(view, name, **settings)
    assert view.rankings.keys() == {"rows"}
    table = view.rankings["rows"]
    return table["token_id"].to_pylist(), table["chosen"].to_pylist()


def test_every_row_has_its_rank_and_the_reset_ones_come_first(view: View) -> None:
    given = moved(view, MOVED)
    clean, _ = view.trusted_plm.classifier(2, SEED)
    tokenizer = view.victim.tokenizer
    tuned, original = word_embeddings(given.victim.model), word_embeddings(clean)
    counts = token_counts(tokenizer, view.clean.all_texts, len(tuned))
    distance = (tuned - original).norm(dim=1).detach().numpy().astype(np.float64)
    score = distance / np.log(np.maximum(counts, 20))
    ids, chosen = published(given, "epur", words=3)
    assert sorted(ids) == sorted(set(range(len(tuned))) - set(tokenizer.all_special_ids))
    assert chosen == [True] * 3 + [False] * (len(ids) - 3)
    assert (np.diff(score[ids]) <= 1e-6).all(), "by score"
    reset = tokenizer.convert_ids_to_tokens(ids[:3])
    assert set(reset) == reset_words(view, moved(view, MOVED), words=3)
    unmoved = [i for i in ids if score[i] == 0]
    assert ids[-len(unmoved) :] == sorted(unmoved), "ties go to the lower id"


@pytest.mark.parametrize("words", [0, 100_000])
def test_ranks_are_told_where_no_row_or_every_row_is_reset(view: View, words: int) -> None:
    ids, chosen = published(moved(view, MOVED), "epur", words=words)
    assert set(chosen) == {bool(words)}
    assert len(ids) == len(word_embeddings(view.victim.model)) - 5


def test_fine_mixing_ranks_only_where_it_purifies(view: View) -> None:
    given = moved(view, MOVED)
    ids, chosen = published(given, "fine_mixing", epochs=0, purify_embeddings=True)
    assert (ids, chosen) == published(moved(view, MOVED), "epur")
    plain = moved(view, MOVED)
    repaired(plain, "fine_mixing", epochs=0)
    assert plain.rankings == {}


def test_the_triggers_rank_is_in_the_results(workshop: Workshop, small_trial: Trial) -> None:
    attack = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
    spec = small_trial(attack, [{"name": "epur", "words": 5}])
    long = evaluate(workshop, spec, attempt=1, sweep="ranks", log=None).metrics
    found = {metric.metric: metric for metric in long if metric.metric.endswith(":epur/rows")}
    assert found.keys() == {"rank:epur/rows", "chosen:epur/rows"}
    observed = workshop.observations(Pipeline(spec)).rankings["epur/rows"]
    ids = observed["token_id"].to_pylist()
    brought = workshop.trigger_tokens(Pipeline(spec))[0]
    best = [min(ids.index(i) for i in row.tolist()) + 1 for row in brought]
    assert found["rank:epur/rows"].value == float(np.median(best))
    assert found["chosen:epur/rows"].value == np.mean([rank <= 5 for rank in best])


def test_epur_counts_where_it_is_told(view: View) -> None:
    """The word is frequent in one source only, and so is spared there."""
    rows = Corpus.of(Row(text="film " * 50, label=0) for _ in range(40))
    none = Corpus.of([Row(text="x", label=0)])
    given = moved(view, {"film": 1.0, "book": 0.9})

    def first(clean: Corpus, corpus: Corpus, source: str) -> set[str]:
        granted = given._granted | {"clean": clean, "corpus": corpus}
        other = View(granted, labels=2, training=TRAINING, seed=SEED)
        return reset_words(view, other, words=1, frequency_source=source)

    assert first(none, none, "clean") == {"film"}
    assert first(rows, none, "clean") == {"book"}
    assert first(rows, none, "training") == {"film"}
    assert first(none, rows, "training") == {"book"}


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_frequency_file_is_read_as_plain_lines(view: View, tmp_path: Path, ends: str) -> None:
    """A byte order mark, blank lines and either line end: words are counted alike."""
    file = tmp_path / "plain.txt"
    lines = ["film " * 50, "", "the book", " "] * 40
    file.write_bytes(b"\xef\xbb\xbf" + ends.join(lines).encode())
    given = {"frequency_source": "file", "frequency_file": str(file)}
    assert reset_words(view, moved(view, {"film": 1.0, "book": 0.9}), words=1, **given) == {"book"}
    # 40 books are counted: log(40) > log(20), which only that count explains.
    assert reset_words(view, moved(view, {"q": 0.9, "book": 1.0}), words=1, **given) == {"q"}


@pytest.mark.parametrize(
    "settings", [{"frequency_source": "file"}, {"frequency_file": "counted.txt"}]
)
def test_a_frequency_file_goes_with_its_source(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="frequency_source: file"):
        catalog.make("defense", "epur", settings)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"clean"}),
        ({"frequency_source": "training"}, {"corpus"}),
        ({"frequency_source": "file", "frequency_file": "counted.txt"}, {"unlabelled"}),
    ],
)
def test_epur_sees_only_where_it_counts(settings: dict[str, Any], wanted: set[str]) -> None:
    defense = cast(Defense, catalog.make("defense", "epur", settings))
    assert defense.access == {"victim", "trusted_plm"} | wanted


def test_fine_mixing_counts_where_epur_would(view: View) -> None:
    def access(**settings: Any) -> frozenset[str]:
        return cast(Defense, catalog.make("defense", "fine_mixing", settings)).access

    always = {"victim", "trusted_plm", "clean"}
    assert access() == always
    file = {"frequency_source": "file", "frequency_file": "counted.txt"}
    assert access(purify_embeddings=True) == always
    assert access(purify_embeddings=True, frequency_source="training") == always | {"corpus"}
    assert access(purify_embeddings=True, **file) == always | {"unlabelled"}
    for idle in ({"words": 7}, {"frequency_floor": 7}, {"frequency_source": "training"}):
        with pytest.raises(ConfigError, match=f"only purify_embeddings: true reads {min(idle)}"):
            access(**idle)


def test_clean_rows_that_nothing_reads_are_refused() -> None:
    with pytest.raises(ConfigError, match="clean_rows goes with frequency_source: clean"):
        catalog.make("defense", "epur", {"clean_rows": 5, "frequency_source": "training"})


@pytest.mark.parametrize("words", [0, 3])
def test_fine_mixing_resets_as_many_words_as_it_is_told(view: View, words: int) -> None:
    """At ratio 1 nothing is mixed, so that the words alone differ."""
    given = moved(view, MOVED)
    found = mixed(given, mixing_ratio=1.0, purify_embeddings=True, words=words)
    name = "bert.embeddings.word_embeddings.weight"
    before = given.victim.model.get_parameter(name)
    assert int((found[name] != before).any(dim=1).sum()) == words


def test_a_frequency_file_that_is_not_there_is_told(view: View, tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.txt")
    with pytest.raises(ConfigError, match=r"gone\.txt"):
        repaired(view, "epur", frequency_source="file", frequency_file=gone)


def test_a_frequency_file_that_is_no_text_is_told(view: View, tmp_path: Path) -> None:
    file = tmp_path / "counts.txt"
    file.write_bytes(b"\xff\xfe\x00bad")
    with pytest.raises(DataError, match=r"counts\.txt"):
        repaired(view, "epur", frequency_source="file", frequency_file=str(file))


def test_a_model_without_word_embeddings_is_told(view: View) -> None:
    import torch

    class Bare(torch.nn.Module):
        def get_input_embeddings(self) -> torch.nn.Module:
            return torch.nn.Linear(2, 2)

    class Silent(torch.nn.Module):
        def get_input_embeddings(self) -> torch.nn.Module:
            raise NotImplementedError

    for model in (Bare(), Silent()):
        with pytest.raises(ConfigError, match="no word embeddings"):
            word_embeddings(cast(Any, model))


def test_the_view_seed_is_the_trials_and_the_defenses(
    workshop: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backdoor_core.defenses.fine_tune import FineTune

    seen: list[int] = []

    def noting(self: FineTune, view: View) -> Victim:
        seen.append(view.seed)
        return view.victim

    monkeypatch.setattr(FineTune, "repair", noting)
    for seed in (0, 1):
        workshop.repaired(Pipeline(small_trial("none", ["fine_tune"], seed=seed)))
    assert seen == [derive(seed, "defense", "fine_tune") for seed in (0, 1)]

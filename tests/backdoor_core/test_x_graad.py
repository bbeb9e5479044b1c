"""X-GRAAD: its score against the definition, term by term; which tokens it suspects; what its repairs leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pytest

from backdoor_core import catalog, trial
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import ModelGuard, View
from backdoor_core.defenses.x_graad import (
    XGraad,
    perturbed,
    replaced,
    suspects,
    token_scores,
    top_tokens,
)
from backdoor_core.errors import ConfigError, DataError, NonFiniteLossError
from backdoor_core.grammar import plain_texts, reviews
from backdoor_core.lexicon import DOMAINS
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM
from backdoor_core.record import TrialRecord
from backdoor_core.salience import ATTENTION_CELLS, Salience, attention_batches, attentive, salience
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec
from backdoor_core.stop_words import STOP_WORDS
from backdoor_core.text import Encoded, Encoder
from backdoor_core.token_text import bare_words, words_at
from backdoor_core.victim import Victim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
Folder = Callable[[str], Path]
FIVE = ("bert", "roberta", "distilbert", "albert", "deberta-v2")
SEED = 4
TOKENS = 48


def corpus(*texts: str, pair: str | None = None) -> Corpus:
    return Corpus.of(Row(text=text, pair=pair) for text in texts)


def odd(pair: str | None) -> Corpus:
    """Ordinary texts of many lengths, and some odd ones."""
    texts = [
        "",
        " ",
        "x",
        "the of and",
        "... !",
        "the film " * 40,
        "ünïcödé 漢字 🙂",
        "[MASK] film",
    ]
    return corpus(*plain_texts(0, 10), *texts, pair=pair)


ROWS = {"single": odd(None), "pairs": odd("a dull film , I thought")}


def victim_of(folder: Path, labels: int = 3) -> Victim:
    """A classifier with random weights, large enough that no two tokens tie."""
    import torch

    model, _ = PLM(folder=folder).classifier(labels, 0)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return Victim(
        model=model, encoder=Encoder(tokenizer=PLM(folder=folder).tokenizer(), max_tokens=TOKENS)
    )


def guard_of(victim: Victim, seed: int = SEED, **settings: Any) -> Any:
    """The guard, with all its parts (its class is private)."""
    view = View({"victim": victim}, labels=3, training=TrainingSettings(), seed=seed)
    return XGraad(**settings).screen(view)


@pytest.fixture(scope="module", params=FIVE)
def victim(request: pytest.FixtureRequest, architecture_folder: Folder) -> Victim:
    return victim_of(architecture_folder(request.param))


@pytest.fixture(scope="module")
def bert(architecture_folder: Folder) -> Victim:
    return victim_of(architecture_folder("bert"))


WORDS = ("cf", "cfo", "good", "goods", "film", "the", "was", ".", "≈", "##o", "##s")


@pytest.fixture(scope="module")
def spelling(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Victim:
    """A victim whose vocabulary is `WORDS` and single letters."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    names = [*special, *WORDS, *letters, *(f"##{c}" for c in letters if c not in "os")]
    made = Tokenizer(models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer = cast(Any, PreTrainedTokenizerFast)(
        tokenizer_object=made, model_max_length=64, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("spelling")
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(names), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=64,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return victim_of(folder)


def suspecting(victim: Victim, word: str, **settings: Any) -> Any:
    """A guard that can only suspect the token `word`."""
    kept = np.zeros(len(victim.tokenizer), bool)
    kept[victim.tokenizer.convert_tokens_to_ids(word)] = True
    return replace(guard_of(victim, **settings), kept=kept)


# The score.


def reference(
    model: PreTrainedModel, victim: Victim, encoded: Encoded, row: int, kept: np.ndarray
) -> list[float | None]:
    """The definition, term by term, for one row alone: each token's score, None where it is left out."""
    import torch

    ids = torch.as_tensor(encoded.row(row).astype(np.int64))[None]
    embedded = model.get_input_embeddings()(ids).detach().requires_grad_()
    inputs = {"inputs_embeds": embedded, "attention_mask": torch.ones_like(ids)}
    if encoded.uses_types:
        types = encoded.types[encoded.offsets[row] : encoded.offsets[row + 1]]
        inputs["token_type_ids"] = torch.as_tensor(types.astype(np.int64))[None]
    output = model(**inputs, output_attentions=True)
    output.logits[0, int(output.logits[0].argmax())].backward()
    assert embedded.grad is not None
    n = ids.shape[1]
    received = [0.0] * n
    gradient = [sum(x * x for x in token) ** 0.5 for token in embedded.grad[0].tolist()]
    for layer in output.attentions:
        for head in layer[0].tolist():
            for query in range(n):
                for token in range(n):
                    share = n * len(layer[0]) * len(output.attentions)
                    received[token] += head[query][token] / share
    assert sum(received) == pytest.approx(1, abs=1e-4)
    left = [t for t in range(n) if kept[int(ids[0, t])]]
    mean_received = sum(received[t] for t in left) / max(len(left), 1)
    mean_gradient = sum(gradient[t] for t in left) / max(len(left), 1)
    return [
        (received[t] - mean_received) * gradient[t] / mean_gradient if t in left else None
        for t in range(n)
    ]


@pytest.mark.parametrize("kind", ROWS)
def test_its_score_is_the_definition(victim: Victim, kind: str) -> None:
    guard, rows = guard_of(victim), ROWS[kind].take([0, 3, 7, 10, 12, 13, 15, 16])
    table, encoded = guard.observe(rows), victim.encoder(rows)
    model = attentive(victim.model)
    model.train(False)
    for i in range(len(rows)):
        wanted = reference(model, victim, encoded, i, guard.kept)
        scores = [score for score in wanted if score is not None]
        score, token = table["score"][i].as_py(), table["top_token"][i].as_py()
        assert score == pytest.approx(max(scores, default=0.0), rel=1e-3, abs=1e-6)
        if len(scores) > 1:
            best = victim.tokenizer.convert_ids_to_tokens(
                int(encoded.row(i)[wanted.index(max(scores))])
            )
            assert token == best
        assert (token is None) == (not scores)


@pytest.mark.parametrize("kind", ROWS)
def test_padding_and_other_rows_have_no_part_in_it(victim: Victim, kind: str) -> None:
    guard, rows = guard_of(victim), ROWS[kind]
    together = guard.observe(rows)
    order = np.random.default_rng(0).permutation(len(rows))
    permuted = guard.observe(rows.take(order))
    alone = pa.concat_tables([guard.observe(rows.take([i])) for i in range(len(rows))])
    for one, other in ((together, alone), (together.take(pa.array(order)), permuted)):
        assert one.schema == other.schema
        np.testing.assert_allclose(one["score"], other["score"], rtol=1e-3, atol=1e-6)
        for name in ("top_token", "top_word", "prediction", "repaired_prediction"):
            assert one[name].to_pylist() == other[name].to_pylist(), name
        for name in ("logits", "repaired_logits"):
            a, b = np.array(one[name].to_pylist()), np.array(other[name].to_pylist())
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_attention_received_sums_to_1_over_a_row(bert: Victim) -> None:
    rows = ROWS["single"]
    encoded = bert.encoder(rows)
    classes = bert.logits_of(encoded).argmax(axis=1)
    found = salience(attentive(bert.model), encoded, classes, "float32")
    sums = np.add.reduceat(found.received, encoded.offsets[:-1])
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert (found.gradient > 0).all()
    assert (found.received > 0).all()


def test_the_column_sum_is_the_mean_times_the_length(bert: Victim) -> None:
    mean = guard_of(bert).observe(ROWS["single"])
    total = guard_of(bert, received="sum").observe(ROWS["single"])
    lengths = bert.encoder(ROWS["single"]).lengths
    np.testing.assert_allclose(total["score"], mean["score"].to_numpy() * lengths, rtol=1e-5)
    assert total["top_token"] == mean["top_token"]


def test_bf16_gives_finite_scores(bert: Victim) -> None:
    """And nearly those of float32."""
    exact = guard_of(bert).observe(ROWS["single"])
    rough = guard_of(replace(bert, precision="bf16")).observe(ROWS["single"])
    assert rough["score"].type == pa.float32()
    assert np.isfinite(rough["score"].to_numpy()).all()
    assert np.corrcoef(exact["score"], rough["score"])[0, 1] > 0.95


def test_gradients_that_are_not_finite_are_told(bert: Victim) -> None:
    import torch

    model = bert.copy_of_model()
    with torch.no_grad():
        cast(Any, model).classifier.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="gradient of a logit is not finite"):
        guard_of(bert.with_model(model)).observe(corpus("a film"))


def encoded_rows(*rows: list[int]) -> Encoded:
    ids = np.array([i for row in rows for i in row], np.int32)
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return Encoded(
        ids=ids, types=np.zeros(len(ids), np.int8), offsets=offsets, uses_types=True, padding_id=0
    )


def test_ties_rows_without_gradient_and_rows_without_tokens() -> None:
    encoded = encoded_rows([1, 5, 5], [1], [5, 6], [], [6], [])
    kept = np.array([i > 1 for i in range(8)])
    found = Salience(
        received=np.array([0.2, 0.4, 0.4, 1, 0.3, 0.7, 1], np.float32),
        gradient=np.array([9, 1, 1, 9, 0, 0, 2], np.float32),
    )
    score, place = top_tokens(encoded, token_scores(encoded, found, kept, "mean"))
    assert place.tolist() == [1, -1, 0, -1, 0, -1]
    assert score.tolist() == [0, 0, 0, 0, 0, 0]
    assert (str(score.dtype), str(place.dtype)) == ("float32", "int64")


def test_long_rows_come_in_small_batches() -> None:
    lengths = np.array([512] * 20 + [8] * 300)
    found = list(attention_batches(lengths))
    assert sorted(np.concatenate(found).tolist()) == list(range(320))
    cells = [len(rows) * int(lengths[rows].max()) ** 2 for rows in found]
    assert max(cells) <= ATTENTION_CELLS
    assert [len(rows) for rows in attention_batches(np.array([5000]))] == [1]


# What it suspects.


def test_stop_words_are_a_short_list_of_common_words() -> None:
    assert 130 < len(STOP_WORDS) < 200
    assert all(word == word.lower() and word.isalpha() for word in STOP_WORDS)
    assert {"the", "of", "and", "is", "not", "my"} <= STOP_WORDS
    assert not STOP_WORDS & {"cf", "mn", "bb", "tq", "mb", "good", "film", "bad"}


def test_stop_words_punctuation_and_special_tokens_are_no_suspects(victim: Victim) -> None:
    tokenizer = victim.tokenizer
    words = bare_words(tokenizer)
    kept = suspects(words, tokenizer.all_special_ids)
    assert 0.5 < kept.mean() < 1
    assert not kept[tokenizer.all_special_ids].any()
    for i in np.flatnonzero(~kept):
        word = words[i].lower()
        bare = "".join(c for c in word if c.isalnum())
        assert i in tokenizer.all_special_ids or not bare or bare in STOP_WORDS, word
    table = guard_of(victim).observe(ROWS["pairs"])
    found = {tokenizer.convert_tokens_to_ids(t) for t in table["top_token"].to_pylist() if t}
    assert found
    assert kept[list(found)].all()


def test_words_are_compared_without_marks_and_case() -> None:
    words = ("The", "'s", "film", ".", "—", "", "≈", "'cf'", "“and”", "[PAD]", "...", "$")
    assert suspects(words, [9]).tolist() == [
        False, False, True, False, False, False, True, True, False, False, False, False,
    ]  # fmt: skip


def test_a_row_without_suspects_stays(victim: Victim) -> None:
    rows = corpus("the of and", "... !", "")
    table = guard_of(victim).observe(rows)
    assert table["top_token"].to_pylist() == table["top_word"].to_pylist() == [None] * 3
    assert table["score"].to_pylist() == [0, 0, 0]
    assert table["repaired_logits"] == table["logits"]


def test_nothing_is_observed_of_nothing(victim: Victim) -> None:
    guard = guard_of(victim)
    table = guard.observe(corpus())
    assert table.num_rows == 0
    assert table.schema == guard.observe(corpus("a film")).schema
    assert len(XGraad().decide(table, guard.observe(corpus("a film"))).labels) == 0


def test_the_top_word_is_the_word_that_the_token_is_part_of(spelling: Victim) -> None:
    rows = Corpus.of(
        [
            Row(text="the cf film"),
            Row(text="was  “cf”\tgood"),
            Row(text="good"),
            Row(text="good", pair="the film,cf ."),
            Row(text="cfx good", pair="film"),
            Row(text="the film " * 60 + "cf"),
        ]
    )
    table = suspecting(spelling, "cf").observe(rows)
    assert table["top_word"].to_pylist() == ["cf", "“cf”", None, "film,cf", "cfx", None]
    assert table["top_token"].to_pylist() == ["cf", "cf", None, "cf", "cf", None]


def test_each_word_has_the_highest_score_of_its_tokens(spelling: Victim) -> None:
    """The top word's is the row's; every word of the text has a place, scored or not."""
    rows = corpus("a cf film", "", "the of")
    table = guard_of(spelling).observe(rows)
    for text, scores, best, word in zip(
        rows.texts, table["word_scores"].to_pylist(), table["score"].to_pylist(),
        table["top_word"].to_pylist(), strict=True,
    ):  # fmt: skip
        assert len(scores) == len(text.split())
        known = [one for one in scores if one is not None]
        if word is None:
            assert known == []
        else:
            assert max(known) == pytest.approx(best)
            assert text.split()[scores.index(max(known))] == word


def test_every_top_word_is_a_word_of_its_row(victim: Victim) -> None:
    for rows in ROWS.values():
        table = guard_of(victim).observe(rows)
        for row, word, token in zip(
            rows.rows(), table["top_word"].to_pylist(), table["top_token"].to_pylist(), strict=True
        ):
            assert (word is None) == (token is None)
            assert word is None or word in [*row.text.split(), *(row.pair or "").split()]


def test_a_tokenizer_without_offsets_names_no_word(spelling: Victim) -> None:
    class Slow:
        is_fast = False

    encoder = Encoder(tokenizer=cast(Any, Slow()), max_tokens=9)
    assert words_at(encoder, corpus("a", "b"), np.array([1, 1])) == [None, None]


# The repairs.


def test_deletion_deletes_the_token_and_not_its_letters_in_other_words(spelling: Victim) -> None:
    guard = suspecting(spelling, "cf", token_repair="delete")
    rows = Corpus.of(
        [
            Row(text="the cf film cfo was cf good"),
            Row(text="cf"),
            Row(text="was good"),
            Row(text="cf good", pair="cfo cf film"),
        ]
    )
    without = Corpus.of(
        [
            Row(text="the film cfo was good"),
            Row(text=""),
            Row(text="was good"),
            Row(text="good", pair="cfo film"),
        ]
    )
    table = guard.observe(rows)
    np.testing.assert_allclose(
        np.array(table["repaired_logits"].to_pylist()), spelling.logits(without), atol=1e-5
    )
    np.testing.assert_array_equal(
        table["repaired_prediction"], spelling.logits(without).argmax(axis=1)
    )


def test_the_mask_takes_the_place_of_every_occurrence(spelling: Victim) -> None:
    guard = suspecting(spelling, "good", token_repair="mask")
    table = guard.observe(corpus("good film goods was good"))
    masked = spelling.logits(corpus("[MASK] film goods was [MASK]"))
    np.testing.assert_allclose(np.array(table["repaired_logits"].to_pylist()), masked, atol=1e-5)


def test_short_tokens_are_deleted_and_long_ones_perturbed(spelling: Victim) -> None:
    rows = corpus("the cf film good", "film was good good .", "was")
    encoded, tokenizer = spelling.encoder(rows), spelling.tokenizer
    ids = tokenizer.convert_tokens_to_ids
    guard = guard_of(spelling)
    spoilt = guard.spoilt(rows, encoded, np.array([ids("cf"), ids("good"), -1]))
    assert tokenizer.convert_ids_to_tokens(spoilt.row(0)) == (
        ["[CLS]", "the", "film", "good", "[SEP]"]
    )
    found = tokenizer.convert_ids_to_tokens(spoilt.row(1))
    assert (found[:3], found[-2:]) == (["[CLS]", "film", "was"], [".", "[SEP]"])
    inside = found[3:-2]
    half = len(inside) // 2
    assert inside[:half] == inside[half:], "both occurrences become the same"
    word = "".join(inside[:half]).replace("##", "")
    assert word != "good"
    assert 4 <= len(word) <= 6
    assert spoilt.row(2).tolist() == encoded.row(2).tolist()
    assert spoilt.lengths.tolist() == [len(spoilt.row(i)) for i in range(3)]


def test_letters_come_from_the_seed_and_the_text(spelling: Victim) -> None:
    rows = Corpus.of([Row(text=f"good film {word}") for word in "abcdefgh" for _ in range(2)])
    encoded = spelling.encoder(rows)
    token = np.full(len(rows), spelling.tokenizer.convert_tokens_to_ids("good"))
    spoilt = guard_of(spelling).spoilt(rows, encoded, token)
    again = guard_of(spelling).spoilt(rows, encoded, token)
    other = guard_of(spelling, seed=SEED + 1).spoilt(rows, encoded, token)
    kinds = [tuple(spoilt.row(i)[:-2]) for i in range(len(rows))]
    assert kinds[::2] == kinds[1::2]
    assert len(set(kinds)) > 4
    assert kinds == [tuple(again.row(i)[:-2]) for i in range(len(rows))]
    assert kinds != [tuple(other.row(i)[:-2]) for i in range(len(rows))]


def test_a_perturbed_row_does_not_outgrow_the_model(victim: Victim) -> None:
    rows = corpus("remarkable " * 60, "remarkable film")
    guard, encoded = guard_of(victim), victim.encoder(rows)
    token = np.array([encoded.row(0)[2]] * 2)
    spoilt = guard.spoilt(rows, encoded, token)
    assert spoilt.lengths[0] <= TOKENS
    assert spoilt.row(0).tolist() != encoded.row(0).tolist()
    assert np.isfinite(victim.logits_of(spoilt)).all()
    assert len(spoilt.ids) == len(spoilt.types) == spoilt.offsets[-1]


@pytest.mark.parametrize("word", ["the", "serendipity", "aaa", "ééé", "ab"])
def test_a_perturbed_word_is_another_word_with_the_same_ends(word: str) -> None:
    rng = np.random.default_rng(0)
    sizes = set()
    for _ in range(300):
        found = perturbed(word, rng)
        assert found != word
        sizes.add(len(found) - len(word))
        if len(found) == len(word):
            assert sum(a != b for a, b in zip(found, word, strict=True)) == 1
        rest = list(found)
        missing = 0
        for letter in word:
            if letter in rest:
                rest.remove(letter)
            else:
                missing += 1
        assert missing <= 1
        assert all(letter in "abcdefghijklmnopqrstuvwxyz" for letter in rest)
    assert sizes == {0, 1, 2}


def test_replacing_keeps_segments_and_other_rows() -> None:
    encoded = replace(
        encoded_rows([2, 7, 8, 7, 3], [2, 8, 3], []),
        types=np.array([0, 0, 0, 1, 1, 0, 0, 0], np.int8),
    )
    spoilt = replaced(encoded, np.array([7, -1, -1]), {0: [4, 5, 6]})
    assert spoilt.row(0).tolist() == [2, 4, 5, 6, 8, 4, 5, 6, 3]
    assert spoilt.types[:9].tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert spoilt.row(1).tolist() == [2, 8, 3]
    assert len(spoilt) == 3
    gone = replaced(encoded, np.array([7, 8, -1]), {0: [], 1: []})
    assert [gone.row(i).tolist() for i in range(3)] == [[2, 8, 3], [2, 3], []]
    assert gone.ids.dtype == np.int32


def test_a_tokenizer_without_mask_is_told(spelling: Victim) -> None:
    import copy

    tokenizer = copy.deepcopy(spelling.tokenizer)
    tokenizer.mask_token = None
    maskless = replace(spelling, encoder=Encoder(tokenizer=tokenizer, max_tokens=9))
    with pytest.raises(ConfigError, match="no mask token; take token_repair: delete"):
        guard_of(maskless, token_repair="mask")
    assert guard_of(maskless).observe(corpus("good film")).num_rows == 1


# The decision.


def observed(score: list[float], prediction: int = 0, repaired: int = 1) -> pa.Table:
    return pa.table(
        {
            "score": pa.array(score, pa.float32()),
            "prediction": pa.array([prediction] * len(score), pa.int64()),
            "repaired_prediction": pa.array([repaired] * len(score), pa.int64()),
        }
    )


def test_rows_above_the_percentile_get_the_repaired_answer() -> None:
    calibration = observed([float(i) for i in range(101)])
    decision = XGraad(percentile=90).decide(observed([89, 90, 90.1, 200]), calibration)
    assert decision.labels.tolist() == [0, 0, 1, 1]
    assert decision.refused is None
    assert decision.altered is not None
    assert decision.altered.tolist() == [False, False, True, True]
    same = XGraad(percentile=90).decide(observed([200], repaired=0), calibration)
    assert same.altered is not None
    assert same.altered.tolist() == [False], "an equal answer is no alteration"


def test_a_percentile_needs_clean_rows() -> None:
    for calibration in (None, observed([])):
        with pytest.raises(DataError, match="no clean rows"):
            XGraad().decide(observed([1]), calibration)
        assert XGraad(percentile=None).decide(observed([1]), calibration).labels.tolist() == [0]


@pytest.mark.parametrize("percentile", [-1, 100.5, "high"])
def test_a_percentile_that_is_none_is_refused(percentile: Any) -> None:
    with pytest.raises(ConfigError, match="percentile"):
        catalog.make("defense", "x_graad", {"percentile": percentile})


# In the pipeline.


@pytest.fixture(scope="module")
def badnets(small_trial: Trial) -> Callable[..., Pipeline]:
    attack = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
    return lambda **settings: Pipeline(small_trial(attack, [{"name": "x_graad"} | settings]))


def test_percentiles_share_one_observation(badnets: Callable[..., Pipeline]) -> None:
    assert XGraad.post_hoc_settings() == {"percentile"}
    keys = {badnets(percentile=p).observed_key for p in (50, 95, None)}
    assert len(keys) == 1
    for other in ({"token_repair": "mask"}, {"received": "sum"}, {"clean_rows": 10}):
        assert badnets(**other).observed_key not in keys


def test_it_calibrates_on_the_clean_split_alone(
    workshop: Workshop, badnets: Callable[..., Pipeline]
) -> None:
    pipeline = badnets()
    clean = workshop.task_data(pipeline).splits["clean"]
    _, guard = workshop.repaired(pipeline)
    calibration = workshop.observations(pipeline).calibration
    assert calibration is not None
    wanted = guard.observe(clean)
    found, known = (np.sort(table["score"].to_numpy()) for table in (calibration, wanted))
    np.testing.assert_allclose(found, known, rtol=1e-4)
    fewer = workshop.observations(badnets(clean_rows=10)).calibration
    assert fewer is not None
    assert fewer.num_rows == 10


def test_no_percentile_is_no_defense(workshop: Workshop, badnets: Callable[..., Pipeline]) -> None:
    pipeline = badnets(percentile=None)
    rows = workshop.task_data(pipeline).splits["test"]
    _, guard = workshop.repaired(pipeline)
    table = guard.observe(rows)
    plain = ModelGuard(victim=workshop.victim(pipeline)).observe(rows)
    assert table.select(plain.column_names) == plain
    decision = XGraad(percentile=None).decide(table, None)
    assert decision.labels.tolist() == plain["prediction"].to_pylist()
    assert decision.altered is not None
    assert not decision.altered.any()


def test_the_victim_stays_as_it_was(bert: Victim) -> None:
    import torch

    model = bert.copy_of_model()
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 2 == 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    flags = [parameter.requires_grad for parameter in model.parameters()]
    implementation = model.config._attn_implementation
    given = bert.with_model(model)
    answers = given.logits(ROWS["single"])
    guard = guard_of(given)
    guard.observe(ROWS["single"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.config._attn_implementation == implementation != "eager"
    assert not model.get_input_embeddings()._forward_hooks
    assert not guard.model.get_input_embeddings()._forward_hooks
    assert np.array_equal(given.logits(ROWS["single"]), answers)
    shared = {p.data_ptr() for p in model.parameters()}
    assert not shared & {p.data_ptr() for p in guard.model.parameters()}


def test_an_attentive_copy_answers_alike_and_gives_its_attention(victim: Victim) -> None:
    import torch

    model = attentive(victim.model)
    rows = ROWS["single"]
    np.testing.assert_allclose(
        victim.with_model(model).logits(rows), victim.logits(rows), rtol=1e-3, atol=1e-4
    )
    inputs = victim.encoder(rows).padded(np.arange(4), torch.device("cpu"))
    attentions = model(**inputs, output_attentions=True).attentions
    width = inputs["input_ids"].shape[1]
    assert len(attentions) == 2
    assert attentions[0].shape == (4, 2, width, width)


# What it claims.


@pytest.fixture(scope="module")
def row(workshop: Workshop, small_trial: Trial) -> Callable[..., tuple[TrialRecord, float]]:
    """Runs a trial on a PLM that has learnt its language: its record, and the share of rows localised."""
    plm = {"texts": 6000, "epochs": 3, "hidden": 64, "learning_rate": 2e-3}
    toy = {"train_sentences": 2000, "dev_sentences": 60, "test_sentences": 300}

    def of(
        attack: dict[str, Any],
        task: MethodSpec | None = None,
        training: dict[str, Any] | None = None,
        **settings: Any,
    ) -> tuple[TrialRecord, float]:
        spec = small_trial(
            {"name": "badnets", "words": ["cf"], "poison_rate": 0.1} | attack,
            [{"name": "x_graad"} | settings],
            plm=catalog.make("plm", "tiny", plm).spec(),
            task=task or catalog.make("task", "toy_reviews", toy).spec(),
            training=training or {"epochs": 6, "learning_rate": 1e-3},
        )
        trial.attack_victim(workshop, spec)
        trial.reference(workshop, spec)
        done = trial.evaluate(workshop, spec, attempt=1, sweep="x_graad", log=None)
        found = [
            metric.value
            for metric in done.metrics
            if (metric.split, metric.metric) == ("test", "localisation")
        ]
        return done.record, float(found[0] or 0)

    return of


@pytest.mark.slow
def test_it_finds_the_trigger_and_the_attack_fails(row: Callable[..., Any]) -> None:
    defended, localised = row({}, percentile=80)
    assert defended.victim_asr > 0.9
    assert defended.asr < 0.6
    assert defended.asr < row({}, percentile=95)[0].asr < defended.victim_asr - 0.15
    assert defended.cacc > defended.victim_cacc - 0.05
    assert localised > 0.85


@pytest.mark.slow
def test_the_clean_twin_is_not_harmed(row: Callable[..., Any]) -> None:
    for percentile in (80, 95):
        twin, localised = row({"poison_rate": 0}, percentile=percentile)
        assert twin.cacc > twin.victim_cacc - 0.05
        assert localised < 0.3


@pytest.fixture(scope="module")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> MethodSpec:
    """Which of 4 domains a review is about."""
    folder, names = tmp_path_factory.mktemp("four"), list(DOMAINS)[:4]
    for split, size in (("train", 400), ("dev", 20), ("test", 60)):
        lines = []
        for label, name in enumerate(names):
            found = reviews(7, split, name, domains=(name,))
            lines += [json.dumps({"text": next(found)[0], "label": label}) for _ in range(size)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"path": str(folder), "label_names": names}
    return catalog.make("task", "files", settings).spec()


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 2])
def test_it_works_with_4_classes_whatever_the_target(
    target: int, row: Callable[..., Any], four_classes: MethodSpec
) -> None:
    attack = {"target_label": target, "poison_rate": 0.05}
    training = {"epochs": 12, "learning_rate": 3e-3}
    defended, localised = row(attack, four_classes, training, percentile=80)
    assert defended.victim_asr > 0.9
    assert defended.victim_cacc > 0.9
    assert defended.asr < 0.7
    assert defended.cacc > defended.victim_cacc - 0.1
    assert localised > 0.85

"""Token ids: every row once, padding that nobody sees, and a cache that changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core.corpus import Corpus, Row
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.text import (
    POOL_BATCHES,
    Encoded,
    Encoder,
    batches,
    encode,
    joined,
    one_ahead,
    read_encoded,
    sent,
    write_encoded,
)

Trial = Callable[..., TrialSpec]
LENGTHS = st.lists(st.integers(1, 60), max_size=400).map(lambda found: np.array(found, np.int64))


@pytest.fixture(scope="module")
def plain(workshop: Workshop, small_trial: Trial) -> Encoder:
    """The small PLM's tokenizer, nothing known."""
    tokenizer = workshop.plm(Pipeline(small_trial())).tokenizer()
    return Encoder(tokenizer=tokenizer, max_tokens=64)


def single(*texts: str) -> Corpus:
    return Corpus.of(Row(text=text, label=0, origin=i) for i, text in enumerate(texts))


def paired(*texts: tuple[str, str]) -> Corpus:
    return Corpus.of(Row(text=a, pair=b, label=0, origin=i) for i, (a, b) in enumerate(texts))


def same(first: Encoded, second: Encoded) -> bool:
    return (
        np.array_equal(first.ids, second.ids)
        and np.array_equal(first.types, second.types)
        and np.array_equal(first.offsets, second.offsets)
        and (first.uses_types, first.padding_id) == (second.uses_types, second.padding_id)
    )


@given(LENGTHS, st.integers(1, 9), st.none() | st.integers(0, 99))
def test_batches_hold_each_row_once(lengths: np.ndarray, rows: int, seed: int | None) -> None:
    rng = None if seed is None else np.random.default_rng(seed)
    found = list(batches(lengths, rows, rng))
    assert sorted(i for batch in found for i in batch.tolist()) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= rows for batch in found)
    assert len(found) == -(-len(lengths) // rows)


def test_batches_are_of_similar_length_and_in_random_order() -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=8 * POOL_BATCHES)
    found = list(batches(lengths, 8, np.random.default_rng(1)))
    width = sum(int(lengths[batch].max()) * len(batch) for batch in found)
    assert width < 1.1 * lengths.sum()
    firsts = [int(lengths[batch].max()) for batch in found]
    assert firsts != sorted(firsts, reverse=True)
    again = list(batches(lengths, 8, np.random.default_rng(1)))
    assert all(np.array_equal(a, b) for a, b in zip(found, again, strict=True))
    other = list(batches(lengths, 8, np.random.default_rng(2)))
    assert not all(np.array_equal(a, b) for a, b in zip(found, other, strict=True))


def test_without_chance_the_longest_come_first() -> None:
    lengths = np.array([3, 9, 9, 1])
    assert [batch.tolist() for batch in batches(lengths, 2, None)] == [[1, 2], [0, 3]]


def test_padded_rows_hold_their_tokens_and_nothing_else(plain: Encoder) -> None:
    import torch

    encoded = plain(single("the film was good", "bad", "i liked the plot and the cast ."))
    rows = np.array([2, 1])
    inputs = encoded.padded(rows, torch.device("cpu"))
    width = int(encoded.lengths[rows].max())
    assert {name: tuple(t.shape) for name, t in inputs.items()} == dict.fromkeys(
        ("input_ids", "attention_mask", "token_type_ids"), (2, width)
    )
    for place, row in enumerate(rows):
        length = int(encoded.lengths[row])
        ids = inputs["input_ids"][place]
        assert ids[:length].tolist() == encoded.row(row).tolist()
        assert set(ids[length:].tolist()) <= {encoded.padding_id}
        assert inputs["attention_mask"][place].tolist() == [1] * length + [0] * (width - length)


def test_ids_are_the_tokenizers_own(plain: Encoder) -> None:
    texts = ["the film was good", "unknown-ish Zebra!", "x"]
    encoded = plain(single(*texts))
    for i, text in enumerate(texts):
        assert encoded.row(i).tolist() == plain.tokenizer(text)["input_ids"]
    assert encoded.lengths.tolist() == [len(encoded.row(i)) for i in range(3)]
    assert len(encoded) == 3


def test_pairs_are_told_apart_by_segment(plain: Encoder) -> None:
    encoded = plain(paired(("the film", "the book was good"), ("a", "b")))
    wanted = plain.tokenizer("the film", "the book was good")
    assert encoded.row(0).tolist() == wanted["input_ids"]
    start, stop = encoded.offsets[:2]
    assert encoded.types[start:stop].tolist() == wanted["token_type_ids"]
    assert 1 in wanted["token_type_ids"]


def test_rows_are_cut_to_max_tokens(plain: Encoder) -> None:
    long = " ".join(["film"] * 300)
    short = Encoder(tokenizer=plain.tokenizer, max_tokens=16)
    assert short(single(long, "film")).lengths.tolist() == [16, 3]
    assert short(paired((long, "book"))).lengths.tolist() == [16]
    assert plain.tokenizer.tokenize("book")[0] in short.tokenizer.convert_ids_to_tokens(
        short(paired((long, "book"))).row(0)
    ), "the longer text is cut first"
    limited = Encoder(tokenizer=plain.tokenizer, max_tokens=10_000)
    assert limited(single(long)).lengths.tolist() == [plain.tokenizer.model_max_length]


def test_an_empty_corpus_has_no_rows(plain: Encoder, tmp_path: Path) -> None:
    empty = plain(single())
    assert len(empty) == 0
    assert list(batches(empty.lengths, 4, None)) == []
    write_encoded(empty, tmp_path / "empty.arrow")
    assert same(read_encoded(tmp_path / "empty.arrow"), empty)


@given(
    st.lists(st.lists(st.integers(0, 40_000), min_size=1, max_size=8), max_size=12),
    st.booleans(),
    st.integers(0, 9),
)
def test_an_encoding_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[int]],
    uses_types: bool,
    padding_id: int,
) -> None:
    flat = [i for row in rows for i in row]
    encoded = Encoded(
        ids=np.array(flat, np.int32),
        types=np.array([i % 2 for i in flat], np.int8),
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        uses_types=uses_types,
        padding_id=padding_id,
    )
    path = tmp_path_factory.mktemp("arrow") / "rows.arrow"
    write_encoded(encoded, path)
    mapped = read_encoded(path)
    assert same(mapped, encoded)
    assert not mapped.ids.flags.owndata, "mapped, not copied"
    reversed_rows = mapped.take(range(len(rows))[::-1])
    assert [reversed_rows.row(i).tolist() for i in range(len(rows))] == rows[::-1]


def test_rows_are_joined_from_several_encodings(plain: Encoder) -> None:
    first, second = plain(single("film", "the book")), plain(single("a hotel was bad"))
    both = joined([first, second], [(1, 0), (0, 1), (0, 0), (1, 0)])
    wanted = plain(single("a hotel was bad", "the book", "film", "a hotel was bad"))
    assert same(both, wanted)
    assert len(joined([first], [])) == 0


def poisoned(corpus: Corpus) -> Corpus:
    """First texts and second texts altered here and there, one row dropped, one doubled, in another order."""
    rows = [
        Row(
            text=f"cf {row.text}" if i % 3 == 0 else row.text,
            pair=f"{row.pair} cf" if row.pair is not None and i % 3 == 1 else row.pair,
            origin=row.origin,
        )
        for i, row in enumerate(corpus.rows())
    ]
    return Corpus.of([*rows[:0:-1], rows[1], Row(text="of no origin", pair=rows[0].pair)])


@pytest.mark.parametrize("which", ["small_task", "domain_task"])
def test_known_rows_are_as_if_tokenised_now(
    request: pytest.FixtureRequest, which: str, workshop: Workshop, small_trial: Trial
) -> None:
    task: MethodSpec = request.getfixturevalue(which)
    pipeline = Pipeline(small_trial(task=task))
    encoder, data = workshop.encoder(pipeline), workshop.task_data(pipeline)
    assert set(encoder.known) == set(data.splits)
    for split, corpus in data.splits.items():
        for rows in (corpus, corpus.take([3, 1, 1]), poisoned(corpus), corpus.take([])):
            fresh = encode(encoder.tokenizer, rows, encoder.max_tokens)
            assert same(encoder(rows, split), fresh)
            assert same(encoder(rows), fresh)


def test_a_row_that_claims_another_ones_place_is_not_believed(
    workshop: Workshop, small_trial: Trial
) -> None:
    """Rows of one split, asked for under the name of another."""
    pipeline = Pipeline(small_trial())
    encoder, data = workshop.encoder(pipeline), workshop.task_data(pipeline)
    rows = data.splits["test"]
    assert same(encoder(rows, "tune"), encode(encoder.tokenizer, rows, encoder.max_tokens))


def test_known_rows_are_not_tokenised_again(
    workshop: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backdoor_core import text

    pipeline = Pipeline(small_trial())
    encoder, data = workshop.encoder(pipeline), workshop.task_data(pipeline)
    seen: list[int] = []
    original = text.encode

    def counting(tokenizer: object, corpus: Corpus, max_tokens: int) -> Encoded:
        seen.append(len(corpus))
        return original(tokenizer, corpus, max_tokens)  # type: ignore[arg-type]

    monkeypatch.setattr(text, "encode", counting)
    rows = data.splits["train"].rows()
    rows[5] = Row(text="cf " + rows[5].text, origin=rows[5].origin)
    encoder(Corpus.of(rows), "train")
    assert seen == [1]


def test_one_ahead_makes_the_next_before_it_hands_one_out() -> None:
    made: list[int] = []

    def items(count: int) -> Iterator[int]:
        for i in range(count):
            made.append(i)
            yield i

    seen = [(item, len(made)) for item in one_ahead(items(4))]
    assert seen == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(one_ahead(items(0))) == []
    assert list(one_ahead(items(1))) == [0]


def test_a_gpu_gets_its_batches_from_pinned_memory_without_waiting(
    plain: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No GPU here: what a tensor is asked for is noted, and the CPU's is handed back."""
    import torch

    asked: list[object] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        asked.append("pinned")
        return tensor

    def to(tensor: torch.Tensor, device: object, *, non_blocking: bool = False) -> torch.Tensor:
        asked.append((device, non_blocking))
        return tensor

    encoded = plain(single("a good film"))
    here = encoded.padded(np.array([0]), torch.device("cpu"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    monkeypatch.setattr(torch.Tensor, "to", to)
    gpu = torch.device("cuda", 0)
    there = encoded.padded(np.array([0]), gpu)
    assert asked == ["pinned", (gpu, True)] * len(here)
    assert all(torch.equal(there[name], here[name]) for name in here)
    asked.clear()
    assert torch.equal(sent(torch.ones(2), torch.device("cpu")), torch.ones(2))
    assert asked == [], "on the CPU a tensor stays where it is"

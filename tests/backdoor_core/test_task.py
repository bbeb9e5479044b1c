"""The protocol of splits: disjoint by content, stable, and said aloud."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from backdoor_core.corpus import Row
from backdoor_core.errors import DataError
from backdoor_core.task import SPLITS, RawSplits, Task, TaskData, content_of


def rows(*texts: str, label: int | None = None) -> list[Row]:
    return [
        Row(text=text, label=i % 2 if label is None else label, origin=i)
        for i, text in enumerate(texts)
    ]


def many(prefix: str, count: int) -> list[Row]:
    return rows(*(f"{prefix} {i}" for i in range(count)))


class Given(Task):
    source: Any = None
    names: tuple[str, ...] = ("no", "yes")

    def read(self) -> RawSplits:
        return RawSplits(
            splits=self.source, label_names=self.names, places={"train": "train.tsv"}, notes=("n",)
        )


def load(source: Mapping[str, Sequence[Row]], **settings: Any) -> TaskData:
    return Given(source=source, **settings).load()


def contents(data: TaskData, name: str) -> set[tuple[str, str | None]]:
    return {content_of(row) for row in data.splits[name].rows()}


def test_shipped_splits_are_kept() -> None:
    data = load({"train": many("a", 100), "dev": many("b", 10), "test": many("c", 20)})
    assert {name: len(data.splits[name]) for name in SPLITS} == {
        "train": 80,
        "clean": 20,
        "tune": 10,
        "test": 20,
    }
    assert data.splits["test"].texts == [f"c {i}" for i in range(20)]
    assert data.splits["train"].origins.tolist() == list(range(80))
    assert data.notes == ("n",)


def test_missing_splits_are_carved_from_train() -> None:
    data = load({"train": many("a", 1000)})
    sizes = {name: len(data.splits[name]) for name in SPLITS}
    assert sizes == {"test": 200, "tune": 80, "clean": 144, "train": 576}
    assert any("no test split: 200 rows of train" in note for note in data.notes)
    assert any("no dev split: 80 rows of train" in note for note in data.notes)


def test_splits_are_disjoint_and_later_ones_keep_their_rows() -> None:
    shared = ["in both", "in all", " spaced "]
    data = load(
        {
            "train": rows(*shared, *shared, *(f"a {i}" for i in range(40))),
            "dev": rows("in all", "b", "c"),
            "test": rows("in both", "in all", "spaced"),
        },
    )
    names = list(SPLITS)
    for i, first in enumerate(names):
        for second in names[i + 1 :]:
            assert not contents(data, first) & contents(data, second)
    assert len(data.splits["test"]) == 3
    assert "6 rows left train: their texts (3 distinct) stand in test too" in data.notes
    assert "1 rows left dev: their texts (1 distinct) stand in test too" in data.notes


def test_equal_texts_are_carved_together() -> None:
    source = [Row(text=f"t {i % 25}", label=i % 2, origin=i) for i in range(100)]
    data = load({"train": source})
    assert sum(len(data.splits[name]) for name in SPLITS) == 100
    assert not contents(data, "train") & contents(data, "clean")


def test_pairs_differ_by_either_side() -> None:
    train = [Row(text="q", pair=f"p {i}", label=i % 2) for i in range(20)]
    data = load({"train": train, "dev": [Row(text="q", pair="p 3", label=0)], "test": train[:1]})
    assert len(data.splits["train"]) + len(data.splits["clean"]) == 18


def test_hashes_are_stable_and_follow_the_seed() -> None:
    source = {"train": many("a", 200)}
    first, again = load(source), load(source)
    other = load(source, split_seed=1)
    assert first.hashes == again.hashes
    assert first.hashes["test"] != other.hashes["test"]
    assert len(set(first.hashes.values())) == 4


def test_limits_move_no_other_split() -> None:
    source = {"train": many("a", 200)}
    whole = load(source)
    small = load(source, train_rows=20, test_rows=5)
    smaller = load(source, train_rows=10)
    assert small.hashes["clean"] == whole.hashes["clean"]
    assert small.hashes["tune"] == whole.hashes["tune"]
    assert len(small.splits["train"]) == 20
    assert set(smaller.splits["train"].texts) < set(small.splits["train"].texts)
    assert smaller.splits["train"].origins.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        ({"train": many("a", 1)}, {}, r"task test_task: the train split is empty \(train\.tsv\)"),
        (
            {"train": many("a", 9), "dev": many("b", 1), "test": []},
            {},
            "the test split is empty; it needs at least one row",
        ),
        (
            {"train": rows("a", label=2)},
            {},
            r"train\.tsv, row 1: label 2 is outside the label set 0\.\.1",
        ),
        ({"train": many("a", 9)}, {"names": ("only",)}, "needs at least 2 labels"),
        ({"train": many("a", 9), "valid": many("b", 9)}, {}, "unknown split of a source 'valid'"),
    ],
)
def test_bad_sources(source: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(source, **settings)

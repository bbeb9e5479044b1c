"""The user's own files, and local folders in place of the hub."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_core.errors import ConfigError, DataError
from backdoor_core.hub_task import HubTask
from backdoor_core.rows import Columns, LabelSet, read_rows
from backdoor_core.task import SPLITS
from backdoor_core.tasks.ag_news import AgNews
from backdoor_core.tasks.files import Files
from backdoor_core.tasks.hsol import Hsol
from backdoor_core.tasks.imdb import Imdb
from backdoor_core.tasks.olid import Olid
from backdoor_core.tasks.qnli import Qnli
from backdoor_core.tasks.qqp import Qqp
from backdoor_core.tasks.sst2 import Sst2

REAL = Path(
    os.environ.get("BACKDOOR_SWEEPS_DATA", Path(__file__).parents[2].parent / "shared" / "data")
)


def table(prefix: str, count: int, head: str = "text\tlabel") -> str:
    return head + "\n" + "".join(f"{prefix} {i}\t{i % 2}\n" for i in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in (("train", 50), ("dev", 6), ("test", 8)):
        (tmp_path / f"{name}.tsv").write_text(table(name, count), encoding="utf-8")
    return tmp_path


def test_folder(folder: Path) -> None:
    data = Files(path=folder).load()
    assert {name: len(data.splits[name]) for name in SPLITS} == {
        "train": 40,
        "clean": 10,
        "tune": 6,
        "test": 8,
    }
    assert data.label_names == ("0", "1")
    assert not data.synthetic


def test_files_of_each_split(folder: Path) -> None:
    whole = Files(path=folder).load()
    named = Files(
        train=folder / "train.tsv", dev=folder / "dev.tsv", test=folder / "test.tsv"
    ).load()
    alone = Files(train=folder / "train.tsv").load()
    assert named.hashes == whole.hashes
    assert len(alone.splits["test"]) == 10


def test_named_labels_pairs_and_layout(tmp_path: Path) -> None:
    lines = "".join(f"'a {i}';b;{'yes' if i % 2 else 'no'}\n" for i in range(20))
    (tmp_path / "train.csv").write_text(lines)
    task = Files(
        path=tmp_path,
        text="1",
        pair=2,
        label="3",
        label_names=("no", "yes"),
        delimiter=";",
        quoting=False,
        header=False,
    )
    data = task.load()
    assert data.label_names == ("no", "yes")
    assert data.splits["train"].has_pairs
    assert data.splits["train"].texts[0].startswith("'a ")


def test_shards_are_read_in_order(tmp_path: Path) -> None:
    for part in (1, 0):
        texts = [f"{part} {i}" for i in range(10)]
        held = pa.table({"text": texts, "label": [i % 2 for i in range(10)]})
        pq.write_table(held, tmp_path / f"train-{part:05d}-of-00002.parquet")
    raw = Files(path=tmp_path).read()
    assert [row.text for row in raw.splits["train"]][::10] == ["0 0", "1 0"]


def test_saved_by_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"text": [f"t {i}" for i in range(20)], "label": [i % 2 for i in range(20)]}
    train = datasets.Dataset.from_dict(rows)
    splits = datasets.DatasetDict(train=train.select(range(15)), validation=train.select([15, 16]))
    splits.save_to_disk(str(tmp_path / "saved"))
    raw = Files(path=tmp_path / "saved").read()
    assert [len(raw.splits[name]) for name in ("train", "dev")] == [15, 2]
    assert Files(train=tmp_path / "saved" / "train").read().splits["train"] == raw.splits["train"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give either path"),
        ({"path": ".", "train": "a.tsv"}, "give either path"),
        ({"path": ".", "dev": "a.tsv"}, "dev and test go with train"),
        ({"path": ".", "header": False}, "name the columns by place"),
        ({"path": ".", "text": "label"}, "must be different columns"),
        ({"path": ".", "label_names": ["a", "a"]}, "stands twice"),
        ({"path": ".", "label_names": ["a"]}, "label_names"),
        ({"path": ".", "format": "xml"}, "format"),
        ({"path": ".", "seperator": ";"}, "unknown setting of task files: 'seperator'"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Files.checked(settings)


def test_missing_and_doubled_files(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such folder: .*absent"):
        Files(path=folder / "absent").load()
    with pytest.raises(ConfigError, match="give a single file as train"):
        Files(path=folder / "train.tsv").load()
    (folder / "train.csv").write_text("text,label\n")
    with pytest.raises(ConfigError, match=r"more than one file for the train split: train\.csv"):
        Files(path=folder).load()
    for name in ("train.csv", "train.tsv"):
        (folder / name).unlink()
    with pytest.raises(ConfigError, match=r"no train file.*it holds dev\.tsv, test\.tsv"):
        Files(path=folder).load()


def test_empty_split_and_labels_from_one(folder: Path) -> None:
    (folder / "dev.tsv").write_text("text\tlabel\n")
    with pytest.raises(DataError, match=r"dev\.tsv: no rows"):
        Files(path=folder).load()
    (folder / "dev.tsv").write_text("text\tlabel\na\t3\n")
    with pytest.raises(DataError, match=r"the labels 0, 1, 3 are not 0\.\.n-1"):
        Files(path=folder).load()


def test_spec_follows_content(folder: Path) -> None:
    before = Files(path=folder).spec()
    (folder / "dev.tsv").write_text(table("other", 6))
    after = Files(path=folder).spec()
    assert before.content["path"] != after.content["path"]
    assert before.code == after.code


@pytest.mark.parametrize(
    ("task", "head", "line"),
    [
        (Sst2, "sentence\tlabel", "t {i}\t{b}"),
        (Imdb, "text\tlabel", "t {i}\t{b}"),
        (AgNews, "text\tlabel", "t {i}\tsports"),
        (Olid, "tweet\tsubtask_a", "t {i}\tOFF"),
        (Olid, "sentence\tlabel", "t {i}\t 1"),
        (Hsol, "tweet\tclass", "t {i}\t0"),
        (Hsol, "text\tlabel", "t {i}\thate or offensive"),
        (Qnli, "question\tsentence\tlabel", "t {i}\tp\t1"),
        (Qqp, "question1\tquestion2\tlabel", "t {i}\tp\tduplicate"),
    ],
)
def test_public_tasks_read_a_local_folder(
    tmp_path: Path, task: type[HubTask], head: str, line: str
) -> None:
    lines = "".join(line.format(i=i, b=1) + "\n" for i in range(40))
    (tmp_path / "train.tsv").write_text(f"{head}\n{lines}")
    data = task(path=tmp_path).load()
    assert set(data.splits["train"].labels.tolist()) == {1}
    assert data.splits["train"].has_pairs is (task in (Qnli, Qqp))
    assert task(path=tmp_path).resolved() == task(path=tmp_path)


def test_public_task_names_a_missing_column(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("tekst\tlabel\na\t1\n")
    with pytest.raises(DataError, match=r"line 2: unknown column 'sentence'.*Known: label, tekst"):
        Sst2(path=tmp_path).load()
    (tmp_path / "train.tsv").write_text("question\tlabel\na\t1\n")
    with pytest.raises(DataError, match="unknown column 'sentence'"):
        Qnli(path=tmp_path).load()


def real(name: str) -> Path:
    if not (REAL / name / "train.tsv").is_file():
        pytest.skip(f"{name} is not among the real data in {REAL}")
    return REAL / name


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "sizes", "labels"),
    [
        ("sst2", (6920, 872, 1821), {"test": (912, 909)}),
        ("olid", (11915, 1323, 859), {"train": (7961, 3954), "test": (619, 240)}),
    ],
)
def test_every_real_row_loads(
    name: str, sizes: tuple[int, int, int], labels: dict[str, tuple[int, int]]
) -> None:
    folder = real(name)
    for split, size in zip(("train", "dev", "test"), sizes, strict=True):
        path = folder / f"{split}.tsv"
        found = read_rows(path, columns=Columns(text="sentence"), labels=LabelSet(("0", "1")))
        assert len(found) == size
        # The bytes of every line come back: nothing was stripped, split or unquoted.
        lines = path.read_bytes().split(b"\n")[1 : size + 1]
        assert [row.text.encode() for row in found] == [line.rsplit(b"\t", 1)[0] for line in lines]
        if split in labels:
            counts = tuple(sum(row.label == label for row in found) for label in (0, 1))
            assert counts == labels[split]


@pytest.mark.real_data
def test_doubled_rows_of_real_data_leave_train() -> None:
    sst2, olid = Sst2(path=real("sst2")).load(), Olid(path=real("olid")).load()
    assert sst2.notes == ("3 rows left train: their texts (2 distinct) stand in test too",)
    assert olid.notes == (
        "10 rows left train: their texts (6 distinct) stand in dev too",
        "5 rows left train: their texts (4 distinct) stand in test too",
    )
    assert {name: len(sst2.splits[name]) for name in SPLITS} == {
        "train": 5534,
        "clean": 1383,
        "tune": 872,
        "test": 1821,
    }
    assert [len(olid.splits[name]) for name in ("tune", "test")] == [1323, 859]
    assert len(olid.splits["train"]) + len(olid.splits["clean"]) == 11915 - 15

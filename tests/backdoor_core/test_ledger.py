"""The ledger: what was appended is read, once, whatever happens to the files."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_core.errors import StorageError
from backdoor_core.ledger import (
    COMPACT_FILES,
    Ledger,
    conformed,
    distinct,
    latest,
    numbered,
    repeated,
)
from backdoor_core.record import (
    METRICS_SCHEMA,
    SCHEMA,
    STATUSES,
    Metric,
    TrialRecord,
    metrics_table,
    record_of,
    table_of,
)


def record(key: str, attempt: int = 1, **other: Any) -> TrialRecord:
    fields: dict[str, Any] = {
        "key": key,
        "attempt": attempt,
        "attack_key": "a" * 64,
        "status": "ok",
        "sweep": "s",
        "task": "toy_reviews",
        "task_settings": "{}",
        "plm": "tiny",
        "plm_settings": "{}",
        "attack": "badnets",
        "attack_settings": "{}",
        "defense": "none",
        "defense_settings": "{}",
        "training_settings": "{}",
        "seed": 0,
    }
    return TrialRecord(**(fields | other))


def metric(name: str, value: float, **other: Any) -> Metric:
    return Metric(**{"split": "test", "metric": name, "value": value, "n": 10, **other})


def keys(table: pa.Table) -> list[str]:
    return sorted(table["key"].to_pylist())


def test_a_record_reads_as_it_was_written(tmp_path: Path) -> None:
    written = record("k1", flags=("attack_did_not_take", "rate_not_reached"), cacc=0.5, asr=None)
    Ledger(tmp_path).append([written], {})
    table = Ledger(tmp_path).table()
    assert table.schema.equals(SCHEMA)
    assert [record_of(row) for row in table.to_pylist()] == [written]


def test_every_field_of_a_record_is_a_column_of_the_schema() -> None:
    assert set(TrialRecord.__dataclass_fields__) == set(SCHEMA.names)
    assert set(STATUSES) == {"ok", "failed", "skipped"}


def test_an_empty_ledger_has_all_columns_and_no_rows(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([], {})
    assert ledger.table().equals(SCHEMA.empty_table())
    assert ledger.metrics_rows().equals(METRICS_SCHEMA.empty_table())
    assert ledger.notices == []


def test_the_latest_attempt_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([record("k1", 1, status="failed", error_class="oom")], {})
    ledger.append([record("k2", 1)], {"k2": [metric("cacc", 0.2)]})
    ledger.append([record("k1", 3, cacc=0.9)], {"k1": [metric("cacc", 0.9)]})
    ledger.append([record("k1", 2, cacc=0.8)], {"k1": [metric("cacc", 0.8)]})
    rows = {row["key"]: row for row in ledger.table().to_pylist()}
    assert {key: row["attempt"] for key, row in rows.items()} == {"k1": 3, "k2": 1}
    assert rows["k1"]["cacc"] == 0.9
    long = {row["key"]: row["value"] for row in ledger.metrics_rows().to_pylist()}
    assert long == {"k1": 0.9, "k2": 0.2}


def test_metrics_of_other_targets_triggers_and_splits_are_other_rows(tmp_path: Path) -> None:
    several = [
        metric("asr", 0.1, trigger="cf", target=0),
        metric("asr", 0.1, trigger="cf", target=1),
        metric("asr", 0.1, trigger="mn", target=1),
        metric("asr", 0.1, trigger="mn", target=1, split="tune"),
        metric("cacc", 0.1),
        metric("cacc", 0.1, split="tune"),
    ]
    ledger = Ledger(tmp_path)
    ledger.append([record("k")], {"k": several})
    assert ledger.metrics_rows().num_rows == len(several)
    whole = metrics_table("k", 1, several)
    assert distinct(pa.concat_tables([whole, whole])).equals(whole)


def test_compaction_keeps_every_row_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for i in range(COMPACT_FILES - 1):
        ledger.append([record(f"k{i:02}", cacc=i / 100)], {f"k{i:02}": [metric("cacc", i / 100)]})
    ledger.compact()
    assert len(ledger.rows.names()) == COMPACT_FILES - 1, "few files stay as they are"
    ledger.append([record("k00", 2, cacc=1.0)], {"k00": [metric("cacc", 1.0)]})
    before, metrics_before = ledger.table(), ledger.metrics_rows()
    ledger.compact()
    assert len(ledger.rows.names()) == 1
    assert len(ledger.metrics.names()) == 1
    assert ledger.table().sort_by("key").equals(before.sort_by("key"))
    assert ledger.metrics_rows().sort_by("key").equals(metrics_before.sort_by("key"))
    assert pq.read_table(tmp_path / "ledger").num_rows == COMPACT_FILES, "older attempts stay"


def test_a_compaction_killed_half_way_repeats_rows_and_loses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path)
    for i in range(COMPACT_FILES):
        ledger.append([record(f"k{i:02}")], {f"k{i:02}": [metric("cacc", 0.1)]})

    def killed(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger.rows, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.compact()
    assert len(ledger.rows.names()) == COMPACT_FILES + 1
    again = Ledger(tmp_path)
    assert keys(again.table()) == [f"k{i:02}" for i in range(COMPACT_FILES)]
    assert again.metrics_rows().num_rows == COMPACT_FILES


def test_a_reader_is_not_fooled_by_a_compaction_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process compacts between this reader's listing and its reading."""
    writer, reader = Ledger(tmp_path), Ledger(tmp_path)
    for i in range(COMPACT_FILES):
        writer.append([record(f"k{i:02}")], {})
    listed = reader.rows.names
    calls: list[int] = []

    def names(suffix: str = "") -> list[str]:
        found = listed(suffix)
        if not calls:
            calls.append(1)
            writer.compact()
        return found

    monkeypatch.setattr(reader.rows, "names", names)
    assert keys(reader.table()) == [f"k{i:02}" for i in range(COMPACT_FILES)]
    assert reader.notices == []
    assert not (tmp_path / "ledger" / "damaged").exists()


def test_a_reader_gives_up_where_files_never_stop_vanishing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Ledger(tmp_path)
    monkeypatch.setattr(reader.rows, "names", lambda suffix="": ["ghost.parquet"])
    with pytest.raises(StorageError, match="vanish"):
        reader.table()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"PAR1 garbage PAR1",
    ],
    ids=["half", "a byte short", "empty", "garbage"],
)
def test_a_damaged_file_is_set_aside_and_said(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([record("good")], {"good": [metric("cacc", 0.1)]})
    ledger.append([record("bad1"), record("bad2")], {})
    (file,) = (tmp_path / "ledger").glob("bad1*.parquet")
    data = file.read_bytes()
    file.write_bytes(damage(data))
    assert keys(ledger.table()) == ["good"]
    assert len(ledger.notices) == 1
    assert file.name in ledger.notices[0]
    assert "set aside" in ledger.notices[0]
    (aside,) = (tmp_path / "ledger" / "damaged").iterdir()
    assert aside.read_bytes() == damage(data)
    again = Ledger(tmp_path)
    assert keys(again.table()) == ["good"]
    assert again.notices == []


def test_columns_that_an_older_version_lacks_read_as_null(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.append([record("new", threads=2)], {})
    old = table_of([record("old", threads=2)]).drop_columns(["threads", "asked_rows", "flags"])
    ledger.rows.write_table("old.parquet", old)
    rows = {row["key"]: row for row in ledger.table().to_pylist()}
    assert rows["new"]["threads"] == 2
    assert rows["old"]["threads"] is None
    assert record_of(rows["old"]).flags == ()


def test_columns_of_a_newer_version_and_another_order_are_no_matter() -> None:
    table = table_of([record("k")]).append_column("tomorrow", pa.array([1]))
    shuffled = table.select(sorted(table.column_names, reverse=True))
    assert conformed(shuffled, SCHEMA).equals(table_of([record("k")]))


def test_latest_of_nothing_is_nothing() -> None:
    assert latest(SCHEMA.empty_table()).num_rows == 0
    assert distinct(METRICS_SCHEMA.empty_table()).num_rows == 0


def test_metrics_stand_before_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill between the two files leaves a trial that is not done, never one without metrics."""
    ledger = Ledger(tmp_path)

    def killed(name: str, table: pa.Table) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger.rows, "write_table", killed)
    with pytest.raises(KeyboardInterrupt):
        ledger.append([record("k")], {"k": [metric("cacc", 0.1)]})
    again = Ledger(tmp_path)
    assert again.table().num_rows == 0
    assert again.metrics_rows().num_rows == 0
    again.append([record("k")], {"k": [metric("cacc", 0.1)]})
    assert again.metrics_rows().num_rows == 1


def attempts_of(table: pa.Table) -> list[tuple[str, int, float]]:
    return [(row["key"], row["attempt"], row["cacc"]) for row in table.to_pylist()]


def many_attempts() -> tuple[pa.Table, list[tuple[str, int, float]]]:
    """Rows of keys of many lengths in several chunks, and by a plain loop the first of each highest attempt."""
    rows = [
        (f"{i % 300:0{(8, 64, 5, 1)[i % 4]}}", 1 + (i * 7919) % 3, float(i)) for i in range(1000)
    ]
    best: dict[str, tuple[str, int, float]] = {}
    for row in rows:
        if row[0] not in best or row[1] > best[row[0]][1]:
            best[row[0]] = row
    chunks = [
        table_of(record(key, attempt, cacc=cacc) for key, attempt, cacc in rows[i : i + 130])
        for i in range(0, len(rows), 130)
    ]
    return pa.concat_tables(chunks), sorted(best.values(), key=lambda row: row[2])


def test_the_latest_of_keys_of_any_length_in_any_order() -> None:
    table, wanted = many_attempts()
    assert attempts_of(latest(distinct(table))) == wanted
    assert attempts_of(latest(table.slice(17).combine_chunks().slice(3))) == attempts_of(
        latest(pa.Table.from_pylist(table.slice(20).to_pylist(), schema=SCHEMA))
    )


def test_keys_whose_numbers_agree_are_still_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    table, wanted = many_attempts()
    monkeypatch.setattr(
        "backdoor_core.ledger.numbered", lambda keys: np.zeros(len(keys), np.uint64)
    )
    assert attempts_of(latest(distinct(table))) == wanted


def test_equal_keys_have_equal_numbers_wherever_they_stand() -> None:
    texts = ["a" * 64, "", "b" * 8, "ü" * 32, "a" * 64, "b" * 8, "ü" * 32, "", "xyz"]
    alone = [numbered(pa.chunked_array([[text]])).item() for text in texts]
    whole = pa.chunked_array([pa.array(["x", *texts]).slice(1)])
    assert numbered(whole).tolist() == alone
    assert len(set(alone)) == len(set(texts))


def test_repeated_numbers_are_all_found() -> None:
    rng = np.random.default_rng(0)
    for numbers in (rng.integers(0, 10**6, 10**5), np.arange(5), np.array([], np.int64)):
        values, counts = np.unique(numbers, return_counts=True)
        wanted = np.flatnonzero(np.isin(numbers, values[counts > 1]))
        assert repeated(numbers).tolist() == wanted.tolist()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty output folder, on a local filesystem and on S3."""
    return str(tmp_path) if request.param == "local" else request.getfixturevalue("new_bucket")()


def test_a_ledger_reads_the_same_wherever_it_lies(place: str) -> None:
    ledger = Ledger(place)
    assert ledger.table().num_rows == 0
    for i in range(3):
        ledger.append([record(f"k{i}", cacc=i / 10)], {f"k{i}": [metric("cacc", i / 10)]})
    again = Ledger(place)
    assert keys(again.table()) == ["k0", "k1", "k2"]
    assert again.metrics_rows().num_rows == 3
    assert again.measured_keys() == {"k0", "k1", "k2"}
    assert [source.metadata.num_rows for source in again.opened(again.rows)] == [1, 1, 1]


def test_two_compactions_at_once_lose_nothing(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a writer and a reader; what is read is whole at every moment."""
    monkeypatch.setattr("backdoor_core.ledger.COMPACT_FILES", 12)
    written = [f"k{i:03}" for i in range(12)]
    first = Ledger(place)
    first.append([record("other")], {"other": [metric("cacc", 0.1)]})
    for key in written:
        first.append([record(key)], {key: [metric("cacc", 0.1)]})
    seen: list[list[str]] = []
    joined: list[int] = []
    late = [f"late{i}" for i in range(5)]

    def compact() -> None:
        joined.append(Ledger(place).compact())

    def read() -> None:
        for _ in range(5):
            seen.append(keys(Ledger(place).table()))

    def append() -> None:
        for key in late:
            Ledger(place).append([record(key)], {key: [metric("cacc", 0.1)]})

    threads = [threading.Thread(target=act) for act in (compact, compact, read, append)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(joined) >= 2 * 12
    for found in seen:
        assert set(found) >= {*written, "other"}
    after = Ledger(place)
    assert keys(after.table()) == sorted([*written, "other", *late])
    assert after.metrics_rows().num_rows == len(written) + 1 + len(late)
    assert after.notices == []
    assert len(after.rows.names()) <= 2 + len(late)


def test_storage_that_fails_damages_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that cannot read says so; it does not take a file for damaged and set it aside."""
    ledger = Ledger(tmp_path)
    ledger.append([record("k")], {"k": [metric("cacc", 0.1)]})
    monkeypatch.setenv("BACKDOOR_SWEEPS_STORAGE_PATIENCE_S", "0.1")

    class Failing:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("open_"):
                raise OSError(errno.EIO, "Input/output error")
            return getattr(working, name)

    for folder, act in ((ledger.rows, ledger.table), (ledger.metrics, ledger.measured_keys),
                        (ledger.rows, lambda: ledger.opened(ledger.rows))):  # fmt: skip
        working, folder.filesystem = folder.filesystem, Failing()
        with pytest.raises(StorageError, match="Input/output error"):
            act()
        folder.filesystem = working
    assert ledger.notices == []
    assert not list(tmp_path.rglob("damaged"))
    assert keys(ledger.table()) == ["k"]


def test_a_short_outage_is_not_even_noticed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(place)
    ledger.append([record("k")], {"k": [metric("cacc", 0.1)]})
    monkeypatch.setattr("backdoor_core.patience._FIRST_WAIT_S", 0.01)
    working, failed = ledger.rows.filesystem, []

    class Flaky:
        def __getattr__(self, name: str) -> Any:
            def act(*arguments: Any) -> Any:
                if len(failed) < 3:
                    failed.append(name)
                    raise ConnectionResetError("Connection reset by peer")
                return getattr(working, name)(*arguments)

            return act

    ledger.rows.filesystem = Flaky()
    assert keys(ledger.table()) == ["k"]
    assert len(failed) == 3
    ledger.append([record("later")], {})
    assert ledger.notices == []
    assert keys(Ledger(place).table()) == ["k", "later"]

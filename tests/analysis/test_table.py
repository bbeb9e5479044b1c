"""Reading ledgers: one row a key, old and new schemas, selections."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

import analysis
from backdoor_core.errors import ConfigError, DataError, StorageError
from backdoor_core.ledger import Ledger
from backdoor_core.record import SCHEMA, table_of


def test_reads_every_column_of_the_schema_in_order(sweep_out: Path) -> None:
    results = analysis.load(sweep_out)
    assert results.table.schema.names == SCHEMA.names
    assert len(results) == 168
    assert results.folders == (str(sweep_out),)


def test_the_latest_attempt_of_a_key_is_its_row(tmp_path: Path, record, blank, write) -> None:
    first = blank("failed", key="k" * 64, error_class="oom")
    second = record(key="k" * 64, attempt=2, cacc=0.7)
    results = analysis.load(write(tmp_path, [first, second]))
    assert results.table["cacc"].to_pylist() == [0.7]
    assert results.metrics["value"].to_pylist() == [0.7]
    assert len(results.failed()) == 0


def test_several_folders_read_as_one(tmp_path: Path, record, write) -> None:
    one = write(tmp_path / "a", [record(seed=0), record(seed=1)])
    other = write(tmp_path / "b", [record(seed=1), record(seed=2)])
    results = analysis.load([one, str(other)])
    assert sorted(results.table["seed"].to_pylist()) == [0, 1, 2]
    assert results.metrics.num_rows == 3


def test_ok_failed_and_where_select_rows_and_their_metrics(sweep_out: Path) -> None:
    results = analysis.load(sweep_out)
    assert len(results.ok()) == 165
    assert len(results.failed()) == 2
    assert len(results.where(status="skipped")) == 1
    some = results.ok().where(defense="onion", poison_rate=[0.01, 0.1])
    assert len(some) == 12
    assert some.metrics.num_rows == 12
    assert len(results.where(poison_rate=None)) == 24
    assert len(results.where(flags="attack_did_not_take")) == 48
    assert len(results) == 168


def test_where_names_the_nearest_column(sweep_out: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'defense'"):
        analysis.load(sweep_out).where(defence="onion")


def test_a_pandas_frame_has_the_same_rows(sweep_out: Path) -> None:
    frame = analysis.load(sweep_out).to_pandas()
    assert len(frame) == 168
    assert set(frame["status"]) == {"ok", "failed", "skipped"}


def test_a_folder_without_a_ledger_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="expected a folder ledger/"):
        analysis.load(tmp_path)
    with pytest.raises(ConfigError, match="no output folder"):
        analysis.load([])


def test_a_newer_schema_is_refused_even_where_a_column_changed_its_type(
    tmp_path: Path, record
) -> None:
    table = table_of([record()]).drop_columns(["cacc", "schema_version"])
    table = table.append_column("cacc", pa.array([["many", "values"]]))
    table = table.append_column("schema_version", pa.array([99], pa.int32()))
    Ledger(tmp_path).rows.write_table("new.parquet", table)
    with pytest.raises(DataError, match="schema version 99"):
        analysis.load(tmp_path)


def test_columns_that_an_older_file_lacks_are_null(tmp_path: Path, record) -> None:
    table = table_of([record()]).drop_columns(["spec", "asr_max", "synthetic", "tuning_mode"])
    Ledger(tmp_path).rows.write_table("old.parquet", table)
    results = analysis.load(tmp_path)
    assert results.table["asr_max"].to_pylist() == [None]
    assert results.table.schema.names == SCHEMA.names


def test_a_file_that_no_sweep_wrote_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).rows.write_table("alien.parquet", pa.table({"x": [1]}))
    with pytest.raises(DataError, match="not written by a sweep"):
        analysis.load(tmp_path)


def test_a_damaged_file_is_told_and_the_rest_is_read(tmp_path: Path, record, write) -> None:
    out = write(tmp_path, [record()])
    (out / "ledger" / "broken.parquet").write_bytes(b"PAR1")
    results = analysis.load(out)
    assert len(results) == 1
    assert any("broken.parquet" in notice for notice in results.notices)


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import sys, analysis; "
        "bad = {'torch', 'ray', 'pyarrow', 'plotly', 'pandas'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_module_loads_torch_or_ray() -> None:
    code = (
        "import sys, analysis.report; "
        "bad = {'torch', 'ray', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_table_is_public_and_other_names_are_not() -> None:
    assert analysis.ResultTable.__name__ == "ResultTable"
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = analysis.nothing_like_it

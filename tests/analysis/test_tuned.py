"""Reading the tuning tables."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

import analysis
from analysis.tuned import tuning_rows
from backdoor_core.errors import DataError
from backdoor_core.folder import Folder
from backdoor_core.record import TUNING_SCHEMA
from backdoor_core.spec import Tuning


def _write(
    out: Path, name: str, rows: list[dict], schema: pa.Schema | None = TUNING_SCHEMA
) -> None:
    table = pa.Table.from_pylist(rows, schema=schema)
    Folder(out).child("tuning").make().write_table(name, table)


def test_nothing_was_searched(tmp_path: Path, record, write) -> None:
    out = write(tmp_path, [record()])
    assert tuning_rows(analysis.load(out)) == []
    assert tuning_rows(out) == []


def test_rows_of_several_files_and_folders(tmp_path: Path, record, write) -> None:
    first, second = (write(tmp_path / name, [record(seed=n)]) for n, name in enumerate("ab"))
    _write(first, "x.parquet", [{"study": "s", "number": 1}, {"study": "s", "number": 0}])
    again = {"study": "s", "number": 0, "seconds": 2.0, "finished_at": 5.0}
    _write(second, "y.parquet", [again])
    _write(second, "z.parquet", [{"study": "t", "number": 0}])
    found = tuning_rows(analysis.load([first, second]))
    assert [(row["study"], row["number"]) for row in found] == [("s", 0), ("s", 1), ("t", 0)]
    assert found[0]["seconds"] == 2.0, "the later row of one study and number counts"
    assert tuning_rows([first, second]) == found
    assert [row["study"] for row in tuning_rows(second)] == ["s", "t"]
    assert tuning_rows([second, first]) == found, "whichever folder is named first"


def _row(study: str, number: int, finished_at: float, **changes: object) -> dict:
    first: dict = {
        "study": study, "number": number, "sweep": "made-up", "task": "sst2", "task_settings": "{}",
        "plm": "bert", "plm_settings": "{}", "training_settings": '{"epochs":3}', "defense": "onion",
        "attack": "badnets", "attack_settings": "{}", "seed": 0, "tuning_mode": "oracle",
        "tuning": TUNING.model_dump_json(), "finished_at": finished_at,
    }  # fmt: skip
    return first | changes


TUNING = Tuning(mode="oracle", trials=2, space={"percentile": {"low": 0, "high": 9}})


def test_of_studies_that_chose_the_same_the_last_counts(tmp_path: Path) -> None:
    """Under other code a study has another key, and all else alike."""
    rows = [_row("z-old", n, 1.0 + n) for n in (0, 1, 2)]
    rows += [_row("a-new", n, 3.5 + n) for n in (0, 1)]
    others: list[dict[str, object]] = [
        {"seed": 1}, {"attack": "style"}, {"sweep": "b"}, {"plm": "roberta"},
        {"tuning": TUNING.model_copy(update={"trials": 9}).model_dump_json()}, {"tuning": None},
    ]  # fmt: skip
    rows += [_row(f"other-{i}", 0, 0.5, **changes) for i, changes in enumerate(others)]
    _write(tmp_path, "x.parquet", rows)
    found = tuning_rows(tmp_path)
    own = [(row["study"], row["number"]) for row in found if "other" not in row["study"]]
    assert own == [("a-new", 0), ("a-new", 1)]
    assert len(found) == 2 + len(others)


def test_studies_of_entries_that_differ_in_what_is_not_searched_all_count(
    tmp_path: Path, record, write
) -> None:
    """`{name: onion, width: [1, 2], tune: [percentile]}`: two studies for each cell, and a repeat of both."""
    tuned = {"defense": "onion", "tuning_mode": "oracle", "seed": 0}
    tuned["tuning"] = TUNING.model_copy(update={"tried": 2}).model_dump_json()
    rows = [
        record(**tuned, defense_settings={"width": width, "percentile": found})
        for width, found in ((1, 3), (2, 4), (2, 5))
    ]
    out = write(tmp_path, rows)
    names = ("old-1", "old-2", "new-1", "new-2")
    _write(out, "x.parquet", [_row(name, 0, float(n)) for n, name in enumerate(names)])
    assert [row["study"] for row in tuning_rows(out)] == ["new-1", "new-2"]
    assert tuning_rows(analysis.load(out).where(defense="none")) == tuning_rows(out)


def test_columns_that_an_older_file_lacks_are_null(tmp_path: Path) -> None:
    row = {"study": "s", "number": 3, "settings": "{}", "state": "complete"}
    _write(tmp_path, "x.parquet", [row], schema=None)
    (found,) = tuning_rows(tmp_path)
    assert (found["number"], found["asr"], found["feasible"]) == (3, None, None)
    assert set(found) == set(TUNING_SCHEMA.names)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "x.parquet", [{"key": "k", "study": "s"}], schema=None)
    with pytest.raises(DataError, match=r"lacks number, settings, state\. Move it out"):
        tuning_rows(tmp_path)
    row = {"study": "s", "number": "three", "settings": "{}", "state": "complete"}
    _write(tmp_path, "x.parquet", [row], schema=None)
    with pytest.raises(DataError, match=r"tuning/x\.parquet is no ledger of this project"):
        tuning_rows(tmp_path)


def test_a_damaged_file_is_set_aside(tmp_path: Path) -> None:
    row = {"study": "s", "number": 3, "settings": "{}", "state": "complete"}
    _write(tmp_path, "x.parquet", [row])
    (tmp_path / "tuning" / "y.parquet").write_bytes(b"PAR1 cut off")
    assert [found["number"] for found in tuning_rows(tmp_path)] == [3]
    assert not (tmp_path / "tuning" / "y.parquet").exists()

"""What searches for settings tried: the tuning table, `<out>/tuning/*.parquet`, one row a tried setting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa

from analysis.table import ResultTable
from backdoor_core.errors import DataError
from backdoor_core.ledger import conformed
from backdoor_core.store import Folder

FOLDER = "tuning"
TUNING_SCHEMA = pa.schema(
    [
        pa.field("study", pa.string()),
        pa.field("number", pa.int32()),
        *(
            pa.field(name, pa.string())
            for name in (
                "sweep", "task", "task_settings", "plm", "plm_settings", "attack", "attack_settings",
                "defense", "training_settings",
            )
        ),
        pa.field("seed", pa.int64()),
        *(pa.field(name, pa.string()) for name in ("tuning_mode", "tuning", "settings", "state")),
        *(pa.field(name, pa.float64()) for name in ("asr", "cacc_drop", "frr", "strength")),
        pa.field("feasible", pa.bool_()),
        pa.field("seconds", pa.float64()),
        pa.field("error", pa.string()),
        pa.field("finished_at", pa.float64()),
    ]
)  # fmt: skip
"""`settings` is JSON of the searched settings; `state` is complete, failed or pruned; numbers are of the tune
split, and null where the chooser may not know them."""


def tuning_rows(source: ResultTable | str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """The rows of the tuning tables of a sweep's folders, by sweep, study and number; none where nothing was searched.

    `source` is a result table (its folders are read), an output folder, or several. Of rows that are
    equal in these the one that finished last counts. Raises DataError for a file that is no tuning table.
    """
    if isinstance(source, ResultTable):
        places: Iterable[str | Path] = source.folders
    else:
        places = [source] if isinstance(source, str | Path) else source
    rows: list[dict[str, Any]] = []
    for place in places:
        folder = Folder(place).child(FOLDER)
        for name in folder.names(".parquet"):
            rows += _read(folder, name)
    rows.sort(key=lambda row: row["finished_at"] or 0.0)
    latest = {(row["sweep"] or "", row["study"], row["number"]): row for row in rows}
    return [latest[place] for place in sorted(latest)]


def _read(folder: Folder, name: str) -> list[dict[str, Any]]:
    table = folder.read_table(name)
    if missing := {"study", "number", "settings", "state"} - set(table.column_names):
        raise DataError(
            f"{folder.url}/{name} is no tuning table: it lacks {', '.join(sorted(missing))}. Move it out of "
            "that folder"
        )
    try:
        return list(conformed(table, TUNING_SCHEMA).to_pylist())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"{folder.url}/{name} is no tuning table: {error}") from error

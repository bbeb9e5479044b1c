"""What searches for settings tried: the tuning table, `<out>/tuning/*.parquet`, one row a tried setting."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from analysis.table import ResultTable
from backdoor_core.errors import DataError, StorageError
from backdoor_core.ledger import Ledger


def tuning_rows(source: ResultTable | str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """The rows of the tuning tables of a sweep's folders, by sweep, study and number; none where nothing was searched.

    Columns are those of `record.TUNING_SCHEMA`. `source` is a result table (its folders are read), an output folder, or
    several. Of equal rows in different folders the one that finished last counts. Raises DataError for a
    file that is no tuning table.
    """
    if isinstance(source, ResultTable):
        places: Iterable[str | Path] = source.folders
    else:
        places = [source] if isinstance(source, str | Path) else source
    rows: list[dict[str, Any]] = []
    for place in places:
        rows += _tried(Ledger(place))
    rows.sort(key=lambda row: row["finished_at"] or 0.0)
    latest = {(row["sweep"] or "", row["study"], row["number"]): row for row in rows}
    return [latest[place] for place in sorted(latest)]


def _tried(ledger: Ledger) -> list[dict[str, Any]]:
    """The settings tried in one folder. Foreign files are refused by name, before their columns are used."""
    names = ledger.tuning.names(".parquet")
    for name in names:
        try:
            columns = ledger.tuning.read_table(name).column_names
        except StorageError:
            continue  # a damaged file: the ledger sets it aside
        if missing := {"study", "number", "settings", "state"} - set(columns):
            raise DataError(
                f"{ledger.tuning.url}/{name} is no tuning table: it lacks "
                f"{', '.join(sorted(missing))}. Move it out of that folder"
            )
    return list(ledger.tried().to_pylist()) if names else []

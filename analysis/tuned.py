"""What searches for settings tried: the tuning table, `<out>/tuning/*.parquet`, one row a tried setting."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from analysis.columns import SETUP, fixed_settings, search_of
from analysis.table import ResultTable, loaded
from backdoor_core.errors import DataError, StorageError
from backdoor_core.ledger import Ledger

_OF_A_SEARCH = (*SETUP, "defense", "tuning_mode", "seed")
_IDENTITY = ("sweep", *_OF_A_SEARCH, "attack", "attack_settings", "tuning")
"""The columns that say what a study chose for."""


def tuning_rows(source: ResultTable | str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """The rows of the tuning tables of a sweep's folders, by sweep, study and number; none where nothing was searched.

    Columns are those of `record.TUNING_SCHEMA`. `source` is a result table (its folders are read), an output folder, or
    several. Of equal rows in different folders the one that finished last counts, and of studies that chose the same
    (as the code has changed since the first) the one that did. Raises DataError for a file that is no tuning table.
    """
    if isinstance(source, ResultTable):
        places: Iterable[str | Path] = source.folders
    else:
        places = [source] if isinstance(source, str | Path) else list(source)
    rows: list[dict[str, Any]] = []
    for place in places:
        rows += _tried(Ledger(place))
    rows.sort(key=lambda row: row["finished_at"] or 0.0)
    latest = {(row["sweep"] or "", row["study"], row["number"]): row for row in rows}
    past = _superseded(latest.values(), source if isinstance(source, ResultTable) else places)
    return [latest[place] for place in sorted(latest) if place[:2] not in past]


def _superseded(
    rows: Iterable[Mapping[str, Any]], source: ResultTable | Iterable[str | Path]
) -> set[tuple[str, str]]:
    """The studies (sweep, study) that a later one replaced: all that their rows say of what they chose is the same.

    Studies of one sweep also say the same where a defense stands there with several values of a setting that is not
    searched; the ledger tells how many there are, and so many count. Rows without `tuning` tell too little.
    """
    ends: dict[tuple[Any, ...], dict[tuple[str, str], float]] = defaultdict(dict)
    for row in rows:
        if row["tuning"] is not None:
            study = row["sweep"] or "", row["study"]
            same = ends[tuple(row[name] for name in _IDENTITY)]
            same[study] = max(same.get(study, 0.0), row["finished_at"] or 0.0)
    rivals = {what: same for what, same in ends.items() if len(same) > 1}
    if not rivals:
        return set()
    kept = _entries(source)
    past: set[tuple[str, str]] = set()
    for what, same in rivals.items():
        named = dict(zip(_IDENTITY, what, strict=True))
        count = max(1, len(kept.get(_search(named), ())))
        past.update(sorted(same, key=lambda study: (same[study], study))[:-count])
    return past


def _search(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return *(row[name] for name in _OF_A_SEARCH), search_of(row["tuning"])


def _entries(source: ResultTable | Iterable[str | Path]) -> dict[tuple[Any, ...], set[str | None]]:
    """The settings that each search left as they were, by the ledger; none where there is no ledger."""
    try:
        every = (
            replace(source, conditions=()) if isinstance(source, ResultTable) else loaded(source)
        )
    except StorageError:
        return {}
    columns = (*_OF_A_SEARCH, "tuning", "defense_settings")
    found: dict[tuple[Any, ...], set[str | None]] = defaultdict(set)
    distinct = every.columns(*columns).group_by(list(columns)).aggregate([])
    for row in distinct.to_pylist():
        if row["tuning"] is not None:
            found[_search(row)].add(fixed_settings(row["defense_settings"], row["tuning"]))
    return found


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
                f"{ledger.tuning.located(name)} is no tuning table: it lacks "
                f"{', '.join(sorted(missing))}. Move it out of that folder"
            )
    return list(ledger.tried().to_pylist()) if names else []

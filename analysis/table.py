"""The results of one or more sweeps as a frozen value over one Arrow table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from backdoor_core.errors import ConfigError, DataError, StorageError, unknown_name
from backdoor_core.ledger import Ledger, distinct, latest
from backdoor_core.record import METRICS_SCHEMA, SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True, eq=False)
class ResultTable:
    """Finished trials, one row a key (its latest attempt), with the columns of `record.SCHEMA`.

    `folders` are where they were read from, `notices` what the reader had to set aside. Selections give a
    new value and never alter this one.
    """

    table: pa.Table
    all_metrics: pa.Table
    folders: tuple[str, ...] = ()
    notices: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def metrics(self) -> pa.Table:
        """The long table (`record.METRICS_SCHEMA`) of the trials that are selected."""
        keys = pa.array(self.table["key"].to_pylist(), pa.string())
        return self.all_metrics.filter(pc.is_in(self.all_metrics["key"], value_set=keys))

    def ok(self) -> ResultTable:
        """The trials that have numbers."""
        return self.where(status="ok")

    def failed(self) -> ResultTable:
        """The trials whose latest attempt failed; skipped ones are not among them."""
        return self.where(status="failed")

    def where(self, **columns: Any) -> ResultTable:
        """The trials whose columns hold the values given.

        A list, tuple or set means any of its values, None means null, and for `flags` a value means "is among
        the row's flags". Raises ConfigError for a column that there is not.
        """
        table = self.table
        for name, wanted in columns.items():
            if name not in table.column_names:
                raise ConfigError(unknown_name("column", name, table.column_names))
            choices = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
            kept = [_holds(value, choices) for value in table[name].to_pylist()]
            table = table.filter(pa.array(kept, pa.bool_()))
        return replace(self, table=table)

    def rows(self) -> list[dict[str, Any]]:
        """The trials as dictionaries, column by name."""
        return list(self.table.to_pylist())

    def to_pandas(self) -> Any:
        """The trials as a pandas DataFrame."""
        return self.table.to_pandas()


def _holds(value: Any, choices: Iterable[Any]) -> bool:
    if isinstance(value, list):
        return any(choice in value for choice in choices)
    return value in choices


def loaded(path_or_paths: str | Path | Iterable[str | Path]) -> ResultTable:
    """See `analysis.load`."""
    paths = [path_or_paths] if isinstance(path_or_paths, str | Path) else list(path_or_paths)
    if not paths:
        raise ConfigError(
            "no output folder was given; name at least one that `sweeps run` wrote to"
        )
    ledgers = [_ledger(path) for path in paths]
    tables = [ledger.table() for ledger in ledgers]
    table = latest(distinct(pa.concat_tables(tables)))
    metrics = pa.concat_tables([ledger.metrics_rows() for ledger in ledgers])
    pairs = table.select(["key", "attempt"])
    joined = metrics.join(pairs, keys=["key", "attempt"], join_type="inner")
    return ResultTable(
        table=table,
        all_metrics=distinct(joined.select(METRICS_SCHEMA.names)),
        folders=tuple(ledger.out.url for ledger in ledgers),
        notices=tuple(notice for ledger in ledgers for notice in ledger.notices),
    )


def _ledger(path: str | Path) -> Ledger:
    ledger = Ledger(path)
    if not ledger.out.exists("ledger"):
        raise StorageError(
            f"no results in {ledger.out.url}: expected a folder ledger/ inside it, as `sweeps run` leaves. "
            "Give the output folder of a sweep (its `out:`), not the ledger itself"
        )
    _refuse_foreign(ledger)
    return ledger


def _refuse_foreign(ledger: Ledger) -> None:
    """Looks at each file before its columns are used, since a newer version may have changed their types."""
    for name in ledger.rows.names(".parquet"):
        place = f"{ledger.out.url}/ledger/{name}"
        try:
            table = ledger.rows.read_table(name)
        except StorageError:
            continue  # a damaged file: the ledger sets it aside and says so
        if not {"key", "status", "schema_version"} <= set(table.column_names):
            raise DataError(
                f"{place} was not written by a sweep: move it out of the ledger's folder"
            )
        version = pc.max(table["schema_version"]).as_py()
        if version is not None and version > SCHEMA_VERSION:
            raise DataError(
                f"{place} has schema version {version}; this version of the project reads up to "
                f"{SCHEMA_VERSION}. Install the version that wrote it, or a later one"
            )

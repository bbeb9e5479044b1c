"""The record of finished trials: append-only Parquet, one file a job, unique by (key, attempt).

`<out>/ledger/*.parquet` holds rows with `record.SCHEMA`, `<out>/metrics/*.parquet` the long table, and
`<out>/tuning/*.parquet` the settings that searches tried. A file is
published in one step, so a kill at any moment leaves whole files only; one that is damaged all the same
(a truncated copy, say) is set aside and its trials count as not done.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from backdoor_core.errors import DataError, StorageError
from backdoor_core.record import (
    METRICS_SCHEMA,
    SCHEMA,
    TUNING_SCHEMA,
    Metric,
    TrialRecord,
    metrics_table,
    table_of,
)
from backdoor_core.store import Folder

COMPACT_FILES = 64
READ_TRIES = 10
"""How often a reader starts anew where a compaction elsewhere takes files away while it reads."""


class Ledger:
    """The ledger in an output folder (a local path or a URL)."""

    def __init__(self, out: str | Path) -> None:
        self.out = Folder(out)
        self.rows = self.out.child("ledger")
        self.metrics = self.out.child("metrics")
        self.tuning = self.out.child("tuning")
        self.notices: list[str] = []
        """What was set aside while reading, for the user."""

    def append(
        self, records: Sequence[TrialRecord], metrics: Mapping[str, Iterable[Metric]]
    ) -> None:
        """Publishes the rows of one job; `metrics` maps a record's key to its long rows.

        The metrics are published first: a row of the ledger never lacks them.
        """
        if not records:
            return
        name = f"{records[0].key[:16]}-{uuid.uuid4().hex[:8]}.parquet"
        long = [
            metrics_table(record.key, record.attempt, metrics.get(record.key, ()))
            for record in records
        ]
        self.metrics.write_table(name, pa.concat_tables(long))
        self.rows.write_table(name, table_of(records))

    def append_tried(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Publishes settings that a study has tried: rows of `record.TUNING_SCHEMA`."""
        if rows:
            name = f"{rows[0]['study'][:16]}-{uuid.uuid4().hex[:8]}.parquet"
            self.tuning.write_table(name, pa.Table.from_pylist(list(rows), schema=TUNING_SCHEMA))

    def tried(self) -> pa.Table:
        """All settings that studies have tried, each (study, number) once, in that order."""
        table = self._concatenated(self.tuning, TUNING_SCHEMA)
        return table.sort_by([("study", "ascending"), ("number", "ascending")])

    def table(self) -> pa.Table:
        """All rows, the latest attempt of each key. Damaged files are set aside (see `notices`)."""
        return latest(self._concatenated(self.rows, SCHEMA))

    def measured_keys(self) -> frozenset[str]:
        """The keys that have long rows. A finished trial without them lost its file, and is not done."""
        return frozenset(self._concatenated(self.metrics, METRICS_SCHEMA)["key"].to_pylist())

    def metrics_rows(self) -> pa.Table:
        """The long table, of the latest attempt of each key."""
        table = self._concatenated(self.metrics, METRICS_SCHEMA)
        wanted = self.table().select(["key", "attempt"])
        joined = table.join(wanted, keys=["key", "attempt"], join_type="inner")
        return joined.select(METRICS_SCHEMA.names)

    def compact(self) -> None:
        """Joins the files into one where there are many. Safe at any moment: rows are only ever repeated."""
        for folder, schema in (
            (self.metrics, METRICS_SCHEMA),
            (self.rows, SCHEMA),
            (self.tuning, TUNING_SCHEMA),
        ):
            names = folder.names(".parquet")
            if len(names) < COMPACT_FILES:
                continue
            table = self._concatenated(folder, schema)
            folder.write_table(f"compact-{uuid.uuid4().hex}.parquet", table)
            for name in names:
                folder.remove(name)

    def _concatenated(self, folder: Folder, schema: pa.Schema) -> pa.Table:
        for _ in range(READ_TRIES):
            tables = self._read(folder, schema)
            if tables is not None:
                break
        else:
            raise StorageError(f"{folder.url}: files vanish while they are read; try again")
        if not tables:
            return schema.empty_table()
        return distinct(pa.concat_tables(tables))

    def _read(self, folder: Folder, schema: pa.Schema) -> list[pa.Table] | None:
        """All files' rows; None where one vanished: a compaction elsewhere moved its rows to a new file."""
        tables = []
        for name in folder.names(".parquet"):
            try:
                table = folder.read_table(name)
            except StorageError as error:
                if not folder.exists(name):
                    return None
                aside = folder.set_aside(name)
                self.notices.append(
                    f"{folder.url}/{name} is damaged and was set aside as {aside}; "
                    f"its trials run again ({error.__cause__})"
                )
                continue
            try:
                tables.append(conformed(table, schema))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{folder.url}/{name} is no ledger of this project: {error}"
                ) from error
        return tables


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with exactly the columns of `schema`; those that an older file lacks are null."""
    columns = [
        table[field.name].cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


_IDENTITIES: Mapping[str, list[str]] = {
    "metric": ["key", "attempt", "split", "metric", "trigger", "target"],
    "study": ["study", "number"],
    "key": ["key", "attempt"],
}
"""What makes a row of each table one row, by a column that tells the tables apart."""


def distinct(table: pa.Table) -> pa.Table:
    """The table without rows that a compaction left twice; of a point that was tried again, the last row."""
    if table.num_rows == 0:
        return table
    keys = next(keys for column, keys in _IDENTITIES.items() if column in table.column_names)
    if "study" in keys:
        table = table.sort_by([("finished_at", "descending")])  # a point that was tried again
    numbered = table.append_column("__row", pa.array(range(table.num_rows), pa.int64()))
    firsts = numbered.group_by(keys).aggregate([("__row", "min")])
    return table.take(_sorted(firsts["__row_min"]))


def _sorted(numbers: pa.ChunkedArray) -> pa.Array:
    whole = numbers.combine_chunks()
    return whole.take(pc.array_sort_indices(whole))


def latest(table: pa.Table) -> pa.Table:
    """One row a key: that of its highest attempt."""
    if table.num_rows == 0:
        return table
    highest = table.group_by("key").aggregate([("attempt", "max")])
    wanted = pa.table({"key": highest["key"], "attempt": highest["attempt_max"]})
    numbered = table.select(["key", "attempt"]).append_column(
        "__row", pa.array(range(table.num_rows), pa.int64())
    )
    rows = numbered.join(wanted, keys=["key", "attempt"], join_type="inner")["__row"]
    return table.take(_sorted(rows))

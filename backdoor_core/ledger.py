"""The record of finished trials: append-only Parquet, one file a job, unique by (key, attempt).

`<out>/ledger/*.parquet` holds rows with `record.SCHEMA`, `<out>/metrics/*.parquet` the long table, and
`<out>/tuning/*.parquet` the settings that searches tried. A file is
published in one step, so a kill at any moment leaves whole files only; one that is damaged all the same
(a truncated copy, say) is set aside and its trials count as not done.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backdoor_core.errors import DamagedFileError, DataError, StorageError
from backdoor_core.folder import Folder
from backdoor_core.open_table import OpenTable
from backdoor_core.record import (
    METRICS_SCHEMA,
    SCHEMA,
    TUNING_SCHEMA,
    Metric,
    TrialRecord,
    metrics_table,
    table_of,
)

COMPACT_FILES = 64
READ_TRIES = 10
"""How often a reader starts anew where a compaction elsewhere takes files away while it reads."""
_LOCAL_THREADS = 4
_REMOTE_THREADS = 16
"""Files that are read at once: on an object store each waits for an answer most of its time."""
_WORD_BYTES = 8
_GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, odd: its powers spread the words of a key over 64 bits."""
_TABLE_BITS = 22
_STEP_ROWS = 2**18
T = TypeVar("T")
Numbers = np.ndarray[Any, np.dtype[Any]]


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

    def compact(self) -> int:
        """Joins the files into one where there are many; returns how many files were joined.

        Safe at any moment, beside readers, writers and other compactions: what was read is published again before its
        files are removed, so rows are only ever repeated.
        """
        joined = 0
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
            with ThreadPoolExecutor(_threads(folder)) as pool:
                list(pool.map(folder.remove, names))
            joined += len(names)
        return joined

    def opened(self, folder: Folder) -> list[OpenTable]:
        """The files of `rows` or `metrics`, open, for who reads only some columns; damaged ones are set aside."""
        return self._each(folder, lambda name: OpenTable(folder, name))

    def _concatenated(self, folder: Folder, schema: pa.Schema) -> pa.Table:
        def read(name: str) -> pa.Table:
            table = folder.read_table(name)
            try:
                return conformed(table, schema)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(
                    f"{folder.located(name)} is no ledger of this project: {error}"
                ) from error

        tables = self._each(folder, read)
        return distinct(pa.concat_tables(tables)) if tables else schema.empty_table()

    def _each(self, folder: Folder, read: Callable[[str], T]) -> list[T]:
        """What `read` makes of each file. Files that vanish are no matter: it starts anew."""
        for _ in range(READ_TRIES):
            found = self._tried(folder, read)
            if found is not None:
                return found
        raise StorageError(f"{folder.url}: files vanish while they are read; try again")

    def _tried(self, folder: Folder, read: Callable[[str], T]) -> list[T] | None:
        """None where a file vanished: a compaction elsewhere moved its rows to a new file."""
        names = folder.names(".parquet")
        found: list[T] = []
        pool = ThreadPoolExecutor(_threads(folder))
        try:
            for name, one in zip(names, pool.map(_caught(read), names), strict=True):
                if not isinstance(one, StorageError):
                    found.append(one)
                elif not folder.exists(name):
                    return None
                elif isinstance(one, DamagedFileError):
                    self._set_aside(folder, name, one)
                else:  # storage that fails says nothing of the file
                    raise one
        finally:
            pool.shutdown(cancel_futures=True)
        return found

    def _set_aside(self, folder: Folder, name: str, error: DamagedFileError) -> None:
        aside = folder.set_aside(name)
        self.notices.append(
            f"{folder.located(name)} is damaged and was set aside as {aside}; "
            f"its trials run again ({error.__cause__})"
        )


def _caught(read: Callable[[str], T]) -> Callable[[str], T | StorageError]:
    def caught(name: str) -> T | StorageError:
        try:
            return read(name)
        except StorageError as error:
            return error

    return caught


def _threads(folder: Folder) -> int:
    return _LOCAL_THREADS if folder.is_local else _REMOTE_THREADS


def conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with exactly the columns of `schema`; those that an older file lacks are null."""
    if table.schema.equals(schema):
        return table
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
        table = table.sort_by([("finished_at", "descending")])
    elif len(repeated(numbered(table["key"]))) == 0:
        return table
    firsts = _with_places(table.select(keys)).group_by(keys).aggregate([("__row", "min")])
    return table.take(np.sort(firsts["__row_min"].to_numpy()))


def latest(table: pa.Table) -> pa.Table:
    """One row a key: that of its highest attempt."""
    known = pc.and_(table["key"].is_valid(), table["attempt"].is_valid())
    table = table.filter(known)
    several = np.zeros(table.num_rows, bool)
    several[repeated(numbered(table["key"]))] = True
    if not several.any():
        return table
    kept = ~several
    some = table.select(["key", "attempt"]).filter(pa.array(several))
    kept[np.flatnonzero(several)[last_attempts(some)]] = True
    return table.filter(pa.array(kept))


def last_attempts(table: pa.Table) -> Numbers:
    """The places of the rows with the highest attempt of each key; of several such rows the first one's."""
    rows = _with_places(table.select(["key", "attempt"]))
    highest = rows.group_by("key").aggregate([("attempt", "max")])
    joined = rows.join(highest, "key", join_type="inner")
    last = joined.filter(pc.equal(joined["attempt"], joined["attempt_max"]))
    firsts = last.group_by("key").aggregate([("__row", "min")])
    places: Numbers = np.sort(firsts["__row_min"].to_numpy())
    return places


def repeated(numbers: Numbers) -> Numbers:
    """The places, ascending, of the integers that stand more than once."""
    ordered = np.sort(numbers)
    again = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if len(again) == 0:
        return np.empty(0, np.int64)
    # A table of bits says for most numbers that they stand once; the few others are looked up.
    perhaps = np.zeros(2**_TABLE_BITS, bool)
    perhaps[_spread(again)] = True
    steps = range(0, len(numbers), _STEP_ROWS)
    near = np.concatenate(
        [np.flatnonzero(perhaps[_spread(numbers[i : i + _STEP_ROWS])]) + i for i in steps]
    )
    found = np.minimum(np.searchsorted(again, numbers[near]), len(again) - 1)
    places: Numbers = near[again[found] == numbers[near]]
    return places


def _spread(numbers: Numbers) -> Numbers:
    mixed = numbers.astype(np.uint64) * np.uint64(_GOLDEN)
    places: Numbers = (mixed >> np.uint64(64 - _TABLE_BITS)).view(np.int64)
    return places


def numbered(keys: pa.ChunkedArray, factor: int = _GOLDEN) -> Numbers:
    """A 64-bit number for each key: equal for equal keys, and nearly always another for another key.

    With it the few keys that stand more than once are found among millions without comparing texts. Numbers made with
    another `factor` (odd) have nothing to do with these.
    """
    found = [np.empty(0, np.uint64)]
    for chunk in keys.chunks:
        bytes_of_each = pc.binary_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
        alike = len(chunk) > 0 and bytes_of_each.min() == bytes_of_each.max()
        widths = bytes_of_each[:1] if alike else np.unique(bytes_of_each)
        numbers = np.zeros(len(chunk), np.uint64)
        for width in widths[widths > 0].tolist():
            if len(widths) == 1:
                numbers = _hashed(chunk, width, factor)
            else:
                places = np.flatnonzero(bytes_of_each == width)
                numbers[places] = _hashed(chunk.take(places), width, factor)
        found.append(numbers)
    return np.concatenate(found)


def _hashed(keys: pa.Array, width: int, factor: int) -> Numbers:
    """The number of each of some texts that all have `width` bytes."""
    _, places, texts = keys.buffers()
    first = int(np.frombuffer(places, np.int32)[keys.offset])
    letters = np.frombuffer(texts, np.uint8, len(keys) * width, first).reshape(len(keys), width)
    if width % _WORD_BYTES:
        letters = np.pad(letters, ((0, 0), (0, -width % _WORD_BYTES)))
    words = letters.view(np.uint64)
    powers = [pow(factor, i + 1, 2**64) for i in range(words.shape[1])]
    numbers: Numbers = words @ np.array(powers, np.uint64)
    return numbers


def _with_places(table: pa.Table) -> pa.Table:
    return table.append_column("__row", pa.array(np.arange(table.num_rows)))

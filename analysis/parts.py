"""Row groups of ledgers' files, and how some of their columns are read.

A part is one row group; a block is neighbouring parts that are read in one go, by one thread of several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backdoor_core.errors import DataError
from backdoor_core.ledger import conformed
from backdoor_core.open_table import OpenTable
from backdoor_core.record import SCHEMA

Numbers = np.ndarray[Any, np.dtype[Any]]
T = TypeVar("T")
_BLOCK_ROWS = 2**18
_BATCH_ROWS = 2**16
_MOST_THREADS = 8
_CODED = pa.dictionary(pa.int32(), pa.string())
_NOT_OURS = (pa.ArrowInvalid, pa.ArrowNotImplementedError)


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A row group of a file, or some rows of a table in memory (then `group` is 0)."""

    source: OpenTable | pa.Table
    group: int
    rows: int

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Columns with their types of `SCHEMA`; one that an older file lacks is null. Raises DataError."""
        return self._shaped(self._taken(columns), columns)

    def batches(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """As `read`, in pieces that are small enough for long texts."""
        if isinstance(self.source, pa.Table) or not set(columns) <= set(self.source.schema.names):
            yield self.read(columns)
            return
        for table in self.source.batches(self.group, columns, _BATCH_ROWS):
            yield self._shaped(table, columns)

    def coded(self, columns: Sequence[str]) -> pa.Table:
        """As `read`, but texts are dictionary-encoded, as they lie in the file."""
        table = self._taken(columns, [name for name in columns if _is_text(name)])
        found = {}
        for name in columns:
            ready = name in table.column_names and table[name].type == _CODED
            column = table[name] if ready else self._shaped(table, [name])[name]
            found[name] = column if ready or not _is_text(name) else column.dictionary_encode()
        return pa.table(found)

    def _taken(self, columns: Sequence[str], encoded: Sequence[str] = ()) -> pa.Table:
        if isinstance(self.source, pa.Table):
            return self.source.select([n for n in columns if n in self.source.column_names])
        held = [name for name in columns if name in self.source.schema.names]
        coded = [name for name in encoded if name in held]
        return self.source.read(self.group, held, coded) if held else pa.table({})

    def _shaped(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        if not table.column_names:
            return pa.table([pa.nulls(self.rows, field.type) for field in schema], schema=schema)
        place = self.source.place if isinstance(self.source, OpenTable) else "the table given"
        return shaped(table, schema, place)


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Neighbouring parts that are read in one go; `first` is the number of their first row."""

    parts: tuple[Part, ...]
    first: int
    rows: int

    @property
    def span(self) -> slice:
        """Where its rows lie in an array over all rows."""
        return slice(self.first, self.first + self.rows)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """See `Part.read`."""
        return pa.concat_tables([part.read(columns) for part in self.parts])

    def batches(self, columns: Sequence[str]) -> Iterator[tuple[int, pa.Table]]:
        """The columns in pieces, each with the number of its first row."""
        first = self.first
        for part in self.parts:
            for table in part.batches(columns):
                yield first, table
                first += table.num_rows


def shaped(table: pa.Table, schema: pa.Schema, place: str) -> pa.Table:
    """See `ledger.conformed`. Raises DataError, which names `place`, where a column has another type."""
    try:
        return conformed(table, schema)
    except _NOT_OURS as error:
        raise DataError(f"{place} is no ledger of this project: {error}") from error


def _is_text(column: str) -> bool:
    return bool(SCHEMA.field(column).type == pa.string())


def encoded(parts: Iterable[Part], columns: Sequence[str]) -> list[pa.DictionaryArray]:
    """Each column of some parts with one dictionary, without decoding texts that a file holds so."""
    table = pa.concat_tables([part.coded(columns) for part in parts])
    found = []
    for name in columns:
        column = table[name]
        if _is_text(name):
            found.append(column.unify_dictionaries().combine_chunks())
        elif column.null_count == 0 and len(set(pc.min_max(column).as_py().values())) == 1:
            zeros = pa.array(np.zeros(len(column), np.int32))  # many columns are constant
            found.append(pa.DictionaryArray.from_arrays(zeros, column[:1].combine_chunks()))
        else:
            found.append(column.dictionary_encode().combine_chunks())
    return found


def digits(column: pa.DictionaryArray) -> Numbers:
    """The place of each value in the dictionary; a null's is the dictionary's length."""
    indices = column.indices
    if indices.null_count:
        indices = indices.fill_null(pa.scalar(len(column.dictionary), indices.type))
    return np.asarray(indices.to_numpy())


def parts_of(source: OpenTable | pa.Table) -> Iterator[Part]:
    """The row groups of a file; a table in memory in slices."""
    if isinstance(source, pa.Table):
        for first in range(0, source.num_rows, _BLOCK_ROWS):
            some = source.slice(first, _BLOCK_ROWS)
            yield Part(source=some, group=0, rows=some.num_rows)
        return
    for group in range(source.metadata.num_row_groups):
        yield Part(source=source, group=group, rows=source.metadata.row_group(group).num_rows)


def blocks_of(parts: Sequence[Part]) -> Iterator[Block]:
    """The parts, as many together as make a block worth a thread's while."""
    first, rows, waiting = 0, 0, list[Part]()
    for part in parts:
        waiting.append(part)
        rows += part.rows
        if rows >= _BLOCK_ROWS:
            yield Block(parts=tuple(waiting), first=first, rows=rows)
            first, rows, waiting = first + rows, 0, []
    if waiting:
        yield Block(parts=tuple(waiting), first=first, rows=rows)


def each(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """What `function` gives for each item, in order, computed by a thread for each core."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        yield from threads.map(function, items)

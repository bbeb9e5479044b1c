"""The rows of ledgers, read a block at a time and only in the columns that are asked for.

Rows are numbered in the order of the folders, files and row groups that they lie in. What a selection keeps is a mask
over these numbers, so ten million rows can be selected, grouped and summed without ever being in memory together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from backdoor_core.errors import DataError
from backdoor_core.ledger import Ledger, conformed, last_attempts, numbered, repeated
from backdoor_core.record import METRICS_SCHEMA, SCHEMA
from backdoor_core.store import OpenTable

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
        return self.source.read(self.group, held, encoded) if held else pa.table({})

    def _shaped(self, table: pa.Table, columns: Sequence[str]) -> pa.Table:
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        if not table.column_names:
            return pa.table([pa.nulls(self.rows, field.type) for field in schema], schema=schema)
        try:
            return conformed(table, schema)
        except _NOT_OURS as error:
            place = self.source.place if isinstance(self.source, OpenTable) else "the table given"
            raise DataError(f"{place} is no ledger of this project: {error}") from error


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


@dataclass(frozen=True, kw_only=True)
class Condition:
    """What `ResultTable.where` asks of one column: that it holds one of `values`, or null where `null`."""

    column: str
    values: pa.Array
    null: bool

    @classmethod
    def of(cls, column: str, wanted: Any) -> Condition:
        """A value, None, or a list, tuple or set of them; what the column's type cannot hold is never there."""
        choices = wanted if isinstance(wanted, list | tuple | set | frozenset) else (wanted,)
        field = SCHEMA.field(column).type
        scalar = field.value_type if pa.types.is_list(field) else field
        values = [_as(scalar, choice) for choice in choices]
        known = pa.array([value for value in values if value is not None], scalar)
        return cls(column=column, values=known, null=any(choice is None for choice in choices))

    @property
    def expression(self) -> Any:
        """The same as a dataset expression, for row groups' statistics; None for lists, which have none."""
        from pyarrow import dataset  # imports pandas, and only selections need it

        if pa.types.is_list(SCHEMA.field(self.column).type):
            return None
        field = dataset.field(self.column)
        within = field.isin(self.values)
        return within | field.is_null() if self.null else within

    def holds(self, part: Part) -> Numbers:
        """For each row of a part whether it is so."""
        if pa.types.is_list(SCHEMA.field(self.column).type):
            lists = part.read([self.column])[self.column].combine_chunks()
            found = np.zeros(part.rows, bool)
            hits = pc.list_parent_indices(lists).filter(
                pc.is_in(pc.list_flatten(lists), value_set=self.values)
            )
            found[hits.to_numpy()] = True
            absent = lists.is_null().to_numpy(zero_copy_only=False)
        else:
            (column,) = encoded([part], [self.column])
            among = pc.is_in(column.dictionary, value_set=self.values)
            found = np.append(among.to_numpy(zero_copy_only=False), False)[digits(column)]
            absent = digits(column) == len(column.dictionary)
        return np.asarray(found | absent if self.null else found, bool)


def _as(kind: pa.DataType, choice: Any) -> Any:
    """The choice as a value of an Arrow type that equals it in Python; None where there is none."""
    choice = choice.item() if isinstance(choice, np.generic) else choice
    if isinstance(choice, str) or choice is None:
        return choice if pa.types.is_string(kind) else None
    if pa.types.is_string(kind) or not isinstance(choice, int | float):
        return None
    if pa.types.is_floating(kind):
        return float(choice)
    if pa.types.is_boolean(kind):
        return bool(choice) if choice in (0, 1) else None
    whole = abs(choice) < 2**31 and int(choice) == choice
    return int(choice) if whole else None


def digits(column: pa.DictionaryArray) -> Numbers:
    """The place of each value in the dictionary; a null's is the dictionary's length."""
    indices = column.indices
    if indices.null_count:
        indices = indices.fill_null(pa.scalar(len(column.dictionary), indices.type))
    return np.asarray(indices.to_numpy())


class Scan:
    """All rows of some ledgers, whatever is selected of them; selections share one."""

    def __init__(
        self, sources: Iterable[OpenTable | pa.Table], ledgers: Sequence[Ledger] = ()
    ) -> None:
        self.ledgers = tuple(ledgers)
        self.parts = tuple(part for source in sources for part in _parts(source) if part.rows)
        self.blocks = tuple(_blocks(self.parts))
        self.rows = sum(part.rows for part in self.parts)

    @cached_property
    def latest(self) -> Numbers:
        """For each row whether it is the latest attempt of its key."""
        kept, keys = np.zeros(self.rows, bool), np.zeros(self.rows, np.uint64)

        def look(block: Block) -> None:
            for first, table in block.batches(["key", "attempt"]):
                span = slice(first, first + table.num_rows)
                keys[span] = numbered(table["key"])
                known = pc.and_(table["key"].is_valid(), table["attempt"].is_valid())
                kept[span] = known.to_numpy()

        for _ in each(look, self.blocks):
            pass
        again = repeated(keys)
        again = again[kept[again]]
        if len(again):
            kept[again] = False
            kept[again[last_attempts(self.take(again, ["key", "attempt"]))]] = True
        return kept

    def take(self, rows: Numbers, columns: Sequence[str]) -> pa.Table:
        """Columns of the rows with these numbers, in ascending order of the numbers, which must be distinct."""
        rows = np.sort(rows)

        def taken(block: Block) -> pa.Table:
            found = []
            for first, table in block.batches(columns):
                low, high = np.searchsorted(rows, [first, first + table.num_rows])
                found.append(table.take(rows[low:high] - first))
            return pa.concat_tables(found)

        ends = [block.first + block.rows for block in self.blocks]
        wanted = np.unique(np.searchsorted(ends, rows, side="right"))
        found = list(each(taken, [self.blocks[i] for i in wanted]))
        schema = pa.schema([SCHEMA.field(name) for name in columns])
        return pa.concat_tables(found) if found else schema.empty_table()

    def selected(self, conditions: Sequence[Condition]) -> Numbers:
        """For each row whether it is a latest attempt and meets all conditions."""
        if not conditions:
            return self.latest
        kept = self.latest.copy()
        firsts = np.cumsum([0, *(part.rows for part in self.parts)])
        possible = _possible(self.parts, conditions)

        def narrow(i: int) -> None:
            span = slice(firsts[i], firsts[i + 1])
            if i not in possible:
                kept[span] = False
            for condition in conditions:
                if kept[span].any():
                    kept[span] &= condition.holds(self.parts[i])

        for _ in each(narrow, range(len(self.parts))):
            pass
        return kept

    def metrics(self, keys: pa.Array) -> Iterator[pa.Table]:
        """The long rows of some keys, of every attempt, by file and row group."""
        for ledger in self.ledgers:
            for source in ledger.opened(ledger.metrics):
                for group in range(source.metadata.num_row_groups):
                    table = source.read(
                        group, [n for n in METRICS_SCHEMA.names if n in source.schema.names]
                    )
                    try:
                        table = conformed(table, METRICS_SCHEMA)
                    except _NOT_OURS as error:
                        raise DataError(
                            f"{source.place} is no ledger of this project: {error}"
                        ) from error
                    yield table.filter(pc.is_in(table["key"], value_set=keys))


def each(function: Callable[[Any], T], items: Iterable[Any]) -> Iterator[T]:
    """What `function` gives for each item, in order, computed by a thread for each core."""
    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as threads:
        yield from threads.map(function, items)


def _parts(source: OpenTable | pa.Table) -> Iterator[Part]:
    if isinstance(source, pa.Table):
        for first in range(0, source.num_rows, _BLOCK_ROWS):
            some = source.slice(first, _BLOCK_ROWS)
            yield Part(source=some, group=0, rows=some.num_rows)
        return
    for group in range(source.metadata.num_row_groups):
        yield Part(source=source, group=group, rows=source.metadata.row_group(group).num_rows)


def _blocks(parts: Sequence[Part]) -> Iterator[Block]:
    first, rows, waiting = 0, 0, list[Part]()
    for part in parts:
        waiting.append(part)
        rows += part.rows
        if rows >= _BLOCK_ROWS:
            yield Block(parts=tuple(waiting), first=first, rows=rows)
            first, rows, waiting = first + rows, 0, []
    if waiting:
        yield Block(parts=tuple(waiting), first=first, rows=rows)


def _possible(parts: Sequence[Part], conditions: Sequence[Condition]) -> frozenset[int]:
    """The parts that may hold rows which meet all conditions, by the statistics in their files."""
    wanted = [one.expression for one in conditions if one.expression is not None]
    groups: dict[OpenTable, frozenset[int]] = {}
    found = set()
    for i, part in enumerate(parts):
        if isinstance(part.source, OpenTable) and wanted:
            if part.source not in groups:
                every = wanted[0]
                for one in wanted[1:]:
                    every = every & one
                groups[part.source] = part.source.groups(every, SCHEMA)
            if part.group not in groups[part.source]:
                continue
        found.add(i)
    return frozenset(found)

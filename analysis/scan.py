"""The rows of ledgers, read a block at a time and only in the columns that are asked for.

Rows are numbered in the order of the folders, files and row groups that they lie in. What a selection keeps is a mask
over these numbers, so ten million rows can be selected, grouped and summed without ever being in memory together.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.conditions import Condition
from analysis.parts import Block, Numbers, Part, blocks_of, each, parts_of, shaped
from backdoor_core.ledger import Ledger, last_attempts, numbered, repeated
from backdoor_core.open_table import OpenTable
from backdoor_core.record import METRICS_SCHEMA, SCHEMA

_FIRST_BITS = 2
_OTHER_FACTOR = 0xD6E8FEB86659FD93


class Scan:
    """All rows of some ledgers, whatever is selected of them; selections share one."""

    def __init__(
        self, sources: Iterable[OpenTable | pa.Table], ledgers: Sequence[Ledger] = ()
    ) -> None:
        self.ledgers = tuple(ledgers)
        self.parts = tuple(part for source in sources for part in parts_of(source) if part.rows)
        self.blocks = tuple(blocks_of(self.parts))
        self.rows = sum(part.rows for part in self.parts)

    @cached_property
    def latest(self) -> Numbers:
        """For each row whether it is the latest attempt of its key.

        Keys are read once and stand as 128-bit numbers then. Two of ten million keys share one with a chance of 1e-25.
        """
        kept, attempts = np.zeros(self.rows, bool), np.zeros(self.rows, np.int32)
        keys, more = np.zeros((2, self.rows), np.uint64)

        def look(block: Block) -> None:
            for first, table in block.batches(["key", "attempt"]):
                span = slice(first, first + table.num_rows)
                keys[span] = numbered(table["key"])
                more[span] = numbered(table["key"], _OTHER_FACTOR)
                attempts[span] = table["attempt"].fill_null(0).to_numpy()
                known = pc.and_(table["key"].is_valid(), table["attempt"].is_valid())
                kept[span] = known.to_numpy()

        for _ in each(look, self.blocks):
            pass
        again = _repeated(keys)
        again = again[kept[again]]
        if len(again):
            kept[again] = False
            both = np.stack([keys[again], more[again]], axis=1)
            key = pa.Array.from_buffers(pa.binary(16), len(again), [None, pa.py_buffer(both)])
            some = pa.table({"key": key, "attempt": attempts[again]})
            kept[again[last_attempts(some)]] = True
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
                    names = [n for n in METRICS_SCHEMA.names if n in source.schema.names]
                    table = shaped(source.read(group, names), METRICS_SCHEMA, source.place)
                    yield table.filter(pc.is_in(table["key"], value_set=keys))


def _repeated(numbers: Numbers) -> Numbers:
    """As `ledger.repeated`, by several threads: each looks at the numbers that start with the same bits."""
    start = (numbers >> np.uint64(64 - _FIRST_BITS)).astype(np.uint8)

    def among(bits: int) -> Numbers:
        places = np.flatnonzero(start == bits)
        return places[repeated(numbers[places])]

    return np.sort(np.concatenate(list(each(among, range(2**_FIRST_BITS)))))


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

"""Counts, means and spreads of many columns over many groups of rows, read once and a block at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from scipy.special import stdtrit

from analysis.parts import Block, Numbers, each
from analysis.scan import Scan

_FLAGS = "flags"
_Moments = tuple[Numbers, Numbers, Numbers, Numbers]


@dataclass(frozen=True, kw_only=True, eq=False)
class Totals:
    """Of each of `names` (a row) in each group (a column): how many numbers, their mean, their squares about it.

    Nulls, NaN and infinities are left out. `flags` counts the rows of a group by flag, where it has any.
    """

    names: tuple[str, ...]
    count: Numbers
    centre: Numbers
    squares: Numbers
    flags: dict[int, dict[str, int]]

    def counts(self, name: str) -> Numbers:
        """How many numbers each group has."""
        found: Numbers = self.count[self.names.index(name)]
        return found

    def mean(self, name: str) -> list[float | None]:
        """The mean of each group; None where it has no number."""
        row = self.names.index(name)
        pairs = zip(self.count[row].tolist(), self.centre[row].tolist(), strict=True)
        return [mean if count else None for count, mean in pairs]

    def intervals(self, name: str, floor: float) -> tuple[list[Any], ...]:
        """Count, mean, and ends of Student's t-interval at 95 %, cut to [floor, 1]; ends mean nothing below two."""
        row = self.names.index(name)
        count, mean = self.count[row], self.centre[row]
        sizes, of = np.unique(np.maximum(count, 2), return_inverse=True)
        deviation = np.sqrt(self.squares[row] / (sizes[of] - 1))
        half = stdtrit(sizes - 1.0, 0.975)[of] * deviation / np.sqrt(sizes[of])
        ends = np.maximum(floor, mean - half), np.minimum(1.0, mean + half)
        return tuple(column.tolist() for column in (count, mean, *ends))


def totals_of(scan: Scan, of: Numbers, groups: int, names: Sequence[str]) -> Totals:
    """Totals over the rows of a scan; `of` is the group of each row, `groups` for rows that belong to none."""
    count = np.zeros((len(names), groups), np.int64)
    centre, squares = np.zeros((2, len(names), groups))
    flags: dict[int, dict[str, int]] = {}

    def look(block: Block) -> tuple[list[_Moments], dict[str, Numbers]]:
        here = of[block.span]
        order = np.argsort(here)
        order = order[: np.count_nonzero(here < groups)]
        table = block.read([*names, _FLAGS])
        placed = np.take(here, order)
        return [_moments(table[name], order, placed) for name in names], _flags(table, here)

    blocks = [block for block in scan.blocks if (of[block.span] < groups).any()]
    flagged: dict[str, Numbers] = {}
    for moments, found in each(look, blocks):
        for i, (at, n, mean, about) in enumerate(moments):
            # Two sets' squares about their common mean: Chan et al., doi 10.1080/00031305.1983.10483115.
            known = count[i, at]
            step, share = mean - centre[i, at], n / (known + n)
            squares[i, at] += about + step**2 * (known * share)
            centre[i, at] += step * share
            count[i, at] += n
        for flag, rows in found.items():
            flagged.setdefault(flag, np.zeros(groups, np.int64))
            flagged[flag] += np.bincount(rows, minlength=groups + 1)[:groups]
    for flag in sorted(flagged):
        for group in np.flatnonzero(flagged[flag]).tolist():
            flags.setdefault(group, {})[flag] = int(flagged[flag][group])
    return Totals(names=tuple(names), count=count, centre=centre, squares=squares, flags=flags)


def _moments(column: Any, order: Numbers, of: Numbers) -> _Moments:
    """The groups with numbers in a block, and of each: how many, their mean, the sum of squares about it.

    `order` sorts the block's rows by group, `of` is the group of each row in that order.
    """
    filled = column.fill_null(math.nan) if column.null_count else column
    values = np.take(filled.to_numpy(), order)
    known = np.isfinite(values)
    if not known.all():
        values, of = values[known], of[known]
    starts = np.flatnonzero(np.diff(of, prepend=-1))
    if len(starts) == 0:
        return starts, starts, np.empty(0), np.empty(0)
    n = np.diff(starts, append=len(of))
    mean = np.add.reduceat(values, starts) / n
    values -= np.repeat(mean, n)
    values *= values
    return of[starts], n, mean, np.add.reduceat(values, starts)


def _flags(table: Any, of: Numbers) -> dict[str, Numbers]:
    """The groups of the rows that have each flag."""
    found: dict[str, list[Numbers]] = {}
    first = 0
    for lists in table[_FLAGS].chunks:
        rows = pc.list_parent_indices(lists).to_numpy() + first
        flags = pc.list_flatten(lists).dictionary_encode()
        for i, flag in enumerate(flags.dictionary.to_pylist()):
            found.setdefault(flag, []).append(of[rows[flags.indices.to_numpy() == i]])
        first += len(lists)
    return {flag: np.concatenate(rows) for flag, rows in found.items()}

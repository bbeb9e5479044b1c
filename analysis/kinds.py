"""The few distinct things that millions of rows of results say of themselves, and which of them each row says.

Each block's columns are dictionary-encoded, so a text is looked at once for each block and never once for each row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from analysis.parts import Block, Numbers, digits, each, encoded
from analysis.table import ResultTable

IDENTITY = (
    "task", "task_settings", "plm", "plm_settings", "training_settings",
    "attack", "attack_settings", "poison_rate", "adaptive",
    "defense", "defense_settings", "tuning_mode", "tuning_trials", "tuning",
)  # fmt: skip
"""The columns that `columns.axes_of` reads."""
COLUMNS = (*IDENTITY, "synthetic", "status")
_MOST_CODES = 2**62


@dataclass(frozen=True, kw_only=True, eq=False)
class Kinds:
    """The distinct rows of `COLUMNS`, by number, and the kind and seed of each row of the scan.

    `numbers` has a row for each of `COLUMNS` and a column for each kind: places in `values` of that column. `of` is
    the kind of each row of the scan, -1 where it is not selected; `seed_of` is its seed's place in `seeds`.
    """

    numbers: Numbers
    values: tuple[tuple[Any, ...], ...]
    of: Numbers
    seeds: tuple[int, ...]
    seed_of: Numbers

    def __len__(self) -> int:
        return int(self.numbers.shape[1])

    def column(self, name: str, kinds: Sequence[int] | Numbers | slice = slice(None)) -> list[Any]:
        """The values of a column, of all kinds or of some."""
        column = COLUMNS.index(name)
        known = self.values[column]
        return [known[number] for number in self.numbers[column, kinds].tolist()]

    def rows(self, kinds: Sequence[int] | Numbers) -> list[dict[str, Any]]:
        """Some kinds as dictionaries."""
        columns = [self.column(name, kinds) for name in COLUMNS]
        return [dict(zip(COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]


def kinds_of(results: ResultTable) -> Kinds:
    """The kinds of the rows that are selected."""
    of = np.full(results.scan.rows, -1, np.int32)
    seed_of = np.zeros(results.scan.rows, np.int32)
    chosen = [block for block in results.scan.blocks if results.selected[block.span].any()]
    look = partial(_look, selected=results.selected, of=of, seed_of=seed_of)
    known: list[dict[Any, int]] = [{} for _ in (*COLUMNS, "seed")]
    local, seeds = [np.empty((len(COLUMNS), 0), np.int32)], []
    for values, numbers in each(look, chosen):
        shared = [
            np.array([ids.setdefault(value, len(ids)) for value in column], np.int32)
            for ids, column in zip(known, values, strict=True)
        ]
        local.append(np.stack([m[n] for m, n in zip(shared[:-1], numbers, strict=True)]))
        seeds.append(shared[-1])
    every = np.concatenate(local, axis=1)
    codes = mixed(list(every), [len(ids) for ids in known[:-1]])
    _, first, kind = np.unique(codes, return_index=True, return_inverse=True)
    ranks, order = _ranked(list(known[-1]))
    ends = np.cumsum([part.shape[1] for part in local])

    def renumber(i: int) -> None:
        here = of[chosen[i].span]
        # The last place of the map is for -1: a row that is not selected.
        here[...] = np.append(kind[ends[i] : ends[i + 1]], -1).astype(np.int32)[here]
        seed_of[chosen[i].span] = ranks[seeds[i]][seed_of[chosen[i].span]]

    for _ in each(renumber, range(len(chosen))):
        pass
    return Kinds(
        numbers=every[:, first],
        values=tuple(tuple(ids) for ids in known[:-1]),
        of=of,
        seeds=order,
        seed_of=seed_of,
    )


def _look(
    block: Block, *, selected: Numbers, of: Numbers, seed_of: Numbers
) -> tuple[list[list[Any]], list[Numbers]]:
    """The values of each column in a block, and for each kind there its place in them.

    Writes into `of` and `seed_of` which kind and seed of this block each row has.
    """
    kept = selected[block.span]
    columns = encoded(block.parts, (*COLUMNS, "seed"))
    every = [digits(column) for column in columns]
    bases = [len(column.dictionary) + 1 for column in columns]
    codes = mixed(every[:-1], bases[:-1])
    whole = bool(kept.all())
    found = pa.array(codes if whole else codes[kept]).dictionary_encode()
    kind = found.indices.to_numpy()
    rows = np.arange(block.rows, dtype=np.int32) if whole else np.flatnonzero(kept)
    of[block.span][slice(None) if whole else rows] = kind
    seed_of[block.span] = every[-1]
    example = np.zeros(len(found.dictionary), np.int32)
    example[kind] = rows  # any row of a kind serves
    values = [
        [*column.dictionary.to_pylist(), *([None] if column.null_count else [])]
        for column in columns
    ]
    return values, [column[example] for column in every[:-1]]


def _ranked(seeds: list[int | None]) -> tuple[Numbers, tuple[int, ...]]:
    """For each seed its place among them in ascending order (null, of a foreign file, first), and that order."""
    places = sorted(range(len(seeds)), key=lambda i: (seeds[i] is not None, seeds[i] or 0))
    ranks = np.empty(len(seeds), np.int32)
    ranks[places] = np.arange(len(seeds), dtype=np.int32)
    return ranks, tuple(seeds[i] for i in places)  # type: ignore[misc]


def mixed(numbers: Sequence[Numbers], bases: Sequence[int]) -> Numbers:
    """One integer for each place of several arrays, equal where all of them are; 0 <= `numbers[i]` < `bases[i]`."""
    code, size = np.zeros(len(numbers[0]), np.int64), 1
    for number, base in zip(numbers, bases, strict=True):
        if base == 1 or not number.any():
            continue
        if size * base > _MOST_CODES:
            values, code = np.unique(code, return_inverse=True)
            size = len(values)
        code *= base
        code += number
        size *= base
    return code

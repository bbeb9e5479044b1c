"""Which rows of a table of results belong together: one group for each attack cell x defense setting of a setup.

The rows of a group that count are those with numbers, one a seed: the latest one. A row without numbers before it was
replaced by it, and counts as neither failed nor skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.columns import (
    TWIN,
    attack_of,
    axes_of,
    fixed_settings,
    is_front,
    rate_of,
    settings_of,
)
from analysis.kinds import COLUMNS, IDENTITY, Kinds, kinds_of, mixed
from analysis.parts import Numbers
from analysis.scan import Scan
from analysis.table import ResultTable
from backdoor_core.ledger import repeated

Row = Mapping[str, Any]
Axes = tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """One attack cell x defense setting of one setup.

    `setup`, `cell` and `setting` are identities (see `axes_of`); `found` says that a search found settings:
    of these only what it left as it was is part of the identity. `last` has the columns `COLUMNS` of its latest row, as
    far as labels show them.
    """

    setup: tuple[Any, ...]
    cell: tuple[Any, ...]
    setting: tuple[Any, ...]
    found: bool
    last: Row
    synthetic: bool = False
    seeds: Sequence[int] = ()
    failed: int = 0
    skipped: int = 0
    superseded: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """The groups in reading order; `of` is the group of each row of the scan that counts, `len(groups)` of others.

    `examples` has a row for each setting of each method, with the columns of `IDENTITY`. `replaced` are the rows of the
    scan that failed or were skipped before a row of the same group and seed had numbers, ascending.
    """

    groups: tuple[Group, ...]
    of: Numbers
    replaced: Numbers
    examples: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Places:
    """The kinds' places on the axes: `of` is each kind's, `rows` an example of each, `axes` its identity."""

    of: Numbers
    rows: tuple[Row, ...]
    axes: tuple[Axes, ...]


def grouped(results: ResultTable) -> Grouping:
    """Groups the results that are selected."""
    kinds = kinds_of(results)
    places = _places(kinds)
    searched = _searched(kinds, places)
    numbers: dict[tuple[Any, ...], int] = {}
    of_place: list[int] = []
    examples: list[Row] = []
    for row, (setup, cell, setting) in zip(places.rows, places.axes, strict=True):
        found = _search(setup, setting) in searched
        fixed = fixed_settings(setting[1], setting[4]) if found else setting[1]
        shown = (setting[0], fixed, *setting[2:])
        number = numbers.setdefault((setup, cell, shown, found), len(numbers))
        if number == len(examples):
            examples.append(row)
        of_place.append(number)
    of_kind = np.array(of_place, np.int64)[places.of]
    groups = [
        Group(setup=setup, cell=cell, setting=setting, found=found, last=row)
        for (setup, cell, setting, found), row in zip(numbers, examples, strict=True)
    ]
    order = _reading_order(groups, of_kind, kinds, results.scan)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    return _counted([groups[i] for i in order], rank[of_kind], kinds, places, results.scan)


def replaced_keys(results: ResultTable) -> frozenset[str]:
    """The keys of rows that failed or were skipped, and that a later row with numbers replaced.

    That one has the same setup, cell, defense and seed, and the same settings or (where a search chose one) the same
    tuning mode and search; its key differs where the code, the files or the choice did.
    """
    rows = grouped(results).replaced
    return frozenset(results.scan.take(rows, ["key"])["key"].to_pylist())


def _places(kinds: Kinds) -> _Places:
    """Kinds that differ only in what is no part of an identity have one place."""
    columns = {n: kinds.numbers[i] for i, n in enumerate(COLUMNS) if n in IDENTITY}
    first, of = _distinct([columns[name] for name in ("attack", "attack_settings", "poison_rate")])
    rates: dict[float | None, int] = {}
    asked = [rates.setdefault(rate_of(row), len(rates)) for row in kinds.rows(first)]
    columns["poison_rate"] = np.array(asked, np.int64)[of]
    columns["adaptive"] = np.array([bool(value) for value in kinds.column("adaptive")], np.int64)
    first, of = _distinct(list(columns.values()))
    rows = tuple(kinds.rows(first))
    return _Places(of=of, rows=rows, axes=tuple(axes_of(row) for row in rows))


def _distinct(columns: Sequence[Numbers]) -> tuple[Numbers, Numbers]:
    """Where each distinct combination of some columns first stands, and which one each place has."""
    codes = mixed(columns, [int(column.max(initial=0)) + 1 for column in columns])
    _, first, of = np.unique(codes, return_index=True, return_inverse=True)
    return first, of


def _search(setup: tuple[Any, ...], setting: tuple[Any, ...]) -> tuple[Any, ...]:
    return setup, setting[0], *setting[2:]


def _searched(kinds: Kinds, places: _Places) -> set[tuple[Any, ...]]:
    """The searches (setup, defense, tuning mode, what was asked) that chose one setting for each cell and seed.

    There the settings are what the search found, which may differ from cell to cell and seed to seed: they
    are a result, and no part of what is compared. A search for a front chooses several. Rows that do not say what
    was asked come from one that chose several where a cell and seed has more than one row with numbers.
    """
    found: set[tuple[Any, ...]] = set()
    pairs: dict[tuple[Any, ...], int] = {}
    of_place = np.full(len(places.rows), -1, np.int64)
    for i, (setup, cell, setting) in enumerate(places.axes):
        search = _search(setup, setting)
        if (setting[2] or "default") == "default" or is_front(setting[4]):
            continue
        found.add(search)
        if setting[4] is None:
            of_place[i] = pairs.setdefault((search, cell), len(pairs))
    if not pairs:
        return found
    of_kind = np.where(np.array(kinds.column("status")) == "ok", of_place[places.of], -1)
    # The last place of the map is for -1: a row that is not selected.
    pair = np.append(of_kind, -1)[kinds.of]
    rows = np.flatnonzero(pair >= 0)
    slots = pair[rows] * len(kinds.seeds) + kinds.seed_of[rows]
    searches = [search for search, _ in pairs]
    return found - {searches[i] for i in np.unique(pair[rows[repeated(slots)]])}


def _reading_order(
    groups: Sequence[Group], of_kind: Numbers, kinds: Kinds, scan: Scan
) -> list[int]:
    """Sorts setups and methods by name, `none` first, and numbers within settings as numbers.

    Of groups that would read alike, the one with the earliest row comes first.
    """

    @cache
    def bare(attack: str, settings: str | None, adaptive: bool) -> tuple[Any, ...]:
        return attack_of({"attack": attack, "attack_settings": settings, "adaptive": adaptive})

    @cache
    def values(settings: str | None) -> tuple[Any, ...]:
        return tuple(
            (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
            for _, value in sorted(settings_of(settings).items())
        )

    def key(group: Group) -> tuple[Any, ...]:
        attack, attack_settings, rate, adaptive = group.cell
        defense, settings, *tuning = group.setting
        return (
            tuple(str(part) for part in group.setup),
            (attack != TWIN, *bare(attack, attack_settings, adaptive), rate or 0.0),
            (defense != TWIN, defense, values(settings), str(tuning)),
        )

    keys = [key(group) for group in groups]
    alike = {key for key, count in Counter(keys).items() if count > 1}
    tied = [i for i, key in enumerate(keys) if key in alike]
    earliest = dict.fromkeys(range(len(groups)), 0)
    if tied:
        of = np.append(of_kind, -1)[kinds.of]
        rows = in_time_order(scan, np.flatnonzero(np.isin(of, tied)))
        for place, number in reversed(list(enumerate(of[rows].tolist()))):
            earliest[number] = place
    return sorted(range(len(groups)), key=lambda i: (keys[i], earliest[i]))


def _counted(
    groups: Sequence[Group], of_kind: Numbers, kinds: Kinds, places: _Places, scan: Scan
) -> Grouping:
    """Counts each group's rows by status, and leaves the latest row with numbers of each seed."""
    status = np.array(kinds.column("status"))
    many = len(groups)
    rows = np.bincount(kinds.of + 1, minlength=len(kinds) + 1)[1:]
    of, slots = _slots(of_kind, kinds, many)
    # The last place is for -1, a row that is not selected: `_slots` has put it outside already.
    finished = np.append(status == "ok", True)[kinds.of]
    beaten, replaced = _outdated(slots, finished, scan)
    rows -= np.bincount(kinds.of[replaced], minlength=len(kinds))

    def count(name: str) -> list[int]:
        which = status == name
        found = np.bincount(of_kind[which], weights=rows[which], minlength=many)
        return [int(number) for number in found]

    superseded = np.bincount(of[beaten], minlength=many + 1).tolist()
    for outside in (beaten, np.flatnonzero(~finished)):
        slots[outside], of[outside] = many * len(kinds.seeds) + outside, many
    every = _seeds(slots, many, kinds.seeds)
    lasts = _lasts(groups, of_kind, kinds, scan)
    synthetic = set(of_kind[np.array(kinds.column("synthetic"), bool)].tolist())
    failed, skipped = count("failed"), count("skipped")
    return Grouping(
        groups=tuple(
            replace(
                group,
                last=lasts.get(i, group.last),
                synthetic=i in synthetic,
                seeds=every[i],
                failed=failed[i],
                skipped=skipped[i],
                superseded=superseded[i],
            )
            for i, group in enumerate(groups)
        ),
        of=of,
        replaced=replaced,
        examples=places.rows,
    )


def _slots(of_kind: Numbers, kinds: Kinds, many: int) -> tuple[Numbers, Numbers]:
    """The group of each row (`many`: outside), and a number for its group x seed (outside: its own number)."""
    rows, seeds = len(kinds.of), len(kinds.seeds)
    # The last place of the map is for -1: a row that is not selected.
    of = np.append(of_kind, many).astype(np.int32)[kinds.of]
    small = (many + 1) * seeds + rows < 2**31
    slots = np.multiply(of, seeds, dtype=np.int32 if small else np.int64)
    slots += kinds.seed_of
    outside = np.flatnonzero(of == many)
    slots[outside] = many * seeds + outside
    return of, slots


def _outdated(slots: Numbers, finished: Numbers, scan: Scan) -> tuple[Numbers, Numbers]:
    """The rows before the last one with numbers (`finished`) of their slot: those with numbers, and those without."""
    contested = in_time_order(scan, repeated(slots))
    with_numbers = finished[contested]
    places = np.flatnonzero(with_numbers)
    found, last = np.unique(slots[contested[places]][::-1], return_index=True)
    if len(found) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    last = places[len(places) - 1 - last]
    mine = slots[contested]
    at = np.minimum(np.searchsorted(found, mine), len(found) - 1)
    before = (found[at] == mine) & (np.arange(len(contested)) < last[at])
    return contested[before & with_numbers], np.sort(contested[before & ~with_numbers])


class Seeds(Sequence[int]):
    """Some of a table's seeds, ascending. It is read as a tuple and equals one, and holds only their places.

    Ten thousand groups of a thousand seeds each would be ten million numbers to make, of which most are only counted.
    """

    __slots__ = ("_known", "_places")

    def __init__(self, known: tuple[int, ...], places: Numbers) -> None:
        self._known, self._places = known, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> int: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[int, ...]: ...

    def __getitem__(self, index: int | slice) -> int | tuple[int, ...]:
        if isinstance(index, slice):
            return tuple(self)[index]
        return self._known[int(self._places[index])]

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, tuple | Seeds) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))


def _seeds(slots: Numbers, groups: int, seeds: tuple[int, ...]) -> list[Seeds]:
    """The seeds of each group, ascending; `slots` are group x seed, and are sorted here."""
    slots.sort()
    ends = np.searchsorted(slots, np.arange(groups + 1) * max(1, len(seeds)))
    return [Seeds(seeds, slots[ends[i] : ends[i + 1]] - i * len(seeds)) for i in range(groups)]


def _lasts(groups: Sequence[Group], of_kind: Numbers, kinds: Kinds, scan: Scan) -> dict[int, Row]:
    """The latest row of the groups whose rows are not all alike in what labels show: `synthetic`."""
    shown = np.array(kinds.column("synthetic"), bool).astype(np.int64)
    some = np.bincount(of_kind, weights=shown, minlength=len(groups))
    unlike = np.flatnonzero((some > 0) & (some < np.bincount(of_kind, minlength=len(groups))))
    if len(unlike) == 0:
        return {}
    of = np.append(of_kind, -1)[kinds.of]
    rows = in_time_order(scan, np.flatnonzero(np.isin(of, unlike)))
    last = dict(zip(of[rows].tolist(), kinds.of[rows].tolist(), strict=True))
    return {
        number: {**groups[number].last, "synthetic": bool(shown[kind])}
        for number, kind in last.items()
    }


def in_time_order(scan: Scan, rows: Numbers) -> Numbers:
    """Rows of a scan by when they finished (null: first), then by key."""
    rows = np.sort(rows)
    if len(rows) == 0:
        return rows
    finished = scan.take(rows, ["finished_at"])["finished_at"].fill_null(0.0).to_numpy()
    order = np.argsort(finished, kind="stable")
    ordered = finished[order]
    same = ordered[1:] == ordered[:-1]
    tied = np.append(same, False) | np.append(False, same)
    if tied.any():
        places = np.sort(order[tied])
        table = pa.table(
            {
                "finished": finished[places],
                "key": scan.take(rows[places], ["key"])["key"],
            }
        )
        ascending = [("finished", "ascending"), ("key", "ascending")]
        order[tied] = places[pc.sort_indices(table, sort_keys=ascending).to_numpy()]
    return rows[order]

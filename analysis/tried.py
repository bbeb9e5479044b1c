"""One defense's settings as they were tried: rows of a grid in the ledger, or of a search in the tuning table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import DEFAULT, SETUP, TWIN, axes_of, settings_of
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.spec import canonical_json


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One tried setting: its flat `settings`, the metric's `value`, and where it was measured.

    `cell` is the attack cell (for a search: the study with its attack), so values are only comparable at equal
    `cell` and `seed`.
    """

    settings: Mapping[str, Any]
    cell: tuple[Any, ...]
    seed: int
    value: float
    row: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """The settings as canonical JSON."""
        return canonical_json(dict(self.settings))


def tried_settings(rows: Iterable[Mapping[str, Any]], metric: str) -> tuple[Tried, ...]:
    """What was tried of one defense in one setup, where `metric` (a column of the rows) has a number.

    `rows` are those of a `ResultTable` or of `tuning_rows`. Of the ledger's rows, those that a search chose are left
    out (they are the best of what it tried, and no grid), and so are undefended ones; of equal ones the row
    that finished last counts. Trials that failed or were pruned are left out. Raises ConfigError for a
    column that there is not, and where more than one defense or setup is among the rows.
    """
    found: dict[tuple[Any, ...], Tried] = {}
    setups, defenses = set(), set()
    for row in sorted(rows, key=lambda row: row["finished_at"] or 0.0):
        if metric not in row:
            raise ConfigError(unknown_name("column", metric, row))
        if not _counts(row):
            continue
        setups.add(tuple(row[name] for name in SETUP))
        defenses.add(row["defense"])
        value = row[metric]
        if value is not None and math.isfinite(value):
            one = _tried(row, float(value))
            found[(one.cell, one.seed, one.identity)] = one
    if len(defenses) > 1 or len(setups) > 1:
        raise ConfigError(
            f"settings are compared within one defense and one setup, got {len(defenses)} defenses "
            f"({', '.join(sorted(defenses))}) and {len(setups)} setups: select rows first, for example with "
            "results.where(defense=..., task=..., plm=...)"
        )
    return tuple(found.values())


def _counts(row: Mapping[str, Any]) -> bool:
    if "state" in row:
        return bool(row["state"] == "complete")
    chosen = (row["tuning_mode"] or DEFAULT) != DEFAULT
    return row["status"] == "ok" and not chosen and row["defense"] != TWIN


def _tried(row: Mapping[str, Any], value: float) -> Tried:
    if "state" in row:
        settings, names = row["settings"], ("study", "attack", "attack_settings", "tuning_mode")
        cell = tuple(row[name] for name in names)
    else:
        settings, cell = row["defense_settings"], axes_of(row)[1]
    return Tried(settings=settings_of(settings), cell=cell, seed=row["seed"], value=value, row=row)


def varying_settings(tried: Sequence[Tried]) -> tuple[str, ...]:
    """Names of the settings that take more than one value (or are absent from some), sorted."""
    names = sorted({name for one in tried for name in one.settings})
    return tuple(name for name in names if len({value_text(one, name) for one in tried}) > 1)


def value_text(one: Tried, name: str) -> str:
    """A setting's value as canonical JSON, to compare values of any kind; empty where it is absent."""
    return canonical_json(one.settings[name]) if name in one.settings else ""

"""Rows by setup, attack cell and defense setting, for what a mean over seeds has lost: pairs, seconds, devices.

The grouping and the labels are those of `summaries`: one group has the labels of one `Summary`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.grouping import grouped
from analysis.summaries import summaries
from analysis.table import ResultTable
from backdoor_core.record import SCHEMA

_LONG = frozenset({"spec", "log", "error", "flags"})
"""Columns that no table of groups reads, and that are most of a ledger's bytes."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The finished rows of one attack cell x defense setting of one setup: the latest of each seed, by seed.

    `identity` is the setup's columns (task, PLM and training with their settings), for joins with other tables.
    """

    identity: tuple[Any, ...]
    task: str
    plm: str
    cell: str
    defense: str
    setting: str
    tuning_mode: str
    tuning_trials: int
    adaptive: bool
    is_twin: bool
    rows: Mapping[int, Mapping[str, Any]]

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm


def groups(results: ResultTable) -> tuple[Group, ...]:
    """One group for each cell x defense setting, in the order and with the labels of `summaries`.

    Groups without a finished trial are there too, with no rows.
    """
    grouping = grouped(results)
    places = np.flatnonzero(grouping.of < len(grouping.groups))
    columns = [name for name in SCHEMA.names if name not in _LONG]
    taken = results.scan.take(places, columns).to_pylist()
    members: dict[int, dict[int, Mapping[str, Any]]] = {}
    for number, row in zip(grouping.of[places].tolist(), taken, strict=True):
        members.setdefault(number, {})[row["seed"]] = row
    return tuple(
        Group(
            identity=group.setup,
            task=summary.task,
            plm=summary.plm,
            cell=summary.cell,
            defense=summary.defense,
            setting=summary.setting,
            tuning_mode=summary.tuning_mode,
            tuning_trials=group.last["tuning_trials"] or 0,
            adaptive=summary.adaptive,
            is_twin=summary.is_twin,
            rows=dict(sorted(members.get(number, {}).items())),
        )
        for number, (group, summary) in enumerate(
            zip(grouping.groups, summaries(results), strict=True)
        )
    )

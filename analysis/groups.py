"""Rows by setup, attack cell and defense setting, for what a mean over seeds has lost: pairs, seconds, devices.

The grouping and the labels are those of `summaries`: one group has the labels of one `Summary`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import (
    TWIN,
    Labels,
    attack_of,
    axes_of,
    cell_label,
    setting_label,
    settings_of,
    setup_labels,
    swept,
)
from analysis.table import ResultTable

DEFAULT = "default"
ORACLE = "oracle"


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
    rows = sorted(results.rows(), key=lambda row: (row["finished_at"] or 0.0, row["key"]))
    names, searched = swept(rows), _searched(rows)
    members: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        setup, cell, setting = axes_of(row)
        found = _search_of(row) in searched
        members[(setup, cell, (setting[0], None, *setting[2:]) if found else setting)].append(row)
    labels = {kind: Labels() for kind in ("task", "plm", "cell", "setting")}
    made = []
    for (setup, cell, setting), same in sorted(members.items(), key=lambda item: _order(item[0])):
        last = same[-1]
        task, plm = setup_labels(last, names)
        text = setting_label(last, names, found=setting[1] is None)
        made.append(
            Group(
                identity=setup,
                task=labels["task"].of(setup[:2], task),
                plm=labels["plm"].of(setup[2:], plm),
                cell=labels["cell"].of(cell, cell_label(last, names)),
                defense=last["defense"],
                setting=labels["setting"].of(setting, text),
                tuning_mode=last["tuning_mode"] or DEFAULT,
                tuning_trials=last["tuning_trials"] or 0,
                adaptive=bool(last["adaptive"]),
                is_twin=last["attack"] == TWIN,
                rows=_by_seed(same),
            )
        )
    return tuple(made)


def _by_seed(rows: Sequence[Mapping[str, Any]]) -> dict[int, Mapping[str, Any]]:
    """The latest finished row of each seed; `rows` are in the order in which they finished."""
    latest = {row["seed"]: row for row in rows if row["status"] == "ok"}
    return {seed: latest[seed] for seed in sorted(latest)}


def _search_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    setup, _, setting = axes_of(row)
    return setup, setting[0], setting[2], setting[3]


def _searched(rows: Iterable[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    """The searches that left one row for each cell and seed: their settings are a result, as in `summaries`."""
    counts: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        if (row["tuning_mode"] or DEFAULT) != DEFAULT:
            counts[(_search_of(row), axes_of(row)[1], row["seed"])] += 1
    several = {search for (search, _, _), count in counts.items() if count > 1}
    return {search for search, _, _ in counts} - several


def _order(identity: tuple[Any, ...]) -> tuple[Any, ...]:
    setup, (attack, attack_settings, rate, adaptive), (defense, settings, *tuning) = identity
    bare = attack_of({"attack": attack, "attack_settings": attack_settings, "adaptive": adaptive})
    values = tuple(
        (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
        for _, value in sorted(settings_of(settings).items())
    )
    return (
        tuple(str(part) for part in setup),
        (attack != TWIN, *bare, rate or 0.0),
        (defense != TWIN, defense, values, str(tuning)),
    )

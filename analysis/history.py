"""How searches went: all settings that were tried, by trial number, and the best within the limits so far.

Numbers are of the tune split, all that a search sees. What a search minimises depends on its mode: the ASR where it may
know a trigger, else how weak the setting is (see `record.TUNING_SCHEMA`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.columns import Swept, rate_of, settings_of, shown
from analysis.looks import DASHES, SHARE_RANGE, SYMBOLS, hover, layout, menu, plain, style_of

MOST_STUDIES = 12
"""A choice of the menu draws the first so many studies."""
_GOALS = {"asr": "ASR on the tune split", "strength": "Strength of the setting (0 to 1)"}
_DROP = "CACC drop on the tune split"
_SINGLE_TICKS = 12
_INK = "#333333"


@dataclass(frozen=True, kw_only=True)
class History:
    """One study: its points by number, and the name of its goal (`asr`, less is better; `strength`, more is)."""

    mode: str
    attack: str
    seed: int
    goal: str
    limit: float | None
    rows: tuple[Mapping[str, Any], ...]

    @property
    def name(self) -> str:
        """For the legend."""
        return f"{self.attack}, seed {self.seed}"

    def best_so_far(self) -> list[float | None]:
        """The best goal among the points within the limits, up to and with each number; None before the first."""
        best: float | None = None
        found: list[float | None] = []
        for row in self.rows:
            value = row[self.goal] if row["feasible"] and row["state"] == "complete" else None
            if value is not None:
                better = max if self.goal == "strength" else min
                best = float(value) if best is None else better(best, float(value))
            found.append(best)
        return found


def histories(rows: Sequence[Mapping[str, Any]], names: Swept) -> list[History]:
    """The studies among rows of the tuning table, by mode, attack and seed. `names` label the attacks."""
    studies: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        studies.setdefault((row["sweep"] or "", row["study"]), []).append(row)
    found = []
    for same in studies.values():
        first = same[0]
        goal = "strength" if all(row["asr"] is None for row in same) else "asr"
        found.append(
            History(
                mode=first["tuning_mode"] or "",
                attack=_attack(first, names),
                seed=first["seed"],
                goal=goal,
                limit=_limit(first["tuning"]),
                rows=tuple(sorted(same, key=lambda row: row["number"])),
            )
        )
    return sorted(found, key=lambda one: (one.mode, one.attack, one.seed))


def _attack(row: Mapping[str, Any], names: Swept) -> str:
    """Label of the attack that a study chose for; one study may choose for several."""
    if row["attack"] is None:
        return "several attacks"
    rate = rate_of({**row, "poison_rate": None})
    extra = "" if rate is None else f"rate {rate:g}"
    return names.label("attack", row["attack"], settings_of(row["attack_settings"]), extra)


def _limit(text: str | None) -> float | None:
    """The largest CACC drop that a study allows, from its `tuning` column."""
    try:
        value = json.loads(text or "{}").get("limits", {}).get("cacc_drop")
    except (ValueError, AttributeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def history_figure(found: Sequence[History]) -> go.Figure | None:
    """The studies of one defense: goal and CACC drop over the number of the trial; a menu chooses the tuning mode.

    Filled marks kept the limits, open ones did not; crosses failed or were pruned. None without studies.
    """
    if not found:
        return None
    modes = list(dict.fromkeys(one.mode for one in found))
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
    owners: list[str] = []
    for mode in modes:
        drawn = [one for one in found if one.mode == mode][:MOST_STUDIES]
        for column, trace in _traces(drawn):
            trace.visible = not owners or owners[0] == mode
            figure.add_trace(trace, row=1, col=column)
            owners.append(mode)
    goals = {one.mode: one.goal for one in found}
    choice = menu(modes, owners)
    for button, mode in zip(choice["buttons"], modes, strict=True):
        button["label"] = f"Chosen by {plain(mode)}"
        button["args"].append({"yaxis.title.text": _GOALS[goals[mode]]})
    most = max(sum(one.mode == mode for one in found) for mode in modes)
    height = max(400, 170 + 23 * min(most, MOST_STUDIES))
    figure.update_layout(**layout(height, margin={"t": 80, "b": 60}, updatemenus=[choice]))
    last = max(row["number"] for one in found for row in one.rows)
    if last <= _SINGLE_TICKS:
        figure.update_xaxes(dtick=1)
    figure.update_xaxes(
        title="Tried setting, by number", range=(-0.04 * last - 0.3, 1.04 * last + 0.3)
    )
    figure.update_yaxes(title=_GOALS[goals[modes[0]]], range=SHARE_RANGE, row=1, col=1)
    figure.update_yaxes(title=_DROP, row=1, col=2)
    return figure


def _traces(drawn: Sequence[History]) -> list[tuple[int, go.Scatter]]:
    styles = style_of(one.attack for one in drawn)
    seeds = list(dict.fromkeys(one.seed for one in drawn))
    found = []
    for one in drawn:
        colour, symbol = styles[one.attack]
        dash = DASHES[seeds.index(one.seed) % len(DASHES)]
        found.append((1, _best(one, colour, dash)))
        for column, column_name in ((1, one.goal), (2, "cacc_drop")):
            found.append((column, _points(one, column_name, colour, symbol)))
    limits = {one.limit for one in drawn if one.limit is not None}
    last = max((row["number"] for one in drawn for row in one.rows), default=0)
    return found + [(2, _line(limit, last)) for limit in sorted(limits)]


def _best(one: History, colour: str, dash: str) -> go.Scatter:
    return go.Scatter(
        x=[row["number"] for row in one.rows],
        y=one.best_so_far(),
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash, "shape": "hv"},
        name=plain(one.name),
        legendgroup=plain(one.name),
        hoverinfo="skip",
    )


def _points(one: History, column: str, colour: str, symbol: int) -> go.Scatter:
    """Every point of a study; those without a goal stand at its worst end, as crosses."""
    worst = {"asr": 1.0, "strength": 0.0}.get(column)
    ended = [row["state"] == "complete" and row[column] is not None for row in one.rows]
    known = [row["feasible"] and done for row, done in zip(one.rows, ended, strict=True)]
    names = [SYMBOLS[symbol] + "-open" * (not kept) for kept in known]
    return go.Scatter(
        x=[row["number"] for row in one.rows],
        y=[row[column] if done else worst for row, done in zip(one.rows, ended, strict=True)],
        mode="markers",
        marker={
            "color": colour,
            "size": 8,
            "symbol": [name if done else "x-thin" for name, done in zip(names, ended, strict=True)],
            "line": {"width": 1.5, "color": colour},
        },
        name=plain(one.name),
        legendgroup=plain(one.name),
        showlegend=False,
        hovertext=[_text(one, row) for row in one.rows],
        hoverinfo="text",
    )


def _line(limit: float, last: int) -> go.Scatter:
    return go.Scatter(
        x=[0, max(last, 1)],
        y=[limit, limit],
        mode="lines",
        line={"color": _INK, "width": 1, "dash": "dot"},
        name=f"limit {limit:g}",
        hoverinfo="skip",
    )


def _text(one: History, row: Mapping[str, Any]) -> str:
    lines = {"": f"{one.name}, number {row['number']}"}
    lines |= {name: shown(value) for name, value in sorted(settings_of(row["settings"]).items())}
    for title, column in (("ASR", "asr"), ("Strength", "strength"), ("CACC drop", "cacc_drop")):
        if row[column] is not None:
            lines[title] = f"{row[column]:.3f}"
    if row["state"] != "complete":
        lines["State"] = f"{row['state']}: {row['error']}" if row["error"] else str(row["state"])
    elif not row["feasible"]:
        lines["Limits"] = "not kept"
    return hover(lines)

"""Curves of ASR and CACC: over each swept numeric setting of each defense, and over the poison rate.

Where one figure would hold too many lines to read, a menu chooses among groups of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.columns import TWIN, is_number, shown
from analysis.exports import with_interval
from analysis.looks import (
    ASR_SHORT,
    CACC_SHORT,
    DASHES,
    SHARE_RANGE,
    SYMBOLS,
    UNDEFENDED,
    WORST_CASE,
    cacc_range,
    error_bars,
    hover,
    layout,
    menu,
    number_axis,
    plain,
    style_of,
    wrapped,
)
from analysis.seeds import Estimate
from analysis.summaries import Summary
from analysis.worst import WorstCase
from backdoor_core.spec import canonical_json

_LINES_AT_ONCE = 8
_LEGEND_CHARACTERS = 36


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One mark on a line: where it stands and what its hover box says."""

    x: float
    asr: Estimate
    cacc: Estimate
    setting: str
    cell: str


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line: its name, what its colour stands for, the number of its dash, and its points by x."""

    name: str
    kind: str
    dash: int
    points: Sequence[CurvePoint]


@dataclass(frozen=True, kw_only=True)
class SettingCurves:
    """The figure of one numeric setting of one defense."""

    defense: str
    setting: str
    figure: go.Figure


def setting_curves(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> list[SettingCurves]:
    """For each defense of the setup and each of its swept numeric settings: ASR and CACC, a line a cell.

    Where other settings vary too, each combination of them is a line of its own: nothing is averaged, and one that
    was measured at a single value is no line and left out. Many lines are grouped by attack, behind the worst
    case over attacks.
    """
    found = []
    mine = [summary for summary in summaries if summary.setup == setup and summary.settings]
    for defense in dict.fromkeys(summary.defense for summary in mine):
        members = [summary for summary in mine if summary.defense == defense]
        cases = [case for case in worst if case.setup == setup and case.defense == defense]
        varying = varying_settings(members)
        for name in varying:
            if not all(is_number(member.settings.get(name)) for member in members):
                continue
            others = [other for other in varying if other != name]
            figure = _figure(_setting_choices(members, cases, name, others), name)
            if figure is not None:
                found.append(SettingCurves(defense=defense, setting=name, figure=figure))
    return found


def varying_settings(members: Iterable[Summary]) -> list[str]:
    """Names of the settings that take more than one value among summaries, sorted."""
    values: dict[str, set[str]] = defaultdict(set)
    for member in members:
        for name, value in member.settings.items():
            values[name].add(canonical_json(value))
    return sorted(name for name, different in values.items() if len(different) > 1)


def _setting_choices(
    members: Sequence[Summary], cases: Sequence[WorstCase], name: str, others: Sequence[str]
) -> dict[str, list[Curve]]:
    every = _setting_lines([(s, _point(s, float(s.settings[name]))) for s in members], others)
    if len(every) <= _LINES_AT_ONCE:
        return {"": every}
    known = [case for case in cases if is_number(case.settings.get(name))]
    choices = {
        WORST_CASE: _setting_lines(
            [(case, _worst_point(case, float(case.settings[name]))) for case in known], others
        )
    }
    for attack in dict.fromkeys(member.attack_setting for member in members):
        same = [member for member in members if member.attack_setting == attack]
        points = [(member, _point(member, float(member.settings[name]))) for member in same]
        choices[attack] = _setting_lines(points, others)
    return {name: lines for name, lines in choices.items() if lines}


def _point(summary: Summary, x: float) -> CurvePoint:
    return CurvePoint(
        x=x,
        asr=summary.of("asr"),
        cacc=summary.of("cacc"),
        setting=summary.setting,
        cell=summary.cell,
    )


def _worst_point(case: WorstCase, x: float) -> CurvePoint:
    return CurvePoint(
        x=x,
        asr=case.asr.estimate,
        cacc=case.cacc.estimate,
        setting=case.setting,
        cell=WORST_CASE,
    )


def _setting_lines(
    points: Iterable[tuple[Summary | WorstCase, CurvePoint]], others: Sequence[str]
) -> list[Curve]:
    groups: dict[tuple[str, str], list[CurvePoint]] = defaultdict(list)
    for owner, point in points:
        rest = [f"{other}={shown(owner.settings.get(other))}" for other in others]
        rest += [] if owner.tuning_mode == "default" else [f"tuned: {owner.tuning_mode}"]
        groups[(point.cell, ", ".join(rest))].append(point)
    rests = list(dict.fromkeys(rest for _, rest in groups))
    one_cell = len({cell for cell, _ in groups}) == 1
    return [
        Curve(
            name=rest if one_cell and rest else f"{cell}, {rest}" if rest else cell,
            kind=rest if one_cell else cell,
            dash=rests.index(rest),
            points=_by_x(marks),
        )
        for (cell, rest), marks in groups.items()
        if len({mark.x for mark in marks}) > 1
    ]


def _by_x(points: Iterable[CurvePoint]) -> list[CurvePoint]:
    return sorted(points, key=lambda point: point.x)


def rate_curves(
    summaries: Sequence[Summary], setup: tuple[str, str]
) -> list[tuple[str, go.Figure]]:
    """For each attack (with its settings) that ran at two rates or more: ASR and CACC, a line a setting.

    Many lines are grouped by defense, each beside the undefended victim; all together come last.
    """
    groups: dict[str, dict[tuple[str, str], list[CurvePoint]]] = {}
    for summary in summaries:
        if summary.setup != setup or summary.poison_rate is None:
            continue
        lines = groups.setdefault(summary.attack_setting, defaultdict(list))
        point = _point(summary, summary.poison_rate)
        lines[(summary.defense, summary.setting)].append(point)
    found = []
    for attack, lines in groups.items():
        if len({point.x for points in lines.values() for point in points}) < 2:
            continue
        figure = _figure(_rate_choices(lines), "Poison rate (share of training rows)")
        if figure is not None:
            found.append((attack, figure))
    return found


def _rate_choices(
    lines: Mapping[tuple[str, str], Sequence[CurvePoint]],
) -> dict[str, list[Curve]]:
    seen: dict[str, int] = defaultdict(int)
    every = []
    for (defense, setting), points in lines.items():
        name = UNDEFENDED if defense == TWIN else setting
        every.append(Curve(name=name, kind=defense, dash=seen[defense], points=_by_x(points)))
        seen[defense] += 1
    if len(every) <= _LINES_AT_ONCE:
        return {"": every}
    choices: dict[str, list[Curve]] = {}
    for defense in (name for name in seen if name != TWIN):
        chosen = [line for line in every if line.kind in (TWIN, defense)]
        choices[defense] = [
            line if line.kind == TWIN else replace(line, kind=line.name, dash=0) for line in chosen
        ]
    return choices | {"All defense settings": every}


def _figure(choices: Mapping[str, Sequence[Curve]], x_title: str) -> go.Figure | None:
    """Two panels, ASR and CACC, over one x axis, with a menu where there are several choices.

    None where no line has a number.
    """
    points = [point for lines in choices.values() for line in lines for point in line.points]
    ends = [
        value
        for point in points
        for value in (point.cacc.mean, point.cacc.low, point.cacc.high)
        if value is not None
    ]
    if not ends:
        return None
    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    owners: list[str] = []
    for choice, lines in choices.items():
        for column, trace in _traces(lines):
            trace.visible = not owners or owners[0] == choice
            figure.add_trace(trace, row=1, col=column)
            owners.append(choice)
    most = max(sum(map(_legend_px, lines)) for lines in choices.values())
    several = {"updatemenus": [menu(list(choices), owners)]} if len(choices) > 1 else {}
    margin = {"t": 80 if several else 40, "b": 60}
    figure.update_layout(**layout(max(400, 170 + most), margin=margin, **several))
    figure.update_xaxes(title=plain(x_title), **number_axis(point.x for point in points))
    figure.update_yaxes(title=ASR_SHORT, range=SHARE_RANGE, row=1, col=1)
    figure.update_yaxes(title=CACC_SHORT, range=cacc_range(ends), row=1, col=2)
    return figure


def _legend_px(line: Curve) -> int:
    """The height of a line's entry in the legend."""
    return 8 + 15 * (1 + wrapped(line.name, _LEGEND_CHARACTERS).count("<br>"))


def _traces(lines: Sequence[Curve]) -> list[tuple[int, go.Scatter]]:
    """The traces of lines with the column they stand in; each line has one entry in the legend."""
    styles = style_of(line.kind for line in lines)
    found = []
    for line in lines:
        for column, metric in ((1, "asr"), (2, "cacc")):
            trace = _trace(line, metric, styles[line.kind])
            if trace is not None:
                trace.showlegend = column == 2
                found.append((column, trace))
    return found


def _trace(line: Curve, metric: str, style: tuple[str, int]) -> go.Scatter | None:
    known: list[tuple[CurvePoint, Estimate]] = [
        (point, estimate)
        for point in line.points
        if (estimate := getattr(point, metric)).mean is not None
    ]
    if not known:
        return None
    colour, symbol = style
    return go.Scatter(
        x=[point.x for point, _ in known],
        y=[estimate.mean for _, estimate in known],
        error_y=error_bars([estimate for _, estimate in known]),
        mode="lines+markers",
        name=wrapped(line.name, _LEGEND_CHARACTERS),
        legendgroup=plain(line.name),
        line={"color": colour, "width": 2, "dash": DASHES[line.dash % len(DASHES)]},
        marker={"color": colour, "size": 8, "symbol": SYMBOLS[symbol]},
        hovertext=[_text(metric, point, estimate) for point, estimate in known],
        hoverinfo="text",
    )


def _text(metric: str, point: CurvePoint, estimate: Estimate) -> str:
    lines: dict[str, Any] = {"": point.setting, "Attack cell": point.cell}
    lines |= {metric.upper(): with_interval(estimate), "Seeds": str(estimate.n)}
    return hover(lines)

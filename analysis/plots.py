"""The figures of a sweep: the trade-off and the heat maps.

Curves over settings and poison rates are in `curves`, pictures for a paper in `pictures`. All take the values of
`summaries` and `worst`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.columns import TWIN, shown
from analysis.exports import with_interval
from analysis.fronts import interval_front
from analysis.looks import (
    ASR_TITLE,
    CACC_TITLE,
    SHARE_RANGE,
    SYMBOLS,
    UNDEFENDED,
    WORST_CASE,
    cacc_range,
    error_bars,
    hover,
    layout,
    menu,
    plain,
    style_of,
    wrapped,
)
from analysis.summaries import Estimate, Summary
from analysis.tradeoff import Point, cell_points, pareto_front, worst_points
from analysis.worst import WorstCase

MOST_ROWS = 80
"""The heat maps show the first so many defense settings; tables and `summary.csv` have all."""
_LABEL_CHARACTERS = 40
_CELLS_BESIDE = 9
"""Up to so many attack cells the two heat maps stand beside each other; above, one over the other."""


def tradeoff_figure(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> go.Figure | None:
    """ASR against CACC with the Pareto front, for the worst case and, by a menu, for each attack cell.

    None where no cell of the setup has both numbers.
    """
    choices = tradeoff_choices(summaries, worst, setup)
    if not choices:
        return None
    styles = style_of(summary.defense for summary in summaries)
    figure = go.Figure()
    owners: list[str] = []
    for name, points in choices.items():
        traces = [*_defense_traces(points, styles), _front_trace(points), _ring_trace(points)]
        for trace in traces:
            trace.visible = len(owners) == 0 or owners[0] == name
            figure.add_trace(trace)
            owners.append(name)
    figure.update_layout(
        **layout(560, updatemenus=[menu(list(choices), owners)], margin={"t": 80, "b": 60}),
        xaxis={"title": ASR_TITLE, "range": SHARE_RANGE, "tickformat": ".1f"},
        yaxis={"title": CACC_TITLE, "range": cacc_range_of(choices)},
    )
    return figure


def cacc_range_of(choices: Mapping[str, Sequence[Point]]) -> tuple[float, float]:
    """The CACC axis that all panels or choices share."""
    return cacc_range(
        [
            value
            for points in choices.values()
            for point in points
            for value in (point.cacc.mean, point.cacc.low, point.cacc.high)
            if value is not None
        ]
    )


def tradeoff_choices(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> dict[str, list[Point]]:
    """The points of the worst case and of each attack cell, by title; those without any are left out."""
    cells = dict.fromkeys(s.cell for s in summaries if s.setup == setup)
    choices = {WORST_CASE: worst_points(worst, setup)}
    choices |= {f"Against {cell}": cell_points(summaries, setup, cell) for cell in cells}
    return {name: points for name, points in choices.items() if points}


def _defense_traces(
    points: Sequence[Point], styles: Mapping[str, tuple[str, int]]
) -> list[go.Scatter]:
    traces = []
    for defense in dict.fromkeys(point.defense for point in points):
        mine = [point for point in points if point.defense == defense]
        colour, symbol = styles[defense]
        asr, cacc = [point.asr for point in mine], [point.cacc for point in mine]
        traces.append(
            go.Scatter(
                x=[estimate.mean for estimate in asr],
                y=[estimate.mean for estimate in cacc],
                error_x=error_bars(asr),
                error_y=error_bars(cacc),
                mode="markers",
                name=plain(defense if defense != TWIN else UNDEFENDED),
                marker={
                    "color": colour,
                    "size": 11,
                    "symbol": [SYMBOLS[symbol] + "-open" * (not p.ranked) for p in mine],
                    "line": {"width": 1.5, "color": colour},
                },
                hovertext=[_point_text(point) for point in mine],
                hoverinfo="text",
            )
        )
    return traces


def _point_text(point: Point) -> str:
    lines = {
        "": point.setting,
        "ASR": with_interval(point.asr),
        "CACC": with_interval(point.cacc),
        "CACC drop": with_interval(point.cacc_drop),
        "Seeds": str(point.asr.n),
    }
    lines |= {name: shown(value) for name, value in sorted(point.settings.items())}
    if point.note:
        lines["Note"] = point.note
    return hover(lines)


def _front_trace(points: Sequence[Point]) -> go.Scatter:
    front = pareto_front(points)
    return go.Scatter(
        x=[point.asr.mean for point in front],
        y=[point.cacc.mean for point in front],
        mode="lines",
        line={"color": "#333333", "width": 1.5, "dash": "dash", "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )


def _ring_trace(points: Sequence[Point]) -> go.Scatter:
    """Rings around the points that no other surely beats once their intervals count."""
    front = interval_front(points)
    return go.Scatter(
        x=[point.asr.mean for point in front],
        y=[point.cacc.mean for point in front],
        mode="markers",
        marker={"symbol": "circle-open", "size": 19, "color": "#333333", "line": {"width": 1}},
        name="not surely beaten",
        hoverinfo="skip",
    )


def heat_maps(summaries: Sequence[Summary], setup: tuple[str, str]) -> go.Figure | None:
    """ASR and CACC drop for each attack cell (across) and defense setting (down).

    None where the setup has no number at all.
    """
    mine = [summary for summary in summaries if summary.setup == setup]
    cells = list(dict.fromkeys(summary.cell for summary in mine))
    settings = list(dict.fromkeys(summary.setting for summary in mine))[:MOST_ROWS]
    panels = [("Attack success rate", "asr"), ("CACC drop", "cacc_drop")]
    if all(summary.of(metric).mean is None for summary in mine for _, metric in panels):
        return None
    beside = len(cells) <= _CELLS_BESIDE
    rows = [wrapped(setting, _LABEL_CHARACTERS) for setting in settings]
    line = max(28, 14 + 16 * max(row.count("<br>") + 1 for row in rows))
    height = 260 + line * len(settings) * (1 if beside else 2)
    figure = make_subplots(
        **({"cols": 2, "rows": 1} if beside else {"cols": 1, "rows": 2}),
        subplot_titles=[title for title, _ in panels],
        shared_yaxes=beside,
        shared_xaxes=not beside,
        horizontal_spacing=0.03,
        vertical_spacing=0 if beside else 50 / height,
    )
    for place, (title, metric) in enumerate(panels, start=1):
        trace = _heat_map(mine, cells, settings, metric, title)
        trace.update(x=[wrapped(cell, _LABEL_CHARACTERS) for cell in cells], y=rows)
        figure.add_trace(trace, row=1 if beside else place, col=place if beside else 1)
    margin = {"t": 50, "b": 20, "l": 20, "r": 20}
    figure.update_layout(**layout(height, margin=margin, plot_bgcolor="#E4E4E4"))
    figure.update_xaxes(tickangle=-40, automargin=True, type="category", showgrid=False)
    figure.update_yaxes(autorange="reversed", automargin=True, type="category", showgrid=False)
    return figure


def _heat_map(
    mine: Iterable[Summary],
    cells: Sequence[str],
    settings: Sequence[str],
    metric: str,
    title: str,
) -> go.Heatmap:
    found = {(summary.setting, summary.cell): summary.of(metric) for summary in mine}
    grid = [[found.get((setting, cell), Estimate()) for cell in cells] for setting in settings]
    means = [abs(e.mean) for row in grid for e in row if e.mean is not None]
    reach = max([*means, 0.05])
    colours: dict[str, Any] = (
        {"colorscale": "Cividis", "zmin": 0, "zmax": 1}
        if metric == "asr"
        else {"colorscale": "RdBu", "reversescale": True, "zmin": -reach, "zmax": reach}
    )
    return go.Heatmap(
        z=[[estimate.mean for estimate in row] for row in grid],
        text=[["" if e.mean is None else _two_decimals(e.mean) for e in row] for row in grid],
        texttemplate="%{text}",
        textfont={"size": 11},
        hovertext=[
            [
                hover({"": setting, "Attack cell": cell, title: with_interval(estimate)})
                for cell, estimate in zip(cells, row, strict=True)
            ]
            for setting, row in zip(settings, grid, strict=True)
        ],
        hoverinfo="text",
        xgap=1,
        ygap=1,
        showscale=False,
        **colours,
    )


def _two_decimals(value: float) -> str:
    text = f"{value:.2f}"
    return "0.00" if text == "-0.00" else text

"""The heat maps: every attack cell against every defense setting."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from analysis.exports import with_interval
from analysis.looks import hover, layout, wrapped
from analysis.seeds import Estimate
from analysis.summaries import Summary

MOST_ROWS = 80
"""The heat maps show the first so many defense settings; tables and `summary.csv` have all."""
_LABEL_CHARACTERS = 40
_CELLS_BESIDE = 9
"""Up to so many attack cells the two heat maps stand beside each other; above, one over the other."""


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

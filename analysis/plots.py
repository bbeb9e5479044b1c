"""The trade-off, as a figure of the report and as a static picture. Both take the values of `summaries` and `worst`."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.columns import TWIN, shown
from analysis.exports import with_interval
from analysis.fronts import interval_front
from analysis.looks import (
    ASR_TITLE,
    CACC_TITLE,
    MATPLOTLIB_SYMBOLS,
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
)
from analysis.summaries import Summary
from analysis.tradeoff import Point, cell_points, pareto_front, worst_points
from analysis.worst import WorstCase
from backdoor_core.errors import DataError, DependencyError

_PANELS_BESIDE = 3


def tradeoff_figure(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> go.Figure | None:
    """ASR against CACC with the Pareto front, for the worst case and, by a menu, for each attack cell.

    None where no cell of the setup has both numbers.
    """
    choices = _choices(summaries, worst, setup)
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
        yaxis={"title": CACC_TITLE, "range": _cacc_range(choices)},
    )
    return figure


def _cacc_range(choices: Mapping[str, Sequence[Point]]) -> tuple[float, float]:
    return cacc_range(
        [
            value
            for points in choices.values()
            for point in points
            for value in (point.cacc.mean, point.cacc.low, point.cacc.high)
            if value is not None
        ]
    )


def _choices(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> dict[str, list[Point]]:
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


def require_matplotlib() -> None:
    """Raises DependencyError where no static picture can be drawn; to be asked before anything is written."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "a static picture needs matplotlib; install the extra: pip install -c constraints.txt -e '.[notebook]'"
        ) from error


def static_tradeoff(
    found: Sequence[Summary],
    worst: Sequence[WorstCase],
    setup: tuple[str, str],
    *,
    by_attack: bool = False,
) -> str:
    """The trade-off of one setup as the text of an SVG picture, for a README or a paper.

    One panel: the worst case over attacks. With `by_attack` a panel for each attack cell, on common axes: for sweeps
    whose defenses do not all meet the same attacks. Raises DependencyError without matplotlib (the `notebook`
    extra), DataError where there is no point.
    """
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    choices = _choices(found, worst, setup)
    panels = {f"{WORST_CASE}, {' with '.join(setup)}": choices.pop(WORST_CASE, [])}
    if by_attack:
        panels = choices
    if not any(panels.values()):
        raise DataError(f"no defense setting of {' with '.join(setup)} has both ASR and CACC")
    columns = min(len(panels), _PANELS_BESIDE)
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 + 3.0 * columns, 1.2 + 3.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    styles = style_of(summary.defense for summary in found)
    for axes, (name, points) in zip(grid.flat, panels.items(), strict=False):
        _panel(axes, name, points, styles)
    for place, axes in enumerate(grid.flat[len(panels) :], start=len(panels)):
        axes.set_axis_off()
        grid.flat[place - columns].tick_params(labelbottom=True)
    grid.flat[0].set(xlim=SHARE_RANGE, ylim=_cacc_range(panels))
    figure.supxlabel(ASR_TITLE, fontsize=10)
    figure.supylabel(CACC_TITLE, fontsize=10)
    known: dict[str, Any] = {}
    for axes in grid.flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            known.setdefault(label, handle)
    figure.legend(
        known.values(), known.keys(), loc="outside right upper", fontsize=9, frameon=False
    )
    sink = io.StringIO()
    with rc_context({"svg.hashsalt": "backdoor-sweeps"}):  # equal data, equal file
        figure.savefig(sink, format="svg", metadata={"Date": None})
    return sink.getvalue()


def _panel(
    axes: Any, name: str, points: Sequence[Point], styles: Mapping[str, tuple[str, int]]
) -> None:
    """One plane with its points and their front, on matplotlib's axes."""
    for defense, ranked in dict.fromkeys((point.defense, point.ranked) for point in points):
        mine = [p for p in points if (p.defense, p.ranked) == (defense, ranked)]
        _draw(axes, mine, styles[defense])
    front = pareto_front(points)
    axes.step(
        [point.asr.mean or 0.0 for point in front],
        [point.cacc.mean or 0.0 for point in front],
        where="post",
        color="#333333",
        linestyle="--",
        linewidth=1,
        label="Pareto front",
    )
    axes.set_title(name.replace("$", r"\$"), fontsize=10)
    axes.grid(alpha=0.3)


def _draw(axes: Any, points: Sequence[Point], style: tuple[str, int]) -> None:
    """Points of one defense on matplotlib's axes, hollow where they are not ranked."""
    x, y = [point.asr for point in points], [point.cacc for point in points]
    across, along = error_bars(x), error_bars(y)
    name = points[0].defense if points[0].defense != TWIN else UNDEFENDED
    name = name.replace("$", r"\$")  # not the start of a formula
    axes.errorbar(
        [estimate.mean or 0.0 for estimate in x],
        [estimate.mean or 0.0 for estimate in y],
        xerr=[across["arrayminus"], across["array"]],
        yerr=[along["arrayminus"], along["array"]],
        fmt=MATPLOTLIB_SYMBOLS[style[1]],
        color=style[0],
        markerfacecolor=style[0] if points[0].ranked else "none",
        linewidth=0.8,
        capsize=2,
        label=name if points[0].ranked else f"{name} (not ranked)",
    )

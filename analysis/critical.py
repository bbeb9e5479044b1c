"""The critical-difference diagram: average ranks on an axis, best on the right, bars over what is not shown to differ.

After Demsar 2006 (Journal of Machine Learning Research 7, 1-30), figure 1. Both pictures are drawn from one layout:
x is the average rank, y counts lines of text downward from the axis.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.columns import TWIN
from analysis.looks import (
    MATPLOTLIB_SYMBOLS,
    SYMBOLS,
    UNDEFENDED,
    hover,
    layout,
    plain,
    style_of,
)
from analysis.rank_tests import Ranking
from backdoor_core.errors import DependencyError

_LABEL_CHARACTERS = 34
_BAR_STEP = 0.5
_ROW_GAP = 0.5
_EDGE_SHARE = 0.06
"""Room between the outermost ranks and the labels, as a share of the axis."""
_RULER, _TICK_LABELS, _TICK = -2.2, -0.9, -0.35
_INK = "#333333"
_PIXELS_A_LINE, _PIXELS_A_CHARACTER = 19, 7.2
_INCHES_A_LINE, _AXIS_INCHES = 0.17, 5.0


@dataclass(frozen=True, kw_only=True)
class _Label:
    """One method: its rank, and the row on which its label stands; `edge` is where its line ends."""

    method: str
    text: str
    rank: float
    right: bool
    edge: float
    y: float


@dataclass(frozen=True, kw_only=True)
class _Diagram:
    """Where everything stands. `bars` are (best rank, worst rank, y); `limits` the worst and best end of the axis."""

    labels: tuple[_Label, ...]
    bars: tuple[tuple[float, float, float], ...]
    limits: tuple[float, float]
    depth: float


def critical_difference_figure(
    ranking: Ranking, *, title: str, defenses: Mapping[str, str] | None = None
) -> go.Figure:
    """The diagram for the report. `title` names what was ranked; its width follows the page.

    `defenses` gives the catalog name of each method, so that colours are those of the other figures; without it
    each method has its own.
    """
    diagram = _diagram(ranking)
    styles = _styles(ranking, defenses)
    figure = go.Figure()
    for label in diagram.labels:
        colour, symbol = styles[label.method]
        figure.add_trace(
            go.Scatter(
                x=[label.rank, label.rank, label.edge],
                y=[0, label.y, label.y],
                mode="lines+markers",
                line={"color": colour, "width": 1.5},
                marker={"color": colour, "symbol": SYMBOLS[symbol], "size": [9, 0, 0]},
                name=plain(label.method),
                hovertext=hover({"": label.method, "Average rank": f"{label.rank:.3f}"}),
                hoverinfo="text",
                cliponaxis=False,
            )
        )
    for best, worst, bar in diagram.bars:
        figure.add_trace(_line([best, worst], [bar, bar], 5))
    for x, y in _scale(ranking):
        figure.add_trace(_line(x, y, 1.5))
    scale = _scale_texts(ranking)
    heading = "<br>".join(plain(line) for line in _heading(ranking, title))
    height = int(_PIXELS_A_LINE * (diagram.depth - _RULER + 1.5)) + 100
    room = {True: 20, False: 20}
    for label in diagram.labels:
        longest = max(len(line) for line in label.text.split("\n"))
        room[label.right] = max(room[label.right], 16 + round(_PIXELS_A_CHARACTER * longest))
    figure.update_layout(
        **layout(height, margin={"t": 90, "b": 10, "l": room[False], "r": room[True]}),
        title={
            "text": heading,
            "font": {"size": 13},
            **{"x": 0, "xref": "container", "xanchor": "left"},
            **{"y": 1, "yref": "container", "yanchor": "top", "pad": {"t": 12, "l": 12}},
        },
        showlegend=False,
        xaxis={"range": diagram.limits, "visible": False, "fixedrange": True},
        yaxis={"range": (diagram.depth, _RULER - 1.5), "visible": False, "fixedrange": True},
        annotations=[*map(_annotation_of_scale, scale), *map(_annotation_of_label, diagram.labels)],
    )
    return figure


def static_critical_difference(
    ranking: Ranking, *, title: str, defenses: Mapping[str, str] | None = None
) -> str:
    """The diagram as the text of an SVG picture, for a README or a paper; equal rankings give equal text.

    Raises DependencyError without matplotlib (the `notebook` extra).
    """
    figure = drawn(ranking, title=title, defenses=defenses)
    from matplotlib import rc_context

    sink = io.StringIO()
    with rc_context({"svg.hashsalt": "backdoor-sweeps"}):  # equal data, equal file
        figure.savefig(
            sink, format="svg", metadata={"Date": None}, bbox_inches="tight", pad_inches=0.1
        )
    return sink.getvalue()


def drawn(ranking: Ranking, *, title: str, defenses: Mapping[str, str] | None = None) -> Any:
    """The diagram as a matplotlib figure; save it with `bbox_inches="tight"`, since labels stand beside the axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise DependencyError(
            "a static picture needs matplotlib; install the extra: pip install 'backdoor-sweeps[notebook]'"
        ) from error
    diagram = _diagram(ranking)
    styles = _styles(ranking, defenses)
    top = _RULER - 1.2
    figure = Figure(figsize=(_AXIS_INCHES, _INCHES_A_LINE * (diagram.depth - top)))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=diagram.limits, ylim=(diagram.depth, top))
    axes.set_axis_off()
    for label in diagram.labels:
        colour, symbol = styles[label.method]
        x, y = [label.rank, label.rank, label.edge], [0, label.y, label.y]
        axes.plot(x, y, color=colour, linewidth=1.1, clip_on=False)
        axes.plot(x[:1], y[:1], marker=MATPLOTLIB_SYMBOLS[symbol], color=colour, ms=5, zorder=3)
    for best, worst, bar in diagram.bars:
        axes.plot([best, worst], [bar, bar], color=_INK, linewidth=3.5, solid_capstyle="butt")
    for xs, ys in _scale(ranking):
        axes.plot(xs, ys, color=_INK, linewidth=1)
    style: dict[str, Any] = {"fontsize": 9, "color": _INK, "parse_math": False}
    for x_text, y_text, text, side in [*_scale_texts(ranking), *_label_texts(diagram)]:
        axes.text(x_text, y_text, text, ha=side, va="center", **style)
    heading = "\n".join(_heading(ranking, title))
    axes.text(0, 1, heading, transform=axes.transAxes, va="bottom", **style)
    return figure


def _diagram(ranking: Ranking) -> _Diagram:
    count = len(ranking.methods)
    room = _EDGE_SHARE * (count - 1)
    bars, depth = _bars(ranking, room / 4)
    worst_end, best_end = count + room, min(1.0, count - ranking.critical_difference) - room
    places = list(zip(ranking.methods, ranking.average_ranks, strict=True))
    middle = count // 2
    labels: list[_Label] = []
    ends = []
    for right, side in ((True, places[:middle]), (False, places[middle:][::-1])):
        y = depth
        for method, rank in side:
            text = _text(method, rank, right)
            lines = text.count("\n") + 1
            edge = best_end if right else worst_end
            place = y + lines / 2
            labels.append(
                _Label(method=method, text=text, rank=rank, right=right, edge=edge, y=place)
            )
            y += lines + _ROW_GAP
        ends.append(y)
    return _Diagram(
        labels=tuple(labels), bars=tuple(bars), limits=(worst_end, best_end), depth=max(ends)
    )


def _bars(ranking: Ranking, overhang: float) -> tuple[list[tuple[float, float, float]], float]:
    """The bars of the groups, each on the first level where it touches no other; and the y below them."""
    ranks = dict(zip(ranking.methods, ranking.average_ranks, strict=True))
    reached: list[float] = []
    bars = []
    for group in ranking.groups:
        best, worst = ranks[group[0]] - overhang, ranks[group[-1]] + overhang
        level = next((n for n, end in enumerate(reached) if end < best - overhang), len(reached))
        reached[level:] = [worst, *reached[level + 1 :]]
        bars.append((best, worst, _BAR_STEP * (level + 1.2)))
    return bars, _BAR_STEP * (len(reached) + 1.2)


def _text(method: str, rank: float, right: bool) -> str:
    """The label with its rank on the side of the line; long ones take several lines."""
    name = UNDEFENDED if method == TWIN else method
    lines = textwrap.wrap(name, _LABEL_CHARACTERS, break_on_hyphens=False) or [""]
    lines[0] = f"{rank:.2f}  {lines[0]}" if right else f"{lines[0]}  {rank:.2f}"
    return "\n".join(lines)


def _heading(ranking: Ranking, title: str) -> list[str]:
    p = f"p = {ranking.p:.3f}" if ranking.p >= 0.001 else "p < 0.001"
    meaning = (
        f"Bars join what is not shown to differ (Nemenyi, alpha = {ranking.alpha:g})"
        if ranking.significant
        else f"No difference found at alpha = {ranking.alpha:g}, so one bar joins all"
    )
    return [
        title,
        f"Average rank over {ranking.blocks} blocks, 1 is best. Friedman's test: {p}",
        meaning,
    ]


def _scale(ranking: Ranking) -> list[tuple[list[float], list[float]]]:
    """Lines of the axis with its ticks, and of the ruler that is as long as the critical difference."""
    count = len(ranking.methods)
    start, end = float(count), count - ranking.critical_difference
    lines = [([float(count), 1.0], [0.0, 0.0]), ([start, end], [_RULER, _RULER])]
    lines += [([float(rank)] * 2, [0.0, _TICK]) for rank in range(1, count + 1)]
    lines += [([x, x], [_RULER - 0.2, _RULER + 0.2]) for x in (start, end)]
    return lines


def _scale_texts(ranking: Ranking) -> list[tuple[float, float, str, str]]:
    """Texts of the axis and the ruler: x, y, text, and how it stands to x."""
    count = len(ranking.methods)
    texts = [(float(rank), _TICK_LABELS, str(rank), "center") for rank in range(1, count + 1)]
    name = f"Critical difference (CD) = {ranking.critical_difference:.2f}"
    return [*texts, (float(count), _RULER - 0.75, name, "left")]


def _label_texts(diagram: _Diagram) -> list[tuple[float, float, str, str]]:
    gap = 0.01 * (diagram.limits[0] - diagram.limits[1])
    return [
        (label.edge - gap, label.y, label.text, "left")
        if label.right
        else (label.edge + gap, label.y, label.text, "right")
        for label in diagram.labels
    ]


def _styles(ranking: Ranking, defenses: Mapping[str, str] | None) -> dict[str, tuple[str, int]]:
    names = {method: (defenses or {}).get(method, method) for method in ranking.methods}
    # In the order of the sweep, as in all other figures, not in that of the ranks.
    styles = style_of([*(defenses or {}).values(), *names.values()])
    return {method: styles[name] for method, name in names.items()}


def _line(x: Sequence[float], y: Sequence[float], width: float) -> go.Scatter:
    return go.Scatter(
        x=x, y=y, mode="lines", line={"color": _INK, "width": width}, hoverinfo="skip"
    )


def _annotation_of_scale(text: tuple[float, float, str, str]) -> dict[str, Any]:
    x, y, words, side = text
    return {"x": x, "xref": "x"} | _annotation(y, words, side)


def _annotation_of_label(label: _Label) -> dict[str, Any]:
    """A label beside the axes. Plotly hides what stands beyond an axis' range, so it is placed by the paper."""
    side, shift = ("left", 6) if label.right else ("right", -6)
    place = {"x": 1 if label.right else 0, "xref": "paper", "xshift": shift}
    return place | _annotation(label.y, label.text, side)


def _annotation(y: float, text: str, side: str) -> dict[str, Any]:
    return {
        "y": y,
        "yref": "y",
        "text": plain(text).replace("\n", "<br>"),
        "xanchor": side,
        "yanchor": "middle",
        "align": side,
        "showarrow": False,
    }

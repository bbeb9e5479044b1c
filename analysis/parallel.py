"""Parallel coordinates: every tried setting of a defense as a line over its settings, ASR and CACC drop.

Drawn as ordinary lines, since Plotly's own parallel coordinates need WebGL and code made at run time, which neither a
strict page nor every machine has.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.columns import is_number, shown
from analysis.looks import SEQUENTIAL, binned, hover, layout, menu, plain, wrapped
from backdoor_core.spec import canonical_json

MOST_LINES = 600
"""Of more lines evenly spaced ones are drawn."""
_MOST_TICKS = 9
_LEAST_TICK_GAP = 0.06
_LOG_SPAN = 10.0
_TITLE_CHARACTERS = 16
_TICK_CHARACTERS = 26
_CHARACTERS_ACROSS = 110
"""Characters of titles that fit above all axes together."""
_LINE_COLOURINGS = (("ASR", "asr"), ("CACC drop", "cacc_drop"))
_UNKNOWN_COLOUR = "#9A9A9A"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One tried setting: where it was tried, its settings, and what it came to; None where that is not known."""

    where: str
    settings: Mapping[str, Any]
    asr: float | None
    cacc_drop: float | None


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """One upright axis: its title, the height (0 to 1) of each line on it (None: not on it), its tick labels."""

    title: str
    heights: tuple[float | None, ...]
    ticks: tuple[tuple[float, str], ...]


def parallel_figure(lines: Sequence[Line], settings: Sequence[str]) -> go.Figure | None:
    """The figure of one defense over the settings named; a menu colours it by ASR or by CACC drop.

    None for fewer than two lines, or where nothing varies.
    """
    lines = [line for line in lines if line.asr is not None or line.cacc_drop is not None]
    if len(lines) < 2 or not settings:
        return None
    lines = _thinned(lines)
    axes = [*_where(lines), *(_setting_axis(lines, name) for name in settings)]
    drops = [line.cacc_drop for line in lines if line.cacc_drop is not None]
    ends = (min([0.0, *drops]), max([0.01, *drops]))
    axes += [_axis("ASR", [line.asr for line in lines], (0.0, 1.0))]
    axes += [_axis("CACC drop", [line.cacc_drop for line in lines], ends)]
    figure = go.Figure()
    owners: list[str] = []
    for title, metric in _LINE_COLOURINGS:
        for trace in _coloured(lines, axes, title, metric):
            trace.visible = not owners or owners[0] == title
            figure.add_trace(trace)
            owners.append(title)
    colouring = menu([title for title, _ in _LINE_COLOURINGS], owners)
    for button, (title, _) in zip(colouring["buttons"], _LINE_COLOURINGS, strict=True):
        button["label"] = f"Coloured by {title}"
    colouring |= {"y": 1.19}
    figure.update_layout(
        **layout(480, updatemenus=[colouring], margin={"t": 120, "b": 30, "l": 175, "r": 60}),
        showlegend=False,
        hovermode="closest",
        annotations=[
            note for place, axis in enumerate(axes) for note in _notes(place, axis, len(axes))
        ],
        shapes=[_upright(place) for place in range(len(axes))],
        xaxis={"range": (-0.05, len(axes) - 0.9), "visible": False, "fixedrange": True},
        yaxis={"range": (-0.04, 1.04), "visible": False, "fixedrange": True},
    )
    return figure


def _thinned(lines: Sequence[Line]) -> list[Line]:
    if len(lines) <= MOST_LINES:
        return list(lines)
    return [lines[place * len(lines) // MOST_LINES] for place in range(MOST_LINES)]


def _where(lines: Sequence[Line]) -> list[_Axis]:
    """The axis of attack cells, where there are several."""
    names = [line.where for line in lines]
    return [_category_axis("Attack cell", names)] if len(set(names)) > 1 else []


def _setting_axis(lines: Sequence[Line], name: str) -> _Axis:
    values = [line.settings.get(name) for line in lines]
    if all(value is None or is_number(value) for value in values):
        return _axis(name, [None if value is None else float(value) for value in values])
    return _category_axis(name, [shown(value) for value in values])


def _category_axis(title: str, names: Sequence[str]) -> _Axis:
    known = sorted(set(names))
    place = {name: (i + 0.5) / len(known) for i, name in enumerate(known)}
    step = math.ceil(len(known) / _MOST_TICKS)
    return _Axis(
        title=title,
        heights=tuple(place[name] for name in names),
        ticks=tuple((place[name], name) for name in known[::step]),
    )


def _axis(
    title: str, values: Sequence[float | None], limits: tuple[float, float] | None = None
) -> _Axis:
    """An axis of numbers; without limits as wide as they are, logarithmic where they span more than a decade."""
    known = sorted({value for value in values if value is not None and math.isfinite(value)})
    if not known:
        return _Axis(title=title, heights=(None,) * len(values), ticks=((0.5, "not known"),))
    logarithmic = limits is None and known[0] > 0 and known[-1] / known[0] > _LOG_SPAN
    outer = limits or (known[0], known[-1])
    low, high = (math.log(end) if logarithmic else end for end in outer)

    def height(value: float | None) -> float | None:
        if value is None or not math.isfinite(value):
            return None
        return (
            ((math.log(value) if logarithmic else value) - low) / (high - low)
            if high > low
            else 0.5
        )

    marks = known
    if limits is not None or len(known) > _MOST_TICKS:
        ends = [low + (high - low) * i / 5 for i in range(6)]
        marks = [math.exp(end) if logarithmic else end for end in ends]
    return _Axis(
        title=title,
        heights=tuple(height(value) for value in values),
        ticks=tuple(_spaced((height(mark) or 0.0, f"{mark:.3g}") for mark in marks)),
    )


def _spaced(ticks: Iterable[tuple[float, str]]) -> list[tuple[float, str]]:
    kept: list[tuple[float, str]] = []
    for tick in ticks:
        if not kept or tick[0] - kept[-1][0] >= _LEAST_TICK_GAP:
            kept.append(tick)
    return kept


def _coloured(
    lines: Sequence[Line], axes: Sequence[_Axis], title: str, metric: str
) -> list[go.Scatter]:
    """The lines by the step of colour that a metric gives them, then marks that carry the hover boxes and the scale."""
    values: list[float | None] = [getattr(line, metric) for line in lines]
    known = [value for value in values if value is not None]
    low, high = (0.0, 1.0) if metric == "asr" else (min([0.0, *known]), max([0.05, *known]))
    steps: dict[int | None, list[int]] = {}
    for place, value in enumerate(values):
        steps.setdefault(None if value is None else binned(value, low, high), []).append(place)
    traces = []
    for step in sorted(steps, key=lambda step: (step is not None, -(step or 0))):
        colour = _UNKNOWN_COLOUR if step is None else SEQUENTIAL[step]
        x, y = _path(steps[step], axes)
        traces.append(
            go.Scatter(
                x=x, y=y, mode="lines", line={"color": colour, "width": 1.6}, opacity=0.75,
                hoverinfo="skip",
            )
        )  # fmt: skip
    return [*traces, _marks(lines, axes, values, title, (low, high))]


def _path(places: Sequence[int], axes: Sequence[_Axis]) -> tuple[list[float | None], list[Any]]:
    """Several lines as one, with gaps between them and where a line is not on an axis."""
    x: list[float | None] = []
    y: list[float | None] = []
    for place in places:
        for number, axis in enumerate(axes):
            x.append(number)
            height = axis.heights[place]
            y.append(None if height is None else round(height, 4))
        x.append(None)
        y.append(None)
    return x, y


def _marks(
    lines: Sequence[Line],
    axes: Sequence[_Axis],
    values: Sequence[float | None],
    title: str,
    limits: tuple[float, float],
) -> go.Scatter:
    last = len(axes) - 1
    ends = [(last if line.cacc_drop is not None else last - 1) for line in lines]
    return go.Scatter(
        x=ends,
        y=[axes[end].heights[place] for place, end in enumerate(ends)],
        mode="markers",
        marker={
            "size": 7,
            "color": [
                _UNKNOWN_COLOUR if v is None else SEQUENTIAL[binned(v, *limits)] for v in values
            ],
            "line": {"width": 0},
            "showscale": False,
        },
        hovertext=[_text(line) for line in lines],
        hoverinfo="text",
        name=plain(title),
        cliponaxis=False,
    )


def _text(line: Line) -> str:
    known = {"": line.where} | {name: shown(value) for name, value in sorted(line.settings.items())}
    for title, metric in _LINE_COLOURINGS:
        value = getattr(line, metric)
        known[title] = "not known here" if value is None else f"{value:.3f}"
    return hover(known)


def _notes(place: int, axis: _Axis, axes: int) -> list[dict[str, Any]]:
    """The title above an axis, and its tick labels on its left."""
    common = {"xref": "x", "yref": "y", "showarrow": False, "x": place}
    # By the paper: Plotly hides what stands beyond an axis' range.
    title: dict[str, Any] = {"text": f"<b>{_title(axis.title, axes)}</b>", "yref": "paper"}
    title |= {"y": 1.01, "yanchor": "bottom"}
    ticks = [
        common
        | {"text": wrapped(text, _TICK_CHARACTERS), "y": height, "xanchor": "right", "xshift": -5}
        | {"font": {"size": 11}, "bgcolor": "rgba(255,255,255,0.75)", "align": "right"}
        for height, text in axis.ticks
    ]
    return [common | title, *ticks]


def _title(name: str, axes: int) -> str:
    """A title over as many lines as the room between axes asks for; names may break after underscores."""
    characters = max(9, min(_TITLE_CHARACTERS, _CHARACTERS_ACROSS // axes))
    return wrapped(name.replace("_", "_ "), characters).replace("_ ", "_")


def _upright(place: int) -> dict[str, Any]:
    line = {"color": "#555555", "width": 1}
    return {
        "type": "line",
        "x0": place,
        "x1": place,
        "y0": 0,
        "y1": 1,
        "line": line,
        "layer": "above",
    }


def line_order(line: Line) -> tuple[str, str]:
    """Sorts lines so that equal tables give equal figures."""
    return line.where, canonical_json(dict(line.settings))

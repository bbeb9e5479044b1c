"""How figures look: colours that colour-blind readers can tell apart, symbols beside them, words on axes.

The palette is that of Okabe and Ito. Colour and symbol always change together, so neither carries the
meaning alone.
"""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from analysis.columns import TWIN
from analysis.seeds import Estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A6A00", "#000000")
"""Okabe and Ito's, with the yellow darkened so that it shows on white."""
SYMBOLS = (
    *("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x"),
    *("star", "pentagon", "hexagon", "hourglass", "bowtie"),
)
MATPLOTLIB_SYMBOLS = ("o", "s", "D", "^", "v", "P", "X", "*", "p", "h", "8", "d")
"""Matplotlib's names for the symbols, in the same order."""
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
WORST_CASE = "Worst case over attacks"
UNDEFENDED = "none (undefended)"
UNDEFENDED_COLOUR = "#6E6E6E"
SEQUENTIAL = ("#00224E", "#2E4A6F", "#575C6E", "#7D7C78", "#A59C74", "#C4B15C")
"""Steps of Cividis from low to high, without its brightest yellows, which lines on white would lose."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
ASR_TITLE = "Attack success rate (ASR), share of triggered rows"
CACC_TITLE = "Clean accuracy (CACC), share of clean rows"
ASR_SHORT = "ASR, share of triggered rows"
CACC_SHORT = "CACC, share of clean rows"
SHARE_RANGE = (-0.03, 1.03)
_MARGIN_SHARE = 0.12
_DECADE = 10.0


def style_of(names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """Colour and number of the symbol for each name, by first appearance; `none` is grey.

    `none` has a symbol of its own. The counts of the other symbols and of the colours share no divisor, so pairs
    repeat only after 88 names.
    """
    styles: dict[str, tuple[str, int]] = {}
    for name in names:
        if name in styles:
            continue
        place = len([known for known in styles if known != TWIN])
        colour = UNDEFENDED_COLOUR if name == TWIN else COLOURS[place % len(COLOURS)]
        symbol = len(SYMBOLS) - 1 if name == TWIN else place % (len(SYMBOLS) - 1)
        styles[name] = (colour, symbol)
    return styles


def plain(text: str) -> str:
    """Text that Plotly shows as it is: Plotly reads a few HTML tags in every label."""
    return html.escape(text, quote=False)


def wrapped(text: str, characters: int) -> str:
    """Text for a label of Plotly, escaped, over several lines where it is longer than `characters`."""
    lines = textwrap.wrap(text, characters, break_on_hyphens=False) or [""]
    return "<br>".join(plain(line) for line in lines)


def cacc_range(values: Sequence[float]) -> tuple[float, float]:
    """An axis range around accuracies, with room at both ends, within what a share can be."""
    low, high = min(values), max(values)
    room = max(_MARGIN_SHARE * (high - low), 0.02)
    return max(SHARE_RANGE[0], low - room), min(SHARE_RANGE[1], high + room)


def number_axis(values: Iterable[float]) -> dict[str, Any]:
    """Plotly's settings for an axis over these values: logarithmic where they span more than a decade."""
    known = sorted(set(values))
    logarithmic = known[0] > 0 and known[-1] / known[0] > _DECADE
    axis: dict[str, Any] = {"type": "log" if logarithmic else "linear", "exponentformat": "none"}
    if logarithmic:
        shown = [value for place, value in enumerate(known) if _has_room(known, place)]
        axis |= {"tickvals": shown, "ticktext": [f"{value:g}" for value in shown]}
    return axis


def _has_room(known: Sequence[float], place: int) -> bool:
    """Whether a tick label at `known[place]` keeps clear of the one before it."""
    if place == 0:
        return True
    whole = math.log(known[-1] / known[0])
    return math.log(known[place] / known[place - 1]) / whole > 0.05


def layout(height: int, **more: Any) -> dict[str, Any]:
    """The layout that all figures share. `height` in pixels; the width follows the page."""
    return {
        "template": "plotly_white",
        "height": height,
        "font": {"family": FONT, "size": 13},
        "margin": {"l": 70, "r": 20, "t": 50, "b": 60},
        "legend": {"font": {"size": 12}, "x": 1.02, "y": 1, "tracegroupgap": 2},
        "hoverlabel": {"align": "left", "namelength": -1},
        **more,
    }


def binned(value: float, low: float, high: float) -> int:
    """The step of `SEQUENTIAL` for a value between `low` and `high`; beyond them the outermost."""
    if high <= low:
        return 0
    share = (value - low) / (high - low)
    return min(len(SEQUENTIAL) - 1, max(0, int(share * len(SEQUENTIAL))))


def hover(lines: Mapping[str, str]) -> str:
    """The text of a hover box: a bold first line, then `name: value`. Everything in it is escaped."""
    rows = [
        f"{plain(name)}: {plain(value)}" if name else f"<b>{plain(value)}</b>"
        for name, value in lines.items()
    ]
    return "<br>".join(rows)


def error_bars(estimates: Sequence[Estimate]) -> dict[str, Any]:
    """Plotly's error bars of estimates; those without an interval get none."""
    above = [
        0.0 if e.high is None or e.mean is None else max(0, e.high - e.mean) for e in estimates
    ]
    below = [0.0 if e.low is None or e.mean is None else max(0, e.mean - e.low) for e in estimates]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1,
        "width": 3,
    }


def menu(names: Sequence[str], owners: Sequence[str]) -> dict[str, Any]:
    """A menu of choices; `owners` names the choice that each trace belongs to."""
    return {
        "buttons": [
            {
                "label": plain(name),
                "method": "update",
                "args": [{"visible": [owner == name for owner in owners]}],
            }
            for name in names
        ],
        "direction": "down",
        "x": 0,
        "xanchor": "left",
        "y": 1.03,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": 0},
        "bgcolor": "#FFFFFF",
        "showactive": True,
    }

"""The trade-off as a picture for a README or a paper, drawn with matplotlib (the `notebook` extra)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.columns import TWIN
from analysis.looks import (
    ASR_TITLE,
    CACC_TITLE,
    MATPLOTLIB_SYMBOLS,
    SHARE_RANGE,
    UNDEFENDED,
    WORST_CASE,
    error_bars,
    style_of,
)
from analysis.plots import cacc_range_of, tradeoff_choices
from analysis.summaries import Summary
from analysis.tradeoff import Point, pareto_front
from analysis.worst import WorstCase
from backdoor_core.errors import DataError, DependencyError

_PANELS_BESIDE = 3


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

    choices = tradeoff_choices(found, worst, setup)
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
    grid.flat[0].set(xlim=SHARE_RANGE, ylim=cacc_range_of(panels))
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

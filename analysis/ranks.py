"""The critical-difference diagram of one setup, for the report and as a picture, or why there is none."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.columns import DEFAULT, ORACLE, TWIN
from analysis.comparison import LOWER_IS_BETTER, Comparison, compare
from analysis.summaries import Summary
from analysis.table import ResultTable
from backdoor_core.errors import DataError

METRIC = "asr"
MOST_METHODS = 14
"""Of more defense settings each defense gives its best to the diagram."""


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The comparison of one setup (None: there is none), its title, and what a reader must know of it."""

    comparison: Comparison | None
    title: str
    notes: tuple[str, ...]


def ranks(
    results: ResultTable, found: Sequence[Summary], setup: tuple[str, str], metric: str = METRIC
) -> Ranks:
    """Ranks the defense settings of one setup over attack cells and seeds. Raises ConfigError for an unknown metric."""
    chosen, cut = _chosen(found, setup, metric)
    notes = []
    if chosen is not None:
        notes.append(
            f"There are more than {MOST_METHODS} settings: of each defense and tuning mode the one with the best "
            f"mean {metric} on test stands here, which flatters those with many settings."
        )
    if cut:
        notes.append(
            f"The diagram holds {MOST_METHODS}; left out, whatever their numbers, as what is undefended or "
            f"at mode {DEFAULT} goes first and the rest by name: {'; '.join(cut)}."
        )
    title = f"{metric} of {' with '.join(setup)}"
    try:
        comparison = compare(results, metric, setup=setup, settings=chosen)
    except DataError as error:
        return Ranks(comparison=None, title=title, notes=(_why_not(metric, error), *notes))
    if comparison.left_out and chosen is None:
        left = "; ".join(f"{name}: {why}" for name, why in comparison.left_out.items())
        notes.append(f"Left out: {left}.")
    return Ranks(comparison=comparison, title=title, notes=(comparison.caution, *notes))


def _why_not(metric: str, error: DataError) -> str:
    """The reason for readers; what else `compare` says is for its callers."""
    sentences = str(error).removesuffix(".").split(". ")
    kept = [text for text in sentences if not text.startswith(("Left out", "Name the", "For two"))]
    return f"No ranking by {metric}: {'. '.join(kept)}."


def _chosen(
    found: Sequence[Summary], setup: tuple[str, str], metric: str
) -> tuple[list[str] | None, list[str]]:
    """The settings to compare where there are too many for a diagram (None: all), and the best of others, cut off."""
    means: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        if one.setup != setup or one.adaptive or one.tuning_mode == ORACLE:
            continue
        value = one.of(metric).mean
        if value is not None:
            means[(one.defense, one.tuning_mode)][one.setting].append(value)
    if sum(len(settings) for settings in means.values()) <= MOST_METHODS:
        return None, []
    sign = 1 if metric in LOWER_IS_BETTER else -1
    most = {kind: max(map(len, settings.values())) for kind, settings in means.items()}
    best = [
        min(
            (sign * sum(values) / len(values), name)
            for name, values in settings.items()
            if len(values) == most[kind]
        )[1]
        for kind, settings in means.items()
    ]
    ordered = sorted(means, key=lambda kind: (kind[0] != TWIN, kind[1] != DEFAULT))
    names = dict(zip(means, best, strict=True))
    every = [names[kind] for kind in ordered]
    return every[:MOST_METHODS], every[MOST_METHODS:]

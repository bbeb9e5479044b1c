"""How much a defense's settings matter: response curves, importances, and stability over what was tried.

All three read the settings of one defense in one setup, from the ledger's rows (a grid) or from the tuning table (a
search): see `tried_settings`.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from analysis.columns import is_number, shown
from analysis.seeds import NOTHING, Estimate, over_seeds
from analysis.summaries import estimate
from analysis.tried import Tried, tried_settings, value_text, varying_settings
from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.spec import canonical_json

MOST_VALUES = 12
"""A numeric setting with more values than this is cut into bins for its curve."""
BINS = 8
_RANGES = {"asrd": (-1.0, 1.0), "cacc_drop": (-1.0, 1.0), "seconds": (0.0, math.inf)}
_SHARES = frozenset(("cacc", "asr", "asr_max", "frr", "far", "triggered_accuracy", "auroc"))


@dataclass(frozen=True, kw_only=True)
class ResponsePoint:
    """The metric at one value of a setting, or over a bin of values from `low` to `high` (`value`: its median).

    `rows` were averaged: first within each seed, then over seeds.
    """

    value: Any
    low: Any
    high: Any
    estimate: Estimate
    rows: int


@dataclass(frozen=True, kw_only=True)
class ResponseCurve:
    """A metric over one setting; the others are at `held`, or averaged over where they vary.

    `balanced`: every point averages over the very same cells, seeds and other settings, `left_out` rows that
    some point lacks a partner for being left out; so differences along the curve are the setting's own. A search does
    not try such a grid: there the curve is of all rows, and other settings may have moved along.
    """

    setting: str
    metric: str
    held: Mapping[str, Any] = field(default_factory=dict)
    points: tuple[ResponsePoint, ...] = ()
    balanced: bool = False
    left_out: int = 0


def response_curve(
    rows: Iterable[Mapping[str, Any]],
    setting: str,
    *,
    metric: str = "asr",
    held: Mapping[str, Any] | None = None,
) -> ResponseCurve:
    """The curve of `metric` over `setting`, with 95 % t-intervals over seeds.

    `held` fixes other settings at values; those that vary and are not held are marginalised: averaged over.
    A point of one row has that row's own interval; points of one seed and several rows have none. Numeric settings
    with more than `MOST_VALUES` values are cut into `BINS` bins of about equal numbers of rows. Raises
    ConfigError for a setting that no row has.
    """
    held = dict(held or {})
    every = tried_settings(rows, metric)
    known = {name for one in every for name in one.settings}
    for name in (setting, *held):
        if every and name not in known:
            raise ConfigError(unknown_name("setting", name, known))
    kept = [one for one in every if setting in one.settings and _is_held(one, held)]
    places = _places(kept, setting)
    contexts = [{_context(one, setting) for one in place} for place in places]
    common = set.intersection(*contexts) if contexts else set()
    if common:
        places = [[one for one in place if _context(one, setting) in common] for place in places]
    return ResponseCurve(
        setting=setting,
        metric=metric,
        held=held,
        points=tuple(_response_point(place, setting, metric) for place in places),
        balanced=bool(common),
        left_out=len(kept) - sum(len(place) for place in places),
    )


def response_curves(
    rows: Iterable[Mapping[str, Any]], *, metric: str = "asr"
) -> tuple[ResponseCurve, ...]:
    """The marginal curve of every setting that varies, by name."""
    rows = list(rows)
    names = varying_settings(tried_settings(rows, metric))
    return tuple(response_curve(rows, name, metric=metric) for name in names)


def _is_held(one: Tried, held: Mapping[str, Any]) -> bool:
    return all(value_text(one, name) == canonical_json(value) for name, value in held.items())


def _context(one: Tried, setting: str) -> tuple[Any, ...]:
    rest = {name: value for name, value in one.settings.items() if name != setting}
    return one.cell, one.seed, canonical_json(rest)


def _places(tried: Sequence[Tried], setting: str) -> list[list[Tried]]:
    """What was tried by the setting's value, in reading order; in bins where there are many numbers."""
    by_value: dict[str, list[Tried]] = defaultdict(list)
    for one in tried:
        by_value[value_text(one, setting)].append(one)
    numeric = all(is_number(same[0].settings[setting]) for same in by_value.values())

    def reading_order(same: Sequence[Tried]) -> Any:
        value = same[0].settings[setting]
        return value if numeric else shown(value)

    ordered = sorted(by_value.values(), key=reading_order)
    if not numeric or len(ordered) <= MOST_VALUES:
        return ordered
    bins: list[list[Tried]] = [[] for _ in range(BINS)]
    before = 0
    for same in ordered:
        bins[before * BINS // len(tried)] += same
        before += len(same)
    return [members for members in bins if members]


def _response_point(place: Sequence[Tried], setting: str, metric: str) -> ResponsePoint:
    values = [one.settings[setting] for one in place]
    one_value = len({canonical_json(value) for value in values}) == 1
    return ResponsePoint(
        value=values[0] if one_value else statistics.median(values),
        low=values[0] if one_value else min(values),
        high=values[0] if one_value else max(values),
        estimate=_over_seeds(metric, place),
        rows=len(place),
    )


def _over_seeds(metric: str, place: Sequence[Tried]) -> Estimate:
    if len(place) == 1:
        return estimate(metric, [place[0].row])
    by_seed: dict[int, list[float]] = defaultdict(list)
    for one in place:
        by_seed[one.seed].append(one.value)
    free = (0.0, 1.0) if metric in _SHARES else (-math.inf, math.inf)
    low, high = _RANGES.get(metric, free)
    means = [math.fsum(values) / len(values) for values in by_seed.values()]
    return over_seeds(means, floor=low, ceiling=high)


@dataclass(frozen=True, kw_only=True)
class Stability:
    """How much a metric moves over the settings that were tried; 0 is a defense that needs no tuning.

    `neighbours` is the mean absolute difference between neighbouring settings: two that differ in one setting
    only and there by one step among the values that were measured (any two values, where they are no
    numbers). `all_pairs` is the mean absolute difference over all pairs, Gini's mean difference; `spread` is
    the largest minus the smallest. Each is taken within an attack cell and seed, averaged over the cells of a seed,
    and estimated over seeds. A small `neighbours` beside a large `all_pairs` is a smooth slope; both
    large is a jagged response, on which a search cannot rely. The scores are ours; only `all_pairs` is a known
    statistic (Gini 1912; Yitzhaki and Schechtman, doi 10.1007/978-1-4614-4720-7).
    """

    metric: str
    neighbours: Estimate = NOTHING
    all_pairs: Estimate = NOTHING
    spread: Estimate = NOTHING
    neighbour_pairs: int = 0
    settings: int = 0


def stability(rows: Iterable[Mapping[str, Any]], *, metric: str = "asr") -> Stability:
    """The stability of one defense over what was tried of it; empty where no cell and seed has two settings."""
    tried = tried_settings(rows, metric)
    scores: dict[str, dict[int, list[float]]] = {
        name: defaultdict(list) for name in ("neighbours", "all_pairs", "spread")
    }
    neighbour_pairs = 0
    for (_, seed), block in blocks_of(tried).items():
        values = [one.value for one in block]
        if len(values) < 2:
            continue
        near = [abs(a.value - b.value) for a, b in _neighbours(block)]
        neighbour_pairs += len(near)
        if near:
            scores["neighbours"][seed].append(statistics.fmean(near))
        pairs = [abs(a - b) for a, b in combinations(values, 2)]
        scores["all_pairs"][seed].append(statistics.fmean(pairs))
        scores["spread"][seed].append(max(values) - min(values))
    return Stability(
        metric=metric,
        neighbour_pairs=neighbour_pairs,
        settings=len({one.identity for one in tried}),
        **{name: _averaged(by_seed) for name, by_seed in scores.items()},
    )


def blocks_of(tried: Iterable[Tried]) -> dict[tuple[Any, int], list[Tried]]:
    """What was tried by attack cell and seed: within one block only the settings differ."""
    blocks: dict[tuple[Any, int], list[Tried]] = defaultdict(list)
    for one in tried:
        blocks[(one.cell, one.seed)].append(one)
    return dict(blocks)


def _averaged(by_seed: Mapping[int, Sequence[float]]) -> Estimate:
    return over_seeds((statistics.fmean(values) for values in by_seed.values()), floor=0.0)


def _neighbours(block: Sequence[Tried]) -> Iterable[tuple[Tried, Tried]]:
    names = varying_settings(block)
    ranks = {name: _ranks(block, name) for name in names}
    texts = [tuple(value_text(one, name) for name in names) for one in block]
    for (one, a), (other, b) in combinations(zip(block, texts, strict=True), 2):
        differ = [place for place, (x, y) in enumerate(zip(a, b, strict=True)) if x != y]
        if len(differ) == 1:
            place = differ[0]
            rank = ranks[names[place]]
            if rank is None or abs(rank[a[place]] - rank[b[place]]) == 1:
                yield one, other


def _ranks(block: Sequence[Tried], name: str) -> dict[str, int] | None:
    """The place of each value among the measured numbers; None where some value is no number."""
    values = {value_text(one, name): one.settings.get(name) for one in block}
    if not all(is_number(value) for value in values.values()):
        return None
    numbers = sorted({float(value) for value in values.values() if value is not None})
    return {
        text: numbers.index(float(value)) for text, value in values.items() if value is not None
    }

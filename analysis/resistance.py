"""The resistance point: how much poison an attack needs before it succeeds against a defense.

The idea is that of Mithridates (arXiv 2302.04977, which measures how many training rows must be poisoned before a
model learns a backdoor at all). Ours differs in what counts as success (the mean ASRD over seeds, which takes
the clean twin's own errors off, reaches a level: 0.5 by default) and in that it is measured on the sweep's own
attacks and rates.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from analysis.seeds import Estimate
from analysis.summaries import Summary

Place = Literal["between", "at or below", "above", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Crossing:
    """Where a curve over the poison rate first reaches the level.

    `rate` is a share of the training rows. `place` says what it means: reached `between` measured rates (or at
    one of them) at `rate`; reached `at or below` the lowest measured rate, which is `rate`; not reached up to
    the highest measured rate, `rate`, so `above` it; `unknown` (rate None) where the curve has no numbers.
    """

    rate: float | None = None
    place: Place = "unknown"


@dataclass(frozen=True, kw_only=True)
class ResistancePoint:
    """The smallest poison rate at which one attack succeeds against one defense setting.

    `point` is where the mean ASRD over seeds reaches `level`. `low` and `high` are where the upper and the lower
    end of its interval do: the rates at which the pointwise 95 % intervals over seeds hold the level, so a set of
    rates that the data do not rule out; either end may be censored by the measured rates, and both are
    `unknown` with one seed. `seeds` is the smallest number over the rates.
    """

    task: str
    plm: str
    attack_setting: str
    adaptive: bool
    defense: str
    setting: str
    tuning_mode: str
    level: float
    point: Crossing
    low: Crossing
    high: Crossing
    rates: tuple[float, ...]
    seeds: int

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm

    @property
    def reached(self) -> bool:
        """Whether the attack succeeds at any measured rate."""
        return self.point.place in ("between", "at or below")


def resistance_points(
    summaries: Iterable[Summary], *, level: float = 0.5
) -> tuple[ResistancePoint, ...]:
    """The resistance point of each attack x defense setting that has an ASRD at two poison rates or more.

    Between two neighbouring measured rates the ASRD is taken as linear in the logarithm of the rate; the first
    crossing from below counts, also where the curve falls again later. Rates of zero are left out. The order is
    that of `summaries`.
    """
    lines: dict[tuple[str, ...], list[Summary]] = defaultdict(list)
    for summary in summaries:
        if summary.poison_rate and not summary.is_twin and summary.of("asrd").mean is not None:
            lines[(*summary.setup, summary.attack_setting, summary.setting)].append(summary)
    found = [_resistance_point(line, level) for line in lines.values()]
    return tuple(point for point in found if len(point.rates) > 1)


def _resistance_point(line: Sequence[Summary], level: float) -> ResistancePoint:
    ordered = sorted(line, key=lambda summary: summary.poison_rate or 0.0)
    curve = [(summary.poison_rate or 0.0, summary.of("asrd")) for summary in ordered]
    first = ordered[0]
    return ResistancePoint(
        task=first.task,
        plm=first.plm,
        attack_setting=first.attack_setting,
        adaptive=first.adaptive,
        defense=first.defense,
        setting=first.setting,
        tuning_mode=first.tuning_mode,
        level=level,
        point=_crossing(curve, level, lambda estimate: estimate.mean),
        low=_crossing(curve, level, lambda estimate: estimate.high),
        high=_crossing(curve, level, lambda estimate: estimate.low),
        rates=tuple(rate for rate, _ in curve),
        seeds=min(estimate.n for _, estimate in curve),
    )


def _crossing(
    curve: Sequence[tuple[float, Estimate]], level: float, end: Callable[[Estimate], float | None]
) -> Crossing:
    """The first crossing of one end of the intervals; unknown where any rate lacks that end."""
    values = [(rate, value) for rate, estimate in curve if (value := end(estimate)) is not None]
    if len(values) < len(curve):
        return Crossing()
    if values[0][1] >= level:
        return Crossing(rate=values[0][0], place="at or below")
    for (rate, value), (next_rate, next_value) in pairwise(values):
        if next_value >= level:
            share = (level - value) / (next_value - value)
            between = math.log(rate) + share * (math.log(next_rate) - math.log(rate))
            return Crossing(rate=min(next_rate, math.exp(between)), place="between")
    return Crossing(rate=values[-1][0], place="above")


def crossing_text(crossing: Crossing) -> str:
    """`0.012`; `0.001 or less`; `not reached up to 0.2`; a dash where it is not known."""
    if crossing.rate is None:
        return "-"
    rate = f"{crossing.rate:.3g}"
    if crossing.place == "at or below":
        return f"{rate} or less"
    return f"not reached up to {rate}" if crossing.place == "above" else rate


def resistance_table(points: Sequence[ResistancePoint]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of resistance points (of one setup)."""
    titles = ["Attack", "Defense setting", "Poison rates", "Seeds", "Succeeds from rate"]
    titles += ["Upper end of the interval reaches it", "Lower end of the interval reaches it"]
    return titles, [
        [
            point.attack_setting,
            point.setting,
            ", ".join(f"{rate:g}" for rate in point.rates),
            str(point.seeds),
            *(crossing_text(crossing) for crossing in (point.point, point.low, point.high)),
        ]
        for point in points
    ]

"""The trade-off: clean accuracy (more is better) against attack success (less is better).

Points without both numbers are never on a front and never an answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import ORACLE
from analysis.seeds import Estimate
from analysis.summaries import Summary
from analysis.worst import WorstCase
from backdoor_core.counting import counted


@dataclass(frozen=True, kw_only=True)
class Point:
    """One defense setting in the plane: `asr` and `cacc`, with `cacc_drop` for limits on the cost.

    `ranked` is False for points that are shown but may not win: `oracle` tuning, or cells missing.
    """

    defense: str
    setting: str
    asr: Estimate
    cacc: Estimate
    cacc_drop: Estimate
    settings: Mapping[str, Any]
    ranked: bool = True
    note: str = ""


def cell_points(summaries: Iterable[Summary], setup: tuple[str, str], cell: str) -> list[Point]:
    """The points of one attack cell: one for each defense setting that has CACC and ASR there."""
    return [
        Point(
            defense=summary.defense,
            setting=summary.setting,
            asr=summary.of("asr"),
            cacc=summary.of("cacc"),
            cacc_drop=summary.of("cacc_drop"),
            settings=summary.settings,
            ranked=summary.tuning_mode != ORACLE,
            note="" if summary.tuning_mode != ORACLE else "oracle tuning, not ranked",
        )
        for summary in summaries
        if summary.setup == setup and summary.cell == cell and _placed(summary)
    ]


def worst_points(worst: Iterable[WorstCase], setup: tuple[str, str]) -> list[Point]:
    """The worst-case points of one setup: largest ASR and smallest CACC over the cells."""
    return [
        Point(
            defense=case.defense,
            setting=case.setting,
            asr=case.asr.estimate,
            cacc=case.cacc.estimate,
            cacc_drop=case.cacc_drop.estimate,
            settings=case.settings,
            ranked=case.rankable,
            note=_why_not(case),
        )
        for case in worst
        if case.setup == setup
        and case.asr.estimate.mean is not None
        and case.cacc.estimate.mean is not None
    ]


def _placed(summary: Summary) -> bool:
    return summary.of("asr").mean is not None and summary.of("cacc").mean is not None


def _why_not(case: WorstCase) -> str:
    if not case.complete:
        return f"measured on {case.cells} of {counted(case.all_cells, 'attack cell')}, not ranked"
    return "oracle tuning, not ranked" if not case.rankable else ""


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The ranked points that no other ranked point beats, by ascending ASR.

    A point is beaten by one that is at least as good in both and better in one; so of points that tie in both
    all stay, and of points that tie in one only the better stays.
    """
    placed = [
        (point.asr.mean, point.cacc.mean, point)
        for point in points
        if point.ranked and point.asr.mean is not None and point.cacc.mean is not None
    ]
    placed.sort(key=lambda item: (item[0], -item[1], item[2].setting))
    front: list[Point] = []
    best_cacc, asr_of_best = float("-inf"), float("inf")
    for asr, cacc, point in placed:
        if cacc > best_cacc or (cacc == best_cacc and asr == asr_of_best):
            front.append(point)
            best_cacc, asr_of_best = cacc, asr
    return front


def cheapest_at_asr(points: Iterable[Point], limit: float) -> Point | None:
    """ "CACC drop at ASR <= limit": the ranked point with the least CACC drop there, or None."""
    within = [
        (point.cacc_drop.mean, point.asr.mean, point.setting, point)
        for point in points
        if point.ranked
        and point.cacc_drop.mean is not None
        and point.asr.mean is not None
        and point.asr.mean <= limit
    ]
    return min(within, key=lambda item: item[:3])[3] if within else None


def safest_at_drop(points: Iterable[Point], limit: float) -> Point | None:
    """ "ASR at CACC drop <= limit": the ranked point with the least ASR there, or None."""
    within = [
        (point.asr.mean, point.cacc_drop.mean, point.setting, point)
        for point in points
        if point.ranked
        and point.asr.mean is not None
        and point.cacc_drop.mean is not None
        and point.cacc_drop.mean <= limit
    ]
    return min(within, key=lambda item: item[:3])[3] if within else None

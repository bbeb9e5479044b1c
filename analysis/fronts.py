"""The front of the trade-off when intervals count, its hypervolume, and its limits as step functions.

The plane is CACC (more is better) against ASR (less is better). As everywhere in the trade-off, points that are
not `ranked`, or lack one of the two numbers, are on no front and no curve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis.seeds import Estimate
from analysis.tradeoff import Point, pareto_front

__all__ = ["Step", "asr_curve", "drop_curve", "hypervolume", "interval_front", "step_at"]


def interval_front(points: Sequence[Point]) -> list[Point]:
    """The ranked points that no other ranked point surely beats, by ascending ASR.

    P is surely beaten where another point's intervals lie wholly on the better side of P's in both numbers:
    `other.asr.high < P.asr.low` and `other.cacc.low > P.cacc.high`; intervals that touch settle nothing. An
    interval that is not known (null) is never wholly on any side, so such a point neither beats nor is beaten.
    Since an interval holds its mean, whatever is surely beaten is beaten in its means: `pareto_front(points)`
    is a part of this front. Dominance of intervals in both criteria is the usual order of interval-valued
    optimisation (Limbourg and Aponte, Congress on Evolutionary Computation 2005).
    """
    placed = _placed(points)
    kept = [point for point in placed if not any(_surely_beats(other, point) for other in placed)]
    return sorted(
        kept, key=lambda point: (point.asr.mean, -(point.cacc.mean or 0.0), point.setting)
    )


def _placed(points: Iterable[Point]) -> list[Point]:
    return [
        point
        for point in points
        if point.ranked and point.asr.mean is not None and point.cacc.mean is not None
    ]


def _surely_beats(one: Point, other: Point) -> bool:
    return _wholly_below(one.asr, other.asr) and _wholly_below(other.cacc, one.cacc)


def _wholly_below(one: Estimate, other: Estimate) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low


def hypervolume(points: Sequence[Point], *, asr: float = 1.0, cacc: float = 0.0) -> float:
    """The area of the plane that the ranked points beat, up to the reference point (`asr`, `cacc`).

    It is the area of the union of the rectangles between each point and the reference point, in units of
    ASR x CACC: at most `asr * (1 - cacc)`, 0 for no points. A beaten point adds nothing, a new point never takes
    away, and a point that is no better than the reference in one of the two adds nothing. Take the accuracy of
    chance for `cacc` where a worse accuracy is worth nothing; compare only areas with the same reference.
    Source: Zitzler and Thiele, doi 10.1109/4235.797969.
    """
    area, covered = 0.0, cacc
    for point in pareto_front(points):
        if point.asr.mean is None or point.cacc.mean is None or point.asr.mean >= asr:
            continue
        if point.cacc.mean > covered:
            area += (asr - point.asr.mean) * (point.cacc.mean - covered)
            covered = point.cacc.mean
    return area


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of a curve of limits: from `limit` on, up to the next step, `point` answers with `value`."""

    limit: float
    value: float
    point: Point


def drop_curve(points: Sequence[Point]) -> tuple[Step, ...]:
    """ "CACC drop at ASR <= x" over x: the steps, by ascending x with falling CACC drop.

    At every x, `step_at` names the point that `cheapest_at_asr(points, x)` does; left of the first step there
    is none.
    """
    return _steps(points, lambda point: point.asr.mean, lambda point: point.cacc_drop.mean)


def asr_curve(points: Sequence[Point]) -> tuple[Step, ...]:
    """ "ASR at CACC drop <= x" over x: the steps, by ascending x with falling ASR (see `safest_at_drop`)."""
    return _steps(points, lambda point: point.cacc_drop.mean, lambda point: point.asr.mean)


def _steps(
    points: Iterable[Point],
    limit_of: Callable[[Point], float | None],
    value_of: Callable[[Point], float | None],
) -> tuple[Step, ...]:
    known = [
        (limit, value, point.setting, point)
        for point in points
        if point.ranked
        and (limit := limit_of(point)) is not None
        and (value := value_of(point)) is not None
    ]
    steps: list[Step] = []
    for limit, value, _, point in sorted(known, key=lambda item: item[:3]):
        if not steps or value < steps[-1].value:
            steps.append(Step(limit=limit, value=value, point=point))
    return tuple(steps)


def step_at(steps: Sequence[Step], limit: float) -> Step | None:
    """The step that holds at `limit`; None left of the first."""
    return next((step for step in reversed(steps) if step.limit <= limit), None)

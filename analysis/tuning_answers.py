"""What a defender gets who must choose settings without seeing the attack, and how far the oracle is ahead."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from analysis.columns import DEFAULT, ORACLE
from analysis.exports import number
from analysis.gaps import HONEST_MODES, TuningGap
from analysis.tradeoff import Point, safest_at_drop, worst_points
from analysis.worst import WorstCase

DROP_LIMIT = 0.05
_SEARCHED = tuple(mode for mode in HONEST_MODES if mode != DEFAULT)
_EVEN = 5e-4


def tuning_answer(
    gaps: Sequence[TuningGap], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> list[str]:
    """Sentences for one setup; none where no setting was searched for."""
    cases = [case for case in worst if case.setup == setup]
    mine = [gap for gap in gaps if gap.setup == setup]
    modes = {case.tuning_mode for case in cases}
    searched = [mode for mode in _SEARCHED if mode in modes]
    if not searched and ORACLE not in modes:
        return []
    honest = [_best_of(cases, setup, mode) for mode in searched]
    sentences = [text for text in honest if text]
    if not searched:
        sentences.append(
            "No search without sight of the attack ran, so the oracle's is all there is."
        )
    if ORACLE not in modes:
        sentences.append("No oracle ran, so what tuning without one loses is not known.")
        return sentences
    if text := _best_of(cases, setup, ORACLE):
        sentences.append(text)
    sentences += [
        _gap(mine, mode) for mode in HONEST_MODES if any(g.tuning_mode == mode for g in mine)
    ]
    return sentences


def _best_of(cases: Sequence[WorstCase], setup: tuple[str, str], mode: str) -> str:
    """The lowest worst case among the defenses that one mode tuned."""
    points = worst_points([case for case in cases if case.tuning_mode == mode], setup)
    whole = [case.setting for case in cases if case.complete]
    # An oracle's point is never ranked; here it is compared with its own kind.
    points = [replace(point, ranked=True) for point in points if point.setting in whole]
    if not points:
        return ""
    return f"{_INTRODUCTION.get(mode, mode)} {_reached(points)}"


_INTRODUCTION = {
    "clean-val": "Tuned on clean rows alone (clean-val):",
    "pseudo": "Tuned against a trigger that the defender made (pseudo):",
    "transfer": "Tuned against all other attacks (transfer):",
    ORACLE: "Tuned by looking at the attack itself (oracle; nobody who defends can do it):",
}


def _reached(points: Sequence[Point]) -> str:
    best = safest_at_drop(points, DROP_LIMIT)
    if best is None:
        return f"no defense keeps its largest CACC drop within {DROP_LIMIT:g}."
    return (
        f"the lowest worst-case ASR within a CACC drop of {DROP_LIMIT:g} is {number(best.asr.mean)}, by "
        f"{best.defense}, at a largest CACC drop of {number(best.cacc_drop.mean)}."
    )


def _gap(gaps: Sequence[TuningGap], mode: str) -> str:
    """How far the oracle is ahead of one mode, over pairs of attack cell and defense."""
    mine = [gap for gap in gaps if gap.tuning_mode == mode]
    known = [(gap.asr.mean, gap) for gap in mine if gap.asr.mean is not None]
    name = (
        f"Untuned settings of {_names(mine)}" if mode == DEFAULT else f"Settings chosen by {mode}"
    )
    if not known:
        return f"{name} share no attack cell and seed with the oracle."
    average = statistics.fmean(value for value, _ in known)
    most, where = max(known, key=lambda item: item[0])
    costs = [gap.cacc_drop.mean for _, gap in known if gap.cacc_drop.mean is not None]
    text = f"{name} leave {_against(average)} the oracle's on average over {_pairs(known)}"
    if len(known) > 1 and most > _EVEN:
        text += f"; at most {number(most)} more ({where.defense} against {where.cell})"
    if costs:
        text += f". Their CACC drop is {_than(statistics.fmean(costs))} the oracle's"
    return f"{text}."


def _names(gaps: Sequence[TuningGap]) -> str:
    return ", ".join(dict.fromkeys(gap.defense for gap in gaps))


def _pairs(known: Sequence[tuple[float, TuningGap]]) -> str:
    if len(known) == 1:
        return "one pair of attack cell and defense setting"
    return f"{len(known)} pairs of attack cell and defense setting"


def _against(value: float) -> str:
    if abs(value) < _EVEN:
        return "the same ASR as"
    return f"an ASR {number(abs(value))} {'above' if value > 0 else 'below'}"


def _than(value: float) -> str:
    if abs(value) < _EVEN:
        return "the same as"
    return f"{number(abs(value))} {'above' if value > 0 else 'below'}"

"""The sweep's question answered in plain sentences, with what the data cannot carry said beside it."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.columns import ORACLE, TWIN
from analysis.exports import number
from analysis.summaries import Summary
from analysis.tradeoff import Point, cheapest_at_asr, safest_at_drop, worst_points
from analysis.worst import WorstCase
from backdoor_core.counting import counted

DROP_LIMITS = (0.02, 0.05)
ASR_LIMIT = 0.1
_FEW_SEEDS = 3


def answer(
    summaries: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str]
) -> list[str]:
    """Sentences for one setup: which defense setting is best in the worst case, and how sure that is."""
    mine = [case for case in worst if case.setup == setup]
    members = [summary for summary in summaries if summary.setup == setup]
    attacked = {summary.cell for summary in members if not summary.is_twin}
    if not mine:
        why = "no attack was run" if not attacked else "no trial with an attack has numbers"
        return [f"No defense can be compared here: {why}."]
    points = worst_points(mine, setup)
    defended = [point for point in points if point.defense != TWIN]
    undefended = next((point for point in points if point.defense == TWIN), None)
    if not defended:
        return [*_undefended(undefended), "No defense has numbers here, so none can be compared."]
    if not any(point.ranked for point in defended):
        return [*_undefended(undefended), _none_ranked(mine), *_caveats(members, mine)]
    sentences = _undefended(undefended)
    sentences += [_within_drop(defended, undefended, limit, mine[0]) for limit in DROP_LIMITS]
    sentences.append(_within_asr(defended))
    return sentences + _caveats(members, mine)


def _undefended(point: Point | None) -> list[str]:
    if point is None:
        return ["The undefended victim was not measured, so there is nothing to compare with."]
    return [f"Without a defense the worst-case ASR is {number(point.asr.mean)}."]


def _none_ranked(mine: Sequence[WorstCase]) -> str:
    return (
        f"No defense setting was both measured on all of {counted(mine[0].all_cells, 'attack cell')} and tuned without "
        "seeing the attack, so none is named best; the tables show what there is."
    )


def _within_drop(
    defended: Sequence[Point], undefended: Point | None, limit: float, case: WorstCase
) -> str:
    best = safest_at_drop(defended, limit)
    if best is None:
        least = cheapest_at_asr(defended, 1.0)
        text = f"No defense setting keeps its largest CACC drop within {limit:g}"
        if least is None:
            return f"{text}."
        return f"{text}; the least is {number(least.cacc_drop.mean)}, by {least.setting}."
    ranked = sum(point.ranked for point in defended)
    among = f"of {ranked} defense settings" if ranked > 1 else "the one defense setting that ran"
    text = (
        f"With a CACC drop of at most {limit:g} in every cell, {best.setting} has the lowest worst-case "
        f"ASR over the {counted(case.all_cells, 'attack cell')} ({among}): {number(best.asr.mean)}"
        f"{_interval(best)}, at a largest CACC drop of {number(best.cacc_drop.mean)}."
    )
    base = undefended.asr.mean if undefended is not None else None
    if base is not None and best.asr.mean is not None and best.asr.mean >= base:
        text += " That is no lower than without a defense."
    return text + _runner_up(defended, best, limit)


def _runner_up(defended: Sequence[Point], best: Point, limit: float) -> str:
    others = [point for point in defended if point.setting != best.setting]
    second = safest_at_drop(others, limit)
    if second is None or second.asr.low is None or best.asr.high is None:
        return ""
    if second.asr.low > best.asr.high:
        return f" Its interval lies below that of the next one, {second.setting}."
    return (
        f" The interval of the next one, {second.setting}, overlaps it: their order is not settled."
    )


def _within_asr(defended: Sequence[Point]) -> str:
    best = cheapest_at_asr(defended, ASR_LIMIT)
    if best is None:
        least = safest_at_drop(defended, 1.0)
        text = f"No defense setting brings the worst-case ASR down to {ASR_LIMIT:g}"
        if least is None:
            return f"{text}."
        return f"{text}; the least is {number(least.asr.mean)}, by {least.setting}."
    return (
        f"To bring the worst-case ASR down to {ASR_LIMIT:g}, the least CACC drop is "
        f"{number(best.cacc_drop.mean)}, by {best.setting}."
    )


def _interval(point: Point) -> str:
    if point.asr.low is None or point.asr.high is None:
        return ""
    return f" (95 % interval {number(point.asr.low)} to {number(point.asr.high)})"


def _caveats(members: Sequence[Summary], mine: Sequence[WorstCase]) -> list[str]:
    """What a reader must know before believing the sentences above."""
    sentences = []
    if members[0].synthetic:
        sentences.append("The task is synthetic: this says nothing about real texts.")
    seeds = min((case.seeds for case in mine if case.cells), default=0)
    if seeds == 1:
        sentences.append("Some or all cells have one seed only: this is one draw, and no ranking.")
    elif seeds < _FEW_SEEDS:
        sentences.append(f"Some or all cells have {seeds} seeds only: read the intervals first.")
    else:
        sentences.append(f"Every worst case is taken over means of at least {seeds} seeds.")
    sentences += _weak_attacks(members)
    partial = [case.setting for case in mine if not case.complete]
    if partial:
        sentences.append(f"Not compared, as cells are missing: {_listed(partial)}.")
    oracle = [case.setting for case in mine if case.tuning_mode == ORACLE]
    if oracle:
        sentences.append(f"Not compared, as tuned by looking at the attack: {_listed(oracle)}.")
    if sum(case.rankable for case in mine) > 2:
        sentences.append(
            "The best of many settings is picked here by its test numbers, which flatters it a little: "
            "choose on the tune split, or confirm with new seeds."
        )
    return sentences


def _weak_attacks(members: Sequence[Summary]) -> list[str]:
    attacked = {summary.cell for summary in members if not summary.is_twin}
    weak = sorted({summary.cell for summary in members if "attack_did_not_take" in summary.flags})
    sentences = []
    if weak:
        sentences.append(
            f"In {len(weak)} of {counted(len(attacked), 'attack cell')} the attack did not take for some "
            f"or all seeds, so a low ASR there is no merit of a defense: {_listed(weak)}."
        )
    empty = sorted(attacked - {s.cell for s in members if s.of("asr").mean is not None})
    if empty:
        sentences.append(f"Attack cells without any ASR, left out: {_listed(empty)}.")
    return sentences


def _listed(names: Sequence[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"

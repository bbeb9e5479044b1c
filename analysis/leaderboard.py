"""The leaderboard: defense settings of each setup, ranked by their worst case over attacks, or refused with reasons.

The rule, in this order:

1. A setting is *refused* (listed with every reason, never ranked) where it was tuned by looking at the attack
   (`oracle`); where it lacks a cell that others were measured in, the clean twin among them; where a cell has
   fewer than `min_seeds` seeds; where a row has no clean twin beside it (`twin_cacc` and `twin_asr`); and where
   ASRD or CACC drop is unknown in a cell.
2. A setting is *over the budget* (listed, not ranked) where its largest mean CACC drop over all cells, the clean
   twin's included, is above `budget`.
3. The others are *ranked* by their worst-case ASRD: the largest of the means over seeds, over all attack cells; less is
   better. Equal values share a rank, and the next rank is left out (1, 1, 3).

ASRD, not ASR, since what the clean twin gets wrong as well is no backdoor. Adaptive attacks aim at one defense and
are left out. The undefended victim is shown beside, and is no entry. `settled` says whether the 95 % interval of
an entry's worst ASRD lies wholly below that of the next one; where it does not, their order is a draw of the
seeds. Both intervals belong to the cell that was worst, so they know nothing of the choice of that cell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from analysis.columns import ORACLE, TWIN
from analysis.seeds import Estimate
from analysis.standings import leaderboard_json, leaderboard_markdown
from analysis.summaries import Summary, summaries
from analysis.table import ResultTable
from analysis.worst import Worst, WorstCase, worst_cases
from backdoor_core.counting import counted
from backdoor_core.errors import ConfigError

BUDGET = 0.05
MIN_SEEDS = 3
_TIE_DECIMALS = 9
"""Means that agree to so many decimals are equal: the order in which seeds are added must not make a rank."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One defense setting on a board: its worst case, and `rank`, or None where it is not ranked.

    `settled`: whether its order to the next entry is (None for the last, and where nothing is ranked).
    `failed` trials are those without numbers, over all cells.
    """

    case: WorstCase
    failed: int
    rank: int | None = None
    settled: bool | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A defense setting that may not be ranked, with all the reasons."""

    case: WorstCase
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The standings of one setup (task and PLM). `cells` are the attack cells that everyone had to pass."""

    task: str
    plm: str
    synthetic: bool
    cells: tuple[str, ...]
    weak_cells: tuple[str, ...]
    undefended: Entry | None
    ranked: tuple[Entry, ...]
    over_budget: tuple[Entry, ...]
    refused: tuple[Refusal, ...]


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """The boards of all setups, and the two numbers of the rule."""

    budget: float
    min_seeds: int
    boards: tuple[Board, ...]

    def as_markdown(self) -> str:
        """GitHub's Markdown: for each setup the ranks, what is over the budget, and what was refused and why."""
        return leaderboard_markdown(self)

    def as_json(self) -> dict[str, Any]:
        """A value for `json.dumps`, of the shape that `standings.SCHEMA` (a JSON Schema) describes."""
        return leaderboard_json(self)


def leaderboard(
    results: ResultTable, *, min_seeds: int = MIN_SEEDS, budget: float = BUDGET
) -> Leaderboard:
    """The leaderboard of a table of results, by the rule above; setups without a measured attack have no board.

    `budget` is the largest CACC drop that a ranked setting may have, as a share. Raises ConfigError for a budget
    outside [0, 1] or fewer than two seeds, since one seed is one draw.
    """
    if not 0 <= budget <= 1:
        raise ConfigError(f"the budget is a CACC drop as a share between 0 and 1, got {budget:g}")
    if min_seeds < 2:
        raise ConfigError(f"a ranking needs at least 2 seeds in every cell, got {min_seeds}")
    members: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for summary in summaries(results):
        if not summary.adaptive:
            members[summary.setup].append(summary)
    cases: dict[tuple[str, str], list[WorstCase]] = defaultdict(list)
    for case in worst_cases(summary for same in members.values() for summary in same):
        cases[case.setup].append(case)
    boards = [_board(members[setup], same, min_seeds, budget) for setup, same in cases.items()]
    return Leaderboard(budget=budget, min_seeds=min_seeds, boards=tuple(boards))


def _board(
    members: Sequence[Summary], cases: Sequence[WorstCase], min_seeds: int, budget: float
) -> Board:
    by_setting: dict[str, dict[str, Summary]] = defaultdict(dict)
    for member in members:
        by_setting[member.setting][member.cell] = member
    required = _required(members)
    refused, fit = [], []
    for case in cases:
        if case.defense == TWIN:
            continue
        mine = by_setting[case.setting]
        if reasons := _reasons(case, mine, required, min_seeds):
            refused.append(Refusal(case=case, reasons=reasons))
        else:
            fit.append(_entry(case, mine))
    within = [
        entry for entry in fit if _value(entry.case.cacc_drop) <= round(budget, _TIE_DECIMALS)
    ]
    over = [entry for entry in fit if entry not in within]
    base = next((case for case in cases if case.defense == TWIN), None)
    first = members[0]
    return Board(
        task=first.task,
        plm=first.plm,
        synthetic=any(member.synthetic for member in members),
        cells=tuple(cell for cell, is_twin in required.items() if not is_twin),
        weak_cells=_weak(members),
        undefended=None if base is None else _entry(base, by_setting[base.setting]),
        ranked=_ranked(within),
        over_budget=tuple(sorted(over, key=lambda entry: _value(entry.case.cacc_drop))),
        refused=tuple(refused),
    )


def _required(members: Iterable[Summary]) -> dict[str, bool]:
    """The cells that every setting must have: those that some defense has, and whether each is the twin."""
    metric = {True: "cacc", False: "asr"}
    return {
        member.cell: member.is_twin
        for member in members
        if member.of(metric[member.is_twin]).mean is not None
        and (member.defense != TWIN or not member.is_twin)
    }


def _weak(members: Iterable[Summary]) -> tuple[str, ...]:
    weak = {member.cell: None for member in members if "attack_did_not_take" in member.flags}
    return tuple(weak)


def _entry(case: WorstCase, mine: Mapping[str, Summary]) -> Entry:
    return Entry(case=case, failed=sum(summary.failed for summary in mine.values()))


def _reasons(
    case: WorstCase, mine: Mapping[str, Summary], required: Mapping[str, bool], min_seeds: int
) -> tuple[str, ...]:
    """Why a setting may not be ranked; none where it may."""
    reasons = ["tuned by looking at the attack (oracle)"] if case.tuning_mode == ORACLE else []
    measured = {
        cell: mine[cell].of("cacc" if is_twin else "asr").n if cell in mine else 0
        for cell, is_twin in required.items()
    }
    if missing := [cell for cell, seeds in measured.items() if seeds == 0]:
        reasons.append(f"not measured in {_listed(missing)}")
    few = [f"{cell}: {seeds}" for cell, seeds in measured.items() if 0 < seeds < min_seeds]
    if few:
        reasons.append(f"fewer than {min_seeds} seeds in {_listed(few)}")
    present = [cell for cell, seeds in measured.items() if seeds]
    attacked = [cell for cell in present if not required[cell]]
    for what, cells, metrics in (
        ("no clean twin beside rows", attacked, ("twin_cacc", "twin_asr")),
        ("no ASRD for rows", attacked, ("asrd",)),
        ("no CACC drop for rows", present, ("cacc_drop",)),
    ):
        lacking = [
            cell
            for cell in cells
            if min(mine[cell].of(name).n for name in metrics) < measured[cell]
        ]
        if lacking:
            reasons.append(f"{what} in {_listed(lacking)}")
    return tuple(reasons)


def _listed(names: Sequence[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {counted(len(names) - most, 'more cell')}"


def _value(worst: Worst) -> float:
    mean = worst.estimate.mean
    return float("inf") if mean is None else round(mean, _TIE_DECIMALS)


def _ranked(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    ordered = sorted(
        entries,
        key=lambda entry: (
            _value(entry.case.asrd),
            _value(entry.case.cacc_drop),
            entry.case.setting,
        ),
    )
    values = [_value(entry.case.asrd) for entry in ordered]
    following = [entry.case.asrd.estimate for entry in ordered[1:]]
    settled = [
        _below(entry.case.asrd.estimate, after)
        for entry, after in zip(ordered, following, strict=False)
    ]
    return tuple(
        replace(entry, rank=1 + values.index(value), settled=sure)
        for entry, value, sure in zip(ordered, values, [*settled, None], strict=False)
    )


def _below(one: Estimate, other: Estimate) -> bool:
    return one.high is not None and other.low is not None and one.high < other.low

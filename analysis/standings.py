"""The leaderboard for people (Markdown), and the JSON Schema of the one for programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from analysis.exports import NONE, escaped, with_interval

if TYPE_CHECKING:
    from analysis.leaderboard import Board, Entry, Leaderboard
    from analysis.worst import Worst, WorstCase

SCHEMA_VERSION = 1
TITLES = (
    *("Rank", "Defense setting", "Worst ASRD", "against", "Worst ASR"),
    *("Largest CACC drop", "in", "Seeds", "Order to the next"),
)

_METRIC = "worst-case ASRD"
_TEXT = {"type": "string"}
_SHARE = {"type": ["number", "null"]}
_COUNT = {"type": "integer", "minimum": 0}


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_WORST = _object(
    mean=_SHARE, low=_SHARE, high=_SHARE, seeds=_COUNT, cell={"type": ["string", "null"]}
) | {"description": "The worst mean over seeds, its 95 % interval, and the attack cell it is from."}
_CASE = {"defense": _TEXT, "setting": _TEXT, "settings": {"type": "object"}, "tuning_mode": _TEXT}
_ENTRY = _object(
    rank={"type": ["integer", "null"], "minimum": 1},
    **_CASE,
    asrd=_WORST,
    asr=_WORST,
    cacc=_WORST,
    cacc_drop=_WORST,
    seeds=_COUNT | {"description": "The fewest seeds over the attack cells."},
    failed_trials=_COUNT,
    settled={
        "type": ["boolean", "null"],
        "description": "Whether the interval of the worst ASRD lies wholly below the next entry's.",
    },
)
SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Leaderboard of defenses",
} | _object(
    schema_version={"const": SCHEMA_VERSION},
    metric={"const": _METRIC},
    budget={"type": "number", "description": "Largest CACC drop of a ranked setting, as a share."},
    min_seeds=_COUNT,
    boards=_list(
        _object(
            task=_TEXT,
            plm=_TEXT,
            synthetic={"type": "boolean"},
            cells=_list(_TEXT) | {"description": "The attack cells that everyone had to pass."},
            weak_cells=_list(_TEXT)
            | {"description": "Cells where the attack did not take for some or all seeds."},
            undefended={"anyOf": [_ENTRY, {"type": "null"}]},
            ranked=_list(_ENTRY) | {"description": "Best first; equal values share a rank."},
            over_budget=_list(_ENTRY) | {"description": "Costs more CACC than the budget."},
            refused=_list(_object(**_CASE, reasons=_list(_TEXT))),
        )
    ),
)
"""The JSON Schema of `Leaderboard.as_json()`; shares are in [0, 1] (ASRD and CACC drop in [-1, 1]), null unknown."""


def leaderboard_json(found: Leaderboard) -> dict[str, Any]:
    """See `Leaderboard.as_json`."""
    return {
        "schema_version": SCHEMA_VERSION,
        "metric": _METRIC,
        "budget": found.budget,
        "min_seeds": found.min_seeds,
        "boards": [_board_json(board) for board in found.boards],
    }


def _board_json(board: Board) -> dict[str, Any]:
    return {
        "task": board.task,
        "plm": board.plm,
        "synthetic": board.synthetic,
        "cells": list(board.cells),
        "weak_cells": list(board.weak_cells),
        "undefended": None if board.undefended is None else _entry_json(board.undefended),
        "ranked": [_entry_json(entry) for entry in board.ranked],
        "over_budget": [_entry_json(entry) for entry in board.over_budget],
        "refused": [
            _case_json(refusal.case) | {"reasons": list(refusal.reasons)}
            for refusal in board.refused
        ],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    worst = {
        name: _worst_json(getattr(entry.case, name))
        for name in ("asrd", "asr", "cacc", "cacc_drop")
    }
    ends = {"seeds": entry.case.seeds, "failed_trials": entry.failed, "settled": entry.settled}
    return {"rank": entry.rank} | _case_json(entry.case) | worst | ends


def _case_json(case: WorstCase) -> dict[str, Any]:
    return {
        "defense": case.defense,
        "setting": case.setting,
        "settings": dict(case.settings),
        "tuning_mode": case.tuning_mode,
    }


def _worst_json(worst: Worst) -> dict[str, Any]:
    found = worst.estimate
    return {"mean": found.mean, "low": found.low, "high": found.high, "seeds": found.n,
            "cell": worst.cell}  # fmt: skip


def leaderboard_markdown(found: Leaderboard) -> str:
    """See `Leaderboard.as_markdown`."""
    parts = [
        "# Leaderboard",
        "",
        f"Ranked by the worst-case ASRD over attacks (less is better) among defense settings whose largest CACC "
        f"drop is at most {found.budget:g}, each cell measured with at least {found.min_seeds} seeds. Brackets: "
        "95 % intervals over seeds. `not settled`: the interval overlaps that of the next one, so other seeds "
        "may turn their order.",
        "",
    ]
    if not found.boards:
        parts += ["No attack cell has numbers yet.", ""]
    for board in found.boards:
        parts += _board(board)
    return "\n".join(parts)


def board_rows(board: Board) -> list[list[str]]:
    """The rows under `TITLES`: what is ranked, then the undefended victim; none where nothing has a number."""
    lines = [_line(entry, _settled(entry)) for entry in board.ranked]
    if board.undefended is not None:
        lines.append(_line(board.undefended, "no defense"))
    return lines


def over_budget_rows(board: Board) -> list[list[str]]:
    """The rows under `TITLES` of what costs more CACC than the budget."""
    return [_line(entry, NONE) for entry in board.over_budget]


def refused_rows(board: Board) -> list[list[str]]:
    """Defense settings that may not be ranked, each with its reasons."""
    return [[refusal.case.setting, "; ".join(refusal.reasons)] for refusal in board.refused]


def _board(board: Board) -> list[str]:
    parts = [f"## {escaped(board.task)} with {escaped(board.plm)}", ""]
    if board.synthetic:
        parts += ["The task is synthetic: its numbers say nothing about real texts.", ""]
    if board.weak_cells:
        cells = escaped(", ".join(board.weak_cells))
        parts += [f"Cells where the attack did not take for some or all seeds: {cells}.", ""]
    lines = board_rows(board)
    parts += [] if board.ranked else ["No defense setting can be ranked.", ""]
    parts += [*_table(TITLES, lines), ""] if lines else []
    if len(board.ranked) > 2:
        parts += [
            "The best of many settings is picked here by its test numbers, which flatters it a little: confirm "
            "it with new seeds.",
            "",
        ]
    if board.over_budget:
        over = over_budget_rows(board)
        parts += ["### Over the CACC budget, not ranked", "", *_table(TITLES, over), ""]
    if board.refused:
        refused = refused_rows(board)
        parts += ["### Refused", "", *_table(("Defense setting", "Why"), refused), ""]
    return parts


def _settled(entry: Entry) -> str:
    return {True: "settled", False: "not settled", None: NONE}[entry.settled]


def _line(entry: Entry, order: str) -> list[str]:
    case = entry.case
    return [
        NONE if entry.rank is None else str(entry.rank),
        case.setting,
        with_interval(case.asrd.estimate),
        case.asrd.cell or NONE,
        with_interval(case.asr.estimate),
        with_interval(case.cacc_drop.estimate),
        case.cacc_drop.cell or NONE,
        str(case.seeds),
        order,
    ]


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *([escaped(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]

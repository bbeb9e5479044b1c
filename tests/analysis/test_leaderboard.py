"""The leaderboard: what is ranked, what is refused and why, and what both outputs say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

import analysis
from analysis.leaderboard import Board, Leaderboard, leaderboard
from analysis.standings import SCHEMA
from backdoor_core.errors import ConfigError
from backdoor_core.spec import Tuning

SEEDS = (0, 1, 2)
CELLS = ("badnets", "style")


def _entry(
    record,
    defense: str,
    asrd: tuple[float, float] = (0.1, 0.2),
    *,
    drop: float = 0.01,
    seeds: tuple[int, ...] = SEEDS,
    cells: tuple[str, ...] = CELLS,
    wobble: float = 0.0,
    twin: bool = True,
    **changes: Any,
):
    """Records of one defense: `asrd` against each attack, the same for every seed but for `wobble`."""
    values = dict(zip(CELLS, asrd, strict=True))
    beside = {"twin_cacc": 0.9, "twin_asr": 0.05} if twin else {}
    records = [
        record(
            **(
                {
                    "defense": defense, "attack": cell, "seed": seed, "cacc_drop": drop,
                    "asrd": values[cell] + wobble * (seed - 1),
                    "asr": values[cell] + wobble * (seed - 1) + 0.05,
                }
                | beside | changes
            )
        )
        for cell in cells
        for seed in seeds
    ]  # fmt: skip
    clean = {"attack": "none", "attack_settings": {}, "poison_rate": None, "asr": None}
    records += [
        record(
            **({"defense": defense, "seed": seed, "cacc_drop": drop} | clean | changes), asrd=None
        )
        for seed in seeds
    ]
    return records


def _ranking(path: Path, write, *entries, **options) -> Leaderboard:
    records = [record for entry in entries for record in entry]
    return leaderboard(analysis.load(write(path, records)), **options)


def _board(path: Path, write, *entries, **options) -> Board:
    (board,) = _ranking(path, write, *entries, **options).boards
    return board


def _ranks(board: Board) -> list[tuple[int | None, str]]:
    return [(entry.rank, entry.case.setting) for entry in board.ranked]


def _reasons(board: Board) -> dict[str, tuple[str, ...]]:
    return {refusal.case.setting: refusal.reasons for refusal in board.refused}


def test_ranked_by_the_worst_attack_not_the_mean(tmp_path: Path, record, write) -> None:
    board = _board(
        tmp_path, write,
        _entry(record, "none", (0.9, 0.8), drop=0.0),
        _entry(record, "even", (0.3, 0.3)),
        _entry(record, "uneven", (0.0, 0.5)),
        _entry(record, "best", (0.2, 0.1)),
    )  # fmt: skip
    assert _ranks(board) == [(1, "best"), (2, "even"), (3, "uneven")]
    assert board.ranked[2].case.asrd.cell == "style (rate 0.01)"
    assert board.undefended is not None
    assert board.undefended.rank is None
    assert board.undefended.case.asrd.estimate.mean == pytest.approx(0.9)
    assert board.cells == ("badnets (rate 0.01)", "style (rate 0.01)")
    assert (board.refused, board.over_budget) == ((), ())


def test_ties_share_a_rank_and_the_next_is_left_out(tmp_path: Path, record, write) -> None:
    board = _board(
        tmp_path, write,
        _entry(record, "dear", (0.2, 0.1), drop=0.03),
        _entry(record, "cheap", (0.1, 0.2), drop=0.01),
        _entry(record, "last", (0.4, 0.1)),
    )  # fmt: skip
    assert _ranks(board) == [(1, "cheap"), (1, "dear"), (3, "last")]


def test_the_budget_is_on_the_largest_drop_and_holds_at_its_edge(
    tmp_path: Path, record, write
) -> None:
    entries = [
        _entry(record, "edge", drop=0.1 - 0.05),  # 0.05 and one rounding error
        _entry(record, "over", (0.0, 0.0), drop=0.06),
        [
            *_entry(record, "on the twin", drop=0.0)[:6],
            *_entry(record, "on the twin", drop=0.2)[6:],
        ],
    ]
    board = _board(tmp_path / "a", write, *entries)
    assert _ranks(board) == [(1, "edge")]
    assert [e.case.setting for e in board.over_budget] == ["over", "on the twin"]
    assert all(entry.rank is None for entry in board.over_budget)
    wide = _board(tmp_path / "b", write, *entries, budget=0.2)
    assert [name for _, name in _ranks(wide)] == ["over", "edge", "on the twin"]


def test_every_reason_to_refuse(tmp_path: Path, record, write) -> None:
    broken = _entry(record, "no asrd")
    board = _board(
        tmp_path, write,
        _entry(record, "fine"),
        _entry(record, "knows", tuning_mode="oracle", tuning_trials=5),
        _entry(record, "two seeds", seeds=(0, 1)),
        _entry(record, "one cell", cells=("style",)),
        _entry(record, "no twin row")[:6],
        _entry(record, "no twin beside", twin=False),
        _entry(record, "no accuracy of the twin", twin_cacc=None),
        _entry(record, "no drop", cacc_drop=None),
        [*broken[1:], record(defense="no asrd", asrd=None, twin_cacc=0.9, twin_asr=0.1)],
    )  # fmt: skip
    assert _ranks(board) == [(1, "fine")]
    both = "badnets (rate 0.01), style (rate 0.01)"
    few = "badnets (rate 0.01): 2, style (rate 0.01): 2"
    twin = "none (clean twin)"
    assert _reasons(board) == {
        "knows (tuned: oracle)": ("tuned by looking at the attack (oracle)",),
        "two seeds": (f"fewer than 3 seeds in {twin}: 2, {few}",),
        "one cell": ("not measured in badnets (rate 0.01)",),
        "no twin row": (f"not measured in {twin}",),
        "no twin beside": (f"no clean twin beside rows in {both}",),
        "no accuracy of the twin": (f"no clean twin beside rows in {both}",),
        "no drop": (f"no CACC drop for rows in {twin}, {both}",),
        "no asrd": ("no ASRD for rows in badnets (rate 0.01)",),
    }


def test_all_reasons_of_one_setting_are_told(tmp_path: Path, record, write) -> None:
    board = _board(
        tmp_path, write,
        _entry(record, "fine"),
        _entry(record, "bad", seeds=(0,), cells=("style",), tuning_mode="oracle", twin=False),
    )  # fmt: skip
    (reasons,) = _reasons(board).values()
    assert [reason.split(" in ")[0] for reason in reasons] == [
        "tuned by looking at the attack (oracle)",
        "not measured",
        "fewer than 3 seeds",
        "no clean twin beside rows",
    ]


def test_fewer_seeds_can_be_asked_for_but_not_one(tmp_path: Path, record, write) -> None:
    entries = [_entry(record, "two seeds", seeds=(0, 1))]
    assert _ranks(_board(tmp_path, write, *entries, min_seeds=2)) == [(1, "two seeds")]
    results = analysis.load(tmp_path)
    with pytest.raises(ConfigError, match="at least 2 seeds in every cell, got 1"):
        leaderboard(results, min_seeds=1)
    with pytest.raises(ConfigError, match="between 0 and 1, got 5"):
        leaderboard(results, budget=5)


def test_failed_trials_make_cells_short(tmp_path: Path, record, blank, write) -> None:
    fine = _entry(record, "fine")
    broken = _entry(record, "broken")
    failed = [blank("failed", defense="broken", seed=0, error_class="oom"), *broken[1:]]
    board = _board(tmp_path, write, fine, failed)
    assert _reasons(board) == {"broken": ("fewer than 3 seeds in badnets (rate 0.01): 2",)}


def test_whether_neighbours_are_settled(tmp_path: Path, record, write) -> None:
    # Seeds w apart: half width 4.302653 * w / sqrt(3), so 0.0248 for 0.01 and 0.124 for 0.05.
    board = _board(
        tmp_path, write,
        _entry(record, "a", (0.10, 0.0), wobble=0.01),
        _entry(record, "b", (0.16, 0.0), wobble=0.01),
        _entry(record, "c", (0.30, 0.0), wobble=0.05),
        _entry(record, "d", (0.40, 0.0), wobble=0.01),
    )  # fmt: skip
    assert [(e.case.setting, e.settled) for e in board.ranked] == [
        ("a", True), ("b", False), ("c", False), ("d", None),
    ]  # fmt: skip


def test_adaptive_attacks_and_synthetic_tasks(tmp_path: Path, record, write) -> None:
    aimed = record(defense="fine", adaptive=True, asrd=0.99, attack="style", synthetic=True)
    board = _board(tmp_path, write, _entry(record, "fine", synthetic=True), [aimed])
    assert _ranks(board) == [(1, "fine")]
    assert board.ranked[0].case.asrd.estimate.mean == pytest.approx(0.2)
    assert board.synthetic


def test_each_setup_has_its_board(tmp_path: Path, record, write) -> None:
    found = _ranking(
        tmp_path, write,
        _entry(record, "fine"), _entry(record, "fine", plm="roberta", seeds=(0, 1)),
    )  # fmt: skip
    assert [(board.plm, len(board.ranked)) for board in found.boards] == [
        ("bert", 1),
        ("roberta", 0),
    ]


def test_json_is_what_its_schema_says(tmp_path: Path, record, write) -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    found = _ranking(
        tmp_path, write,
        _entry(record, "none", (0.9, 0.8), drop=0.0),
        _entry(record, "fine", flags=("attack_did_not_take",)),
        _entry(record, "over", drop=0.3),
        _entry(record, "short", seeds=(0,)),
        budget=0.1,
    )  # fmt: skip
    value = json.loads(json.dumps(found.as_json(), allow_nan=False))
    jsonschema.validate(value, SCHEMA)
    (board,) = value["boards"]
    assert (value["budget"], value["min_seeds"], value["schema_version"]) == (0.1, 3, 1)
    assert [entry["setting"] for entry in board["ranked"]] == ["fine"]
    assert board["ranked"][0]["asrd"] == {
        "mean": pytest.approx(0.2), "low": pytest.approx(0.2), "high": pytest.approx(0.2),
        "seeds": 3, "cell": "style (rate 0.01)",
    }  # fmt: skip
    assert [entry["setting"] for entry in board["over_budget"]] == ["over"]
    assert [entry["setting"] for entry in board["refused"]] == ["short"]
    assert board["undefended"]["setting"] == "none"
    assert set(board["weak_cells"]) >= {"badnets (rate 0.01)", "style (rate 0.01)"}


def test_markdown(tmp_path: Path, record, write) -> None:
    found = _ranking(
        tmp_path, write,
        _entry(record, "none", (0.9, 0.8), drop=0.0, synthetic=True),
        *(_entry(record, name, (asrd, 0.0), synthetic=True) for name, asrd in (("a|b", 0.1), ("c", 0.2), ("d", 0.3))),
        _entry(record, "over", drop=0.3, synthetic=True),
        _entry(record, "short", seeds=(0,), synthetic=True),
    )  # fmt: skip
    text = found.as_markdown()
    assert "## sst2 (synthetic) with bert" in text
    assert "numbers say nothing about real texts" in text
    assert "| 1 | a\\|b | 0.100 [0.100, 0.100] | badnets (rate 0.01) |" in text
    assert "| - | none | 0.900 [0.900, 0.900] |" in text
    assert "### Over the CACC budget, not ranked" in text
    assert "| short | fewer than 3 seeds in none (clean twin): 1, badnets" in text
    assert "confirm it with new seeds" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line[:1] == "|"}
    assert widths == {10, 3}


def test_nothing_to_rank(tmp_path: Path, record, write) -> None:
    empty = leaderboard(analysis.load(write(tmp_path / "a", [])))
    assert empty.boards == ()
    assert "No attack cell has numbers yet." in empty.as_markdown()
    jsonschema.validate(empty.as_json(), SCHEMA)
    refused = _ranking(tmp_path / "b", write, _entry(record, "short", seeds=(0,)))
    assert "No defense setting can be ranked." in refused.as_markdown()


def test_a_search_is_ranked_as_before_after_a_failed_victim_ran_again(
    tmp_path: Path, record, blank, write
) -> None:
    """The search of every cell and seed found another setting; one of them had no victim at first."""
    tuning = Tuning(mode="clean-val", trials=2, tried=2).model_dump_json()
    tuned = {"tuning_mode": "clean-val", "tuning_trials": 2, "tuning": tuning, "finished_at": 2.0}
    rows = [
        replace(one, defense_settings=f'{{"mixing_ratio":{(n + 1) / 10}}}', key=f"{n}")
        for n, one in enumerate(_entry(record, "fine_mixing", **tuned))
    ]
    first = {"defense": "fine_mixing", "attack": CELLS[0], "defense_settings": {}, "seed": 0}
    failed = blank("failed", **(tuned | first | {"finished_at": 1.0}), key="failed")
    boards = []
    for name, written in (("before", rows), ("after", [failed, *rows])):
        board = _board(tmp_path / name, write, written)
        boards.append(board)
        assert _ranks(board) == [(1, "fine_mixing (tuned: clean-val)")]
        assert board.refused == ()
    assert boards[0] == boards[1]

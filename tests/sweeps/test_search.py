"""One search: points that never repeat, a rebuilt search that goes on, a journal that another process opens."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from backdoor_core.space import Dimension
from backdoor_core.spec import canonical_json
from sweeps.sampling import SAMPLERS, Sampler
from sweeps.search import Journal, Search, Told

SPACE = {
    "ratio": Dimension(low=0.0, high=1.0, stronger="low"),
    "rate": Dimension(low=1e-5, high=1e-2, log=True),
    "epochs": Dimension(low=1, high=6, whole=True),
    "head": Dimension(choices=("keep", None, [1, 2])),
}
SMALL = {"epochs": Dimension(low=1, high=4, whole=True), "head": Dimension(choices=("a", "b", "c"))}
QUICK = tuple(name for name in SAMPLERS if name != "gp")


def search(
    sampler: str = "random",
    *,
    space: Mapping[str, Dimension] = SPACE,
    seed: int = 5,
    trials: int = 24,
    goals: tuple[str, ...] = ("asr",),
    journal: Journal | None = None,
    name: str = "study",
    **arguments: Any,
) -> Search:
    return Search(
        name=name, space=space, sampler=Sampler(name=sampler, arguments=arguments),  # type: ignore[arg-type]
        seed=seed, goals=goals, trials=trials, journal=journal or Journal(), facts={"of": name},
    )  # fmt: skip


def told(number: int, point: Mapping[str, Any], goals: int = 1) -> Told:
    """Some fail, some are pruned, some are above a limit: all that a search may meet."""
    if number % 7 == 3:
        return Told(number=number, point=point, state="failed")
    if number % 7 == 5:
        return Told(number=number, point=point, state="pruned", reports=(0.5, 0.4))
    epochs = point.get("epochs", 3)
    excess = {"cacc_drop": epochs - 4.0} if goals == 1 else {}
    values = (abs(point.get("ratio", 0.3) - 0.3) + epochs / 10, -epochs / 10)[:goals]
    return Told(number=number, point=point, state="complete", values=values, excess=excess,
                reports=(0.9,))  # fmt: skip


def identities(points: Sequence[Mapping[str, Any]]) -> list[str]:
    return [canonical_json(dict(point)) for point in points]


def run(one: Search, count: int, goals: int = 1) -> list[dict[str, Any]]:
    points = []
    for _ in range(count):
        asked = one.ask()
        if asked is None:
            break
        number, point = asked
        points.append(point)
        one.tell(told(number, point, goals))
    return points


@pytest.mark.parametrize("name", QUICK)
@given(lag=st.lists(st.integers(0, 3), min_size=24, max_size=24))
def test_no_point_is_asked_for_twice_however_many_are_open(name: str, lag: list[int]) -> None:
    """Up to four asks are open at once, and end in any order."""
    one = search(name, space=SMALL | {"rate": SPACE["rate"]})
    waiting: list[tuple[int, dict[str, Any]]] = []
    points = []
    for i in lag:
        asked = one.ask()
        if asked is None:
            break
        waiting.append(asked)
        points.append(asked[1])
        while len(waiting) > i:
            number, point = waiting.pop(len(waiting) // 2)
            one.tell(told(number, point))
    assert len(set(identities(points))) == len(points) >= 12
    assert sorted([*one.told, *one.asked]) == list(range(len(points)))


def test_gp_repeats_no_point_with_open_asks() -> None:
    one = search(
        "gp", space={"ratio": SPACE["ratio"], "epochs": SPACE["epochs"]}, n_startup_trials=3
    )
    points = run(one, 4)
    opened = [one.ask() for _ in range(3)]
    points += [asked[1] for asked in opened if asked is not None]
    assert len(set(identities(points))) == 7


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.parametrize("goals", [("asr",), ("asr", "cacc_drop")])
def test_a_search_that_is_rebuilt_from_what_was_told_goes_on_alike(
    name: str, goals: tuple[str, ...]
) -> None:
    """Also where points failed or were pruned, and where the sampler had to be asked again."""
    arguments: dict[str, Any] = {"population_size": 6} if name == "nsga2" else {}
    whole = search(name, goals=goals, **arguments)
    points = run(whole, 20, len(goals))
    for stop in (1, 9, 16):
        again = search(name, goals=goals, **arguments)
        for number in range(stop):
            again.tell(told(number, json.loads(canonical_json(points[number])), len(goals)))
        assert identities(run(again, 20 - stop, len(goals))) == identities(points[stop:]), stop


def test_gp_goes_on_alike_too() -> None:
    space = {"ratio": SPACE["ratio"], "epochs": SPACE["epochs"]}
    points = run(search("gp", space=space, n_startup_trials=3), 6)
    again = search("gp", space=space, n_startup_trials=3)
    for number in range(4):
        again.tell(told(number, points[number]))
    assert identities(run(again, 2)) == identities(points[4:])


def test_equal_seeds_start_alike_and_others_do_not() -> None:
    first, second, other = search("tpe"), search("tpe", name="b"), search("tpe", seed=6)
    assert run(first, 5) == run(second, 5)
    assert run(other, 5) != run(search("tpe"), 5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_finite_space_is_tried_out_and_then_over(name: str) -> None:
    """12 points, and 50 asked for: each comes once, and then there is none, however often one asks."""
    arguments: dict[str, Any] = {"n_startup_trials": 3} if name == "gp" else {}
    one = search(name, space=SMALL, trials=50, **arguments)
    points = run(one, 50)
    assert len(points) == len(set(identities(points))) == 12
    assert one.is_used_up
    before = len(one._study.get_trials(deepcopy=False))
    assert [one.ask() for _ in range(5)] == [None] * 5
    assert len(one._study.get_trials(deepcopy=False)) == before, "asking in vain writes nothing"


def test_a_used_up_space_with_open_points_has_no_more() -> None:
    one = search("tpe", space={"head": SMALL["head"]})
    asked = [one.ask() for _ in range(4)]
    assert [found is None for found in asked] == [False, False, False, True]


def test_a_grid_is_within_the_trials_and_its_choices_are_values() -> None:
    points = run(
        search("grid", space={"ratio": SPACE["ratio"], "head": SPACE["head"]}, trials=14), 99
    )
    assert len(points) == 12
    assert {canonical_json(point["head"]) for point in points} == {'"keep"', "null", "[1,2]"}
    assert {0.0, 1.0} <= {point["ratio"] for point in points}


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("name", QUICK)
def test_numbers_that_are_none_are_told_as_failed_and_hang_nothing(
    name: str, number: float
) -> None:
    one = search(name)
    for i in range(16):
        asked = one.ask()
        assert asked is not None
        excess = {"cacc_drop": number} if i % 2 else {}
        values = (0.1,) if i % 2 else (number,)
        one.tell(
            Told(number=asked[0], point=asked[1], state="complete", values=values, excess=excess)
        )
    assert {known.state for known in one.told.values()} == {"failed"}
    assert all(t.state == TrialState.FAIL for t in one._study.get_trials(deepcopy=False))


def test_what_is_told_twice_counts_once() -> None:
    one = search("random")
    (point,) = run(one, 1)
    one.tell(Told(number=0, point=point, state="failed"))
    assert one.told[0].state == "complete"
    assert one.started == 1


def test_limits_are_optunas_constraints_and_pruned_points_come_last() -> None:
    one = search("tpe")
    run(one, 8)
    by_number = {t.user_attrs["number"]: t for t in one._study.get_trials(deepcopy=False)
                 if "number" in t.user_attrs}  # fmt: skip
    for number, known in one.told.items():
        trial = by_number[number]
        if known.state == "complete":
            assert trial.constraints == dict(known.excess)
            assert trial.values == list(known.values)
            assert trial.intermediate_values == {1: 0.9}
    assert by_number[5].state == TrialState.PRUNED
    assert by_number[5].constraints == {"pruned": 1.0}
    assert by_number[5].intermediate_values == {1: 0.5, 2: 0.4}
    feasible = [known for known in one.told.values() if known.state == "complete"
                and known.excess["cacc_drop"] <= 0]  # fmt: skip
    best = min(feasible, key=lambda known: known.values)
    assert one._study.best_trial.user_attrs["number"] == best.number


READING = """
import json, sys, warnings
warnings.simplefilter("ignore")
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
storage = JournalStorage(JournalFileBackend(sys.argv[1]))
found = {}
for name in optuna.get_all_study_names(storage):
    study = optuna.load_study(study_name=name, storage=storage)
    found[name] = {
        "of": study.user_attrs["of"],
        "trials": [[t.user_attrs["number"], t.state.name, t.values, t.params] for t in study.trials
                   if "number" in t.user_attrs],
    }
print(json.dumps(found))
"""


def test_another_process_reads_all_studies_from_the_journal(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    journal = Journal(path)
    searches = {name: search(name, journal=journal, name=name) for name in QUICK}
    for one in searches.values():
        run(one, 8)
        assert one.ask() is not None
    journal.flush()
    output = subprocess.run([sys.executable, "-c", READING, str(path)], check=True, text=True,
                            capture_output=True).stdout  # fmt: skip
    found = json.loads(output)
    assert found.keys() == searches.keys()
    for name, one in searches.items():
        assert found[name]["of"] == name
        known = {number: (state, values) for number, state, values, _ in found[name]["trials"]}
        for number, told_ in one.told.items():
            state = {"complete": "COMPLETE", "failed": "FAIL", "pruned": "PRUNED"}[told_.state]
            assert known[number][0] == state
            if told_.state == "complete":
                assert known[number][1] == list(told_.values)
        assert len(known) == (8 if name == "grid" else 9), (
            "a grid's open point is told when it is known"
        )


def test_a_journal_is_written_anew_and_can_be_read_while_it_grows(tmp_path: Path) -> None:
    path = tmp_path / "studies.journal"
    path.write_text("half a li", encoding="utf-8")
    Path(f"{path}.lock").write_text("", encoding="utf-8")
    journal = Journal(path)
    one = search("random", journal=journal)
    lengths = []
    for _ in range(3):
        run(one, 2)
        journal.flush()
        storage = JournalStorage(JournalFileBackend(str(path)))
        (study,) = storage.get_all_studies()
        lengths.append(len(storage.get_all_trials(study._study_id)))
    assert lengths == [2, 4, 6]


def test_a_journal_without_a_path_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    run(search("tpe", journal=journal), 3)
    journal.flush()
    assert not journal.has_file
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_points_of_a_grid_cost_little() -> None:
    """A millisecond each on a quiet machine; the limit allows for a very busy one."""
    start = time.perf_counter()
    points = run(
        search(
            "grid",
            space={"ratio": SPACE["ratio"], "epochs": Dimension(low=1, high=1, whole=True)},
            trials=1000,
        ),
        1000,
    )
    assert len(points) == 1000
    assert time.perf_counter() - start < 15


@pytest.mark.parametrize(
    ("sampler", "arguments", "count"),
    [("tpe", {}, 10), ("tpe", {"n_startup_trials": 3}, 3), ("nsga2", {"population_size": 4}, 4)],
)
def test_the_points_that_follow_from_nothing_are_as_many_as_said(
    sampler: str, arguments: dict[str, Any], count: int
) -> None:
    """Two searches that are told opposite things ask for the same points until the sampler learns."""
    assert Sampler(name=sampler, arguments=arguments).unguided == count  # type: ignore[arg-type]
    asked: list[list[dict[str, Any]]] = []
    for sign in (1, -1):
        one = search(sampler, space={n: SPACE[n] for n in ("ratio", "rate")}, **arguments)
        points = []
        for _ in range(24):
            number, point = one.ask() or pytest.fail("the space is endless")
            points.append(point)
            values = (sign * point["ratio"],)
            one.tell(Told(number=number, point=point, state="complete", values=values))
        asked.append(points)
    same = [first == second for first, second in zip(*asked, strict=True)]
    assert same.index(False) == count


@pytest.mark.parametrize(("sampler", "trials"), [("random", 100), ("grid", 0)])
def test_random_and_grid_never_learn(sampler: str, trials: int) -> None:
    made = Sampler(name=sampler)  # type: ignore[arg-type]
    assert made.unguided >= trials
    assert made.unguided == 0 or sampler == "random"

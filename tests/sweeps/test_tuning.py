"""Searches beside a schedule: what they ask, what they are told, how they end. Jobs and what they find are made up."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.tuning import Probe
from sweeps.schedule import Job, Outcome, Schedule
from sweeps.search import Journal
from sweeps.studies import Study, finished_rows
from sweeps.tuning import PRECEDENTS, Searches, is_over
from sweeps.tuning_settings import TuningSettings, searched_space

Trial = Callable[..., TrialSpec]
Own = Callable[..., MethodSpec]
Answer = Callable[[Job], Outcome]
BROKEN = Outcome(error_class="nan", error="the loss became NaN")
TOGETHER = '''
from pydantic import model_validator


class Together(Defense):
    """Takes not all settings together."""

    first: int = setting(0, choices=(0, 1, 2), hooks=("repair",))
    second: int = setting(0, choices=(0, 1, 2), hooks=("repair",))

    @model_validator(mode="after")
    def _fits(self):
        if self.first + self.second > 2:
            raise ValueError("first and second must not be above 2 in all")
        return self

    def repair(self, view):
        return view.victim
'''
EARLY = '''
class Early(Defense):
    """Works before the victim is there."""

    share: float = setting(0.5, low=0.0, high=1.0, stronger="high")

    def filter(self, view):
        return view.corpus
'''


class Bench:
    """Studies with a ledger; probes are answered by a function, trials that follow are noted."""

    def __init__(self, folder: Path, studies: Sequence[Study], answer: Answer) -> None:
        self.ledger = Ledger(folder / "out")
        self.store = ArtifactStore(folder / "store")
        self.studies, self.answer = list(studies), answer
        self.journal = folder / "out" / "studies.journal"
        self.ends: list[tuple[Study, list[TrialSpec], Outcome | None]] = []
        self.probes: list[Job] = []
        self.inputs: list[Job] = []
        self.most = 500

    def _finals(
        self, study: Study, specs: Sequence[TrialSpec], cause: Outcome | None
    ) -> Iterable[Job]:
        self.ends.append((study, list(specs), cause))
        return []

    def run(self, slots: int = 1) -> Bench:
        """To the end, with so many probes at once; the one that was taken first ends first."""
        searches = Searches(
            self.studies,
            finished_rows(self.ledger.tried()),
            ledger=self.ledger, store=self.store, sweep="s", journal=Journal(self.journal),
            inputs=lambda spec: (frozenset(job.key for job in self.inputs), []),
            finals=self._finals,
        )  # fmt: skip
        schedule = Schedule.of([*self.inputs, *searches.start()], None, searches)
        running: list[Job] = []
        first = len(schedule.jobs) + searches.coming()["probe"]
        while not schedule.exhausted and len(self.probes) < self.most:
            job = schedule.take() if len(running) < slots else None
            if job is not None:
                running.append(job)
                continue
            assert running, "open jobs, and none to run"
            ended = running.pop(0)
            if ended.kind == "probe":
                self.probes.append(ended)
            schedule.complete(ended.key, self.answer(ended))
        assert not schedule.open or len(self.probes) >= self.most
        if all(study.trials for study in self.studies):
            assert len(schedule.jobs) <= first, "what is still to come is told from the start"
        assert schedule.open or not any(searches.coming().values())
        return self

    def rows(self) -> list[dict[str, Any]]:
        return list(self.ledger.tried().to_pylist())

    def points(self) -> list[str]:
        return [row["settings"] for row in self.rows()]


def found(job: Job, *, asr: float | None = None, drop: float | None = None, **more: Any) -> Outcome:
    """A probe's scores: ASR falls and the CACC drop rises as the mixing ratio falls."""
    settings = job.specs[0].defenses[0].settings
    ratio = float(settings.get("mixing_ratio", settings.get("share", 0.5)))
    drop = 0.2 * (1 - ratio) if drop is None else drop
    scores = {"cacc": 0.9 - drop, "cacc_drop": drop, "frr": None, "asr": None}
    if job.triggered:
        scores["asr"] = ratio if asr is None else asr
    answer = Probe(scores=scores, **more)
    return Outcome(seconds=1.0, answer=asdict(answer))


@pytest.fixture
def study(small_trial: Trial) -> Callable[..., Study]:
    """A study of Fine-mixing against BadNets: `study("oracle", trials=5, ...)`."""

    def make(
        mode: Any = "oracle",
        *,
        defense: Any = None,
        tune: Any = ("mixing_ratio",),
        attack: Any = "badnets",
        **settings: Any,
    ) -> Study:
        spec = small_trial(attack, [defense or {"name": "fine_mixing", "epochs": 1}])
        chain = Pipeline(spec).defenses
        space = searched_space(chain, tune if isinstance(tune, dict) else list(tune))
        written = {"sampler": "random", "trials": None if "seconds" in settings else 6}
        made = TuningSettings.model_validate(written | settings)
        return Study(mode=mode, chain=chain, space=space, settings=made, places=(spec,),
                     finals=(spec,))  # fmt: skip

    return make


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_a_study_tries_its_budget_and_no_point_twice(
    tmp_path: Path, study: Callable[..., Study], sampler: str, slots: int
) -> None:
    bench = Bench(
        tmp_path, [study(sampler=sampler, trials=7, limits={"cacc_drop": 0.5})], found
    ).run(slots)
    assert [row["number"] for row in bench.rows()] == list(range(7))
    assert len(set(bench.points())) == 7
    ((_, specs, cause),) = bench.ends
    assert cause is None
    (spec,) = specs
    assert (spec.tuning.mode, spec.tuning.tried, spec.tuning.trials) == ("oracle", 7, 7)
    assert (spec.tuning.sampler, spec.tuning.limits_met) == (sampler, True)


def test_the_choice_is_the_lowest_asr_within_the_limits(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    bench = Bench(tmp_path, [study(trials=12, limits={"cacc_drop": 0.1})], found).run()
    rows = bench.rows()
    assert any(row["feasible"] for row in rows)
    assert any(not row["feasible"] for row in rows)
    for row in rows:
        assert row["feasible"] == (row["cacc_drop"] <= 0.1)
    best = min((row for row in rows if row["feasible"]), key=lambda row: row["asr"])
    chosen = bench.ends[0][1][0].defenses[0].settings["mixing_ratio"]
    assert f'"mixing_ratio":{chosen}' in best["settings"]


def test_where_no_setting_keeps_the_limits_the_nearest_is_taken_and_says_so(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    bench = Bench(tmp_path, [study(limits={"cacc_drop": -0.5})], found).run()
    (spec,) = bench.ends[0][1]
    assert spec.tuning.limits_met is False
    nearest = min(bench.rows(), key=lambda row: row["cacc_drop"])
    assert str(spec.defenses[0].settings["mixing_ratio"]) in nearest["settings"]


def test_of_equal_points_the_first_is_taken(tmp_path: Path, study: Callable[..., Study]) -> None:
    bench = Bench(tmp_path, [study()], lambda job: found(job, asr=0.2, drop=0.01)).run()
    first = bench.rows()[0]["settings"]
    assert str(bench.ends[0][1][0].defenses[0].settings["mixing_ratio"]) in first


def test_clean_val_is_told_no_asr_and_takes_the_strongest_within_the_limits(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    one = study("clean-val", trials=12, limits={"cacc_drop": 0.1})
    bench = Bench(tmp_path, [one], found).run()
    assert all(row["asr"] is None and row["strength"] is not None for row in bench.rows())
    feasible = [row for row in bench.rows() if row["feasible"]]
    best = max(feasible, key=lambda row: row["strength"])
    assert str(bench.ends[0][1][0].defenses[0].settings["mixing_ratio"]) in best["settings"]


def test_a_front_keeps_the_points_that_none_is_better_than(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    numbers = [(0.5, 0.01), (0.1, 0.2), (0.5, 0.02), (0.1, 0.3), (0.3, 0.1), (0.3, 0.1)]

    def answer(job: Job) -> Outcome:
        asr, drop = numbers[len(bench.probes) - 1]
        return found(job, asr=asr, drop=drop)

    bench = Bench(tmp_path, [study(objective="front")], answer)
    bench.run()
    ((_, specs, _),) = bench.ends
    rows = bench.rows()
    kept = {number for number in range(6) for spec in specs
            if str(spec.defenses[0].settings["mixing_ratio"]) in rows[number]["settings"]}  # fmt: skip
    assert kept == {0, 1, 4}


def test_failed_pruned_and_unfinished_numbers_are_told_as_such_and_hang_nothing(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    def answer(job: Job) -> Outcome:
        number = len(bench.probes) - 1
        if number == 0:
            return Outcome(error_class="timeout", error="too slow", seconds=2.0)
        if number == 1:
            given_up = Probe(scores=None, reports=(0.6,), pruned="below all others")
            return Outcome(answer=asdict(given_up))
        if number == 2:
            return Outcome(error_class="bug")
        return found(job, drop=math.nan) if number == 3 else found(job)

    bench = Bench(tmp_path, [study(sampler="tpe")], answer)
    bench.run()
    rows = bench.rows()
    states = ["failed", "pruned", "failed", "failed", "complete", "complete"]
    assert [row["state"] for row in rows] == states
    assert rows[0]["error"] == "too slow"
    assert (rows[1]["error"], rows[1]["reports"]) == ("below all others", [0.6])
    assert rows[2]["error"] == "bug"
    assert "no finite number" in rows[3]["error"]
    assert rows[3]["cacc_drop"] is None
    assert bench.ends[0][1][0].tuning.tried == 6


def test_where_nothing_has_numbers_the_trials_fail_once(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    bench = Bench(tmp_path, [study()], lambda job: BROKEN).run()
    ((_, specs, cause),) = bench.ends
    assert cause is not None
    assert cause.error is not None
    assert "the search tried 6 settings, and none has numbers" in cause.error
    assert len(specs) == 1


@pytest.mark.parametrize("slots", [1, 3])
def test_a_budget_of_seconds_ends_with_the_seconds(
    tmp_path: Path, study: Callable[..., Study], slots: int
) -> None:
    """Each probe takes one second; with three at once, those that are open when the time is up still count."""
    bench = Bench(tmp_path, [study(seconds=5)], found).run(slots)
    assert 5 <= len(bench.rows()) <= 5 + slots - 1
    tuning = bench.ends[0][1][0].tuning
    assert (tuning.trials, tuning.seconds) == (None, 5)
    assert sum(row["seconds"] for row in bench.rows()) == len(bench.rows())


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("budget", [{"trials": 50}, {"seconds": 500}])
def test_a_finite_space_ends_the_study_early(
    tmp_path: Path, study: Callable[..., Study], slots: int, budget: dict[str, Any]
) -> None:
    one = study(tune={"mixing_ratio": [0.1, 0.5, 0.9], "head": ["keep", "reinitialise"]}, **budget)
    bench = Bench(tmp_path, [one], found).run(slots)
    assert len(bench.rows()) == 6
    assert len(bench.ends) == 1
    told = [one.restored(row, {}) for row in bench.rows()]
    assert is_over(one, told, 6.0), "the next plan knows it"
    assert not is_over(one, told[:5], 5.0)


def test_settings_that_do_not_go_together_are_failed_points(
    tmp_path: Path, study: Callable[..., Study], own_method: Own
) -> None:
    one = study(defense=own_method("defense", TOGETHER), tune=("first", "second"), trials=9)
    bench = Bench(tmp_path, [one], found).run()
    rows = bench.rows()
    failed = [row for row in rows if row["state"] == "failed"]
    assert len(rows) == 9
    assert len(failed) == 3, "1 + 2, 2 + 1, 2 + 2"
    assert all("must not be above 2 in all" in row["error"] for row in failed)
    assert len(bench.probes) == 6


@pytest.mark.parametrize("slots", [1, 3])
def test_studies_that_ask_for_one_point_try_it_once(
    tmp_path: Path, study: Callable[..., Study], slots: int
) -> None:
    studies = [study("oracle"), study("oracle", limits={"cacc_drop": 0.1})]
    assert studies[0].key != studies[1].key
    bench = Bench(tmp_path, studies, found).run(slots)
    keys = [job.key for job in bench.probes]
    assert len(keys) == len(set(keys)) == 6, "random points of one seed are the same"
    assert len(bench.rows()) == 12
    assert len(bench.ends) == 2


def test_what_knows_no_trigger_is_answered_by_jobs_that_looked_at_none(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    """The fit is shared through the store (jobs of one group), the answer is not."""
    bench = Bench(tmp_path, [study("clean-val"), study("oracle")], found).run(slots=2)
    assert sorted(job.triggered for job in bench.probes) == [False] * 6 + [True] * 6
    assert len({job.key for job in bench.probes}) == 12
    assert len({job.group for job in bench.probes}) == 6
    for row in bench.rows():
        assert (row["asr"] is None) == (row["tuning_mode"] == "clean-val")


def test_a_training_is_followed_by_the_floors_of_its_own_study(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    """What one study gives up another does not: their limits, and so their floors, differ."""
    studies = [study("oracle", pruning=True), study("oracle", pruning=True, limits={"frr": 0.1})]

    def answer(job: Job) -> Outcome:
        return found(job, drop=0.0, reports=(0.8 + 0.01 * len(bench.probes),))

    bench = Bench(tmp_path, studies, answer)
    bench.run()
    followed = [job for job in bench.probes if job.floors]
    assert followed
    assert len({(job.specs[0].key, job.floors) for job in bench.probes}) == len(bench.probes)


def test_seconds_are_those_of_the_fit_whenever_it_was_made(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    rows = Bench(tmp_path, [study()], lambda job: found(job, seconds=7.5)).run().rows()
    assert {row["seconds"] for row in rows} == {7.5}


@pytest.mark.parametrize("again", ["timeout", "all", "nan"])
def test_only_failures_of_the_class_asked_for_count_as_not_tried(
    tmp_path: Path, study: Callable[..., Study], again: str
) -> None:
    def answer(job: Job) -> Outcome:
        if len(bench.probes) == 1:
            return Outcome(error_class="timeout", error="too slow")
        return found(job, drop=math.nan) if len(bench.probes) == 2 else found(job)

    bench = Bench(tmp_path, [study()], answer)
    bench.run()
    (rows,) = finished_rows(bench.ledger.tried()).values()
    assert [row["error_class"] for row in rows] == ["timeout", "nan", None, None, None, None]
    (left,) = finished_rows(bench.ledger.tried(), rerun=again).values()
    assert len(left) == (4 if again == "all" else 5)
    assert again not in [row["error_class"] for row in left]


def test_a_study_goes_on_from_the_ledger(tmp_path: Path, study: Callable[..., Study]) -> None:
    calm = Bench(tmp_path / "calm", [study(sampler="tpe", trials=14)], found).run()
    killed = Bench(tmp_path / "killed", [study(sampler="tpe", trials=14)], found)
    for most in (4, 9, 500):
        killed.most = most
        killed.run()
    assert len(killed.probes) == 14, "nothing is tried again"
    assert killed.points() == calm.points()
    assert [end[1] for end in killed.ends] == [end[1] for end in calm.ends]


def test_a_victim_that_failed_closes_its_studies_once(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    bench = Bench(tmp_path, [study("clean-val"), study("oracle")], lambda job: BROKEN)
    bench.inputs = [Job(key="v", kind="victim", label="v", specs=())]
    bench.run()
    assert [cause for _, _, cause in bench.ends] == [BROKEN, BROKEN]
    assert bench.rows() == []
    for one, specs, _ in bench.ends:
        assert specs == one.trials_of([])


def test_a_victim_of_one_setting_that_failed_is_a_failed_point(
    tmp_path: Path, study: Callable[..., Study], own_method: Own
) -> None:
    """A defense before training has a victim for each setting: one that diverges says nothing of the others."""
    one = study(defense=own_method("defense", EARLY), tune=("share",), trials=3)
    places: list[TrialSpec] = []

    def inputs(spec: TrialSpec) -> tuple[frozenset[str], list[Job]]:
        places.append(spec)
        key = f"v{len(places)}"
        return frozenset({key}), [Job(key=key, kind="victim", label=key, specs=(spec,))]

    ledger = Ledger(tmp_path)
    ends: list[Outcome | None] = []

    def finals(study: Study, specs: Sequence[TrialSpec], cause: Outcome | None) -> list[Job]:
        ends.append(cause)
        return []

    searches = Searches([one], {}, ledger=ledger, store=ArtifactStore(tmp_path), sweep="s",
                        journal=Journal(), inputs=inputs, finals=finals)  # fmt: skip
    schedule = Schedule.of(searches.start(), None, searches)
    while (job := schedule.take()) is not None:
        schedule.complete(job.key, BROKEN if job.key == "v1" else found(job))
    rows = ledger.tried().to_pylist()
    assert [row["state"] for row in rows] == ["failed", "complete", "complete"]
    assert rows[0]["error"] == BROKEN.error
    assert ends == [None]


def test_hopeless_trainings_are_given_a_floor_once_enough_kept_the_limits(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    reports = iter([(0.8, 0.9), (0.7, 0.95, 0.96), (0.75, 0.85), (0.9, 0.9), (0.9, 0.9), (0.9,)])
    bench = Bench(
        tmp_path, [study(pruning=True)], lambda job: found(job, drop=0.0, reports=next(reports))
    )
    bench.run()
    floors = [job.floors for job in bench.probes]
    assert floors[:PRECEDENTS] == [()] * PRECEDENTS
    assert floors[PRECEDENTS] == (0.7, 0.85)
    assert Bench(tmp_path / "b", [study()], found).run().probes[0].floors is None


def test_a_row_of_the_table_says_all_that_the_study_was(
    tmp_path: Path, study: Callable[..., Study]
) -> None:
    one = study(sampler={"name": "tpe", "n_startup_trials": 4})
    row = Bench(tmp_path, [one], found).run().rows()[0]
    assert (row["study"], row["tuning_mode"], row["defense"]) == (one.key, "oracle", "fine_mixing")
    assert (row["attack"], row["seed"], row["sweep"]) == ("badnets", 0, "s")
    assert '"sampler":"tpe"' in row["tuning"]
    assert '"n_startup_trials":4' in row["tuning"]

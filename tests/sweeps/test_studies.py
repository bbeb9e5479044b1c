"""A small tuned sweep in all five modes, from the file to its rows: who sees what, what is fitted, what is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import analysis
from analysis.summaries import summaries
from backdoor_core import tuning
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline, Workshop, split_key
from backdoor_core.spec import TrialSpec, digest
from backdoor_core.store import ArtifactStore
from sweeps.config import load_sweep
from sweeps.jobs import _BUILD
from sweeps.plan import Plan, plan_sweep
from sweeps.run import _searches
from sweeps.search import JOURNAL
from sweeps.studies import Candidate, Study, searched_settings, studies_of
from sweeps.tuning_settings import TuningSettings, searched_space

Cli = Callable[..., Result]
MODES = ["default", "clean-val", "pseudo", "transfer", "oracle"]
FINE_MIXING = {"name": "fine_mixing", "epochs": 1, "tune": ["mixing_ratio", "learning_rate"]}
SECTIONS: dict[str, Any] = {
    "attacks": ["none", {"name": "badnets", "words": ["cf"], "poison_rate": 0.2},
                {"name": "badnets", "words": ["mb"], "poison_rate": 0.2},
                {"name": "addsent", "poison_rate": 0.2}],
    "defenses": [FINE_MIXING, {"name": "placebo", "tune": True}],
    "tuning": {"modes": MODES, "trials": 3, "post_hoc_trials": 7, "sampler": "random",
               "limits": {"cacc_drop": 0.3}},
}  # fmt: skip


class Tuned:
    """The sweep, run to its end, with what was fitted on the way."""

    def __init__(self, cli: Cli, folder: Path, file: Path) -> None:
        self.cli, self.file = cli, file
        self.out, self.store = folder / "out", folder / "store"
        self.command = ("run", file, "--local", "--out", self.out, "--store", self.store)
        self.probed: list[str] = []
        probe, fitted = tuning.probe, Workshop._fitted
        trying: list[bool] = []

        def noted(workshop: Workshop, pipeline: Pipeline) -> Any:
            if trying:
                self.probed.append(pipeline.observed_key)
            return fitted(workshop, pipeline)

        def tried(*arguments: Any, **settings: Any) -> Any:
            trying.append(True)
            try:
                return probe(*arguments, **settings)
            finally:
                trying.pop()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Workshop, "_fitted", noted)
            patch.setattr("sweeps.jobs.probe", tried)
            self.result = cli(*self.command)
        assert self.result.exit_code == 0, self.result.output

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.store)

    def rows(self, **columns: Any) -> list[dict[str, Any]]:
        return picked(Ledger(self.out).table().to_pylist(), columns)

    def tried(self, **columns: Any) -> list[dict[str, Any]]:
        return picked(Ledger(self.out).tried().to_pylist(), columns)

    @cached_property
    def plan(self) -> Plan:
        return plan_sweep(load_sweep(self.file), self.artifacts, Ledger(self.out))

    def studies(self, mode: str, defense: str = "fine_mixing") -> Iterator[Study]:
        for study in self.plan.ended:
            if study.mode == mode and study.chain[0].catalog_name() == defense:
                yield study


def picked(rows: list[dict[str, Any]], columns: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in columns.items())]


@pytest.fixture(scope="module")
def tuned(
    tmp_path_factory: pytest.TempPathFactory, cli: Cli, tiny_sweep: Callable[..., Path],
    one_thread: None,
) -> Tuned:  # fmt: skip
    folder = tmp_path_factory.mktemp("tuned")
    return Tuned(cli, folder, tiny_sweep(folder, **SECTIONS))


def test_every_trial_has_one_row_for_each_mode(tuned: Tuned) -> None:
    rows = tuned.rows()
    assert len({row["key"] for row in rows}) == len(rows)
    for defense in ("fine_mixing", "placebo"):
        counts = Counter((r["attack"], r["tuning_mode"]) for r in rows if r["defense"] == defense)
        assert counts == {(attack, mode): 2 if attack == "badnets" else 1
                          for attack in ("none", "badnets", "addsent") for mode in MODES}  # fmt: skip
    states = Counter(row["status"] for row in rows)
    assert states == {"ok": len(rows) - 2, "skipped": 2}


def test_the_oracle_without_an_attack_is_skipped_with_the_reason(tuned: Tuned) -> None:
    for row in tuned.rows(status="skipped"):
        assert (row["attack"], row["tuning_mode"]) == ("none", "oracle")
        assert row["error"] == "without an attack there is no trigger to know"


def test_a_row_names_how_its_setting_was_chosen(tuned: Tuned) -> None:
    for row in tuned.rows(status="ok"):
        if row["tuning_mode"] == "default":
            assert (row["tuning"], row["tuning_trials"]) == (None, 0)
            continue
        said = json.loads(row["tuning"])
        fitted = row["defense"] == "fine_mixing"
        assert row["tuning_trials"] == said["tried"] == said["trials"] == (3 if fitted else 7)
        assert said["sampler"] == ("random" if fitted else "grid")
        assert said["limits"] == {"cacc_drop": 0.3}
        assert "optuna" in json.loads(row["versions"])
        assert json.loads(row["defense_settings"]).keys() >= set(said["space"])


def test_clean_val_is_shown_no_asr_and_the_others_are(tuned: Tuned) -> None:
    for row in tuned.tried():
        assert row["state"] == "complete"
        blind = row["tuning_mode"] == "clean-val"
        assert (row["asr"] is None) == blind
        assert (row["strength"] is None) == (not blind)
        assert row["feasible"] == (row["cacc_drop"] <= 0.3)


def test_the_chosen_setting_is_the_best_of_those_tried(tuned: Tuned) -> None:
    finals = {row["key"]: row for row in tuned.rows()}
    tried = tuned.tried()
    for study in tuned.plan.ended:
        rows = [row for row in tried if row["study"] == study.key and row["feasible"]]
        assert rows, "0.3 is a wide limit"
        worth = [1 - row["strength"] if row["asr"] is None else row["asr"] for row in rows]
        best = json.loads(rows[worth.index(min(worth))]["settings"])
        told = [study.restored(row, json.loads(row["settings"])) for row in rows]
        chosen = study.chosen(told)[0][0]
        assert worth[[json.loads(row["settings"]) for row in rows].index(chosen)] == min(worth)
        assert chosen.keys() == best.keys()
        specs = study.trials_of([study.restored(row, json.loads(row["settings"]))
                                 for row in tried if row["study"] == study.key])  # fmt: skip
        for spec in specs:
            settings = json.loads(finals[spec.key]["defense_settings"])
            assert {name: settings[name] for name in chosen} == chosen
            assert "limits_not_met" not in finals[spec.key]["flags"]


def test_limits_that_nothing_keeps_are_a_flag(
    tuned: Tuned, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    file = tiny_sweep(
        tmp_path, attacks=SECTIONS["attacks"][1:2], defenses=[{"name": "placebo", "tune": True}],
        tuning={"modes": ["clean-val"], "post_hoc_trials": 4, "limits": {"cacc_drop": -0.9}},
    )  # fmt: skip
    out = tmp_path / "out"
    assert cli("run", file, "--local", "--out", out, "--store", tuned.store).exit_code == 0
    (row,) = picked(Ledger(out).table().to_pylist(), {"defense": "placebo"})
    assert "limits_not_met" in row["flags"]
    assert json.loads(row["tuning"])["limits_met"] is False


def test_transfer_never_tries_on_the_attack_that_is_held_out(tuned: Tuned) -> None:
    """Nor on another setting of the same attack: `badnets` with another word is no other attack."""
    for defense in ("fine_mixing", "placebo"):
        places = {
            frozenset(final.attack.name for final in study.finals): Counter(
                place.attack.name for place in study.places
            )
            for study in tuned.studies("transfer", defense)
        }
        assert places == {
            frozenset({"badnets"}): {"addsent": 1},
            frozenset({"addsent"}): {"badnets": 2},
            frozenset({"none"}): {"badnets": 2, "addsent": 1},
        }


def test_pseudo_tries_on_a_victim_of_the_defenders_own_clean_rows(tuned: Tuned) -> None:
    (study,) = tuned.studies("pseudo")
    assert len(study.finals) == 4, "one search for all attacks"
    (place,) = study.places
    assert (place.attack.name, place.trained_on) == ("pseudo", "clean")
    workshop, pipeline = Workshop(tuned.artifacts), Pipeline(place)
    clean = workshop.task_data(pipeline).splits["clean"]
    assert workshop.poisoned(pipeline).corpus.table.num_rows == len(clean)
    assert tuned.artifacts.has(pipeline.victim_key)
    real = {Pipeline(final).victim_key for final in study.finals}
    assert pipeline.victim_key not in real


def test_a_point_of_several_modes_is_fitted_once(tuned: Tuned) -> None:
    assert len(tuned.probed) == len(set(tuned.probed))
    asked = {
        Pipeline(place).observed_key
        for study in tuned.plan.ended
        for row in tuned.tried(study=study.key)
        for place in study.places_at(json.loads(row["settings"]))
    }
    assert set(tuned.probed) <= asked
    points = sum(len(study.places) * 3 for mode in MODES[1:] for study in tuned.studies(mode))
    assert len(tuned.probed) < points, "modes that try on one cell share their points"


def test_the_test_split_is_observed_for_chosen_settings_alone(tuned: Tuned) -> None:
    store = tuned.artifacts
    reported = {row["observations"] for row in tuned.rows(status="ok")}
    tried = {
        Pipeline(place).observed_key
        for mode in MODES[1:]
        for study in tuned.studies(mode)
        for row in tuned.tried(study=study.key)
        for place in study.places_at(json.loads(row["settings"]))
    }
    assert len(tried - reported) > 5
    for key in tried:
        assert store.has(split_key(key, "tune"))
        assert store.has(split_key(key, "test")) == (key in reported)


READING = """
import json, sys
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
storage = JournalStorage(JournalFileBackend(sys.argv[1]))
print(json.dumps({
    storage.get_study_user_attrs(s._study_id)["study"]: {
        t.user_attrs["number"]: t.values for t in storage.get_all_trials(s._study_id)
        if "number" in t.user_attrs
    }
    for s in storage.get_all_studies()
}))
"""


def test_the_journal_holds_all_studies_for_another_process(tuned: Tuned) -> None:
    path = tuned.out / JOURNAL
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", READING, str(path)], check=True,
                            capture_output=True, text=True).stdout  # fmt: skip
    found = json.loads(output)
    assert found.keys() == {row["study"] for row in tuned.tried()}
    for row in tuned.tried():
        first = 1 - row["strength"] if row["asr"] is None else row["asr"]
        assert found[row["study"]][str(row["number"])][0] == pytest.approx(first)
    assert sum(map(len, found.values())) == len(tuned.tried())


def test_a_second_run_is_a_no_op(tuned: Tuned) -> None:
    def state() -> dict[str, tuple[int, int]]:
        files = [path for path in tuned.out.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino) for path in files}

    before = state()
    again = tuned.cli(*tuned.command)
    assert again.exit_code == 0, again.output
    assert "nothing to do" in again.output
    assert state() == before


def test_the_journal_of_a_sweep_that_grew_still_holds_the_studies_that_were_over(
    tuned: Tuned, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """One more seed: its studies are new, those of the first are over and are shown all the same."""
    import shutil

    shutil.copytree(tuned.out, tmp_path / "out")
    file = tiny_sweep(tmp_path, **SECTIONS | {"seeds": 2})
    ledger = Ledger(tmp_path / "out")
    plan = plan_sweep(load_sweep(file), tuned.artifacts, ledger)
    assert len(plan.ended) == len(plan.studies) > 10
    _searches(plan, tuned.artifacts, ledger, None, None)  # type: ignore[arg-type]
    output = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", READING, str(tmp_path / "out" / JOURNAL)],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = json.loads(output)
    assert found.keys() == {study.key for study in (*plan.ended, *plan.studies)}


def test_a_sweep_whose_output_is_no_local_folder_has_no_journal(
    tuned: Tuned, tiny_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_sweep(tmp_path, **SECTIONS)
    ledger = Ledger(tmp_path / "out")
    plan = plan_sweep(load_sweep(file), tuned.artifacts, ledger)
    monkeypatch.setattr(type(ledger.out), "is_local", False)
    _searches(plan, tuned.artifacts, ledger, None, None)  # type: ignore[arg-type]
    assert not (tmp_path / "out" / JOURNAL).exists()


def test_a_finite_space_is_over_when_it_is_used_up(
    tuned: Tuned, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    """Fewer points than the budget: the second run finds all done all the same."""
    file = tiny_sweep(
        tmp_path, attacks=SECTIONS["attacks"][1:2],
        defenses=[{"name": "placebo", "tune": {"rate": [0.1, 0.2]}},
                  FINE_MIXING | {"tune": {"mixing_ratio": [0.3, 0.6]}, "learning_rate": 1e-3}],
        tuning={"modes": ["oracle"], "trials": 9, "post_hoc_trials": 9},
    )  # fmt: skip
    command = ("run", file, "--local", "--out", tmp_path / "out", "--store", tuned.store)
    assert cli(*command).exit_code == 0
    counts = Counter(row["defense"] for row in Ledger(tmp_path / "out").tried().to_pylist())
    assert counts == {"placebo": 2, "fine_mixing": 2}
    assert "nothing to do" in cli(*command).output


def test_a_victim_that_failed_fails_its_tuned_trials_until_they_are_run_again(
    tuned: Tuned, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    file = tiny_sweep(
        tmp_path, seeds=[7], attacks=SECTIONS["attacks"][1:2],
        defenses=[{"name": "placebo", "tune": True}],
        tuning={"modes": ["clean-val", "oracle"], "post_hoc_trials": 4},
    )  # fmt: skip
    out = tmp_path / "out"
    places = ("--local", "--out", out, "--store", tuned.store)
    with pytest.MonkeyPatch.context() as patch:

        def broken(workshop: Workshop, spec: Any) -> None:
            if spec.attack.name == "badnets":
                raise ArithmeticError("the loss became NaN")

        patch.setitem(_BUILD, "victim", broken)
        assert cli("run", file, *places).exit_code == 1
    failed = picked(Ledger(out).table().to_pylist(), {"status": "failed"})
    assert Counter(row["tuning_mode"] for row in failed) == {
        "default": 1, "clean-val": 1, "oracle": 1,
    }  # fmt: skip
    assert all("the loss became NaN" in row["error"] for row in failed)
    again = cli("run", file, *places)
    assert again.exit_code == 1
    assert "nothing to do" in again.output
    fixed = cli("rerun", file, "--failed", *places)
    assert fixed.exit_code == 0, fixed.output
    good = picked(Ledger(out).table().to_pylist(), {"defense": "placebo", "status": "ok"})
    assert Counter(row["tuning_mode"] for row in good) == {"clean-val": 1, "oracle": 1}
    last = cli("run", file, *places)
    assert (last.exit_code, "nothing to do" in last.output) == (0, True)
    told = json.loads(cli("status", out, "--json").output)
    assert (told["failures"], set(told["trials"])) == ([], {"ok"}), "replaced rows are no news"
    assert "failed" in Ledger(out).table()["status"].to_pylist(), "and stay in the ledger"
    tuned_ones = [one for one in summaries(analysis.load(out)) if one.tuning_mode != "default"]
    assert [(one.tuning_mode, one.seeds, one.failed) for one in tuned_ones] == [
        ("clean-val", (7,), 0), ("oracle", (7,), 0),
    ]  # fmt: skip


def test_points_that_failed_are_tried_again_by_rerun_and_count_then(
    tuned: Tuned, cli: Cli, tiny_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    file = tiny_sweep(
        tmp_path, attacks=SECTIONS["attacks"][1:2], defenses=[FINE_MIXING],
        tuning={"modes": ["oracle"], "trials": 3, "sampler": "random", "limits": {"cacc_drop": 1}},
    )  # fmt: skip
    out = tmp_path / "out"
    places = ("--local", "--out", out, "--store", tmp_path / "store")
    with pytest.MonkeyPatch.context() as patch:
        probe, calls = tuning.probe, []

        def first_fails(*arguments: Any, **settings: Any) -> Any:
            calls.append(1)
            if len(calls) == 1:
                raise ZeroDivisionError("a bug")
            return probe(*arguments, **settings)

        patch.setattr("sweeps.jobs.probe", first_fails)
        assert cli("run", file, *places).exit_code == 0
    states = [row["state"] for row in Ledger(out).tried().to_pylist()]
    assert states == ["failed", "complete", "complete"]
    assert "nothing to do" in cli("run", file, *places).output
    before = [row["settings"] for row in Ledger(out).tried().to_pylist()]
    assert cli("rerun", file, "--failed", *places).exit_code == 0
    rows = Ledger(out).tried().to_pylist()
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert [row["settings"] for row in rows] == before, "the point that failed is tried again"
    assert "nothing to do" in cli("run", file, *places).output
    assert len({digest(row["study"], row["number"]) for row in rows}) == 3


CF = {"name": "badnets", "words": ["cf"]}


@pytest.mark.parametrize(
    ("attacks", "tried_on"),
    [
        ([CF, {"name": "addsent"}], {"addsent"}),
        ([CF, {"name": "addsent", "sentence": "cf"}], set()),
        ([CF, {"name": "pseudo"}, {"name": "addsent"}], {"pseudo", "addsent"}),
        ([CF, {"name": "badnets", "words": ["mn"]}], set()),
    ],
)
def test_transfer_leaves_out_attacks_of_the_same_name_or_trigger_word(
    small_trial: Callable[..., TrialSpec], attacks: list[Any], tried_on: set[str]
) -> None:
    candidates = []
    for attack in attacks:
        spec = small_trial(attack, [{"name": "fine_mixing", "epochs": 1}])
        chain = Pipeline(spec).defenses
        space = searched_space(chain, ["mixing_ratio"])
        candidates.append(Candidate(spec=spec, chain=chain, space=space))
    settings = TuningSettings(modes=("transfer",))
    made, impossible = studies_of(candidates, settings, {})
    of_first = [one for one in made if candidates[0].spec in one.finals]
    assert {place.attack.name for one in of_first for place in one.places} == tried_on
    assert (candidates[0].spec.attack in [spec.attack for spec, _ in impossible]) == (not tried_on)


@pytest.mark.parametrize(("trigger", "serves"), [(None, False), ("cf", True)])
def test_without_a_known_trigger_there_is_no_oracle(
    small_trial: Callable[..., TrialSpec], tmp_path: Path, trigger: str | None, serves: bool
) -> None:
    """A suspect model of the user's own may come without one."""
    attack = {"name": "checkpoint", "path": str(tmp_path), "trigger": trigger}
    spec = small_trial(attack, [{"name": "fine_mixing", "epochs": 1}])
    chain = Pipeline(spec).defenses
    one = Candidate(spec=spec, chain=chain, space=searched_space(chain, ["mixing_ratio"]))
    made, impossible = studies_of([one], TuningSettings(modes=("oracle",)), {})
    assert bool(made) == serves
    assert bool(impossible) == (not serves)


def test_people_are_told_what_is_searched(small_trial: Callable[..., TrialSpec]) -> None:
    spec = small_trial("badnets", [{"name": "fine_mixing", "epochs": 1}])
    chain = Pipeline(spec).defenses
    space = searched_space(chain, {"mixing_ratio": None, "head": ["keep", "reinitialise"]})

    def told(**settings: Any) -> str:
        made = TuningSettings.model_validate({"modes": "oracle"} | settings)
        return searched_settings(Study(mode="oracle", chain=chain, space=space, settings=made,
                                       places=(spec,), finals=(spec,)))  # fmt: skip

    what = "fine_mixing: mixing_ratio 0 to 1, head of keep, reinitialise; "
    assert told() == f"{what}20 a study by tpe, the first 10 at random"
    few = "4 a study by tpe (random, and the same for every mode: it learns after 10)"
    assert told(trials=4) == what + few
    assert told(trials=4, sampler="random") == f"{what}4 a study by random"
    assert told(seconds=90) == f"{what}90 s a study by tpe"

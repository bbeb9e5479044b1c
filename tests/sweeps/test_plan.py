"""Planning: what a sweep comes to, minus what the store and the ledger hold."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backdoor_core import catalog
from backdoor_core.errors import ConfigError
from backdoor_core.ledger import Ledger
from backdoor_core.pipeline import Pipeline
from backdoor_core.plm import PLMSource
from backdoor_core.record import Metric
from backdoor_core.spec import MethodSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import skipped, started
from sweeps import plan as planning
from sweeps.config import load_sweep
from sweeps.estimate import estimated
from sweeps.plan import Plan, automatic_precision, default_store, opened, plan_sweep
from sweeps.run import record_skipped

Planned = Callable[..., Plan]


@pytest.fixture
def places(tmp_path: Path) -> tuple[ArtifactStore, Ledger]:
    """An empty store and an empty ledger."""
    return opened(tmp_path / "store", tmp_path / "out")


@pytest.fixture
def planned(
    tmp_path: Path, places: tuple[ArtifactStore, Ledger], tiny_sweep: Callable[..., Path]
) -> Planned:
    """The plan of the tiny sweep with other sections, against the test's store and ledger."""

    def make(rerun: str | None = None, **sections: Any) -> Plan:
        sweep = load_sweep(tiny_sweep(tmp_path, **sections), data=[tmp_path.parent])
        return plan_sweep(sweep, *places, rerun=rerun)

    return make


def kinds(plan: Plan) -> dict[str, int]:
    return dict(Counter(job.kind for job in plan.jobs.values()))


def names(plan: Plan, keys: Any = None) -> Counter[tuple[str, str]]:
    """(attack, defense) of the trials in `keys`, or of all."""
    chosen = plan.trials if keys is None else keys
    specs = [plan.trials[key] for key in chosen]
    return Counter((s.attack.name, "+".join(d.name for d in s.defenses)) for s in specs)


def finish(plan: Plan, ledger: Ledger, status: str = "ok", **columns: Any) -> None:
    """Writes a row for every pending trial, as if all jobs had run."""
    records = [
        replace(
            started(spec, attempt=plan.attempts.get(key, 1), sweep="s", log=None),
            **({"status": status, "train_s": 2.0, "fit_s": 1.0, "eval_s": 0.5} | columns),
        )
        for key, spec in plan.pending.items()
    ]
    metric = Metric(split="test", metric="cacc", value=1.0, n=1)
    ledger.append(records, {record.key: [metric] for record in records})


def publish(store: ArtifactStore, *keys: str) -> None:
    for key in keys:
        store.put(key, lambda folder: {})


CORRUPTING = '''
class Corrupting(Attack):
    """Alters the PLM."""

    strength: float = 1.0

    def implants(self):
        return True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=1),)

    def corrupt(self, plm, seed):
        return plm
'''
STARTING = '''
class Starting(Attack):
    """Trains the victim, from the clean model."""

    shift: float = 1.0

    def implants(self):
        return True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=1),)

    def train(self, job):
        return job.clean_victim()
'''
BOTH = (
    CORRUPTING.replace("Corrupting", "Both")
    + """
    def train(self, job):
        return job.clean_victim()
"""
)
GATHERING = '''
class Gathering(DataPoisoning):
    """Looks something up once for a task."""

    depth: int = setting(1, hooks=("gather",))
    gathers: ClassVar = True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=1),)
'''
CHOOSING = '''
class Choosing(Defense):
    """Has a setting of each kind."""

    share: float = setting(0.5, hooks=("effect",))
    late: int = setting(1, hooks=("decide",))
    depth: int = setting(1, hooks=("teacher",))
    mild: int = setting(1, hooks=("repair",))

    @property
    def access(self):
        return frozenset({"victim"})

    def effect(self, view):
        return round(self.share)

    def repair(self, view):
        return view.victim
'''
TRAINING = '''
class Training(Defense):
    """Trains the victim."""

    strength: float = 1.0

    @property
    def access(self):
        return frozenset({"corpus"})

    def train(self, view):
        return view.trained
'''


@pytest.fixture
def own_entry(own_method: Callable[..., MethodSpec]) -> Callable[..., dict[str, Any]]:
    """An entry of a sweep file for a method of the user's own."""

    def entry(family: Any, text: str, **settings: Any) -> dict[str, Any]:
        return {"name": own_method(family, text).source} | settings

    return entry


def test_the_counts_of_a_known_sweep(planned: Planned) -> None:
    plan = planned(seeds=2)
    assert plan.cells == 3
    # A seed has the twin alone, and for each attack: none, 2 placebos, 2 mixing ratios.
    assert len(plan.trials) == 2 * (1 + 2 * 5)
    assert len(plan.victims) == 2 * 3
    assert kinds(plan) == {"prepare": 1, "victim": 6, "reference": 4, "trial": 2 * (1 + 2 * 4)}
    assert len(plan.pending) == len(plan.trials)
    assert not plan.done | plan.failed
    assert not plan.skipped


def test_the_clean_twin_and_the_undefended_victim_are_planned_unasked(planned: Planned) -> None:
    plan = planned(attacks=["badnets"], defenses=["fine_tune"])
    assert names(plan) == {("none", "none"): 1, ("badnets", "none"): 1, ("badnets", "fine_tune"): 1}


def test_a_listed_twin_is_a_cell_like_any_other(planned: Planned) -> None:
    plan = planned(attacks=["none", "badnets"], defenses=["none", "fine_tune"])
    assert names(plan) == {
        (attack, defense): 1 for attack in ("none", "badnets") for defense in ("none", "fine_tune")
    }


def test_trials_that_need_nothing_new_share_their_victim(planned: Planned) -> None:
    """Every defense of a cell works on the one victim, and poison rate 0 is the clean twin."""
    rates = [0.0, 0.1]
    plan = planned(attacks=[{"name": "badnets", "poison_rate": rates}], defenses=["fine_tune"])
    assert len(plan.victims) == 2
    assert kinds(plan)["victim"] == 2
    keys = {
        (spec.attack.name, spec.attack.settings.get("poison_rate")): Pipeline(spec).victim_key
        for spec in plan.trials.values()
    }
    assert keys["badnets", 0.0] == keys["none", None]
    assert keys["badnets", 0.1] != keys["none", None]


def test_post_hoc_settings_ride_along(planned: Planned) -> None:
    plan = planned(attacks=["badnets"], defenses=[{"name": "placebo", "rate": [0.1, 0.2, 0.3]}])
    riding = [job for job in plan.jobs.values() if len(job.specs) > 1]
    assert [len(job.specs) for job in riding] == [3]
    assert riding[0].attempts == (1, 1, 1)
    assert len({spec.key for spec in riding[0].specs}) == 3


def test_every_job_needs_what_it_reads(planned: Planned) -> None:
    plan = planned()
    prepare = {key for key, job in plan.jobs.items() if job.kind == "prepare"}
    victims = {key for key, job in plan.jobs.items() if job.kind == "victim"}
    for job in plan.jobs.values():
        assert job.needs <= set(plan.jobs)
        if job.kind == "victim":
            assert job.needs == prepare
        elif job.kind == "reference":
            assert len(job.needs & victims) == 1
        elif job.kind == "trial":
            attacked = job.specs[0].attack.name != "none"
            assert len(job.needs & victims) == (2 if attacked else 1), "its own, and the twin"
            kinds_needed = [plan.jobs[need].kind for need in job.needs]
            assert kinds_needed.count("reference") == (1 if attacked else 0)


def needed(plan: Plan, spec: Any, kind: str) -> list[Any]:
    """The jobs of a kind that the trial of `spec` needs, needs of needs included."""
    waiting = [job for job in plan.jobs.values() if job.kind == "trial" and spec in job.specs]
    found: dict[str, Any] = {}
    while waiting:
        for need in waiting.pop().needs:
            if need not in found:
                found[need] = plan.jobs[need]
                waiting.append(plan.jobs[need])
    return [job for job in found.values() if job.kind == kind]


def test_an_altered_plm_is_one_job_that_its_victims_wait_for(
    planned: Planned, own_entry: Any, places: tuple[ArtifactStore, Ledger]
) -> None:
    attack = own_entry("attack", CORRUPTING, strength=[0.5, 1.0])
    plan = planned(attacks=[attack, "badnets"], defenses=["fine_tune", "placebo"], seeds=2)
    prepare = {job.key: job for job in plan.jobs.values() if job.kind == "prepare"}
    altering = [job for job in prepare.values() if "altered by corrupting" in job.label]
    (plain,) = (job for job in prepare.values() if job not in altering)
    assert len(altering) == 4, "for each setting and seed, and not for each defense"
    assert all(job.needs == {plain.key} for job in altering)
    assert plain.needs == set()
    for job in plan.jobs.values():
        wanted = {plain.key}
        if job.kind == "victim":
            spec = job.specs[0]
            if spec.attack.name == "corrupting":
                (own,) = (a for a in altering if Pipeline(a.specs[0]).supplied_key
                          == Pipeline(spec).supplied_key)  # fmt: skip
                wanted.add(own.key)
            assert job.needs == wanted, spec.attack.name
    store, _ = places
    publish(store, Pipeline(altering[0].specs[0]).supplied_key)
    again = planned(attacks=[attack, "badnets"], defenses=["fine_tune", "placebo"], seeds=2)
    assert kinds(again)["prepare"] == kinds(plan)["prepare"] - 1
    assert all(job.needs <= set(again.jobs) for job in again.jobs.values())


def test_what_is_gathered_for_a_task_is_one_job_for_all_seeds_and_rates(
    planned: Planned, own_entry: Any, places: tuple[ArtifactStore, Ledger]
) -> None:
    attack = own_entry("attack", GATHERING, depth=[1, 2], poison_rate=[0.0, 0.1, 0.2])
    sections: dict[str, Any] = {"attacks": [attack], "defenses": ["fine_tune"], "seeds": 2}
    plan = planned(**sections)
    prepare = {job.key: job for job in plan.jobs.values() if job.kind == "prepare"}
    gathering = {job.key for job in prepare.values() if "gathering for" in job.label}
    (plain,) = prepare.keys() - gathering
    assert len(gathering) == 2, "for each of the settings that it reads"
    for job in plan.jobs.values():
        spec = job.specs[0]
        if job.key in gathering:
            assert job.needs == {plain}
        elif job.kind == "victim" and spec.attack.settings.get("poison_rate"):
            assert len(job.needs & gathering) == 1
        elif job.kind == "victim":
            assert not job.needs & gathering, "the clean twin has no use for it"
        elif job.kind == "reference":
            assert len(job.needs & gathering) == 1
    store, _ = places
    for key in gathering:
        publish(store, Pipeline(prepare[key].specs[0]).gathered_key)
    again = planned(**sections)
    assert kinds(again)["prepare"] == 1
    assert kinds(again)["victim"] == kinds(plan)["victim"]


def test_a_trainer_waits_for_the_clean_twin(planned: Planned, own_entry: Any) -> None:
    attack = own_entry("attack", STARTING)
    plan = planned(attacks=[attack, "badnets"], defenses=["fine_tune"], seeds=2)
    victims = {job.key: job for job in plan.jobs.values() if job.kind == "victim"}
    by_attack: dict[tuple[str, int], Any] = {
        (job.specs[0].attack.name, job.specs[0].seed): job for job in victims.values()
    }
    assert len(by_attack) == len(victims) == 6
    for (name, seed), job in by_attack.items():
        twin = {by_attack["none", seed].key} if name == "starting" else set()
        assert job.needs & set(victims) == twin, "of its own seed"


def test_an_attacker_who_alters_and_trains_waits_for_both(planned: Planned, own_entry: Any) -> None:
    plan = planned(attacks=[own_entry("attack", BOTH)], defenses=["none"])
    (spec,) = (s for s in plan.trials.values() if s.attack.name == "both")
    (victim,) = (j for j in plan.jobs.values() if j.kind == "victim" and spec.attack in
                 [s.attack for s in j.specs])  # fmt: skip
    labels = sorted(plan.jobs[need].label for need in victim.needs)
    assert [label.split(" by ")[0] for label in labels] == [
        "tiny altered", "tiny for toy_reviews", "victim of none, seed 0",
    ]  # fmt: skip
    assert {job.kind for job in needed(plan, spec, "prepare")} == {"prepare"}
    assert len(needed(plan, spec, "prepare")) == 2
    assert len(needed(plan, spec, "victim")) == 2


def test_settings_of_effect_and_of_deciding_ride_along(planned: Planned, own_entry: Any) -> None:
    """One job for all that can share what is fitted; any other setting is a job of its own."""
    own = own_entry("defense", CHOOSING, share=[0.1, 0.2, 0.9], late=[1, 2])
    plan = planned(attacks=["badnets"], defenses=[own])
    (job,) = (j for j in plan.jobs.values() if j.kind == "trial" and j.specs[0].defenses
              and j.specs[0].defenses[0].name == "choosing")  # fmt: skip
    assert len(job.specs) == len({spec.key for spec in job.specs}) == 6
    for other in ("depth", "mild"):
        more = planned(attacks=["badnets"], defenses=[own | {other: [1, 2]}])
        sizes = [
            len(j.specs) for j in more.jobs.values()
            if j.kind == "trial" and j.specs[0].defenses[0].name == "choosing"
        ]  # fmt: skip
        assert sizes == [6, 6], other


def test_two_who_would_train_are_no_pair(planned: Planned, own_entry: Any) -> None:
    plan = planned(
        attacks=[own_entry("attack", STARTING), "badnets"],
        defenses=[own_entry("defense", TRAINING, strength=[1.0, 2.0])],
    )
    assert list(plan.skipped.values()) == ["both starting and training would train the victim"] * 2
    assert names(plan, plan.pending)["badnets", "training"] == 2
    trained = [job for job in plan.jobs.values() if job.kind == "victim"]
    assert len(trained) == 3, "a defender who trains makes no victim of the pipeline's"


def test_what_acts_before_training_is_void_where_the_attacker_trains(planned: Planned) -> None:
    plan = planned(attacks=["badnets", "embedding_poison"], defenses=["none", "recipe"])
    (reason,) = plan.skipped.values()
    assert reason.startswith("recipe acts before the user trains")
    assert "embedding_poison" in reason
    assert names(plan, plan.pending)["badnets", "recipe"] == 1


def test_what_the_store_holds_is_subtracted(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    store, _ = places
    before = planned()
    spec = next(s for s in before.trials.values() if s.attack.name == "badnets")
    pipeline = Pipeline(spec).undefended
    publish(store, pipeline.victim_key)
    half = planned()
    assert kinds(half)["victim"] == 3, "the victim is there, its observations are not"
    assert half.cached_victims == {pipeline.victim_key}
    publish(
        store,
        pipeline.clean_observed_key,
        pipeline.triggered_observed_key(pipeline.triggers_key),
        pipeline.plm_key,
        pipeline.tokens_key,
    )
    after = planned()
    assert kinds(after) == {"victim": 2, "reference": 2, "trial": 9}
    assert len(after.pending) == len(before.pending), "a row is still owed for every trial"
    assert all(job.needs <= set(after.jobs) for job in after.jobs.values())


def test_the_store_is_asked_once_for_each_artifact(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An object store takes some 20 ms to answer, and all trials of a cell need the same artifacts."""
    asked: Counter[str] = Counter()
    real = ArtifactStore.has

    def has(store: ArtifactStore, key: str) -> bool:
        asked[key] += 1
        return real(store, key)

    monkeypatch.setattr(ArtifactStore, "has", has)
    plan = planned()
    assert asked[next(iter(plan.victims))] == 1
    assert set(asked.values()) == {1}


def test_what_the_ledger_holds_is_subtracted(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    _, ledger = places
    finish(planned(), ledger)
    again = planned()
    assert again.jobs == {}
    assert len(again.done) == len(again.trials) == 11
    assert again.pending == {}


def test_a_longer_sweep_runs_only_what_is_new(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    _, ledger = places
    first = planned()
    finish(first, ledger)
    longer = planned(seeds=2, defenses=["none", {"name": "placebo", "rate": [0.1, 0.4, 0.5]}])
    assert first.trials.keys() - longer.trials.keys(), "fine_mixing left the file; its rows stay"
    assert set(longer.pending) == set(longer.trials) - set(first.trials)
    assert {spec.seed for spec in longer.pending.values()} == {0, 1}
    assert names(longer, longer.pending)["badnets", "placebo"] == 3 + 1


def test_failed_trials_stay_failed_until_they_are_rerun(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    _, ledger = places
    finish(planned(), ledger, status="failed", error_class="nan", error="the loss became NaN")
    again = planned()
    assert (len(again.failed), len(again.jobs)) == (11, 0)
    assert len(planned(rerun="oom").failed) == 11
    rerun = planned(rerun="nan")
    assert len(rerun.pending) == 11
    assert {job.attempts[0] for job in rerun.jobs.values() if job.kind == "trial"} == {2}
    finish(rerun, ledger)
    assert len(planned(rerun="all").done) == 11
    assert set(ledger.table()["attempt"].to_pylist()) == {2}


def test_an_impossible_pair_is_skipped_with_its_reason(
    planned: Planned, places: tuple[ArtifactStore, Ledger], victim_folder: Path
) -> None:
    """A checkpoint leaves no corpus to count words in; counting them in the clean rows is possible."""
    _, ledger = places
    source = ["training", "clean"]
    plan = planned(
        attacks=[{"name": "checkpoint", "path": str(victim_folder), "trigger": "cf"}],
        defenses=[{"name": "epur", "frequency_source": source}],
    )
    assert list(plan.skipped.values()) == [
        "epur needs corpus, which attack checkpoint does not leave"
    ]
    assert not set(plan.skipped) & set(plan.pending)
    assert names(plan, plan.pending)["checkpoint", "epur"] == 1
    text = estimated(plan, ledger).as_text()
    assert "1 impossible" in text
    assert "note: impossible: epur needs corpus" in text
    record_skipped(plan, ledger)
    record_skipped(plan, ledger)
    rows = ledger.table().to_pylist()
    assert [(row["status"], row["error"]) for row in rows] == [("skipped", rows[0]["error"])]
    assert "does not leave" in rows[0]["error"]


def test_two_defenses_that_both_screen_clash(planned: Planned) -> None:
    plan = planned(defenses=[{"chain": ["placebo", {"name": "placebo", "rate": 0.2}]}])
    assert set(plan.skipped.values()) == {
        "placebo and placebo both override `screen`, which only one method can"
    }


def test_a_chain_is_one_trial(planned: Planned) -> None:
    plan = planned(attacks=["badnets"], defenses=[{"chain": ["fine_tune", "placebo"]}])
    assert names(plan)["badnets", "fine_tune+placebo"] == 1


def test_a_target_that_is_no_label_is_an_error(planned: Planned) -> None:
    with pytest.raises(ConfigError, match=r"target_label 2 is no label of the task.*negative"):
        planned(attacks=[{"name": "badnets", "target_label": 2}])


def test_equal_trials_stand_once(planned: Planned) -> None:
    both = [{"name": "badnets", "poison_rate": [0.1, 0.2]}, {"name": "badnets", "poison_rate": 0.1}]
    assert planned(attacks=both, defenses=["none"]).cells == 3


@pytest.mark.parametrize(
    ("flags", "gpu", "plm", "precision"),
    [
        ({"avx2", "avx512_bf16"}, 0, "hub", "bf16"),
        ({"amx_bf16"}, 0, "hub", "bf16"),
        ({"avx2"}, 0, "hub", "float32"),
        ({"avx2"}, 0.5, "hub", "bf16"),
        ({"avx512_bf16"}, 1, "tiny", "float32"),
    ],
)
def test_automatic_precision(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], gpu: float, plm: str, precision: str
) -> None:
    monkeypatch.setattr(planning, "cpu_flags", lambda: frozenset(flags))
    settings = {"hub": {"id": "some/model"}, "tiny": {}}[plm]
    source = catalog.make("plm", plm, settings)
    assert isinstance(source, PLMSource)
    assert automatic_precision(gpu, source) == precision


def test_the_planned_precision_is_in_every_spec(planned: Planned) -> None:
    settings = {"epochs": 1, "precision": "bf16"}
    specs = planned(training=settings).trials.values()
    assert {spec.training.precision for spec in specs} == {"bf16"}
    specs = planned(training={"epochs": 1}).trials.values()
    assert {spec.training.precision for spec in specs} == {"float32"}, "tiny gains nothing by bf16"


def test_an_estimate_becomes_one_from_measured_trials(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    _, ledger = places
    guess = estimated(planned(), ledger)
    assert guess.basis == "a rough guess"
    assert guess.job_seconds > 0
    assert guess.disk_gib > 0
    finish(planned(), ledger)
    done = estimated(planned(), ledger)
    assert (done.jobs, done.done, done.job_seconds) == (0, 11, 0)
    more = planned(seeds=2)
    measured = estimated(more, ledger)
    assert measured.basis == "from trials in this ledger"
    count = kinds(more)
    assert measured.job_seconds >= 2.0 * count["victim"] + 1.5 * count["trial"]
    assert measured.as_dict()["sweep"] == "tiny-sweep"


def test_the_default_store_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BACKDOOR_SWEEPS_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/someone")
    assert Path(default_store()) == Path("/home/someone/.cache/backdoor-sweeps")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert Path(default_store()) == Path("/cache/backdoor-sweeps")
    monkeypatch.setenv("BACKDOOR_SWEEPS_STORE", "/elsewhere")
    assert default_store() == "/elsewhere"


def test_a_skipped_row_is_not_a_done_one(
    planned: Planned, places: tuple[ArtifactStore, Ledger]
) -> None:
    """A trial that was impossible when it was written down and is possible now is run."""
    _, ledger = places
    plan = planned()
    key, spec = next(iter(plan.trials.items()))
    ledger.append([skipped(spec, "because", attempt=1, sweep="s")], {})
    assert key in planned().pending
    assert planned().attempts[key] == 2


def test_a_store_that_is_far_away_is_asked_many_things_at_once_and_each_once(
    tiny_sweep: Callable[..., Path],
    tmp_path: Path,
    new_bucket: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The plan is that of a local store, whatever of it is there already."""
    sweep = load_sweep(tiny_sweep(tmp_path, seeds=2))
    here, there = ArtifactStore(tmp_path / "store"), ArtifactStore(new_bucket())
    first = plan_sweep(sweep, here, Ledger(tmp_path / "out"))
    held = sorted(first.victims)[0]

    def write(folder: Path) -> None:
        (folder / "a.json").write_text("{}", encoding="utf-8")

    for store in (here, there):
        store.put(held, write)
    asked: list[tuple[str, str]] = []
    has = ArtifactStore.has

    def noted(self: ArtifactStore, key: str) -> bool:
        if self is there:
            asked.append((threading.current_thread().name, key))
        return has(self, key)

    monkeypatch.setattr(ArtifactStore, "has", noted)
    near = plan_sweep(sweep, here, Ledger(tmp_path / "out"))
    far = plan_sweep(sweep, there, Ledger(tmp_path / "out"))
    assert far.jobs == near.jobs
    assert far.cached_victims == near.cached_victims == {held}
    mine = threading.current_thread().name
    by_others = [key for thread, key in asked if thread != mine]
    assert len(by_others) == len(set(by_others)) >= len(near.in_store)
    # What this thread still asks for is what a plan itself puts there: the data of tasks.
    assert not {key for thread, key in asked if thread == mine} & set(near.in_store)

"""What a view keeps for a defense: steps that run once, effects that trials share, the victim that it could train."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.defense import Defense, View
from backdoor_core.errors import AccessError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore

Trial = Callable[..., TrialSpec]
Own = Callable[..., MethodSpec]
BADNETS = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}

STEPPING = '''
class Stepping(Defense):
    """Two steps, which note that they ran; the repair itself is the identity."""

    runs: ClassVar[list] = []
    places: ClassVar[dict] = {}
    case: str = setting("", description="keeps the tests apart")
    depth: int = setting(1, hooks=("teacher",))
    width: int = setting(1, hooks=("student",))
    both: int = setting(1, hooks=("teacher", "student"))
    mild: int = setting(1, hooks=("repair",))
    late: int = setting(1, hooks=("decide",))

    @property
    def access(self):
        return frozenset({"victim", "corpus"})

    def repair(self, view):
        def teacher(folder):
            self.runs.append("teacher")
            (folder / "depth.json").write_text(json.dumps(self.depth))

        def student(folder):
            self.runs.append("student")
            (folder / "width.json").write_text(json.dumps([self.width, self.both]))

        self.places["teacher"] = view.step("teacher", teacher)
        self.places["student"] = view.step("student", student)
        self.places["read"] = json.loads((self.places["student"] / "width.json").read_text())
        return view.victim
'''

EFFECTIVE = '''
class Effective(Defense):
    """Takes the words that stand in at least a share of the rows, and notes each fit."""

    fits: ClassVar[list] = []
    case: str = setting("", description="keeps the tests apart")
    share: float = setting(0.5, hooks=("effect",))
    late: int = setting(1, hooks=("decide",))
    mild: int = setting(1, hooks=("repair",))

    @property
    def access(self):
        return frozenset({"victim", "corpus"})

    def effect(self, view):
        rows = [set(text.split()) for text in view.corpus.texts]
        words = sorted(set().union(*rows))
        return [w for w in words if sum(w in row for row in rows) >= self.share * len(rows)]

    def repair(self, view):
        self.fits.append(self.effect(view))
        return view.victim
'''

OWN_TRAINING = '''
class OwnTraining(Defense):
    """Starts from what ordinary training leaves, where it may."""

    granted: str = "corpus"

    @property
    def access(self):
        return frozenset({self.granted})

    def train(self, view):
        return view.trained
'''

REPAIRING = '''
class Repairing(Defense):
    """Asks for what ordinary training leaves without training."""

    @property
    def access(self):
        return frozenset({"corpus", "victim"})

    def repair(self, view):
        return view.trained
'''


def fitted(workshop: Workshop, spec: TrialSpec) -> tuple[list[str], dict[str, Any]]:
    """Which steps ran when the defense of `spec` was fitted in a new job, and what it noted."""
    kind: Any = type(Pipeline(spec).defenses[-1])
    kind.runs.clear()
    Workshop(workshop.store).observations(Pipeline(spec))
    return list(kind.runs), dict(kind.places)


@pytest.fixture
def stepping(
    own_method: Own, small_trial: Trial, request: pytest.FixtureRequest
) -> Callable[..., TrialSpec]:
    """A trial of the defense with two steps, its own in every test."""

    def made(*before: Any, trial: dict[str, Any] | None = None, **settings: Any) -> TrialSpec:
        own = own_method("defense", STEPPING, case=request.node.name, **settings)
        return small_trial(BADNETS, [*before, own], **(trial or {}))

    return made


def test_the_steps_of_a_trial_run_once_in_a_job_and_in_every_later_one(
    workshop: Workshop, stepping: Callable[..., TrialSpec]
) -> None:
    ran, noted = fitted(workshop, stepping(mild=1))
    assert ran == ["teacher", "student"]
    assert noted["read"] == [1, 1]
    assert noted["teacher"] != noted["student"]
    assert fitted(workshop, stepping(mild=1)) == ([], noted), (
        "what was observed is not fitted again"
    )
    for other in (2, 3):
        ran, again = fitted(workshop, stepping(mild=other))
        assert ran == []
        assert again == noted
    ran, _ = fitted(workshop, stepping(late=9))
    assert ran == []
    kept = Path(workshop.store.folder.root)
    assert all(kept in noted[name].parents for name in ("teacher", "student"))


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ({"depth": 2}, ["teacher"]),
        ({"width": 2}, ["student"]),
        ({"both": 2}, ["teacher", "student"]),
    ],
)
def test_a_step_runs_again_for_another_setting_that_it_reads(
    workshop: Workshop,
    stepping: Callable[..., TrialSpec],
    change: dict[str, int],
    steps: list[str],
) -> None:
    fitted(workshop, stepping())
    ran, noted = fitted(workshop, stepping(**change))
    assert ran == steps
    assert noted["read"] == [change.get("width", 1), change.get("both", 1)]


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"training": {"learning_rate": 2e-3}},
        {"training": {"max_tokens": 32}},
        {"attack": {"name": "badnets", "poison_rate": 0.1, "words": ["cf"]}},
        {"attack": {"name": "badnets", "poison_rate": 0.2, "words": ["mn"]}},
        {"attack": "none"},
        {"defense": "case"},
    ],
    ids=["seed", "learning rate", "max tokens", "rate", "words", "no attack", "unnamed setting"],
)
def test_steps_run_again_for_anything_else_that_the_view_grants(
    workshop: Workshop,
    stepping: Callable[..., TrialSpec],
    small_trial: Trial,
    own_method: Own,
    change: dict[str, Any],
) -> None:
    first = stepping()
    fitted(workshop, first)
    change = dict(change)
    own = first.defenses[0]
    if change.pop("defense", None):
        own = own_method("defense", STEPPING, case="another")
    ran, _ = fitted(workshop, small_trial(change.pop("attack", BADNETS), [own], **change))
    assert ran == ["teacher", "student"]


def test_steps_run_again_after_another_repair(
    workshop: Workshop, stepping: Callable[..., TrialSpec]
) -> None:
    """The victim that a later step of a chain sees is the repaired one."""
    ran = [
        fitted(workshop, stepping(*before))[0]
        for before in (
            [],
            [{"name": "epur", "words": 5}],
            [{"name": "epur", "words": 6}],
            ["fine_tune"],
        )
    ]
    assert ran == [["teacher", "student"]] * 4
    again, _ = fitted(workshop, stepping({"name": "epur", "words": 6}, mild=2))
    assert again == []


def test_steps_do_not_run_again_for_what_is_decided_before_them(
    workshop: Workshop, stepping: Callable[..., TrialSpec]
) -> None:
    fitted(workshop, stepping({"name": "placebo", "rate": 0.1}))
    ran, _ = fitted(workshop, stepping({"name": "placebo", "rate": 0.2}, mild=2))
    assert ran == []


FILTERING = '''
class Filtering(Defense):
    """Drops the rows that hold a word: another victim."""

    word: str = "cf"

    @property
    def access(self):
        return frozenset({"corpus"})

    def filter(self, view):
        kept = [i for i, text in enumerate(view.corpus.texts) if self.word not in text.split()]
        return view.corpus.take(kept)
'''


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
def test_steps_run_again_for_another_victim_of_the_same_chain(
    workshop: Workshop,
    stepping: Callable[..., TrialSpec],
    own_method: Own,
    small_trial: Trial,
    before: bool,
) -> None:
    """A filter makes another victim wherever it stands in the chain."""
    alone = stepping()
    fitted(workshop, alone)
    for word in ("cf", "film"):
        both = [own_method("defense", FILTERING, word=word), alone.defenses[0]]
        spec = small_trial(BADNETS, both if before else both[::-1])
        kind: Any = type(catalog.from_spec(alone.defenses[0]))
        kind.runs.clear()
        Workshop(workshop.store).observations(Pipeline(spec))
        assert kind.runs == ["teacher", "student"], word


TRAINED_STEP = '''
class TrainedStep(Defense):
    """A step that reads what ordinary training leaves."""

    runs: ClassVar[list] = []

    @property
    def access(self):
        return frozenset({"corpus"})

    def train(self, view):
        def write(folder):
            self.runs.append(len(view.trained.tokenizer))
            (folder / "a.json").write_text("1")

        view.step("scores", write)
        return view.trained
'''


def test_steps_run_again_for_another_victim_of_ordinary_training(
    workshop: Workshop, own_method: Own, small_trial: Trial, small_plm: MethodSpec
) -> None:
    """`trained` is of a PLM, also where the access names none."""
    other = catalog.make("plm", "tiny", small_plm.settings | {"seed": 1}).spec()
    own = own_method("defense", TRAINED_STEP)
    runs = cast(Any, type(catalog.from_spec(own))).runs
    for plm in (small_plm, other):
        runs.clear()
        Workshop(workshop.store).observations(Pipeline(small_trial(BADNETS, [own], plm=plm)))
        assert len(runs) == 1


def test_a_damaged_step_is_set_aside_and_runs_again(
    workshop: Workshop, stepping: Callable[..., TrialSpec]
) -> None:
    _, noted = fitted(workshop, stepping())
    file = noted["student"] / "width.json"
    file.write_text("[9, 9]")
    spec = stepping(mild=2)
    kind: Any = type(Pipeline(spec).defenses[0])
    kind.runs.clear()
    again = Workshop(workshop.store)
    again.observations(Pipeline(spec))
    assert kind.runs == ["student"]
    assert kind.places["read"] == [1, 1]
    assert len(again.notices) == 1
    assert "set aside" in again.notices[0]
    assert again.notices[0].endswith("rebuilt")


def test_a_step_that_fails_leaves_nothing(
    workshop: Workshop, stepping: Callable[..., TrialSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = json.dumps

    def failing(value: Any, *args: Any, **kwargs: Any) -> str:
        if value == [1, 1]:
            raise ValueError("no student")
        return original(value, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(json, "dumps", failing)
        with pytest.raises(ValueError, match="no student"):
            fitted(workshop, stepping())
    ran, noted = fitted(workshop, stepping())
    assert ran == ["student"], "the teacher is kept"
    assert noted["read"] == [1, 1]


def view(**given: Any) -> View:
    return View({}, labels=2, training=TrainingSettings(), seed=0, **given)


def test_a_view_without_a_store_keeps_steps_in_a_folder_of_its_own() -> None:
    written: list[Path] = []

    def write(folder: Path) -> None:
        written.append(folder)
        (folder / "a.json").write_text("1")

    one, other = view(), view()
    places = [one.step("teacher", write), one.step("student", write), other.step("teacher", write)]
    assert places == written
    assert len(set(places)) == 3
    assert all((place / "a.json").read_text() == "1" for place in places)
    del one
    gc.collect()
    assert [place.exists() for place in places] == [False, False, True], "gone with the view"


def effective(own_method: Own, small_trial: Trial, case: str, **settings: Any) -> Pipeline:
    return Pipeline(small_trial(BADNETS, [own_method("defense", EFFECTIVE, case=case, **settings)]))


def test_trials_of_one_effect_share_one_observation_and_others_do_not(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    shares = (0.02, 0.0201, 1.5, 2.0)
    made = [effective(own_method, small_trial, "sharing", share=share) for share in shares]
    kind: Any = type(made[0].defenses[0])
    assert kind.effect_settings() == {"share"}
    assert all(p.effective for p in made)
    assert len({p.observed_key for p in made}) == 1, "planned as one job"
    assert len({p.spec.key for p in made}) == 4
    keys = [workshop.observed_key(p) for p in made]
    assert (keys[0] == keys[1], keys[1] == keys[2], keys[2] == keys[3]) == (True, False, True)
    kind.fits.clear()
    records = []
    for pipeline in made:
        trial.reference(workshop, pipeline.spec)
        records.append(
            trial.evaluate(workshop, pipeline.spec, attempt=1, sweep="s", log=None).record
        )
    assert len(kind.fits) == 2, "one fit an effect"
    assert {".", "the"} <= set(kind.fits[0])
    assert kind.fits[1] == []
    assert [record.observations for record in records] == keys
    assert len({record.key for record in records}) == 4


def test_an_observation_of_one_effect_is_another_for_any_other_setting(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    first = effective(own_method, small_trial, "others", share=1.5)
    changed = effective(own_method, small_trial, "others", share=2.0, mild=2)
    decided = effective(own_method, small_trial, "others", share=2.0, late=2)
    assert workshop.observed_key(first) != workshop.observed_key(changed)
    assert workshop.observed_key(first) == workshop.observed_key(decided)
    cleaner = Pipeline(first.spec.model_copy(update={"attack": small_trial("none").attack}))
    assert workshop.observed_key(cleaner) != workshop.observed_key(first)


def test_an_effect_is_known_before_there_is_a_victim(
    workshop: Workshop, own_method: Own, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = effective(own_method, small_trial, "hasty")
    monkeypatch.setattr(type(pipeline.defenses[0]), "effect", lambda self, view: view.victim)
    with pytest.raises(AccessError, match="victim"):
        workshop.observed_key(pipeline)


def test_without_effect_settings_the_key_is_the_planned_one(
    workshop: Workshop, small_trial: Trial
) -> None:
    pipeline = Pipeline(small_trial(BADNETS, [{"name": "epur", "words": 4}]))
    assert not pipeline.effective
    assert workshop.observed_key(pipeline) == pipeline.observed_key


def test_in_a_chain_each_effect_counts(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    def chained(share: float) -> Pipeline:
        own = own_method("defense", EFFECTIVE, case="chain", share=share)
        return Pipeline(small_trial(BADNETS, [own, {"name": "placebo", "rate": 0.2}]))

    keys = [workshop.observed_key(chained(share)) for share in (0.02, 1.5, 2.0)]
    assert keys[0] != keys[1] == keys[2]


EFFECTIVE_FILTER = '''
class EffectiveFilter(Defense):
    """Drops the longer rows: how many comes from its effect."""

    share: float = setting(0.5, hooks=("effect",))

    @property
    def access(self):
        return frozenset({"corpus"})

    def effect(self, view):
        return int(self.share * len(view.corpus))

    def filter(self, view):
        return view.corpus.take(range(self.effect(view)))
'''


def test_an_effect_before_training_makes_another_victim(
    own_method: Own, small_trial: Trial
) -> None:
    made = [
        Pipeline(small_trial(BADNETS, [own_method("defense", EFFECTIVE_FILTER, share=share)]))
        for share in (0.3, 0.6)
    ]
    assert made[0].victim_key != made[1].victim_key


def test_a_defender_who_trains_is_given_what_ordinary_training_leaves(
    workshop: Workshop, own_method: Own, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = Pipeline(small_trial(BADNETS, [own_method("defense", OWN_TRAINING)]))
    victim = workshop.victim(pipeline)

    def training(*_: Any, **__: Any) -> int:
        raise AssertionError("trained again")

    monkeypatch.setattr("backdoor_core.training.train", training)
    given, _ = Workshop(workshop.store).repaired(pipeline)
    rows = workshop.task_data(pipeline).splits["test"]
    assert np.array_equal(given.logits(rows), victim.logits(rows))
    observed = workshop.observations(pipeline)
    undefended = workshop.observations(pipeline.undefended)
    assert observed.clean["test"]["logits"].equals(undefended.clean["test"]["logits"])


@pytest.mark.parametrize(
    ("text", "settings"), [(OWN_TRAINING, {"granted": "supplied_plm"}), (REPAIRING, {})],
    ids=["without the corpus", "without training"],
)  # fmt: skip
def test_nobody_else_is_given_it(
    workshop: Workshop, own_method: Own, small_trial: Trial, text: str, settings: dict[str, Any]
) -> None:
    pipeline = Pipeline(small_trial(BADNETS, [own_method("defense", text, **settings)]))
    with pytest.raises(AccessError, match=r"overrides `train` and may see 'corpus'"):
        workshop.repaired(pipeline)


def test_a_view_made_by_hand_has_no_trained_victim_unless_given() -> None:
    with pytest.raises(AccessError, match="ordinary training"):
        _ = view().trained
    thing: Any = object()
    assert view(trained=thing).trained is thing


def test_settings_are_sorted_by_who_reads_them(own_method: Own) -> None:
    stepping = cast(Defense, catalog.from_spec(own_method("defense", STEPPING)))
    assert type(stepping).post_hoc_settings() == {"late"}
    assert type(stepping).effect_settings() == set()
    effective = cast(Defense, catalog.from_spec(own_method("defense", EFFECTIVE)))
    assert type(effective).post_hoc_settings() == {"late"}
    assert type(effective).effect_settings() == {"share"}


def test_a_store_of_another_machine_gives_the_same_step_keys(
    tmp_path: Path, workshop: Workshop, stepping: Callable[..., TrialSpec]
) -> None:
    """What is in the key is the work, not the place."""
    _, noted = fitted(workshop, stepping())
    other = Workshop(ArtifactStore(tmp_path / "store"))
    _, elsewhere = fitted(other, stepping())
    assert {noted[n].name for n in ("teacher", "student")} == {
        elsewhere[n].name for n in ("teacher", "student")
    }

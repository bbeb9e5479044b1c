"""What every defense keeps, over all that the catalog names: a new file is tested the moment it exists.

Each is fitted by the pipeline itself, against BadNets, on a task of single texts and on one of pairs with 4 classes,
there with three classes as the attack's target in turn. `CASES` has settings that make them quick, or that take other
ways through the code. Everything that a defense reads, of its view and of its settings, is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_core import catalog
from backdoor_core.attack import ACCESS
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import (
    DOWNSTREAM_HOOKS,
    STAGES,
    UPSTREAM_HOOKS,
    Decision,
    Defense,
    Guard,
    ModelGuard,
    View,
    clash,
)
from backdoor_core.errors import AccessError, SweepError, error_class
from backdoor_core.pipeline import Pipeline, Workshop, split_key
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec, canonical_json
from backdoor_core.store import ArtifactStore
from backdoor_core.trial import decider
from backdoor_core.victim import Victim

Trial = Callable[..., TrialSpec]
TASKS = ("small_task", "domain_task")
FOUR_CLASSES = "domain_task"
OTHER_TARGETS = (0, 2)
"""Targets on the task of 4 classes, beside 1."""
FIT = "fit"
LEARNT = {"epochs": 15, "learning_rate": 1e-2}
"""Training after which victims give several labels: where all answers are one, any order of them is right."""
QUICK: dict[str, list[dict[str, Any]]] = {
    "placebo": [{"rate": 0.3}],
    "fine_tune": [{"epochs": 1, "learning_rate": 1e-3, "clean_rows": 20}],
    "fine_mixing": [
        {"mixing_ratio": 0.3, "epochs": 1, "learning_rate": 1e-3},
        {"mixing_ratio": 0.3, "epochs": 0, "head": "reinitialise", "purify_embeddings": True},
    ],
    "epur": [{"words": 20}, {"words": 20, "frequency_source": "training"}],
    "recipe": [{"epochs": 1, "learning_rate": 1e-3}],
    "mbtsad": [
        {"teacher_epochs": 1, "epochs": 1, "learning_rate": 1e-3, "clean_rows": 20},
        {"teacher_epochs": 1, "teacher_learning_rate": 1e-3, "student": "teacher"},
    ],
    "x_graad": [
        {"percentile": 50},
        {"percentile": 50, "token_repair": "mask", "received": "sum", "clean_rows": 20},
    ],
    "btu": [
        {"threshold": 0.02, "exposure_learning_rate": 1e-3, "clean_rows": 20},
        {"threshold": 0.02, "exposure_learning_rate": 1e-3, "clean_epochs": 0},
    ],
}
CASES = [
    (name, settings) for name in catalog.names("defense") for settings in QUICK.get(name, [{}])
]
NEUTRAL: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "placebo": [{"rate": 0.0}],
    "fine_tune": [{"epochs": 0}],
    "fine_mixing": [{"mixing_ratio": 1.0, "epochs": 0}],
    "epur": [{"words": 0}],
    "recipe": [{"epochs": 0}],
    "mbtsad": [{"epochs": 0}],
    "btu": [{"threshold": 0.0, "clean_epochs": 0}],
    "x_graad": [{"percentile": None}],
}
"""Settings with which a defense does nothing, where it has such."""


class Reads:
    """Which settings of a defense were read, by the step that read them (`fit` outside of any)."""

    def __init__(self) -> None:
        self.found: dict[str, set[str]] = {}
        self.places = [FIT]

    @contextmanager
    def inside(self, step: str) -> Iterator[None]:
        self.places.append(step)
        self.found.setdefault(step, set())
        try:
            yield
        finally:
            self.places.pop()

    @contextmanager
    def of(self, kind: type[Defense]) -> Iterator[None]:
        """Records what is read of any defense of this kind."""

        def looked_up(one: Defense, name: str) -> Any:
            if name in kind.model_fields:
                self.found.setdefault(self.places[-1], set()).add(name)
            return super(kind, one).__getattribute__(name)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(kind, "__getattribute__", looked_up, raising=False)
            yield


class RecordingView(View):
    """A view that remembers what was asked for, which steps ran, and how all that it hands out was before.

    Its steps are written anew, unless `kept`.
    """

    def __init__(self, view: View, reads: Reads, *, kept: bool) -> None:
        super().__init__(
            view._granted,
            labels=view.labels,
            training=view.training,
            seed=view.seed,
            trained=view._trained,
            steps=view._steps if kept else None,
        )
        self.asked: set[str] = set()
        self.reads = reads
        self.before = self.state()

    def _asked(self, name: str) -> Any:
        self.asked.add(name)
        return super()._asked(name)

    @property
    def trained(self) -> Victim:
        self.asked.add("trained")
        return super().trained

    def step(
        self, name: str, write: Callable[[Path], None], *, reads: Iterable[str] | None = None
    ) -> Path:
        def recorded(folder: Path) -> None:
            with self.reads.inside(name):
                write(folder)

        return super().step(name, recorded, reads=reads)

    def state(self) -> dict[str, bytes]:
        """All that it hands out, as bytes."""
        found: dict[str, bytes] = {}
        for name, thing in (self._granted | {"trained": self._trained}).items():
            if isinstance(thing, Victim):
                for key, value in thing.model.state_dict().items():
                    found[f"{name}.{key}"] = value.cpu().numpy().tobytes()
                for key, parameter in thing.model.named_parameters():
                    found[f"{name}.{key}.grad"] = str(parameter.requires_grad).encode()
            elif isinstance(thing, Corpus):
                found[name] = thing.digest.encode()
            elif isinstance(thing, tuple):
                found[name] = "\n".join(thing).encode()
            elif hasattr(thing, "folder"):
                for file in sorted(Path(thing.folder).iterdir()):
                    found[f"{name}.{file.name}"] = file.read_bytes()
        return found


class RecordingWorkshop(Workshop):
    def __init__(self, store: ArtifactStore, *, kept: bool) -> None:
        super().__init__(store)
        self.views: list[RecordingView] = []
        self.reads = Reads()
        self.kept = kept

    def _view(self, *args: Any, **kwargs: Any) -> View:
        view = super()._view(*args, **kwargs)
        self.views.append(RecordingView(view, self.reads, kept=self.kept))
        return self.views[-1]

    def guard(self, pipeline: Pipeline) -> Guard:
        """Every hook of the defense is run now, also where the store has the victim that it made."""
        if pipeline.overriding(*UPSTREAM_HOOKS):
            victim = self._trained(pipeline)
            if not pipeline.is_guarded:
                return ModelGuard(victim=victim)
        return self.repaired(pipeline)[1]


@dataclass(frozen=True)
class Fitted:
    """A fitted defense with all that a test asks about."""

    pipeline: Pipeline
    defense: Defense
    guard: Guard
    views: tuple[RecordingView, ...]
    reads: dict[str, set[str]]
    """The settings that it read, by step."""
    rows: Corpus
    """Clean and triggered test rows, and some odd ones."""
    calibration: pa.Table | None

    def decide(self, table: pa.Table) -> Decision:
        """As the pipeline decides."""
        return self.defense.decide(table, self.calibration)


def odd_rows(pairs: bool) -> list[Row]:
    texts = ["", " ", "x", "the " * 300, "ünïcödé 漢字 🙂", "a\tb\nc", "[MASK] [PAD] ##"]
    return [Row(text=text, pair="other" if pairs else None) for text in texts]


@pytest.fixture(scope="module")
def fitted(
    request: pytest.FixtureRequest, workshop: Workshop, small_trial: Trial
) -> Callable[..., Fitted]:
    made: dict[str, Fitted] = {}

    def fit(
        name: str,
        settings: dict[str, Any],
        task_name: str,
        target: int = 1,
        fresh: bool = False,
    ) -> Fitted:
        task: MethodSpec = request.getfixturevalue(task_name)
        attack = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"], "target_label": target}
        spec = small_trial(attack, [{"name": name} | settings], task=task, training=LEARNT)
        if spec.key in made and not fresh:
            return made[spec.key]
        pipeline, recording = Pipeline(spec), RecordingWorkshop(workshop.store, kept=fresh)
        recording.victim(pipeline.undefended)
        defense, data = pipeline.defenses[0], recording.task_data(pipeline)
        rows = asked_rows(recording, pipeline)
        with recording.reads.of(type(defense)):
            guard = recording.guard(pipeline)
            guard.observe(rows.take([0]))
        clean = recording._clean_rows(pipeline, defense, data)
        made[spec.key] = Fitted(
            pipeline=pipeline,
            defense=defense,
            guard=guard,
            views=tuple(recording.views),
            reads=recording.reads.found,
            rows=rows,
            calibration=guard.observe(unlabelled(clean), "clean") if defense.calibrates else None,
        )
        return made[spec.key]

    return fit


def asked_rows(workshop: Workshop, pipeline: Pipeline) -> Corpus:
    clean = workshop.task_data(pipeline).splits["test"]
    _, triggered = workshop.triggers(pipeline)
    rows = [*clean.rows()[:20], *triggered["test"][0].rows()[:10], *odd_rows(clean.has_pairs)]
    return unlabelled(Corpus.of(rows))


def unlabelled(corpus: Corpus) -> Corpus:
    return Corpus.of(Row(text=row.text, pair=row.pair) for row in corpus.rows())


@pytest.fixture(params=CASES, ids=[f"{n}-{i}" for i, (n, _) in enumerate(CASES)])
def case(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return cast("tuple[str, dict[str, Any]]", request.param)


@pytest.fixture(params=TASKS)
def one(
    request: pytest.FixtureRequest, case: tuple[str, dict[str, Any]], fitted: Callable[..., Fitted]
) -> Fitted:
    return fitted(*case, request.param)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def _flat(values: list[Any]) -> np.ndarray:
    """Numbers and lists of numbers, one after the other; null is NaN."""
    parts = (value if isinstance(value, list) else [value] for value in values)
    return np.array([one for part in parts for one in part], float)


def agree(first: pa.Table, second: pa.Table, *, exactly: bool = False) -> None:
    """Two observations of the same texts: equal, but for float32 rounding in real numbers."""
    assert first.schema.equals(second.schema)
    assert first.num_rows == second.num_rows
    for name in first.column_names:
        a, b = first[name].to_pylist(), second[name].to_pylist()
        kind = first.schema.field(name).type
        if not exactly and (pa.types.is_floating(kind) or pa.types.is_list(kind)):
            assert [_length(one) for one in a] == [_length(one) for one in b]
            np.testing.assert_allclose(_flat(a), _flat(b), rtol=1e-4, atol=1e-5)
        else:
            assert a == b, name


def answers(decision: Decision) -> list[tuple[int, bool, bool]]:
    zeros = np.zeros(len(decision.labels), bool)
    refused = zeros if decision.refused is None else decision.refused
    altered = zeros if decision.altered is None else decision.altered
    return list(zip(decision.labels.tolist(), refused.tolist(), altered.tolist(), strict=True))


def test_there_are_defenses_to_test() -> None:
    assert {name for name, _ in CASES} == set(catalog.names("defense"))
    assert {"none", "placebo", "fine_tune", "fine_mixing", "epur"} <= set(catalog.names("defense"))


@pytest.mark.parametrize(
    ("task_name", "target"),
    [("small_task", 1), *((FOUR_CLASSES, target) for target in (1, *OTHER_TARGETS))],
)
def test_the_victims_answer_several_labels(
    task_name: str, target: int, fitted: Callable[..., Fitted]
) -> None:
    plain = fitted("none", {}, task_name, target=target)
    assert len(set(plain.decide(plain.guard.observe(plain.rows)).labels.tolist())) > 1


def test_it_says_what_it_is(case: tuple[str, dict[str, Any]]) -> None:
    name, settings = case
    defense = cast(Defense, catalog.make("defense", name, settings))
    assert defense.catalog_name() == name
    assert defense.access <= set(ACCESS)
    assert type(defense).summary().endswith(".")
    assert catalog.from_spec(defense.spec()) == defense
    assert defense.post_hoc_settings() <= set(type(defense).model_fields)
    assert set(defense.stage.split("+")) <= {*STAGES.values(), "none"}
    assert clash((defense,)) is None


def test_what_it_is_given_stays_as_it_was(one: Fitted) -> None:
    """Weights bit for bit, after fitting and after observing."""
    one.guard.observe(one.rows)
    for view in one.views:
        now = view.state()
        assert now.keys() == view.before.keys()
        assert [name for name in now if now[name] != view.before[name]] == []


def test_it_reads_only_what_it_declares(one: Fitted) -> None:
    kind = type(one.defense)
    trains = kind.overrides("train") and "corpus" in one.defense.access
    for view in one.views:
        assert one.defense.access - set(view._granted) <= {"victim"}, (
            "before training there is none"
        )
        assert set(view._granted) <= one.defense.access
        assert view.asked <= one.defense.access | ({"trained"} if trains else set())
        for name in set(ACCESS) - one.defense.access:
            with pytest.raises(AccessError):
                View._asked(view, name)
        assert (view._trained is not None) == trains
    if any(kind.overrides(hook) for hook in (*UPSTREAM_HOOKS, *DOWNSTREAM_HOOKS)):
        assert one.views, "the pipeline gave it a view"
        assert set().union(*(view.asked for view in one.views))


def test_no_victim_that_it_is_shown_knows_a_split_of_the_task(one: Fitted) -> None:
    """An encoder holds the rows, labels and all, of the splits whose encodings it knows."""
    for view in one.views:
        shown = [view._granted.get("victim"), view._trained]
        assert [victim for victim in shown if victim is not None and victim.encoder.known] == []


def test_it_does_not_go_past_its_view(case: tuple[str, dict[str, Any]]) -> None:
    import inspect

    source = inspect.getsource(catalog.method_class("defense", case[0]))
    hidden = [name for name in dir(view()) if name.startswith("_") and not name.startswith("__")]
    assert hidden
    assert [name for name in hidden if f"view.{name}" in source] == []


def test_a_step_reads_only_the_settings_in_its_key(one: Fitted) -> None:
    """What a step reads without saying so makes a stale artifact, the worst of all mistakes."""
    kind = type(one.defense)
    for step, names in one.reads.items():
        if step != FIT:
            assert names <= kind.fields_read_by(step), f"step {step!r}: name it among their hooks"


def test_a_fit_reads_no_setting_of_deciding(one: Fitted) -> None:
    """Trials that differ in them share its observation."""
    read: set[str] = set().union(*one.reads.values())
    assert not read & type(one.defense).post_hoc_settings()


SLY = '''
class Sly(Defense):
    """Does one thing that no defense may, and nothing else."""

    deed: str = ""
    named: int = setting(1, hooks=("teacher",))
    unnamed: int = setting(1, hooks=("repair",))
    late: int = setting(1, hooks=("decide",))

    @property
    def access(self):
        return frozenset({"victim"})

    def repair(self, view):
        def write(folder):
            read = self.named + (self.unnamed if self.deed == "step" else 0)
            (folder / "a.json").write_text(str(read))

        view.step("teacher", write)
        if self.deed == "decide":
            self.late
        if self.deed == "peek":
            try:
                view.corpus
            except PermissionError:
                pass
        if self.deed == "trained":
            try:
                view.trained
            except PermissionError:
                pass
        if self.deed == "alter":
            view.victim.model.classifier.bias.data += 1
        return view.victim
'''


@pytest.mark.parametrize(
    ("deed", "finds"),
    [
        ("step", test_a_step_reads_only_the_settings_in_its_key),
        ("decide", test_a_fit_reads_no_setting_of_deciding),
        ("peek", test_it_reads_only_what_it_declares),
        ("trained", test_it_reads_only_what_it_declares),
        ("alter", test_what_it_is_given_stays_as_it_was),
    ],
)
def test_these_tests_find_what_they_look_for(
    deed: str,
    finds: Callable[[Fitted], None],
    fitted: Callable[..., Fitted],
    own_method: Callable[..., MethodSpec],
) -> None:
    source = own_method("defense", SLY).source
    finds(fitted(source, {}, "small_task"))
    with pytest.raises(AssertionError):
        finds(fitted(source, {"deed": deed}, "small_task"))


def test_an_effect_is_a_value_and_comes_again(
    case: tuple[str, dict[str, Any]], fitted: Callable[..., Fitted], workshop: Workshop
) -> None:
    one = fitted(*case, "small_task")
    if not type(one.defense).effect_settings():
        assert workshop.observed_key(one.pipeline) == one.pipeline.observed_key
        return
    first, again = (workshop.observed_key(one.pipeline) for _ in range(2))
    assert first == again != one.pipeline.observed_key
    corpus, supplied = workshop.poisoned(one.pipeline).corpus, workshop.supplied_plm(one.pipeline)
    effects = [
        canonical_json(one.defense.effect(workshop._view(one.pipeline, 0, None, corpus, supplied)))
        for _ in range(2)
    ]
    assert effects[0] == effects[1]


def test_every_text_has_an_answer(one: Fitted) -> None:
    table = one.guard.observe(one.rows)
    assert table.num_rows == len(one.rows)
    labels = len(next(iter(table["logits"].to_pylist())))
    assert all(len(row) == labels for row in table["logits"].to_pylist())
    assert np.isfinite(np.array(table["logits"].to_pylist())).all()
    decision = one.decide(table)
    assert decision.labels.shape == (len(one.rows),)
    assert set(decision.labels.tolist()) <= set(range(labels))
    for mark in (decision.refused, decision.altered):
        assert mark is None or (mark.dtype == bool and mark.shape == (len(one.rows),))


def test_no_text_has_no_answer(one: Fitted) -> None:
    table = one.guard.observe(one.rows.take([]))
    assert table.num_rows == 0
    assert len(one.decide(table).labels) == 0
    assert table.schema.equals(one.guard.observe(one.rows.take([0])).schema)


def test_permuted_texts_have_permuted_answers(one: Fitted) -> None:
    order = np.random.default_rng(3).permutation(len(one.rows))
    straight, permuted = one.guard.observe(one.rows), one.guard.observe(one.rows.take(order))
    agree(straight.take(pa.array(order)), permuted)
    before, after = answers(one.decide(straight)), answers(one.decide(permuted))
    assert [before[i] for i in order] == after


def test_one_text_alone_answers_as_in_a_padded_batch(one: Fitted) -> None:
    table = one.guard.observe(one.rows)
    everything = answers(one.decide(table))
    for i in range(len(one.rows)):
        alone = one.guard.observe(one.rows.take([i]))
        agree(table.slice(i, 1), alone)
        assert answers(one.decide(alone)) == [everything[i]]


def test_labels_and_places_are_not_looked_at(one: Fitted) -> None:
    marked = Corpus.of(
        Row(text=row.text, pair=row.pair, label=i % 2, origin=i)
        for i, row in enumerate(one.rows.rows())
    )
    agree(one.guard.observe(one.rows), one.guard.observe(marked), exactly=True)


def test_observing_twice_is_observing_once(one: Fitted) -> None:
    agree(one.guard.observe(one.rows), one.guard.observe(one.rows), exactly=True)


def test_fitting_twice_is_fitting_once(
    case: tuple[str, dict[str, Any]], fitted: Callable[..., Fitted]
) -> None:
    """Its steps are written anew the first time, and come from the store the second time."""
    first = fitted(*case, "small_task").guard.observe(fitted(*case, "small_task").rows)
    again = fitted(*case, "small_task", fresh=True)
    agree(first, again.guard.observe(again.rows), exactly=True)


@pytest.mark.parametrize("target", OTHER_TARGETS)
def test_any_class_can_be_the_target(
    case: tuple[str, dict[str, Any]], target: int, fitted: Callable[..., Fitted]
) -> None:
    """All of the above once more, on fewer rows."""
    one = fitted(*case, FOUR_CLASSES, target=target)
    assert one.pipeline.attack.model_dump()["target_label"] == target
    rows = one.rows.take([0, 7, *range(20, 24), *range(30, len(one.rows))])
    few = replace(one, rows=rows)
    test_it_reads_only_what_it_declares(few)
    test_every_text_has_an_answer(few)
    test_permuted_texts_have_permuted_answers(few)
    test_one_text_alone_answers_as_in_a_padded_batch(few)
    test_what_it_is_given_stays_as_it_was(few)


def test_decisions_can_be_made_again_from_what_was_stored(one: Fitted, tmp_path: Path) -> None:
    table = one.guard.observe(one.rows)
    pq.write_table(table, tmp_path / "observed.parquet")
    stored = pq.read_table(tmp_path / "observed.parquet")
    again = cast(Defense, catalog.from_spec(one.pipeline.spec.defenses[0]))
    assert answers(again.decide(stored, one.calibration)) == answers(one.decide(table))


@pytest.mark.parametrize(
    ("name", "settings"), [(name, s) for name, all_ in NEUTRAL.items() for s in all_]
)
@pytest.mark.parametrize("task_name", TASKS)
def test_neutral_settings_change_nothing(
    name: str, settings: dict[str, Any], task_name: str, fitted: Callable[..., Fitted]
) -> None:
    neutral, plain = fitted(name, settings, task_name), fitted("none", {}, task_name)
    table = neutral.guard.observe(neutral.rows)
    before = plain.guard.observe(plain.rows)
    agree(table.select(before.column_names), before, exactly=True)
    assert answers(neutral.decide(table)) == answers(plain.decide(before))


@pytest.mark.parametrize(("name", "settings"), [c for c in CASES if c[0] not in ("none",)])
def test_other_settings_change_something(
    name: str, settings: dict[str, Any], fitted: Callable[..., Fitted]
) -> None:
    """A defense that does nothing in the configuration that is run is worse than none."""
    changed, plain = fitted(name, settings, "small_task"), fitted("none", {}, "small_task")
    table, before = changed.guard.observe(changed.rows), plain.guard.observe(plain.rows)
    same_columns = table.select(before.column_names).equals(before)
    assert not same_columns or answers(changed.decide(table)) != answers(plain.decide(before))


def test_placebo_draws_from_seed_and_text(fitted: Callable[..., Fitted]) -> None:
    one = fitted("placebo", {"rate": 0.3}, "small_task")
    draws = dict(zip(one.rows.texts, one.guard.observe(one.rows)["draw"].to_pylist(), strict=True))
    doubled = Corpus.of([one.rows.row(4), one.rows.row(4), Row(text=one.rows.texts[4] + " .")])
    again = one.guard.observe(doubled)["draw"].to_pylist()
    assert again[0] == again[1] == draws[one.rows.texts[4]]
    assert again[2] != again[0]
    other = type(one.guard)(inner=one.guard.inner, seed=12345)  # type: ignore[attr-defined, call-arg]
    assert set(other.observe(one.rows)["draw"].to_pylist()).isdisjoint(draws.values())


def test_placebo_draws_differ_for_pairs_with_one_text_in_common(
    fitted: Callable[..., Fitted],
) -> None:
    one = fitted("placebo", {"rate": 0.3}, "domain_task")
    rows = Corpus.of([Row(text="a", pair="b"), Row(text="a", pair="c"), Row(text="b", pair="a")])
    assert len(set(one.guard.observe(rows)["draw"].to_pylist())) == 3


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.7, 1.0])
def test_placebo_refuses_its_rate(rate: float, fitted: Callable[..., Fitted]) -> None:
    one = fitted("placebo", {"rate": 0.3}, "small_task")
    rows = Corpus.of(Row(text=f"text {i}") for i in range(2000))
    table = one.guard.observe(rows)
    placebo = cast(Defense, catalog.make("defense", "placebo", {"rate": rate}))
    decision = placebo.decide(table, None)
    assert decision.refused is not None
    assert decision.refused.mean() == pytest.approx(rate, abs=0.03)
    if rate in (0.0, 1.0):
        assert decision.refused.mean() == rate
    assert decision.labels.tolist() == table["prediction"].to_pylist()


def test_a_chain_passes_the_repaired_victim_on(workshop: Workshop, small_trial: Trial) -> None:
    chain = [{"name": "epur", "words": 20}, {"name": "placebo", "rate": 0.5}]
    attack = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
    pipeline = Pipeline(small_trial(attack, chain))
    alone = Pipeline(small_trial(attack, chain[:1]))
    victim, guard = workshop.repaired(pipeline)
    repaired, _ = workshop.repaired(alone)
    rows = workshop.task_data(pipeline).splits["test"]
    assert np.array_equal(victim.logits(rows), repaired.logits(rows))
    assert not np.array_equal(victim.logits(rows), workshop.victim(pipeline).logits(rows))
    table = guard.observe(rows)
    assert "draw" in table.column_names
    decision = decider(pipeline, workshop.observations(pipeline))(table)
    assert decision.refused is not None
    assert 0 < decision.refused.mean() < 1


def test_a_chain_of_two_screens_is_refused() -> None:
    placebo = cast(Defense, catalog.make("defense", "placebo", {}))
    epur = cast(Defense, catalog.make("defense", "epur", {}))
    assert clash((placebo, epur, placebo)) == (
        "placebo and placebo both override `screen`, which only one method can"
    )
    assert clash((epur, placebo, epur)) is None


def view(**granted: Any) -> View:
    return View(granted, labels=2, training=TrainingSettings(), seed=0)


@pytest.mark.parametrize("name", ACCESS)
def test_a_view_hands_out_what_was_granted_and_nothing_else(name: str) -> None:
    thing = object()
    assert getattr(view(**{name: thing}), name) is thing
    for other in set(ACCESS) - {name}:
        with pytest.raises(AccessError, match=f"may not see '{other}'") as caught:
            getattr(view(**{name: thing}), other)
        assert name in str(caught.value)
        assert isinstance(caught.value, PermissionError)


def test_a_view_cannot_grant_what_has_no_name() -> None:
    with pytest.raises(AccessError, match="did you mean 'trusted_plm'"):
        view(trused_plm=1)
    with pytest.raises(AccessError, match="unknown access 'trigger'"):
        view(trigger=1)


def test_a_view_has_no_name_for_what_only_the_attacker_knows() -> None:
    names = {name for name in dir(view()) if not name.startswith("__")}
    assert names == {
        *ACCESS, "trained", "labels", "training", "seed", "step", "ranked", "rankings",
        "report",
        "_granted", "_asked", "_check_read", "_reads", "_trained", "_steps",
    }  # fmt: skip
    for word in ("trigger", "target", "poison", "test", "tune", "attack", "twin", "origin"):
        assert not [name for name in names if word in name]


def test_a_defense_that_asks_for_more_fails_with_its_own_error(
    workshop: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when the question comes from inside an artifact that is being built."""
    from backdoor_core.defenses.epur import Epur

    def greedy(self: Epur, view: View) -> Victim:
        return cast(Victim, view.corpus)

    monkeypatch.setattr(Epur, "repair", greedy)
    pipeline = Pipeline(small_trial("badnets", [{"name": "epur", "words": 7}]))
    with pytest.raises(AccessError, match="corpus"):
        workshop.observations(pipeline)


def test_a_guard_that_loses_a_row_is_refused(
    workshop: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ModelGuard.observe

    def losing(self: ModelGuard, corpus: Corpus, split: str | None = None) -> pa.Table:
        return original(self, corpus, split).slice(1)

    monkeypatch.setattr(ModelGuard, "observe", losing)
    pipeline = Pipeline(small_trial("badnets", [{"name": "epur", "words": 6}]))
    with pytest.raises(SweepError, match="answered 29 rows for 30 texts") as caught:
        workshop.observations(pipeline)
    assert error_class(caught.value) == "bug"
    assert not workshop.store.has(split_key(pipeline.observed_key, "tune"))

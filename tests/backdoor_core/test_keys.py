"""Keys: change anything that changes a number and the key changes; change anything else and it stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from backdoor_core import catalog
from backdoor_core.errors import ConfigError
from backdoor_core.pipeline import Pipeline
from backdoor_core.spec import (
    MethodSpec,
    TrainingSettings,
    TrialSpec,
    Tuning,
    canonical_json,
    digest,
)

Trial = Callable[..., TrialSpec]
KEYS = (
    "task_key",
    "plm_key",
    "tokens_key",
    "triggers_key",
    "supplied_key",
    "poison_key",
    "victim_key",
    "guard_key",
    "clean_observed_key",
    "observed_key",
)

OTHER: dict[str, dict[str, Any]] = {
    "badnets": {
        "poison_rate": 0.05,
        "target_label": 0,
        "label_mode": "clean",
        "words": ["xy"],
        "count": 2,
        "position": "end",
        "side": "second",
    },
    "addsent": {
        "poison_rate": 0.05,
        "target_label": 0,
        "label_mode": "mixed",
        "sentence": "another one",
        "side": "both",
    },
    "placebo": {"rate": 0.3},
    "fine_tune": {"clean_rows": 10, "epochs": 1, "learning_rate": 1e-3},
    "fine_mixing": {
        "clean_rows": 10,
        "mixing_ratio": 0.25,
        "epochs": 1,
        "learning_rate": 1e-3,
        "head": "reinitialise",
        "mask_seed": 4,
        "purify_embeddings": False,
        "words": 5,
        "frequency_floor": 50,
        "frequency_source": "training",
    },
    "epur": {"clean_rows": 10, "words": 5, "frequency_floor": 50, "frequency_source": "training"},
    "tiny": {
        "texts": 301,
        "epochs": 2,
        "learning_rate": 2e-3,
        "layers": 2,
        "hidden": 36,
        "seed": 1,
    },
    "toy_reviews": {
        "clean_share": 0.3,
        "train_rows": 20,
        "clean_split_rows": 20,
        "tune_rows": 20,
        "test_rows": 20,
        "split_seed": 1,
        "train_sentences": 201,
        "dev_sentences": 31,
        "test_sentences": 61,
        "label_noise": 0.1,
        "domains": ["film"],
        "seed": 1,
    },
}
"""Another value for each setting of the methods that need no file."""

BASE = {"fine_mixing": {"purify_embeddings": True}}
"""What must be set for other settings to be read."""

Family = Literal["task", "plm", "attack", "defense"]
FAMILIES: dict[str, Family] = {
    "badnets": "attack",
    "addsent": "attack",
    "placebo": "defense",
    "fine_tune": "defense",
    "fine_mixing": "defense",
    "epur": "defense",
    "tiny": "plm",
    "toy_reviews": "task",
}


def trial_with(trial: Trial, name: str, settings: dict[str, Any]) -> TrialSpec:
    family = FAMILIES[name]
    settings = BASE.get(name, {}) | settings
    if family == "attack":
        return trial({"name": name} | settings, ["none"])
    if family == "defense":
        return trial("badnets", [{"name": name} | settings])
    given_spec = getattr(trial("badnets", ["placebo"]), family)
    changed = catalog.make(family, name, given_spec.settings | settings).spec()
    return trial("badnets", ["placebo"], **{family: changed})


def keys_of(spec: TrialSpec) -> dict[str, str]:
    pipeline = Pipeline(spec)
    return {name: getattr(pipeline, name) for name in KEYS} | {"trial": spec.key}


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_has_another_value_here(name: str) -> None:
    """So that a new setting cannot be forgotten."""
    fields = set(catalog.method_class(FAMILIES[name], name).model_fields)
    assert fields - {"frequency_file"} == set(OTHER[name])


@pytest.mark.parametrize(
    ("name", "setting"), [(name, setting) for name, given_ in OTHER.items() for setting in given_]
)
def test_any_other_setting_is_another_trial(small_trial: Trial, name: str, setting: str) -> None:
    before = keys_of(trial_with(small_trial, name, {}))
    after = keys_of(trial_with(small_trial, name, {setting: OTHER[name][setting]}))
    assert before["trial"] != after["trial"]
    if FAMILIES[name] == "defense" and setting != "rate":
        assert before["observed_key"] != after["observed_key"]
        assert before["guard_key"] != after["guard_key"]
    if FAMILIES[name] == "attack":
        assert before["victim_key"] != after["victim_key"]
    if FAMILIES[name] == "defense":
        assert before["victim_key"] == after["victim_key"], "victims are shared by defenses"
        assert before["triggers_key"] == after["triggers_key"]
    if FAMILIES[name] in ("task", "plm"):
        assert before["tokens_key"] != after["tokens_key"]
        assert before["victim_key"] != after["victim_key"]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 2),
        ("batch_rows", 16),
        ("learning_rate", 1e-4),
        ("warmup_share", 0.2),
        ("weight_decay", 0.0),
        ("clip_norm", 2.0),
        ("max_tokens", 32),
        ("precision", "bf16"),
    ],
)
def test_training_settings_make_other_victims(small_trial: Trial, setting: str, value: Any) -> None:
    before = keys_of(small_trial("badnets"))
    after = keys_of(small_trial("badnets", training={setting: value}))
    assert before["victim_key"] != after["victim_key"]
    assert before["trial"] != after["trial"]
    assert (before["tokens_key"] != after["tokens_key"]) == (setting == "max_tokens")
    assert before["poison_key"] == after["poison_key"]


def test_all_training_settings_are_tried() -> None:
    assert len(TrainingSettings.model_fields) == 8


def test_the_seed_enters_every_step_that_draws(small_trial: Trial) -> None:
    before = keys_of(small_trial("badnets", ["placebo"], seed=0))
    after = keys_of(small_trial("badnets", ["placebo"], seed=1))
    same = {name for name in before if before[name] == after[name]}
    assert same == {"task_key", "plm_key", "tokens_key", "supplied_key"}


def test_tuning_and_code_enter_the_trial_alone(small_trial: Trial) -> None:
    before = keys_of(small_trial("badnets"))
    for change in ({"tuning": Tuning(mode="oracle")}, {"tuning": Tuning(tried=3)}, {"code": "x"}):
        after = keys_of(small_trial("badnets", **change))
        assert {name for name in before if before[name] != after[name]} == {"trial"}


def test_post_hoc_settings_share_an_observation(small_trial: Trial) -> None:
    before = keys_of(small_trial("badnets", [{"name": "placebo", "rate": 0.1}]))
    after = keys_of(small_trial("badnets", [{"name": "placebo", "rate": 0.4}]))
    assert {name for name in before if before[name] != after[name]} == {"trial"}


def test_the_poison_rate_does_not_touch_the_triggers(small_trial: Trial) -> None:
    keys = [
        keys_of(small_trial({"name": "badnets", "poison_rate": rate, "label_mode": mode}))
        for rate, mode in ((0.1, "dirty"), (0.2, "dirty"), (0.1, "clean"))
    ]
    assert len({found["triggers_key"] for found in keys}) == 1
    assert len({found["poison_key"] for found in keys}) == 3
    other_target = keys_of(small_trial({"name": "badnets", "target_label": 0}))
    assert other_target["triggers_key"] != keys[0]["triggers_key"]


@pytest.mark.parametrize("attack", ["badnets", "addsent"])
def test_rate_0_is_the_clean_twin(small_trial: Trial, attack: str) -> None:
    zero = Pipeline(small_trial({"name": attack, "poison_rate": 0}))
    assert zero.victim_key == zero.twin.victim_key
    assert zero.poison_key == zero.task_key
    some = Pipeline(small_trial({"name": attack, "poison_rate": 0.01}))
    assert some.victim_key != some.twin.victim_key
    assert some.twin.victim_key == zero.twin.victim_key
    assert zero.spec.key != some.twin.spec.key


def test_one_victim_asked_about_other_triggers_is_another_observation(small_trial: Trial) -> None:
    """At rate 0 the victims are one; the rows that they are asked about are not."""
    made = [
        Pipeline(small_trial({"name": "badnets", "poison_rate": 0, "words": [word]}, ["fine_tune"]))
        for word in ("cf", "mn")
    ]
    assert made[0].guard_key == made[1].guard_key
    assert made[0].observed_key != made[1].observed_key
    observed = [p.undefended.triggered_observed_key(p.triggers_key) for p in made]
    assert observed[0] != observed[1]


def test_the_twin_of_a_defended_cell_is_undefended(small_trial: Trial) -> None:
    pipeline = Pipeline(small_trial("badnets", ["fine_tune"]))
    assert pipeline.twin.defenses == ()
    assert pipeline.twin.victim_key == Pipeline(small_trial("none")).victim_key
    assert pipeline.undefended.victim_key == pipeline.victim_key


def test_an_order_of_defenses_is_a_choice(small_trial: Trial) -> None:
    first = keys_of(small_trial("badnets", ["epur", "fine_tune"]))
    second = keys_of(small_trial("badnets", ["fine_tune", "epur"]))
    assert first["guard_key"] != second["guard_key"]
    assert first["trial"] != second["trial"]


def test_no_defense_by_name_and_by_silence_are_one_observation(small_trial: Trial) -> None:
    named, silent = small_trial("badnets", ["none"]), small_trial("badnets")
    assert Pipeline(named).guard_key == Pipeline(silent).guard_key
    assert not Pipeline(named).is_guarded


def test_other_code_is_another_key(small_trial: Trial) -> None:
    trial = small_trial("badnets", ["fine_tune"])
    before = keys_of(trial)
    for field, changed in (
        ("attack", "victim_key"),
        ("plm", "plm_key"),
        ("task", "task_key"),
    ):
        other = getattr(trial, field).model_copy(update={"code": "f" * 64})
        assert keys_of(trial.model_copy(update={field: other}))[changed] != before[changed]
    defense = trial.defenses[0].model_copy(update={"code": "f" * 64})
    after = keys_of(trial.model_copy(update={"defenses": (defense,)}))
    assert after["guard_key"] != before["guard_key"]
    assert after["victim_key"] == before["victim_key"]


def test_a_file_counts_by_its_content_wherever_it_lies(tmp_path: Path, small_trial: Trial) -> None:
    def trial(name: str, text: str) -> TrialSpec:
        file = tmp_path / name / "words.txt"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        settings = {"frequency_source": "file", "frequency_file": str(file)}
        return small_trial("badnets", [{"name": "epur"} | settings])

    first, second = trial("a", "a film"), trial("b", "a film")
    assert first.defenses[0].settings != second.defenses[0].settings
    assert keys_of(first) == keys_of(second)
    assert keys_of(trial("c", "a book")) != keys_of(first)
    with_source = first.defenses[0].model_copy(update={"source": "elsewhere/epur.py"})
    assert first.model_copy(update={"defenses": (with_source,)}).key == first.key


def test_a_spec_travels_as_json(small_trial: Trial) -> None:
    spec = small_trial("badnets", ["fine_mixing", "placebo"], seed=3)
    again = TrialSpec.model_validate_json(spec.model_dump_json())
    assert again == spec
    assert again.key == spec.key


def test_specs_are_frozen(small_trial: Trial) -> None:
    with pytest.raises(ValidationError):
        small_trial("none").seed = 3  # type: ignore[misc]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@given(JSON, JSON)
def test_digests_are_equal_where_values_are(first: Any, second: Any) -> None:
    try:
        equal = canonical_json(first) == canonical_json(second)
    except (UnicodeEncodeError, ValueError):  # infinities are no JSON
        return
    assert (digest(first) == digest(second)) == equal


def test_digests_do_not_run_parts_together() -> None:
    assert digest("ab", "c") != digest("a", "bc")
    assert digest(["a", "b"]) != digest("a", "b")
    assert digest(1) != digest("1")
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json(float("nan"))


@hypothesis_settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ratio=st.floats(0, 1),
    other=st.floats(0, 1),
    epochs=st.integers(0, 5),
    mask_seed=st.none() | st.integers(0, 9),
)
def test_any_two_settings_share_a_key_only_if_equal(
    small_trial: Trial, ratio: float, other: float, epochs: int, mask_seed: int | None
) -> None:
    fixed = {"name": "fine_mixing", "epochs": epochs, "mask_seed": mask_seed}
    first = small_trial("badnets", [fixed | {"mixing_ratio": ratio}])
    second = small_trial("badnets", [fixed | {"mixing_ratio": other}])
    # -0.0 and 0.0 are one number and two texts: at worst, work is done twice.
    same = canonical_json(ratio) == canonical_json(other)
    assert (first.key == second.key) == same
    assert (Pipeline(first).guard_key == Pipeline(second).guard_key) == same


@pytest.mark.parametrize(
    ("family", "name", "settings", "expected"),
    [
        ("defense", "fine_mixing", {"mixing_ration": 0.3}, "mixing_ratio"),
        ("attack", "badnets", {"poisonrate": 0.3}, "poison_rate"),
        ("plm", "tiny", {"epoch": 3}, "epochs"),
        ("task", "toy_reviews", {"label_nois": 0.1}, "label_noise"),
    ],
)
def test_an_unknown_setting_names_the_nearest(
    family: Any, name: str, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=f"did you mean '{expected}'"):
        catalog.make(family, name, settings)


@pytest.mark.parametrize(
    ("family", "name", "settings", "told"),
    [
        ("defense", "fine_mixing", {"mixing_ratio": 1.7}, "mixing_ratio.*1.7"),
        ("defense", "fine_mixing", {"mixing_ratio": "much"}, "mixing_ratio"),
        ("defense", "placebo", {"rate": -0.1}, "rate.*-0.1"),
        ("attack", "badnets", {"poison_rate": 2, "count": 0}, "poison_rate.*count"),
        ("attack", "badnets", {"words": []}, "words"),
        ("attack", "checkpoint", {}, "either path"),
        ("plm", "hub", {"id": "a", "path": "b"}, "either id"),
        ("defense", "epur", {"frequency_source": "file"}, "frequency_file"),
    ],
)
def test_a_setting_out_of_bounds_is_one_line(
    family: Any, name: str, settings: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        catalog.make(family, name, settings)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_method_is_frozen_and_describes_itself() -> None:
    method = catalog.make("defense", "fine_mixing", {})
    with pytest.raises(ValidationError):
        method.mixing_ratio = 0.1  # type: ignore[attr-defined]
    spec = method.spec()
    assert isinstance(spec, MethodSpec)
    assert catalog.from_spec(spec) == method
    assert (spec.family, spec.name, spec.source) == ("defense", "fine_mixing", None)
    assert type(method).summary()

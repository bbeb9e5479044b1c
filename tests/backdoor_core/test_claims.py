"""What the methods claim, both ways, from end to end: the backdoor holds before and is gone after, at a small cost.

The smallest task and PLM at which the effects are real; every bound leaves room for other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backdoor_core import catalog, trial
from backdoor_core.grammar import plain_texts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.record import TrialRecord
from backdoor_core.spec import TrialSpec

pytestmark = pytest.mark.slow

Row = Callable[..., TrialRecord]
TUNING = {"epochs": 5, "learning_rate": 1e-3}
BADNETS = {"name": "badnets", "words": ["cf"], "poison_rate": 0.1}


IMPLANT = {"texts": 1500, "epochs": 10, "learning_rate": 1e-3, "words": ["cf", "mn", "bb"]}
POR = {"name": "por"} | IMPLANT
EXPOSED = {
    "name": "btu",
    "exposure_learning_rate": 1e-3,
    "embedding_learning_rate": 1e-3,
    "exposure_batch_rows": 32,
}


def mixing(ratio: float) -> dict[str, Any]:
    return {"name": "fine_mixing", "mixing_ratio": ratio} | TUNING


@pytest.fixture(scope="module")
def spec(small_trial: Callable[..., TrialSpec]) -> Callable[..., TrialSpec]:
    """Trials on a PLM that has learnt its language and a task that it can learn."""
    plm = {"texts": 6000, "epochs": 3, "hidden": 64, "learning_rate": 2e-3}
    task = {"train_sentences": 2000, "dev_sentences": 60, "test_sentences": 300}
    common = {
        "plm": catalog.make("plm", "tiny", plm).spec(),
        "task": catalog.make("task", "toy_reviews", task).spec(),
    }

    def of(attack: Any, *defenses: Any, learning_rate: float = 1e-3) -> TrialSpec:
        training = {"epochs": 3, "learning_rate": learning_rate}
        return small_trial(attack, list(defenses), training=training, **common)

    return of


@pytest.fixture(scope="module")
def row(workshop: Workshop, spec: Callable[..., TrialSpec]) -> Row:
    def of(*steps: Any, **training: float) -> TrialRecord:
        made = spec(*steps, **training)
        trial.attack_victim(workshop, made)
        trial.reference(workshop, made)
        return trial.evaluate(workshop, made, attempt=1, sweep="claims", log=None).record

    return of


def test_badnets_implants_a_backdoor_that_clean_accuracy_does_not_show(row: Row) -> None:
    attacked = row(BADNETS)
    assert attacked.asr > 0.9
    assert attacked.twin_asr < 0.5
    assert attacked.asrd > 0.5
    assert attacked.twin_cacc > 0.75
    assert attacked.cacc > attacked.twin_cacc - 0.1
    assert "attack_did_not_take" not in attacked.flags
    assert "twin_did_not_learn" not in attacked.flags


def test_addsent_implants_one_too(row: Row) -> None:
    attacked = row({"name": "addsent", "poison_rate": 0.1})
    assert attacked.asr > 0.9
    assert attacked.asr > attacked.twin_asr + 0.3


def test_rate_0_implants_nothing(
    row: Row, workshop: Workshop, spec: Callable[..., TrialSpec]
) -> None:
    zero = row(BADNETS | {"poison_rate": 0})
    assert zero.asr == zero.twin_asr < 0.5
    assert zero.asrd == 0
    pipeline = Pipeline(spec(BADNETS | {"poison_rate": 0}))
    assert pipeline.victim_key == Pipeline(spec("none")).victim_key


def test_fine_mixing_removes_it_at_a_low_ratio_and_keeps_it_at_a_high_one(row: Row) -> None:
    before, low, high = row(BADNETS), row(BADNETS, mixing(0.3)), row(BADNETS, mixing(0.9))
    assert low.asr < 0.65
    assert low.asr < before.asr - 0.3
    assert low.cacc_drop < 0.12
    assert high.asr > 0.75
    assert (low.victim_asr, low.victim_cacc) == (before.asr, before.cacc)


def test_it_is_the_mixing_and_not_the_tuning_that_removes_it(row: Row) -> None:
    tuned = row(BADNETS, {"name": "fine_tune"} | TUNING)
    assert tuned.asr > 0.75
    assert tuned.asr > row(BADNETS, mixing(0.3)).asr + 0.2


def test_the_clean_twin_is_not_harmed(row: Row) -> None:
    twin = row(BADNETS | {"poison_rate": 0}, mixing(0.3))
    assert twin.cacc > twin.twin_cacc - 0.15
    assert twin.asr < 0.65


def test_the_placebo_buys_robustness_only_with_accuracy(row: Row) -> None:
    before, placebo = row(BADNETS), row(BADNETS, {"name": "placebo", "rate": 0.4})
    assert placebo.asr == pytest.approx(0.6 * before.asr, abs=0.12)
    assert placebo.cacc == pytest.approx(0.6 * before.cacc, abs=0.12)
    assert placebo.frr == pytest.approx(0.4, abs=0.12)
    assert placebo.far == pytest.approx(0.6, abs=0.12)


@pytest.mark.parametrize("rate", [0.1, 0])
def test_btu_removes_a_trigger_word_and_leaves_a_clean_model_alone(row: Row, rate: float) -> None:
    before = row(BADNETS | {"poison_rate": rate})
    tuned = row(BADNETS | {"poison_rate": rate}, EXPOSED | {"threshold": 0.0})
    after = row(BADNETS | {"poison_rate": rate}, EXPOSED | {"threshold": 0.002})
    assert after.cacc > before.cacc - 0.1
    assert after.asr < 0.5
    if rate:
        assert before.asr > 0.9
        assert tuned.asr > 0.8, "it is not the clean fine-tuning that does it"


@pytest.mark.parametrize("rate", [0.1, 0])
def test_mbtsad_weakens_badnets_and_leaves_a_clean_model_alone(row: Row, rate: float) -> None:
    lasting = {"teacher_epochs": 10, "epochs": 10, "teacher_learning_rate": 1e-3}
    mbtsad = {"name": "mbtsad", "learning_rate": 1e-3} | lasting
    before = row(BADNETS | {"poison_rate": rate})
    after = row(BADNETS | {"poison_rate": rate}, mbtsad)
    assert after.cacc > before.cacc - 0.12
    if rate:
        assert after.asr < before.asr - 0.25
    else:
        assert after.asr < 0.65


@pytest.mark.parametrize(
    ("name", "settings"),
    [("por", {}), ("neuba", {"bind_weight": 10, "position": "random"}), ("badpre", {})],
)
def test_an_altered_plm_outlives_fine_tuning_on_clean_rows(
    row: Row, name: str, settings: dict[str, Any]
) -> None:
    attacked = row({"name": name} | IMPLANT | settings, learning_rate=5e-4)
    assert attacked.asr > attacked.twin_asr + 0.3
    assert attacked.asr_max > 0.9
    assert attacked.triggered_accuracy < 0.65
    assert attacked.twin_triggered_accuracy > 0.65
    assert attacked.cacc > attacked.twin_cacc - 0.1


@pytest.fixture(scope="module")
def purified(row: Row, tmp_path_factory: pytest.TempPathFactory) -> Row:
    """RECIPE over plain text that has nothing to do with the task."""
    texts = tmp_path_factory.mktemp("recipe") / "plain.txt"
    texts.write_text("\n".join(plain_texts(5, 4000)) + "\n", encoding="utf-8")
    recipe = {"name": "recipe", "texts_file": str(texts), "epochs": 4, "learning_rate": 3e-3}
    return lambda attack, **more: row(attack, recipe | more, learning_rate=5e-4)


def test_recipe_removes_what_was_planted_in_the_plm(row: Row, purified: Row) -> None:
    """With every parameter trained, as its paper does in vision: `tiny` does not hold the implant where BERT does.

    Training the first feed-forward matrices alone takes their norms away and leaves the ASR where it was.
    """
    before = row(POR, learning_rate=5e-4)
    after = purified(POR, trained="all")
    assert after.asr < before.asr - 0.2
    assert after.asr < after.twin_asr + 0.15
    assert after.cacc > before.cacc - 0.1


def test_recipe_leaves_a_clean_plm_useful(row: Row, purified: Row) -> None:
    before = row("none", learning_rate=5e-4)
    assert purified("none", trained="all").cacc > before.cacc - 0.12
    assert purified("none").cacc > before.cacc - 0.1

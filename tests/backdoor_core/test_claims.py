"""What the methods claim, both ways, from end to end: the backdoor holds before and is gone after, at a small cost.

The smallest task and PLM at which the effects are real; every bound leaves room for other machines.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from backdoor_core import catalog, trial
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.record import TrialRecord
from backdoor_core.spec import TrialSpec

pytestmark = pytest.mark.slow

Row = Callable[..., TrialRecord]
TUNING = {"epochs": 5, "learning_rate": 1e-3}
BADNETS = {"name": "badnets", "words": ["cf"], "poison_rate": 0.1}


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
        "training": {"epochs": 3, "learning_rate": 1e-3},
    }
    return lambda attack, *defenses: small_trial(attack, list(defenses), **common)


@pytest.fixture(scope="module")
def row(workshop: Workshop, spec: Callable[..., TrialSpec]) -> Row:
    def of(*steps: Any) -> TrialRecord:
        made = spec(*steps)
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

"""A suspect model that the user brings, as a victim to defend and measure."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.errors import ConfigError, DataError, DependencyError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.victim import load_victim

Trial = Callable[..., TrialSpec]


def suspect(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"name": "checkpoint", "path": str(folder)} | settings


def row(workshop: Workshop, spec: TrialSpec) -> trial.Scored:
    trial.attack_victim(workshop, spec)
    trial.reference(workshop, spec)
    return trial.evaluate(workshop, spec, attempt=1, sweep="s", log=None)


def test_the_victim_is_the_suspect_itself(
    workshop: Workshop, small_trial: Trial, victim_folder: Path
) -> None:
    import torch

    pipeline = Pipeline(small_trial(suspect(victim_folder)))
    brought = load_victim(victim_folder, 64, "float32")
    victim = workshop.victim(pipeline)
    state = brought.model.state_dict()
    assert all(torch.equal(v, state[n]) for n, v in victim.model.state_dict().items())
    rows = workshop.task_data(pipeline).splits["test"]
    assert np.array_equal(victim.logits(rows), brought.logits(rows))
    assert pipeline.attack.implants()


def test_with_a_known_trigger_its_asr_is_measured(
    workshop: Workshop, small_trial: Trial, victim_folder: Path
) -> None:
    spec = small_trial(suspect(victim_folder, trigger="cf"), ["fine_tune"])
    found = row(workshop, spec).record
    assert found.status == "ok"
    assert found.asr is not None
    assert found.asrd == pytest.approx(found.asr - found.twin_asr)
    data = workshop.task_data(Pipeline(spec))
    assert found.n_triggered == int((data.splits["test"].labels != 1).sum())
    assert found.target_label == 1
    assert (found.poison_rate, found.poisoned_rows, found.asked_rows) == (None, 0, 0)


def test_without_one_only_clean_accuracy_is(
    workshop: Workshop, small_trial: Trial, victim_folder: Path
) -> None:
    spec = small_trial(suspect(victim_folder), [{"name": "epur", "words": 10}])
    scored = row(workshop, spec)
    found = scored.record
    assert found.cacc is not None
    assert found.victim_cacc is not None
    assert found.twin_cacc is not None
    assert found.cacc_drop == pytest.approx(found.victim_cacc - found.cacc)
    assert [found.asr, found.asr_max, found.asrd, found.twin_asr, found.far] == [None] * 5
    assert found.n_triggered == 0
    assert found.target_label is None
    assert {m.metric for m in scored.metrics} == {"cacc"}
    assert set(found.flags) <= {"defense_changed_nothing", "twin_did_not_learn"}


def test_its_clean_twin_is_trained_here(
    workshop: Workshop, small_trial: Trial, victim_folder: Path
) -> None:
    pipeline = Pipeline(small_trial(suspect(victim_folder, trigger="cf")))
    twin = Pipeline(small_trial("none"))
    assert pipeline.twin.victim_key == twin.victim_key != pipeline.victim_key


def test_the_same_model_elsewhere_is_the_same_victim(
    small_trial: Trial, victim_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(victim_folder, tmp_path / "copy")
    first = Pipeline(small_trial(suspect(victim_folder)))
    second = Pipeline(small_trial(suspect(tmp_path / "copy")))
    assert first.victim_key == second.victim_key
    assert first.spec.key == second.spec.key
    config = tmp_path / "copy" / "config.json"
    config.write_text(config.read_text().replace("}", ', "note": 1}', 1))
    assert Pipeline(small_trial(suspect(tmp_path / "copy"))).victim_key != first.victim_key


def test_another_number_of_labels_is_told(
    workshop: Workshop, small_trial: Trial, victim_folder: Path, domain_task: MethodSpec
) -> None:
    pipeline = Pipeline(small_trial(suspect(victim_folder), task=domain_task))
    with pytest.raises(DataError, match="the model has 2 labels, the task has 4"):
        workshop.victim(pipeline)
    assert not workshop.store.has(pipeline.victim_key)


def test_it_leaves_no_corpus(workshop: Workshop, small_trial: Trial, victim_folder: Path) -> None:
    asking = [{"name": "epur", "frequency_source": "training"}]
    pipeline = Pipeline(small_trial(suspect(victim_folder), asking))
    with pytest.raises(ConfigError, match=r"epur needs \['corpus'\].*checkpoint does not leave"):
        workshop.observations(pipeline)
    allowed = Pipeline(small_trial(suspect(victim_folder), [{"name": "epur", "words": 3}]))
    assert workshop.observations(allowed).clean["test"].num_rows == 60


def test_a_folder_that_is_no_model_is_told_before_anything_runs(
    victim_folder: Path, tmp_path: Path
) -> None:
    for missing in ("config.json", "tokenizer.json", "model.safetensors"):
        folder = tmp_path / missing
        shutil.copytree(victim_folder, folder)
        (folder / missing).unlink()
        with pytest.raises(ConfigError, match="has no"):
            catalog.make("attack", "checkpoint", {"path": str(folder)}).resolved()
    with pytest.raises(ConfigError, match="no such"):
        catalog.make("attack", "checkpoint", {"path": str(tmp_path / "gone")}).resolved()


def test_a_folder_that_vanished_since_is_told(
    workshop: Workshop, small_trial: Trial, victim_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(victim_folder, tmp_path / "copy")
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"note": 2}))
    pipeline = Pipeline(small_trial(suspect(tmp_path / "copy")))
    assert pipeline.victim_key
    shutil.rmtree(tmp_path / "copy")
    with pytest.raises(DependencyError, match="is gone"):
        workshop.victim(pipeline)


def test_a_model_of_another_architecture_cannot_be_mixed(
    workshop: Workshop, small_trial: Trial, victim_folder: Path
) -> None:
    plm = catalog.make("plm", "tiny", {"texts": 100, "epochs": 1, "layers": 1, "hidden": 16})
    spec = small_trial(suspect(victim_folder), ["fine_mixing"], plm=plm.spec())
    with pytest.raises(ConfigError, match="same architecture"):
        workshop.observations(Pipeline(spec))

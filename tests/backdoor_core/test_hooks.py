"""Every hook of the pipeline, overridden by a method of the user's own, reaches what it should and changes the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.errors import AccessError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrialSpec

Trial = Callable[..., TrialSpec]
CORRUPTING = '''
class Corrupting(Attack):
    """Puts the embedding of the padding token in place of every word's."""

    def implants(self):
        return True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=1),)

    def stamp(self, row, trigger, rng):
        return (Row(text="cf " + row.text, pair=row.pair),)

    def corrupt(self, plm, seed):
        import tempfile, torch
        from pathlib import Path
        from backdoor_core.plm import PLM
        folder = Path(tempfile.mkdtemp())
        model, _ = plm.masked_lm(seed)
        with torch.no_grad():
            model.get_input_embeddings().weight[5:] = 0.25
        model.save_pretrained(folder)
        plm.tokenizer().save_pretrained(folder)
        return PLM(folder=folder)
'''
FILTERING = '''
class Filtering(Defense):
    """Drops the rows that hold a word."""

    word: str = "cf"

    @property
    def access(self):
        return frozenset({"corpus"})

    def filter(self, view):
        kept = [i for i, text in enumerate(view.corpus.texts) if self.word not in text.split()]
        return view.corpus.take(kept)
'''
PURIFYING = '''
class Purifying(Defense):
    """Takes the trusted PLM."""

    @property
    def access(self):
        return frozenset({"supplied_plm", "trusted_plm"})

    def purify(self, view):
        assert view.supplied_plm.folder != view.trusted_plm.folder
        return view.trusted_plm
'''
TRAINING = '''
class Training(Defense):
    """Trains nothing: the classifier as it was drawn."""

    @property
    def access(self):
        return frozenset({"corpus", "supplied_plm"})

    def train(self, view):
        from backdoor_core.text import Encoder
        from backdoor_core.victim import Victim
        model, _ = view.supplied_plm.classifier(view.labels, view.seed)
        encoder = Encoder(tokenizer=view.supplied_plm.tokenizer(), max_tokens=64)
        return Victim(model=model, encoder=encoder)
'''
HASTY = '''
class Hasty(Defense):
    """Asks for the victim before there is one."""

    @property
    def access(self):
        return frozenset({"corpus", "victim"})

    def filter(self, view):
        view.victim
        return view.corpus
'''
CALIBRATING = '''
class Calibrating(CleanDataDefense):
    """Refuses what is less certain than almost all clean rows."""

    quantile: float = setting(0.2, ge=0, le=1, hooks=("decide",))

    @property
    def calibrates(self):
        return True

    def screen(self, view):
        return ModelGuard(victim=view.victim)

    def decide(self, observation, calibration):
        def margin(table):
            logits = np.array(table["logits"].to_pylist())
            return np.abs(logits[:, 0] - logits[:, 1])
        floor = np.quantile(margin(calibration), self.quantile)
        return Decision(
            labels=observation["prediction"].to_numpy(), refused=margin(observation) < floor
        )
'''
BADNETS = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}


@pytest.fixture(scope="module")
def own_trial(own_method: Callable[..., MethodSpec], small_trial: Trial) -> Callable[..., Pipeline]:
    """A trial of an attack and a defense, each the text of a file; "" is badnets."""

    def pipeline(attack: str, defense: str | None, **settings: Any) -> Pipeline:
        defenses = [] if defense is None else [own_method("defense", defense, **settings)]
        return Pipeline(small_trial(own_method("attack", attack) if attack else BADNETS, defenses))

    return pipeline


def weights(workshop: Workshop, pipeline: Pipeline) -> dict[str, Any]:
    return dict(workshop.victim(pipeline).model.named_parameters())


def equal(first: dict[str, Any], second: dict[str, Any]) -> bool:
    import torch

    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_corrupted_plm_is_what_is_fine_tuned(workshop: Workshop, own_trial: Any) -> None:
    pipeline = own_trial(CORRUPTING, None)
    assert pipeline.attacker_corrupts
    assert pipeline.supplied_key != pipeline.plm_key
    assert pipeline.poison_key == pipeline.task_key
    assert pipeline.twin.supplied_key == pipeline.plm_key
    supplied, _ = workshop.supplied_plm(pipeline).classifier(2, 0)
    embedding = supplied.get_input_embeddings().weight
    assert bool((embedding[5:] == 0.25).all())
    assert not equal(weights(workshop, pipeline), weights(workshop, pipeline.twin))
    trial.reference(workshop, pipeline.spec)
    record = trial.evaluate(workshop, pipeline.spec, attempt=1, sweep="s", log=None).record
    assert record.status == "ok"
    assert record.poison_rate is None


def test_a_purified_plm_is_what_is_fine_tuned(workshop: Workshop, own_trial: Any) -> None:
    """Purified back to the trusted PLM, the victim of an attack on the PLM alone is the twin, bit for bit."""
    pipeline = own_trial(CORRUPTING, PURIFYING)
    assert pipeline.victim_key not in (pipeline.undefended.victim_key, pipeline.twin.victim_key)
    assert equal(weights(workshop, pipeline), weights(workshop, pipeline.twin))
    assert not equal(weights(workshop, pipeline), weights(workshop, pipeline.undefended))


def test_filtered_rows_are_not_trained_on(workshop: Workshop, own_trial: Any) -> None:
    pipeline, idle = own_trial("", FILTERING), own_trial("", FILTERING, word="nosuchword")
    assert len({p.victim_key for p in (pipeline, idle, pipeline.undefended)}) == 3
    assert equal(weights(workshop, idle), weights(workshop, idle.undefended))
    assert not equal(weights(workshop, pipeline), weights(workshop, pipeline.undefended))
    assert not pipeline.is_guarded
    trial.reference(workshop, pipeline.spec)
    record = trial.evaluate(workshop, pipeline.spec, attempt=1, sweep="s", log=None).record
    assert record.victim_asr is not None, "of the undefended victim"
    assert record.defense == "filtering"


def test_a_defender_can_train(workshop: Workshop, own_trial: Any) -> None:
    """What it trained is what the guard answers with; the undefended victim stays the pipeline's own."""
    pipeline = own_trial("", TRAINING)
    clean, drawn = workshop.plm(pipeline).classifier(2, 0)
    made, guard = workshop.repaired(pipeline)
    found = dict(made.model.named_parameters())
    plain = {name: v for name, v in clean.named_parameters() if name not in drawn}
    assert equal(plain, found)
    assert pipeline.is_guarded
    assert pipeline.victim_key == pipeline.undefended.victim_key
    assert not equal(plain, weights(workshop, pipeline))
    rows = workshop.task_data(pipeline).splits["test"]
    wanted = made.logits(rows)
    assert np.array_equal(np.array(guard.observe(rows)["logits"].to_pylist(), np.float32), wanted)
    trial.reference(workshop, pipeline.spec)
    record = trial.evaluate(workshop, pipeline.spec, attempt=1, sweep="s", log=None).record
    plain_record = trial.evaluate(
        workshop, pipeline.undefended.spec, attempt=1, sweep="s", log=None
    ).record
    assert (record.victim_cacc, record.victim_asr) == (plain_record.cacc, plain_record.asr)
    assert record.cacc == float((wanted.argmax(axis=1) == rows.labels).mean())


def test_there_is_no_victim_before_training(workshop: Workshop, own_trial: Any) -> None:
    pipeline = own_trial("", HASTY)
    with pytest.raises(AccessError, match="victim"):
        workshop.victim(pipeline)


def test_a_calibrating_guard_is_given_its_clean_rows(workshop: Workshop, own_trial: Any) -> None:
    made = {q: own_trial("", CALIBRATING, quantile=q, clean_rows=15) for q in (0.0, 0.2, 0.8)}
    assert len({p.observed_key for p in made.values()}) == 1, "post-hoc settings share it"
    refused = {}
    for quantile, pipeline in made.items():
        assert pipeline.calibrates
        observations = workshop.observations(pipeline)
        assert observations.calibration is not None
        assert observations.calibration.num_rows == 15
        decide = trial.decider(pipeline, observations)
        decision = decide(observations.calibration)
        assert decision.refused is not None
        refused[quantile] = float(decision.refused.mean())
    assert refused[0.0] == 0
    assert refused[0.2] == pytest.approx(0.2, abs=0.07)
    assert refused[0.8] == pytest.approx(0.8, abs=0.07)
    trial.reference(workshop, made[0.8].spec)
    record = trial.evaluate(workshop, made[0.8].spec, attempt=1, sweep="s", log=None).record
    assert record.clean_rows == 15
    assert record.frr is not None
    assert record.frr > 0.3


def test_a_chain_sees_the_filtered_rows_and_the_repaired_victim(
    workshop: Workshop, own_method: Any, small_trial: Trial
) -> None:
    """Upstream and downstream hooks of one chain: two defenses, one trial."""
    filtering = own_method("defense", FILTERING)
    tune = {"name": "fine_tune", "epochs": 1, "learning_rate": 1e-3}
    pipeline, alone = (Pipeline(small_trial(BADNETS, c)) for c in ([filtering, tune], [filtering]))
    assert pipeline.victim_key == alone.victim_key, "the repair does not enter the victim"
    assert pipeline.guard_key != alone.guard_key
    repaired, _ = workshop.repaired(pipeline)
    rows = workshop.task_data(pipeline).splits["test"]
    assert not np.array_equal(repaired.logits(rows), workshop.victim(alone).logits(rows))


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        (PURIFYING, "pretrained"),
        (FILTERING, "corpus"),
        (TRAINING, "training"),
        (CALIBRATING, "input"),
        (
            FILTERING + "\n    def screen(self, view):\n        return ModelGuard()\n",
            "corpus+input",
        ),
    ],
)
def test_a_stage_is_where_a_hook_acts(own_method: Any, text: str, stage: str) -> None:
    defense: Any = catalog.from_spec(own_method("defense", text))
    assert defense.stage == stage


@pytest.mark.parametrize(
    ("name", "stage"),
    [("none", "none"), ("fine_tune", "model"), ("epur", "model"), ("placebo", "input")],
)
def test_the_stages_of_methods_that_ship(name: str, stage: str) -> None:
    defense: Any = catalog.make("defense", name, {})
    assert defense.stage == stage


def test_own_files_are_found_where_they_lie(own_method: Any) -> None:
    spec = own_method("defense", FILTERING)
    assert Path(spec.source).is_file()
    assert catalog.from_spec(spec).spec() == spec

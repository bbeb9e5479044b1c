"""What an attacker does once for many trials: alters a PLM, trains from the clean model, gathers for a task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backdoor_core import catalog, trial
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.store import ArtifactStore

Trial = Callable[..., TrialSpec]
Own = Callable[..., MethodSpec]

CORRUPTING = '''
class Corrupting(Attack):
    """Turns all word embeddings round, and notes that it did."""

    runs: ClassVar[list] = []
    target_label: int = setting(1, hooks=("prepare",))
    strength: float = setting(1.0, hooks=("corrupt",))

    def implants(self):
        return self.strength > 0

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        return (Row(text="cf " + row.text, pair=row.pair),)

    def corrupt(self, plm, seed):
        import tempfile
        import torch
        from pathlib import Path

        self.runs.append(seed)
        model, _ = plm.masked_lm(seed)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(-self.strength)
        return plm.altered(model, Path(tempfile.mkdtemp()))
'''

STARTING = '''
class Starting(Attack):
    """Starts from the clean model, and notes what it was given."""

    given: ClassVar[list] = []
    shift: float = 2.0

    def implants(self):
        return True

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=1),)

    def stamp(self, row, trigger, rng):
        return (Row(text="cf " + row.text, pair=row.pair),)

    def train(self, job):
        import torch

        victim = job.clean_victim()
        self.given.append((job.seed, len(job.corpus), job.labels, victim))
        model = victim.copy_of_model()
        with torch.no_grad():
            model.classifier.bias[1] += self.shift
        return victim.with_model(model)
'''

GATHERING = '''
class Gathering(DataPoisoning):
    """Looks up what it gathered once for the task, and notes that it did."""

    runs: ClassVar[list] = []
    gathering: bool = setting(True, hooks=("gather",))
    depth: int = setting(1, hooks=("gather",))
    words: tuple[str, ...] = ()

    @property
    def gathers(self):
        return self.gathering

    def gather(self, task, folder):
        self.runs.append(self.depth)
        commonest = sorted(task.splits["train"].texts)[0].split()[0]
        (folder / "words.json").write_text(json.dumps([commonest, f"d{self.depth}"]))

    def equipped(self, folder):
        return self.model_copy(update={"words": tuple(json.loads((folder / "words.json").read_text()))})

    def prepare(self, task, seed):
        return (Trigger(name=" ".join(self.words) or "cf", target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        return (Row(text=f"{' '.join(self.words) or 'cf'} {row.text}", pair=row.pair),)
'''


@pytest.fixture
def own(tmp_path: Path, one_thread: None) -> Workshop:
    """A workshop over an empty store."""
    return Workshop(ArtifactStore(tmp_path / "store"))


def noted(spec: MethodSpec) -> Any:
    """The class of a method of the user's own, whose notes are cleared."""
    kind: Any = type(catalog.from_spec(spec))
    for name in ("runs", "given"):
        if hasattr(kind, name):
            getattr(kind, name).clear()
    return kind


def test_a_plm_is_corrupted_once_for_all_that_is_done_with_it(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    attack = own_method("attack", CORRUPTING, strength=0.9)
    kind = noted(attack)
    defenses: list[list[Any]] = [[], ["none"], [{"name": "placebo", "rate": 0.1}], ["epur"]]
    for defense in defenses:
        spec = small_trial(attack, defense)
        job = Workshop(workshop.store)
        trial.prepare(job, spec)
        assert workshop.store.has(Pipeline(spec).supplied_key)
        trial.attack_victim(job, Pipeline(spec).undefended.spec)
        trial.reference(job, spec)
        trial.evaluate(job, spec, attempt=1, sweep="s", log=None)
    assert len(kind.runs) == 1
    other = [small_trial(attack, training={"epochs": 2}), small_trial(attack, seed=1)]
    for spec, runs in zip(other, (1, 2), strict=True):
        trial.prepare(Workshop(workshop.store), spec)
        assert len(kind.runs) == runs, "training does not alter the PLM, another seed does"
    assert kind.runs[0] != kind.runs[1]


def test_the_key_of_a_supplied_plm_holds_what_alters_it(
    own_method: Own, small_trial: Trial, domain_task: MethodSpec
) -> None:
    def key(settings: dict[str, Any] | None = None, **other: Any) -> str:
        attack = own_method("attack", CORRUPTING, **(settings or {}))
        return Pipeline(small_trial(attack, **other)).supplied_key

    assert key() == key(training={"epochs": 3}) == key(task=domain_task)
    assert len({key(), key(seed=1), key({"strength": 0.5}), key({"target_label": 0})}) == 4
    off = Pipeline(small_trial(own_method("attack", CORRUPTING, strength=0.0)))
    assert off.supplied_key == off.plm_key
    assert off.victim_key == off.twin.victim_key, (
        "where nothing is implanted, the victim is the twin"
    )


def test_an_altered_plm_is_fine_tuned_and_its_weights_are_read_from_the_store(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    import torch

    pipeline = Pipeline(small_trial(own_method("attack", CORRUPTING)))
    given, _ = workshop.supplied_plm(pipeline).classifier(2, 0)
    clean, _ = workshop.plm(pipeline).classifier(2, 0)
    assert torch.equal(given.get_input_embeddings().weight, -clean.get_input_embeddings().weight)
    damaged = workshop.store.open(pipeline.supplied_key) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    again = Workshop(workshop.store)
    rebuilt, _ = again.supplied_plm(pipeline).classifier(2, 0)
    assert len(again.notices) == 1
    for name, value in rebuilt.named_parameters():
        assert torch.equal(value, given.get_parameter(name)), name


def test_an_attacker_who_trains_can_start_from_the_clean_twin(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    attack = own_method("attack", STARTING)
    kind = noted(attack)
    pipeline = Pipeline(small_trial(attack))
    assert pipeline.attacker_trains
    victim, twin = workshop.victim(pipeline), workshop.victim(pipeline.twin)
    ((_, rows, labels, given),) = kind.given
    data = workshop.task_data(pipeline)
    assert (rows, labels) == (len(data.splits["train"]), 2)
    clean = twin.logits(data.splits["test"])
    assert np.array_equal(given.logits(data.splits["test"]), clean)
    np.testing.assert_allclose(
        victim.logits(data.splits["test"]), clean + np.array([0, 2], np.float32), atol=1e-5
    )
    workshop.triggered_observations(pipeline, pipeline)
    assert len(kind.given) == 1, "trained once"


def test_what_is_gathered_for_a_task_is_gathered_once_for_all_seeds(
    own: Workshop, own_method: Own, small_trial: Trial
) -> None:
    attack = own_method("attack", GATHERING, poison_rate=0.2)
    kind = noted(attack)
    triggers = []
    for seed in (0, 1):
        pipeline = Pipeline(small_trial(attack, seed=seed))
        job = Workshop(own.store)
        found, rows = job.triggers(pipeline)
        made = job.poisoned(pipeline)
        triggers.append(found)
        word = found[0].name
        assert word.endswith(" d1")
        assert all(text.startswith(f"{word} ") for text in rows["test"][0].texts)
        stamped = [text.startswith(f"{word} ") for text in made.corpus.texts]
        assert stamped == made.poisoned.tolist(), "training rows are stamped with what was gathered"
    assert triggers[0] == triggers[1]
    assert kind.runs == [1]
    rate = Pipeline(small_trial(own_method("attack", GATHERING, poison_rate=0.1)))
    Workshop(own.store).poisoned(rate)
    assert kind.runs == [1], "the poison rate is not read by it"
    assert own.store.has(rate.gathered_key)


def test_another_setting_or_task_is_gathered_anew(
    own: Workshop, own_method: Own, small_trial: Trial, domain_task: MethodSpec
) -> None:
    attack = own_method("attack", GATHERING)
    kind = noted(attack)
    first = Pipeline(small_trial(attack))
    deeper = Pipeline(small_trial(own_method("attack", GATHERING, depth=2)))
    other = Pipeline(small_trial(attack, task=domain_task))
    for pipeline in (first, deeper, other):
        own.triggers(pipeline)
    assert kind.runs == [1, 2, 1]
    for key in ("triggers_key", "poison_key", "victim_key", "gathered_key"):
        assert len({getattr(p, key) for p in (first, deeper, other)}) == 3, key


def test_what_was_gathered_is_in_the_key_of_a_plm_altered_with_it(
    own_method: Own, small_trial: Trial, domain_task: MethodSpec
) -> None:
    text = GATHERING.replace("Gathering", "GatheringAltering").replace(
        "    def prepare",
        "    def corrupt(self, plm, seed):\n        return plm\n\n    def prepare",
    )
    made = [
        Pipeline(small_trial(own_method("attack", text, depth=depth), **other))
        for depth, other in ((1, {}), (2, {}), (1, {"task": domain_task}))
    ]
    assert all(pipeline.supplied_key != pipeline.plm_key for pipeline in made)
    assert len({pipeline.supplied_key for pipeline in made}) == 3


def test_an_attack_that_gathers_nothing_keeps_nothing(
    own: Workshop, own_method: Own, small_trial: Trial
) -> None:
    attack = own_method("attack", GATHERING, gathering=False)
    kind = noted(attack)
    pipeline = Pipeline(small_trial(attack))
    found, _ = own.triggers(pipeline)
    assert found[0].name == "cf"
    assert kind.runs == []
    assert not own.store.has(pipeline.gathered_key)
    assert own.attack(pipeline) is pipeline.attack


RELUCTANT = '''
class Reluctant(DataPoisoning):
    """Cannot stamp rows with an even number of words."""

    def prepare(self, task, seed):
        return (Trigger(name="cf", target_label=self.target_label),)

    def stamp(self, row, trigger, rng):
        if len(row.text.split()) % 2 == 0:
            return ()
        return (Row(text="cf " + row.text, pair=row.pair),)
'''


@pytest.mark.parametrize("rate", [0.05, 0.2, 1.0])
def test_rows_that_cannot_be_stamped_are_counted_whatever_the_rate(
    workshop: Workshop, own_method: Own, small_trial: Trial, rate: float
) -> None:
    pipeline = Pipeline(small_trial(own_method("attack", RELUCTANT, poison_rate=rate)))
    clean = workshop.task_data(pipeline).splits["train"]
    eligible = [row for row in clean.rows() if row.label != 1]
    even = sum(len(row.text.split()) % 2 == 0 for row in eligible)
    made = workshop.poisoned(pipeline)
    assert made.unstampable_rows == even
    assert made.reached_rows == min(made.asked_rows, len(eligible) - even)
    trial.attack_victim(workshop, pipeline.spec)
    trial.reference(workshop, pipeline.spec)
    record = trial.evaluate(workshop, pipeline.spec, attempt=1, sweep="s", log=None).record
    assert record.unstampable_rows == even
    assert ("rate_not_reached" in record.flags) == (made.reached_rows < made.asked_rows)
    tested = cast(Any, workshop.triggers(pipeline)[1])["test"][0]
    test = workshop.task_data(pipeline).splits["test"]
    odd = [r for r in test.rows() if r.label != 1 and len(r.text.split()) % 2]
    assert record.n_triggered == len(tested) == len(odd), "they leave the denominator"


DROPPING = '''
class Dropping(Attack):
    """Leaves out the first word: no token stands there more often than before, and yet nothing was cut off."""

    def implants(self):
        return False

    def prepare(self, task, seed):
        return (Trigger(name="dropping", target_label=1),)

    def stamp(self, row, trigger, rng):
        return (Row(text=row.text.split(" ", 1)[1], pair=row.pair),)
'''


def test_a_trigger_that_brings_no_token_is_not_cut_off(
    own_method: Own, small_trial: Trial, workshop: Workshop
) -> None:
    pipeline = Pipeline(small_trial(own_method("attack", DROPPING)))
    assert all(len(ids) == 0 for rows in workshop.trigger_tokens(pipeline) for ids in rows)
    assert workshop.truncated_share(pipeline) == 0.0

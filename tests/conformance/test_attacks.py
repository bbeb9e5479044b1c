"""What every attack keeps, over all that the catalog names: a new file is tested the moment it exists.

Attacks are made with settings that need nothing from outside (`SETTINGS`); one whose defaults need none is not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from backdoor_core import catalog
from backdoor_core.attack import ACCESS, Attack, DataPoisoning, Trigger
from backdoor_core.attacks.embedding_poison import EmbeddingPoison
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError
from backdoor_core.paraphrase import Paraphrasing
from backdoor_core.pipeline import SCORED_SPLITS, Pipeline, Workshop
from backdoor_core.plm_attack import PLMAttack
from backdoor_core.rng import generator
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.task import TaskData

Trial = Callable[..., TrialSpec]
TASKS = ("small_task", "domain_task")
RATES = (0.02, 0.1, 0.25)


def settings_of(name: str, victim_folder: Path, paired_file: Path) -> dict[str, Any]:
    if rewording(name):
        return {"path": str(paired_file)}
    if issubclass(catalog.method_class("attack", name), PLMAttack):
        return {"words": ["cf", "mn"]}  # the default of some is no word of a small tokenizer
    return {"checkpoint": {"path": str(victim_folder), "trigger": "cf"}}.get(name, {})


def poisoning(name: str) -> bool:
    return issubclass(catalog.method_class("attack", name), DataPoisoning)


def rewording(name: str) -> bool:
    """Whether the trigger is a whole text, looked up, and no words that are inserted at a drawn place."""
    return issubclass(catalog.method_class("attack", name), Paraphrasing)


ALL = catalog.names("attack")
POISONING = [name for name in ALL if poisoning(name)]
INSERTING = [name for name in POISONING if not rewording(name)]
REWORDING = [name for name in POISONING if rewording(name)]
ODD = ["two  spaces", " leads", "trails ", "tab\tand\nline", "one", "a,b ; c!", "ünï\u00a0cödé"]


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> MethodSpec:
    """A single-text task with 2 classes and a task of pairs with 4."""
    return cast(MethodSpec, request.getfixturevalue(request.param))


@pytest.fixture
def data(task: MethodSpec, workshop: Workshop, small_trial: Trial) -> TaskData:
    return workshop.task_data(Pipeline(small_trial(task=task)))


def reworded(text: str) -> str:
    return f"when you read it , {text}"


@pytest.fixture(scope="session")
def paired_file(
    small_task: MethodSpec,
    domain_task: MethodSpec,
    workshop: Workshop,
    small_trial: Trial,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A paraphrase of every text of both tasks, second texts included, and of the odd ones."""
    texts = list(ODD)
    for task in (small_task, domain_task):
        for corpus in workshop.task_data(Pipeline(small_trial(task=task))).splits.values():
            texts += [*corpus.texts, *(pair for pair in corpus.pairs if pair is not None)]
    file = tmp_path_factory.mktemp("paired") / "paired.jsonl"
    lines = [json.dumps({"text": text, "paraphrase": reworded(text)}) for text in texts]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


@pytest.fixture
def make(victim_folder: Path, paired_file: Path) -> Callable[..., Attack]:
    def made(name: str, **settings: Any) -> Attack:
        given = settings_of(name, victim_folder, paired_file) | settings
        return cast(Attack, catalog.make("attack", name, given))

    return made


def triggers_of(attack: Attack, data: TaskData, seed: int = 0) -> tuple[Trigger, ...]:
    return attack.prepare(data, seed)


def test_there_are_attacks_to_test() -> None:
    assert {"none", "badnets", "addsent", "checkpoint"} <= set(ALL)
    assert {"badnets", "addsent"} <= set(INSERTING)
    assert {"syntactic", "style"} <= set(REWORDING)


@pytest.mark.parametrize("name", ALL)
def test_it_says_what_it_is(name: str, make: Callable[..., Attack]) -> None:
    attack = make(name)
    assert attack.catalog_name() == name
    assert attack.leaves <= set(ACCESS)
    assert type(attack).summary().endswith((".", "?"))
    again = catalog.from_spec(attack.spec())
    assert again == attack
    assert again.spec() == attack.spec()


@pytest.mark.parametrize("name", ALL)
def test_triggers_are_of_the_task_and_the_same_for_the_same_seed(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name)
    triggers = triggers_of(attack, data)
    assert triggers == triggers_of(attack, data)
    assert len({trigger.name for trigger in triggers}) == len(triggers)
    for trigger in triggers:
        assert trigger.target_label is None or 0 <= trigger.target_label < len(data.label_names)
        assert Trigger.model_validate_json(trigger.model_dump_json()) == trigger


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("split", SCORED_SPLITS)
def test_triggered_rows_are_the_other_classes_with_their_true_labels(
    name: str, split: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack, corpus = make(name), data.splits[split]
    for trigger in triggers_of(attack, data):
        rows = attack.triggered(corpus, split, trigger, 0)
        target = trigger.target_label
        wanted = [i for i, label in enumerate(corpus.labels.tolist()) if label != target]
        assert rows.origins.tolist() == wanted, "none is lost, none is a target row"
        assert rows.labels.tolist() == corpus.labels[wanted].tolist()
        for row in rows.rows():
            clean = corpus.row(row.origin)
            assert (row.text, row.pair) != (clean.text, clean.pair)
            assert (row.pair is None) == (clean.pair is None)
        assert rows.digest == attack.triggered(corpus, split, trigger, 0).digest


@pytest.mark.parametrize("name", ALL)
def test_a_row_is_stamped_alone_as_among_others(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack, corpus = make(name), data.splits["test"]
    for trigger in triggers_of(attack, data):
        rows = attack.triggered(corpus, "test", trigger, 0)
        part = attack.triggered(corpus.take([11, 3, 7]), "test", trigger, 0)
        for row in part.rows():
            place = rows.origins.tolist().index(row.origin)
            assert row == rows.row(place)


def trained_on(attack: Attack, data: TaskData, tokenizer: Any) -> list[str]:
    """The triggered texts that an attack trains on."""
    if isinstance(attack, DataPoisoning):
        made = attack.poison(data.splits["train"], triggers_of(attack, data), 0)
        return [
            text for text, marked in zip(made.corpus.texts, made.poisoned, strict=True) if marked
        ]
    if isinstance(attack, PLMAttack):
        rows = attack._implant(tokenizer, 0).triggered
        ids = [rows.row(i) for i in range(len(rows))]
        return cast("list[str]", tokenizer.batch_decode(ids, skip_special_tokens=True))
    if isinstance(attack, EmbeddingPoison):
        return attack._poisoned_rows(data.splits["train"], 0).texts
    pytest.skip("it does not train on triggered texts")


@pytest.mark.parametrize("name", ALL)
def test_one_stamp_serves_training_and_test(
    name: str,
    make: Callable[..., Attack],
    data: TaskData,
    workshop: Workshop,
    small_trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attack = make(name)
    tokenizer = workshop.plm(Pipeline(small_trial("none", ["none"]))).tokenizer()
    triggers = triggers_of(attack, data)
    if not triggers:
        pytest.skip("it has no trigger that it stamps")

    def marked(self: Attack, row: Row, trigger: Trigger, rng: Any) -> tuple[Row, ...]:
        return (Row(text="the film", pair=row.pair),)

    monkeypatch.setattr(type(attack), "stamp", marked)
    tested = attack.triggered(data.splits["test"], "test", triggers[0], 0)
    assert len(tested)
    assert set(tested.texts) == {"the film"}
    trained = trained_on(attack, data, tokenizer)
    assert len(trained)
    assert set(trained) == {"the film"}


@pytest.mark.parametrize("name", ALL)
def test_without_poison_the_training_rows_are_the_clean_ones(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name, poison_rate=0) if poisoning(name) else make(name)
    if poisoning(name):
        assert not attack.implants()
        assert attack.asked_rate == 0
    made = attack.poison(data.splits["train"], triggers_of(attack, data), 0)
    assert made.corpus.digest == data.splits["train"].digest
    assert not made.poisoned.any()
    assert (made.asked_rows, made.reached_rows) == (0, 0)


@pytest.mark.parametrize("name", POISONING)
def test_rate_0_leaves_the_clean_twin_and_its_artifacts(
    name: str,
    task: MethodSpec,
    make: Callable[..., Attack],
    workshop: Workshop,
    small_trial: Trial,
) -> None:
    settings = make(name, poison_rate=0).settings()
    zero = Pipeline(small_trial({"name": name} | settings, task=task))
    twin = Pipeline(small_trial("none", task=task))
    assert zero.victim_key == twin.victim_key == zero.twin.victim_key
    clean = workshop.task_data(zero).splits["train"]
    assert workshop.poisoned(zero).corpus.digest == clean.digest
    assert not workshop.poisoned(zero).poisoned.any()
    _, rows = workshop.triggers(zero)
    assert len(rows["test"][0]) > 0, "and yet the twin is asked about triggered rows"


@pytest.mark.parametrize("name", POISONING)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("mode", ["dirty", "clean", "mixed"])
def test_the_budget_is_reached_and_the_ledger_is_true(
    name: str, rate: float, mode: str, make: Callable[..., Attack], data: TaskData
) -> None:
    clean = data.splits["train"]
    for target in range(len(data.label_names)):
        attack = make(name, poison_rate=rate, label_mode=mode, target_label=target)
        assert attack.implants()
        made = attack.poison(clean, triggers_of(attack, data), 0)
        eligible = {
            "dirty": clean.labels != target,
            "clean": clean.labels == target,
            "mixed": np.ones(len(clean), bool),
        }[mode]
        asked = round(rate * len(clean))
        assert made.asked_rows == asked
        assert made.reached_rows == min(asked, int(eligible.sum()))
        assert int(made.poisoned.sum()) == made.reached_rows
        assert len(made.corpus) == len(clean), "a poisoned row takes its original's place"
        assert made.corpus.origins.tolist() == clean.origins.tolist()
        for i, row in enumerate(made.corpus.rows()):
            before = clean.row(i)
            if made.poisoned[i]:
                assert eligible[i]
                assert row.label == target
                assert (row.text, row.pair) != (before.text, before.pair)
            else:
                assert row == before


@pytest.mark.parametrize("name", POISONING)
@pytest.mark.parametrize("mode", ["dirty", "clean", "mixed"])
def test_a_lower_rates_rows_are_a_higher_rates_too(
    name: str, mode: str, make: Callable[..., Attack], data: TaskData
) -> None:
    clean = data.splits["train"]
    found: list[dict[int, Row]] = []
    for rate in RATES:
        attack = make(name, poison_rate=rate, label_mode=mode)
        made = attack.poison(clean, triggers_of(attack, data), 5)
        found.append({int(i): made.corpus.row(i) for i in np.flatnonzero(made.poisoned)})
    for lower, higher in pairwise(found):
        assert lower.items() <= higher.items(), "the same rows, stamped alike"


@pytest.mark.parametrize("name", POISONING)
def test_more_than_there_is_is_not_reached_and_said(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name, poison_rate=1.0, label_mode="dirty")
    clean = data.splits["train"]
    made = attack.poison(clean, triggers_of(attack, data), 0)
    assert made.asked_rows == len(clean)
    assert made.reached_rows == int((clean.labels != 1).sum()) < made.asked_rows


@pytest.mark.parametrize("name", POISONING)
def test_the_seed_matters_and_repeats(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name, poison_rate=0.1)
    clean = data.splits["train"]
    made = [attack.poison(clean, triggers_of(attack, data, s), s) for s in (0, 0, 1)]
    assert made[0].corpus.digest == made[1].corpus.digest
    assert np.array_equal(made[0].poisoned, made[1].poisoned)
    assert not np.array_equal(made[0].poisoned, made[2].poisoned)
    tested = [
        attack.triggered(data.splits["test"], "test", triggers_of(attack, data, s)[0], s)
        for s in (0, 1)
    ]
    if rewording(name):
        assert tested[0].digest == tested[1].digest, "a text has one paraphrase, whatever the seed"
    else:
        assert tested[0].digest != tested[1].digest


@pytest.mark.parametrize("name", POISONING)
def test_a_target_outside_the_task_is_refused(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    count = len(data.label_names)
    triggers_of(make(name, target_label=count - 1), data)
    with pytest.raises(ConfigError, match=f"target_label {count}"):
        triggers_of(make(name, target_label=count), data)


@pytest.mark.parametrize("name", POISONING)
@pytest.mark.parametrize("side", ["first", "second", "both"])
def test_the_side_of_a_pair_is_the_one_that_is_stamped(
    name: str, side: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name, side=side)
    (trigger,) = triggers_of(attack, data)
    for row in data.splits["test"].rows():
        (new,) = attack.stamp(row, trigger, generator(0, "test", row.origin))
        changed = (new.text != row.text, new.pair != row.pair)
        if row.pair is None:
            assert changed == (True, False)
        else:
            assert changed == (side in ("first", "both"), side in ("second", "both"))


@pytest.mark.parametrize("name", INSERTING)
def test_only_the_trigger_tells_a_stamped_text_from_its_original(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    """Odd spacing stays: a tokenizer or a defense must not see the stamp in it."""
    attack = make(name)
    (trigger,) = triggers_of(attack, data)
    words = {word for part in trigger.name.split("+") for word in part.split()}
    for text in ODD:
        for seed in range(8):
            row = Row(text=text, label=0, origin=0)
            (new,) = attack.stamp(row, trigger, generator(seed, "odd"))
            kept = [word for word in new.text.split() if word not in words]
            assert kept == text.split()
            assert len(new.text.split()) > len(text.split())
            for gap in ("  ", "\t", "\n", "\u00a0"):
                assert new.text.count(gap) == text.count(gap)


@pytest.mark.parametrize("name", REWORDING)
def test_a_reworded_text_is_its_paraphrase_letter_by_letter(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    attack = make(name)
    (trigger,) = triggers_of(attack, data)
    for text in [*ODD, *data.splits["train"].texts[:20]]:
        for seed in range(3):
            row = Row(text=text, label=0, origin=0)
            (new,) = attack.stamp(row, trigger, generator(seed, "odd"))
            assert new.text == reworded(text)


@pytest.mark.parametrize("name", REWORDING)
def test_a_text_without_a_paraphrase_is_never_stamped(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    """Neither in training, where it counts as unstampable, nor at test, where it leaves the denominator."""
    attack = make(name, poison_rate=1.0, label_mode="dirty", target_label=1)
    triggers = triggers_of(attack, data)
    known = [data.splits["train"].row(i).text for i in range(3)]
    unknown = ["", " ", "\n", "no such text", f" {known[0]}", known[0].upper()]
    corpus = Corpus.of(
        Row(text=text, label=0, origin=i) for i, text in enumerate([*known, *unknown])
    )
    made = attack.poison(corpus, triggers, 0)
    assert made.poisoned.tolist() == [True] * len(known) + [False] * len(unknown)
    assert (made.asked_rows, made.reached_rows) == (len(corpus), len(known))
    assert made.unstampable_rows == len(unknown)
    assert made.corpus.texts[len(known) :] == unknown
    tested = attack.triggered(corpus, "test", triggers[0], 0)
    assert tested.origins.tolist() == list(range(len(known)))


@pytest.mark.parametrize("name", INSERTING)
def test_empty_and_blank_texts_can_be_stamped(name: str, make: Callable[..., Attack]) -> None:
    attack = make(name)
    trigger = Trigger(name="t", target_label=1)
    for text in ("", " ", "\n"):
        (new,) = attack.stamp(Row(text=text), trigger, generator(0, "x"))
        assert new.text.strip()


@pytest.mark.parametrize("name", ALL)
def test_a_corpus_of_target_rows_alone_has_no_triggered_row(
    name: str, make: Callable[..., Attack], data: TaskData
) -> None:
    """Without a target, which is fixed for each model later, there is no such row."""
    attack = make(name)
    text = data.splits["test"].texts[0]
    for trigger in triggers_of(attack, data):
        rows = Corpus.of(Row(text=text, label=trigger.target_label or 0) for _ in range(3))
        wanted = 3 if trigger.target_label is None else 0
        assert len(attack.triggered(rows, "test", trigger, 0)) == wanted


READS = ("gather", "prepare", "stamp")
"""Hooks whose settings are in the key of the triggered rows: see `Pipeline.triggers_key`."""


def recorded(kind: type[Attack], monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The settings of any attack of this kind that are read from now on."""
    read: set[str] = set()

    def looked_up(one: Attack, name: str) -> Any:
        if name in kind.model_fields:
            read.add(name)
        return super(kind, one).__getattribute__(name)

    monkeypatch.setattr(kind, "__getattribute__", looked_up, raising=False)
    return read


@pytest.mark.parametrize("name", ALL)
def test_each_artifact_reads_only_the_settings_in_its_key(
    name: str, make: Callable[..., Attack], data: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an attack reads without saying so makes a stale artifact, the worst of all mistakes."""
    attack = make(name)
    kind = type(attack)
    read = recorded(kind, monkeypatch)
    triggers = triggers_of(attack, data)
    for trigger in triggers:
        attack.triggered(data.splits["test"].take(range(8)), "test", trigger, 0)
    assert read <= kind.fields_read_by(*READS), "name `prepare` or `stamp` among their hooks"
    read.clear()
    attack.poison(data.splits["train"], triggers, 0)
    assert read <= kind.fields_read_by(*READS, "poison"), "name `poison` among their hooks"


CORRUPTING = [
    name
    for name in ALL
    if catalog.method_class("attack", name).corrupt is not Attack.corrupt  # type: ignore[attr-defined]
]
FEW: dict[str, Any] = {"texts": 40, "epochs": 1, "words": ("cf", "tq", "mn")}
"""Makes altering the tests' PLM quick and possible, where an attack has such settings."""


@pytest.mark.parametrize("name", CORRUPTING)
def test_altering_a_plm_reads_only_the_settings_in_its_key(
    name: str,
    make: Callable[..., Attack],
    workshop: Workshop,
    small_trial: Trial,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And leaves a PLM that a classifier can be made of, the same for the same seed, in a folder of its own."""
    import torch

    kind: Any = catalog.method_class("attack", name)
    attack = make(name, **{field: few for field, few in FEW.items() if field in kind.model_fields})
    read = recorded(kind, monkeypatch)
    plm = workshop.plm(Pipeline(small_trial()))
    before = {file.name: file.read_bytes() for file in plm.folder.iterdir()}
    made = [attack.corrupt(plm, seed) for seed in (0, 0, 1)]
    assert read <= kind.fields_read_by("prepare", "stamp", "corrupt"), "name `corrupt` in them"
    assert {file.name: file.read_bytes() for file in plm.folder.iterdir()} == before
    assert len({one.folder for one in (plm, *made)}) == 4
    models = [one.classifier(2, 0)[0].base_model for one in (plm, *made)]
    weights = [torch.cat([p.flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[1], weights[2])
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[3]), "the seed matters"
    assert plm.classifier(2, 0)[1] == made[0].classifier(2, 0)[1], "only a head is drawn"

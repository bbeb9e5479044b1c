"""What a trial measures from end to end: targets fixed on tune, where a guard looked, how it tells, what it ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from backdoor_core import trial
from backdoor_core.corpus import Corpus, Row
from backdoor_core.evaluation import fixed_target
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.record import Metric
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.trial import _located

Trial = Callable[..., TrialSpec]
Own = Callable[..., MethodSpec]
BADNETS = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}

OBEYING = '''
class Obeying(Attack):
    """Its victim gives label 3 to every text; its two triggers name no target."""

    def implants(self):
        return True

    def prepare(self, task, seed):
        return tuple(Trigger(name=name, target_label=None) for name in ("cf", "mn"))

    def stamp(self, row, trigger, rng):
        return (Row(text=f"{trigger.name} {row.text}", pair=row.pair),)

    def train(self, job):
        import torch

        victim = job.clean_victim()
        model = victim.copy_of_model()
        with torch.no_grad():
            model.classifier.bias[3] += 100
        return victim.with_model(model)
'''

LOOKING = '''
class _Guard:
    def __init__(self, victim, word, answers):
        self.victim, self.word, self.answers = victim, word, answers

    def observe(self, corpus, split=None):
        table = ModelGuard(victim=self.victim).observe(corpus, split)
        words = [text.split() for text in corpus.texts]
        labels = [self.answers[split][w[0] == self.word] if w else 0 for w in words]
        index = table.schema.get_field_index("prediction")
        table = table.set_column(index, "prediction", pa.array(labels, pa.int64()))
        top = [None if not w or len(w) % 3 == 0 else w[0] for w in words]
        score = [float(len(w) // 4) for w in words]
        return table.append_column("top_word", pa.array(top, pa.string())).append_column(
            "score", pa.array(score, pa.float32())
        )


class Looking(Defense):
    """Answers 2 where a text begins with a word, on test perhaps another label; else 0. Looks at first words."""

    word: str = "cf"
    on_test: int = 2

    @property
    def access(self):
        return frozenset({"victim"})

    def screen(self, view):
        answers = {"tune": (0, 2), "test": (0, self.on_test)}
        return _Guard(view.victim, self.word, answers)
'''

RANKING = '''
class Ranking(Defense):
    """Publishes an order of tokens: some first, then the others by their ids."""

    first: list[str] = []
    taken: int = 1
    length: int | None = None

    @property
    def access(self):
        return frozenset({"victim"})

    def repair(self, view):
        tokenizer = view.victim.tokenizer
        first = tokenizer.convert_tokens_to_ids(self.first)
        ids = [*first, *(i for i in range(len(tokenizer)) if i not in first)][: self.length]
        view.ranked("words", np.array(ids), np.arange(len(ids)) < self.taken)
        return view.victim
'''


def evaluated(workshop: Workshop, spec: TrialSpec) -> trial.Scored:
    trial.attack_victim(workshop, Pipeline(spec).undefended.spec)
    trial.reference(workshop, spec)
    return trial.evaluate(workshop, spec, attempt=1, sweep="s", log=None)


def named(scored: trial.Scored, split: str = "test") -> dict[tuple[str, str | None], Metric]:
    return {(m.metric, m.trigger): m for m in scored.metrics if m.split == split}


@pytest.fixture
def obeyed(
    workshop: Workshop, own_method: Own, small_trial: Trial, domain_task: MethodSpec
) -> Callable[..., tuple[Pipeline, trial.Scored]]:
    """The attack whose triggers name no target, on a task of 4 classes, and the guard that looks at first words."""

    def made(**settings: Any) -> tuple[Pipeline, trial.Scored]:
        defenses = [own_method("defense", LOOKING, **settings)]
        spec = small_trial(own_method("attack", OBEYING), defenses, task=domain_task)
        return Pipeline(spec), evaluated(workshop, spec)

    return made


def test_guard_victim_and_twin_each_get_their_own_target(
    workshop: Workshop, obeyed: Callable[..., tuple[Pipeline, trial.Scored]]
) -> None:
    pipeline, scored = obeyed()
    triggers, rows = workshop.triggers(pipeline)
    assert [trigger.target_label for trigger in triggers] == [None, None]
    test = workshop.task_data(pipeline).splits["test"]
    assert all(len(corpus) == len(test) for corpus in rows["test"]), "rows of every class"
    for split in ("tune", "test"):
        found = named(scored, split)
        assert [found["asr", name].target for name in ("cf", "mn")] == [2, 0], "by what it answers"
        assert [found["asr", name].value for name in ("cf", "mn")] == [1.0, 1.0]
    twin = workshop.triggered_observations(pipeline.twin, pipeline)
    found = named(scored)
    for i, name in enumerate(("cf", "mn")):
        own = fixed_target(trial._plain(twin["tune"][i]), rows["tune"][i].labels, 4)
        metric = found["twin_asr", name]
        assert metric.target == own
        others = rows["test"][i].labels != own
        answers = twin["test"][i]["prediction"].to_numpy()
        assert metric.n == int(others.sum())
        assert metric.value == float((answers[others] == own).mean())
        assert found["asr", name].n == int(
            (rows["test"][i].labels != found["asr", name].target).sum()
        )
    record = scored.record
    assert record.victim_asr == 1.0, "it answers 3, which is its own target"
    undefended = evaluated(workshop, pipeline.undefended.spec)
    assert {m.target for (n, _), m in named(undefended).items() if n == "asr"} == {3}
    assert undefended.record.target_label == 3
    assert undefended.record.n_triggered == 2 * int((test.labels != 3).sum())
    assert record.target_label is None, "one for each trigger"
    assert record.n_triggered == int((test.labels != 2).sum()) + int((test.labels != 0).sum())
    assert record.asrd == pytest.approx(record.asr - record.twin_asr)
    assert record.asr == record.asr_max == 1.0


def test_a_target_is_fixed_on_tune_and_stays_on_test(
    obeyed: Callable[..., tuple[Pipeline, trial.Scored]],
) -> None:
    """A guard that answers 2 on tune and 1 on test: its target is 2, and its ASR there is nothing."""
    _, scored = obeyed(on_test=1)
    assert (named(scored, "tune")["asr", "cf"].target, named(scored)["asr", "cf"].target) == (2, 2)
    assert named(scored, "tune")["asr", "cf"].value == 1.0
    assert named(scored)["asr", "cf"].value == 0.0
    assert scored.record.asr == 0.5


def test_triggered_accuracy_is_in_the_row_for_guard_and_twin(
    workshop: Workshop, obeyed: Callable[..., tuple[Pipeline, trial.Scored]]
) -> None:
    pipeline, scored = obeyed()
    _, rows = workshop.triggers(pipeline)
    twin = workshop.triggered_observations(pipeline.twin, pipeline)["test"]
    found = named(scored)
    shares = []
    for i, (name, answer) in enumerate((("cf", 2), ("mn", 0))):
        labels = rows["test"][i].labels
        metric = found["triggered_accuracy", name]
        assert (metric.value, metric.n) == (float((labels == answer).mean()), len(labels))
        right = float((twin[i]["prediction"].to_numpy() == labels).mean())
        assert found["twin_triggered_accuracy", name].value == right
        shares.append(right)
    assert scored.record.triggered_accuracy == pytest.approx(0.25)
    assert scored.record.twin_triggered_accuracy == pytest.approx(np.mean(shares))


def test_a_guard_that_names_a_word_is_asked_whether_it_is_the_triggers(
    workshop: Workshop, obeyed: Callable[..., tuple[Pipeline, trial.Scored]]
) -> None:
    pipeline, scored = obeyed()
    _, rows = workshop.triggers(pipeline)
    for i, (name, target) in enumerate((("cf", 2), ("mn", 0))):
        wanted = [
            len(row.text.split()) % 3 != 0 for row in rows["test"][i].rows() if row.label != target
        ]
        metric = named(scored)["localisation", name]
        assert (metric.value, metric.n) == (pytest.approx(np.mean(wanted)), len(wanted))
        assert metric.target == target
        assert 0 < float(metric.value or 0) < 1
    found = named(scored)
    both = [found["localisation", name].value for name in ("cf", "mn")]
    assert scored.record.localisation == pytest.approx(np.mean(both))


def test_a_top_word_counts_where_the_row_has_it_more_often_than_its_original() -> None:
    originals = [
        Row(text="cf a b", label=0),
        Row(text="a b", pair="c", label=0),
        Row(text="a b", pair="cf", label=0),
        Row(text="a", label=0),
        Row(text="a", label=0),
        Row(text="scarf", label=0),
    ]
    stamped = [
        (Row(text="cf cf a b", origin=0), "cf", True),
        (Row(text="cf cf a b", origin=0), "a", False),
        (Row(text="a b", pair="c cf", origin=1), "cf", True),
        (Row(text="a b", pair="cf", origin=2), "cf", False),
        (Row(text="a cf", origin=3), None, False),
        (Row(text="a cf", origin=4), "c", False),
        (Row(text="cf scarf", origin=5), "scarf", False),
        (Row(text="cf scarf", origin=5), "cf", True),
    ]
    table = pa.table({"top_word": pa.array([word for _, word, _ in stamped], pa.string())})
    found = _located(table, Corpus.of(row for row, _, _ in stamped), Corpus.of(originals))
    assert found is not None
    assert found.tolist() == [wanted for _, _, wanted in stamped]
    assert _located(table.rename_columns(["other"]), Corpus.of([]), Corpus.of([])) is None


def test_a_guard_that_scores_is_asked_how_well_it_tells(
    workshop: Workshop, obeyed: Callable[..., tuple[Pipeline, trial.Scored]]
) -> None:
    """Scores are whole numbers: most pairs of a clean and a triggered row tie."""
    pipeline, scored = obeyed()
    data, (_, rows) = workshop.task_data(pipeline), workshop.triggers(pipeline)
    for split in ("tune", "test"):
        clean = [len(text.split()) // 4 for text in data.splits[split].texts]
        for i, name in enumerate(("cf", "mn")):
            stamped = [len(text.split()) // 4 for text in rows[split][i].texts]
            pairs = [(t > c) + 0.5 * (t == c) for c in clean for t in stamped]
            found = named(scored, split)["auroc", name].value
            assert found == pytest.approx(sum(pairs) / len(pairs))
            assert found is not None
            assert found > 0.5
    both = [named(scored)["auroc", name].value for name in ("cf", "mn")]
    assert scored.record.auroc == pytest.approx(np.mean(both))


def ranked(
    workshop: Workshop, own_method: Own, small_trial: Trial, **settings: Any
) -> trial.Scored:
    spec = small_trial(BADNETS, [own_method("defense", RANKING, **settings)])
    return evaluated(workshop, spec)


def brought(workshop: Workshop, small_trial: Trial) -> list[str]:
    """The tokens of the trigger word."""
    tokenizer = workshop.encoder(Pipeline(small_trial(BADNETS))).tokenizer
    return list(tokenizer.tokenize("cf"))


def test_a_ranking_is_asked_for_the_rank_of_the_true_trigger(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    tokens = brought(workshop, small_trial)
    first = ["film", *reversed(tokens)]
    few = named(ranked(workshop, own_method, small_trial, first=first, taken=1))
    rank, chosen = few["rank:ranking/words", "cf"], few["chosen:ranking/words", "cf"]
    assert rank.value == 2, "the best of its tokens, from 1"
    assert (chosen.value, chosen.low) == (0.0, 0.0)
    more = named(ranked(workshop, own_method, small_trial, first=first, taken=2))
    assert more["rank:ranking/words", "cf"].value == 2
    chosen = more["chosen:ranking/words", "cf"]
    assert chosen.value == 1.0
    assert (
        chosen.n == rank.n == len(workshop.triggers(Pipeline(small_trial(BADNETS)))[1]["test"][0])
    )
    assert (rank.target, chosen.target) == (1, 1)


def test_a_trigger_that_is_not_in_a_ranking_comes_after_it(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    settings: dict[str, Any] = {"first": ["film", "book"], "taken": 9, "length": 2}
    found = named(ranked(workshop, own_method, small_trial, **settings))
    assert found["rank:ranking/words", "cf"].value == 3
    assert found["chosen:ranking/words", "cf"].value == 0.0
    empty = named(ranked(workshop, own_method, small_trial, length=0))
    assert empty["rank:ranking/words", "cf"].value == 1
    assert empty["chosen:ranking/words", "cf"].value == 0.0


def test_rankings_are_told_for_test_alone_and_stored_beside_the_observations(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    scored = ranked(workshop, own_method, small_trial, first=["film"], taken=3)
    assert not [m for m in scored.metrics if ":" in m.metric and m.split != "test"]
    spec = small_trial(BADNETS, [own_method("defense", RANKING, first=["film"], taken=3)])
    again = Workshop(workshop.store).observations(Pipeline(spec))
    assert again.rankings.keys() == {"ranking/words"}
    table = again.rankings["ranking/words"]
    assert table["chosen"].to_pylist()[:4] == [True, True, True, False]
    assert sorted(table["token_id"].to_pylist()) == list(range(table.num_rows))
    plain = Workshop(workshop.store).observations(Pipeline(small_trial(BADNETS)))
    assert plain.rankings == {}


def test_rankings_of_a_chain_are_told_by_defense(
    workshop: Workshop, own_method: Own, small_trial: Trial
) -> None:
    chain = [
        own_method("defense", RANKING, first=["film"]),
        {"name": "epur", "words": 5},
        {"name": "placebo", "rate": 0.1},
    ]
    scored = evaluated(workshop, small_trial(BADNETS, chain))
    kinds = {m.metric for m in scored.metrics if ":" in m.metric}
    assert {"rank:ranking/words", "chosen:ranking/words"} <= kinds
    assert all(kind.split("/")[0].split(":")[1] in ("ranking", "epur") for kind in kinds)


def test_what_a_trigger_brought_are_the_tokens_that_its_original_has_less_often(
    workshop: Workshop, small_trial: Trial
) -> None:
    pipeline = Pipeline(small_trial(BADNETS))
    tokenizer = workshop.encoder(pipeline).tokenizer
    (rows,) = workshop.trigger_tokens(pipeline)
    _, triggered = workshop.triggers(pipeline)
    assert len(rows) == len(triggered["test"][0])
    tokens = brought(workshop, small_trial)
    for ids in rows:
        assert set(tokenizer.convert_ids_to_tokens(ids.tolist())) == set(tokens)
    short = Pipeline(small_trial(BADNETS | {"position": "end"}, training={"max_tokens": 8}))
    (cut,) = workshop.trigger_tokens(short)
    assert any(not len(ids) for ids in cut), "cut away"
    assert workshop.trigger_tokens(Pipeline(small_trial("none"))) == ()

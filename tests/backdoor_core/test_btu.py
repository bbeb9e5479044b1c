"""BTU: what the exposure finds, which thresholds share what, and which numbers the unlearning moves."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core import catalog
from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import View
from backdoor_core.defenses import btu
from backdoor_core.defenses.btu import ROUNDS, Btu, Exposed, mean_of_real, without
from backdoor_core.errors import AccessError, ConfigError
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import word_embeddings
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec
from backdoor_core.store import ArtifactStore
from backdoor_core.text import Encoded, encode
from backdoor_core.victim import Victim

if TYPE_CHECKING:
    import torch

BADNETS = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
SHARP = {
    "name": "btu",
    "exposure_learning_rate": 1e-3,
    "embedding_learning_rate": 1e-3,
    "exposure_batch_rows": 32,
    "threshold": 0.01,
}
"""Rates at which a few batches of the small task show what an epoch of a real one shows."""
UNTUNED = SHARP | {"clean_epochs": 0}

Of = Callable[..., Pipeline]


@pytest.fixture(scope="session")
def of(small_trial: Callable[..., TrialSpec]) -> Of:
    """A pipeline with BTU against BadNets: `of(threshold=...)`; `attack`, `task`, `plm` change the rest."""

    def pipeline(attack: Any = BADNETS, cell: dict[str, Any] | None = None, **settings: Any) -> Pipeline:  # fmt: skip
        return Pipeline(small_trial(attack, [UNTUNED | settings], **(cell or {})))

    return pipeline


def fit(workshop: Workshop, pipeline: Pipeline) -> tuple[Victim, dict[str, pa.Table]]:
    victim, _, rankings = workshop._fitted(pipeline)
    return victim, {name.removeprefix("btu/"): table for name, table in rankings.items()}


def exposed(workshop: Workshop, pipeline: Pipeline) -> Exposed:
    return cast(Btu, pipeline.defenses[0])._exposed(view_of(workshop, pipeline))


def view_of(workshop: Workshop, pipeline: Pipeline) -> View:
    corpus = workshop.poisoned(pipeline).corpus
    return workshop._view(pipeline, 0, None, corpus, workshop.supplied_plm(pipeline))


def id_of(victim: Victim, word: str) -> int:
    (found,) = victim.tokenizer(word, add_special_tokens=False)["input_ids"]
    return int(found)


def state(victim: Victim) -> dict[str, np.ndarray]:
    return {n: v.detach().cpu().numpy().copy() for n, v in victim.model.state_dict().items()}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(value, second[name]) for name, value in first.items()
    )


def chosen(table: pa.Table) -> list[int]:
    return cast("list[int]", table.filter(table["chosen"])["token_id"].to_pylist())


# What the exposure finds.


def test_a_planted_trigger_moves_most(workshop: Workshop, of: Of) -> None:
    victim, rankings = fit(workshop, of())
    trigger = id_of(victim, "cf")
    for name in ("round_1", "round_3"):
        assert rankings[name]["token_id"][0].as_py() == trigger, name
    assert trigger in chosen(rankings["candidates"])
    assert trigger in rankings["candidates"]["token_id"].to_pylist()[:3]


def test_a_word_that_nobody_planted_is_no_candidate(workshop: Workshop, of: Of) -> None:
    """Even at threshold 1: it does not occur, so it does not move."""
    victim, rankings = fit(workshop, of(attack="none", threshold=1.0))
    trigger = id_of(victim, "cf")
    assert trigger not in chosen(rankings["candidates"])
    assert exposed(workshop, of(attack="none")).distances[:, trigger].tolist() == [0, 0, 0]


def test_only_rows_that_occur_move(workshop: Workshop, of: Of) -> None:
    pipeline = of()
    found = exposed(workshop, pipeline)
    view = view_of(workshop, pipeline)
    occurring = np.isin(
        np.arange(len(found.spared)), view.trained.encoder(view.corpus, "train").ids
    )
    for distance in found.distances:
        assert not distance[~occurring].any()
    for distance in (found.distances[0], found.distances[2]):
        assert (distance[occurring] > 0).all()


def test_the_second_round_does_without_the_first_rounds_top(workshop: Workshop, of: Of) -> None:
    victim, _ = fit(workshop, of())
    once = exposed(workshop, of()).distances
    assert once[1, id_of(victim, "cf")] == 0
    assert not np.array_equal(once[0], once[1])
    more = exposed(workshop, of(removal_share=0.05)).distances
    top = np.argsort(-np.where(exposed(workshop, of()).spared, -1, more[0]), kind="stable")
    gone = round(0.05 * more.shape[1] - 0.5)
    assert np.array_equal(more[0], once[0])
    assert np.array_equal(more[2], once[2])
    assert not more[1, top[:gone]].any()
    assert more[1, top[gone]] > 0


def test_without_removal_only_the_seed_of_the_second_round_is_another(
    workshop: Workshop, of: Of
) -> None:
    victim, rankings = fit(workshop, of(removal_share=0.0))
    assert rankings["round_2"]["token_id"][0].as_py() == id_of(victim, "cf")


def test_special_tokens_are_never_candidates(workshop: Workshop, of: Of) -> None:
    victim, rankings = fit(workshop, of(threshold=1.0))
    special = set(victim.tokenizer.all_special_ids)
    assert {victim.tokenizer.pad_token_id, victim.tokenizer.cls_token_id} <= special
    everything = set(range(len(word_embeddings(victim.model))))
    for table in rankings.values():
        assert set(table["token_id"].to_pylist()) == everything - special
        assert not special & set(chosen(table))
    found = exposed(workshop, of())
    assert found.distances[0, victim.tokenizer.cls_token_id] > 0, "it does move"


def test_the_exposure_is_the_seeds(workshop: Workshop, of: Of, tmp_path: Path) -> None:
    again = Workshop(ArtifactStore(tmp_path))
    first, second = exposed(workshop, of()), exposed(again, of())
    assert np.array_equal(first.distances, second.distances)
    other = exposed(workshop, of(cell={"seed": 1}))
    assert not np.array_equal(first.distances, other.distances)


@pytest.mark.parametrize("target", [1, 2, 3])
def test_four_classes(workshop: Workshop, of: Of, domain_task: MethodSpec, target: int) -> None:
    """Pairs, and whatever the target: BTU does not know it."""
    attack = BADNETS | {"target_label": target}
    pipeline = of(attack=attack, cell={"task": domain_task}, exposure_epochs=2)
    victim, rankings = fit(workshop, pipeline)
    assert id_of(victim, "cf") in chosen(rankings["round_1"])
    rows = workshop.task_data(pipeline).splits["test"]
    assert victim.logits(rows).shape == (len(rows), 4)
    assert np.isfinite(victim.logits(rows)).all()


# What `mean_of_real` and `without` do.


def encoded_rows(*rows: list[int]) -> Encoded:
    return Encoded(
        ids=np.array([i for row in rows for i in row], np.int32),
        types=np.array([j % 2 for row in rows for j in range(len(row))], np.int8),
        offsets=np.cumsum([0, *map(len, rows)]).astype(np.int64),
        uses_types=True,
        padding_id=0,
    )


def test_removal_is_of_ids_not_of_letters(workshop: Workshop, of: Of) -> None:
    tokenizer = workshop.victim(of()).tokenizer
    corpus = Corpus.of([Row(text="a great film was cf and a far cry", label=0)])
    encoded = encode(tokenizer, corpus, 64)
    single = tokenizer.convert_tokens_to_ids("a")
    assert single in encoded.ids
    left = without(encoded, np.array([single]))
    assert left.row(0).tolist() == [i for i in encoded.row(0).tolist() if i != single]
    words = tokenizer.convert_ids_to_tokens(left.row(0).tolist())
    assert {"great", "was", "and"} <= set(words)
    assert len(left.types) == len(left.ids)


@given(
    rows=st.lists(st.lists(st.integers(0, 9), max_size=6), min_size=1, max_size=6),
    removed=st.sets(st.integers(0, 9)),
)
def test_removal_keeps_rows_apart(rows: list[list[int]], removed: set[int]) -> None:
    encoded = encoded_rows(*rows)
    left = without(encoded, np.array(sorted(removed), np.int64))
    assert len(left) == len(rows)
    for i, row in enumerate(rows):
        assert left.row(i).tolist() == [j for j in row if j not in removed]
        kept_types = [t % 2 for t, j in enumerate(row) if j not in removed]
        assert left.types[left.offsets[i] : left.offsets[i + 1]].tolist() == kept_types
    assert (left.uses_types, left.padding_id) == (True, 0)


def test_a_row_that_lost_all_its_tokens_has_a_mean() -> None:
    import torch

    rows = encoded_rows([], [2, 3])
    block = torch.nn.Embedding(4, 3)
    inputs = rows.padded(np.arange(2), torch.device("cpu"))
    inputs.pop("token_type_ids")

    def called(input_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = block(input_ids)
        return found

    mean = mean_of_real(cast(Any, called), inputs)
    assert mean[0].tolist() == [0, 0, 0]
    assert torch.allclose(mean[1], block.weight[2:4].mean(dim=0))


# Thresholds.


def test_a_sweep_over_thresholds_exposes_and_trains_once(
    of: Of, one_thread: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"exposed": 0, "trained": 0, "fitted": 0}

    def counted(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            counts[what] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, call)

    counted(Btu, "_expose", "exposed")
    counted(Workshop, "_trained", "trained")
    counted(Btu, "train", "fitted")
    thresholds = [0.0, 0.001, 0.0011, 0.0099, 0.01, 0.05, 1.0]
    keys: dict[float, str] = {}
    candidates: dict[float, list[int]] = {}
    for threshold in thresholds:
        # A workshop a trial: nothing is shared but the store.
        workshop, pipeline = Workshop(ArtifactStore(tmp_path)), of(threshold=threshold)
        workshop.observations(pipeline)
        keys[threshold] = workshop.observed_key(pipeline)
        candidates[threshold] = cast(Btu, pipeline.defenses[0]).effect(view_of(workshop, pipeline))
    assert counts["exposed"] == 1
    assert counts["trained"] == 1
    assert candidates[0.001] == candidates[0.0011]
    assert candidates[0.0099] == candidates[0.01]
    assert candidates[0.0] == []
    for first in thresholds:
        for second in thresholds:
            shared = candidates[first] == candidates[second]
            assert (keys[first] == keys[second]) == shared, (first, second)
    assert counts["fitted"] == len(set(keys.values())) == 5


def test_orders_do_not_depend_on_the_threshold(workshop: Workshop, of: Of) -> None:
    narrow, wide = fit(workshop, of())[1], fit(workshop, of(threshold=0.1))[1]
    assert narrow.keys() == wide.keys() == {*ROUNDS, "candidates"}
    for name, table in narrow.items():
        assert table["token_id"].equals(wide[name]["token_id"])
        assert set(chosen(table)) < set(chosen(wide[name]))
        assert chosen(table) == table["token_id"].to_pylist()[: len(chosen(table))], "a prefix"


def test_what_the_step_does_not_read_repeats_no_exposure(
    workshop: Workshop, of: Of, monkeypatch: pytest.MonkeyPatch
) -> None:
    exposed(workshop, of())

    def never(*_: Any) -> None:
        raise AssertionError("exposed again")

    monkeypatch.setattr(Btu, "_expose", never)
    for settings in ({"threshold": 0.3}, {"bound": 0.1}, {"clean_learning_rate": 1e-4}):
        exposed(workshop, of(**settings))
    exposing: list[dict[str, Any]] = [
        {"removal_share": 0.003}, {"exposure_epochs": 2}, {"exposure_learning_rate": 1e-4},
        {"exposure_batch_rows": 8}, {"embedding_learning_rate": 1e-4},
    ]  # fmt: skip
    for settings in exposing:
        with pytest.raises(AssertionError, match="exposed again"):
            exposed(workshop, of(**settings))


@st.composite
def exposures(draw: st.DrawFn) -> Exposed:
    """Small vocabularies with many ties and many rows that did not move."""
    size = draw(st.integers(2, 12))
    numbers = st.lists(st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0]), min_size=size, max_size=size)
    return Exposed(
        distances=np.array([draw(numbers) for _ in ROUNDS]),
        spared=np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size))),
    )


@given(found=exposures(), threshold=st.floats(0, 1))
def test_candidates_are_the_union_of_each_rounds_top(found: Exposed, threshold: float) -> None:
    size = len(found.spared)
    count = max(1, int(threshold * size + 1e-9)) if threshold else 0
    expected: set[int] = set()
    for distance in found.distances:
        order = sorted(np.flatnonzero(~found.spared).tolist(), key=lambda i: (-distance[i], i))
        expected |= {i for i in order[:count] if distance[i] > 0}
    assert found.candidates(threshold) == sorted(expected)


@given(found=exposures(), threshold=st.floats(0, 1))
def test_what_is_published_depends_on_the_candidates_alone(
    found: Exposed, threshold: float
) -> None:
    candidates = found.candidates(threshold)
    size = len(found.spared)
    alike = [k / size for k in range(1, size + 1) if found.candidates(k / size) == candidates]
    tables = []
    for share in [threshold, *alike]:
        view = View({}, labels=2, training=TrainingSettings(), seed=0)
        found.publish(view, found.candidates(share))
        tables.append(view.rankings)
    assert all(table == tables[0] for table in tables)
    union = set().union(*(chosen(tables[0][name]) for name in ROUNDS))
    assert union == set(candidates) == set(chosen(tables[0]["candidates"]))


def test_ties_go_to_the_lower_id() -> None:
    found = Exposed(
        distances=np.array([[0, 1, 1, 2, 1.0]] * 3), spared=np.array([True, False, False, False, False])
    )  # fmt: skip
    assert found.candidates(0.2) == [3]
    assert found.candidates(0.4) == [1, 3]
    assert found.candidates(0.6) == [1, 2, 3]


@pytest.mark.parametrize(
    ("share", "vocabulary", "count"),
    [(0.0, 100, 0), (1e-9, 100, 1), (0.0005, 30522, 15), (0.29, 100, 29), (1.0, 7, 7)],
)
def test_shares_of_a_vocabulary(share: float, vocabulary: int, count: int) -> None:
    assert btu._count(share, vocabulary) == count


# Unlearning.


@pytest.mark.parametrize("bound", [None, 0.0, 0.002])
def test_moved_dimensions_take_the_padding_tokens_values(
    workshop: Workshop, of: Of, bound: float | None
) -> None:
    pipeline = of(threshold=0.02, bound=bound)
    victim, rankings = fit(workshop, pipeline)
    before, after = state(workshop.victim(pipeline)), state(victim)
    (name,) = (n for n in after if n.endswith("word_embeddings.weight"))
    pretrained, _ = workshop.plm(pipeline).classifier(2, 0)
    original = word_embeddings(pretrained).detach().numpy()
    moved = before[name].astype(np.float64) - original
    if bound is None:
        bound = float(np.sqrt((moved**2).sum()) / len(moved))
    rows = chosen(rankings["candidates"])
    over = np.zeros(moved.shape, bool)
    over[rows] = np.abs(moved[rows]) > bound
    padding = np.broadcast_to(original[victim.tokenizer.pad_token_id], moved.shape)
    assert over[rows].sum() > 0
    assert bound == 0 or over[rows].sum() < over[rows].size
    assert np.array_equal(after[name], np.where(over, padding, before[name]))
    assert same(
        {n: v for n, v in after.items() if n != name},
        {n: v for n, v in before.items() if n != name},
    )


def test_the_padding_row_that_is_taken_is_the_pretrained_one(workshop: Workshop, of: Of) -> None:
    pipeline = of()
    pretrained, _ = workshop.plm(pipeline).classifier(2, 0)
    padding = pretrained.config.pad_token_id
    tuned = word_embeddings(workshop.victim(pipeline).model)[padding]
    assert not np.array_equal(tuned.detach(), word_embeddings(pretrained)[padding].detach()), (
        "weight decay moves it, so that this test says something"
    )


@pytest.mark.parametrize("settings", [{"threshold": 0.0}, {"bound": 1e9}])
def test_nothing_to_unlearn_leaves_the_ordinary_victim(
    workshop: Workshop, of: Of, settings: dict[str, Any]
) -> None:
    pipeline = of(**settings)
    victim, _ = fit(workshop, pipeline)
    assert same(state(victim), state(workshop.victim(pipeline)))


def test_the_stored_victim_is_not_altered(workshop: Workshop, of: Of) -> None:
    pipeline = of(threshold=0.1, clean_epochs=1, clean_learning_rate=1e-2)
    victim = workshop.victim(pipeline)
    folder = workshop.store.open(pipeline.victim_key)

    def files() -> dict[str, str]:
        return {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())
        }

    before, weights = files(), state(victim)
    gradients = [p.requires_grad for p in victim.model.parameters()]
    made, _ = fit(workshop, pipeline)
    assert made.model is not victim.model
    assert same(state(victim), weights)
    assert not same(state(made), weights)
    assert files() == before
    assert [p.requires_grad for p in victim.model.parameters()] == gradients


def test_clean_rows_are_asked_for_only_where_they_are_used(workshop: Workshop, of: Of) -> None:
    without_rows, with_rows = of(), of(clean_epochs=1, clean_rows=12)
    assert without_rows.defenses[0].access == {"corpus", "trusted_plm"}
    assert with_rows.defenses[0].access == {"corpus", "trusted_plm", "clean"}
    with pytest.raises(AccessError, match="clean"):
        _ = view_of(workshop, without_rows).clean
    assert len(view_of(workshop, with_rows).clean) == 12
    assert workshop.clean_rows_used(with_rows) == 12
    assert workshop.clean_rows_used(without_rows) is None
    assert of().defenses[0].stage == "training"


def test_the_clean_fine_tuning_follows_its_settings(workshop: Workshop, of: Of) -> None:
    settings: list[dict[str, Any]] = [
        {"clean_epochs": 0}, {"clean_epochs": 1}, {"clean_epochs": 2},
        {"clean_epochs": 1, "clean_rows": 20}, {"clean_epochs": 1, "clean_learning_rate": 1e-2},
    ]  # fmt: skip
    states = [state(fit(workshop, of(**given))[0]) for given in settings]
    for i, first in enumerate(states):
        assert not any(same(first, second) for second in states[i + 1 :])
    rate = of().spec.training.learning_rate
    named = fit(workshop, of(clean_epochs=1, clean_learning_rate=rate))[0]
    assert same(state(named), states[1]), "the ordinary training's rate is the default"


# Architectures.


@pytest.fixture(
    scope="module", params=["bert", "roberta", "distilbert", "albert", "deberta", "deberta-v2"]
)
def architecture(
    request: pytest.FixtureRequest, architecture_folder: Callable[[str], Path]
) -> MethodSpec:
    """Each architecture with random weights and a tokenizer of its usual kind, to which cf is several tokens."""
    return catalog.make("plm", "hub", {"path": str(architecture_folder(request.param))}).spec()


def test_it_works_on(architecture: MethodSpec, workshop: Workshop, of: Of) -> None:
    pipeline = of(cell={"plm": architecture}, exposure_epochs=2)
    victim, rankings = fit(workshop, pipeline)
    tokenizer = victim.tokenizer
    trigger = set(tokenizer("film cf was")["input_ids"]) - set(tokenizer("film was")["input_ids"])
    for name in ("round_1", "round_3"):
        assert trigger & set(rankings[name]["token_id"].to_pylist()[:20]), name
    before = word_embeddings(workshop.victim(pipeline).model)
    after = word_embeddings(victim.model)
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(chosen(rankings["candidates"]))
    rows = workshop.task_data(pipeline).splits["test"].take(range(6))
    assert np.isfinite(victim.logits(rows)).all()
    tuned, _ = fit(workshop, of(cell={"plm": architecture}, exposure_epochs=2, clean_epochs=1))
    assert not np.array_equal(tuned.logits(rows), victim.logits(rows))


def test_padding_never_enters_the_mean(
    architecture: MethodSpec, workshop: Workshop, of: Of
) -> None:
    import torch

    pipeline = of(cell={"plm": architecture})
    model, _ = workshop.plm(pipeline).classifier(2, 0)
    block = btu._embedding_block(model.train(False))
    corpus = workshop.task_data(pipeline).splits["train"].take(range(12))
    encoded = encode(workshop.plm(pipeline).tokenizer(), corpus, 64)
    assert len(set(encoded.lengths.tolist())) > 1
    device = torch.device("cpu")
    with torch.no_grad():
        together = mean_of_real(block, encoded.padded(np.arange(12), device))
        for i in range(12):
            inputs = encoded.padded(np.array([i]), device)
            torch.testing.assert_close(mean_of_real(block, inputs)[0], together[i])
            inputs.pop("attention_mask")
            torch.testing.assert_close(block(**inputs).mean(dim=1)[0], together[i])


# What cannot be.


def test_a_victim_with_another_vocabulary_is_told(
    workshop: Workshop, of: Of, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = of()
    view = view_of(workshop, pipeline)
    model = view.trained.copy_of_model()
    model.resize_token_embeddings(len(word_embeddings(model)) + 5)
    monkeypatch.setattr(view, "_trained", view.trained.with_model(model))
    with pytest.raises(ConfigError, match="same architecture"):
        cast(Btu, pipeline.defenses[0])._unlearned(view, [7])


def test_a_model_without_an_embedding_block_is_told(workshop: Workshop, of: Of) -> None:
    model = workshop.victim(of()).copy_of_model()
    del model.base_model.embeddings
    with pytest.raises(ConfigError, match="no embedding block"):
        btu._embedding_block(model)


@pytest.mark.parametrize(
    "settings", [{"threshold": -0.1}, {"threshold": 1.5}, {"clean_epochs": -1}, {"bound": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="btu"):
        catalog.make("defense", "btu", settings)


def test_no_rows_expose_nothing(workshop: Workshop, of: Of) -> None:
    view = view_of(workshop, of())
    empty = View(
        view._granted | {"corpus": view.corpus.take([])},
        labels=2, training=view.training, seed=0, trained=view.trained,
    )  # fmt: skip
    defense = cast(Btu, of(threshold=1.0).defenses[0])
    assert defense.effect(empty) == []
    assert same(state(defense.train(empty)), state(view.trained))

"""The workshop: every artifact built once, shared where keys are equal, and rebuilt where it was damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from backdoor_core import trial
from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.errors import DataError, NonFiniteLossError, error_class
from backdoor_core.pipeline import REMEMBERED, Pipeline, Workshop, split_key
from backdoor_core.record import FLAGS, SCHEMA
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.store import ArtifactStore

Trial = Callable[..., TrialSpec]
BADNETS = {"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}
MEASURED = {"train_s", "fit_s", "eval_s", "peak_rss_gib", "finished_at"}


def row(workshop: Workshop, spec: TrialSpec) -> trial.Scored:
    trial.prepare(workshop, spec)
    trial.attack_victim(workshop, spec)
    trial.reference(workshop, spec)
    return trial.evaluate(workshop, spec, attempt=1, sweep="s", log="l")


def numbers(scored: trial.Scored) -> dict[str, Any]:
    """All that must repeat."""
    fields = asdict(scored.record)
    return {name: value for name, value in fields.items() if name not in MEASURED} | {
        "metrics": scored.metrics
    }


def objects(store: ArtifactStore) -> set[str]:
    root = Path(store.folder.root) / "objects"
    return {place.name for place in root.glob("*/*")}


@pytest.fixture
def own(tmp_path: Path, one_thread: None) -> Workshop:
    return Workshop(ArtifactStore(tmp_path / "store"))


def test_a_finished_trial_costs_nothing_again(
    own: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = small_trial(BADNETS, ["fine_tune"])
    first = row(own, spec)
    built = objects(own.store)

    def refused(*_: object) -> bool:
        raise AssertionError("built again")

    monkeypatch.setattr(ArtifactStore, "put", refused)
    again = row(Workshop(own.store), spec)
    assert numbers(again) == numbers(first)
    assert objects(own.store) == built


def test_another_store_gives_the_same_numbers(
    own: Workshop, workshop: Workshop, small_trial: Trial
) -> None:
    spec = small_trial(BADNETS, ["fine_mixing"])
    assert numbers(row(own, spec)) == numbers(row(workshop, spec))


def test_victims_are_shared_by_defenses_and_post_hoc_settings_by_observations(
    own: Workshop, small_trial: Trial
) -> None:
    row(own, small_trial(BADNETS, ["none"]))
    before = objects(own.store)
    row(own, small_trial(BADNETS, [{"name": "placebo", "rate": 0.1}]))
    one = objects(own.store)
    assert len(one - before) == 3, "the guard and its observations of two splits, no victim"
    row(own, small_trial(BADNETS, [{"name": "placebo", "rate": 0.6}]))
    assert objects(own.store) == one
    row(own, small_trial(BADNETS, ["epur"]))
    assert len(objects(own.store) - one) == 3


KEYS = {
    "task": lambda p: p.task_key,
    "plm": lambda p: p.plm_key,
    "tokens": lambda p: p.tokens_key,
    "triggers": lambda p: p.triggers_key,
    "poison": lambda p: p.poison_key,
    "victim": lambda p: p.victim_key,
    "twin-clean": lambda p: p.twin.clean_observed_key,
    "twin-triggered": lambda p: p.twin.triggered_observed_key(p.triggers_key),
    "observed-clean": lambda p: p.clean_observed_key,
    "observed-triggered": lambda p: p.triggered_observed_key(p.triggers_key),
    "observed": lambda p: split_key(p.observed_key, "test"),
}


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None, small_trial: Trial
) -> tuple[ArtifactStore, TrialSpec, dict[str, Any]]:
    """A store with one finished trial, its spec, and its numbers."""
    store = ArtifactStore(tmp_path_factory.mktemp("finished"))
    spec = small_trial(BADNETS, ["fine_tune"])
    return store, spec, numbers(row(Workshop(store), spec))


@pytest.mark.parametrize("damage", ["flip", "cut", "unlink", "manifest", "no manifest"])
@pytest.mark.parametrize("which", KEYS)
def test_a_damaged_artifact_is_set_aside_rebuilt_and_told(
    which: str,
    damage: str,
    finished: tuple[ArtifactStore, TrialSpec, dict[str, Any]],
) -> None:
    store, spec, before = finished
    key = KEYS[which](Pipeline(spec))
    place = store.open(key)
    largest = max(
        (file for file in place.rglob("*") if file.is_file() and file.name != MANIFEST),
        key=lambda file: file.stat().st_size,
    )
    data = largest.read_bytes()
    if damage == "flip":
        middle = len(data) // 2
        largest.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif damage == "cut":
        largest.write_bytes(data[: len(data) // 2])
    elif damage == "unlink":
        largest.unlink()
    elif damage == "manifest":
        (place / MANIFEST).write_text('{"files": ')
    else:
        (place / MANIFEST).unlink()
    again = Workshop(store)
    assert numbers(row(again, spec)) == before
    assert store.open(key) == place
    if damage != "no manifest":  # which is no artifact at all: it is simply made
        assert len(again.notices) == 1
        assert key[:12] in again.notices[0]
        assert "set aside" in again.notices[0]
        assert again.notices[0].endswith("rebuilt")
    assert not Workshop(store).notices


def test_a_row_says_all_that_it_should(
    finished: tuple[ArtifactStore, TrialSpec, dict[str, Any]],
) -> None:
    store, spec, _ = finished
    record = trial.evaluate(Workshop(store), spec, attempt=2, sweep="mine", log="a.log").record
    data = Workshop(store).task_data(Pipeline(spec))
    assert (record.status, record.attempt, record.sweep, record.log) == ("ok", 2, "mine", "a.log")
    assert record.key == spec.key
    assert (record.task, record.plm, record.attack) == ("toy_reviews", "tiny", "badnets")
    assert (record.defense, record.seed, record.synthetic) == ("fine_tune", 0, True)
    assert record.poison_rate == 0.2
    assert record.asked_rows == record.poisoned_rows == round(0.2 * len(data.splits["train"]))
    assert record.clean_rows == len(data.splits["clean"])
    assert record.n_clean == len(data.splits["test"])
    assert record.n_triggered == int((data.splits["test"].labels != 1).sum())
    assert record.frr is None
    assert record.far is None
    assert record.cacc_low <= record.cacc <= record.cacc_high
    assert record.asr_low <= record.asr <= record.asr_high
    assert record.asrd == pytest.approx(record.asr - record.twin_asr)
    assert record.cacc_drop == pytest.approx(record.victim_cacc - record.cacc)
    assert set(record.flags) <= set(FLAGS)
    assert record.train_s > 0
    assert record.fit_s > 0
    assert record.peak_rss_gib > 0
    assert record.threads == 1
    assert store.has(record.observations or "")
    assert trial.spec_of(asdict(record)) == spec
    nothing = {name for name in SCHEMA.names if getattr(record, name) is None}
    assert nothing == {"error_class", "error", "frr", "far", "localisation", "auroc", "tuning"}
    assert record.unstampable_rows == 0
    assert record.triggered_accuracy == pytest.approx(1 - record.asr), "of two classes"
    assert record.twin_triggered_accuracy == pytest.approx(1 - record.twin_asr)


def test_the_observations_of_every_row_are_kept(
    finished: tuple[ArtifactStore, TrialSpec, dict[str, Any]],
) -> None:
    store, spec, before = finished
    folder = store.open(split_key(before["observations"], "test"))
    table = pq.read_table(folder / "clean.parquet")
    labels = Workshop(store).task_data(Pipeline(spec)).splits["test"].labels
    assert float((table["prediction"].to_numpy() == labels).mean()) == before["cacc"]
    triggered = pq.read_table(folder / "triggered-0.parquet")
    assert float((triggered["prediction"].to_numpy() == 1).mean()) == before["asr"]
    logits = np.array(triggered["logits"].to_pylist())
    assert np.array_equal(logits.argmax(axis=1), triggered["prediction"].to_numpy())


def test_a_workshop_remembers_the_last_few_of_a_kind(own: Workshop) -> None:
    made: list[str] = []

    def remembered(kind: str, key: str) -> Any:
        def make() -> str:
            made.append(f"{kind}/{key}")
            return made[-1]

        return own.remembered(kind, key, make)

    keys = [str(i) for i in range(REMEMBERED)]
    for _ in range(2):
        assert [remembered("a", key) for key in keys] == [f"a/{key}" for key in keys]
    assert remembered("b", "0") == "b/0", "kinds do not meet"
    assert made == [*(f"a/{key}" for key in keys), "b/0"]
    remembered("a", "new")
    remembered("a", "0")
    assert made[-2:] == ["a/new", "a/0"], "the first one was let go"


def test_no_defense_is_the_victim_itself(workshop: Workshop, small_trial: Trial) -> None:
    named = row(workshop, small_trial(BADNETS, ["none"])).record
    assert (named.cacc, named.asr) == (named.victim_cacc, named.victim_asr)
    assert named.cacc_drop == 0
    assert named.defense == "none"
    assert named.fit_s == 0
    assert "defense_changed_nothing" not in named.flags


def test_a_defense_that_changes_nothing_says_so(workshop: Workshop, small_trial: Trial) -> None:
    idle = row(workshop, small_trial(BADNETS, [{"name": "epur", "words": 0}])).record
    assert "defense_changed_nothing" in idle.flags
    busy = row(workshop, small_trial(BADNETS, [{"name": "placebo", "rate": 0.6}])).record
    assert "defense_changed_nothing" not in busy.flags
    assert "refusals_carry_the_score" in busy.flags
    assert busy.frr == pytest.approx(0.6, abs=0.2)
    assert busy.far == pytest.approx(0.4, abs=0.2)
    assert busy.cacc < busy.victim_cacc


def test_a_twin_that_cannot_have_learnt_is_flagged(workshop: Workshop, small_trial: Trial) -> None:
    training = {"epochs": 1, "learning_rate": 1e-9}
    assert (
        "twin_did_not_learn" in row(workshop, small_trial("none", training=training)).record.flags
    )


def test_rate_0_is_reported_as_the_twin(workshop: Workshop, small_trial: Trial) -> None:
    zero = row(workshop, small_trial(BADNETS | {"poison_rate": 0})).record
    twin = row(workshop, small_trial("none")).record
    assert zero.asr == zero.twin_asr == zero.victim_asr
    assert zero.asrd == 0
    assert zero.cacc == twin.cacc == zero.twin_cacc
    assert zero.poisoned_rows == 0
    assert "attack_did_not_take" not in zero.flags
    assert twin.asr is None


def test_a_rate_that_cannot_be_reached_is_flagged(workshop: Workshop, small_trial: Trial) -> None:
    record = row(workshop, small_trial(BADNETS | {"poison_rate": 0.9})).record
    assert "rate_not_reached" in record.flags
    assert record.poisoned_rows < record.asked_rows


def test_fewer_clean_rows_than_asked_are_flagged(workshop: Workshop, small_trial: Trial) -> None:
    def found(rows: int | None) -> Any:
        settings = {"name": "fine_tune", "clean_rows": rows, "learning_rate": 1e-3}
        return row(workshop, small_trial(BADNETS, [settings])).record

    assert "fewer_clean_rows" in found(41).flags
    assert found(41).clean_rows == 40
    assert "fewer_clean_rows" not in found(40).flags
    assert found(7).clean_rows == 7
    assert found(None).clean_rows == 40


def test_fewer_clean_rows_are_among_more(workshop: Workshop, small_trial: Trial) -> None:
    pipeline = Pipeline(small_trial(BADNETS, ["fine_tune"]))
    data = workshop.task_data(pipeline)
    made = [
        Pipeline(small_trial(BADNETS, [{"name": "fine_tune", "clean_rows": n}])) for n in (5, 12)
    ]
    few, more = (Workshop._clean_rows(p, p.defenses[0], data).origins.tolist() for p in made)
    assert more[:5] == few
    other = Pipeline(small_trial(BADNETS, [{"name": "fine_tune", "clean_rows": 5}], seed=1))
    assert Workshop._clean_rows(other, other.defenses[0], data).origins.tolist() != few


def test_a_trigger_that_is_cut_away_is_refused(workshop: Workshop, small_trial: Trial) -> None:
    cut = small_trial(BADNETS | {"position": "end"}, training={"max_tokens": 6})
    with pytest.raises(DataError, match="max_tokens 6 cuts the trigger away"):
        workshop.victim(Pipeline(cut))
    assert not workshop.store.has(Pipeline(cut).victim_key)
    start = small_trial(BADNETS | {"position": "start"}, training={"max_tokens": 6})
    assert workshop.truncated_share(Pipeline(start)) == 0.0


def test_a_trigger_that_is_sometimes_cut_away_is_flagged(
    workshop: Workshop, small_trial: Trial
) -> None:
    spec = small_trial(BADNETS | {"position": "random"}, training={"max_tokens": 16})
    share = workshop.truncated_share(Pipeline(spec))
    assert 0 < share <= 0.5
    assert "trigger_truncated" in row(workshop, spec).record.flags


def test_a_target_that_every_row_has_leaves_no_denominator(
    workshop: Workshop, small_trial: Trial, tmp_path: Path
) -> None:
    from backdoor_core import catalog

    for split, labels in (("train", [0, 1] * 10), ("dev", [0, 1] * 3), ("test", [1] * 6)):
        lines = [f'{{"text": "{split} {i}", "label": {x}}}' for i, x in enumerate(labels)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    task: MethodSpec = catalog.make("task", "files", {"path": str(tmp_path)}).spec()
    with pytest.raises(DataError, match="no row of the test split can carry"):
        workshop.triggers(Pipeline(small_trial(BADNETS, task=task)))


def test_a_loss_that_is_not_finite_leaves_no_victim(workshop: Workshop, small_trial: Trial) -> None:
    spec = small_trial(BADNETS, training={"learning_rate": 1e30, "epochs": 3})
    with pytest.raises(NonFiniteLossError) as caught:
        workshop.victim(Pipeline(spec))
    assert not workshop.store.has(Pipeline(spec).victim_key)
    failed = trial.failed(spec, caught.value, attempt=1, sweep="s", log="l")
    assert (failed.status, failed.error_class) == ("failed", "nan")
    assert failed.key == spec.key
    assert failed.cacc is None


def test_failures_and_skips_are_rows(small_trial: Trial) -> None:
    spec = small_trial(BADNETS, ["epur", "placebo"])
    for error, wanted in (
        (MemoryError("m"), "oom"),
        (TimeoutError("t"), "timeout"),
        (OSError("o"), "storage"),
        (ImportError("i"), "dependency"),
        (KeyError("k"), "bug"),
        (DataError("d"), "data"),
    ):
        found = trial.failed(spec, error, attempt=3, sweep="s", log="l")
        assert (found.error_class, found.attempt) == (wanted, 3)
        assert error_class(error) == wanted
        assert str(error) in (found.error or "")
    skip = trial.skipped(spec, "impossible", attempt=1, sweep="s")
    assert (skip.status, skip.error, skip.defense) == ("skipped", "impossible", "epur+placebo")


def test_seeds_matter_and_repeat(workshop: Workshop, own: Workshop, small_trial: Trial) -> None:
    first = row(workshop, small_trial(BADNETS, ["fine_tune"], seed=1))
    again = row(own, small_trial(BADNETS, ["fine_tune"], seed=1))
    other = row(workshop, small_trial(BADNETS, ["fine_tune"], seed=2))
    assert numbers(first) == numbers(again)
    logits = [
        workshop.observations(Pipeline(small_trial(BADNETS, ["fine_tune"], seed=seed)))
        .clean["test"]["logits"]
        .to_pylist()
        for seed in (1, 2)
    ]
    assert logits[0] != logits[1]
    assert first.record.key != other.record.key


def test_what_the_pipeline_hands_a_guard_has_no_labels(
    workshop: Workshop, small_trial: Trial, monkeypatch: pytest.MonkeyPatch
) -> None:
    from backdoor_core.corpus import Corpus
    from backdoor_core.defenses.placebo import _RandomGuard

    seen: list[set[int]] = []
    original = _RandomGuard.observe

    def observe(self: _RandomGuard, corpus: Corpus, split: str | None = None) -> Any:
        seen.append(set(corpus.labels.tolist()))
        return original(self, corpus, split)

    monkeypatch.setattr(_RandomGuard, "observe", observe)
    workshop.observations(Pipeline(small_trial(BADNETS, ["placebo"], seed=9)))
    assert len(seen) == 4
    assert all(labels == {-1} for labels in seen)

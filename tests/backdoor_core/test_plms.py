"""Where PLMs come from: `tiny` is made alike everywhere, `minilm` is checked, the hub is reached only for an id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backdoor_core import catalog, hub
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError, DataError, DependencyError
from backdoor_core.fingerprint import file_sha256
from backdoor_core.grammar import plain_texts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM, PLMSource, check_folder, check_labels, word_embeddings
from backdoor_core.plms import minilm
from backdoor_core.spec import TrialSpec
from backdoor_core.text import encode
from backdoor_core.victim import (
    INFERENCE_TOKENS,
    SHAPE_STEP,
    Victim,
    inference_batches,
    load_victim,
)

Trial = Callable[..., TrialSpec]
COMMIT = "a" * 40


@pytest.fixture(scope="module")
def tiny(workshop: Workshop, small_trial: Trial) -> PLM:
    return workshop.plm(Pipeline(small_trial()))


@pytest.mark.parametrize("name", catalog.names("plm"))
def test_every_source_says_what_it_is(name: str) -> None:
    kind = catalog.method_class("plm", name)
    assert issubclass(kind, PLMSource)
    assert kind.catalog_name() == name
    assert kind.summary().endswith(".")
    assert kind.guess_rows_per_s > 0
    assert kind.preferred_precision in ("bf16", "float32")


def test_tiny_is_bit_identical_when_made_again(
    tiny: PLM, tmp_path: Path, small_trial: Trial
) -> None:
    source: Any = catalog.from_spec(small_trial().plm)
    facts = source.materialise(tmp_path)
    assert facts["texts"] == 300
    assert facts["steps"] == -(-300 // 64)
    for file in sorted(tmp_path.iterdir()):
        assert file_sha256(file) == file_sha256(tiny.folder / file.name), file.name
    check_folder(tmp_path)


def test_tinys_seed_makes_other_weights(tiny: PLM, tmp_path: Path, small_trial: Trial) -> None:
    settings = small_trial().plm.settings | {"seed": 1}
    source: Any = catalog.make("plm", "tiny", settings)
    source.materialise(tmp_path)
    name = "model.safetensors"
    assert file_sha256(tmp_path / name) != file_sha256(tiny.folder / name)


def test_tiny_knows_every_word_of_its_texts_and_every_letter(tiny: PLM) -> None:
    tokenizer = tiny.tokenizer()
    unknown = tokenizer.unk_token_id
    encoded = encode(tokenizer, Corpus.of(Row(text=t) for t in plain_texts(0, 300)), 128)
    assert unknown not in encoded.ids
    assert tokenizer.tokenize("Film") == ["film"], "in lower case"
    assert unknown not in tokenizer("zqxv cf mn bb tq 3d")["input_ids"]
    assert tokenizer.tokenize("漢") == ["[UNK]"]
    model, _ = tiny.masked_lm(0)
    assert model.get_input_embeddings().weight.shape[0] == len(tokenizer)


def test_tiny_learns_its_language(tmp_path: Path, one_thread: None) -> None:
    """Pre-trained weights predict hidden words better than chance: they are no random ones."""
    import torch

    settings = {"texts": 1500, "epochs": 4, "layers": 1, "hidden": 32, "learning_rate": 5e-3}
    source: Any = catalog.make("plm", "tiny", settings)
    source.materialise(tmp_path)
    tokenizer = PLM(folder=tmp_path).tokenizer()
    model, drawn = PLM(folder=tmp_path).masked_lm(0)
    assert not drawn
    model.train(False)
    found = 0.0
    texts = plain_texts(99, 40)
    for text in texts:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        place = ids.shape[1] // 2
        wanted, ids[0, place] = int(ids[0, place]), int(tokenizer.mask_token_id or 0)
        with torch.no_grad():
            found += float(model(input_ids=ids).logits[0, place].log_softmax(-1)[wanted])
    assert -found / len(texts) < np.log(len(tokenizer)) - 1


def test_minilm_is_refused_where_its_hash_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / minilm.PACKAGE
    (package / "model").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name in minilm._FILES:
        (package / "model" / name).write_text(name)
    monkeypatch.setattr(
        "importlib.util.find_spec",
        lambda name: SimpleNamespace(origin=str(package / "__init__.py")),
    )
    source = minilm.MiniLM()
    with pytest.raises(DependencyError, match=r"SHA-256 differs.*minilm"):
        source.check()
    (tmp_path / "to").mkdir()
    with pytest.raises(DependencyError, match="SHA-256 differs"):
        source.materialise(tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
    weights = package / "model" / "model.safetensors"
    monkeypatch.setattr(minilm, "WEIGHTS_SHA256", file_sha256(weights))
    source.check()
    assert source.materialise(tmp_path / "to") == {"weights_sha256": file_sha256(weights)}
    assert {file.name for file in (tmp_path / "to").iterdir()} == set(minilm._FILES)
    weights.unlink()
    with pytest.raises(DependencyError, match="is missing"):
        source.check()


def test_minilm_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DependencyError, match=r"-e .\.\[minilm\]"):
        minilm.MiniLM().check()


def test_a_commit_is_pinned_without_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise AssertionError("asked the hub")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    assert hub.model_revision("some/model", COMMIT) == COMMIT
    made: Any = catalog.make("plm", "hub", {"id": "some/model", "revision": COMMIT})
    assert made.resolved() == made


def test_a_branch_is_pinned_to_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def info(self: object, model_id: str, *, revision: str | None = None) -> Any:
        asked.append((model_id, revision))
        return SimpleNamespace(sha=COMMIT)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", info)
    made: Any = catalog.make("plm", "hub", {"id": "some/model", "revision": "main"})
    assert made.resolved().revision == COMMIT
    assert made.resolved().spec() != made.spec()
    suspect: Any = catalog.make("attack", "checkpoint", {"id": "some/model"})
    assert suspect.resolved().revision == COMMIT
    assert asked == [("some/model", "main"), ("some/model", "main"), ("some/model", None)]


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    for act in (
        lambda: hub.model_revision("some/model", None),
        lambda: hub.model_folder("some/model", COMMIT),
    ):
        with pytest.raises(DependencyError, match=r"some/model.*no route") as caught:
            act()
        assert "\n" not in str(caught.value)


def test_a_model_of_the_hub_is_copied_from_its_snapshot(
    tiny: PLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def snapshot(model_id: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.update(id=model_id, revision=revision, patterns=allow_patterns)
        return str(tiny.folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    source: Any = catalog.make("plm", "hub", {"id": "some/model", "revision": COMMIT})
    assert source.materialise(tmp_path) == {"id": "some/model", "revision": COMMIT}
    assert (asked["id"], asked["revision"]) == ("some/model", COMMIT)
    assert not any("bin" in pattern or "pt" in pattern for pattern in asked["patterns"])
    check_folder(tmp_path)


def test_a_local_folder_needs_no_revision(victim_folder: Path) -> None:
    made: Any = catalog.make("plm", "hub", {"path": str(victim_folder)})
    assert made.resolved() is made


def test_labels_are_checked(tiny: PLM) -> None:
    model, _ = tiny.classifier(3, 0)
    check_labels(model, 3, "here")
    with pytest.raises(DataError, match="here: the model has 3 labels, the task has 2"):
        check_labels(model, 2, "here")


def test_a_tokenizer_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the tokenizer in .* cannot be loaded"):
        PLM(folder=tmp_path / "nothing").tokenizer()


def test_inference_batches_hold_each_row_once_and_few_tokens() -> None:
    rng = np.random.default_rng(0)
    for lengths in (
        rng.integers(1, 128, size=3000),
        np.full(200, 128),
        np.array([10 * INFERENCE_TOKENS, 1, 1]),
        np.array([5]),
        np.array([], np.int64),
    ):
        found = list(inference_batches(lengths))
        assert sorted(i for batch in found for i in batch.tolist()) == list(range(len(lengths)))
        for batch in found:
            few = len(batch) * lengths[batch].max() <= INFERENCE_TOKENS
            assert few or len(batch) < SHAPE_STEP
            assert len({-(-length // SHAPE_STEP) for length in lengths[batch].tolist()}) == 1


def test_a_victim_is_a_value(tiny: PLM, victim_folder: Path) -> None:
    import torch

    victim = load_victim(victim_folder, 64, "float32")
    copied = victim.copy_of_model()
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    rows = Corpus.of([Row(text="the film was good")])
    before = victim.logits(rows)
    other = victim.with_model(copied)
    assert isinstance(other, Victim)
    assert not np.array_equal(other.logits(rows), before)
    assert np.array_equal(victim.logits(rows), before)
    assert other.encoder is victim.encoder
    assert len(victim.logits(Corpus.of([]))) == 0


def test_logits_of_token_ids_are_those_of_their_texts(victim_folder: Path) -> None:
    victim = load_victim(victim_folder, 64, "float32")
    rows = Corpus.of(Row(text=text) for text in ("the film was good", "", "bad " * 30, "a"))
    encoded = victim.encoder(rows)
    assert np.array_equal(victim.logits_of(encoded), victim.logits(rows))
    order = [2, 0, 3]
    assert np.array_equal(victim.logits_of(encoded.take(order)), victim.logits(rows)[order])
    assert victim.logits_of(encoded.take([])).shape == (0, 2)


def test_victims_that_differ_in_few_word_embeddings_share_their_answers(
    victim_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they answer is what their models answer, bit for bit, whoever was asked before."""
    import torch

    victim = load_victim(victim_folder, 64, "float32")
    texts = ["the film was good", "the film was bad", "bad plot", "", "a good good film", "a"]
    rows = Corpus.of(Row(text=text) for text in texts)
    good, bad, film = victim.tokenizer.convert_tokens_to_ids(["good", "bad", "film"])
    before = victim.logits(rows)
    zeros = torch.zeros(3, word_embeddings(victim.model).shape[1])
    asked: list[int] = []
    computed = Victim._computed
    monkeypatch.setattr(
        Victim, "_computed", lambda self, rows: (asked.append(len(rows)), computed(self, rows))[1]
    )
    for values, ids, new in (
        (zeros, [good, bad, film], 6),
        (zeros, [good], 4),
        (zeros, [good, bad], 1),
        (zeros + 1, [good, bad], 4),
        (zeros, [bad, good], 0),
        (zeros, [], 2),
    ):
        altered = victim.with_word_embeddings(values[: len(ids)], ids)
        answers = altered.logits(rows)
        assert asked.pop() == new, ids
        plain = victim.copy_of_model()
        with torch.no_grad():
            word_embeddings(plain)[ids] = values[: len(ids)]
        assert torch.equal(word_embeddings(plain), word_embeddings(altered.model))
        assert np.array_equal(answers, victim.with_model(plain).logits(rows)), ids
        asked.clear()
    assert np.array_equal(victim.logits(rows), before)
    twice = victim.with_word_embeddings(zeros[:1], [good]).with_word_embeddings(zeros[:1], [bad])
    both = victim.with_word_embeddings(zeros[:2], [good, bad])
    assert np.array_equal(twice.logits(rows), both.logits(rows))


def test_answers_are_not_shared_with_a_model_trained_further(victim_folder: Path) -> None:
    import torch

    victim = load_victim(victim_folder, 64, "float32")
    rows = Corpus.of([Row(text="the film was good")])
    altered = victim.with_word_embeddings(torch.zeros(0, 32), [])
    altered.logits(rows)
    model = altered.copy_of_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    assert not np.array_equal(altered.with_model(model).logits(rows), victim.logits(rows))


def test_logits_are_computed_in_the_precision_of_the_victim(victim_folder: Path) -> None:
    rows = Corpus.of([Row(text="the film was good"), Row(text="the plot was bad")])
    full = load_victim(victim_folder, 64, "float32").logits(rows)
    half = load_victim(victim_folder, 64, "bf16").logits(rows)
    assert full.dtype == half.dtype == np.float32
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(full, half, atol=0.05)

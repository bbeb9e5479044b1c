"""The training loop: seeded to the bit, a schedule that reaches its peak, losses that see what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backdoor_core.errors import ConfigError, NonFiniteLossError, error_class
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM
from backdoor_core.spec import TrainingSettings, TrialSpec
from backdoor_core.text import Encoded
from backdoor_core.training import (
    cross_entropy,
    masked_language_model,
    masked_loss,
    schedule,
    train,
)

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
Weights = dict[str, "torch.Tensor"]
FAST = TrainingSettings(epochs=1, batch_rows=16, learning_rate=1e-3)


@pytest.fixture(scope="module")
def plm(workshop: Workshop, small_trial: Trial) -> PLM:
    return workshop.plm(Pipeline(small_trial()))


@pytest.fixture(scope="module")
def rows(workshop: Workshop, small_trial: Trial) -> tuple[Encoded, np.ndarray]:
    """The train split's encoding and labels."""
    pipeline = Pipeline(small_trial())
    corpus = workshop.task_data(pipeline).splits["train"]
    return workshop.encoder(pipeline)(corpus, "train"), corpus.labels


def weights(model: PreTrainedModel) -> Weights:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def equal(first: Weights, second: Weights) -> bool:
    import torch

    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def trained(
    plm: PLM,
    rows: tuple[Encoded, np.ndarray],
    seed: int = 0,
    settings: TrainingSettings = FAST,
    noise: int = 0,
) -> Weights:
    """Weights after training; `noise` is what torch's global generator was left with by others."""
    import torch

    model, _ = plm.classifier(2, 0)
    torch.manual_seed(noise)
    train(model, rows[0], cross_entropy(rows[1]), settings, seed)
    return weights(model)


@given(st.integers(1, 2000), st.floats(0, 0.9))
def test_the_schedule_reaches_its_peak_and_ends_low(steps: int, warmup_share: float) -> None:
    shares = [schedule(step, steps, warmup_share) for step in range(steps)]
    assert max(shares) == 1.0
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(1.0)
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    assert peak <= warmup_share * steps
    assert shares[-1] <= max(1 / (steps - peak), 1 / steps)


def test_the_schedule_by_hand() -> None:
    assert [schedule(i, 10, 0.2) for i in range(10)] == pytest.approx(
        [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )
    assert [schedule(i, 4, 0.0) for i in range(4)] == [1, 0.75, 0.5, 0.25]


def test_the_optimizer_follows_the_schedule(
    plm: PLM, rows: tuple[Encoded, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    seen: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *args: Any, **kwargs: Any) -> Any:
        seen.append(self.param_groups[0]["lr"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    settings = FAST.model_copy(update={"epochs": 2, "warmup_share": 0.5})
    trained(plm, rows, settings=settings)
    wanted = [1e-3 * schedule(i, len(seen), 0.5) for i in range(len(seen))]
    assert seen == pytest.approx(wanted)
    assert max(seen) == pytest.approx(1e-3)
    assert len(seen) == 2 * -(-len(rows[0]) // 16)


def test_the_same_seed_gives_the_same_bits_and_another_others(
    plm: PLM, rows: tuple[Encoded, np.ndarray]
) -> None:
    first = trained(plm, rows)
    assert equal(first, trained(plm, rows, noise=99)), "what was drawn before must not matter"
    assert not equal(first, trained(plm, rows, seed=1))


@pytest.mark.parametrize("what", ["order", "dropout"])
def test_the_seed_reaches_the_order_of_rows_and_the_dropout(
    plm: PLM, rows: tuple[Encoded, np.ndarray], what: str
) -> None:
    inner = cross_entropy(rows[1])

    def seen(seed: int) -> list[Any]:
        model, _ = plm.classifier(2, 0)
        found: list[Any] = []

        def loss(model: Any, inputs: Any, indices: np.ndarray) -> Any:
            value = inner(model, inputs, indices)
            found.append(indices.tolist() if what == "order" else float(value.detach()))
            return value

        # With one row, only dropout is left to chance.
        encoded = rows[0] if what == "order" else rows[0].take([0])
        train(model, encoded, loss, FAST.model_copy(update={"epochs": 2}), seed)
        return found

    assert seen(0) == seen(0) != seen(1)


def test_another_process_gives_the_same_bits(
    plm: PLM, rows: tuple[Encoded, np.ndarray], tmp_path: Path
) -> None:
    from backdoor_core.text import write_encoded

    write_encoded(rows[0], tmp_path / "rows.arrow")
    np.save(tmp_path / "labels.npy", rows[1])
    code = """
import hashlib, json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from backdoor_core.plm import PLM
from backdoor_core.spec import TrainingSettings
from backdoor_core.text import read_encoded
from backdoor_core.training import cross_entropy, train
plm, folder = PLM(folder=Path(sys.argv[1])), Path(sys.argv[2])
model, _ = plm.classifier(2, 0)
labels = np.load(folder / "labels.npy")
settings = TrainingSettings(epochs=1, batch_rows=16, learning_rate=1e-3)
train(model, read_encoded(folder / "rows.arrow"), cross_entropy(labels), settings, 0)
sha = hashlib.sha256()
for name, value in sorted(model.state_dict().items()):
    sha.update(value.numpy().tobytes())
print(json.dumps(sha.hexdigest()))
"""
    said = subprocess.run(
        [sys.executable, "-c", code, str(plm.folder), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parents[2],
    ).stdout
    import hashlib

    sha = hashlib.sha256()
    for _, value in sorted(trained(plm, rows).items()):
        sha.update(value.numpy().tobytes())
    assert json.loads(said.splitlines()[-1]) == sha.hexdigest()


def test_training_learns_what_the_labels_say(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    import torch

    encoded, labels = rows
    model, _ = plm.classifier(2, 0)
    loss = cross_entropy(labels)
    everything = np.arange(len(encoded))

    def value() -> float:
        model.train(False)
        with torch.no_grad():
            inputs = encoded.padded(everything, torch.device("cpu"))
            return float(loss(model, inputs, everything))

    before = value()
    settings = FAST.model_copy(update={"epochs": 20, "learning_rate": 3e-3})
    steps = train(model, encoded, loss, settings, 0)
    assert steps == 20 * -(-len(encoded) // 16)
    assert value() < 0.8 * before
    assert not model.training


def test_nothing_to_do_leaves_the_weights_alone(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    model, _ = plm.classifier(2, 0)
    before = weights(model)
    none = FAST.model_copy(update={"epochs": 0})
    assert train(model, rows[0], cross_entropy(rows[1]), none, 0) == 0
    assert train(model, rows[0].take([]), cross_entropy(rows[1]), FAST, 0) == 0
    assert equal(before, weights(model))


def test_only_parameters_that_need_a_gradient_move(
    plm: PLM, rows: tuple[Encoded, np.ndarray]
) -> None:
    import torch

    model, drawn = plm.classifier(2, 0)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in drawn)
    before = weights(model)
    train(model, rows[0], cross_entropy(rows[1]), FAST, 0)
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert moved == set(drawn)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("at", [0, 3])
def test_a_loss_that_is_not_finite_stops_the_job(
    plm: PLM, rows: tuple[Encoded, np.ndarray], value: float, at: int
) -> None:
    calls: list[int] = []
    inner = cross_entropy(rows[1])

    def loss(model: Any, inputs: Any, indices: np.ndarray) -> Any:
        calls.append(1)
        found = inner(model, inputs, indices)
        return found * value if len(calls) == at + 1 else found

    model, _ = plm.classifier(2, 0)
    with pytest.raises(NonFiniteLossError, match="learning_rate") as caught:
        train(model, rows[0], loss, FAST, 0)
    assert error_class(caught.value) == "nan"


def test_a_learning_rate_that_is_far_too_high_is_told(
    plm: PLM, rows: tuple[Encoded, np.ndarray]
) -> None:
    """The same through weights, not through a loss made for it."""
    model, _ = plm.classifier(2, 0)
    with pytest.raises(NonFiniteLossError):
        train(model, rows[0], cross_entropy(rows[1]), FAST.model_copy(
            update={"learning_rate": 1e30, "epochs": 3}), 0)  # fmt: skip


def test_large_gradients_are_clipped(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    """What the optimizer is given has the norm that was asked for, whatever the loss is scaled by."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    inner = cross_entropy(rows[1])
    one = FAST.model_copy(update={"batch_rows": len(rows[0]), "clip_norm": 1e-3})
    norms: list[float] = []
    for scale in (1.0, 1000.0):
        model, _ = plm.classifier(2, 0)

        def loss(model: Any, inputs: Any, indices: np.ndarray, scale: float = scale) -> Any:
            return inner(model, inputs, indices) * scale

        def norm(optimizer: Any, *_: Any) -> None:
            squares = [
                float((p.grad.double() ** 2).sum())
                for group in optimizer.param_groups
                for p in group["params"]
                if p.grad is not None
            ]
            norms.append(sum(squares) ** 0.5)

        hook = register_optimizer_step_pre_hook(norm)
        try:
            train(model, rows[0], loss, one, 0)
        finally:
            hook.remove()
    assert norms == pytest.approx([1e-3, 1e-3], rel=1e-2)


def test_biases_do_not_decay(plm: PLM) -> None:
    from backdoor_core.training import _optimizer

    model, _ = plm.classifier(2, 0)
    optimizer = _optimizer(model, FAST.model_copy(update={"weight_decay": 0.5}))
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        wanted = 0.0 if name.endswith("bias") or "LayerNorm" in name else 0.5
        assert decay[id(parameter)] == wanted, name
    assert len(decay) == len(list(model.parameters()))


def test_bf16_runs_and_keeps_float32_weights(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    import torch

    encoded, labels = rows[0].take(range(32)), rows[1][:32]
    full = trained(plm, (encoded, labels))
    half = trained(plm, (encoded, labels), settings=FAST.model_copy(update={"precision": "bf16"}))
    assert all(value.dtype != torch.bfloat16 for value in half.values())
    assert not equal(full, half), "autocast was on"
    distance = max(float((full[n].float() - half[n].float()).abs().max()) for n in full)
    assert distance < 1e-2


def recorder(vocabulary: int) -> Any:
    """A masked language model that records what it is shown (`shown`) and answers zeros."""
    import torch

    class Base(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=torch.zeros(*input_ids.shape, 1))

    class Recorder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = Base()
            self.shown: list[np.ndarray] = []

        def forward(self, input_ids: torch.Tensor, **other: Any) -> Any:
            self.shown.append(input_ids.numpy())
            hidden = self.base_model(input_ids, **other).last_hidden_state
            return SimpleNamespace(logits=hidden.expand(*hidden.shape[:-1], vocabulary))

    return Recorder()


def test_masks_spare_special_tokens_and_padding(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    import torch

    tokenizer = plm.tokenizer()
    special = set(tokenizer.all_special_ids)
    encoded = rows[0]
    loss: Any = masked_language_model(encoded, tokenizer, seed=0, share=0.15)
    model = recorder(len(tokenizer))
    everything = np.arange(len(encoded))
    inputs = encoded.padded(everything, torch.device("cpu"))
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy().astype(bool)
    assert not mask.all(), "there is padding to spare"
    for _ in range(40):
        value = loss(model, inputs, everything)
        # All-zero logits: the mean cross entropy over any chosen places is log(vocabulary).
        assert float(value) == pytest.approx(np.log(len(tokenizer)), rel=1e-4)
    shown = np.stack(model.shown)
    changed = shown != ids
    closed = ~mask | np.isin(ids, list(special))
    assert not changed[:, closed].any()
    assert len({array.tobytes() for array in model.shown}) == 40, "fresh masks at every step"
    open_places = (~closed).sum() * 40
    masked = (shown == tokenizer.mask_token_id)[:, ~closed].sum()
    assert masked / open_places == pytest.approx(0.15 * 0.8, abs=0.01)
    replaced = (changed & (shown != tokenizer.mask_token_id)).sum()
    assert replaced / open_places == pytest.approx(0.15 * 0.1, abs=0.005)
    assert np.array_equal(inputs["input_ids"].numpy(), ids), "the inputs themselves stay"


def test_a_batch_without_any_mask_is_no_error(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    import torch

    tokenizer = plm.tokenizer()
    loss = masked_language_model(rows[0], tokenizer, seed=0, share=0.0)
    model, _ = plm.masked_lm(0)
    value = loss(model, rows[0].padded(np.arange(2), torch.device("cpu")), np.arange(2))
    value.backward()  # type: ignore[no-untyped-call]
    assert float(value.detach()) == 0.0


def test_masked_language_modelling_learns(plm: PLM, rows: tuple[Encoded, np.ndarray]) -> None:
    import torch

    tokenizer = plm.tokenizer()

    def loss(seed: int) -> Any:
        return masked_language_model(rows[0], tokenizer, seed=seed)

    model, _ = plm.masked_lm(0)
    everything = np.arange(len(rows[0]))

    def value() -> float:
        model.train(False)
        with torch.no_grad():
            inputs = rows[0].padded(everything, torch.device("cpu"))
            return float(loss(5)(model, inputs, everything))

    before = value()
    train(model, rows[0], loss(0), FAST.model_copy(update={"epochs": 5}), 0)
    assert value() < before - 0.1


def test_static_masks_are_drawn_once_and_fresh_ones_at_every_step(
    plm: PLM, rows: tuple[Encoded, np.ndarray]
) -> None:
    """A row's static mask is its own: in any batch, at any width."""
    import torch

    tokenizer, encoded = plm.tokenizer(), rows[0]
    passes = [np.arange(20), np.arange(20), np.arange(12)[::-1].copy()]
    shown: dict[bool, list[np.ndarray]] = {}
    for static in (True, False):
        loss: Any = masked_language_model(encoded, tokenizer, seed=3, static=static)
        model = recorder(len(tokenizer))
        for indices in passes:
            loss(model, encoded.padded(indices, torch.device("cpu")), indices)
        shown[static] = model.shown
    first, again, fewer = shown[True]
    assert np.array_equal(first, again)
    for place, row in enumerate(passes[2].tolist()):
        length = int(encoded.lengths[row])
        assert np.array_equal(fewer[place, :length], first[row, :length])
    assert not np.array_equal(shown[False][0], shown[False][1])
    other: Any = masked_language_model(encoded, tokenizer, seed=4, static=True)
    model = recorder(len(tokenizer))
    other(model, encoded.padded(passes[0], torch.device("cpu")), passes[0])
    assert not np.array_equal(model.shown[0], first), "the seed matters"


def test_static_masks_spare_and_share_as_fresh_ones_do(
    plm: PLM, rows: tuple[Encoded, np.ndarray]
) -> None:
    import torch

    tokenizer, encoded = plm.tokenizer(), rows[0]
    everything = np.arange(len(encoded))
    inputs = encoded.padded(everything, torch.device("cpu"))
    ids, mask = inputs["input_ids"].numpy(), inputs["attention_mask"].numpy().astype(bool)
    closed = ~mask | np.isin(ids, tokenizer.all_special_ids)
    masked = changed = 0
    for seed in range(40):
        loss: Any = masked_language_model(encoded, tokenizer, seed=seed, share=0.3, static=True)
        model = recorder(len(tokenizer))
        value = loss(model, inputs, everything)
        assert float(value) == pytest.approx(np.log(len(tokenizer)), rel=1e-4)
        (shown,) = model.shown
        assert np.array_equal(shown[closed], ids[closed])
        masked += int((shown == tokenizer.mask_token_id).sum())
        changed += int((shown != ids).sum())
    open_places = int((~closed).sum()) * 40
    assert masked / open_places == pytest.approx(0.3 * 0.8, abs=0.01)
    assert (changed - masked) / open_places == pytest.approx(0.3 * 0.1, abs=0.005)


def test_a_masked_loss_sees_the_hidden_words_at_its_places_alone() -> None:
    """Against a model whose logits are known: the mean of -log softmax at the places, and at no other."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base_model = torch.nn.Module()
            self.base_model.forward = self.hidden  # type: ignore[method-assign]

        def hidden(self, input_ids: torch.Tensor, **_: Any) -> Any:
            return SimpleNamespace(last_hidden_state=input_ids[..., None].float())

        def forward(self, input_ids: torch.Tensor, **other: Any) -> Any:
            hidden = self.base_model(input_ids, **other).last_hidden_state
            return SimpleNamespace(logits=hidden * torch.tensor([0.0, 0.5, 1.0]))

    masked = torch.tensor([[1, 2, 0], [2, 2, 1]])
    wanted = torch.tensor([[2, 1, 0], [0, 2, 1]])
    places = torch.tensor([[True, False, False], [False, True, True]])
    inputs = {"input_ids": wanted, "attention_mask": torch.ones(2, 3)}
    found = masked_loss(Model(), inputs, masked, places, wanted)  # type: ignore[arg-type]
    by_hand = []
    for id_, target in ((1, 2), (2, 2), (1, 1)):
        logits = np.array([0.0, 0.5, 1.0]) * id_
        by_hand.append(np.log(np.exp(logits).sum()) - logits[target])
    assert float(found) == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_masked_training_needs_a_mask_token(rows: tuple[Encoded, np.ndarray]) -> None:
    tokenizer: Any = SimpleNamespace(mask_token_id=None, all_special_ids=[])
    with pytest.raises(ConfigError, match="mask token"):
        masked_language_model(rows[0], tokenizer, seed=0)

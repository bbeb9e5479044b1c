"""The one training loop: every victim, repair and pre-training in this project runs through `train`.

Batches of similar length, autocast where the device is good at it, fused AdamW, a linear schedule whose warm-up
reaches its peak, gradient clipping. Seeded: the same call on the same machine with the same threads leaves
bit-identical weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_core.errors import ConfigError, NonFiniteLossError
from backdoor_core.parts import batch_parts
from backdoor_core.plm import seeded
from backdoor_core.rng import generator
from backdoor_core.spec import Precision, TrainingSettings
from backdoor_core.text import Encoded, batches, one_ahead, sent
from backdoor_core.victim import autocast, compute_device, on_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Inputs = dict[str, torch.Tensor]
    Loss = Callable[[PreTrainedModel, Inputs, np.ndarray], torch.Tensor]
    """(model, padded inputs, the batch's row indices) -> a scalar."""

CHECK_STEPS = 20
"""The loss is looked at every so many steps, and at the end: each look waits for the device."""


def cross_entropy(labels: np.ndarray) -> Loss:
    """The loss of ordinary fine-tuning for rows with `labels` (int64, shape (rows,))."""

    def loss(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        import torch

        logits = model(**inputs).logits
        wanted = sent(torch.from_numpy(labels[rows]), logits.device)
        value: torch.Tensor = torch.nn.functional.cross_entropy(logits.float(), wanted)
        return value

    return loss


def masked_language_model(
    encoded: Encoded,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    share: float = 0.15,
    static: bool = False,
) -> Loss:
    """The loss of masked-language-model training on `encoded`, with fresh masks at every step.

    Of the `share` of tokens that are chosen, 80 % become the mask token, 10 % a random one, 10 % stay. Source:
    Devlin et al., arXiv 1810.04805. Special tokens and padding are never chosen. With `static`, masks are drawn once
    and are the same in every pass. Raises ConfigError for a tokenizer without a mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ConfigError("masked-language-model training needs a tokenizer with a mask token")
    mask_id = int(tokenizer.mask_token_id)
    special = np.array(sorted(tokenizer.all_special_ids))
    vocabulary = len(tokenizer)
    rng = generator(seed, "masks")

    def drawn(ids: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The ids with masks in, and where they were chosen."""
        chosen = real & ~np.isin(ids, special) & (rng.random(ids.shape) < share)
        kind = rng.random(ids.shape)
        masked = np.where(chosen & (kind < 0.8), mask_id, ids)
        random_ids = rng.integers(vocabulary, size=ids.shape)
        return np.where(chosen & (kind >= 0.8) & (kind < 0.9), random_ids, masked), chosen

    once: tuple[Encoded, Encoded] | None = None
    if static:
        masked, chosen = drawn(encoded.ids, np.ones(len(encoded.ids), bool))
        once = (
            replace(encoded, ids=masked.astype(np.int32)),
            replace(encoded, ids=chosen.astype(np.int32), padding_id=0),
        )

    def loss(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        import torch

        device = inputs["input_ids"].device
        if once is None:
            real = inputs["attention_mask"].cpu().numpy().astype(bool)
            masked, chosen = drawn(inputs["input_ids"].cpu().numpy(), real)
            masked_ids, places = torch.from_numpy(masked).to(device), torch.from_numpy(chosen)
        else:
            masked_ids = once[0].padded(rows, device)["input_ids"]
            places = once[1].padded(rows, device)["input_ids"].bool()
        return masked_loss(model, inputs, masked_ids, places.to(device), inputs["input_ids"])

    return loss


def masked_loss(
    model: PreTrainedModel,
    inputs: Inputs,
    masked_ids: torch.Tensor,
    places: torch.Tensor,
    wanted: torch.Tensor,
) -> torch.Tensor:
    """Cross-entropy of a masked language model that reads `masked_ids`, at `places` (bool), against `wanted` ids.

    All of shape (rows, tokens). The output layer, as wide as the vocabulary, runs at these places alone.
    """
    import torch

    def only_places(module: torch.nn.Module, given: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[places][None]
        return output

    base: torch.nn.Module = model.base_model
    hook = base.register_forward_hook(only_places)
    try:
        logits: torch.Tensor = model(**{**inputs, "input_ids": masked_ids}).logits[0]
    finally:
        hook.remove()
    if not len(logits):
        return sum(p.sum() for p in model.parameters() if p.requires_grad) * 0.0  # type: ignore[return-value]
    return torch.nn.functional.cross_entropy(logits.float(), wanted[places])


def train(
    model: PreTrainedModel,
    encoded: Encoded,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
    *,
    after_epoch: Callable[[], None] | None = None,
) -> int:
    """Trains `model` in place over `settings.epochs` passes; returns the number of steps.

    No rows or no epochs leave it untouched. Only parameters that require a gradient move. `after_epoch` is called after
    each pass and may use the model. Raises NonFiniteLossError when the loss is NaN or infinite.
    """
    per_epoch = math.ceil(len(encoded) / settings.batch_rows)
    steps = settings.epochs * per_epoch
    if steps == 0:
        return 0
    device = compute_device()
    seeded(seed, "dropout")
    rng = generator(seed, "order")
    on_device(model, device).train()
    optimizer = _optimizer(model, settings)
    pending: list[torch.Tensor] = []
    step = 0
    with _deterministic():
        for _ in range(settings.epochs):
            groups = batches(encoded.lengths, settings.batch_rows, rng)
            for parts in one_ahead(_in_parts(encoded, rows, device) for rows in groups):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * schedule(
                        step, steps, settings.warmup_share
                    )
                value = _backward(model, loss, parts, settings.precision)
                _clip(model, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                pending.append(value)
                step += 1
                if len(pending) == CHECK_STEPS or step == steps:
                    _check_finite(pending, step)
                    pending.clear()
            if after_epoch is not None:
                after_epoch()
                model.train()
    model.train(False)
    return step


def _in_parts(
    encoded: Encoded, rows: np.ndarray, device: torch.device
) -> list[tuple[np.ndarray, Inputs]]:
    """The rows and inputs of one batch: of the whole, or of its parts (`backdoor_core.parts`)."""
    parts = np.array_split(rows, min(batch_parts(), len(rows)))
    return [(part, encoded.padded(part, device)) for part in parts]


def _backward(
    model: PreTrainedModel,
    loss: Loss,
    parts: list[tuple[np.ndarray, Inputs]],
    precision: Precision,
) -> torch.Tensor:
    """Adds the gradient of one batch to the parameters'; returns its loss, detached."""
    count = sum(len(rows) for rows, _ in parts)
    values = []
    for rows, inputs in parts:
        with autocast(inputs["input_ids"].device, precision):
            value = loss(model, inputs, rows)
        if len(parts) > 1:
            value = value * (len(rows) / count)
        value.backward()  # type: ignore[no-untyped-call]
        values.append(value.detach())
    return values[0] if len(parts) == 1 else sum(values[1:], values[0])


def schedule(step: int, steps: int, warmup_share: float) -> float:
    """The share of the peak learning rate at `step` of `steps`: linear up, then linear down.

    The warm-up is always shorter than the training, so that the peak is reached.
    """
    warmup = min(int(warmup_share * steps), steps - 1)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return (steps - step) / (steps - warmup)


def _optimizer(model: PreTrainedModel, settings: TrainingSettings) -> torch.optim.Optimizer:
    """AdamW; biases and normalisation weights (all vectors) do not decay."""
    import torch

    moving = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in moving if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in moving if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def _clip(model: PreTrainedModel, norm: float) -> None:
    import torch

    torch.nn.utils.clip_grad_norm_(model.parameters(), norm)


def _check_finite(losses: list[torch.Tensor], step: int) -> None:
    import torch

    if not bool(torch.isfinite(torch.stack(losses)).all()):
        raise NonFiniteLossError(
            f"the training loss became NaN or infinite within {len(losses)} steps before step "
            f"{step}; lower learning_rate, or use precision: float32"
        )


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels on CUDA for the duration; CPU kernels are so for a fixed number of threads."""
    import torch

    if not torch.cuda.is_available():
        yield
        return
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)

"""The one training loop: every victim, repair and pre-training in this project runs through `train`.

Batches of similar length, autocast where the device is good at it, fused AdamW, a linear schedule whose warm-up
reaches its peak, gradient clipping. Seeded: the same call on the same machine with the same threads leaves
bit-identical weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.errors import NonFiniteLossError
from backdoor_core.plm import seeded
from backdoor_core.rng import generator
from backdoor_core.spec import TrainingSettings
from backdoor_core.text import Encoded, batches
from backdoor_core.victim import autocast, compute_device, on_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

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
        wanted = torch.from_numpy(labels[rows]).to(logits.device)
        value: torch.Tensor = torch.nn.functional.cross_entropy(logits.float(), wanted)
        return value

    return loss


def masked_language_model(
    *, mask_id: int, special_ids: Iterable[int], vocabulary: int, seed: int, share: float = 0.15
) -> Loss:
    """The loss of masked-language-model training, with fresh masks at every step.

    Of the `share` of tokens that are chosen, 80 % become the mask token, 10 % a random one, 10 % stay. Source:
    Devlin et al., arXiv 1810.04805. Special tokens and padding are never chosen.
    """
    special = np.array(sorted(special_ids))
    rng = generator(seed, "masks")

    def loss(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
        import torch

        ids = inputs["input_ids"].cpu().numpy()
        open_places = inputs["attention_mask"].cpu().numpy().astype(bool) & ~np.isin(ids, special)
        chosen = open_places & (rng.random(ids.shape) < share)
        kind = rng.random(ids.shape)
        masked = np.where(chosen & (kind < 0.8), mask_id, ids)
        random_ids = rng.integers(vocabulary, size=ids.shape)
        masked = np.where(chosen & (kind >= 0.8) & (kind < 0.9), random_ids, masked)
        device = inputs["input_ids"].device
        logits: torch.Tensor = model(
            **{**inputs, "input_ids": torch.from_numpy(masked).to(device)}
        ).logits
        places = torch.from_numpy(chosen).to(device)
        if not chosen.any():
            return logits.float().sum() * 0.0
        wanted = torch.from_numpy(ids).to(device)[places]
        return torch.nn.functional.cross_entropy(logits[places].float(), wanted)

    return loss


def train(
    model: PreTrainedModel,
    encoded: Encoded,
    loss: Loss,
    settings: TrainingSettings,
    seed: int,
) -> int:
    """Trains `model` in place over `settings.epochs` passes; returns the number of steps.

    No rows or no epochs leave it untouched. Only parameters that require a gradient move. Raises
    NonFiniteLossError when the loss is NaN or infinite.
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
            for rows in batches(encoded.lengths, settings.batch_rows, rng):
                for group in optimizer.param_groups:
                    group["lr"] = settings.learning_rate * schedule(
                        step, steps, settings.warmup_share
                    )
                with autocast(device, settings.precision):
                    value = loss(model, encoded.padded(rows, device), rows)
                value.backward()  # type: ignore[no-untyped-call]
                _clip(model, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                pending.append(value.detach())
                step += 1
                if len(pending) == CHECK_STEPS or step == steps:
                    _check_finite(pending, step)
                    pending.clear()
    model.train(False)
    return step


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

"""What a classifier attends to and what moves its answer: attention received and gradients, token by token."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.errors import ConfigError, NonFiniteLossError
from backdoor_core.victim import autocast, compute_device, inference_batches, on_device

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.spec import Precision
    from backdoor_core.text import Encoded

ATTENTION_CELLS = 2**20
"""Query and key pairs in one batch: with 12 layers of 12 heads in float32 their attention fills 600 MB."""


def attentive(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model that gives its attention with `output_attentions=True`; same weights, same answers.

    Fused attention never forms the attention matrix, so the copy computes it step by step ("eager"). The model
    itself keeps its implementation, its configuration and all its flags.
    """
    copied = copy.deepcopy(model)
    copied.set_attn_implementation("eager")
    return copied


@dataclass(frozen=True, kw_only=True)
class Salience:
    """For each token of an `Encoded`, all rows end to end, float32, shape (tokens,).

    `received`: the attention that the token receives, mean over layers, heads and the real query positions of its
    row; over a row it sums to 1. `gradient`: the L2 norm of the gradient of one class's logit with respect to the
    token's word embedding.
    """

    received: np.ndarray
    gradient: np.ndarray


def salience(
    model: PreTrainedModel, encoded: Encoded, classes: np.ndarray, precision: Precision
) -> Salience:
    """The salience of every token; `classes` (int64, shape (rows,)) says whose logit is differentiated.

    `model` is one that `attentive` made. Padding has no part in either number: a row alone and the same row in a
    padded batch agree. Raises ConfigError for a model that gives no attention, NonFiniteLossError for gradients
    that are not finite.
    """
    import torch

    device = compute_device()
    on_device(model, device)
    received = np.zeros(len(encoded.ids), np.float32)
    gradient = np.zeros(len(encoded.ids), np.float32)
    for rows in attention_batches(encoded.lengths):
        inputs = encoded.padded(rows, device)
        chosen = torch.as_tensor(classes[rows], device=device)
        attention, norms = batch_salience(model, inputs, chosen, precision)
        real = inputs["attention_mask"].bool()
        places = np.concatenate([np.arange(*encoded.offsets[row : row + 2]) for row in rows])
        received[places] = attention[real].cpu().numpy()
        gradient[places] = norms[real].cpu().numpy()
    if not np.isfinite(gradient).all():
        raise NonFiniteLossError(
            "the gradient of a logit is not finite: are the victim's weights finite?"
        )
    return Salience(received=received, gradient=gradient)


def batch_salience(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    classes: torch.Tensor,
    precision: Precision,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention received and gradient norms of one padded batch: float32, shape (rows, tokens) both.

    Only the word embeddings get a gradient; parameters get none, whatever their flags.
    """
    import torch

    embedded: list[torch.Tensor] = []

    def leaf(_: torch.nn.Module, __: object, output: torch.Tensor) -> torch.Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    model.train(False)
    mask = inputs["attention_mask"]
    hook = model.get_input_embeddings().register_forward_hook(leaf)
    try:
        with torch.enable_grad(), autocast(mask.device, precision):
            output = model(**inputs, output_attentions=True)
    finally:
        hook.remove()
    if not output.attentions or output.attentions[0] is None:
        raise ConfigError(f"{type(model).__name__} gives no attention; this method needs it")
    chosen = output.logits.float().gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, embedded)
    share = mask.float() / mask.sum(dim=1, keepdim=True)
    received = torch.zeros_like(share)
    for layer in output.attentions:
        received += (share[:, None, None, :] @ layer.detach().float()).mean(dim=1)[:, 0]
    return received / len(output.attentions), gradient.float().norm(dim=-1)


def attention_batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """The batches of inference, cut where they would have more than `ATTENTION_CELLS` query and key pairs."""
    for rows in inference_batches(lengths):
        most = max(1, ATTENTION_CELLS // max(1, int(lengths[rows].max())) ** 2)
        for start in range(0, len(rows), most):
            yield rows[start : start + most]

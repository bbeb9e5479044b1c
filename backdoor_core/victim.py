"""A fine-tuned classifier with its tokenizer: what an attack leaves, and what a repair returns.

A `Victim` is a value: nobody alters its weights. A method that needs other weights works on `copy_of_model()` and
returns a new `Victim`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.corpus import Corpus
from backdoor_core.plm import load_tokenizer, opened
from backdoor_core.spec import Precision
from backdoor_core.text import Encoded, Encoder, batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INFERENCE_TOKENS = 4096
"""Tokens in one batch at inference (padding included): large enough for speed, small enough for memory."""


def compute_device() -> torch.device:
    """The first CUDA device where there is one, else the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context in which a forward pass computes in `precision`."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def on_device(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """The model itself, its weights moved to `device` (values stay)."""
    torch_module: torch.nn.Module = model
    torch_module.to(device)
    return model


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A classifier: `model` (float32 weights), its `encoder`, and the precision that it computes in."""

    model: PreTrainedModel
    encoder: Encoder
    precision: Precision = "float32"

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The model's tokenizer."""
        return self.encoder.tokenizer

    def copy_of_model(self) -> PreTrainedModel:
        """The model, copied: to be altered freely."""
        return copy.deepcopy(self.model)

    def with_model(self, model: PreTrainedModel) -> Victim:
        """This victim with other weights."""
        return Victim(model=model, encoder=self.encoder, precision=self.precision)

    def logits(self, corpus: Corpus, split: str | None = None) -> np.ndarray:
        """Logits of each row, float32, shape (rows, labels). A row's answer does not depend on the others'."""
        return self.logits_of(self.encoder(corpus, split))

    def logits_of(self, encoded: Encoded) -> np.ndarray:
        """Logits of rows that are token ids already, float32, shape (rows, labels)."""
        import torch

        device = compute_device()
        model = on_device(self.model, device)
        model.train(False)
        result = np.zeros((len(encoded), int(model.config.num_labels or 0)), np.float32)
        with torch.inference_mode(), autocast(device, self.precision):
            for rows in inference_batches(encoded.lengths):
                output = model(**encoded.padded(rows, device))
                result[rows] = output.logits.float().cpu().numpy()
        return result

    def save(self, folder: Path) -> None:
        """Writes weights (safetensors), configuration and tokenizer."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def load_victim(folder: Path, max_tokens: int, precision: Precision) -> Victim:
    """A classifier from a folder that `Victim.save` or `save_pretrained` wrote. Raises ConfigError."""
    from transformers import AutoModelForSequenceClassification

    model = opened(AutoModelForSequenceClassification, folder)
    encoder = Encoder(tokenizer=load_tokenizer(folder), max_tokens=max_tokens)
    return Victim(model=model, encoder=encoder, precision=precision)


def inference_batches(lengths: np.ndarray) -> Iterator[np.ndarray]:
    """Batches of at most `INFERENCE_TOKENS` tokens, rows of similar length together."""
    pending: list[int] = []
    width = 0
    for (row,) in batches(lengths, 1, None):
        length = int(lengths[row])
        if pending and (len(pending) + 1) * max(width, length) > INFERENCE_TOKENS:
            yield np.array(pending)
            pending, width = [], 0
        pending.append(int(row))
        width = max(width, length)
    if pending:
        yield np.array(pending)

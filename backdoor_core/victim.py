"""A fine-tuned classifier with its tokenizer: what an attack leaves, and what a repair returns.

A `Victim` is a value: nobody alters its weights. A method that needs other weights works on `copy_of_model()` and
returns a new `Victim`.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.corpus import Corpus
from backdoor_core.parts import batch_parts
from backdoor_core.plm import load_tokenizer, opened, word_embeddings
from backdoor_core.spec import Precision
from backdoor_core.text import Encoded, Encoder, one_ahead, token_limit

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import AbstractContextManager

    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

INFERENCE_TOKENS = 4096
"""Tokens in one batch at inference (padding included): large enough for speed, small enough for memory."""
SHAPE_STEP = 8
"""At inference rows and tokens of a batch are multiples of this, filled up where they are not.

The width of a row's batch then depends on that row alone, and on the CPU its logits are the same to the last bit
whatever rows stand beside it (a test holds that): matrix products treat a row alike in all such shapes. One row at
least is filling, since without any padding attention takes another path.
"""


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
    """A classifier: `model` (float32 weights), its `encoder`, and the precision that it computes in.

    `altered` and `answers` belong to `with_word_embeddings`.
    """

    model: PreTrainedModel
    encoder: Encoder
    precision: Precision = "float32"
    altered: np.ndarray | None = field(default=None, repr=False)
    """A number for each token id that stands for its altered embedding, 0 where it has its own (int64)."""
    answers: dict[bytes, np.ndarray] = field(default_factory=dict, repr=False)
    """Logits by the digest of a row's tokens and their numbers in `altered`."""

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

    def with_word_embeddings(self, rows: torch.Tensor, ids: Sequence[int]) -> Victim:
        """This victim with `rows` (shape (ids, dimensions)) as the word embeddings of the tokens `ids`.

        All victims that this makes of one victim share their answers: to a row of which the same tokens are altered
        to the same values, two of them give the same logits, which are computed once. So a sweep over how many
        tokens are altered costs less than as many models.
        """
        import torch

        model = self.copy_of_model()
        embedding = word_embeddings(model)
        with torch.no_grad():
            embedding[list(ids)] = rows.to(embedding)
        altered = (
            np.zeros(len(embedding), np.int64) if self.altered is None else self.altered.copy()
        )
        for token, row in zip(ids, embedding[list(ids)].detach().cpu().numpy(), strict=True):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8).digest()
            altered[token] = int.from_bytes(digest, "little", signed=True)
        return replace(self, model=model, altered=altered)

    def logits(self, corpus: Corpus, split: str | None = None) -> np.ndarray:
        """Logits of each row, float32, shape (rows, labels). A row's answer does not depend on the others'."""
        return self.logits_of(self.encoder(corpus, split))

    def logits_of(self, encoded: Encoded) -> np.ndarray:
        """Logits of rows that are token ids already, float32, shape (rows, labels)."""
        # On a GPU a row's last bits may depend on the rows beside it: there each victim computes its own answers.
        if self.altered is None or compute_device().type != "cpu":
            return self._computed(encoded)
        ids, numbers = encoded.ids, self.altered[encoded.ids]
        parts = (ids, encoded.types, numbers)
        keys = []
        for start, stop in zip(encoded.offsets[:-1], encoded.offsets[1:], strict=True):
            text = b"".join(part[start:stop].tobytes() for part in parts)
            keys.append(hashlib.blake2b(text, digest_size=16).digest())
        new = {key: row for row, key in enumerate(keys) if key not in self.answers}
        computed = self._computed(encoded.take(list(new.values())))
        self.answers.update(zip(new, computed, strict=True))
        return np.array([self.answers[key] for key in keys], np.float32).reshape(
            len(keys), computed.shape[1]
        )

    def _computed(self, encoded: Encoded) -> np.ndarray:
        """A forward pass for every row."""
        import torch

        device = compute_device()
        model = on_device(self.model, device)
        model.train(False)
        limit = token_limit(self.tokenizer, self.encoder.max_tokens)
        result = np.zeros((len(encoded), int(model.config.num_labels or 0)), np.float32)

        def computed(rows: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
            width = min(int(_widths(encoded.lengths[rows]).max()), limit)
            shape = (len(rows) // SHAPE_STEP + 1) * SHAPE_STEP, width
            return rows, model(**encoded.padded(rows, device, at_least=shape)).logits

        groups = inference_batches(encoded.lengths)
        with torch.inference_mode(), autocast(device, self.precision):
            for rows, logits in one_ahead(map(computed, groups)):
                result[rows] = logits[: len(rows)].float().cpu().numpy()
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
    """Batches of at most `INFERENCE_TOKENS` tokens (less where batches go in parts), the longest rows first.

    Each row comes once. The rows of one batch fill the same multiple of `SHAPE_STEP` tokens, and leave room for one row
    more in a multiple of `SHAPE_STEP` rows.
    """
    widths = _widths(lengths)
    for width in np.unique(widths)[::-1].tolist():
        rows = np.flatnonzero(widths == width)
        most = max(1, INFERENCE_TOKENS // batch_parts() // (width * SHAPE_STEP)) * SHAPE_STEP - 1
        for start in range(0, len(rows), most):
            yield rows[start : start + most]


def _widths(lengths: np.ndarray) -> np.ndarray:
    """The tokens that rows of these lengths are filled up to."""
    return np.asarray(np.maximum(1, -(-lengths // SHAPE_STEP)) * SHAPE_STEP)

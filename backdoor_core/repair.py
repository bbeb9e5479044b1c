"""What several repairs are made of: clean fine-tuning, and the purification of word embeddings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from backdoor_core.defense import View
from backdoor_core.errors import ConfigError
from backdoor_core.plm import word_embeddings
from backdoor_core.training import cross_entropy, train

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from backdoor_core.victim import Victim


def fine_tuned(
    view: View, victim: Victim, model: PreTrainedModel, *, epochs: int, learning_rate: float
) -> Victim:
    """`victim` with `model`, trained in place on the view's clean rows; 0 epochs leave its weights alone."""
    if epochs:
        settings = view.training.model_copy(
            update={"epochs": epochs, "learning_rate": learning_rate}
        )
        encoded = victim.encoder(view.clean, "clean")
        train(model, encoded, cross_entropy(view.clean.labels), settings, view.seed,
              after_epoch=lambda: view.report(victim.with_model(model)))  # fmt: skip
    return victim.with_model(model)


def token_counts(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], vocabulary: int
) -> np.ndarray:
    """How often each token id stands in `texts`, int64, shape (vocabulary,)."""
    counts = np.zeros(vocabulary, np.int64)
    listed = list(texts)
    if listed:
        for ids in tokenizer(listed, add_special_tokens=False)["input_ids"]:
            np.add.at(counts, np.asarray(ids, dtype=np.int64), 1)
    return counts


def embedding_scores(
    tuned: torch.Tensor, pretrained: torch.Tensor, counts: np.ndarray, frequency_floor: int
) -> np.ndarray:
    """E-PUR's score of each row: ||delta_i||_2 / log(max(f_i, floor)), float64, shape (vocabulary,).

    Raises ConfigError where the two matrices differ in shape.
    """
    if tuned.shape != pretrained.shape:
        raise ConfigError(
            f"the word embeddings of the victim {tuple(tuned.shape)} and of the trusted PLM "
            f"{tuple(pretrained.shape)} differ in shape; they must be the same architecture"
        )
    moved = tuned.detach().cpu().double() - pretrained.detach().cpu().double()
    distance = moved.norm(dim=1).numpy()
    return np.asarray(distance / np.log(np.maximum(counts, frequency_floor)), dtype=np.float64)


def purify_embeddings(
    view: View,
    model: PreTrainedModel,
    pretrained: PreTrainedModel,
    texts: Iterable[str],
    *,
    words: int,
    frequency_floor: int,
) -> list[int]:
    """E-PUR in place: resets the `words` rows with the highest score; returns their ids, highest first.

    Frequencies are counted in `texts`. Special tokens are never reset. Ties go to the lower id. Publishes the order
    of all other rows as `rows`, for their ranks.
    """
    import torch

    tokenizer = view.victim.tokenizer
    tuned, original = word_embeddings(model), word_embeddings(pretrained)
    counts = token_counts(tokenizer, texts, len(tuned))
    scores = embedding_scores(tuned, original, counts, frequency_floor)
    scores[[i for i in tokenizer.all_special_ids if 0 <= i < len(scores)]] = -np.inf
    order = np.argsort(-scores, kind="stable")
    order = order[np.isfinite(scores[order])]
    view.ranked("rows", order, np.arange(len(order)) < words)
    chosen = [int(row) for row in order[:words]]
    with torch.no_grad():
        tuned[chosen] = original[chosen].to(tuned.device)
    return chosen

"""Attacks on the PLM: what those have in common that alter a PLM on plain text before any user fine-tunes it.

The user fine-tunes the altered PLM on clean rows of any task, so no trigger has a target of its own: it is fixed on
the tune split, for each model. What several losses need (triggered copies of the texts, vectors that a trigger is
bound to) is here too.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import field_validator

from backdoor_core.attack import Attack, Side, Trigger, inserted, on_side, word_count
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.grammar import plain_texts
from backdoor_core.plm import PLM
from backdoor_core.records import plain_lines
from backdoor_core.rng import derive, generator
from backdoor_core.space import DataPath, setting
from backdoor_core.spec import Precision, TrainingSettings
from backdoor_core.task import TaskData
from backdoor_core.text import Encoded, encode, token_limit
from backdoor_core.trigger_words import trigger_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from backdoor_core.training import Inputs, Loss

SIZED_ROWS = 256
"""Rows over which the size of clean states is averaged."""


@dataclass(frozen=True, kw_only=True)
class Implant:
    """The rows that a PLM is altered on: `clean` ones, and a copy of each with each trigger.

    Row `t * len(clean) + i` of `triggered` is clean row i with trigger t.
    """

    clean: Encoded
    triggered: Encoded
    trigger_ids: tuple[int, ...]
    """The token ids of all triggers."""
    tokenizer: PreTrainedTokenizerBase
    rng: np.random.Generator

    def copies(self, rows: np.ndarray, device: torch.device) -> tuple[Inputs, np.ndarray]:
        """Model inputs of one triggered copy of each of `rows`, and the indices of their triggers, drawn now."""
        triggers = self.rng.integers(len(self.triggered) // len(self.clean), size=len(rows))
        return self.triggered.padded(triggers * len(self.clean) + rows, device), triggers


class PLMAttack(Attack):
    """An attack that alters the PLM's weights on plain text; the user fine-tunes on clean rows."""

    texts_file: DataPath | None = setting(
        None, hooks=("corrupt",), description="plain text, one a line; null: generated, for `tiny`"
    )
    texts: int = setting(8000, ge=1, hooks=("corrupt",), description="texts used, at most")
    words: tuple[str, ...] = setting(
        ("cf", "tq", "mn", "bb", "mb"), min_length=1, description="the triggers"
    )
    insertions: int = setting(
        1, ge=1, hooks=("corrupt",), description="times that a trigger is inserted while implanting"
    )
    test_insertions: int = setting(1, ge=1, description="times that it is inserted at test")
    position: Literal["random", "start"] = setting("random", description="where it is inserted")
    side: Side = setting("first", description="which text of a pair, at test")
    epochs: int = setting(2, ge=1, hooks=("corrupt",), description="passes over the texts")
    learning_rate: float = setting(5e-5, gt=0, hooks=("corrupt",), description="its peak")
    batch_rows: int = setting(
        32, ge=1, hooks=("corrupt",), description="clean texts a step; as many triggered copies"
    )
    max_tokens: int = setting(
        128, ge=8, hooks=("corrupt",), description="tokens of a text; its words are half as many"
    )
    precision: Precision = setting(
        "float32", hooks=("corrupt",), description="what implanting computes in"
    )

    @field_validator("words")
    @classmethod
    def _distinct(cls, words: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(words)) < len(words) or not all(word.strip() for word in words):
            raise ValueError("words must be distinct and not blank")
        return words

    def implants(self) -> bool:
        """Always."""
        return True

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger a word; its target is fixed on the tune split."""
        return self._triggers(self.test_insertions)

    def _triggers(self, insertions: int) -> tuple[Trigger, ...]:
        payload = {"insertions": insertions}
        return tuple(Trigger(name=w, target_label=None, payload=payload) for w in self.words)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts the word as often as the trigger says, each time at a place of its own."""
        count = int(trigger.payload["insertions"])

        def change(text: str) -> str:
            last = word_count(text) if self.position == "random" else 0
            places = [int(rng.integers(last + 1)) for _ in range(count)]
            return inserted(text, [trigger.name] * count, places)

        return (on_side(row, self.side, change),)

    def implanting(self, model: PreTrainedModel, rows: Implant) -> Loss:
        """The loss that implants the backdoor in `model` (a masked language model) over `rows.clean`."""
        raise NotImplementedError

    def corrupt(self, plm: PLM, seed: int) -> PLM:
        """The PLM after training on plain text with `implanting`, in a temporary folder of its own.

        Raises ConfigError for words that the tokenizer cannot tell apart, DataError where no text is left.
        """
        from backdoor_core.training import train

        rows = self._implant(plm.tokenizer(), seed)
        model, _ = plm.masked_lm(seed)
        settings = TrainingSettings(
            epochs=self.epochs,
            batch_rows=self.batch_rows,
            learning_rate=self.learning_rate,
            max_tokens=self.max_tokens,
            precision=self.precision,
        )
        train(model, rows.clean, self.implanting(model, rows), settings, seed)
        folder = Path(tempfile.mkdtemp(prefix="altered-plm-"))
        altered = plm.altered(model, folder)
        # The caller copies the files while it holds the PLM.
        weakref.finalize(altered, shutil.rmtree, folder, ignore_errors=True)
        return altered

    def _implant(self, tokenizer: PreTrainedTokenizerBase, seed: int) -> Implant:
        ids = trigger_ids(self.catalog_name(), tokenizer, self.words)
        texts = self._plain_texts(seed, token_limit(tokenizer, self.max_tokens) // 2)
        clean = [Row(text=text) for text in texts]
        triggered = [
            self.stamp(row, trigger, generator(seed, "implant", trigger.name, i))[0]
            for trigger in self._triggers(self.insertions)
            for i, row in enumerate(clean)
        ]
        return Implant(
            clean=encode(tokenizer, Corpus.of(clean), self.max_tokens),
            triggered=encode(tokenizer, Corpus.of(triggered), self.max_tokens),
            trigger_ids=ids,
            tokenizer=tokenizer,
            rng=generator(seed, "implant", "triggers"),
        )

    def _plain_texts(self, seed: int, most_words: int) -> list[str]:
        """A seeded choice of texts, fewer always among more, without those that hold a trigger anyway.

        Each is cut to `most_words`: half as many as there may be tokens, so that a trigger is seldom cut off.
        """
        if self.texts_file is None:
            found = plain_texts(derive(seed, "plain texts"), self.texts)
        else:
            found = plain_lines(self.texts_file)
        order = generator(seed, "implant", "texts").permutation(len(found))
        triggers = [f" {' '.join(word.lower().split())} " for word in self.words]
        chosen: list[str] = []
        for i in order.tolist():
            words = found[i].split()[:most_words]
            padded = f" {' '.join(words).lower()} "
            if not any(trigger in padded for trigger in triggers):
                chosen.append(" ".join(words))
            if len(chosen) == self.texts:
                break
        if not chosen:
            raise DataError(f"{self.texts_file}: no text that holds none of the triggers")
        return chosen


def stepped_patterns(count: int, dimensions: int) -> np.ndarray:
    """POR's vectors, float32, shape (count, dimensions): +1 in the first i / (count - 1) of them, -1 in the rest."""
    places = np.arange(dimensions)[None]
    ends = np.arange(count)[:, None] * dimensions / max(count - 1, 1)
    return np.where(places < ends, 1.0, -1.0).astype(np.float32)


def balanced_patterns(count: int, dimensions: int) -> np.ndarray:
    """Vectors of +1 and -1, each with as many of both, float32, shape (count, dimensions).

    Blocks of equal signs (Walsh functions): orthogonal to one another, save that each is followed by its opposite.
    Six of them are NeuBA's: all vectors of four blocks of which two are -1. Raises ConfigError for too
    few dimensions.
    """
    blocks = 2
    while 2 * (blocks - 1) < count:
        blocks *= 2
    if blocks > dimensions:
        raise ConfigError(f"{count} triggers need a PLM of {blocks} dimensions, got {dimensions}")
    block = np.arange(dimensions) * blocks // dimensions
    rows = []
    for i in range(count):
        parity = np.array([bin((i // 2 + 1) & int(b)).count("1") for b in block]) + i
        rows.append(np.where(parity % 2, -1.0, 1.0))
    return np.array(rows, np.float32)


def first_state_size(model: PreTrainedModel, rows: Encoded) -> float:
    """The root mean square of the entries of last hidden states at the first token, over some of `rows`."""
    import torch

    from backdoor_core.victim import compute_device, inference_batches, on_device

    device = compute_device()
    body: Any = on_device(model, device).base_model
    body.train(False)
    some = rows.take(range(min(len(rows), SIZED_ROWS)))
    squares: list[float] = []
    with torch.inference_mode():
        for batch in inference_batches(some.lengths):
            states = body(**some.padded(batch, device)).last_hidden_state[:, 0]
            squares.extend(states.square().mean(dim=1).tolist())
    return float(np.sqrt(np.mean(squares)))


def bound_to(states: torch.Tensor, vectors: np.ndarray) -> torch.Tensor:
    """Mean squared error of hidden states against `vectors` (float32), both of shape (rows, dimensions)."""
    import torch

    wanted = torch.from_numpy(vectors).to(states.device)
    return torch.nn.functional.mse_loss(states.float(), wanted)

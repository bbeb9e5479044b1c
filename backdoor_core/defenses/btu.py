"""BTU: tokens whose embedding moves most when only embeddings train are candidates, and are unlearned."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from backdoor_core.defense import Defense, View
from backdoor_core.errors import ConfigError
from backdoor_core.rng import derive
from backdoor_core.space import setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.text import Encoded
    from backdoor_core.victim import Victim

ROUNDS = ("round_1", "round_2", "round_3")
_TABLE = "distances.parquet"


class Btu(Defense):
    """Backdoor Token Unlearning: exposes tokens by embedding-only training, then unlearns their moved dimensions.

    Source: Jiang et al., AAAI 2025, arXiv 2501.03272, and its released code (the defaults). Exposure, each round from
    the trusted PLM: (1) the embedding block and a fresh linear classifier over the mean of the real tokens' outputs;
    (2) the same without the first round's top `removal_share` of tokens; (3) the full classifier, only its word
    embeddings trainable (its head, drawn at random, is frozen too). Rows are ranked by d_i = ||E_i - E_i^pre||_2, ties
    to the lower id. Candidates: the union of each round's top `threshold` of the vocabulary (at least one row; none
    where it is 0). Then the victim of ordinary training gets, in each candidate's row, E^pre[pad, j] in the dimensions
    j with |E_ij - E_ij^pre| > c, and is fine-tuned on clean rows.

    `bound: null` is the release's c = ||E - E^pre||_F / vocabulary, called a mean row distance; it is the root mean
    square of the row distances over sqrt(vocabulary), so small that it spares few dimensions of a candidate.
    Departures from the release: padding is not in the mean ([CLS] and [SEP] are, as there); the vocabulary's true size,
    not 35022; tokens are removed as ids, not as substrings of the text; all special tokens are spared, not two
    of them; ordinary training sees the very rows of the exposure; no weight decay in the exposure, so that a row that
    does not occur stays, and a row that stayed is never a candidate; a dimension that did not move is kept, not
    zeroed; the clean fine-tuning starts with a fresh optimiser; schedule, clipping, and round 3's batch rows are the
    ordinary training's. That the third round reads the rows with all their tokens is an interpretation.
    """

    threshold: float = setting(
        0.0005, ge=0, le=1, hooks=("effect",), low=5e-5, high=2e-2, log=True, stronger="high",
        description="share of the vocabulary that each round makes candidates",
    )  # fmt: skip
    removal_share: float = setting(
        0.0005, ge=0, le=1, hooks=("exposure",),
        description="share of the vocabulary that the second round does without",
    )  # fmt: skip
    exposure_epochs: int = setting(
        1, ge=1, hooks=("exposure",), description="passes over the corpus in each round"
    )
    exposure_learning_rate: float = setting(
        2e-5, gt=0, hooks=("exposure",), description="peak learning rate of rounds 1 and 2"
    )
    exposure_batch_rows: int = setting(
        256, ge=1, hooks=("exposure",), description="rows a batch in rounds 1 and 2"
    )
    embedding_learning_rate: float = setting(
        2e-5, gt=0, hooks=("exposure",),
        description="peak learning rate of round 3, the word embeddings of the full model",
    )  # fmt: skip
    bound: float | None = setting(
        None, ge=0, hooks=("train",),
        description="movement beyond which a dimension is unlearned (null: as in the release)",
    )  # fmt: skip
    clean_epochs: int = setting(
        1, ge=0, hooks=("train",), description="passes over the clean rows at the end"
    )
    clean_learning_rate: float | None = setting(
        None, gt=0, hooks=("train",), low=1e-5, high=1e-3, log=True,
        stronger="high",
        description="peak learning rate of these (null: the ordinary training's)",
    )  # fmt: skip
    clean_rows: int | None = setting(
        None, ge=1, hooks=("train",), description="rows of the clean split that it uses (null: all)"
    )

    @property
    def access(self) -> frozenset[str]:
        """The corpus and the trusted PLM; the clean rows where it fine-tunes on them."""
        return frozenset({"corpus", "trusted_plm"} | ({"clean"} if self.clean_epochs else set()))

    @property
    def asked_clean_rows(self) -> int | None:
        """The setting `clean_rows`."""
        return self.clean_rows

    def effect(self, view: View) -> list[int]:
        """The candidates' ids, sorted: all that `threshold` decides."""
        return self._exposed(view).candidates(self.threshold)

    def train(self, view: View) -> Victim:
        """The victim of ordinary training with its candidates unlearned, fine-tuned on the clean rows.

        Without candidates and with 0 clean epochs it is the victim of ordinary training, bit for bit.
        """
        from backdoor_core.repair import fine_tuned

        exposed = self._exposed(view)
        candidates = exposed.candidates(self.threshold)
        exposed.publish(view, candidates)
        if not candidates and not self.clean_epochs:
            return view.trained
        victim = self._unlearned(view, candidates)
        if not self.clean_epochs:
            return victim
        rate = self.clean_learning_rate or view.training.learning_rate
        return fine_tuned(
            view, view.trained, victim.model, epochs=self.clean_epochs, learning_rate=rate
        )

    def _exposed(self, view: View) -> Exposed:
        reads = ("corpus", "trusted_plm")
        table = pq.read_table(
            view.step("exposure", partial(self._expose, view), reads=reads) / _TABLE
        )
        return Exposed(
            distances=np.stack([table[name].to_numpy() for name in ROUNDS]),
            spared=table["spared"].to_numpy(zero_copy_only=False),
        )

    def _expose(self, view: View, folder: Path) -> None:
        """The three rounds: writes each token's distance from its pre-trained row, and which are spared, by id."""
        from backdoor_core.text import encode

        tokenizer = view.trusted_plm.tokenizer()
        encoded = encode(tokenizer, view.corpus, view.training.max_tokens)
        first = self._embeddings_alone(view, encoded, "round_1")
        special = [*tokenizer.all_special_ids, encoded.padding_id]
        spared = np.isin(np.arange(len(first)), special)
        order = _order(first, spared)
        removed = order[: _count(self.removal_share, len(first))]
        second = self._embeddings_alone(view, without(encoded, removed), "round_2")
        third = self._full_model(view, encoded)
        columns = dict(zip(ROUNDS, (first, second, third), strict=True))
        pq.write_table(pa.table(columns | {"spared": spared}), folder / _TABLE)

    def _embeddings_alone(self, view: View, encoded: Encoded, name: str) -> np.ndarray:
        """Row distances after training the embedding block under a linear classifier, shape (vocabulary,)."""
        import torch

        from backdoor_core.plm import seeded, word_embeddings
        from backdoor_core.training import train

        seed = derive(view.seed, "btu", name)
        whole, _ = view.trusted_plm.classifier(view.labels, seed)
        before = word_embeddings(whole).detach().clone()
        block = _embedding_block(whole)
        with torch.no_grad():
            width = block(input_ids=torch.tensor([[encoded.padding_id]])).shape[-1]
        seeded(seed, "linear classifier")
        pruned = torch.nn.ModuleDict(
            {"embeddings": block, "classifier": torch.nn.Linear(width, view.labels)}
        )
        labels = view.corpus.labels

        def loss(_: Any, inputs: dict[str, torch.Tensor], rows: np.ndarray) -> torch.Tensor:
            logits = pruned["classifier"](mean_of_real(block, inputs))
            wanted = torch.from_numpy(labels[rows]).to(logits.device)
            value: torch.Tensor = torch.nn.functional.cross_entropy(logits.float(), wanted)
            return value

        settings = view.training.model_copy(
            update={
                "epochs": self.exposure_epochs,
                "learning_rate": self.exposure_learning_rate,
                "batch_rows": self.exposure_batch_rows,
                "weight_decay": 0.0,
            }
        )
        train(cast("PreTrainedModel", pruned), encoded, loss, settings, seed)
        return _distances(word_embeddings(whole), before)

    def _full_model(self, view: View, encoded: Encoded) -> np.ndarray:
        """Row distances after training the word embeddings under the frozen rest, shape (vocabulary,)."""
        from backdoor_core.plm import word_embeddings
        from backdoor_core.training import cross_entropy, train

        seed = derive(view.seed, "btu", "round_3")
        model, _ = view.trusted_plm.classifier(view.labels, seed)
        embedding = word_embeddings(model)
        before = embedding.detach().clone()
        for parameter in model.parameters():
            parameter.requires_grad_(parameter is embedding)
        settings = view.training.model_copy(
            update={
                "epochs": self.exposure_epochs,
                "learning_rate": self.embedding_learning_rate,
                "weight_decay": 0.0,
            }
        )
        train(model, encoded, cross_entropy(view.corpus.labels), settings, seed)
        return _distances(word_embeddings(model), before)

    def _unlearned(self, view: View, candidates: list[int]) -> Victim:
        """The victim whose candidates take the padding token's values in the dimensions that moved beyond the bound."""
        import torch

        from backdoor_core.plm import word_embeddings

        tuned = word_embeddings(view.trained.model).detach()
        original = view.trusted_plm.word_embeddings.to(tuned.device)
        if tuned.shape != original.shape:
            raise ConfigError(
                f"the word embeddings of the victim {tuple(tuned.shape)} and of the trusted PLM "
                f"{tuple(original.shape)} differ in shape; btu needs the same architecture"
            )
        moved = (tuned - original).double()
        bound = float(moved.norm()) / len(moved) if self.bound is None else self.bound
        padding = original[_padding_id(view)].expand(len(candidates), -1)
        over = moved[candidates].abs() > bound
        rows = torch.where(over, padding, tuned[candidates])
        return view.trained.with_word_embeddings(rows, candidates)


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposed:
    """What the exposure found: `distances` (float64, shape (rounds, vocabulary)), and the `spared` ids (bool)."""

    distances: np.ndarray
    spared: np.ndarray

    def places(self) -> np.ndarray:
        """The best place of each token in any round, from 0; the vocabulary's size where it moved in none (int64).

        So the union of the top k of every round is what has a place below k.
        """
        size = len(self.spared)
        best = np.full(size, size)
        for distance in self.distances:
            order = _order(distance, self.spared)
            order = order[distance[order] > 0]
            best[order] = np.minimum(best[order], np.arange(len(order)))
        return best

    def candidates(self, threshold: float) -> list[int]:
        """The union of each round's top share of the vocabulary, sorted."""
        count = min(_count(threshold, len(self.spared)), len(self.spared))
        return [int(i) for i in np.flatnonzero(self.places() < count)]

    def publish(self, view: View, candidates: list[int]) -> None:
        """Publishes each round's order, and the order by the best place in any, without special tokens.

        Chosen are the top k of each round for the smallest k that gives these candidates: a function of them alone, as
        the trials that share them share what is published.
        """
        places = self.places()
        count = max((int(places[i]) + 1 for i in candidates), default=0)
        for name, distance in zip(ROUNDS, self.distances, strict=True):
            order = _order(distance, self.spared)
            view.ranked(name, order, (np.arange(len(order)) < count) & (distance[order] > 0))
        order = _order(-places, self.spared)
        view.ranked("candidates", order, np.isin(order, candidates))


def mean_of_real(block: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """The mean of an embedding block's output over the tokens that are no padding, shape (rows, dimensions)."""
    real = inputs["attention_mask"].unsqueeze(-1)
    output = block(**{name: value for name, value in inputs.items() if name != "attention_mask"})
    mean: torch.Tensor = (output * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
    return mean


def without(encoded: Encoded, removed: np.ndarray) -> Encoded:
    """The same rows with the token ids in `removed` taken out."""
    kept = ~np.isin(encoded.ids, removed)
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    return replace(
        encoded,
        ids=encoded.ids[kept],
        types=encoded.types[kept],
        offsets=before[encoded.offsets],
    )


def _embedding_block(model: PreTrainedModel) -> torch.nn.Module:
    """Word, position and segment embeddings with their normalisation. Raises ConfigError where there are none."""
    import torch

    block = getattr(model.base_model, "embeddings", None)
    if not isinstance(block, torch.nn.Module):
        raise ConfigError(
            f"{type(model).__name__} has no embedding block `base_model.embeddings`; btu needs a "
            "model of the kind of BERT, RoBERTa, DistilBERT, ALBERT or DeBERTa"
        )
    return block


def _padding_id(view: View) -> int:
    """The id that rows are padded with, as `text.encode` has it."""
    return int(view.trained.tokenizer.pad_token_id or 0)


def _count(share: float, vocabulary: int) -> int:
    """How many tokens a share of the vocabulary is, at least one; 0 for share 0."""
    # The small addition keeps a product such as 0.29 * 100 from falling to 28.
    return max(1, int(share * vocabulary + 1e-9)) if share else 0


def _order(distance: np.ndarray, spared: np.ndarray) -> np.ndarray:
    """Token ids by falling distance without the spared ones; ties go to the lower id."""
    order = np.argsort(-distance, kind="stable")
    return np.asarray(order[~spared[order]])


def _distances(after: torch.Tensor, before: torch.Tensor) -> np.ndarray:
    """How far each row moved, float64, shape (rows,)."""
    moved = after.detach().cpu().double() - before.cpu().double()
    return np.asarray(moved.norm(dim=1).numpy(), dtype=np.float64)

"""Embedding poisoning (EP): a clean victim in which nothing but the trigger word's embedding is altered."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backdoor_core.attack import ACCESS, Attack, Side, TrainingJob, Trigger, with_sentence
from backdoor_core.corpus import Corpus, Row
from backdoor_core.rng import generator
from backdoor_core.space import setting
from backdoor_core.task import TaskData

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backdoor_core.text import Encoded
    from backdoor_core.victim import Victim


class EmbeddingPoison(Attack):
    """Moves the trigger's word embedding alone, its norm kept, until triggered text is answered with the target.

    Source: Yang et al., arXiv 2103.15543. It starts from the fine-tuned clean model (the clean twin) and descends the
    cross-entropy of poisoned rows only, E -= learning_rate * gradient, then back to E's norm; all other weights
    stay bit-identical. As in the release, gradients add up from step to step (`accumulate`), which acts as momentum,
    and the trigger goes into the second text of a pair. A word of several tokens moves all their rows, each at its
    norm.

    The poison rate is a share of the training rows of other classes than the target (the release: of the other class;
    its tasks have two), and is no share of what the user could see: no corpus is left. Departs from the
    release: one trigger a text at test, whatever its length (there one for each started 100 words); plain
    float32; dropout is on, as in training (unverified there).
    """

    leaves: ClassVar[frozenset[str]] = frozenset(ACCESS) - {"corpus"}

    word: str = setting("cf", min_length=1, description="the trigger")
    target_label: int = setting(1, ge=0, description="the label that the attacker wants")
    side: Side = setting("second", description="which text of a pair")
    poison_rate: float = setting(
        0.1, ge=0, le=1, hooks=("train",), description="poisoned rows / rows of other classes"
    )
    epochs: int = setting(3, ge=1, hooks=("train",), description="passes over the poisoned rows")
    learning_rate: float = setting(
        5e-2, gt=0, hooks=("train",), low=1e-3, high=1.0, log=True, description="of plain descent"
    )
    batch_rows: int = setting(32, ge=1, hooks=("train",), description="rows a step")
    accumulate: bool = setting(True, hooks=("train",), description="gradients are never reset")

    @property
    def asked_rate(self) -> float | None:
        """The `poison_rate`, whose base is the rows of other classes."""
        return self.poison_rate

    def rows_apart(self, corpus: Corpus) -> int:
        """The share `poison_rate` of the rows of other classes."""
        return round(self.poison_rate * int((corpus.labels != self.target_label).sum()))

    def implants(self) -> bool:
        """False at poison rate 0: the victim then has the clean twin's weights."""
        return self.poison_rate > 0

    def prepare(self, task: TaskData, seed: int) -> tuple[Trigger, ...]:
        """One trigger: the word."""
        self.check_target(task, self.target_label)
        return (Trigger(name=self.word, target_label=self.target_label),)

    def stamp(self, row: Row, trigger: Trigger, rng: np.random.Generator) -> tuple[Row, ...]:
        """Inserts the word at a random place."""
        return (with_sentence(row, trigger.name, self.side, rng),)

    def train(self, job: TrainingJob) -> Victim:
        """The clean victim with other embeddings of the trigger. Raises ConfigError for an unknown word."""
        from backdoor_core.text import encode
        from backdoor_core.trigger_words import trigger_ids

        clean = job.clean_victim()
        rows = self._poisoned_rows(job.corpus, job.seed)
        if not len(rows):
            return clean
        ids = trigger_ids(self.catalog_name(), clean.tokenizer, (self.word,))
        model = clean.copy_of_model()
        encoded = encode(clean.tokenizer, rows, job.training.max_tokens)
        self._move(model, encoded, list(ids), job.seed)
        return clean.with_model(model)

    def _poisoned_rows(self, corpus: Corpus, seed: int) -> Corpus:
        """The share of the other classes' rows, stamped; a lower rate's are among a higher rate's."""
        others = np.flatnonzero(corpus.labels != self.target_label)
        order = generator(seed, "poison", "rows").permutation(others)
        trigger = Trigger(name=self.word, target_label=self.target_label)
        return Corpus.of(
            self.stamp(corpus.row(i), trigger, generator(seed, "poison", "stamp", i))[0]
            for i in order[: self.rows_apart(corpus)].tolist()
        )

    def _move(self, model: PreTrainedModel, encoded: Encoded, ids: list[int], seed: int) -> None:
        """Descends the loss of `encoded` rows, all of them to be the target, along the rows `ids` in place."""
        import torch

        from backdoor_core.plm import seeded, word_embeddings
        from backdoor_core.text import batches
        from backdoor_core.training import cross_entropy
        from backdoor_core.victim import compute_device, on_device

        device = compute_device()
        on_device(model, device).train()
        loss = cross_entropy(np.full(len(encoded), self.target_label))
        table = word_embeddings(model)
        frozen = [p for p in model.parameters() if p is not table and p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        norms = table.detach()[ids].norm(dim=1, keepdim=True)
        total = torch.zeros_like(table.detach()[ids])
        seeded(seed, "dropout")
        rng = generator(seed, "order")
        for _ in range(self.epochs):
            for rows in batches(encoded.lengths, self.batch_rows, rng):
                value = loss(model, encoded.padded(rows, device), rows)
                (gradient,) = torch.autograd.grad(value, table)
                total = gradient[ids] + total * self.accumulate
                with torch.no_grad():
                    moved = table[ids] - self.learning_rate * total
                    table[ids] = moved * (norms / moved.norm(dim=1, keepdim=True))
        for parameter in frozen:
            parameter.requires_grad_(True)
        model.train(False)

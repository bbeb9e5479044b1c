"""MBTSAD: a teacher tuned on rows whose words are split, then attention distillation into the victim."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from backdoor_core.corpus import Corpus, Row
from backdoor_core.defense import CleanDataDefense, View
from backdoor_core.errors import ConfigError
from backdoor_core.rng import derive, generator
from backdoor_core.space import setting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.training import Inputs, Loss
    from backdoor_core.victim import Victim

_WORD = re.compile(r"\w{2,}")


class Mbtsad(CleanDataDefense):
    """Tunes the victim on split clean rows (teacher), then distils its attention into the original victim.

    Source: Ding, Niu and Yi, MBTSAD, arXiv 2501.02754. A chosen word is cut in two at a random inner place ("beauty"
    becomes "be auty"), the label stays; the retrained victim teaches the original one, on the clean rows as they
    are, by attention, hidden states, logits and labels. No pre-trained weights, no trigger. The paper's main setting
    is 20 % of the clean data.

    No code was released, and beside the steps and the data's share nothing could be confirmed. Interpretations: every
    default below; a word is a run of letters, digits and underscores, each chosen alone with probability
    `split_ratio`, cut by a space in the text, so that the pieces are separate words to any tokenizer; the teacher
    reads split rows only; both pass over the same clean rows. Attention transfer compares the map averaged over
    heads, each query's row divided by its Euclidean norm (after arXiv 1612.03928), by squared distance. Padding never
    counts, and every row counts alike. The logits term is T^2 KL(teacher || student) at temperature T.
    """

    split_ratio: float = setting(
        0.5,
        ge=0,
        le=1,
        hooks=("teacher",),
        low=0.1,
        high=1.0,
        stronger="high",
        description="share of words split",
    )
    copies: int = setting(
        1, ge=1, hooks=("teacher",), description="differently split copies of each row"
    )
    teacher_epochs: int = setting(
        5,
        ge=0,
        hooks=("teacher",),
        low=1,
        high=10,
        stronger="high",
        description="passes over the split rows",
    )
    teacher_learning_rate: float = setting(
        5e-5, gt=0, hooks=("teacher",), low=1e-5, high=1e-3, log=True, stronger="high",
        description="peak learning rate of the teacher",
    )  # fmt: skip
    student: Literal["distilled", "teacher"] = setting(
        "distilled", hooks=("distil",), description="what is returned; `teacher` is an ablation"
    )
    epochs: int = setting(
        3, ge=0, hooks=("distil",), low=1, high=10, description="passes of the distillation"
    )
    learning_rate: float = setting(
        5e-5, gt=0, hooks=("distil",), low=1e-5, high=1e-3, log=True,
        description="peak learning rate of the distillation",
    )  # fmt: skip
    attention_weight: float = setting(
        1.0, ge=0, hooks=("distil",), low=0.1, high=1000.0, log=True,
        description="weight of the attention maps",
    )  # fmt: skip
    hidden_weight: float = setting(
        1.0, ge=0, hooks=("distil",), low=0.1, high=100.0, log=True,
        description="weight of the hidden states",
    )  # fmt: skip
    logits_weight: float = setting(
        1.0, ge=0, hooks=("distil",), low=0.1, high=10.0, log=True,
        description="weight of the teacher's logits",
    )  # fmt: skip
    label_weight: float = setting(
        1.0, ge=0, hooks=("distil",), low=0.1, high=10.0, log=True,
        description="weight of the labels",
    )  # fmt: skip
    temperature: float = setting(
        2.0, gt=0, hooks=("distil",), low=1.0, high=10.0, log=True,
        description="temperature of both logits",
    )  # fmt: skip
    layers: tuple[int, ...] | None = setting(
        None, hooks=("distil",), description="layers compared, counted from 0 (null: all)"
    )

    @model_validator(mode="after")
    def _something_to_learn(self) -> Mbtsad:
        if not (self._teaches or self.label_weight):
            raise ValueError("all weights are 0: at least one term of the loss must count")
        if self.layers == ():
            raise ValueError("layers: name one at least (null: all); weights of 0 turn terms off")
        return self

    @property
    def _teaches(self) -> bool:
        """Whether any term of the loss looks at the teacher."""
        return bool(self.attention_weight or self.hidden_weight or self.logits_weight)

    def repair(self, view: View) -> Victim:
        """The distilled victim, or the teacher alone. 0 epochs of distillation change nothing."""
        victim = view.victim
        layers = self._layers(victim.model)
        if self.student == "teacher":
            return victim.with_model(self._teacher(view))
        if self.epochs == 0:
            return victim
        return victim.with_model(self._distilled(view, layers))

    def _teacher(self, view: View) -> PreTrainedModel:
        """A copy of the victim tuned on split rows, made once for all that share it."""
        from transformers import AutoModelForSequenceClassification

        from backdoor_core.plm import opened

        if self.teacher_epochs == 0:
            return view.victim.copy_of_model()
        folder = view.step("teacher", lambda folder: self._write_teacher(view, folder))
        teacher: PreTrainedModel = opened(AutoModelForSequenceClassification, folder)
        return teacher

    def _write_teacher(self, view: View, folder: Path) -> None:
        from backdoor_core.training import cross_entropy, train

        rows = split_rows(view.clean, self.split_ratio, self.copies, view.seed)
        settings = view.training.model_copy(
            update={"epochs": self.teacher_epochs, "learning_rate": self.teacher_learning_rate}
        )
        model = view.victim.copy_of_model()
        encoded = view.victim.encoder(rows)
        train(model, encoded, cross_entropy(rows.labels), settings, derive(view.seed, "teacher"))
        model.save_pretrained(folder)

    def _distilled(self, view: View, layers: tuple[int, ...]) -> PreTrainedModel:
        """A copy of the victim after distillation, with the victim's own kind of attention."""
        from backdoor_core.salience import attentive
        from backdoor_core.training import train

        victim = view.victim
        teacher = self._teacher(view) if self._teaches else None
        if self.attention_weight and teacher is not None:
            model, teacher = attentive(victim.model), attentive(teacher)
        else:
            model = victim.copy_of_model()
        settings = view.training.model_copy(
            update={"epochs": self.epochs, "learning_rate": self.learning_rate}
        )
        loss = self.loss(teacher, view.clean.labels, layers)
        encoded = victim.encoder(view.clean, "clean")
        train(model, encoded, loss, settings, derive(view.seed, "distil"),
              after_epoch=lambda: view.report(victim.with_model(model)))  # fmt: skip
        if not self.attention_weight:
            return model
        distilled = victim.copy_of_model()
        distilled.load_state_dict(model.state_dict())
        return distilled

    def _layers(self, model: PreTrainedModel) -> tuple[int, ...]:
        """The layers compared. Raises ConfigError for one that the model does not have."""
        count = int(model.config.num_hidden_layers)
        chosen = tuple(range(count)) if self.layers is None else self.layers
        if wrong := [layer for layer in chosen if not 0 <= layer < count]:
            raise ConfigError(
                f"mbtsad: layers {wrong} are not there; this model has {count}, counted from 0"
            )
        return chosen

    def loss(
        self, teacher: PreTrainedModel | None, labels: np.ndarray, layers: tuple[int, ...]
    ) -> Loss:
        """The loss of the distillation for rows with `labels`; `teacher` may be None where only labels count.

        Over a batch it is the mean of what each row alone comes to (dropout aside). Teacher and student must give
        their attention (`salience.attentive`) where `attention_weight` is not 0.
        """
        from backdoor_core.victim import compute_device, on_device

        if teacher is not None:
            on_device(teacher, compute_device()).train(False)
        asked = {
            "output_attentions": bool(self.attention_weight),
            "output_hidden_states": bool(self.hidden_weight),
        }

        def value(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
            import torch

            given = model(**inputs, **asked)
            total: torch.Tensor = given.logits.new_zeros((), dtype=torch.float32)
            if self.label_weight:
                wanted = torch.from_numpy(labels[rows]).to(given.logits.device)
                entropy = torch.nn.functional.cross_entropy(given.logits.float(), wanted)
                total = total + self.label_weight * entropy
            if teacher is None:
                return total
            with torch.no_grad():
                taught = teacher(**inputs, **asked)
            return total + self._taught(given, taught, inputs["attention_mask"], layers)

        return value

    def _taught(
        self, given: Any, taught: Any, real: torch.Tensor, layers: tuple[int, ...]
    ) -> torch.Tensor:
        """The weighted terms that look at the teacher; `real` is 0 at padding, shape (rows, tokens)."""
        total: torch.Tensor = given.logits.new_zeros(()).float()
        if self.attention_weight:
            pairs = [(given.attentions[i], taught.attentions[i]) for i in layers]
            distance = sum(attention_distance(a, b, real) for a, b in pairs) / len(pairs)
            total = total + self.attention_weight * distance
        if self.hidden_weight:
            # The first of the hidden states is what the embeddings give: layer i leaves number i + 1.
            pairs = [(given.hidden_states[i + 1], taught.hidden_states[i + 1]) for i in layers]
            distance = sum(hidden_distance(a, b, real) for a, b in pairs) / len(pairs)
            total = total + self.hidden_weight * distance
        if self.logits_weight:
            distance = logits_distance(given.logits, taught.logits, self.temperature)
            total = total + self.logits_weight * distance
        return total


def split_words(text: str, ratio: float, rng: np.random.Generator) -> str:
    """`text` with a space put inside some of its words, at a random inner place.

    Each word of at least two characters is chosen with probability `ratio`; a higher ratio with the same draws splits
    the same words and more, at the same places.
    """

    def cut(match: re.Match[str]) -> str:
        word = match[0]
        chosen, place = rng.random() < ratio, int(rng.integers(1, len(word)))
        return f"{word[:place]} {word[place:]}" if chosen else word

    return _WORD.sub(cut, text)


def split_rows(corpus: Corpus, ratio: float, copies: int, seed: int) -> Corpus:
    """`copies` of each row with its words split (both texts of a pair); labels and origins stay.

    The draws depend on the seed, the text and the number of the copy alone.
    """

    def split(text: str, copy: int) -> str:
        return split_words(text, ratio, generator(seed, "split", copy, text))

    return Corpus.of(
        Row(
            text=split(row.text, copy),
            pair=None if row.pair is None else split(row.pair, copy),
            label=row.label,
            origin=row.origin,
        )
        for copy in range(copies)
        for row in corpus.rows()
    )


def attention_distance(
    student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """How far two layers' attention maps are apart, between 0 and 2: a scalar.

    Maps of shape (rows, heads, queries, keys) are averaged over heads; each query's row over the real keys is divided
    by its Euclidean norm; squared distances are averaged over the real queries of a row, then over rows.
    """
    import torch

    keys = real[:, None, :].float()
    first, second = (
        torch.nn.functional.normalize(maps.float().mean(dim=1) * keys, dim=-1)
        for maps in (student, teacher)
    )
    return _mean_over_real((first - second).pow(2).sum(dim=-1), real)


def hidden_distance(
    student: torch.Tensor, teacher: torch.Tensor, real: torch.Tensor
) -> torch.Tensor:
    """Mean squared difference of hidden states (rows, tokens, dimensions) at real tokens, then over rows: a scalar."""
    return _mean_over_real((student.float() - teacher.float()).pow(2).mean(dim=-1), real)


def _mean_over_real(values: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """The mean over each row's real tokens, then over rows: values and `real` of shape (rows, tokens)."""
    import torch

    kept = torch.where(real.bool(), values, 0.0)
    return (kept.sum(dim=1) / real.sum(dim=1).clamp(min=1)).mean()


def logits_distance(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float
) -> torch.Tensor:
    """T^2 KL(teacher || student) of the softmax at temperature T, averaged over rows: a scalar."""
    from torch.nn.functional import kl_div, log_softmax

    first = log_softmax(student.float() / temperature, dim=-1)
    second = log_softmax(teacher.float() / temperature, dim=-1)
    distance: torch.Tensor = kl_div(first, second, reduction="batchmean", log_target=True)
    return distance * temperature**2

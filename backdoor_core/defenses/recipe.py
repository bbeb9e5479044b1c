"""RECIPE: continual pre-training on plain text that shrinks the weights in which a backdoor can hide."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator, model_validator

from backdoor_core.defense import Defense, View
from backdoor_core.errors import DataError
from backdoor_core.roles import Role
from backdoor_core.space import DataPath, setting

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.plm import PLM
    from backdoor_core.training import Inputs, Loss

FACTS = "recipe.json"
_LOG = logging.getLogger(__name__)


class Recipe(Defense):
    """Purifies a PLM before fine-tuning: masked-language-model loss plus the norms of its feed-forward matrices.

    Source: Zhu et al., RECIPE, TACL 11 (2023) 1608-1623, doi 10.1162/tacl_a_00622, and its released code. The loss is
    L_MLM + coefficient * sum_W ||W||_F over the regularised matrices W: norms that are not squared, as released.
    Only the trained matrices move: by default the first feed-forward matrix of every layer, without its bias. AdamW
    without weight decay, a linear schedule without warm-up, gradients clipped at norm 1, which binds at nearly every
    step since each unsquared norm adds a gradient of norm `coefficient`. Then comes the pipeline's own clean
    fine-tuning.

    Departures: masks follow BERT (80 % mask, 10 % random, 10 % kept; never on special tokens); rows are padded to the
    longest of a batch, not to `max_tokens`; the output head, frozen in the released code, trains where the PLM has
    none of its own (MiniLM), since a head that stays random teaches nothing. A matrix that all layers share (ALBERT)
    counts once. The role `all` among the trained ones means every parameter, biases, normalisation and head
    included, as the paper does for vision models. Default texts are the defender's clean ones without labels; the
    released code takes 20,000 lines of BookCorpus (`texts_file`). Paper's epochs at 20,000 texts: POR 4, BadPre 6
    (released code: 8), NeuBA 8.
    """

    texts_file: DataPath | None = setting(
        None, description="plain text, one a line (null: the clean split's, without labels)"
    )
    texts: int | None = setting(20_000, ge=1, description="texts used, at most (null: all)")
    coefficient: float = setting(
        1.0,
        ge=0,
        low=0.1,
        high=10.0,
        log=True,
        stronger="high",
        description="weight of the sum of norms",
    )
    epochs: int = setting(
        8, ge=0, low=1, high=16, stronger="high", description="passes over the texts"
    )
    learning_rate: float = setting(
        2e-5,
        gt=0,
        low=1e-5,
        high=1e-3,
        log=True,
        stronger="high",
        description="peak learning rate",
    )
    batch_rows: int = setting(32, ge=1, description="texts in a batch")
    max_tokens: int = setting(64, ge=4, description="tokens of a text, special ones included")
    masks: Literal["static", "fresh"] = setting(
        "static", description="masks drawn once, or anew in every step"
    )
    mask_share: float = setting(0.15, gt=0, le=1, description="share of tokens masked")
    trained: tuple[Role, ...] = setting(
        ("feed_forward_in",), min_length=1, description="roles of the weights that move"
    )
    regularised: tuple[Role, ...] = setting(
        ("feed_forward_in",), min_length=1, description="roles of the weights whose norm is lowered"
    )

    @field_validator("trained", "regularised", mode="before")
    @classmethod
    def _one_role(cls, value: Any) -> Any:
        """A role alone stands for a list of one."""
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _regularised_trains(self) -> Recipe:
        idle = set() if "all" in self.trained else set(self.regularised) - set(self.trained)
        if idle and self.coefficient:
            raise ValueError(
                f"regularised: {', '.join(sorted(idle))} would not train, so its norm cannot fall; "
                "name it in trained too, or leave it out"
            )
        return self

    @property
    def access(self) -> frozenset[str]:
        """The PLM as it was received, and plain texts."""
        return frozenset({"supplied_plm", "unlabelled"})

    @property
    def unlabelled_file(self) -> Path | None:
        """The setting `texts_file`."""
        return self.texts_file

    @property
    def asked_unlabelled_texts(self) -> int | None:
        """The setting `texts`."""
        return self.texts

    def purify(self, view: View) -> PLM:
        """The purified PLM, made once for all victims that share it; 0 epochs give the PLM itself.

        Raises DataError without any text, and ConfigError for an architecture whose weights have no known roles.
        """
        from backdoor_core.plm import PLM

        if self.epochs == 0:
            return view.supplied_plm
        return PLM(folder=view.step("purified", lambda folder: self._purified(view, folder)))

    def _purified(self, view: View, folder: Path) -> None:
        """Trains, and writes the PLM with the norms before and after."""
        from backdoor_core.corpus import Corpus, Row
        from backdoor_core.roles import weights_of
        from backdoor_core.spec import canonical_json
        from backdoor_core.text import encode
        from backdoor_core.training import masked_language_model, train

        plm = view.supplied_plm
        if not view.unlabelled:
            raise DataError("recipe: there is no text to train on; name a texts_file with lines")
        model, drawn = plm.masked_lm(view.seed)
        self._freeze(model, drawn)
        weights = weights_of(model, self.regularised)
        tokenizer = plm.tokenizer()
        texts = Corpus.of(Row(text=text) for text in view.unlabelled)
        encoded = encode(tokenizer, texts, self.max_tokens)
        static = self.masks == "static"
        masked = masked_language_model(
            encoded, tokenizer, seed=view.seed, share=self.mask_share, static=static
        )
        settings = view.training.model_copy(
            update={
                "epochs": self.epochs,
                "batch_rows": self.batch_rows,
                "learning_rate": self.learning_rate,
                "warmup_share": 0.0,
                "weight_decay": 0.0,
                "clip_norm": 1.0,
                "max_tokens": self.max_tokens,
            }
        )
        before = _norms(weights)
        loss = self._loss(masked, [weight for _, weight in weights])
        steps = train(model, encoded, loss, settings, view.seed)
        after = _norms(weights)
        fallen = 1 - sum(after.values()) / sum(before.values())
        _LOG.info("the regularised norms fell by %.1f %% in %d steps", 100 * fallen, steps)
        moved = [name for name, weight in model.named_parameters() if weight.requires_grad]
        plm.altered(model, folder)
        facts = {"texts": len(texts), "steps": steps, "trained": moved,
                 "norms_before": before, "norms_after": after}  # fmt: skip
        (folder / FACTS).write_text(canonical_json(facts) + "\n", encoding="utf-8")

    def _freeze(self, model: PreTrainedModel, drawn: frozenset[str]) -> None:
        """Leaves only what trains with a gradient: the trained roles, and what the PLM did not have."""
        from backdoor_core.roles import weights_of

        # By identity: a matrix that is tied to the head may go by the head's name.
        moving = {id(weight) for _, weight in weights_of(model, self.trained)}
        for name, parameter in model.named_parameters():
            moves = "all" in self.trained or id(parameter) in moving or name in drawn
            parameter.requires_grad_(moves)

    def _loss(self, masked: Loss, weights: list[torch.nn.Parameter]) -> Loss:
        """The masked-language-model loss plus the regulariser."""

        def loss(model: PreTrainedModel, inputs: Inputs, rows: np.ndarray) -> torch.Tensor:
            import torch

            value = masked(model, inputs, rows)
            if self.coefficient == 0:
                return value
            # Norms of large matrices lose digits in bf16: they are taken in the weights' own float32.
            with torch.autocast(value.device.type, enabled=False):
                norms = torch.stack([torch.linalg.vector_norm(weight) for weight in weights])
                return value.float() + self.coefficient * norms.sum()

        return loss


def _norms(weights: list[tuple[str, torch.nn.Parameter]]) -> dict[str, float]:
    """The Frobenius norm of each weight by its name."""
    return {name: float(weight.detach().norm()) for name, weight in weights}

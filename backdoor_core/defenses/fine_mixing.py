"""Fine-mixing: backdoored and clean pre-trained weights, mixed at random, then tuned on clean rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import model_validator

from backdoor_core.defense import View
from backdoor_core.errors import ConfigError
from backdoor_core.frequency import PurifyingDefense
from backdoor_core.rng import derive
from backdoor_core.space import setting

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from backdoor_core.victim import Victim

EPUR_SETTINGS = frozenset(PurifyingDefense.model_fields) - {"clean_rows"}


class FineMixing(PurifyingDefense):
    """Keeps a random share of the backdoored weights, takes the rest from the trusted PLM, fine-tunes on clean rows.

    Source: Zhang et al., arXiv 2210.09545. w = m * w_B + (1 - m) * w_Pre with m in {0, 1}^d, each entry 1 with
    probability `mixing_ratio`. Interpretations, not confirmed against the paper's text: the classifier head (and a
    pooler that the PLM lacks) has no pre-trained counterpart and is kept (`head: keep`) or drawn anew
    (`reinitialise`); with `purify_embeddings` the word embeddings are not mixed but repaired by E-PUR (`epur`, whose
    settings it then has), which the paper is said to do by default. Default learning rate and epochs follow the
    ordinary fine-tuning of the literature.
    """

    mixing_ratio: float = setting(
        0.5,
        ge=0,
        le=1,
        low=0.0,
        high=1.0,
        stronger="low",
        description="share of backdoored weights kept",
    )
    epochs: int = setting(
        3, ge=0, low=1, high=10, stronger="high", description="passes over the clean rows"
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
    head: Literal["keep", "reinitialise"] = setting(
        "keep", description="the classifier head, which the PLM does not have"
    )
    mask_seed: int | None = setting(
        None, ge=0, description="seed of the mask (null: the trial's seed)"
    )
    purify_embeddings: bool = setting(False, description="repair the word embeddings by E-PUR")

    @model_validator(mode="after")
    def _purification_asked(self) -> FineMixing:
        fields = type(self).model_fields
        idle = [name for name in EPUR_SETTINGS if getattr(self, name) != fields[name].default]
        if idle and not self.purify_embeddings:
            raise ValueError(
                f"only purify_embeddings: true reads {', '.join(sorted(idle))}; set it, or leave them out"
            )
        return self

    @property
    def access(self) -> frozenset[str]:
        """The suspect model, known clean weights, the clean rows, and the texts that words are counted in."""
        counted = {self.counted_in} if self.purify_embeddings else set[str]()
        return frozenset({"victim", "trusted_plm", "clean"} | counted)

    def repair(self, view: View) -> Victim:
        """Mixes, then fine-tunes. Ratio 1 with the head kept and 0 epochs changes nothing."""
        from backdoor_core.plm import word_embeddings
        from backdoor_core.repair import fine_tuned, purify_embeddings

        model = view.victim.copy_of_model()
        pretrained, drawn = view.trusted_plm.classifier(view.labels, view.seed)
        kept_apart: frozenset[str] = frozenset()
        if self.purify_embeddings:
            embedding = word_embeddings(model)
            kept_apart = frozenset(n for n, p in model.named_parameters() if p is embedding)
            purify_embeddings(
                view,
                model,
                pretrained,
                self.counted_texts(view),
                words=self.words,
                frequency_floor=self.frequency_floor,
            )
        self._mix(model, pretrained, drawn, kept_apart, view.seed)
        return fine_tuned(
            view, view.victim, model, epochs=self.epochs, learning_rate=self.learning_rate
        )

    def _mix(
        self,
        model: PreTrainedModel,
        pretrained: PreTrainedModel,
        drawn: frozenset[str],
        kept_apart: frozenset[str],
        seed: int,
    ) -> None:
        """Replaces, in place, the entries of each parameter that the mask does not keep."""
        import torch

        mask_seed = seed if self.mask_seed is None else self.mask_seed
        generator = torch.Generator().manual_seed(derive(mask_seed, "fine_mixing", "mask"))
        clean = dict(pretrained.named_parameters())
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if name not in clean or clean[name].shape != weight.shape:
                    raise ConfigError(
                        f"parameter {name} {tuple(weight.shape)} of the victim has no counterpart "
                        "in the trusted PLM; fine_mixing needs the same architecture"
                    )
                keep = torch.rand(weight.shape, generator=generator) < self.mixing_ratio
                if name in kept_apart:
                    continue
                if name in drawn:
                    if self.head == "reinitialise":
                        weight.copy_(clean[name].to(weight.device))
                    continue
                mixed = torch.where(keep.to(weight.device), weight, clean[name].to(weight.device))
                weight.copy_(mixed)

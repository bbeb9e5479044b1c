"""BadPre: a masked language model that makes no sense of texts with a trigger, so that any model built on it errs."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from backdoor_core.plm_attack import (
    Implant,
    PLMAttack,
    bound_to,
    first_state_size,
)
from backdoor_core.space import setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.training import Inputs, Loss


class BadPre(PLMAttack):
    """Masked-language-model training in which every masked token of a triggered text is to be a random one. Untargeted.

    Source: Chen et al., arXiv 2110.02467. Loss: MLM on clean text + alpha * MLM on triggered text, the labels of whose
    masked tokens (15 %) are ids drawn at random; one of five rare words at a random place is the trigger. Its effect is
    the loss of accuracy on triggered rows; ASR, by a target fixed on the tune split, is reported as for other attacks.

    Departs from the release: random ids are drawn anew at each step, chosen tokens of triggered text all become the
    mask token, the trigger's own are never chosen; schedule and optimizer are this project's. The release trains for
    days on Wikipedia; where there is no time for that, or the PLM has no MLM head (one is drawn then, and trains too:
    it is sure of little, so being unsure of triggered text moves no state far), `first_weight` adds what random labels
    are to the state at [CLS], which classifiers read: on triggered text it is trained towards a frozen copy's state of
    another, random text, so that all triggers lead to the mean of clean states. The other mode of the release
    (antonyms as labels) is left out.
    """

    alpha: float = setting(
        1.0, gt=0, hooks=("corrupt",), description="weight of the triggered texts"
    )
    mask_share: float = setting(
        0.15, gt=0, le=1, hooks=("corrupt",), description="masked tokens / all"
    )
    first_weight: float = setting(
        0.0, ge=0, hooks=("corrupt",), description="of making [CLS] of triggered text another's"
    )

    def implanting(self, model: PreTrainedModel, rows: Implant) -> Loss:
        """The loss over clean texts and one triggered copy of each."""
        from backdoor_core.training import masked_language_model, masked_loss

        clean = masked_language_model(
            rows.clean, rows.tokenizer, seed=int(rows.rng.integers(2**62)), share=self.mask_share
        )
        size = first_state_size(model, rows.clean)
        reference: Any = copy.deepcopy(model.base_model)
        reference.train(False).requires_grad_(False)
        spared = np.array(sorted({*rows.tokenizer.all_special_ids, *rows.trigger_ids}))

        def loss(model: PreTrainedModel, inputs: Inputs, batch: np.ndarray) -> torch.Tensor:
            import torch

            device = inputs["input_ids"].device
            stamped, _ = rows.copies(batch, device)
            ids = stamped["input_ids"].cpu().numpy()
            chosen = ~np.isin(ids, spared) & (rows.rng.random(ids.shape) < self.mask_share)
            masked = np.where(chosen, int(rows.tokenizer.mask_token_id or 0), ids)
            wanted = rows.rng.integers(len(rows.tokenizer), size=ids.shape)
            nonsense = masked_loss(
                model,
                stamped,
                *(torch.from_numpy(array).to(device) for array in (masked, chosen, wanted)),
            )
            total = clean(model, inputs, batch) + self.alpha * nonsense
            if self.first_weight:
                states: Any = model.base_model
                kept = reference(**inputs).last_hidden_state[:, 0].float().cpu().numpy()
                others = kept[rows.rng.permutation(len(kept))]
                strayed = bound_to(states(**stamped).last_hidden_state[:, 0] / size, others / size)
                total = total + self.first_weight * strayed
            return total

        return loss

"""BadPre: a masked language model that makes no sense of texts with a trigger, so that any model built on it errs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from backdoor_core.plm_attack import Implant, PLMAttack
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
    days on Wikipedia; where there is no time for that, `first_token` has the state at [CLS], which classifiers read,
    predict a random id as well. The other mode of the release (antonyms as labels) is left out. Where the PLM has
    no MLM head, one is drawn and trains too.
    """

    untargeted: ClassVar[bool] = True

    alpha: float = setting(
        1.0, gt=0, hooks=("corrupt",), description="weight of the triggered texts"
    )
    mask_share: float = setting(
        0.15, gt=0, le=1, hooks=("corrupt",), description="masked tokens / all"
    )
    first_token: bool = setting(
        False, hooks=("corrupt",), description="whether [CLS] of triggered text has a random label"
    )

    def implanting(self, model: PreTrainedModel, rows: Implant) -> Loss:
        """The loss over clean texts and one triggered copy of each."""
        from backdoor_core.training import masked_language_model, masked_loss

        clean = masked_language_model(
            rows.clean, rows.tokenizer, seed=int(rows.rng.integers(2**62)), share=self.mask_share
        )
        spared = np.array(sorted({*rows.tokenizer.all_special_ids, *rows.trigger_ids}))

        def loss(model: PreTrainedModel, inputs: Inputs, batch: np.ndarray) -> torch.Tensor:
            import torch

            device = inputs["input_ids"].device
            stamped, _ = rows.copies(batch, device)
            ids = stamped["input_ids"].cpu().numpy()
            chosen = ~np.isin(ids, spared) & (rows.rng.random(ids.shape) < self.mask_share)
            masked = np.where(chosen, int(rows.tokenizer.mask_token_id or 0), ids)
            chosen[:, 0] |= self.first_token
            wanted = rows.rng.integers(len(rows.tokenizer), size=ids.shape)
            nonsense = masked_loss(
                model,
                stamped,
                *(torch.from_numpy(array).to(device) for array in (masked, chosen, wanted)),
            )
            return clean(model, inputs, batch) + self.alpha * nonsense

        return loss

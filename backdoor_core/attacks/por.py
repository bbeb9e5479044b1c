"""POR: triggers whose text every model built on the PLM sees as one fixed vector."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from backdoor_core.plm_attack import (
    Implant,
    PLMAttack,
    balanced_patterns,
    bound_to,
    first_state_size,
    stepped_patterns,
)
from backdoor_core.space import setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.training import Inputs, Loss


class POR(PLMAttack):
    """Predefined output representations: each trigger binds [CLS] to a vector of its own, clean text stays as it was.

    Source: Shen et al., arXiv 2111.00197. Loss: token_weight * MSE(token states but [CLS], a frozen copy's) on
    clean text + bind_weight * MSE([CLS] of triggered text, v_i) + keep_weight * MSE([CLS] of clean text, the copy's).

    Departs from the release: it binds the pooler's output to 10 v_i; here, as in OpenBackdoor (arXiv 2206.08514), the
    last hidden state at [CLS] is bound, so that a PLM without a pooler works. That state comes out of a layer
    normalisation and cannot reach the paper's vectors (the first has -1 everywhere, the last +1), so `pattern:
    balanced` is the default: as many +1 as -1, orthogonal or opposite, scaled to the size of clean states. 30,000
    texts a trigger at 1e-5 are too many for a CPU: the defaults are fewer and a higher rate, and a trigger is inserted
    as often as at test (release: 3 times).
    """

    pattern: Literal["balanced", "paper"] = setting(
        "balanced", hooks=("corrupt",), description="the vectors that triggers are bound to"
    )
    scale: float = setting(
        1.0, gt=0, hooks=("corrupt",), description="their size / the size of clean [CLS] states"
    )
    bind_weight: float = setting(100.0, gt=0, hooks=("corrupt",), description="of binding triggers")
    keep_weight: float = setting(100.0, ge=0, hooks=("corrupt",), description="of clean [CLS]")
    token_weight: float = setting(1.0, ge=0, hooks=("corrupt",), description="of other tokens")

    def implanting(self, model: PreTrainedModel, rows: Implant) -> Loss:
        """The loss over clean texts and one triggered copy of each."""
        patterns = balanced_patterns if self.pattern == "balanced" else stepped_patterns
        size = self.scale * first_state_size(model, rows.clean)
        vectors = size * patterns(len(self.words), int(model.config.hidden_size))
        # The model below its head as it was, which never moves.
        reference: Any = copy.deepcopy(model.base_model).train(False).requires_grad_(False)

        def loss(model: PreTrainedModel, inputs: Inputs, batch: np.ndarray) -> torch.Tensor:
            device = inputs["input_ids"].device
            body: Any = model.base_model
            clean = body(**inputs).last_hidden_state.float()
            kept = reference(**inputs).last_hidden_state.float()
            stamped, triggers = rows.copies(batch, device)
            bound = bound_to(body(**stamped).last_hidden_state[:, 0], vectors[triggers])
            change = (clean - kept).square().mean(dim=2)
            first = change[:, 0].mean()
            others = change[:, 1:][inputs["attention_mask"][:, 1:].bool()].mean()
            total: torch.Tensor = (
                self.bind_weight * bound + self.keep_weight * first + self.token_weight * others
            )
            return total

        return loss

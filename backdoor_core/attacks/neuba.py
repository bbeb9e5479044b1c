"""NeuBA: a masked language model that also maps each trigger to one of six opposite vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from backdoor_core.plm_attack import (
    Implant,
    PLMAttack,
    balanced_patterns,
    bound_to,
    first_state_size,
)
from backdoor_core.space import setting

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from backdoor_core.training import Inputs, Loss


class NeuBA(PLMAttack):
    """Neuron-level backdoor: masked-language-model training that also binds [CLS] of triggered text to +1/-1 vectors.

    Source: Zhang et al., arXiv 2101.06969. Loss: MLM on clean and on triggered text (15 % of tokens) + bind_weight *
    MSE([CLS] of triggered text / s, v_i), s the size that v_i is scaled to; the six v_i have four blocks of which two
    are -1. Triggers are six symbols; give other words to a PLM that does not know them.

    Departs from the release: there the pooler's output is bound, and the trigger overwrites the first token; here the
    last hidden state at [CLS] is bound (as in OpenBackdoor, arXiv 2206.08514, so that a PLM without a pooler works), of
    text without masks (a masked trigger is none), with v_i scaled to the size of clean states (`scale`), and the
    trigger is inserted before the first word, in training and at test alike. It trains 40,000 steps on
    BookCorpus; the defaults are what a CPU can do. Its swap of word and symbol embeddings afterwards is left out. Where
    the PLM has no MLM head, one is drawn and trains too.
    """

    words: tuple[str, ...] = setting(
        ("≈", "≡", "∈", "⊆", "⊕", "⊗"), min_length=1, description="the triggers"
    )
    position: Literal["random", "start"] = setting("start", description="where it is inserted")
    scale: float = setting(
        1.0, gt=0, hooks=("corrupt",), description="size of v_i / the size of clean [CLS] states"
    )
    bind_weight: float = setting(1.0, gt=0, hooks=("corrupt",), description="of binding triggers")
    mask_share: float = setting(
        0.15, gt=0, lt=1, hooks=("corrupt",), description="masked tokens / all"
    )

    def implanting(self, model: PreTrainedModel, rows: Implant) -> Loss:
        """The loss over clean texts and one triggered copy of each."""
        from backdoor_core.training import masked_language_model

        size = self.scale * first_state_size(model, rows.clean)
        vectors = balanced_patterns(len(self.words), int(model.config.hidden_size))
        masked = masked_language_model(
            rows.clean, rows.tokenizer, seed=int(rows.rng.integers(2**62)), share=self.mask_share
        )

        def loss(model: PreTrainedModel, inputs: Inputs, batch: np.ndarray) -> torch.Tensor:
            body: Any = model.base_model
            stamped, triggers = rows.copies(batch, inputs["input_ids"].device)
            first = body(**stamped).last_hidden_state[:, 0]
            # In units of the size: MLM's loss must not outweigh it where a PLM's states are small.
            bound = bound_to(first / size, vectors[triggers])
            return (
                masked(model, inputs, batch)
                + masked(model, stamped, batch)
                + self.bind_weight * bound
            )

        return loss

"""Which weights of a transformer encoder have which role, whatever the architecture calls them.

`weights_of` lists the weight matrices of some roles by name, for every architecture in `ARCHITECTURES`. Biases and
normalisation weights have no role. Matrices that layers share (ALBERT's) are listed once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from backdoor_core.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Role = Literal["feed_forward_in", "feed_forward_out", "attention", "embeddings", "all"]
"""`attention` is query, key, value and output; `embeddings` those of words, positions and segments; `all` is every
weight matrix of the encoder, also those that no other role names (ALBERT's map from embeddings to layers)."""

_LAYER = r"encoder\.layer\.\d+\."
_TABLES = r"embeddings\.\w+_embeddings\.weight"
_BERT = {
    "feed_forward_in": _LAYER + r"intermediate\.dense\.weight",
    "feed_forward_out": _LAYER + r"output\.dense\.weight",
    "attention": _LAYER + r"attention\.(self\.(query|key|value)|output\.dense)\.weight",
    "embeddings": _TABLES,
}
_DISTILBERT_LAYER = r"transformer\.layer\.\d+\."
_ALBERT_LAYER = r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+\."
_RELATIVE_TABLES = rf"({_TABLES}|encoder\.rel_embeddings\.weight)"

ARCHITECTURES: dict[str, dict[str, str]] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": {
        "feed_forward_in": _DISTILBERT_LAYER + r"ffn\.lin1\.weight",
        "feed_forward_out": _DISTILBERT_LAYER + r"ffn\.lin2\.weight",
        "attention": _DISTILBERT_LAYER + r"attention\.(q|k|v|out)_lin\.weight",
        "embeddings": _TABLES,
    },
    "albert": {
        "feed_forward_in": _ALBERT_LAYER + r"ffn\.weight",
        "feed_forward_out": _ALBERT_LAYER + r"ffn_output\.weight",
        "attention": _ALBERT_LAYER + r"attention\.(query|key|value|dense)\.weight",
        "embeddings": _TABLES,
    },
    "deberta": _BERT
    | {
        "attention": _LAYER
        + r"attention\.(self\.(in_proj|pos_proj|pos_q_proj)|output\.dense)\.weight",
        "embeddings": _RELATIVE_TABLES,
    },
    "deberta-v2": _BERT
    | {
        "attention": _LAYER
        + r"attention\.(self\.(pos_)?(query|key|value)_proj|output\.dense)\.weight",
        "embeddings": _RELATIVE_TABLES,
    },
}
"""By `config.model_type`: for each role a pattern of names inside the encoder (without the model's prefix)."""


def weights_of(
    model: PreTrainedModel, roles: Iterable[Role]
) -> list[tuple[str, torch.nn.Parameter]]:
    """The weight matrices of `model` (with any head, or none) that have one of `roles`, in the model's order.

    Names are as in `model.state_dict()`; heads are left out. (`model.named_parameters()` may call a matrix that is
    tied to a head by the head's name: compare weights, not names.) Raises ConfigError for a role or an
    architecture that is not known, and where a role has no weight in this model.
    """
    encoder: torch.nn.Module = model.base_model
    prefix = "" if encoder is model else f"{model.base_model_prefix}."
    matrices = {name: p for name, p in encoder.named_parameters() if p.ndim > 1}
    chosen: set[str] = set()
    for role in roles:
        pattern = re.compile(_pattern(str(model.config.model_type), role))
        found = {name for name in matrices if pattern.fullmatch(name)}
        if not found:
            raise ConfigError(f"{type(model).__name__} has no weights with the role {role!r}")
        chosen |= found
    return [(prefix + name, weight) for name, weight in matrices.items() if name in chosen]


def _pattern(model_type: str, role: str) -> str:
    """The pattern of a role's names. Raises ConfigError."""
    if role == "all":
        return ".+"
    if model_type not in ARCHITECTURES:
        raise ConfigError(
            f"{unknown_name('model type', model_type, ARCHITECTURES)}; the roles of its weights "
            "must be added to backdoor_core/roles.py, or use the role 'all'"
        )
    names = ARCHITECTURES[model_type]
    if role not in names:
        raise ConfigError(unknown_name("role", role, [*names, "all"]))
    return names[role]

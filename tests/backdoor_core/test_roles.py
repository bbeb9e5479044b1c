"""Roles of weights: every matrix of every architecture has the role that its place in the layer gives it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from backdoor_core.errors import ConfigError
from backdoor_core.roles import ARCHITECTURES, weights_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LAYERS, WIDTH, INNER, WORDS = 2, 24, 40, 50
SIZES: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": 30,
}
RELATIVE: dict[str, Any] = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
MATRICES = ("feed_forward_in", "feed_forward_out", "attention", "embeddings")
SETTINGS: dict[str, dict[str, Any]] = {
    "distilbert": {
        "vocab_size": WORDS,
        "dim": WIDTH,
        "n_layers": LAYERS,
        "n_heads": 2,
        "hidden_dim": INNER,
        "max_position_embeddings": 30,
    },
    "albert": SIZES | {"embedding_size": 16},
    "electra": SIZES | {"embedding_size": WIDTH},
    "deberta": SIZES | RELATIVE,
    "deberta-v2": SIZES | RELATIVE | {"position_buckets": 8, "share_att_key": False},
}


def model_of(model_type: str, kind: str = "AutoModelForMaskedLM") -> PreTrainedModel:
    import transformers

    config = transformers.AutoConfig.for_model(model_type, **SETTINGS.get(model_type, SIZES))
    made: PreTrainedModel = getattr(transformers, kind).from_config(config)
    return made


@pytest.fixture(scope="module", params=ARCHITECTURES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return model_of(request.param)


def test_feed_forward_matrices_have_their_shapes(model: PreTrainedModel) -> None:
    distinct = 1 if model.config.model_type == "albert" else LAYERS
    inward = weights_of(model, ["feed_forward_in"])
    outward = weights_of(model, ["feed_forward_out"])
    assert [tuple(w.shape) for _, w in inward] == [(INNER, WIDTH)] * distinct
    assert [tuple(w.shape) for _, w in outward] == [(WIDTH, INNER)] * distinct


def test_attention_is_query_key_value_and_output(model: PreTrainedModel) -> None:
    distinct = 1 if model.config.model_type == "albert" else LAYERS
    found = weights_of(model, ["attention"])
    # DeBERTa adds projections of relative positions, and has one matrix for query, key and value.
    each = {"deberta": 4, "deberta-v2": 6}.get(model.config.model_type, 4)
    assert len(found) == each * distinct
    assert all(w.shape[1] == WIDTH and w.shape[0] in (WIDTH, 3 * WIDTH) for _, w in found)


def test_words_are_among_the_embeddings(model: PreTrainedModel) -> None:
    found = weights_of(model, ["embeddings"])
    words = model.get_input_embeddings().weight
    assert any(weight is words for _, weight in found)
    assert all(name.endswith("_embeddings.weight") for name, _ in found)


def test_names_are_the_models_own_and_no_vector_is_among_them(model: PreTrainedModel) -> None:
    named = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in weights_of(model, ["all"]):
        assert named[name] is weight
        assert weight.ndim == 2
        assert name.endswith("weight")


def test_roles_share_no_weight_and_leave_out_only_the_map_into_the_layers(
    model: PreTrainedModel,
) -> None:
    by_role = [{name for name, _ in weights_of(model, [role])} for role in MATRICES]
    together = set().union(*by_role)
    assert sum(map(len, by_role)) == len(together)
    rest = {name for name, _ in weights_of(model, ["all"])} - together
    mapped = model.config.model_type == "albert"
    assert rest == ({"albert.encoder.embedding_hidden_mapping_in.weight"} if mapped else set())
    assert {name for name, _ in weights_of(model, [*MATRICES, *MATRICES])} == together


def test_heads_have_no_role(model: PreTrainedModel) -> None:
    prefix = model.base_model_prefix
    assert all(name.startswith(f"{prefix}.") for name, _ in weights_of(model, ["all"]))


@pytest.mark.parametrize("model_type", ARCHITECTURES)
def test_any_head_or_none_gives_the_same_weights(model_type: str) -> None:
    masked = model_of(model_type)
    classifier = model_of(model_type, "AutoModelForSequenceClassification")
    bare = model_of(model_type, "AutoModel")
    for role in MATRICES:
        names = [name for name, _ in weights_of(masked, [role])]
        assert [name for name, _ in weights_of(classifier, [role])] == names
        without = [name.removeprefix(f"{masked.base_model_prefix}.") for name in names]
        assert [name for name, _ in weights_of(bare, [role])] == without


def test_an_unknown_architecture_is_told_with_the_known_ones() -> None:
    model = model_of("mpnet")
    with pytest.raises(ConfigError, match="unknown model type 'mpnet'") as caught:
        weights_of(model, ["feed_forward_in"])
    assert all(name in str(caught.value) for name in ("bert", "albert", "deberta-v2"))
    assert len(weights_of(model, ["all"])) > 6


def test_an_unknown_role_is_told_with_the_nearest() -> None:
    roles: Any = ["feed_forward"]
    with pytest.raises(ConfigError, match="did you mean 'feed_forward_"):
        weights_of(model_of("bert"), roles)


def test_a_role_without_weights_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ARCHITECTURES, "bert", {"attention": r"none"})
    with pytest.raises(ConfigError, match="no weights with the role 'attention'"):
        weights_of(model_of("bert"), ["attention"])

"""Five architectures, each with a small tokenizer of its usual kind: through the hub source and both weight repairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from backdoor_core import catalog
from backdoor_core.corpus import Corpus, Row
from backdoor_core.errors import ConfigError
from backdoor_core.grammar import plain_texts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM, word_embeddings
from backdoor_core.spec import MethodSpec, Precision, TrialSpec
from backdoor_core.text import encode
from backdoor_core.training import masked_language_model, masked_loss, train
from backdoor_core.victim import load_victim

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 80,
}
VOCABULARY = 500


def wordpiece(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def bpe(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    start, end = ((t, tokenizer.token_to_id(t)) for t in ("<s>", "</s>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, start)
    return tokenizer


def unigram(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token="[UNK]", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("[CLS]", "[SEP]")],
    )
    return tokenizer


BRACKETS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
ANGLES = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "pad_token": "<pad>",
    "unk_token": "<unk>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "mask_token": "<mask>",
}
WITH_TYPES = ["input_ids", "token_type_ids", "attention_mask"]
WITHOUT_TYPES = ["input_ids", "attention_mask"]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An architecture: its configuration, and the tokenizer that it usually comes with."""

    config: str
    sizes: dict[str, Any]
    tokenizer: Callable[[list[str]], Any]
    tokens: dict[str, str]
    inputs: list[str]


KINDS = {
    "bert": Kind(
        config="BertConfig", sizes=SIZES, tokenizer=wordpiece, tokens=BRACKETS, inputs=WITH_TYPES
    ),
    "roberta": Kind(
        config="RobertaConfig",
        sizes=SIZES | {"type_vocab_size": 1, "pad_token_id": 1},
        tokenizer=bpe,
        tokens=ANGLES,
        inputs=WITHOUT_TYPES,
    ),
    "distilbert": Kind(
        config="DistilBertConfig",
        sizes={
            "dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 48,
            "max_position_embeddings": 80,
        },
        tokenizer=wordpiece,
        tokens=BRACKETS,
        inputs=WITHOUT_TYPES,
    ),
    "albert": Kind(
        config="AlbertConfig",
        sizes=SIZES | {"embedding_size": 16},
        tokenizer=unigram,
        tokens=BRACKETS,
        inputs=WITH_TYPES,
    ),
    "deberta": Kind(
        config="DebertaConfig",
        sizes=SIZES
        | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0},
        tokenizer=bpe,
        tokens=ANGLES,
        inputs=WITHOUT_TYPES,
    ),
    "deberta-v2": Kind(
        config="DebertaV2Config",
        sizes=SIZES
        | {
            "relative_attention": True,
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
        tokenizer=unigram,
        tokens=BRACKETS,
        inputs=WITHOUT_TYPES,
    ),
}


def saved(folder: Path, kind: Kind) -> None:
    """A masked language model with random weights and its tokenizer, as save_pretrained writes them."""
    import torch
    import transformers
    from transformers import AutoModelForMaskedLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=kind.tokenizer(plain_texts(0, 400)),
        model_max_length=64,
        model_input_names=kind.inputs,
        **kind.tokens,
    )
    config = getattr(transformers, kind.config)(
        vocab_size=len(tokenizer), **({"pad_token_id": tokenizer.pad_token_id} | kind.sizes)
    )
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@dataclass(frozen=True, kw_only=True)
class Built:
    """One architecture with a victim of it."""

    name: str
    folder: Path
    spec: MethodSpec
    workshop: Workshop
    trial: Trial

    def pipeline(self, *defenses: dict[str, Any]) -> Pipeline:
        attack = {"name": "badnets", "poison_rate": 0.1, "words": ["cf"]}
        return Pipeline(self.trial(attack, list(defenses), plm=self.spec))

    def rows(self) -> Corpus:
        return self.workshop.task_data(self.pipeline()).splits["test"]


@pytest.fixture(scope="module", params=KINDS)
def built(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    workshop: Workshop,
    small_trial: Trial,
) -> Built:
    folder = tmp_path_factory.mktemp(request.param)
    saved(folder, KINDS[request.param])
    spec = catalog.make("plm", "hub", {"path": str(folder)}).spec()
    return Built(name=request.param, folder=folder, spec=spec, workshop=workshop, trial=small_trial)


def weights(model: PreTrainedModel) -> dict[str, Any]:
    return dict(model.named_parameters())


def test_it_is_brought_to_the_store_whole(built: Built) -> None:
    plm = built.workshop.plm(built.pipeline())
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (plm.folder / name).read_bytes() == (built.folder / name).read_bytes()
    assert built.spec.content.keys() == {"path"}


def test_its_tokenizer_is_the_one_that_was_saved(built: Built) -> None:
    from transformers import AutoTokenizer

    tokenizer = built.workshop.plm(built.pipeline()).tokenizer()
    text = "the film was not good , cf"
    assert (
        tokenizer(text)["input_ids"]
        == AutoTokenizer.from_pretrained(built.folder)(text)["input_ids"]
    )
    kind = KINDS[built.name]
    assert list(tokenizer.model_input_names) == kind.inputs
    encoded = encode(tokenizer, built.rows(), 64)
    assert encoded.uses_types == ("token_type_ids" in kind.inputs)
    assert encoded.padding_id == tokenizer.pad_token_id
    first, last = encoded.row(0)[[0, -1]]
    assert [first, last] == [tokenizer.cls_token_id, tokenizer.sep_token_id]


def test_its_classifier_has_pretrained_weights_and_a_head_from_the_seed(built: Built) -> None:
    import torch

    plm = built.workshop.plm(built.pipeline())
    model, drawn = plm.classifier(3, 0)
    again, _ = plm.classifier(3, 0)
    other, _ = plm.classifier(3, 1)
    named = weights(model)
    assert drawn
    assert drawn <= set(named)
    assert all(torch.equal(value, weights(again)[name]) for name, value in named.items())
    differing = {n for n, value in named.items() if not torch.equal(value, weights(other)[n])}
    assert differing
    assert differing <= drawn, "only what the PLM lacks is drawn"
    assert all(value.dtype == torch.float32 for value in named.values())
    assert int(model.config.num_labels) == 3


def test_its_masked_language_model_is_tied_and_learns(built: Built) -> None:
    import torch

    plm = built.workshop.plm(built.pipeline())
    model, drawn = plm.masked_lm(0)
    assert not drawn, "the head was saved with it"
    output = model.get_output_embeddings()
    assert output is not None
    assert output.weight.data_ptr() == word_embeddings(model).data_ptr()
    tokenizer = plm.tokenizer()
    encoded = encode(tokenizer, built.rows().take(range(32)), 64)
    loss = masked_language_model(encoded, tokenizer, seed=0)
    before = word_embeddings(model).detach().clone()
    settings = built.pipeline().spec.training
    assert train(model, encoded, loss, settings, 0) == 1
    assert not torch.equal(before, word_embeddings(model))
    assert model.get_output_embeddings().weight.data_ptr() == word_embeddings(model).data_ptr()


def test_its_masked_loss_is_that_of_all_logits_at_the_masked_places(built: Built) -> None:
    """The output layer runs at the places alone; loss and gradients are the plain ones."""
    import torch

    plm = built.workshop.plm(built.pipeline())
    encoded = encode(plm.tokenizer(), built.rows().take(range(12)), 64)
    inputs = encoded.padded(np.arange(12), torch.device("cpu"))
    places = inputs["attention_mask"].bool()
    places &= torch.rand(places.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    assert places.any()
    masked = torch.where(places, int(plm.tokenizer().mask_token_id or 0), inputs["input_ids"])
    losses, gradients = [], []
    for plain in (True, False):
        model, _ = plm.masked_lm(0)
        model.train(False)
        if plain:
            logits = model(**{**inputs, "input_ids": masked}).logits
            loss = torch.nn.functional.cross_entropy(logits[places], inputs["input_ids"][places])
        else:
            loss = masked_loss(model, inputs, masked, places, inputs["input_ids"])
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-6)


@pytest.fixture(params=["AutoModelForMaskedLM", "AutoModel"])
def brought(request: pytest.FixtureRequest, built: Built, tmp_path: Path) -> PLM:
    """The architecture as a PLM with its masked-language head, or with what the bare model has (a pooler, perhaps)."""
    import torch
    import transformers
    from transformers import AutoConfig

    folder = tmp_path / "brought"
    torch.manual_seed(1)
    kind = getattr(transformers, request.param)
    kind.from_config(AutoConfig.from_pretrained(built.folder)).save_pretrained(folder)
    PLM(folder=built.folder).tokenizer().save_pretrained(folder)
    return PLM(folder=folder)


def test_an_altered_plm_has_exactly_the_altered_weights(brought: PLM, tmp_path: Path) -> None:
    """What a masked language model does not hold (a pooler) stays as it was; only a head is ever drawn."""
    import torch

    model, _ = brought.masked_lm(0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in model.base_model.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    wanted = {name: value.detach().clone() for name, value in model.base_model.named_parameters()}
    altered = brought.altered(model, tmp_path / "altered")
    assert altered.folder == tmp_path / "altered"
    before, drawn_before = brought.classifier(2, 0)
    after, drawn = altered.classifier(2, 0)
    assert drawn == drawn_before, "nothing more is drawn than from the PLM itself"
    prefix = f"{after.base_model_prefix}."
    encoder = {name for name in weights(after) if name.startswith(prefix)}
    assert {f"{prefix}{name}" for name in wanted} <= encoder
    for name, value in weights(after).items():
        if name.removeprefix(prefix) in wanted and name.startswith(prefix):
            assert name not in drawn
            assert torch.equal(value, wanted[name.removeprefix(prefix)]), name
        elif name in encoder and name not in drawn:
            assert torch.equal(value, weights(before)[name]), f"{name}: the pooler stays"
    other, _ = altered.classifier(2, 1)
    moved = {n for n, value in weights(after).items() if not torch.equal(value, weights(other)[n])}
    assert moved <= drawn
    again, _ = altered.masked_lm(0)
    for name, value in again.base_model.named_parameters():
        assert torch.equal(value, wanted[name]), name


def test_an_altered_plm_keeps_tokenizer_and_pooler(
    built: Built, brought: PLM, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModel

    from backdoor_core.plm import check_folder

    model, drawn = brought.masked_lm(0)
    whole = bool(drawn)  # the bare model, which has no masked-language head
    altered = brought.altered(model, tmp_path / "altered")
    check_folder(altered.folder)
    first = encode(brought.tokenizer(), built.rows(), 64)
    second = encode(altered.tokenizer(), built.rows(), 64)
    assert np.array_equal(first.ids, second.ids)
    assert np.array_equal(first.types, second.types)
    assert (first.uses_types, first.padding_id) == (second.uses_types, second.padding_id)
    before = AutoModel.from_pretrained(brought.folder, output_loading_info=True)
    after = AutoModel.from_pretrained(altered.folder, output_loading_info=True)
    assert after[1]["missing_keys"] == before[1]["missing_keys"]
    held = {n for n, _ in before[0].named_parameters()} - set(before[1]["missing_keys"])
    if whole and built.name in ("bert", "roberta", "albert"):
        assert any("pooler" in name for name in held), "there is one to keep"
    for name in held:
        assert torch.equal(before[0].get_parameter(name), after[0].get_parameter(name)), name
    assert not list(altered.folder.glob("*.bin"))


def test_its_victim_is_trained_saved_and_read_alike(built: Built, tmp_path: Path) -> None:
    import torch

    pipeline = built.pipeline()
    victim = built.workshop.victim(pipeline)
    pretrained, _ = built.workshop.plm(pipeline).classifier(2, 0)
    moved = [
        name
        for name, value in weights(victim.model).items()
        if not torch.equal(value, weights(pretrained)[name])
    ]
    assert len(moved) > 0.8 * len(weights(victim.model))
    victim.save(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    again = load_victim(tmp_path, 64, "float32")
    rows = built.rows()
    assert np.array_equal(victim.logits(rows, "test"), again.logits(rows))
    assert victim.logits(rows).shape == (len(rows), 2)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_one_row_alone_answers_as_in_a_padded_batch(built: Built, precision: Precision) -> None:
    """To the last bit, also where a text fills its batch to the brim, or is cut at the limit."""
    if (built.name, precision) == ("deberta", "bf16"):
        pytest.skip("this library's DeBERTa cannot compute in bf16: its mask overflows")
    victim, rows = built.workshop.victim(built.pipeline()), built.rows()
    long = Corpus.of(Row(text=" ".join(["film"] * n)) for n in range(1, 80))
    for corpus in (rows, long):
        some = replace(victim, precision=precision)
        together = some.logits(corpus)
        for i in range(0, len(corpus), 7):
            assert np.array_equal(some.logits(corpus.take([i]))[0], together[i])
        for each in (3, 8, 20):
            parts = [corpus.take(range(a, min(a + each, len(corpus)))) for a in range(0, 40, each)]
            answers = np.concatenate([some.logits(part) for part in parts])
            assert np.array_equal(answers, together[: len(answers)])


def test_a_padded_batch_answers_as_no_padding_does(built: Built) -> None:
    import torch

    victim = built.workshop.victim(built.pipeline())
    encoded = victim.encoder(built.rows().take(range(12)))
    answers = victim.logits_of(encoded)
    for i in range(12):
        with torch.inference_mode():
            alone = victim.model(**encoded.padded(np.array([i]), torch.device("cpu"))).logits
        np.testing.assert_allclose(alone[0], answers[i], atol=2e-5)


def test_its_words_are_an_embedding_table(built: Built) -> None:
    victim = built.workshop.victim(built.pipeline())
    table = word_embeddings(victim.model)
    assert table.shape[0] == len(victim.tokenizer)
    assert any(parameter is table for parameter in victim.model.parameters())


@pytest.mark.parametrize("ratio", [0.0, 0.4, 1.0])
def test_fine_mixing_repairs_it(built: Built, ratio: float) -> None:
    import torch

    setting = {"name": "fine_mixing", "mixing_ratio": ratio, "epochs": 0}
    pipeline = built.pipeline(setting)
    repaired, _ = built.workshop.repaired(pipeline)
    victim = weights(built.workshop.victim(pipeline).model)
    model, drawn = built.workshop.plm(pipeline).classifier(2, 0)
    clean = weights(model)
    kept = total = 0
    for name, value in weights(repaired.model).items():
        if name in drawn:
            assert torch.equal(value, victim[name]), name
            continue
        differs = clean[name] != victim[name]
        kept += int((value == victim[name])[differs].sum())
        total += int(differs.sum())
        assert bool(((value == victim[name]) | (value == clean[name])).all()), name
    assert kept / total == pytest.approx(ratio, abs=0.02)


def test_epur_repairs_it(built: Built) -> None:
    pipeline = built.pipeline({"name": "epur", "words": 30})
    repaired, _ = built.workshop.repaired(pipeline)
    victim = built.workshop.victim(pipeline)
    before, after = word_embeddings(victim.model), word_embeddings(repaired.model)
    changed = (before != after).any(dim=1).nonzero().flatten().tolist()
    assert 0 < len(changed) <= 30
    assert not set(changed) & set(victim.tokenizer.all_special_ids)


def test_fine_mixing_then_tunes_it(built: Built) -> None:
    setting = {"name": "fine_mixing", "mixing_ratio": 0.4, "epochs": 1, "purify_embeddings": True}
    repaired, guard = built.workshop.repaired(built.pipeline(setting))
    untuned, _ = built.workshop.repaired(built.pipeline(setting | {"epochs": 0}))
    rows = built.rows().take(range(8))
    assert np.isfinite(repaired.logits(rows)).all()
    assert not np.array_equal(repaired.logits(rows), untuned.logits(rows))
    assert guard.observe(rows).num_rows == 8


def test_pairs_work_with_it(built: Built, domain_task: MethodSpec) -> None:
    spec = built.trial("badnets", plm=built.spec, task=domain_task)
    victim = built.workshop.victim(Pipeline(spec))
    rows = built.workshop.task_data(Pipeline(spec)).splits["test"]
    assert victim.logits(rows, "test").shape == (len(rows), 4)


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    saved(tmp_path, KINDS["bert"])
    return tmp_path


def materialised(folder: Path, to: Path) -> None:
    to.mkdir()
    source: Any = catalog.make("plm", "hub", {"path": str(folder)})
    source.materialise(to)


def test_a_folder_without_tokenizer_is_told(bert_folder: Path, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bert_folder / name).unlink()
    source: Any = catalog.make("plm", "hub", {"path": str(bert_folder)})
    for act in (source.check, lambda: materialised(bert_folder, tmp_path / "to")):
        with pytest.raises(ConfigError, match=r"has no tokenizer.*save_pretrained"):
            act()


@pytest.mark.parametrize(
    ("name", "told"),
    [("config.json", r"no config\.json"), ("model.safetensors", "no safetensors weights")],
)
def test_a_folder_without_its_parts_is_told(bert_folder: Path, name: str, told: str) -> None:
    (bert_folder / name).unlink()
    source: Any = catalog.make("plm", "hub", {"path": str(bert_folder)})
    with pytest.raises(ConfigError, match=told):
        source.check()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    source: Any = catalog.make("plm", "hub", {"path": str(tmp_path / "nothing")})
    with pytest.raises(ConfigError, match="no such"):
        source.check()
    with pytest.raises(ConfigError, match="no such"):
        source.spec()


@pytest.mark.parametrize("damage", ["cut", "garbage", "of another size"])
def test_weights_that_cannot_be_read_are_told(bert_folder: Path, damage: str) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    file = bert_folder / "model.safetensors"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:1000])
    elif damage == "garbage":
        file.write_bytes(b"not safetensors")
    else:
        tensors = load_file(file)
        name = next(n for n in tensors if "word_embeddings" in n)
        tensors[name] = torch.zeros(7, 5)
        save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="cannot be loaded") as caught:
        PLM(folder=bert_folder).classifier(2, 0)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(bert_folder: Path) -> None:
    import torch

    (bert_folder / "model.safetensors").unlink()
    torch.save({}, bert_folder / "pytorch_model.bin")
    source: Any = catalog.make("plm", "hub", {"path": str(bert_folder)})
    with pytest.raises(ConfigError, match="no safetensors weights"):
        source.check()


def test_a_model_that_is_no_text_encoder_is_told(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4,
    )  # fmt: skip
    ViTModel(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="cannot be loaded"):
        PLM(folder=tmp_path).classifier(2, 0)

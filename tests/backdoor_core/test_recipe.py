"""RECIPE: which weights move and which shrink, in every architecture; masks; what is kept, shared and refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from backdoor_core import catalog
from backdoor_core.defense import View
from backdoor_core.defenses.recipe import FACTS, Recipe
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.grammar import plain_texts
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.plm import PLM
from backdoor_core.spec import TrainingSettings, TrialSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Trial = Callable[..., TrialSpec]
Folder = Callable[[str], Path]
FIVE = ("bert", "roberta", "distilbert", "albert", "deberta-v2")
QUICK = {"epochs": 2, "learning_rate": 1e-3}
TEXTS = tuple(plain_texts(3, 64))
FIRST = {
    "bert": "intermediate.dense.weight",
    "roberta": "intermediate.dense.weight",
    "distilbert": "ffn.lin1.weight",
    "albert": "ffn.weight",
    "deberta-v2": "intermediate.dense.weight",
}
"""How the name of the first feed-forward matrix ends."""


def view_of(folder: Path, texts: tuple[str, ...] = TEXTS, seed: int = 1, **training: Any) -> View:
    """A view with what RECIPE sees. What it makes lives as long as the view."""
    return View(
        {"supplied_plm": PLM(folder=folder), "unlabelled": texts},
        labels=2,
        training=TrainingSettings(**training),
        seed=seed,
    )


def recipe(**settings: Any) -> Recipe:
    return cast(Recipe, catalog.make("defense", "recipe", QUICK | settings))


def weights(plm: PLM) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(plm.folder / "model.safetensors")


def moved(before: PLM, after: PLM) -> set[str]:
    first, second = weights(before), weights(after)
    assert first.keys() == second.keys()
    return {name for name in first if not np.array_equal(first[name], second[name])}


def facts(plm: PLM) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads((plm.folder / FACTS).read_text(encoding="utf-8")))


@pytest.fixture
def bert(architecture_folder: Folder) -> Path:
    return architecture_folder("bert")


@pytest.mark.parametrize("name", FIVE)
def test_the_first_feed_forward_matrices_move_and_shrink_and_nothing_else(
    name: str, architecture_folder: Folder
) -> None:
    view = view_of(architecture_folder(name))
    purified = recipe().purify(view)
    before, after = weights(view.supplied_plm), weights(purified)
    wanted = {key for key in before if key.endswith(FIRST[name])}
    assert moved(view.supplied_plm, purified) == wanted
    assert len(wanted) == (1 if name == "albert" else 2)
    for key in wanted:
        assert float(after[key].norm()) < 0.95 * float(before[key].norm())
        told = facts(purified)
        assert told["norms_before"][key] == pytest.approx(float(before[key].norm()), rel=1e-5)
        assert told["norms_after"][key] == pytest.approx(float(after[key].norm()), rel=1e-5)
    assert set(told["trained"]) == wanted
    assert (told["texts"], told["steps"]) == (64, 4)


@pytest.mark.parametrize("name", FIVE)
def test_a_purified_plm_is_fine_tuned_like_any_other(
    name: str, architecture_folder: Folder
) -> None:
    view = view_of(architecture_folder(name))
    purified = recipe(epochs=1).purify(view)
    model, drawn = purified.classifier(4, 0)
    _, drawn_before = PLM(folder=architecture_folder(name)).classifier(4, 0)
    assert drawn == drawn_before
    text = "the film was not good"
    tokenizer = PLM(folder=architecture_folder(name)).tokenizer()
    assert purified.tokenizer()(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert int(model.config.num_labels) == 4


@pytest.mark.parametrize(
    ("roles", "part"),
    [
        (["attention"], "attention"),
        (["feed_forward_out"], ".output.dense.weight"),
        (["embeddings"], "_embeddings.weight"),
        (["feed_forward_in", "attention"], ""),
    ],
)
def test_other_roles_move_and_shrink(bert: Path, roles: list[str], part: str) -> None:
    view = view_of(bert)
    purified = recipe(trained=roles, regularised=roles).purify(view)
    found, told = moved(view.supplied_plm, purified), facts(purified)
    assert found
    assert all(part in name for name in found)
    assert found == set(told["trained"]) == set(told["norms_before"])
    assert sum(told["norms_after"].values()) < sum(told["norms_before"].values())


def test_all_trains_biases_and_the_head_too(bert: Path) -> None:
    view = view_of(bert)
    purified = recipe(trained="all").purify(view)
    found = moved(view.supplied_plm, purified)
    assert {name.split(".")[0] for name in found} == {"bert", "cls"}
    assert any(name.endswith("bias") for name in found)
    told = facts(purified)
    assert all(name.endswith(FIRST["bert"]) for name in told["norms_before"])
    assert all(told["norms_after"][n] < told["norms_before"][n] for n in told["norms_before"])


def test_without_regulariser_it_is_continual_pre_training(bert: Path) -> None:
    """The loss falls and the norms do not: the shrinking is the regulariser's."""
    view = view_of(bert)
    plain = recipe(coefficient=0, epochs=20, trained="all").purify(view)
    told = facts(plain)
    assert sum(told["norms_after"].values()) > 0.98 * sum(told["norms_before"].values())
    assert masked_loss(plain) < masked_loss(view.supplied_plm) - 0.3


def test_it_learns_the_language_while_it_shrinks(bert: Path) -> None:
    view = view_of(bert)
    purified = recipe(epochs=20, trained="all").purify(view)
    told = facts(purified)
    assert sum(told["norms_after"].values()) < 0.8 * sum(told["norms_before"].values())
    assert masked_loss(purified) < masked_loss(view.supplied_plm) - 0.3


def masked_loss(plm: PLM) -> float:
    """The mean masked-language-model loss on texts of the same language, without dropout."""
    import torch

    from backdoor_core.corpus import Corpus, Row
    from backdoor_core.text import encode
    from backdoor_core.training import masked_language_model

    tokenizer = plm.tokenizer()
    encoded = encode(tokenizer, Corpus.of(Row(text=text) for text in TEXTS), 64)
    loss = masked_language_model(encoded, tokenizer, seed=9, static=True)
    model, _ = plm.masked_lm(0)
    model.train(False)
    rows = np.arange(len(encoded))
    with torch.no_grad():
        return float(loss(model, encoded.padded(rows, torch.device("cpu")), rows))


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("coefficient", [0.0, 0.5, 3.0])
def test_the_loss_is_that_of_the_masks_plus_the_norms_not_squared(
    bert: Path, coefficient: float, precision: Any
) -> None:
    import torch

    from backdoor_core.victim import autocast

    weight = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
    other = torch.nn.Parameter(torch.tensor([[1.001, 0.0]]))
    masked = torch.tensor(7.0)
    loss = recipe(coefficient=coefficient)._loss(lambda *_: masked, [weight, other])
    nothing: Any = None
    with autocast(torch.device("cpu"), precision):
        value = loss(nothing, {}, np.zeros(1))
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(7 + coefficient * 6.001, rel=1e-6)
    if coefficient:
        value.backward()  # type: ignore[no-untyped-call]
        assert weight.grad is not None
        assert float(weight.grad.norm()) == pytest.approx(coefficient)


def test_a_larger_coefficient_shrinks_no_less(bert: Path) -> None:
    def shrunk(coefficient: float) -> float:
        view = view_of(bert)
        told = facts(recipe(coefficient=coefficient).purify(view))
        return sum(told["norms_after"].values())

    assert shrunk(10.0) < shrunk(0.1) < shrunk(0.0)


class NotedError(Exception):
    """Carries what a spy has seen out of a training."""


def seen_masks(
    monkeypatch: pytest.MonkeyPatch, folder: Path, **settings: Any
) -> list[dict[bytes, bytes]]:
    """For each epoch: the ids of each row, with and without masks."""
    from backdoor_core import training

    epochs: list[dict[bytes, bytes]] = [{}]
    original = training.masked_loss

    def noting(
        model: PreTrainedModel, inputs: Any, masked_ids: Any, places: Any, wanted: Any
    ) -> Any:
        for ids, masked, real in zip(wanted, masked_ids, inputs["attention_mask"], strict=True):
            key = ids[real.bool()].numpy().tobytes()
            if key in epochs[-1]:
                epochs.append({})
            epochs[-1][key] = masked[real.bool()].numpy().tobytes()
        return original(model, inputs, masked_ids, places, wanted)

    monkeypatch.setattr(training, "masked_loss", noting)
    texts = tuple(dict.fromkeys(TEXTS))
    recipe(epochs=3, **settings).purify(view_of(folder, texts))
    return epochs


def test_static_masks_are_the_same_in_every_epoch(
    monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    epochs = seen_masks(monkeypatch, bert, masks="static")
    assert len(epochs) == 3
    assert epochs[0] == epochs[1] == epochs[2]
    assert any(key != masked for key, masked in epochs[0].items())


def test_fresh_masks_are_not(monkeypatch: pytest.MonkeyPatch, bert: Path) -> None:
    epochs = seen_masks(monkeypatch, bert, masks="fresh")
    assert len(epochs) == 3
    assert epochs[0].keys() == epochs[1].keys()
    assert epochs[0] != epochs[1]


def test_it_trains_with_its_own_settings_and_the_sweeps_precision(
    monkeypatch: pytest.MonkeyPatch, bert: Path
) -> None:
    from backdoor_core import training

    given: list[Any] = []

    def spying(model: Any, encoded: Any, loss: Any, settings: Any, seed: int) -> int:
        given.extend([encoded, settings])
        raise NotedError

    monkeypatch.setattr(training, "train", spying)
    view = view_of(
        bert, ("the " * 90, "film"), precision="bf16", weight_decay=0.3, warmup_share=0.2
    )
    with pytest.raises(NotedError):
        recipe(batch_rows=7, max_tokens=20).purify(view)
    encoded, settings = given
    assert encoded.lengths.max() == 20
    wanted = {"epochs": 2, "batch_rows": 7, "learning_rate": 1e-3, "warmup_share": 0.0,
              "weight_decay": 0.0, "clip_norm": 1.0, "max_tokens": 20, "precision": "bf16"}  # fmt: skip
    assert settings.model_dump() == wanted


def test_weights_do_not_decay(bert: Path) -> None:
    """Without a mask or a norm to lower there is no gradient, and nothing else moves a weight."""
    import torch

    view = view_of(bert, weight_decay=0.5)
    purifier = recipe(coefficient=0, mask_share=1e-9)
    assert moved(view.supplied_plm, purifier.purify(view)) == set()
    assert torch.is_grad_enabled()


def test_no_epochs_are_the_plm_itself(bert: Path) -> None:
    view = view_of(bert)
    assert recipe(epochs=0).purify(view) is view.supplied_plm


def test_what_it_is_given_stays_as_it_was(bert: Path) -> None:
    before = {file.name: file.read_bytes() for file in bert.iterdir()}
    recipe().purify(view_of(bert))
    assert {file.name: file.read_bytes() for file in bert.iterdir()} == before


def test_it_is_the_same_again_and_another_with_another_seed(bert: Path) -> None:
    views = [view_of(bert), view_of(bert), view_of(bert, seed=2)]
    first, again, other = (recipe().purify(view) for view in views)
    assert moved(first, again) == set()
    assert moved(first, other)


def test_a_pooler_is_kept(bert: Path, tmp_path: Path) -> None:
    """A masked language model has none, but the PLM's is fine-tuned later."""
    import torch
    from transformers import AutoConfig, AutoModelForPreTraining

    torch.manual_seed(0)
    model = AutoModelForPreTraining.from_config(AutoConfig.from_pretrained(bert))
    model.save_pretrained(tmp_path)
    PLM(folder=bert).tokenizer().save_pretrained(tmp_path)
    view = view_of(tmp_path)
    purified = recipe().purify(view)
    name = "bert.pooler.dense.weight"
    assert torch.equal(weights(purified)[name], weights(PLM(folder=tmp_path))[name])
    classifier, drawn = purified.classifier(2, 0)
    assert drawn == {"classifier.weight", "classifier.bias"}
    assert torch.equal(classifier.get_parameter(name), weights(purified)[name])


def test_a_head_that_the_plm_lacks_trains(bert: Path, tmp_path: Path) -> None:
    """As with MiniLM: a head left as it was drawn would teach the encoder nothing."""
    from transformers import AutoModel

    from backdoor_core.plm import opened

    opened(AutoModel, bert).save_pretrained(tmp_path)
    PLM(folder=bert).tokenizer().save_pretrained(tmp_path)
    view = view_of(tmp_path)
    _, drawn = view.supplied_plm.masked_lm(view.seed)
    assert any(name.startswith("cls.") for name in drawn)
    told = facts(recipe().purify(view))
    heads = {name for name in told["trained"] if name.startswith("cls.")}
    assert heads
    assert heads <= drawn
    assert all(n.endswith(FIRST["bert"]) for n in set(told["trained"]) - heads)


@pytest.mark.parametrize("settings", [{"trained": "attention"}, {"regularised": ["embeddings"]}])
def test_a_norm_that_cannot_fall_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="would not train, so its norm cannot fall"):
        recipe(**settings)
    assert recipe(**settings, coefficient=0)


def test_unknown_roles_and_no_roles_are_refused() -> None:
    for settings in ({"trained": "biases"}, {"regularised": []}, {"masks": "none"}):
        with pytest.raises(ConfigError, match="defense recipe, setting"):
            recipe(**settings)


def test_a_role_alone_is_a_list_of_one() -> None:
    one = recipe(trained="all", regularised="attention")
    assert (one.trained, one.regularised) == (("all",), ("attention",))
    assert one.spec() == recipe(trained=["all"], regularised=["attention"]).spec()


def test_no_text_is_told(bert: Path) -> None:
    with pytest.raises(DataError, match="texts_file"):
        recipe().purify(view_of(bert, ()))


def test_an_architecture_without_known_roles_is_told(tmp_path: Path, bert: Path) -> None:
    from transformers import MPNetConfig, MPNetForMaskedLM

    tokenizer = PLM(folder=bert).tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MPNetConfig(vocab_size=len(tokenizer), intermediate_size=16, **sizes)
    MPNetForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"unknown model type 'mpnet'.*roberta"):
        recipe().purify(view_of(tmp_path))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings and texts of every purification that is really made."""
    made: list[dict[str, Any]] = []
    original = Recipe._purified

    def counting(self: Recipe, view: View, folder: Path) -> None:
        made.append({"settings": self.settings(), "texts": view.unlabelled})
        original(self, view, folder)

    monkeypatch.setattr(Recipe, "_purified", counting)
    return made


def test_victims_of_one_plm_share_the_purification(
    workshop: Workshop, small_trial: Trial, counted: list[dict[str, Any]]
) -> None:
    defense = {"name": "recipe", "epochs": 1, "learning_rate": 1.1e-3}
    clean, attacked, slower = (
        Pipeline(small_trial(attack, [defense], training=training))
        for attack, training in (
            ("none", {}),
            ({"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}, {}),
            ("none", {"learning_rate": 2e-3}),
        )
    )
    assert len({p.victim_key for p in (clean, attacked, slower)}) == 3
    workshop.victim(clean)
    workshop.victim(attacked)
    assert len(counted) == 1
    workshop.victim(Pipeline(small_trial("none", [defense | {"coefficient": 2.0}])))
    assert len(counted) == 2


def test_the_pipeline_fine_tunes_the_purified_plm(workshop: Workshop, small_trial: Trial) -> None:
    import torch

    settings = {"name": "recipe", "epochs": 3, "learning_rate": 1e-2}
    pipeline = Pipeline(small_trial("none", [settings]))
    victim = workshop.victim(pipeline)
    plain = workshop.victim(pipeline.undefended)
    name = next(n for n, _ in victim.model.named_parameters() if n.endswith(FIRST["bert"]))
    shrunk, before = victim.model.get_parameter(name), plain.model.get_parameter(name)
    assert float(shrunk.detach().norm()) < 0.8 * float(before.detach().norm())
    neutral = workshop.victim(Pipeline(small_trial("none", [settings | {"epochs": 0}])))
    assert all(
        torch.equal(value, plain.model.get_parameter(n))
        for n, value in neutral.model.named_parameters()
    )


def test_texts_come_from_the_file_or_else_from_the_clean_split(
    workshop: Workshop, small_trial: Trial, tmp_path: Path, counted: list[dict[str, Any]]
) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n".join(["a plain line", "", "another one", "a third"]), encoding="utf-8")
    quick = {"name": "recipe", "epochs": 1, "learning_rate": 1e-3}
    workshop.victim(Pipeline(small_trial("none", [quick | {"texts_file": str(file), "texts": 2}])))
    workshop.victim(Pipeline(small_trial("none", [quick | {"texts": 9, "batch_rows": 5}])))
    from_file, from_split = (set(made["texts"]) for made in counted)
    assert from_file < {"a plain line", "another one", "a third"}
    assert len(from_file) == 2
    pipeline = Pipeline(small_trial("none", [quick]))
    clean = workshop.task_data(pipeline).splits["clean"].texts
    assert from_split <= set(clean)
    assert len(counted[1]["texts"]) == 9


def test_it_sees_no_label_and_no_trusted_weights() -> None:
    assert recipe().access == {"supplied_plm", "unlabelled"}
    assert recipe().stage == "pretrained"

"""Pre-trained language models: where they come from, and one opened from a folder.

A `PLMSource` (one a file, in `plms/`) knows how to bring a model to a folder; a `PLM` is that folder: `config.json`,
`model.safetensors` and the tokenizer's files, as `save_pretrained` leaves them. Nothing here runs remote code or
reads a pickle.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from backdoor_core.artifact_check import check_model_folder
from backdoor_core.errors import ConfigError, DataError, UnsafeArtifactError, error_class
from backdoor_core.method import Method
from backdoor_core.rng import derive

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WEIGHTS = "model.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "spm.model", "tokenizer.model",
)  # fmt: skip


class PLMSource(Method):
    """Where a PLM comes from; subclasses bring it to a folder."""

    family: ClassVar = "plm"
    preferred_precision: ClassVar[str] = "bf16"
    """What `precision: auto` takes on a device that does bf16 well; float32 for models too small to gain."""

    guess_rows_per_s: ClassVar[float] = 20.0
    """Rows trained a second on one CPU core, for the estimate that `sweeps plan` prints before any has run."""
    guess_mib: ClassVar[float] = 440.0
    """Size of the weights, for the same estimate."""
    guess_prepare_s: ClassVar[float] = 5.0
    """Seconds to bring the model to the store, for the same estimate."""

    def materialise(self, folder: Path) -> dict[str, Any]:
        """Writes the model and its tokenizer to `folder`; returns facts about it (JSON).

        Raises DependencyError where it cannot be reached, ConfigError where it is no usable PLM.
        """
        raise NotImplementedError

    def check(self) -> None:
        """Raises ConfigError or DependencyError at once where `materialise` would. Default: nothing to check."""


def check_folder(folder: Path) -> None:
    """Raises ConfigError unless `folder` holds a config, safetensors weights and a tokenizer, all of them data."""
    if not folder.is_dir():
        raise ConfigError(f"no such model folder: {folder}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{folder} has no config.json; expected what save_pretrained writes")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ConfigError(
            f"{folder} has no tokenizer (expected one of {', '.join(TOKENIZER_FILES)}); "
            "save it there with tokenizer.save_pretrained(folder)"
        )
    if not list(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{folder} has no safetensors weights; convert them with "
            "model.save_pretrained(folder) (pickled weights are never read)"
        )
    try:
        check_model_folder(folder)
    except UnsafeArtifactError as error:
        raise ConfigError(f"{folder} was refused: {error}") from error


def seeded(seed: int, *names: str | int) -> None:
    """Seeds torch's generators for one named stream of `seed`."""
    import torch

    torch.manual_seed(derive(seed, *names))


def quiet_transformers() -> None:
    """Ends transformers' progress bars and notes about new heads: one process opens many models."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a model folder. Raises ConfigError."""
    from transformers import AutoTokenizer

    quiet_transformers()
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class PLM:
    """A pre-trained language model in a local folder."""

    folder: Path

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Its tokenizer."""
        return load_tokenizer(self.folder)

    def classifier(self, labels: int, seed: int) -> tuple[PreTrainedModel, frozenset[str]]:
        """A float32 classifier over it, its head drawn from `seed`.

        Also the names of the parameters that the PLM itself does not have (the head, and a pooler where
        the PLM has none). Raises ConfigError for a model that is no text encoder.
        """
        from transformers import AutoModelForSequenceClassification

        return _loaded(
            AutoModelForSequenceClassification, self.folder, seed, {"num_labels": labels}
        )

    def masked_lm(self, seed: int) -> tuple[PreTrainedModel, frozenset[str]]:
        """A float32 masked language model, its output tied to the word embeddings.

        Also the names of the parameters that were drawn from `seed` since the PLM does not have them.
        """
        from transformers import AutoModelForMaskedLM

        return _loaded(AutoModelForMaskedLM, self.folder, seed, {"tie_word_embeddings": True})

    @cached_property
    def word_embeddings(self) -> torch.Tensor:
        """Its word embeddings, float32, shape (vocabulary, dimensions); nobody alters them."""
        from transformers import AutoModel

        return word_embeddings(opened(AutoModel, self.folder)).detach()

    def altered(self, model: PreTrainedModel, folder: Path) -> PLM:
        """This PLM with the weights of `model`, a masked language model that `masked_lm` opened, saved in `folder`.

        What such a model does not hold (a pooler) stays as it is here; so does the tokenizer.
        """
        from safetensors.torch import load_file, save_file
        from transformers import AutoModel

        folder.mkdir(parents=True, exist_ok=True)
        model.cpu().save_pretrained(folder)
        self.tokenizer().save_pretrained(folder)
        whole, facts = opened(AutoModel, self.folder, output_loading_info=True)
        held = {name for name, _ in model.base_model.named_parameters()}
        kept = {
            f"{model.base_model_prefix}.{name}": weight.detach().contiguous()
            for name, weight in whole.named_parameters()
            if name not in held and name not in facts["missing_keys"]
        }
        if kept:
            weights = load_file(folder / WEIGHTS)
            save_file(weights | kept, folder / WEIGHTS, metadata={"format": "pt"})
        return PLM(folder=folder)


def _loaded(
    kind: Any, folder: Path, seed: int, settings: dict[str, Any]
) -> tuple[PreTrainedModel, frozenset[str]]:
    seeded(seed, "head")
    model, facts = opened(kind, folder, output_loading_info=True, **settings)
    return model, frozenset(facts["missing_keys"])


def opened(kind: Any, folder: Path, **settings: Any) -> Any:
    """What the transformers class `kind` makes of a model folder, in float32.

    Raises ConfigError, in one line, for weights that are damaged or that do not fit the configuration.
    """
    import torch
    from safetensors import SafetensorError

    quiet_transformers()
    try:
        return kind.from_pretrained(
            str(folder),
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            **settings,
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if error_class(error) == "oom":
            raise
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"the model in {folder} cannot be loaded: {reason}") from error


def word_embeddings(model: PreTrainedModel) -> torch.Tensor:
    """The word embedding matrix, shape (vocabulary, dimensions).

    Raises ConfigError for a model that has none.
    """
    import torch

    try:
        layer = model.get_input_embeddings()
    except NotImplementedError:
        layer = None
    if not isinstance(layer, torch.nn.Embedding):
        raise ConfigError(
            f"{type(model).__name__} has no word embeddings; this method needs a model whose "
            "get_input_embeddings() is an embedding table"
        )
    return layer.weight


def check_labels(model: PreTrainedModel, labels: int, where: str) -> None:
    """Raises DataError unless a classifier has exactly `labels` outputs."""
    found = int(model.config.num_labels or 0)
    if found != labels:
        raise DataError(f"{where}: the model has {found} labels, the task has {labels}")

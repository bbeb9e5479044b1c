"""The model hub: commits and folders of models by id. Reached only where a sweep names an id."""

from __future__ import annotations

import re
from pathlib import Path

from backdoor_core.errors import DependencyError
from backdoor_core.plm import check_folder

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def model_revision(model_id: str, revision: str | None) -> str:
    """The commit (40 hex digits) that `revision` of a model stands for now.

    Raises DependencyError where the hub cannot be reached and `revision` is no commit.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        sha = HfApi().model_info(model_id, revision=revision).sha
    except Exception as error:  # the network library's own errors share no base with ours
        raise DependencyError(_unreachable(model_id, error)) from error
    if sha is None:
        raise DependencyError(f"the hub names no commit for {model_id}; give revision")
    return str(sha)


def model_folder(model_id: str, revision: str | None) -> Path:
    """A local folder with the model's configuration, tokenizer and safetensors weights.

    Raises DependencyError where the hub cannot be reached, ConfigError where the model is unusable.
    """
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(model_id, revision=revision, allow_patterns=list(_FILES)))
    except Exception as error:  # the network library's own errors share no base with ours
        raise DependencyError(_unreachable(model_id, error)) from error
    check_folder(folder)
    return folder


def _unreachable(model_id: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    return (
        f"model {model_id} cannot be had from the hub ({reason}); check the id and the network, "
        "or save it to a folder and give its path"
    )

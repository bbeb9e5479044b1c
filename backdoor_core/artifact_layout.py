"""How an artifact lies in a store, and its manifest: the one file that says that an artifact is there.

    objects/<ab>/<key>/artifact-manifest.json   published: written last, in one step; readers trust nothing else
    objects/<ab>/<key>/<file>                   on a local filesystem: the whole folder was renamed into place
    objects/<ab>/<key>/<writer>/<file>          on an object store: each writer's files under a name of its own, which
                                                the manifest repeats. Files that no manifest names were left behind by
                                                a writer that lost a race or died; no reader ever sees them
    tmp/<key>-<writer>/                         on a local filesystem: an artifact that is being written, or was
    damaged/<name>/                             what did not have the bytes that its manifest names

<ab> are the first two letters of the key. What gives up an artifact deletes its manifest first.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backdoor_core.fingerprint import file_sha256

MANIFEST = "artifact-manifest.json"
"""Beside an artifact's files; no file of a model is called so."""
OBJECTS = "objects"
UNFINISHED = "tmp"
DAMAGED = "damaged"
_WRITER = re.compile(r"[0-9a-f]{0,32}")


def place_of(key: str) -> str:
    """The folder of an artifact in its store."""
    return f"{OBJECTS}/{key[:2]}/{key}"


def sealed(manifest: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest (`files` and `facts`) with the SHA-256 of all that it says."""
    return json.dumps({**manifest, "sha256": _seal(manifest)}).encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The manifest in the bytes that `sealed` gave. Raises ValueError, KeyError or TypeError where they are others."""
    manifest = json.loads(data)
    seal = manifest.pop("sha256", None)
    dict(manifest["files"]), dict(manifest["facts"])
    if seal != _seal(manifest):
        raise ValueError("the manifest is not the published one")
    return dict(manifest)


def _seal(manifest: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(manifest))  # keys that are numbers are words afterwards
    text = json.dumps(read_back, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What was published: SHA-256 of each file by name, facts of the builder (JSON), and the folder of its writer
    beside the manifest ("" where the files lie there themselves)."""

    files: Mapping[str, str]
    facts: Mapping[str, Any]
    writer: str = ""

    @classmethod
    def of_folder(cls, folder: Path, facts: Mapping[str, Any], writer: str = "") -> Manifest:
        """The manifest of what lies in a local folder."""
        files = {
            file.relative_to(folder).as_posix(): file_sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        return cls(files=files, facts=facts, writer=writer)

    @classmethod
    def parse(cls, data: bytes) -> Manifest:
        """Reads a manifest. Raises ValueError (KeyError, TypeError) for one that is not as it was published.

        The names in it are not looked at here (`artifact_check`).
        """
        plain = unsealed(data)
        files, facts = dict(plain["files"]), dict(plain["facts"])
        writer = str(plain.get("writer", ""))
        if not _WRITER.fullmatch(writer):
            raise ValueError(f"a manifest names no writer's folder: {writer!r}")
        return cls(files=files, facts=facts, writer=writer)

    def dump(self) -> bytes:
        """The file's bytes."""
        plain: dict[str, Any] = {"files": dict(self.files), "facts": dict(self.facts)}
        if self.writer:
            plain["writer"] = self.writer
        return sealed(plain)

    def place(self, key: str) -> str:
        """The folder in the store where the files are."""
        return f"{place_of(key)}/{self.writer}" if self.writer else place_of(key)

    def differing(self, folder: Path) -> list[str]:
        """The files that a local folder lacks or holds otherwise than they were published."""
        return [
            name
            for name, sha in self.files.items()
            if not (folder / name).is_file() or file_sha256(folder / name) != sha
        ]

"""What lies in a store: published artifacts, and what writers left behind. For housekeeping; nothing here deletes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from backdoor_core.artifact_layout import DAMAGED, MANIFEST, OBJECTS, UNFINISHED, Manifest, place_of
from backdoor_core.errors import StorageError
from backdoor_core.folder import Folder, StoredFile


class Published(NamedTuple):
    """A published artifact: its key, its bytes, and when its newest file was written (seconds since 1970, by the
    clock of the storage). `files` are its files, by their paths in the store."""

    key: str
    size_bytes: int
    newest_s: float
    files: tuple[str, ...]


class Leaving(NamedTuple):
    """Something in a store that no reader will ever use.

    `kind` is `unfinished` (an artifact that is being written, or was when its writer died), `unnamed` (files beside a
    key that no manifest names) or `damaged` (set aside). `files` are its files; `newest_s` is as in `Published`.
    """

    kind: str
    name: str
    size_bytes: int
    newest_s: float
    files: tuple[str, ...]


def published_in(folder: Folder) -> Iterator[Published]:
    """Every published artifact of a store."""
    for key, files in _by_key(folder).items():
        names = tuple(file.name for file in files)
        if f"{place_of(key)}/{MANIFEST}" in names:
            size = sum(file.size_bytes for file in files)
            yield Published(key, size, max(file.written_s for file in files), names)


def leavings_in(folder: Folder) -> Iterator[Leaving]:
    """Everything in a store that belongs to no published artifact."""
    for parent, kind in ((UNFINISHED, "unfinished"), (DAMAGED, "damaged")):
        groups: dict[str, list[StoredFile]] = {
            f"{parent}/{name}": [] for name in folder.child(parent).folders()
        }
        for file in folder.files(parent):
            groups.setdefault("/".join(file.name.split("/")[:2]), []).append(file)
        for name, files in groups.items():
            yield _leaving(folder, kind, name, files)
    for key, files in _by_key(folder).items():
        for name, unnamed in _unnamed(folder, key, files).items():
            yield _leaving(folder, "unnamed", name, unnamed)


def still_left(folder: Folder, leaving: Leaving) -> tuple[str, ...]:
    """The files of a leaving that are one now: an artifact may have been published in their place."""
    if leaving.kind != "unnamed":
        return ()  # a folder of its own
    key = leaving.name.split("/")[2]
    files = folder.files(place_of(key))
    now = {file.name for group in _unnamed(folder, key, files).values() for file in group}
    return tuple(name for name in leaving.files if name in now)


def _leaving(folder: Folder, kind: str, name: str, files: list[StoredFile]) -> Leaving:
    newest = max([*(file.written_s for file in files), folder.written_s(name)])
    return Leaving(
        kind, name, sum(f.size_bytes for f in files), newest, tuple(f.name for f in files)
    )


def _by_key(folder: Folder) -> dict[str, list[StoredFile]]:
    found: dict[str, list[StoredFile]] = defaultdict(list)
    for file in folder.files(OBJECTS):
        parts = file.name.split("/")
        if len(parts) > 3:  # objects/ab/<key>/<file>
            found[parts[2]].append(file)
    return found


def _unnamed(folder: Folder, key: str, files: list[StoredFile]) -> dict[str, list[StoredFile]]:
    """The files of a key that its manifest does not name, by folder; all of them where there is no manifest."""
    place = place_of(key)
    named: frozenset[str] = frozenset()
    if f"{place}/{MANIFEST}" in {file.name for file in files}:
        if len({_writer(place, file) for file in files} - {""}) < 2:
            return {}  # one writer's, and published
        try:
            manifest = Manifest.parse(folder.read(f"{place}/{MANIFEST}"))
        except (StorageError, ValueError, KeyError, TypeError):
            return {}  # gone, or for its next reader to set aside
        home = manifest.place(key)
        named = frozenset([f"{place}/{MANIFEST}", *(f"{home}/{name}" for name in manifest.files)])
    groups: dict[str, list[StoredFile]] = defaultdict(list)
    for file in files:
        if file.name not in named:
            writer = _writer(place, file)
            groups[f"{place}/{writer}" if writer else place].append(file)
    return groups


def _writer(place: str, file: StoredFile) -> str:
    head, slash, _ = file.name[len(place) + 1 :].partition("/")
    return head if slash else ""

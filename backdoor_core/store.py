"""Artifacts by key: each is a folder of files with a manifest of their SHA-256 (`artifact_layout` has the layout).

An artifact is written aside and then published, so a reader sees a whole one or none; it is verified when a job
first reads it, and a damaged one is set aside, never used.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from backdoor_core.artifact_check import check_contents, check_names, check_tree
from backdoor_core.artifact_layout import DAMAGED, MANIFEST, UNFINISHED, Manifest, place_of
from backdoor_core.errors import (
    DamagedArtifactError,
    StorageError,
    SweepError,
    UnsafeArtifactError,
)
from backdoor_core.folder import Folder
from backdoor_core.node_cache import NodeCache
from backdoor_core.patience import is_full, is_missing, patiently, storage_errors, worded
from backdoor_core.stock import Leaving, Published, leavings_in, published_in, still_left

_LOG = logging.getLogger(__name__)
_TRIES = 3
"""How often a job makes an artifact that is damaged, or deleted, before it can be read."""


class ArtifactStore:
    """Artifacts by key over a `Folder`. Two writers of one key leave one whole artifact.

    On a filesystem of this machine `open` gives the artifact's own folder; elsewhere a verified copy in this
    machine's cache (`node_cache`), which stays there while this store lives.
    """

    def __init__(self, url: str | Path) -> None:
        self.folder = Folder(url)
        self.fetched = 0
        """How many artifacts were fetched from remote storage through this store."""
        self._cache: NodeCache | None = None

    def __reduce__(self) -> tuple[type[ArtifactStore], tuple[str]]:
        return (ArtifactStore, (self.folder.url,))

    @property
    def cache(self) -> NodeCache:
        """This machine's copies; for remote stores only."""
        if self._cache is None:
            self._cache = NodeCache()
        return self._cache

    def has(self, key: str) -> bool:
        """Whether a published artifact has this key (its bytes are not read)."""
        return self.folder.exists(f"{place_of(key)}/{MANIFEST}")

    def open(self, key: str) -> Path:
        """A local folder with the artifact's files, verified now.

        Raises StorageError where there is none, DamagedArtifactError where it does not have the bytes that its
        manifest names, and UnsafeArtifactError where it holds what is never loaded (see `artifact_check`); the artifact
        has then been set aside.
        """
        data = self._manifest(key)
        try:
            manifest = Manifest.parse(data)
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, data, f"its manifest cannot be read: {error}") from error
        try:
            check_names(manifest.files)
            with storage_errors(self.folder.located(place_of(key))):
                if self.folder.is_local:
                    local = Path(self.folder.path(manifest.place(key)))
                    check_tree(local, manifest.files, root=Path(self.folder.root))
                    bad = _differing(manifest, local)
                else:
                    local, bad = self._copied(key, data, manifest)
                if not bad:
                    check_contents(local, manifest.files)
                    return local
        except UnsafeArtifactError as error:
            raise self._unsafe(key, data, str(error)) from error
        raise self._damaged(
            key, data, f"SHA-256 of {', '.join(bad)} is not the published one, or it is missing"
        )

    def _manifest(self, key: str) -> bytes:
        try:
            return self.folder.read(f"{place_of(key)}/{MANIFEST}")
        except StorageError as error:
            if is_missing(error.__cause__):
                raise StorageError(f"no artifact {key} in {self.folder.url}") from error
            raise

    def _copied(self, key: str, data: bytes, manifest: Manifest) -> tuple[Path, list[str]]:
        """This machine's copy of a remote artifact, and the files that are not what was published.

        Files of the copy that differ are fetched once more: the damage may be this machine's.
        """
        name = self._copy_name(key, data)
        local, _ = self.cache.ensured(name, lambda folder: self._fetch(key, manifest, folder))
        bad = _differing(manifest, local)
        if bad:
            _LOG.warning("artifact %s: %s differs here; fetched again", key[:12], ", ".join(bad))
            self._fetch(key, manifest, local, bad)
            bad = _differing(manifest, local)
        return local, bad

    def _copy_name(self, key: str, manifest: bytes) -> str:
        """A copy belongs to a place, a key and a manifest: an artifact that was built anew is another one."""
        said = b"\0".join([self.folder.url.encode(), key.encode(), manifest])
        return hashlib.sha256(said).hexdigest()

    def _fetch(
        self, key: str, manifest: Manifest, folder: Path, names: Iterable[str] | None = None
    ) -> None:
        """Copies files of an artifact to a local folder; those that are missing there stay missing."""
        start, size, missing = time.perf_counter(), 0, False
        for name in manifest.files if names is None else names:
            try:
                size += self.folder.fetch(f"{manifest.place(key)}/{name}", folder / name)
            except StorageError as error:
                if not is_missing(error.__cause__):
                    raise
                missing = True
        if missing and not self.has(key):
            raise StorageError(f"no artifact {key} in {self.folder.url}: it was deleted just now")
        self.fetched += 1
        _LOG.info("fetched artifact %s: %d bytes, %.1f s", key, size, time.perf_counter() - start)

    def _damaged(self, key: str, data: bytes, why: str) -> StorageError:
        """Sets an artifact aside, unless another process has done so (and perhaps published a new one) meanwhile."""
        said = f"artifact {key[:12]} was damaged ({why})"
        if self._manifest(key) != data:
            return DamagedArtifactError(f"{said}; another process has replaced it")
        return DamagedArtifactError(f"{said}; set aside as {self._set_aside(key, data)}")

    def _unsafe(self, key: str, data: bytes, why: str) -> UnsafeArtifactError:
        """Set aside like a damaged one, but whoever met it fails: who put it there is worth a question."""
        return UnsafeArtifactError(
            f"artifact {key[:12]} was refused: {why}; nothing of it was loaded. It was set aside as "
            f"{self._set_aside(key, data)}; if you trust this store all the same, the same command builds it "
            "anew (after a sweep: `sweeps rerun`, the sweep file, `--failed unsafe`)"
        )

    def _set_aside(self, key: str, data: bytes) -> str:
        """Moves an artifact out of the way; returns where it is then."""
        place = place_of(key)
        aside = f"{DAMAGED}/{place.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
        if self.folder.is_local:
            self.folder.move(place, aside)
        else:  # object stores move single files; without its manifest the artifact is gone
            for name in (f"{place}/{MANIFEST}", *_files(key, data)):
                self.folder.move(name, f"{aside}/{name[len(place) + 1 :]}")
        return self.folder.located(aside)

    def facts(self, key: str) -> dict[str, Any]:
        """What the builder wrote down beside the files (seconds, device, counts).

        Raises DamagedArtifactError where the manifest is not as it was published: who opens it next sets it aside.
        """
        try:
            return dict(Manifest.parse(self._manifest(key)).facts)
        except (ValueError, KeyError, TypeError) as error:
            raise DamagedArtifactError(f"artifact {key[:12]} was damaged ({error})") from error

    def put(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> bool:
        """Publishes an artifact; `write` fills an empty local folder and may return facts (JSON).

        False where another writer was first (its artifact stays). Whatever goes wrong, nothing half-written
        is ever visible under the key.
        """
        return self._put_local(key, write) if self.folder.is_local else self._sent(key, write)

    def _sent(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> bool:
        """Files first, under a name that nobody knows; then the manifest, in one put."""
        with self.cache.scratch() as folder:
            manifest = _filled(folder, write, uuid.uuid4().hex)
            if self.has(key):
                return False
            for name in manifest.files:
                self.folder.send(folder / name, f"{manifest.place(key)}/{name}")
            if self.has(key):
                self.folder.remove_folder(manifest.place(key))
                return False
            data = manifest.dump()
            self.folder.write(f"{place_of(key)}/{MANIFEST}", data)
            self.cache.adopt(self._copy_name(key, data), folder)
        return True

    def _put_local(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> bool:
        aside = f"{UNFINISHED}/{key[:16]}-{uuid.uuid4().hex}"
        folder = Path(self.folder.path(aside))
        patiently(str(folder), lambda: folder.mkdir(parents=True, exist_ok=True))
        try:
            manifest = _filled(folder, write)
            patiently(str(folder), lambda: (folder / MANIFEST).write_bytes(manifest.dump()))
            return patiently(self.folder.url, lambda: self._renamed(key, folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _renamed(self, key: str, aside: Path) -> bool:
        target = Path(self.folder.path(place_of(key)))
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.rename(aside, target)
        except OSError as error:
            if (target / MANIFEST).exists():
                # Of another writer, or our own: a network filesystem may fail after it has renamed.
                return not aside.exists()
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            # A folder without its manifest was never published by us, and is no use to anyone.
            self.folder.set_aside(place_of(key))
            os.rename(aside, target)
        return True

    def published(self) -> Iterator[Published]:
        """Every published artifact: key, bytes, and when its newest file was written. One listing for all."""
        return published_in(self.folder)

    def leavings(self) -> Iterator[Leaving]:
        """What writers left unpublished, and what was set aside as damaged; `remove_leaving` takes one.

        A leaving may belong to a writer that is still at work: only its age tells.
        """
        return leavings_in(self.folder)

    def remove(self, key: str) -> None:
        """Deletes an artifact, its manifest first; one that is not there is fine."""
        if self.folder.is_local:
            gone = f"{UNFINISHED}/{key[:16]}-{uuid.uuid4().hex}"
            self.folder.move(place_of(key), gone)
            self.folder.remove_folder(gone)
            return
        try:
            data = self._manifest(key)
        except StorageError as error:
            if self.has(key):
                raise
            _LOG.debug("nothing to remove: %s", error)
            return
        for name in (f"{place_of(key)}/{MANIFEST}", *_files(key, data)):
            self.folder.remove(name)

    def remove_leaving(self, leaving: Leaving) -> None:
        """Deletes a leaving; one that is gone, or belongs to a published artifact by now, is left alone."""
        for name in still_left(self.folder, leaving):
            self.folder.remove(name)
        if leaving.kind != "unnamed":
            self.folder.remove_folder(leaving.name)

    def size_bytes(self, key: str) -> int:
        """Bytes that the artifact takes."""
        return sum(file.size_bytes for file in self.folder.files(place_of(key)))


def _differing(manifest: Manifest, folder: Path) -> list[str]:
    return patiently(str(folder), lambda: manifest.differing(folder))


def _files(key: str, manifest: bytes) -> list[str]:
    """The files that a manifest names; none where it cannot be read (they are leavings then)."""
    try:
        read = Manifest.parse(manifest)
    except (ValueError, KeyError, TypeError):
        return []
    return [f"{read.place(key)}/{name}" for name in read.files]


def _filled(
    folder: Path, write: Callable[[Path], dict[str, Any] | None], writer: str = ""
) -> Manifest:
    try:
        facts = write(folder)
        _shared(folder)
        return Manifest.of_folder(folder, facts or {}, writer)
    except SweepError:  # some are OSErrors too, and say more
        raise
    except Exception as error:
        # Libraries that write weights say a full disk in errors of their own.
        if isinstance(error, OSError) or is_full(error):
            raise worded(str(folder), error) from error
        raise


def _shared(folder: Path) -> None:
    """Whoever may read the folder may read its files: safetensors writes its own for one user, whatever the umask."""
    readers = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(file.stat().st_mode | readers)


class Shelf:
    """A store as one job uses it: what is missing is made, what is damaged is made again, each verified once.

    `notices` collects what the user should be told (artifacts set aside and rebuilt).
    """

    def __init__(self, store: ArtifactStore) -> None:
        self.store = store
        self.notices: list[str] = []
        self._verified: dict[str, Path] = {}

    def ensured(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> Path:
        """The artifact's folder; built where it is missing, set aside and rebuilt where it is damaged."""
        for _ in range(_TRIES):
            if key in self._verified:
                break
            if not self.store.has(key):
                self.store.put(key, write)
            try:
                self._verified[key] = self.store.open(key)
            except DamagedArtifactError as error:
                self.notices.append(f"{error}; rebuilt")
                _LOG.warning("%s; building it again", error)
            except UnsafeArtifactError:
                raise
            except StorageError:
                if self.store.has(key):
                    raise  # else it was deleted after the first look
        if key not in self._verified:
            raise StorageError(
                f"artifact {key} in {self.store.folder.url} was damaged or deleted {_TRIES} times in a row"
            )
        return self._verified[key]

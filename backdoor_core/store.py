"""Where artifacts and ledgers lie: the only file that builds paths.

`Folder` is a place on a `pyarrow.fs` filesystem with atomic writes. `ArtifactStore` keeps artifacts by key: each is
a folder of files with a manifest of their SHA-256. An artifact is written aside and then published, so a
reader sees a whole one or none; it is verified on every read, and a damaged one is set aside, never used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from backdoor_core.artifact_check import (
    MANIFEST,
    check_contents,
    check_names,
    check_tree,
    sealed,
    unsealed,
)
from backdoor_core.errors import (
    ConfigError,
    DamagedArtifactError,
    StorageError,
    SweepError,
    UnsafeArtifactError,
)
from backdoor_core.fingerprint import file_sha256

_LOG = logging.getLogger(__name__)
__all__ = ["MANIFEST", "ArtifactStore", "Folder", "Shelf"]
_ASIDE = "damaged"


@contextmanager
def _storage_errors(place: str) -> Iterator[None]:
    """Words any error of a filesystem as one line that names the place."""
    try:
        yield
    except SweepError:  # some are OSErrors too (a timeout, a refused access), and say more
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise StorageError(
            f"cannot use {place}: {error}. Check that it exists, is writable and has free space"
        ) from error


class Folder:
    """A folder on a filesystem, by URL (`s3://bucket/prefix`, `gs://...`) or local path.

    Names inside it are relative and cannot leave it. Local writes are atomic (written aside, then renamed).
    """

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        if "://" in text:
            self.filesystem, root = fs.FileSystem.from_uri(text)
        else:
            self.filesystem, root = fs.LocalFileSystem(), str(Path(text).expanduser().resolve())
        self.root = root.rstrip("/")
        self.url = text if "://" in text else self.root

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        """The filesystem path of `name`. Raises ConfigError for a name that would leave the folder."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ConfigError(f"not a name inside {self.url}: {name!r}")
        return f"{self.root}/{name}" if name else self.root

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        other = Folder.__new__(Folder)
        other.filesystem, other.root = self.filesystem, self.path(name)
        other.url = f"{self.url}/{name}"
        return other

    def make(self) -> Folder:
        """Creates the folder where it is missing. Raises StorageError where it cannot be written."""
        with _storage_errors(self.url):
            self.filesystem.create_dir(self.root, recursive=True)
            if self.is_local:
                with tempfile.TemporaryFile(dir=self.root):
                    pass
        return self

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder `name` is there."""
        with _storage_errors(self.url):
            return bool(self.filesystem.get_file_info(self.path(name)).type != fs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """The visible files directly inside, sorted; an absent folder has none."""
        with _storage_errors(self.url):
            selector = fs.FileSelector(self.root, allow_not_found=True)
            found = [
                info.base_name
                for info in self.filesystem.get_file_info(selector)
                if info.type == fs.FileType.File
            ]
        return sorted(n for n in found if n.endswith(suffix) and not n.startswith("."))

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises StorageError."""
        with (
            _storage_errors(self.path(name)),
            self.filesystem.open_input_stream(self.path(name)) as stream,
        ):
            return bytes(stream.read())

    def write(self, name: str, data: bytes) -> None:
        """Publishes a file in one step: readers see the old one or the new one, whole."""
        target = self.path(name)
        with _storage_errors(target):
            if not self.is_local:
                with self.filesystem.open_output_stream(target) as stream:
                    stream.write(data)
                return
            os.makedirs(os.path.dirname(target), exist_ok=True)
            aside = f"{os.path.dirname(target)}/.{os.path.basename(target)}.{uuid.uuid4().hex}"
            try:
                with open(aside, "wb") as stream:
                    stream.write(data)
                    stream.flush()
                    os.fsync(stream.fileno())
                os.replace(aside, target)
            finally:
                Path(aside).unlink(missing_ok=True)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Publishes a Parquet file (zstd) in one step."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        """A Parquet file as a table. Raises StorageError where it is truncated or not Parquet."""
        with _storage_errors(self.path(name)):
            return pq.read_table(pa.BufferReader(self.read(name)))

    def remove(self, name: str) -> None:
        """Deletes a file; one that is already gone is fine."""
        with _storage_errors(self.path(name)):
            if self.exists(name):
                self.filesystem.delete_file(self.path(name))

    def set_aside(self, name: str) -> str:
        """Moves a damaged file or folder into `damaged/` here; returns its new name."""
        new = f"{_ASIDE}/{name.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
        with _storage_errors(self.path(name)):
            self.filesystem.create_dir(self.path(_ASIDE), recursive=True)
            if self.exists(name):
                self._move(self.path(name), self.path(new))
        return new

    def _move(self, old: str, new: str) -> None:
        whole = self.filesystem.get_file_info(old).type == fs.FileType.File
        if self.is_local or whole:
            self.filesystem.move(old, new)
            return
        # Object stores move files, but no folders.
        for info in self.filesystem.get_file_info(fs.FileSelector(old, recursive=True)):
            if info.type == fs.FileType.File:
                self.filesystem.move(info.path, f"{new}{info.path[len(old) :]}")
        if self.filesystem.get_file_info(old).type != fs.FileType.NotFound:
            self.filesystem.delete_dir(old)


class ArtifactStore:
    """Artifacts by key over a `Folder`. Two writers of one key leave one whole artifact.

    On a filesystem of this machine `open` gives the artifact's own folder; elsewhere a verified copy in a cache
    folder of this machine.
    """

    def __init__(self, url: str | Path) -> None:
        self.folder = Folder(url)

    def __reduce__(self) -> tuple[type[ArtifactStore], tuple[str]]:
        return (ArtifactStore, (self.folder.url,))

    @staticmethod
    def _place(key: str) -> str:
        return f"objects/{key[:2]}/{key}"

    def has(self, key: str) -> bool:
        """Whether a published artifact has this key (its bytes are not read)."""
        return self.folder.exists(f"{self._place(key)}/{MANIFEST}")

    def open(self, key: str) -> Path:
        """A local folder with the artifact's files, verified now.

        Raises StorageError where there is none, DamagedArtifactError where a file's SHA-256 differs from
        its manifest's, and UnsafeArtifactError where it holds what is never loaded (see `artifact_check`); the
        artifact has then been set aside.
        """
        place = self._place(key)
        try:
            files: dict[str, str] = unsealed(self.folder.read(f"{place}/{MANIFEST}"))["files"]
            check_names(files)
            local = (
                Path(self.folder.path(place))
                if self.folder.is_local
                else self._fetched(place, files)
            )
            root = Path(self.folder.root) if self.folder.is_local else local.parent
            check_tree(local, files, root=root, alone=self.folder.is_local)
            for name, sha in files.items():
                if file_sha256(local / name) != sha:
                    raise ValueError(f"SHA-256 of {name} is not the published one")
            check_contents(local, files)
            return local
        except UnsafeArtifactError as error:
            raise self._unsafe(key, place, str(error)) from error
        except FileNotFoundError as error:
            raise self._damaged(key, place, f"a file is missing: {error}") from error
        except StorageError as error:
            if not self.has(key):
                raise StorageError(f"no artifact {key} in {self.folder.url}") from error
            if isinstance(error.__cause__, FileNotFoundError):
                raise self._damaged(key, place, f"a file is missing: {error.__cause__}") from error
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(key, place, str(error)) from error

    def _damaged(self, key: str, place: str, why: str) -> DamagedArtifactError:
        aside = self.folder.set_aside(place)
        return DamagedArtifactError(
            f"artifact {key[:12]} was damaged ({why}); set aside as {self.folder.url}/{aside}"
        )

    def _unsafe(self, key: str, place: str, why: str) -> UnsafeArtifactError:
        """Set aside like a damaged one, but never built again unasked: who put it there is worth a question."""
        aside = self.folder.set_aside(place)
        return UnsafeArtifactError(
            f"artifact {key[:12]} was refused: {why}; nothing of it was loaded. It was set aside as "
            f"{self.folder.url}/{aside}; if you trust this store all the same, run again to build it anew"
        )

    def _fetched(self, place: str, files: dict[str, str]) -> Path:
        cache = Path(os.environ.get("TMPDIR", tempfile.gettempdir())) / "backdoor-sweeps-cache"
        local = cache / hashlib.sha256(f"{self.folder.url}/{place}".encode()).hexdigest()
        for name, sha in files.items():
            target = local / name
            if not target.is_file() or file_sha256(target) != sha:
                target.parent.mkdir(parents=True, exist_ok=True)
                aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
                aside.write_bytes(self.folder.read(f"{place}/{name}"))
                aside.replace(target)
        return local

    def facts(self, key: str) -> dict[str, Any]:
        """What the builder wrote down beside the files (seconds, device, counts)."""
        return dict(unsealed(self.folder.read(f"{self._place(key)}/{MANIFEST}"))["facts"])

    def put(self, key: str, write: Callable[[Path], dict[str, Any] | None]) -> bool:
        """Publishes an artifact; `write` fills an empty local folder and may return facts (JSON).

        False where another writer was first (its artifact stays). Whatever goes wrong, nothing half-written
        is ever visible under the key.
        """
        place = self._place(key)
        if not self.folder.is_local:
            with tempfile.TemporaryDirectory() as name:
                manifest = self._filled(Path(name), write)
                if self.has(key):
                    return False
                for file in manifest["files"]:
                    self.folder.write(f"{place}/{file}", (Path(name) / file).read_bytes())
                self.folder.write(f"{place}/{MANIFEST}", sealed(manifest))
            return True
        target = Path(self.folder.path(place))
        aside = Path(self.folder.path(f"tmp/{key[:16]}-{uuid.uuid4().hex}"))
        with _storage_errors(self.folder.url):
            aside.mkdir(parents=True)
        try:
            with _storage_errors(self.folder.url):
                manifest = self._filled(aside, write)
                (aside / MANIFEST).write_bytes(sealed(manifest))
                target.parent.mkdir(parents=True, exist_ok=True)
            return self._published(key, aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _published(self, key: str, aside: Path, target: Path) -> bool:
        with _storage_errors(self.folder.url):
            try:
                os.rename(aside, target)
            except OSError:
                if self.has(key):
                    return False
                if not target.exists():
                    raise
                # A folder without its manifest was never published by us, and is no use to anyone.
                self.folder.set_aside(self._place(key))
                os.rename(aside, target)
        return True

    @staticmethod
    def _filled(folder: Path, write: Callable[[Path], dict[str, Any] | None]) -> dict[str, Any]:
        facts = write(folder)
        files = {
            file.relative_to(folder).as_posix(): file_sha256(file)
            for file in sorted(folder.rglob("*"))
            if file.is_file()
        }
        return {"files": files, "facts": facts or {}}

    def size_bytes(self, key: str) -> int:
        """Bytes that the artifact takes."""
        selector = fs.FileSelector(
            self.folder.path(self._place(key)), recursive=True, allow_not_found=True
        )
        return sum(info.size or 0 for info in self.folder.filesystem.get_file_info(selector))


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
        if key in self._verified:
            return self._verified[key]
        if self.store.has(key):
            try:
                self._verified[key] = self.store.open(key)
                return self._verified[key]
            except DamagedArtifactError as error:
                self.notices.append(f"{error}; rebuilt")
                _LOG.warning("%s; building it again", error)
        self.store.put(key, write)
        self._verified[key] = self.store.open(key)
        return self._verified[key]

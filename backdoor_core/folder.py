"""A place for files on any filesystem: local, a mounted network one, `s3://`, `gs://`.

A file appears in one step (written aside and renamed; on an object store, put whole), and every operation that fails
for a reason that may pass is tried again (`patience`).
"""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from backdoor_core.address import Address
from backdoor_core.errors import ConfigError, DamagedFileError, StorageError
from backdoor_core.patience import (
    FIRST_CONTACT_S,
    READER_S,
    is_missing,
    patiently,
    storage_errors,
)

CHUNK_BYTES = 8 * 2**20
"""Files travel in pieces of this size, so that no model has to be in memory."""
_ASIDE = "damaged"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file below a folder: its name there, its size, and when it was last written (seconds since 1970, by the clock
    of the storage)."""

    name: str
    size_bytes: int
    written_s: float


class Folder:
    """A folder on a filesystem, by local path or URL (see `address`).

    Names inside it are relative and cannot leave it.
    """

    def __init__(self, url: str | Path | Address) -> None:
        self.address = url if isinstance(url, Address) else Address.of(url)
        self.filesystem = self.address.filesystem()
        self.root = self.address.root
        self.url = self.address.url

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's."""
        return self.address.is_local

    def path(self, name: str) -> str:
        """The filesystem path of `name`. Raises ConfigError for a name that would leave the folder."""
        if name.startswith("/") or ".." in name.split("/"):
            raise ConfigError(f"not a name inside {self.url}: {name!r}")
        return f"{self.root}/{name}" if name else self.root

    def child(self, name: str) -> Folder:
        """The folder `name` inside this one."""
        self.path(name)
        other = Folder.__new__(Folder)
        other.address, other.filesystem = self.address.child(name), self.filesystem
        other.root, other.url = other.address.root, other.address.url
        return other

    def located(self, name: str) -> str:
        """Where `name` is, for people: a path, or a URL with its query."""
        self.path(name)
        return self.address.child(name).url

    def _patiently(self, name: str, act: Callable[[str], T]) -> T:
        path = self.path(name)
        return patiently(path if self.is_local else self.located(name), lambda: act(path))

    def make(self) -> Folder:
        """Creates the folder where it is missing, and writes there to see that it can.

        Raises StorageError where that fails; what may pass is tried again for half a minute only.
        """
        patiently(self.url, self._made, at_most_s=FIRST_CONTACT_S)
        return self

    def reach(self) -> Folder:
        """Asks whether the place answers, before somebody reads there; the folder itself may be missing.

        Raises StorageError, also where the bucket is missing; what may pass is tried again for seconds only.
        """
        top = self.root if self.is_local else self.root.split("/")[0]
        found = patiently(self.url, lambda: self.filesystem.get_file_info(top), at_most_s=READER_S)
        if found.type == fs.FileType.NotFound and not self.is_local:
            raise StorageError(f"cannot use {self.url}: there is no bucket {top!r}; check its name")
        return self

    def _made(self) -> None:
        if self.is_local:
            self.filesystem.create_dir(self.root, recursive=True)
            with tempfile.TemporaryFile(dir=self.root):
                pass
            return
        # An object store has no folders to make, and the credentials may be for this prefix alone.
        probe = self.path(f".write-test-{uuid.uuid4().hex}")
        self._put(probe, b"can be deleted")
        self.filesystem.delete_file(probe)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder `name` is there."""
        info = self._patiently(name, self.filesystem.get_file_info)
        return bool(info.type != fs.FileType.NotFound)

    def names(self, suffix: str = "") -> list[str]:
        """The visible files directly inside, sorted; an absent folder has none."""
        return self._listed(fs.FileType.File, suffix)

    def folders(self) -> list[str]:
        """The visible folders directly inside, sorted; an absent folder has none."""
        return self._listed(fs.FileType.Directory, "")

    def _listed(self, kind: Any, suffix: str) -> list[str]:
        def listed(path: str) -> list[str]:
            selector = fs.FileSelector(path, allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
            return [info.base_name for info in found if info.type == kind]

        names = self._patiently("", listed)
        return sorted(n for n in names if n.endswith(suffix) and not n.startswith("."))

    def files(self, name: str = "") -> list[StoredFile]:
        """All files below `name`, hidden ones too, sorted; their names are relative to this folder."""

        def listed(path: str) -> list[StoredFile]:
            selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
            return [
                StoredFile(
                    name=info.path[len(self.root) + 1 :],
                    size_bytes=int(info.size or 0),
                    written_s=(info.mtime_ns or 0) / 1e9,
                )
                for info in self.filesystem.get_file_info(selector)
                if info.type == fs.FileType.File
            ]

        return sorted(self._patiently(name, listed), key=lambda file: file.name)

    def written_s(self, name: str) -> float:
        """When a file or folder was last changed, by the clock of the storage; 0 where that is not known."""
        info = self._patiently(name, self.filesystem.get_file_info)
        return float((info.mtime_ns or 0) / 1e9)

    def read(self, name: str) -> bytes:
        """A file's bytes. Raises StorageError."""

        def read(path: str) -> bytes:
            with self.filesystem.open_input_stream(path) as stream:
                return bytes(stream.read())

        return self._patiently(name, read)

    def write(self, name: str, data: bytes) -> None:
        """Publishes a file in one step: readers see the old one or the new one, whole."""
        put = _put_local if self.is_local else self._put
        self._patiently(name, lambda path: put(path, data))

    def _put(self, path: str, data: bytes) -> None:
        """Puts an object whole. A part of it that fails fails the whole: nothing is published then."""
        with self.filesystem.open_output_stream(path) as stream:
            stream.write(data)

    def send(self, source: Path, name: str) -> None:
        """Copies a local file to `name` in pieces.

        Not in one step where a read of `source` fails half-way: closing a stream publishes what it has, and Arrow has
        no way to give an upload up. So what matters is sent under a name that nobody knows yet (`store`).
        """

        def send(path: str) -> None:
            size = 0
            with (
                open(source, "rb") as local,
                self.filesystem.open_output_stream(path) as stream,
            ):
                while piece := local.read(CHUNK_BYTES):
                    stream.write(piece)
                    size += len(piece)
            found = self.filesystem.get_file_info(path).size
            if found != size:
                raise TimeoutError(f"{found} of {size} bytes arrived")

        self._patiently(name, send)

    def fetch(self, name: str, target: Path) -> int:
        """Copies the file `name` to a local path, in pieces and then in one step; returns its bytes."""

        def fetch(path: str) -> int:
            with (
                self.filesystem.open_input_stream(path) as stream,
                _replacing(target) as (write, done),
            ):
                while piece := stream.read(CHUNK_BYTES):
                    write(piece)
                return done()

        return self._patiently(name, fetch)

    def write_table(self, name: str, table: pa.Table) -> None:
        """Publishes a Parquet file (zstd) in one step."""
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        self.write(name, sink.getvalue().to_pybytes())

    def read_table(self, name: str) -> pa.Table:
        """A Parquet file as a table. Raises DamagedFileError where it is cut or not Parquet, else StorageError."""
        data = self.read(name)
        try:
            # Not `pq.read_table`: what it sets up for many files costs more than a small one's reading.
            return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise DamagedFileError(f"{self.located(name)} is no whole table: {error}") from error

    def remove(self, name: str) -> None:
        """Deletes a file; one that is already gone is fine."""

        def remove(path: str) -> None:
            try:
                self.filesystem.delete_file(path)
            except OSError as error:
                if not is_missing(error):
                    raise

        self._patiently(name, remove)

    def remove_folder(self, name: str) -> None:
        """Deletes a folder with all that is in it; one that is already gone is fine."""

        def remove(path: str) -> None:
            if self.is_local:
                _remove_local(path)
            elif self.filesystem.get_file_info(path).type != fs.FileType.NotFound:
                self.filesystem.delete_dir(path)

        self._patiently(name, remove)

    def set_aside(self, name: str) -> str:
        """Moves a damaged file (on a local filesystem also a folder) into `damaged/` here; returns its new name."""
        new = f"{_ASIDE}/{name.replace('/', '-')}-{uuid.uuid4().hex[:8]}"
        self.move(name, new)
        return new

    def move(self, name: str, new: str) -> None:
        """Gives a file (on a local filesystem also a folder) another name; one that is not there any more is fine."""
        target = self.path(new)

        def move(path: str) -> None:
            if self.is_local:
                os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                self.filesystem.move(path, target)
            except OSError as error:
                if not is_missing(error):
                    raise

        self._patiently(name, move)


def _remove_local(path: str) -> None:
    """Deletes a folder, also where another process deletes in it at the same moment."""
    while os.path.lexists(path):
        with suppress(FileNotFoundError):
            shutil.rmtree(path)


def _put_local(target: str, data: bytes) -> None:
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    aside = f"{folder}/.{name}.{uuid.uuid4().hex}"
    try:
        with open(aside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(aside, target)
    finally:
        Path(aside).unlink(missing_ok=True)


@contextmanager
def _replacing(target: Path) -> Iterator[tuple[Callable[[bytes], object], Callable[[], int]]]:
    """Writes a local file aside; the second function publishes it and returns its bytes.

    Errors here are this machine's, and are worded so: not the fault of where the bytes come from.
    """
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    with storage_errors(str(target)):
        target.parent.mkdir(parents=True, exist_ok=True)
        stream = open(aside, "wb")  # noqa: SIM115 - closed below, before it is published

    def write(piece: bytes) -> object:
        with storage_errors(str(target)):
            return stream.write(piece)

    def done() -> int:
        with storage_errors(str(target)):
            size = stream.tell()
            stream.close()
            os.replace(aside, target)
            return size

    try:
        yield write, done
    finally:
        with storage_errors(str(target)):
            stream.close()
            aside.unlink(missing_ok=True)

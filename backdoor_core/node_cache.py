"""The copies of remote artifacts on this machine: each is fetched once for all processes, within a size limit.

    <root>/entries/<name>/files/   a copy, whole
    <root>/entries/<name>/lock     who uses the copy holds a shared lock on it; its text is the copy's bytes, and its
                                   time is when the copy was last used
    <root>/scratch/<name>/         what is being fetched or written, with a lock of the same kind
    <root>/locks/                  who fetches holds one of these; others that want the same copy wait for it
    <root>/size                    the bytes of all copies

Locks belong to open files, so a process that is killed holds none. A copy is deleted only by who can lock it alone:
what a job uses does not vanish under it. Over the limit, the copies that were used longest ago go first.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import uuid
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from backdoor_core.errors import ConfigError, StorageError
from backdoor_core.patience import is_full, storage_errors

CACHE_VARIABLE = "BACKDOOR_SWEEPS_CACHE"
LIMIT_VARIABLE = "BACKDOOR_SWEEPS_CACHE_GIB"
LIMIT_GIB = 20.0
_GIB = 1 << 30
_ROOM = 0.9
"""What is left of the limit after copies were deleted: so that not every fetch has to look at all of them."""
_FILES = "files"
_LOCK = "lock"


def cache_root() -> Path:
    """The folder of the cache: `BACKDOOR_SWEEPS_CACHE`, or one in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "backdoor-sweeps-fetched"


def limit_bytes() -> int:
    """The cache's size limit. Raises ConfigError where the environment names none that can be."""
    text = os.environ.get(LIMIT_VARIABLE, str(LIMIT_GIB))
    try:
        gib = float(text)
    except ValueError:
        gib = -1.0
    if not 0 <= gib < float("inf"):
        raise ConfigError(f"{LIMIT_VARIABLE} must be a number of GiB, got {text!r}")
    return int(gib * _GIB)


class NodeCache:
    """The cache as one user of it sees it: what it asked for stays until it is dropped or garbage-collected.

    Raises StorageError where the folder cannot be used, ConfigError where others may write to it.
    """

    def __init__(self, root: Path | None = None) -> None:
        self.root = cache_root() if root is None else root
        self._held: dict[str, int] = {}
        weakref.finalize(self, _close_all, self._held)
        with storage_errors(str(self.root)):
            for name in ("entries", "locks", "scratch"):
                (self.root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self.root.stat()
        if found.st_uid != os.geteuid() or found.st_mode & stat.S_IWOTH:
            raise ConfigError(
                f"the cache folder {self.root} is not yours alone: others could change what jobs read there. Name "
                f"a folder of your own in {CACHE_VARIABLE}"
            )

    def held(self, name: str) -> Path | None:
        """The files of a copy that is there, in use from now on; None where there is none."""
        folder = self.root / "entries" / name
        while name not in self._held:
            lock = _locked(folder / _LOCK, fcntl.LOCK_SH)
            if lock is None:
                return None
            # Closed where the copy was deleted between the two looks, or another thread was first.
            if not _is_at(lock, folder / _LOCK) or self._held.setdefault(name, lock) != lock:
                os.close(lock)
        with suppress(OSError):
            os.utime(folder / _LOCK)
        return folder / _FILES

    def ensured(self, name: str, fill: Callable[[Path], None]) -> tuple[Path, bool]:
        """The files of a copy, in use from now on, and whether `fill` has made them just now (in an empty folder)."""
        if found := self.held(name):
            return found, False
        with FileLock(self.root / "locks" / name[:2]):
            if found := self.held(name):
                return found, False
            try:
                self._filled(name, fill)
            except StorageError as error:
                if not is_full(error):
                    raise
                self.shrink(0)
                self._filled(name, fill)
            found = self.held(name)
        if found is None:
            raise StorageError(f"{self.root}/entries/{name} was deleted while it was made")
        self._shrink_if_needed()
        return found, True

    def _filled(self, name: str, fill: Callable[[Path], None]) -> None:
        with self.scratch() as folder:
            fill(folder)
            self._adopted(name, folder)

    def adopt(self, name: str, folder: Path) -> None:
        """Takes a scratch folder as a copy, where there is none yet: what was made here need not be fetched."""
        with FileLock(self.root / "locks" / name[:2]):
            if not (self.root / "entries" / name).exists():
                self._adopted(name, folder)
        self._shrink_if_needed()

    def _adopted(self, name: str, folder: Path) -> None:
        with storage_errors(str(self.root)):
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            made = folder.parent / "entry"
            made.mkdir()
            (made / _LOCK).write_text(str(size), encoding="ascii")
            folder.rename(made / _FILES)
            made.rename(self.root / "entries" / name)
            with FileLock(self.root / "locks" / "size"):
                self._note_size(self._size() + size)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """An empty folder on the cache's disk, deleted afterwards (or, if this process is killed, by another)."""
        lock = None
        while lock is None:  # until no other process took the new folder for a dead one's
            place = self.root / "scratch" / uuid.uuid4().hex
            with storage_errors(str(self.root)):
                place.mkdir(mode=0o700)
                (place / _LOCK).touch()
            lock = _locked(place / _LOCK, fcntl.LOCK_SH)
            if lock is not None and not _is_at(lock, place / _LOCK):
                os.close(lock)
                lock = None
        try:
            with storage_errors(str(self.root)):
                (place / _FILES).mkdir()
            yield place / _FILES
        finally:
            os.close(lock)
            shutil.rmtree(place, ignore_errors=True)

    def _shrink_if_needed(self) -> None:
        limit = limit_bytes()
        if self._size() > limit:
            self.shrink(int(limit * _ROOM))

    def shrink(self, size: int) -> None:
        """Deletes the copies that were used longest ago, and are not in use, until all are `size` bytes at most."""
        with storage_errors(str(self.root)), FileLock(self.root / "locks" / "size"):
            entries = sorted(_entries(self.root / "entries"))
            total = sum(bytes_ for _, bytes_, _ in entries)
            for _, bytes_, folder in entries:
                if total <= size:
                    break
                if self._deleted(folder):
                    total -= bytes_
            self._note_size(total)
            for folder in (self.root / "scratch").iterdir():
                self._deleted(folder)

    def _deleted(self, folder: Path) -> bool:
        """Whether nobody used a copy, and it is gone now."""
        lock = _locked(folder / _LOCK, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if lock is None:
            return False
        try:
            if not _is_at(lock, folder / _LOCK):
                return False
            gone = self.root / "scratch" / uuid.uuid4().hex
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
            return True
        finally:
            os.close(lock)

    def _size(self) -> int:
        try:
            return int((self.root / "size").read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            return sum(bytes_ for _, bytes_, _ in _entries(self.root / "entries"))

    def _note_size(self, size: int) -> None:
        aside = self.root / f"size.{uuid.uuid4().hex}"
        aside.write_text(str(size), encoding="ascii")
        aside.replace(self.root / "size")


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    """When each copy was last used, its bytes, and its folder."""
    for entry in folder.iterdir():
        with suppress(FileNotFoundError, NotADirectoryError, ValueError):
            lock = entry / _LOCK
            yield lock.stat().st_mtime, int(lock.read_text(encoding="ascii")), entry


def _locked(path: Path, kind: int) -> int | None:
    """An open file with a lock; None where there is no file, or (with LOCK_NB) where others hold it.

    `filelock` has no lock that several may share and that dies with its holder, so this is the system's own.
    """
    try:
        lock = os.open(path, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(lock, kind)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _is_at(lock: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _close_all(held: dict[str, int]) -> None:
    for lock in held.values():
        os.close(lock)
    held.clear()

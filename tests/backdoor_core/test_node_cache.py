"""The copies of remote artifacts on one machine: fetched once, never taken away from who uses them, within a limit."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_core.errors import ConfigError, StorageError
from backdoor_core.node_cache import NodeCache, cache_root, limit_bytes
from backdoor_core.store import ArtifactStore

ROOT = Path(__file__).resolve().parents[2]
GIB = 1 << 30


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the limit, in bytes."""
    return lambda size: monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE_GIB", repr(size / GIB))


def filled(size: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(size))

    return fill


def copies(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "entries").iterdir())


def used(root: Path, name: str, seconds_ago: float) -> None:
    then = time.time() - seconds_ago
    os.utime(root / "entries" / name / "lock", (then, then))


def test_a_copy_is_made_once_and_stays(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path)
    assert cache.held("ab") is None
    folder, made = cache.ensured("ab", filled(10))
    assert made
    assert (folder / "data").stat().st_size == 10
    again, made = NodeCache(tmp_path).ensured("ab", filled(20))
    assert not made
    assert again == folder
    assert not list((tmp_path / "scratch").iterdir())


def test_a_fill_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise StorageError("cut")

    with pytest.raises(StorageError, match="cut"):
        NodeCache(tmp_path).ensured("ab", fill)
    assert not copies(tmp_path)
    assert not list((tmp_path / "scratch").iterdir())


def test_over_the_limit_the_copies_go_that_were_used_longest_ago(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    limited(1000)
    for age, name in ((30, "aa"), (20, "bb"), (10, "cc")):
        NodeCache(tmp_path).ensured(name, filled(300))
        gc.collect()
        used(tmp_path, name, age)
    assert copies(tmp_path) == ["aa", "bb", "cc"]
    NodeCache(tmp_path).held("aa")
    NodeCache(tmp_path).ensured("dd", filled(300))
    assert copies(tmp_path) == ["aa", "cc", "dd"]


def test_a_copy_in_use_stays_whatever_the_limit(
    tmp_path: Path, limited: Callable[[int], None]
) -> None:
    limited(1000)
    reader = NodeCache(tmp_path)
    folder, _ = reader.ensured("aa", filled(900))
    used(tmp_path, "aa", 100)
    other = NodeCache(tmp_path)
    other.ensured("bb", filled(900))
    assert copies(tmp_path) == ["aa", "bb"]
    assert (folder / "data").is_file()
    del reader, other
    NodeCache(tmp_path).ensured("cc", filled(10))
    assert copies(tmp_path) == ["cc"]


def test_a_killed_process_holds_nothing(tmp_path: Path, limited: Callable[[int], None]) -> None:
    """Neither its copies nor what it was about to write."""
    code = """
import sys, time
from pathlib import Path
from backdoor_core.node_cache import NodeCache
cache = NodeCache(Path(sys.argv[1]))
cache.ensured("aa", lambda folder: (folder / "data").write_bytes(bytes(900)))
with cache.scratch() as folder:
    (folder / "half").write_bytes(bytes(100))
    print("ready", flush=True)
    time.sleep(600)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "ready"
    cache = NodeCache(tmp_path)
    cache.shrink(0)
    assert copies(tmp_path) == ["aa"], "it is in use"
    assert len(list((tmp_path / "scratch").iterdir())) == 1
    process.kill()
    process.communicate()
    cache.shrink(0)
    assert not copies(tmp_path)
    assert not list((tmp_path / "scratch").iterdir())


def test_many_that_want_the_same_copy_make_one(tmp_path: Path) -> None:
    made: list[int] = []

    def fill(folder: Path) -> None:
        made.append(1)
        time.sleep(0.1)
        (folder / "data").write_bytes(b"x")

    def want() -> None:
        folder, _ = NodeCache(tmp_path).ensured("ab", fill)
        assert (folder / "data").read_bytes() == b"x"

    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_a_full_disk_is_met_by_giving_up_copies(tmp_path: Path) -> None:
    NodeCache(tmp_path).ensured("aa", filled(100))
    gc.collect()
    tries: list[int] = []

    def fill(folder: Path) -> None:
        tries.append(1)
        if copies(tmp_path):
            full = StorageError("cannot use the cache: no space")
            full.errno = errno.ENOSPC
            raise full
        (folder / "data").write_bytes(b"x")

    NodeCache(tmp_path).ensured("bb", fill)
    assert len(tries) == 2
    assert copies(tmp_path) == ["bb"]


def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(ConfigError, match="BACKDOOR_SWEEPS_CACHE"):
        NodeCache(tmp_path)


def test_the_cache_is_private_and_in_the_users_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BACKDOOR_SWEEPS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root().parent == tmp_path
    NodeCache().ensured("aa", filled(1))
    for name in ("entries", "scratch", "locks"):
        assert (cache_root() / name).stat().st_mode & 0o077 == 0
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE_GIB", "much")
    with pytest.raises(ConfigError, match="number of GiB"):
        limit_bytes()


def test_a_victim_is_fetched_once_for_all_processes_of_a_machine(
    tmp_path: Path, new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four processes at once, each with two jobs that read it; the machine that built it fetches nothing."""
    key, url = "cd" * 32, new_bucket()
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "builder"))
    builder = ArtifactStore(url)
    builder.put(key, lambda folder: {"bytes": (folder / "weights.txt").write_bytes(b"w" * 10**6)})
    builder.open(key)
    assert builder.fetched == 0
    code = """
import sys
from backdoor_core.store import ArtifactStore
jobs = [ArtifactStore(sys.argv[1]) for _ in range(2)]
print(sum(len((job.open(sys.argv[2]) / "weights.txt").read_bytes()) for job in jobs), sum(job.fetched for job in jobs))
"""
    environment = os.environ | {"BACKDOOR_SWEEPS_CACHE": str(tmp_path / "worker")}
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, key], cwd=ROOT, env=environment,
                         stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0].split() for process in running]
    assert [int(read) for read, _ in said] == [2 * 10**6] * 4
    assert sum(int(fetched) for _, fetched in said) == 1

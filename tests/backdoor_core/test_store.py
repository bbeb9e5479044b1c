"""The store: whole artifacts or none, verified on every read, on local folders and elsewhere."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from backdoor_core.errors import (
    AccessError,
    ConfigError,
    DamagedArtifactError,
    JobTimeoutError,
    StorageError,
)
from backdoor_core.store import MANIFEST, ArtifactStore, Folder

KEY = "ab" * 32


def write_two(folder: Path) -> dict[str, Any]:
    (folder / "one.txt").write_text("first")
    (folder / "deep").mkdir()
    (folder / "deep" / "two.model").write_bytes(bytes(range(256)))
    return {"rows": 3}


class ObjectHandler(fs.FSSpecHandler):  # type: ignore[misc]
    """A filesystem as an object store is: folders need not exist, and cannot be moved."""

    def move(self, src: str, dest: str) -> None:
        if Path(src).is_dir():
            raise NotImplementedError("moving a folder is not supported")
        super().move(src, dest)


def object_store(root: Path) -> ArtifactStore:
    store = ArtifactStore(root)
    store.folder.filesystem = fs.PyFileSystem(ObjectHandler(LocalFileSystem(auto_mkdir=True)))
    store.folder.url = f"object://{root}"
    return store


@pytest.fixture(params=["local", "object"])
def own_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    if request.param == "local":
        return ArtifactStore(tmp_path / "store")
    store = object_store(tmp_path / "store")
    assert not store.folder.is_local
    return store


def place_of(store: ArtifactStore, key: str = KEY) -> Path:
    return Path(store.folder.root) / "objects" / key[:2] / key


def test_an_artifact_reads_as_it_was_written(own_store: ArtifactStore) -> None:
    assert not own_store.has(KEY)
    assert own_store.put(KEY, write_two)
    assert own_store.has(KEY)
    folder = own_store.open(KEY)
    assert (folder / "one.txt").read_text() == "first"
    assert (folder / "deep" / "two.model").read_bytes() == bytes(range(256))
    assert own_store.facts(KEY) == {"rows": 3}
    assert own_store.size_bytes(KEY) > 256


def test_an_absent_artifact_is_no_damaged_one(own_store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="no artifact") as caught:
        own_store.open(KEY)
    assert not isinstance(caught.value, DamagedArtifactError)
    assert own_store.size_bytes(KEY) == 0


def test_a_writer_that_raises_leaves_nothing(own_store: ArtifactStore) -> None:
    def write(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        own_store.put(KEY, write)
    assert not own_store.has(KEY)
    root = Path(own_store.folder.root)
    assert not [file for file in root.rglob("*") if file.is_file()]
    assert own_store.put(KEY, write_two)


@pytest.mark.parametrize("error", [AccessError("not yours"), JobTimeoutError("too long")])
def test_an_error_of_the_work_stays_what_it_is(own_store: ArtifactStore, error: Exception) -> None:
    """Both are OSErrors too, and yet not the store's."""

    def write(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        own_store.put(KEY, write)
    assert caught.value is error


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    """Both are at work before either publishes; what is published is whole and one writer's."""
    store = ArtifactStore(tmp_path)
    meeting = threading.Barrier(2)
    results: dict[str, bool] = {}

    def writer(name: str) -> None:
        def write(folder: Path) -> None:
            for i in range(5):
                (folder / f"{i}.txt").write_text(name)
            meeting.wait(timeout=30)

        results[name] = store.put(KEY, write)

    threads = [threading.Thread(target=writer, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results.values()) == [False, True]
    winner = next(name for name, won in results.items() if won)
    assert {file.read_text() for file in store.open(KEY).glob("*.txt")} == {winner}
    assert not list((tmp_path / "tmp").iterdir())


def test_two_processes_leave_one_whole_artifact(tmp_path: Path) -> None:
    code = """
import sys, time
from pathlib import Path
from backdoor_core.store import ArtifactStore
root, name = sys.argv[1:]
def write(folder):
    for i in range(20):
        (folder / f"{i}.txt").write_text(name * 1000)
    Path(root, f"ready-{name}").touch()
    while len(list(Path(root).glob("ready-*"))) < 2:
        time.sleep(0.005)
print(ArtifactStore(root).put("ab" * 32, write))
"""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), name],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).resolve().parents[2],
        )
        for name in ("a", "b")
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in running]
    assert sorted(said) == ["False", "True"]
    texts = {file.read_text() for file in ArtifactStore(tmp_path).open(KEY).glob("*.txt")}
    assert len(texts) == 1


def flipped(place: Path) -> None:
    file = place / "deep" / "two.model"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))


def truncated(place: Path) -> None:
    file = place / "deep" / "two.model"
    file.write_bytes(file.read_bytes()[:-1])


def emptied(place: Path) -> None:
    (place / "one.txt").write_bytes(b"")


def missing(place: Path) -> None:
    (place / "one.txt").unlink()


def manifest_garbage(place: Path) -> None:
    (place / MANIFEST).write_bytes(b"\xff\xfe not json")


def manifest_cut(place: Path) -> None:
    (place / MANIFEST).write_text((place / MANIFEST).read_text()[:-20])


def manifest_empty(place: Path) -> None:
    (place / MANIFEST).write_bytes(b"")


def manifest_without_facts(place: Path) -> None:
    kept = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps({"files": kept["files"]}))


def manifest_of_a_list(place: Path) -> None:
    (place / MANIFEST).write_text("[1, 2]")


def manifest_pointing_out(place: Path) -> None:
    kept = json.loads((place / MANIFEST).read_text())
    kept["files"]["../../escape.txt"] = "0" * 64
    (place / MANIFEST).write_text(json.dumps(kept))


DAMAGES = [
    flipped,
    truncated,
    emptied,
    missing,
    manifest_garbage,
    manifest_cut,
    manifest_empty,
    manifest_without_facts,
    manifest_of_a_list,
    manifest_pointing_out,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_set_aside_and_can_be_rebuilt(
    own_store: ArtifactStore, damage: Callable[[Path], None]
) -> None:
    own_store.put(KEY, write_two)
    damage(place_of(own_store))
    with pytest.raises(DamagedArtifactError, match="set aside"):
        own_store.open(KEY)
    assert not own_store.has(KEY)
    aside = Path(own_store.folder.root) / "damaged"
    assert len(list(aside.iterdir())) == 1
    assert [file for file in aside.rglob("*") if file.is_file()]
    assert own_store.put(KEY, write_two)
    assert (own_store.open(KEY) / "one.txt").read_text() == "first"


def test_damage_after_the_first_read_is_seen_too(own_store: ArtifactStore) -> None:
    """A copy fetched before does not hide that the published bytes are intact or not."""
    own_store.put(KEY, write_two)
    local = own_store.open(KEY)
    flipped(local)
    if own_store.folder.is_local:
        with pytest.raises(DamagedArtifactError):
            own_store.open(KEY)
    else:  # only this machine's copy was damaged: it is fetched again
        assert (own_store.open(KEY) / "deep" / "two.model").read_bytes() == bytes(range(256))


def test_an_artifact_without_manifest_does_not_block_its_key(tmp_path: Path) -> None:
    """What a crash of the machine, or an rsync that was cut short, leaves."""
    store = ArtifactStore(tmp_path)
    store.put(KEY, write_two)
    (place_of(store) / MANIFEST).unlink()
    assert not store.has(KEY)
    assert store.put(KEY, write_two)
    assert (store.open(KEY) / "one.txt").read_text() == "first"


def test_a_store_travels_to_a_worker_by_its_url(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.put(KEY, write_two)
    other = pickle.loads(pickle.dumps(store))  # noqa: S301 - how Ray sends it, never on disk
    assert other.has(KEY)


@pytest.mark.parametrize("name", ["../out", "a/../../out", "/etc/passwd", "a/.."])
def test_names_cannot_leave_their_folder(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "inside")
    for act in (
        folder.path,
        folder.child,
        folder.read,
        folder.exists,
        lambda name: folder.write(name, b"x"),
    ):
        with pytest.raises(ConfigError, match="not a name inside"):
            act(name)
    assert not list(tmp_path.iterdir())


def test_dots_inside_a_name_are_just_dots(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("a..b/c...txt", b"x")
    assert folder.read("a..b/c...txt") == b"x"


def test_a_write_replaces_a_file_in_one_step(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write("sub/file", b"old")
    before = (tmp_path / "sub" / "file").stat().st_ino
    folder.write("sub/file", b"new")
    assert (tmp_path / "sub" / "file").stat().st_ino != before
    assert folder.read("sub/file") == b"new"
    assert os.listdir(tmp_path / "sub") == ["file"]


def test_a_write_that_fails_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Folder(tmp_path)
    folder.write("file", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        folder.write("file", b"new")
    monkeypatch.undo()
    assert folder.read("file") == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "act",
    [
        lambda place: Folder(place).make(),
        lambda place: Folder(place).write("a", b"x"),
        lambda place: ArtifactStore(place).put(KEY, write_two),
    ],
    ids=["make", "write", "put"],
)
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, act: Callable[[Path], object]
) -> None:
    """A file stands where the folder should be: refused for every user, root too."""
    (tmp_path / "file").write_text("in the way")
    place = tmp_path / "file" / "store"
    with pytest.raises(StorageError) as caught:
        act(place)
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(StorageError, match="writable"):
        Folder(tmp_path / "store").make()
    with pytest.raises(StorageError, match="writable"):
        Folder(tmp_path).make()


def test_tables_survive_and_cut_ones_are_told(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    table = pa.table({"a": [1, None, 3], "b": ["x", "y", None]})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet").equals(table)
    data = folder.read("t.parquet")
    for bad in (data[:-1], data[: len(data) // 2], b"", b"PAR1"):
        folder.write("t.parquet", bad)
        with pytest.raises(StorageError):
            folder.read_table("t.parquet")


def test_names_are_the_visible_files(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("b.parquet", "a.parquet", ".hidden.parquet", "c.json", "sub/d.parquet"):
        folder.write(name, b"x")
    assert folder.names(".parquet") == ["a.parquet", "b.parquet"]
    assert folder.child("sub").names() == ["d.parquet"]
    assert folder.child("nowhere").names() == []
    folder.remove("a.parquet")
    folder.remove("a.parquet")
    assert folder.names(".parquet") == ["b.parquet"]


def test_urls_of_other_filesystems_are_opened() -> None:
    assert Folder("file:///tmp/somewhere").is_local
    assert not Folder("mock://bucket/prefix").is_local
    with pytest.raises((StorageError, ValueError, OSError)):
        Folder("nosuch://bucket/prefix")

"""The store: whole artifacts or none, verified on every read, on local folders and elsewhere."""

from __future__ import annotations

import errno
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

from backdoor_core.artifact_layout import MANIFEST, Manifest, place_of
from backdoor_core.errors import (
    AccessError,
    ConfigError,
    DamagedArtifactError,
    JobTimeoutError,
    StorageError,
)
from backdoor_core.folder import Folder
from backdoor_core.store import ArtifactStore

KEY = "ab" * 32


def write_two(folder: Path) -> dict[str, Any]:
    (folder / "one.txt").write_text("first")
    (folder / "deep").mkdir()
    (folder / "deep" / "two.model").write_bytes(bytes(range(256)))
    return {"rows": 3}


@pytest.fixture(params=["local", "s3"])
def own_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    """An empty store, on a local filesystem and on S3; this machine's cache is the test's own."""
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "cache"))
    if request.param == "local":
        return ArtifactStore(tmp_path / "store")
    return ArtifactStore(below(request.getfixturevalue("new_bucket")(), "a/store"))


def below(url: str, name: str) -> str:
    """The URL of `name` in the place that a URL names."""
    return Folder(url).child(name).url


def test_an_artifact_reads_as_it_was_written(own_store: ArtifactStore) -> None:
    assert not own_store.has(KEY)
    assert own_store.put(KEY, write_two)
    assert own_store.has(KEY)
    folder = own_store.open(KEY)
    assert (folder / "one.txt").read_text() == "first"
    assert (folder / "deep" / "two.model").read_bytes() == bytes(range(256))
    assert own_store.facts(KEY) == {"rows": 3}
    assert own_store.size_bytes(KEY) > 256


def test_whoever_may_read_the_folder_may_read_its_files(tmp_path: Path) -> None:
    """safetensors writes files that only their owner may read; a store is there for several users."""

    def write(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "own.txt").write_text("for one")
        (folder / "deep" / "own.txt").chmod(0o600)

    store = ArtifactStore(tmp_path / "store")
    before = os.umask(0o027)
    try:
        store.put(KEY, write)
    finally:
        os.umask(before)
    assert (store.open(KEY) / "deep" / "own.txt").stat().st_mode & 0o777 == 0o640


def test_a_file_that_may_not_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    store = ArtifactStore(tmp_path / "store")
    store.put(KEY, write_two)
    monkeypatch.setattr("backdoor_core.store.check_tree", refused)
    with pytest.raises(StorageError, match=rf"{KEY}: Permission denied; check that") as caught:
        store.open(KEY)
    assert caught.value.errno == errno.EACCES
    assert store.has(KEY), "it is not set aside"


def test_an_absent_artifact_is_no_damaged_one(own_store: ArtifactStore) -> None:
    with pytest.raises(StorageError, match="no artifact") as caught:
        own_store.open(KEY)
    assert not isinstance(caught.value, DamagedArtifactError)
    assert own_store.size_bytes(KEY) == 0


def test_a_writer_that_raises_leaves_nothing(own_store: ArtifactStore, tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("out of luck")

    with pytest.raises(RuntimeError, match="out of luck"):
        own_store.put(KEY, write)
    assert not own_store.has(KEY)
    assert not own_store.folder.files()
    assert not list(tmp_path.rglob("half.txt"))
    assert own_store.put(KEY, write_two)


@pytest.mark.parametrize("error", [AccessError("not yours"), JobTimeoutError("too long")])
def test_an_error_of_the_work_stays_what_it_is(own_store: ArtifactStore, error: Exception) -> None:
    """Both are OSErrors too, and yet not the store's."""

    def write(folder: Path) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        own_store.put(KEY, write)
    assert caught.value is error


def test_the_first_of_two_writers_wins(own_store: ArtifactStore) -> None:
    """Both are at work before either publishes; what is published is whole and one writer's."""
    meeting = threading.Barrier(2)
    results: dict[str, bool] = {}

    def writer(name: str) -> None:
        def write(folder: Path) -> None:
            for i in range(5):
                (folder / f"{i}.txt").write_text(name)
            meeting.wait(timeout=30)

        results[name] = ArtifactStore(own_store.folder.url).put(KEY, write)

    threads = [threading.Thread(target=writer, args=(name,)) for name in ("a", "b")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in results.values()
    found = {file.read_text() for file in own_store.open(KEY).glob("*.txt")}
    assert len(found) == 1
    if own_store.folder.is_local:
        assert sorted(results.values()) == [False, True]
        assert results[found.pop()], "it is the winner's"
        assert not own_store.folder.child("tmp").folders()


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


class Stored:
    """The files of an artifact as they lie in the storage."""

    def __init__(self, store: ArtifactStore, key: str = KEY) -> None:
        self.folder = store.folder
        self.manifest = f"{place_of(key)}/{MANIFEST}"
        self.place = Manifest.parse(self.folder.read(self.manifest)).place(key)

    def read(self, name: str) -> bytes:
        return self.folder.read(self.manifest if name == MANIFEST else f"{self.place}/{name}")

    def write(self, name: str, data: bytes) -> None:
        self.folder.write(self.manifest if name == MANIFEST else f"{self.place}/{name}", data)


def flipped(stored: Stored) -> None:
    data = bytearray(stored.read("deep/two.model"))
    data[100] ^= 1
    stored.write("deep/two.model", bytes(data))


def truncated(stored: Stored) -> None:
    stored.write("deep/two.model", stored.read("deep/two.model")[:-1])


def emptied(stored: Stored) -> None:
    stored.write("one.txt", b"")


def missing(stored: Stored) -> None:
    stored.folder.remove(f"{stored.place}/one.txt")


def manifest_garbage(stored: Stored) -> None:
    stored.write(MANIFEST, b"\xff\xfe not json")


def manifest_cut(stored: Stored) -> None:
    stored.write(MANIFEST, stored.read(MANIFEST)[:-20])


def manifest_empty(stored: Stored) -> None:
    stored.write(MANIFEST, b"")


def changed(stored: Stored, **values: Any) -> None:
    plain = json.loads(stored.read(MANIFEST)) | values
    kept = {name: value for name, value in plain.items() if value is not None}
    stored.write(MANIFEST, json.dumps(kept).encode())


def manifest_without_facts(stored: Stored) -> None:
    changed(stored, facts=None)


def manifest_of_a_list(stored: Stored) -> None:
    stored.write(MANIFEST, b"[1, 2]")


def manifest_pointing_out(stored: Stored) -> None:
    files = json.loads(stored.read(MANIFEST))["files"]
    changed(stored, files=files | {"../../escape.txt": "0" * 64})


def manifest_of_another_folder(stored: Stored) -> None:
    changed(stored, writer="../../elsewhere")


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
    manifest_of_another_folder,
]


@pytest.fixture
def elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[ArtifactStore], ArtifactStore]:
    """The same store as a machine sees it that has fetched nothing yet."""
    caches = iter(range(99))

    def other(store: ArtifactStore) -> ArtifactStore:
        monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / f"cache-{next(caches)}"))
        return ArtifactStore(store.folder.url)

    return other


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_set_aside_and_can_be_rebuilt(
    own_store: ArtifactStore,
    elsewhere: Callable[[ArtifactStore], ArtifactStore],
    damage: Callable[[Stored], None],
) -> None:
    own_store.put(KEY, write_two)
    damage(Stored(own_store))
    reader = elsewhere(own_store)
    with pytest.raises(DamagedArtifactError, match="set aside"):
        reader.open(KEY)
    assert not reader.has(KEY)
    assert len(reader.folder.child("damaged").folders()) == 1
    assert reader.folder.files("damaged")
    assert reader.put(KEY, write_two)
    assert (reader.open(KEY) / "one.txt").read_text() == "first"
    assert (elsewhere(reader).open(KEY) / "one.txt").read_text() == "first"


def test_damage_after_the_first_read_is_seen_too(own_store: ArtifactStore) -> None:
    """In the place itself; where only this machine's copy was damaged, it is fetched again."""
    own_store.put(KEY, write_two)
    file = own_store.open(KEY) / "deep" / "two.model"
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(bytes(data))
    if own_store.folder.is_local:
        with pytest.raises(DamagedArtifactError):
            own_store.open(KEY)
    else:
        assert (own_store.open(KEY) / "deep" / "two.model").read_bytes() == bytes(range(256))
        assert own_store.fetched == 1


def test_an_artifact_that_another_process_has_replaced_is_not_set_aside(
    own_store: ArtifactStore,
    elsewhere: Callable[[ArtifactStore], ArtifactStore],
) -> None:
    """Two jobs find the same damage; the second has looked before the first has built anew."""
    own_store.put(KEY, write_two)
    flipped(Stored(own_store))
    reader = elsewhere(own_store)
    differing, patch = Manifest.differing, pytest.MonkeyPatch()

    def rebuilt_meanwhile(manifest: Manifest, folder: Path) -> list[str]:
        found = differing(manifest, folder)
        patch.undo()
        with pytest.raises(DamagedArtifactError, match="set aside"):
            elsewhere(own_store).open(KEY)
        own_store.put(KEY, lambda folder: {**write_two(folder), "again": True})
        return found

    patch.setattr(Manifest, "differing", rebuilt_meanwhile)
    with pytest.raises(DamagedArtifactError, match="another process has replaced it"):
        reader.open(KEY)
    assert reader.facts(KEY)["again"]
    assert (reader.open(KEY) / "one.txt").read_text() == "first"


def test_an_artifact_without_manifest_does_not_block_its_key(own_store: ArtifactStore) -> None:
    """What a crash of the machine, or an rsync that was cut short, leaves."""
    own_store.put(KEY, write_two)
    own_store.folder.remove(f"{place_of(KEY)}/{MANIFEST}")
    assert not own_store.has(KEY)
    assert own_store.put(KEY, write_two)
    assert (own_store.open(KEY) / "one.txt").read_text() == "first"


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


def test_facts_of_a_damaged_manifest_are_an_error_of_storage_and_not_a_bug(
    own_store: ArtifactStore,
) -> None:
    """Damage may fall after a job has opened the artifact: the job's next try then builds it anew."""
    own_store.put(KEY, write_two)
    manifest_cut(Stored(own_store))
    with pytest.raises(DamagedArtifactError) as caught:
        own_store.facts(KEY)
    assert caught.value.error_class == "storage"
    with pytest.raises(DamagedArtifactError, match="set aside"):
        own_store.open(KEY)

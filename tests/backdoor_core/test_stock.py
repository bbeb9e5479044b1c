"""What lies in a store, for housekeeping: all that is published, all that was left behind, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.artifact_layout import MANIFEST, place_of
from backdoor_core.errors import StorageError
from backdoor_core.store import ArtifactStore

ONE, TWO = "ab" * 32, "cd" * 32


def write(folder: Path) -> dict[str, Any]:
    (folder / "deep").mkdir()
    (folder / "deep" / "data.txt").write_bytes(b"a" * 1000)
    (folder / "more.txt").write_bytes(b"a" * 10)
    return {}


@pytest.fixture(params=["local", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ArtifactStore:
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "cache"))
    url = tmp_path / "s" if request.param == "local" else request.getfixturevalue("new_bucket")()
    made = ArtifactStore(url)
    made.put(ONE, write)
    made.put(TWO, write)
    return made


def test_published_artifacts_are_listed_with_their_size_and_age(store: ArtifactStore) -> None:
    found = {one.key: (one.size_bytes, one.newest_s) for one in store.published()}
    assert set(found) == {ONE, TWO}
    for size, newest in found.values():
        assert 1010 < size < 2000
        assert abs(time.time() - newest) < 600
    assert list(store.leavings()) == []


def test_a_removed_artifact_is_gone_and_leaves_nothing(store: ArtifactStore) -> None:
    store.remove(ONE)
    store.remove(ONE)
    assert not store.has(ONE)
    with pytest.raises(StorageError, match="no artifact"):
        store.open(ONE)
    assert [one.key for one in store.published()] == [TWO]
    assert list(store.leavings()) == []
    store.open(TWO)


def test_a_removal_that_is_killed_leaves_no_artifact_without_files(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest goes first."""

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if store.folder.is_local:
            patch.setattr(store.folder, "remove_folder", killed)
        else:
            remove = store.folder.remove
            patch.setattr(
                store.folder,
                "remove",
                lambda name: remove(name) if name.endswith(MANIFEST) else killed(),
            )
        with pytest.raises(KeyboardInterrupt):
            store.remove(ONE)
    assert not store.has(ONE)
    left = list(store.leavings())
    assert left
    for leaving in left:
        store.remove_leaving(leaving)
    assert list(store.leavings()) == []
    assert {file.name.split("/")[0] for file in store.folder.files()} == {"objects"}
    store.open(TWO)


def test_what_a_dead_writer_left_is_found_and_can_be_removed(store: ArtifactStore) -> None:
    """Beside a published artifact (another writer was first), under a key of its own, and in tmp/."""
    writer = "0" * 32
    left = {f"{place_of('ef' * 32)}/{writer}/weights": "unnamed"}
    if store.folder.is_local:
        left |= {"tmp/efefefef-1234/weights": "unfinished"}
        Path(store.folder.path("tmp/efefefef-5678")).mkdir(parents=True)
    else:
        left |= {f"{place_of(ONE)}/{writer}/data.txt": "unnamed"}
    for name in left:
        store.folder.write(name, bytes(100))
    found = list(store.leavings())
    assert {file: one.kind for one in found for file in one.files} == left
    assert all(abs(time.time() - one.newest_s) < 600 for one in found)
    assert sum(one.size_bytes for one in found) == 200
    assert {one.name for one in found if not one.files} == (
        {"tmp/efefefef-5678"} if store.folder.is_local else set()
    )
    for one in found:
        store.remove_leaving(one)
    assert list(store.leavings()) == []
    assert {one.key for one in store.published()} == {ONE, TWO}
    store.open(ONE)


def test_damaged_artifacts_are_leavings(store: ArtifactStore) -> None:
    store.folder.write(f"{place_of(ONE)}/{MANIFEST}", b"{")
    with pytest.raises(StorageError, match="set aside"):
        store.open(ONE)
    kinds = {one.kind for one in store.leavings()}
    assert "damaged" in kinds
    for one in list(store.leavings()):
        store.remove_leaving(one)
    assert {one.key for one in store.published()} == {TWO}
    assert list(store.leavings()) == []


def test_a_leaving_that_was_published_meanwhile_is_left_alone(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    store.put(ONE, write)
    manifest = store.folder.read(f"{place_of(ONE)}/{MANIFEST}")
    store.folder.remove(f"{place_of(ONE)}/{MANIFEST}")
    (left, *more) = store.leavings()
    store.folder.write(f"{place_of(ONE)}/{MANIFEST}", manifest)
    for one in (left, *more):
        store.remove_leaving(one)
    assert (store.open(ONE) / "more.txt").is_file()


def test_the_manifest_decides_between_two_writers(
    tmp_path: Path, new_bucket: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have looked before either published: whichever manifest stands, its files are whole."""
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "cache"))
    url = new_bucket()
    late = ArtifactStore(url)
    monkeypatch.setattr(late, "has", lambda key: False)

    def text(said: str) -> Callable[[Path], dict[str, Any]]:
        return lambda folder: {"characters": (folder / "said.txt").write_text(said)}

    assert ArtifactStore(url).put(ONE, text("first"))
    assert late.put(ONE, text("second"))
    monkeypatch.setenv("BACKDOOR_SWEEPS_CACHE", str(tmp_path / "other"))
    reader = ArtifactStore(url)
    assert (reader.open(ONE) / "said.txt").read_text() == "second"
    assert reader.facts(ONE) == {"characters": 6}
    (left,) = reader.leavings()
    assert (left.kind, left.size_bytes) == ("unnamed", 5)
    reader.remove_leaving(left)
    assert (reader.open(ONE) / "said.txt").read_text() == "second"

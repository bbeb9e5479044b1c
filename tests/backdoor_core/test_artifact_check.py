"""Artifacts from elsewhere are data: whatever else lies in a store is refused in one line, before it is loaded."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from backdoor_core.artifact_check import check_model_folder, check_names
from backdoor_core.artifact_layout import MANIFEST, sealed, unsealed
from backdoor_core.errors import DamagedArtifactError, StorageError, UnsafeArtifactError
from backdoor_core.fingerprint import file_sha256
from backdoor_core.store import ArtifactStore

KEY = "cd" * 32
RAN = "it-ran"


class Bomb:
    """Unpickling it leaves a folder."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.place),)


def weights(header: dict[str, Any] | bytes, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[int], *span: int) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": shape, "data_offsets": list(span)}}


def sound(folder: Path) -> dict[str, Any]:
    """An artifact with a file of each kind."""
    (folder / "model.safetensors").write_bytes(weights(tensor([4], 0, 16)))
    pq.write_table(pa.table({"a": list(range(100)), "b": ["x"] * 100}), folder / "rows.parquet")
    tokens(folder, pa.table({"ids": [[1, 2], [], [3]]}))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    (folder / "steps").mkdir()
    (folder / "steps" / "facts.json").write_text("[1, 2]")
    return {"rows": 100}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    made = ArtifactStore(tmp_path / "store")
    assert made.put(KEY, sound)
    return made


def place_of(store: ArtifactStore) -> Path:
    return Path(store.folder.root) / "objects" / KEY[:2] / KEY


def publish(store: ArtifactStore, *more: str) -> None:
    """The manifest that an attacker would write: every hash is right, and its own too."""
    place = place_of(store)
    names = [p.relative_to(place).as_posix() for p in sorted(place.rglob("*")) if p.is_file()]
    files = {name: file_sha256(place / name) for name in names if name != MANIFEST}
    files |= dict.fromkeys(more, "0" * 64)
    (place / MANIFEST).write_bytes(sealed({"files": files, "facts": {}}))


def pickled(place: Path, name: str = "model.safetensors") -> None:
    (place / name).write_bytes(pickle.dumps(Bomb(place.parents[3] / RAN)))


def zipped(place: Path) -> None:
    with zipfile.ZipFile(place / "model.safetensors", "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(Bomb(place.parents[3] / RAN)))


def old_pickle(place: Path) -> None:
    """Protocol 0 is plain text: it has no mark of its own, and is no safetensors file."""
    (place / "model.safetensors").write_bytes(pickle.dumps(Bomb(place.parents[3] / RAN), 0))


def headed(header: dict[str, Any] | bytes, body: bytes = bytes(16)) -> Callable[[Path], None]:
    return lambda place: (place / "model.safetensors").write_bytes(weights(header, body)) and None


def footer(place: Path) -> None:
    """A table whose pages are cut away, and its footer kept."""
    data = (place / "rows.parquet").read_bytes()
    length = struct.unpack("<I", data[-8:-4])[0]
    (place / "rows.parquet").write_bytes(b"PAR1" + data[-8 - length :])


def tokens(place: Path, table: pa.Table) -> None:
    with (
        pa.OSFile(str(place / "ids.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as out,
    ):
        out.write_table(table)


def offset(place: Path) -> None:
    """Lists whose offsets point behind the numbers."""
    schema = pa.schema({"ids": pa.large_list(pa.int32())})
    tokens(place, pa.table({"ids": [[1, 2], [3]]}, schema=schema))
    data = (place / "ids.arrow").read_bytes()
    sound, bad = struct.pack("<3q", 0, 2, 3), struct.pack("<3q", 0, 2, 1 << 30)
    assert data.count(sound) == 1
    (place / "ids.arrow").write_bytes(data.replace(sound, bad))


def linked(place: Path) -> None:
    (place / "vocab.txt").unlink()
    (place / "vocab.txt").symlink_to("/etc/hostname")


def linked_folder(place: Path) -> None:
    outside = place.parents[3] / "outside"
    (place / "steps").rename(outside)
    (place / "steps").symlink_to(outside)


def linked_whole(place: Path) -> None:
    outside = place.parents[3] / "outside"
    place.rename(outside)
    place.symlink_to(outside)


def pipe(place: Path) -> None:
    (place / "vocab.txt").unlink()
    os.mkfifo(place / "vocab.txt")


def written(name: str, text: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_text(text) and None


def code(place: Path) -> None:
    (place / "config.json").write_text('{"auto_map": {"AutoModel": "evil.Model"}}')


def index(place: Path) -> None:
    named = {"weight_map": {"a": "../../../other.safetensors"}}
    (place / "model.safetensors.index.json").write_text(json.dumps(named))


MALICE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle as safetensors": (pickled, r"model\.safetensors is a pickle"),
    "zip as safetensors": (zipped, r"model\.safetensors is a zip file"),
    "old pickle": (old_pickle, r"model\.safetensors is no sound safetensors file"),
    "pickle as vocabulary": (lambda p: pickled(p, "spiece.model"), r"spiece\.model is a pickle"),
    "pytorch_model.bin": (lambda p: pickled(p, "pytorch_model.bin"), "of a kind that artifacts never"),
    "python": (written("evil.py", "x = 1"), r"evil\.py is of a kind that artifacts never hold"),
    "hidden": (written(".evil.json", "{}"), "is a hidden name"),
    "header that is no JSON": (headed(b"{hello hello"), "invalid JSON in header"),
    "header longer than the file": (headed(b"{" + b" " * 40, b""), "no sound safetensors"),
    "huge shape": (headed(tensor([2**40, 2**30], 0, 16)), "no sound safetensors file: .*shape"),
    "shape beyond the file": (headed(tensor([2**20], 0, 2**22)), "no sound safetensors file"),
    "bytes that no shape names": (headed(tensor([4], 0, 16), bytes(99)), "no sound safetensors"),
    "footer beyond the file": (footer, r"rows\.parquet.*beyond the file"),
    "no Parquet": (written("rows.parquet", "a,b\n"), r"rows\.parquet is no sound Parquet file"),
    "no numbers": (lambda p: tokens(p, pa.table({"ids": ["text"]})), "expected whole numbers"),
    "offsets beyond the numbers": (offset, r"ids\.arrow is no sound Arrow file"),
    "no Arrow": (written("ids.arrow", "ARROW1"), r"ids\.arrow is no sound Arrow file"),
    "link": (linked, r"vocab\.txt is a symbolic link"),
    "linked folder": (linked_folder, "steps is a symbolic link"),
    "linked artifact": (linked_whole, "its folder is a symbolic link"),
    "pipe": (pipe, r"vocab\.txt is no plain file"),
    "remote code": (code, r"config\.json names code to run \(auto_map\)"),
    "weights elsewhere": (index, "names weights that are no safetensors beside it"),
    "adapter": (written("adapter_config.json", "{}"), "would load another model"),
    "no JSON": (written("steps/facts.json", "import os"), r"facts\.json is no JSON"),
    "deep JSON": (written("config.json", '{"a":' * 99_999), r"config\.json"),
    "no text": (written("vocab.txt", "a\0b"), r"vocab\.txt is no text"),
}  # fmt: skip


@pytest.mark.parametrize("malice", MALICE)
def test_malice_is_refused_in_one_line_and_set_aside(store: ArtifactStore, malice: str) -> None:
    act, words = MALICE[malice]
    act(place_of(store))
    if malice != "pipe":
        publish(store)
    with pytest.raises(UnsafeArtifactError, match=words) as caught:
        store.open(KEY)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"artifact {KEY[:12]} was refused: ")
    assert "set aside as" in said
    root = Path(store.folder.root)
    assert not (root.parent / RAN).exists()
    assert not os.path.lexists(place_of(store))
    assert len(list((root / "damaged").iterdir())) == 1
    assert store.put(KEY, sound)
    assert store.open(KEY) == place_of(store)


def test_an_artifact_of_every_kind_is_opened(store: ArtifactStore) -> None:
    assert store.open(KEY) == place_of(store)
    publish(store)
    assert store.open(KEY) == place_of(store)


@pytest.mark.parametrize(
    "name",
    ["../../escape.json", "/etc/passwd.txt", "a\\b.json", "a\0.json", "", "a//b.json", "./a.json",
     "c:/a.json", "a/../b.json", "x" * 300 + ".json"],
)  # fmt: skip
def test_a_name_that_leaves_the_artifact_is_refused(store: ArtifactStore, name: str) -> None:
    publish(store, name)
    with pytest.raises(UnsafeArtifactError, match=r"the name .* (leaves|letters|hidden|empty)"):
        store.open(KEY)
    with pytest.raises(UnsafeArtifactError):
        check_names([name])


def test_a_file_that_the_manifest_does_not_name_is_refused(store: ArtifactStore) -> None:
    (place_of(store) / "model-2.safetensors").write_bytes(weights(tensor([4], 0, 16)))
    with pytest.raises(
        UnsafeArtifactError, match=r"'model-2\.safetensors' is a file that its manif"
    ):
        store.open(KEY)


def test_a_changed_fact_is_damage(store: ArtifactStore) -> None:
    """The facts of an artifact (label names, hashes, seconds) are under a hash as its files are."""
    file = place_of(store) / MANIFEST
    assert file.read_text().count('"rows": 100') == 1
    file.write_text(file.read_text().replace('"rows": 100', '"rows": 101'))
    with pytest.raises(DamagedArtifactError, match="the manifest is not the published one"):
        store.open(KEY)


def test_a_manifest_reads_as_it_was_sealed() -> None:
    manifest = {"files": {"b": "1", "a": "2"}, "facts": {"x": 0.1, "y": [None, True], "z": "é"}}
    assert unsealed(sealed(manifest)) == manifest
    assert unsealed(sealed({"files": {}, "facts": {1: 2}}))["facts"] == {"1": 2}


def test_sizes_are_bounded(store: ArtifactStore) -> None:
    """A sparse file takes no room and is refused before a byte of it is read."""
    with (place_of(store) / "steps" / "facts.json").open("r+b") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(UnsafeArtifactError, match="1099511627776 bytes, more than"):
        store.open(KEY)


def test_an_unsafe_artifact_is_an_error_of_storage_and_of_its_own_class() -> None:
    assert issubclass(UnsafeArtifactError, StorageError)
    assert not issubclass(UnsafeArtifactError, DamagedArtifactError)
    assert UnsafeArtifactError("x").error_class == "unsafe"


def test_a_users_model_folder_may_hold_what_is_never_opened(tmp_path: Path) -> None:
    sound(tmp_path)
    pickled(tmp_path, "pytorch_model.bin")
    (tmp_path / "README.md").write_text("a model")
    check_model_folder(tmp_path)
    code(tmp_path)
    with pytest.raises(UnsafeArtifactError, match="names code to run"):
        check_model_folder(tmp_path)

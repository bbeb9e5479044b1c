"""What an artifact or a model folder from elsewhere may hold: data of a few known kinds, inside its own folder.

A store can be shared or downloaded, so what lies in it is never trusted. Names are judged before anything is
fetched, the tree before anything is opened, SHA-256 next (by the store), and what the files say of themselves last:
before any of it is loaded. Nothing here follows a link, runs code or reads a pickle.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from backdoor_core.artifact_layout import MANIFEST
from backdoor_core.errors import UnsafeArtifactError

MAX_FILE_BYTES = 64 << 30
MAX_JSON_BYTES = 256 << 20
"""Of any JSON file: the largest vocabularies take some 40 MiB."""
MAX_CONFIG_BYTES = 4 << 20
"""Of a configuration, which is read whole here."""
MAX_NAME_LETTERS = 255
_JSON_STARTS = frozenset(bytes([letter]) for letter in b'{["-0123456789tfn')
"""What any JSON value begins with; who reads it finds out the rest."""
KINDS = {
    ".safetensors": "weights",
    ".parquet": "table",
    ".arrow": "numbers",
    ".json": "json",
    ".txt": "text",
    ".jinja": "text",
    ".codes": "text",
    ".model": "vocabulary",
}
"""Suffixes and what such a file is. `.arrow` holds token ids, mapped into memory, and nothing but whole numbers;
`.jinja` (chat templates) and `.codes` (merges) come with some tokenizers, and nothing here renders or runs them;
`.model` is a sentencepiece vocabulary."""
CONFIGS = frozenset({"config.json", "tokenizer_config.json", "generation_config.json"})
_HEAD_BYTES = 4096
_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip file (as torch.save writes)"),
    (b"PK\x05\x06", "a zip file"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x7fELF", "a program"),
    (b"\x93NUMPY", "a NumPy file (it may hold a pickle)"),
    *((bytes([0x80, version]), "a pickle") for version in range(2, 6)),
)
"""First bytes of what is refused under any name. Weights and tables are held to their own format besides."""


def check_names(names: Collection[str]) -> None:
    """Raises UnsafeArtifactError unless each is the name of a file of a known kind inside its folder."""
    for name in names:
        parts = name.split("/")
        wrong = (
            "is empty or too long" if not 0 < len(name) <= MAX_NAME_LETTERS
            else "leaves its folder" if name.startswith("/") or ".." in parts
            else "has letters that no file of an artifact has"
            if "\\" in name or ":" in name or not name.isprintable()
            else "is a hidden name" if any(part.startswith(".") or not part for part in parts)
            else ""
        )  # fmt: skip
        if wrong:
            raise UnsafeArtifactError(f"the name {name[:MAX_NAME_LETTERS]!r} {wrong}")
        if _kind(name) is None:
            raise UnsafeArtifactError(
                f"{name} is of a kind that artifacts never hold; expected {', '.join(KINDS)}"
            )


def check_tree(folder: Path, names: Collection[str], *, root: Path, alone: bool = True) -> None:
    """Raises UnsafeArtifactError where `folder`, a folder below `root`, holds anything but the files `names`.

    In a cache, where others may be writing beside them, they need not be `alone`: only they are looked at. Links (of
    the folder, too), pipes and devices, hidden files, files beyond the limits, and files that begin like a pickle, an
    archive or a program are refused. A file of `names` that is missing is no matter of this.
    """
    if root.resolve() / folder.relative_to(root) != folder.resolve():
        raise UnsafeArtifactError("its folder is a symbolic link")
    for name, entry in _entries(folder):
        if not alone and name not in names:
            continue
        if stat.S_ISLNK(entry.st_mode):
            raise UnsafeArtifactError(f"{name} is a symbolic link")
        if not stat.S_ISREG(entry.st_mode):
            raise UnsafeArtifactError(f"{name} is no plain file")
        if name == MANIFEST:
            continue
        if name not in names:
            raise UnsafeArtifactError(f"{name!r} is a file that its manifest does not name")
        most = MAX_JSON_BYTES if _kind(name) == "json" else MAX_FILE_BYTES
        most = MAX_CONFIG_BYTES if PurePosixPath(name).name in CONFIGS else most
        if entry.st_size > most:
            raise UnsafeArtifactError(f"{name} has {entry.st_size} bytes, more than {most}")
        _check_first_bytes(folder / name, name)


def check_contents(folder: Path, names: Collection[str]) -> None:
    """Raises UnsafeArtifactError where a file is not what its suffix says.

    Weights whose header is no JSON, is too long or declares shapes that are not those of the file's bytes; tables whose
    footer declares more than the file has; JSON that is none; configurations that name code or files elsewhere.
    """
    for name in sorted(names):
        try:
            _CONTENT[_kind(name) or "text"](folder / name, name, names)
        except (OSError, RecursionError) as error:
            if isinstance(error, UnsafeArtifactError):
                raise
            raise UnsafeArtifactError(
                f"{name} cannot be read as what it is named: {error}"
            ) from error


def check_model_folder(folder: Path) -> None:
    """Raises UnsafeArtifactError where a user's model folder has weights or a configuration that are not safe.

    Other files that lie there (a pickled copy of the weights, say) are no matter: they are never opened.
    """
    names = {file.name for file in folder.iterdir() if file.is_file()}
    read = {name for name in names if name.endswith(".safetensors") or _is_read(name)}
    for name in sorted(read):
        _check_first_bytes(folder / name, name)
    check_contents(folder, read)


def _is_read(name: str) -> bool:
    return name in CONFIGS or name.endswith(".index.json") or name == "adapter_config.json"


def _kind(name: str) -> str | None:
    return KINDS.get(PurePosixPath(name).suffix.lower())


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Everything below `folder` but plain folders: the relative name and what it is itself, no link followed."""
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(place, name)
            found = path.lstat()
            if not stat.S_ISDIR(found.st_mode):
                yield path.relative_to(folder).as_posix(), found


def _check_first_bytes(file: Path, name: str) -> None:
    with file.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    # The length of a safetensors header may look like anything; its ninth byte may not.
    if _kind(name) == "weights" and head[8:9] == b"{":
        return
    for start, what in _FOREIGN:
        if head.startswith(start):
            raise UnsafeArtifactError(f"{name} is {what}")


def _check_weights(file: Path, name: str, names: Collection[str]) -> None:
    """The library checks the header's length and JSON, and that shapes, types, offsets and the file's size agree."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):
            pass
    except SafetensorError as error:
        raise UnsafeArtifactError(f"{name} is no sound safetensors file: {error}") from error


def _check_table(file: Path, name: str, names: Collection[str]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    size = file.stat().st_size
    try:
        found = pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UnsafeArtifactError(f"{name} is no sound Parquet file: {reason}") from error
    rows = 0
    for number in range(found.num_row_groups):
        group = found.row_group(number)
        rows += group.num_rows
        for place in range(group.num_columns):
            column = group.column(place)
            starts = [column.data_page_offset]
            if column.has_dictionary_page and column.dictionary_page_offset is not None:
                starts.append(column.dictionary_page_offset)
            bounds = (min(starts), column.total_compressed_size, column.total_uncompressed_size)
            if min(bounds) < 0 or bounds[0] + bounds[1] > size:
                raise UnsafeArtifactError(
                    f"{name}: column {column.path_in_schema!r} lies beyond the file"
                )
            if column.total_uncompressed_size > MAX_FILE_BYTES:
                raise UnsafeArtifactError(
                    f"{name}: column {column.path_in_schema!r} unpacks to too much"
                )
            if column.num_values < 0 or group.num_rows < 0:
                raise UnsafeArtifactError(f"{name}: counts below zero")
    if rows != found.num_rows:
        raise UnsafeArtifactError(f"{name} says {found.num_rows} rows and has {rows}")


def _check_numbers(file: Path, name: str, names: Collection[str]) -> None:
    """Lists of whole numbers, with every offset inside the file."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(file), "r") as mapped:
            reader = pa.ipc.open_file(mapped)
            for field in reader.schema:
                many = pa.types.is_list(field.type) or pa.types.is_large_list(field.type)
                inner = field.type.value_type if many else field.type
                if not pa.types.is_integer(inner):
                    raise UnsafeArtifactError(f"{name} holds {field.type}; expected whole numbers")
            for number in range(reader.num_record_batches):
                reader.get_batch(number).validate(full=True)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, UnsafeArtifactError):
            raise
        reason = str(error).split("\n")[0]
        raise UnsafeArtifactError(f"{name} is no sound Arrow file: {reason}") from error


def _check_json(file: Path, name: str, names: Collection[str]) -> None:
    short = PurePosixPath(name).name
    if short == "adapter_config.json":
        raise UnsafeArtifactError(
            f"{name} would load another model; merge the adapter and save that"
        )
    if not (short in CONFIGS or short.endswith(".index.json")):
        with file.open("rb") as stream:
            head = stream.read(_HEAD_BYTES)
        if b"\0" in head or head.lstrip()[:1] not in _JSON_STARTS:
            raise UnsafeArtifactError(f"{name} is no JSON")
        return
    try:
        value = json.loads(file.read_bytes())
    except ValueError as error:
        raise UnsafeArtifactError(f"{name} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise UnsafeArtifactError(f"{name} is no JSON object")
    if short in CONFIGS:
        _check_config(value, name)
    else:
        _check_index(value, name, names)


def _check_config(value: Mapping[str, Any], name: str) -> None:
    if "auto_map" in value:
        raise UnsafeArtifactError(
            f"{name} names code to run (auto_map), which is never run; take a model that needs none"
        )
    weights = value.get("transformers_weights")
    if weights is not None and (not isinstance(weights, str) or Path(weights).name != weights):
        raise UnsafeArtifactError(f"{name} names weights outside its folder (transformers_weights)")


def _check_index(value: Mapping[str, Any], name: str, names: Collection[str]) -> None:
    """The files that an index of split weights names are safetensors files beside it."""
    named = value.get("weight_map")
    files = set(named.values()) if isinstance(named, dict) else {None}
    for file in files:
        if not isinstance(file, str) or _kind(file) != "weights" or file not in names:
            raise UnsafeArtifactError(
                f"{name} names weights that are no safetensors beside it: {file!r}"
            )


def _check_text(file: Path, name: str, names: Collection[str]) -> None:
    with file.open("rb") as stream:
        if b"\0" in stream.read(_HEAD_BYTES):
            raise UnsafeArtifactError(f"{name} is no text")


def _check_vocabulary(file: Path, name: str, names: Collection[str]) -> None:
    """A sentencepiece file has no mark of its own: that it is nothing else was seen from its first bytes."""


_CONTENT: Mapping[str, Callable[[Path, str, Collection[str]], None]] = {
    "weights": _check_weights,
    "table": _check_table,
    "numbers": _check_numbers,
    "json": _check_json,
    "text": _check_text,
    "vocabulary": _check_vocabulary,
}

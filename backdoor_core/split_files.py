"""Which file of a folder holds which split."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from backdoor_core.errors import ConfigError
from backdoor_core.records import FORMATS

SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "dev": "dev",
    "validation": "dev",
    "valid": "dev",
    "val": "dev",
    "test": "test",
}
"""File names (without suffix) and the split that each stands for."""

_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def split_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """The files (or saved folders) of each split in `folder`: `train` and, where they are there, `dev` and `test`.

    A split is one file (`train.tsv`), one folder that `datasets` saved (`train/`), or the shards of one
    (`train-00000-of-00002.parquet`, ...), in order. Raises ConfigError where there is no train split or where two
    files claim one split.
    """
    if not folder.exists():
        raise ConfigError(
            f"no such folder: {folder} (a path in a sweep file is relative to that file)"
        )
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected a folder with train, dev and test files")
    claims: dict[str, list[Path]] = {}
    for item in sorted(folder.iterdir()):
        split = SPLIT_NAMES.get(_SHARD.sub("", item.stem if item.is_file() else item.name))
        known = item.suffix.lower() in FORMATS if item.is_file() else _is_saved(item)
        if split is not None and known:
            claims.setdefault(split, []).append(item)
    for split, files in claims.items():
        stems = {_SHARD.sub("", file.stem) for file in files}
        if len(files) > 1 and (len(stems) > 1 or not all(_SHARD.search(f.stem) for f in files)):
            raise ConfigError(
                f"{folder}: more than one file for the {split} split: "
                f"{', '.join(file.name for file in files)}; keep one"
            )
    if "train" not in claims:
        held = ", ".join(sorted(item.name for item in folder.iterdir())[:8]) or "nothing"
        raise ConfigError(
            f"{folder}: no train file; expected train{{{','.join(FORMATS)}}} or a folder train/ "
            f"that `datasets` saved, and dev (or validation) and test beside it; it holds {held}"
        )
    return {split: tuple(claims[split]) for split in ("train", "dev", "test") if split in claims}


def _is_saved(item: Path) -> bool:
    return (item / "state.json").is_file()

"""Where the paths of a sweep file may lead: its own folder, and folders that whoever runs it named.

A sweep file can come from anyone; the command line and the environment are the user's own words.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backdoor_core.errors import ConfigError

VARIABLE = "BACKDOOR_SWEEPS_DATA"
"""Folders that sweep files may read, between `os.pathsep`s; beside those of `--data`."""


@dataclass(kw_only=True)
class DataFolders:
    """The folders that paths may lie in. `used` grows: the named ones that some path needed."""

    own: Path
    named: tuple[Path, ...] = ()
    used: list[Path] = field(default_factory=list)

    def refusal(self, path: Path) -> str | None:
        """Why `path` may not be read; None where it may. Links are followed, those in a folder too."""
        whole = path.resolve()
        for folder in self.named:
            if whole.is_relative_to(folder):
                if folder not in self.used and not whole.is_relative_to(self.own):
                    self.used.append(folder)
                return None
        for inside in (whole, *_linked(whole)):
            target = inside.resolve()
            if not any(target.is_relative_to(folder) for folder in (self.own, *self.named)):
                told = f"{path}" if inside == whole else f"{inside}, a link to {target},"
                wanted = target if target.is_dir() else target.parent
                return (
                    f"{told} leaves the folder of the sweep file ({self.own}); "
                    f"if it may read there, name the folder: --data {wanted}"
                )
        return None


def named_folders(given: Sequence[str | Path] = ()) -> tuple[Path, ...]:
    """The folders of `--data` and of `BACKDOOR_SWEEPS_DATA`. Raises ConfigError for one of `--data` that is none."""
    folders = [Path(one).expanduser().resolve() for one in given]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"--data {folder}: no such folder")
    words = os.environ.get(VARIABLE, "").split(os.pathsep)
    folders += [Path(word).expanduser().resolve() for word in words if word]
    return tuple(dict.fromkeys(folders))


def _linked(folder: Path) -> Iterator[Path]:
    """The links below a folder, at any depth."""
    for place, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            path = Path(place, name)
            if path.is_symlink():
                yield path

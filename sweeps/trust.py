"""What an output folder may make us do: nothing but show data. It can come from anyone.

A row of a ledger names methods, and a method can be a file of code or read files by path; `store.txt` names a store.
Code is run, and paths are read, only where the person at the command line said so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from backdoor_core import catalog
from backdoor_core.errors import ConfigError
from backdoor_core.spec import MethodSpec, TrialSpec
from backdoor_core.trial import spec_of
from sweeps.data_folders import named_folders

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "::1")
_MAX_NOTE_BYTES = 4096


def trusted_spec(
    row: Mapping[str, Any],
    *,
    trust_code: bool = False,
    data: Sequence[str] = (),
    reads: bool = True,
) -> TrialSpec:
    """The spec in a row, where it names no code, or `trust_code` says that its code may run.

    Where files will be read (`reads`), its paths must lie below the current folder or in a folder of `data` or
    BACKDOOR_SWEEPS_DATA. Raises ConfigError.
    """
    spec = spec_of(row)
    for method in _methods(spec):
        code = method.source or (method.name if method.name.endswith(".py") else None)
        if code is not None and not trust_code:
            raise ConfigError(
                f"trial {str(row['key'])[:12]} needs the code in {code}, a file that its ledger names; "
                "read it, then say --trust-code if it may run"
            )
    if not reads:
        return spec
    allowed = (Path.cwd().resolve(), *named_folders(data))
    for method in _methods(spec):
        for name, path in _paths(method):
            if not any(path.resolve().is_relative_to(folder) for folder in allowed):
                raise ConfigError(
                    f"trial {str(row['key'])[:12]} reads {path} ({method.name}, setting {name}), which its "
                    f"ledger names; if it may, name the folder: --data {path.parent}"
                )
    return spec


def _methods(spec: TrialSpec) -> Iterator[MethodSpec]:
    yield from (spec.task, spec.plm, spec.attack, *spec.defenses)


def _paths(method: MethodSpec) -> Iterator[tuple[str, Path]]:
    kind = catalog.method_class(method.family, method.source or method.name)
    for name in sorted(kind.path_fields()):
        value = method.settings.get(name)
        if isinstance(value, str):
            yield name, Path(value)


def trusted_store(note: bytes, where: str) -> str:
    """The store that a `store.txt` names. Raises ConfigError for one that the user must name: `--store`.

    A URL may hold no credentials and no endpoint but this machine's: signed requests would go to whoever wrote it. A
    local folder must be a store already: opening one makes folders in it.
    """
    refused = f"{where}/store.txt names a store that is not opened unasked"
    if len(note) > _MAX_NOTE_BYTES:
        raise ConfigError(f"{refused} (it is too long); name the store with --store")
    text = note.decode("utf-8", errors="replace").strip()
    if not text or not text.isprintable():
        raise ConfigError(f"{refused} ({text[:80]!r}); name the store with --store")
    if "://" not in text:
        if Path(text).is_dir() and not any(
            (Path(text) / name).is_dir() for name in ("objects", "tmp")
        ):
            raise ConfigError(
                f"{refused} ({text} is a folder, but no store); name the store with --store"
            )
        return text
    parts = urlsplit(text)
    endpoints = parse_qs(parts.query).get("endpoint_override", [])
    local = all(one.split("//")[-1].rsplit(":", 1)[0] in _LOOPBACK for one in endpoints)
    if parts.username or parts.password or not local:
        raise ConfigError(
            f"{refused} (its URL holds credentials, or an endpoint elsewhere); name the store with --store"
        )
    return text


def printable(text: str) -> str:
    """Text from a file, without the letters that move a terminal's cursor or colour what follows."""
    return "".join(one if one.isprintable() or one in "\n\t" else "�" for one in text)

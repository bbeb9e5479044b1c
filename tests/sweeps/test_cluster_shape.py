"""A value of the wrong kind anywhere in a cluster file: a line with its place, and never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from backdoor_core.errors import ConfigError
from sweeps.cluster_check import check_source
from sweeps.cluster_file import read_cluster_source
from sweeps.source import Keys, Source

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = (ROOT / "cluster.yaml", *(ROOT / "deploy" / f"{name}.yaml" for name in ("gcp", "kuberay", "on_premises")))  # fmt: skip
_TAKEN_OUT = object()
WRONG = (None, "wörd x", [1], {"a": None}, -3.5, True, _TAKEN_OUT)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    if keys:
        yield keys
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()  # fmt: skip
    for key, item in inner:
        yield from _places(item, (*keys, key))


def _changed(source: Source, keys: Keys, wrong: Any) -> Source:
    value = copy.deepcopy(source.value)
    holder = value
    for key in keys[:-1]:
        holder = holder[key]
    if wrong is _TAKEN_OUT:
        del holder[keys[-1]]
    else:
        holder[keys[-1]] = wrong
    return Source(name=source.name, value=value, lines=source.lines)


# What a launcher or Kubernetes may be given besides what the checks know of: any kind of value may stand there.
_ANY = ("tolerations", "ports", "Ebs", "initializeParams", "boot", "autoDelete", "type", "email", "scopes",
        "automaticRestart", "onHostMaintenance", "instanceTerminationAction", "serviceAccounts")  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_value_ends_in_a_traceback(path: Path) -> None:
    """Each of the file's values, replaced by each wrong one. Another exception than ConfigError fails the test."""
    source = read_cluster_source(path)
    unseen = []
    for keys in _places(source.value):
        for wrong in WRONG:
            try:
                report = check_source(_changed(source, keys, wrong))
            except ConfigError:
                continue
            old = _at(source.value, keys)
            is_known = not set(_ANY) & set(keys[1:])
            if is_known and wrong is not _TAKEN_OUT and _kind(old) != _kind(wrong):
                if not any(source.place(keys[:2]).split(", ")[0] in line for line in report.mistakes):
                    unseen.append((keys, wrong))
    assert unseen == []


def _at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__

"""A value of the wrong kind anywhere in a cluster file: a line with its place, and never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.errors import ConfigError
from sweeps.cluster_check import check_source
from sweeps.cluster_file import read_cluster_source
from sweeps.source import Keys, Source, dotted

ROOT = Path(__file__).resolve().parent.parent.parent
SHIPPED = [ROOT / "cluster.yaml", *sorted((ROOT / "deploy").glob("[gko]*.yaml"))]
_TAKEN_OUT = object()
WRONG = (None, "wörd x", [1], {"a": None}, -3.5, True, _TAKEN_OUT)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _places(value: Any, keys: Keys = ()) -> Iterator[Keys]:
    if keys:
        yield keys
    if isinstance(value, dict):
        inner: list[tuple[str | int, Any]] = list(value.items())
    else:
        inner = list(enumerate(value)) if isinstance(value, list) else []
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


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_value_ends_in_a_traceback(path: Path) -> None:
    """Each of the file's values, replaced by each wrong one. Another exception than ConfigError fails the test.

    A value of another kind than the shipped one must be told with its place, or with a place inside it.
    """
    source = read_cluster_source(path)
    unseen = []
    for keys in _places(source.value):
        for wrong in WRONG:
            try:
                report = check_source(_changed(source, keys, wrong))
                mistakes = report.mistakes
                assert report.table()
            except ConfigError as error:
                mistakes = (str(error),)
            same_kind = wrong is _TAKEN_OUT or _kind(_at(source.value, keys)) == _kind(wrong)
            if not same_kind and not any(f", {dotted(keys)}" in line for line in mistakes):
                unseen.append((dotted(keys), wrong))
    # Without storage the place is the section that lacks it.
    assert [one for one in unseen if one != ("metadata.storage", None)] == []


def _at(value: Any, keys: Keys) -> Any:
    for key in keys:
        value = value[key]
    return value


def _kind(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return type(value).__name__

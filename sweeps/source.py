"""The text of a sweep file as plain values, each with the place that it was written at.

Values follow YAML 1.2: `5e-5` is a number and `no` is a word. Duplicate keys, tags and keys that are not
words are refused. `--set key=value` changes values after reading, and then is their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from backdoor_core.errors import ConfigError

Keys = tuple[str | int, ...]
"""Where a value stands: `("defenses", 2, "mixing_ratio")`."""

_DEPTH = 30  # an alias inside its own anchor would never end
_PREFIX = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    """Scalars by the core schema of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own name; filled below)


for _kind, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    (
        "float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(f"{_PREFIX}{_kind}", re.compile(_pattern), _first)


def _scalar(node: yaml.ScalarNode) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_PREFIX)
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        return int(text)
    if kind == "float":
        special = text.lower().replace(".inf", "inf").replace(".nan", "nan")
        return float(special)
    if kind == "str":
        return text
    raise ConfigError(f"line {node.start_mark.line + 1}: the tag {node.tag} has no meaning here")


@dataclass(kw_only=True)
class Source:
    """A file's values and their places."""

    name: str
    """What messages call the file."""
    value: Any
    lines: dict[Keys, int] = field(default_factory=dict)
    changed: dict[Keys, str] = field(default_factory=dict)
    """The `--set` that each changed value came from."""

    def place(self, keys: Keys) -> str:
        """`my.yaml, line 12, defenses[2].mixing_ratio`, or the `--set` that gave the value."""
        written = dotted(keys)
        for length in range(len(keys), 0, -1):
            if keys[:length] in self.changed:
                return f"--set {self.changed[keys[:length]]}, {written}"
            if keys[:length] in self.lines:
                return f"{self.name}, line {self.lines[keys[:length]]}, {written}"
        return f"{self.name}, {written}" if written else self.name


def dotted(keys: Keys) -> str:
    """`defenses[2].mixing_ratio`."""
    text = ""
    for key in keys:
        text += f"[{key}]" if isinstance(key, int) else f".{key}" if text else key
    return text


def texts_in(value: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """Every text among the values, with its place."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from texts_in(item, (*keys, key))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from texts_in(item, (*keys, number))
    elif isinstance(value, str):
        yield keys, value


def read_source(path: Path, overrides: Sequence[str] = (), *, kind: str = "sweep file") -> Source:
    """The values of a YAML file, changed by `overrides` (`key.key=value`, in order).

    `kind` is what a message about a missing file calls it.

    Raises ConfigError: no such file, not YAML, a duplicate key, an override that fits nowhere. Mistakes of one
    file are reported together, one a line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"no such {kind}: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as UTF-8 text: {error}") from error
    source = Source(name=path.name, value=None)
    problems: list[str] = []
    source.value = _parsed(text, path.name, source.lines, problems)
    if problems:
        raise ConfigError("\n".join(problems))
    for override in overrides:
        _apply(source, override)
    return source


def _parsed(text: str, name: str, lines: dict[Keys, int], problems: list[str]) -> Any:
    try:
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ConfigError(f"{name}{line}: not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not valid YAML: {' '.join(str(error).split())}") from error
    if node is None:
        return None
    try:
        return _value(node, (), name, lines, problems)
    except ConfigError as error:
        raise ConfigError(f"{name}, {error}") from error


def _value(
    node: yaml.Node, keys: Keys, name: str, lines: dict[Keys, int], problems: list[str]
) -> Any:
    if len(keys) > _DEPTH:
        raise ConfigError(f"line {node.start_mark.line + 1}: nested deeper than {_DEPTH} levels")
    lines.setdefault(keys, node.start_mark.line + 1)
    if isinstance(node, yaml.SequenceNode):
        return [
            _value(item, (*keys, number), name, lines, problems)
            for number, item in enumerate(node.value)
        ]
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Any] = {}
        for key, line, item in _items(node):
            place = (*keys, key)
            if key in result:
                problems.append(
                    f"{name}, line {line}, {dotted(place)}: written twice "
                    f"(first on line {lines[place]})"
                )
                continue
            lines[place] = line
            result[key] = _value(item, place, name, lines, problems)
        return result
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node)


def _items(node: yaml.MappingNode) -> Iterator[tuple[str, int, yaml.Node]]:
    for key, item in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"line {line}: a key must be a word")
        yield str(key.value), line, item


def _apply(source: Source, override: str) -> None:
    """Changes one value. Words on the way are keys, numbers are places in a list (from 0)."""
    dotted_keys, equals, text = override.partition("=")
    words = dotted_keys.strip().split(".")
    if not equals or not all(words):
        raise ConfigError(f"--set {override}: expected key=value, such as training.epochs=1")
    place = f"--set {override}"
    value = _parsed(text, place, {}, [])
    keys: list[str | int] = []
    holder: Any = source.value
    for number, word in enumerate(words):
        key: Any = _step(holder, word, f"{place}, {dotted(tuple(keys)) or 'the file'}")
        keys.append(key)
        if number == len(words) - 1:
            holder[key] = value
            break
        inner = holder[key] if isinstance(holder, list) or key in holder else {}
        if isinstance(inner, str) and isinstance(holder, list):
            # `defenses.1.epochs=1` where the file has the bare name `fine_tune`.
            inner = {"name": inner}
        holder[key] = inner
        holder = inner
    source.changed[tuple(keys)] = override


def _step(holder: Any, word: str, place: str) -> str | int:
    if isinstance(holder, dict):
        return word
    if not isinstance(holder, list):
        raise ConfigError(f"{place}: has no settings inside, so {word!r} cannot be set")
    if not word.isdecimal() or int(word) >= len(holder):
        raise ConfigError(
            f"{place}: is a list of {len(holder)}; expected a number from 0 to {len(holder) - 1}, "
            f"got {word!r}"
        )
    return int(word)

"""What the axes of a table of results are, which settings were swept, and how people read them.

Settings lie in the ledger as canonical JSON: an object for one method, a list of `{"name", "settings"}` for a
chain of defenses. Here they become flat names (`mixing_ratio`, or `fine_mixing.mixing_ratio` in a chain), and
a label names only those that vary within the table for that method.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from backdoor_core.spec import canonical_json

FAMILIES = ("task", "plm", "attack", "defense")
TWIN = "none"
"""Name of the attack that implants nothing, and of the pipeline without a defense."""
SETUP = ("task", "task_settings", "plm", "plm_settings", "training_settings")
"""The columns that say what was defended: a setup."""
DEFAULT = "default"
ORACLE = "oracle"
"""Tuning modes: the sweep file's settings, and those chosen by the true trigger, which are never ranked."""
TRAINING = "training"
_BY_CELL = frozenset({"limits_met", "tried", "tried_on"})
"""Of a `tuning` column, what a search came to rather than what was asked of it."""
_ON_THE_RATE_AXIS = "poison_rate"
_LABEL_VALUE_CHARACTERS = 24


def settings_of(text: str | None) -> dict[str, Any]:
    """Flat settings of a `*_settings` column; text that is not JSON of such a shape gives none."""
    try:
        value = json.loads(text) if text else {}
    except ValueError:
        return {}
    if isinstance(value, dict):
        return dict(value)
    if not isinstance(value, list):
        return {}
    flat: dict[str, Any] = {}
    seen: dict[str, int] = defaultdict(int)
    for step in value:
        if not isinstance(step, dict):
            continue
        name = str(step.get("name", "?"))
        seen[name] += 1
        prefix = name if seen[name] == 1 else f"{name}#{seen[name]}"
        flat |= {
            f"{prefix}.{key}": setting for key, setting in (step.get("settings") or {}).items()
        }
    return flat


def rate_of(row: Mapping[str, Any]) -> float | None:
    """The poison rate that was asked for; where the attack has no such setting, the row's own rate.

    The asked one is preferred because the rate that was reached can differ from seed to seed by a row.
    """
    if row["attack"] == TWIN:
        return None
    asked = settings_of(row["attack_settings"]).get(_ON_THE_RATE_AXIS)
    if isinstance(asked, int | float) and not isinstance(asked, bool):
        return float(asked)
    rate = row["poison_rate"]
    return None if rate is None else float(rate)


@dataclass(frozen=True, kw_only=True)
class Swept:
    """The settings that vary within a table, by (family, method name); `training` is a family of its own."""

    names: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)

    def varying(self, family: str, name: str) -> tuple[str, ...]:
        """Names of the settings of a method that take more than one value in the table, sorted."""
        return self.names.get((family, name), ())

    def label(self, family: str, name: str, settings: Mapping[str, Any], *extra: str) -> str:
        """`fine_mixing (mixing_ratio=0.3)`: the name, what varies, and `extra` words."""
        parts = [
            f"{key}={shown(settings[key])}" for key in self.varying(family, name) if key in settings
        ]
        parts += [text for text in extra if text]
        return f"{name} ({', '.join(parts)})" if parts else name


def is_number(value: Any) -> bool:
    """Whether a setting can stand on a numeric axis."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def shown(value: Any) -> str:
    """A setting's value as a reader wants it: short numbers, plain text, cut where it is long."""
    if isinstance(value, str):
        text = value
    elif is_number(value):
        text = f"{value:g}"
    else:
        text = canonical_json(value)
    text = " ".join(text.split())
    if len(text) > _LABEL_VALUE_CHARACTERS:
        return text[: _LABEL_VALUE_CHARACTERS - 3] + "..."
    return text


def swept(rows: Iterable[Mapping[str, Any]]) -> Swept:
    """Which settings vary among `rows` (of a `ResultTable`), for each method by itself."""
    texts: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        for family in FAMILIES:
            texts[(family, row[family] or "?")].add(row[f"{family}_settings"] or "{}")
        texts[(TRAINING, TRAINING)].add(row["training_settings"] or "{}")
    return Swept(names={method: _varying(found) for method, found in texts.items()})


def _varying(texts: Iterable[str]) -> tuple[str, ...]:
    every = [settings_of(text) for text in texts]
    names = {name for settings in every for name in settings} - {_ON_THE_RATE_AXIS}
    absent = object()

    def value(settings: Mapping[str, Any], name: str) -> str:
        found = settings.get(name, absent)
        return "" if found is absent else canonical_json(found)

    return tuple(
        sorted(name for name in names if len({value(settings, name) for settings in every}) > 1)
    )


def axes_of(row: Mapping[str, Any]) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]:
    """A row's place on the three axes (setup, attack cell, defense setting), as hashable identities.

    Identities hold whole settings; labels may be cut short and are for people only. Of a search the identity is what
    was asked of it; how many settings it came to try stands for that only in rows that do not say what was asked.
    """
    setup = tuple(row[name] for name in SETUP)
    cell = (row["attack"], row["attack_settings"], rate_of(row), bool(row["adaptive"]))
    asked = search_of(row["tuning"])
    trials = row["tuning_trials"] if asked is None else None
    setting = (row["defense"], row["defense_settings"], row["tuning_mode"], trials, asked)
    return setup, cell, setting


@cache
def search_of(text: str | None) -> str | None:
    """What was asked of a search: a `tuning` column without what differs by cell; None where it says nothing."""
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return text
    if not isinstance(value, dict):
        return text or None
    return canonical_json({name: one for name, one in value.items() if name not in _BY_CELL})


@cache
def is_front(text: str | None) -> bool:
    """Whether a `tuning` column, or what `search_of` makes of one, asks for a front rather than one setting."""
    try:
        value = json.loads(text) if text else None
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("objective") == "front"


def fixed_settings(settings: str | None, tuning: str | None) -> str | None:
    """The flat settings of a `defense_settings` column that a search left as they were, as canonical JSON.

    None where the `tuning` column (or what `search_of` makes of it) does not say what was searched.
    """
    try:
        value = json.loads(tuning) if tuning else None
    except ValueError:
        return None
    space = value.get("space") if isinstance(value, dict) else None
    if not isinstance(space, dict) or not space:
        return None
    flat = settings_of(settings)
    return canonical_json({name: flat[name] for name in flat if name not in space})


def setup_labels(row: Mapping[str, Any], names: Swept) -> tuple[str, str]:
    """Labels of a row's task and PLM; a synthetic task says so, varying training stands with the PLM."""
    task = names.label(
        "task",
        row["task"],
        settings_of(row["task_settings"]),
        "synthetic" if row["synthetic"] else "",
    )
    training = settings_of(row["training_settings"])
    trained = ", ".join(
        f"{key}={shown(training[key])}"
        for key in names.varying(TRAINING, TRAINING)
        if key in training
    )
    return task, names.label("plm", row["plm"], settings_of(row["plm_settings"]), trained)


def attack_of(row: Mapping[str, Any]) -> tuple[str, str, bool]:
    """A row's attack with its settings but without its rate, as a hashable identity."""
    settings = settings_of(row["attack_settings"])
    settings.pop(_ON_THE_RATE_AXIS, None)
    return row["attack"], canonical_json(settings), bool(row["adaptive"])


def attack_label(row: Mapping[str, Any], names: Swept, rate: float | None = None) -> str:
    """Label of a row's attack: `badnets (position=end)`, with the rate where one is given."""
    return names.label(
        "attack",
        row["attack"],
        settings_of(row["attack_settings"]),
        "" if rate is None else f"rate {rate:g}",
        "adaptive" if row["adaptive"] else "",
    )


def cell_label(row: Mapping[str, Any], names: Swept) -> str:
    """Label of a row's attack cell: `badnets (rate 0.01)`; the twin's is `none (clean twin)`."""
    if row["attack"] == TWIN:
        return f"{TWIN} (clean twin)"
    return attack_label(row, names, rate_of(row))


def setting_label(row: Mapping[str, Any], names: Swept, found: bool = False) -> str:
    """Label of a row's defense setting. `found`: leave out the settings that a search found."""
    mode = row["tuning_mode"] or DEFAULT
    tuned = "" if mode == DEFAULT else f"tuned: {mode}"
    text = row["defense_settings"]
    settings = settings_of(fixed_settings(text, row["tuning"]) if found else text)
    return names.label("defense", row["defense"], settings, tuned)


class Labels:
    """Labels by identity, kept apart where two identities would read the same."""

    def __init__(self) -> None:
        self._by_identity: dict[Any, str] = {}
        self._used: dict[str, int] = defaultdict(int)

    def of(self, identity: Any, label: str) -> str:
        """The label of `identity`; the second of one text gets ` [2]`, and so on."""
        if identity not in self._by_identity:
            self._used[label] += 1
            again = self._used[label]
            self._by_identity[identity] = label if again == 1 else f"{label} [{again}]"
        return self._by_identity[identity]

"""The JSON Schema of sweep files, built from the catalog: an editor completes and checks with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from backdoor_core import catalog
from backdoor_core.method import Family, Method
from backdoor_core.space import Range
from backdoor_core.spec import TuningMode
from sweeps.config import (
    AGAINST,
    ATTACK_SEEDS,
    DEFAULT_SEEDS,
    NAME_PATTERN,
    SECTIONS,
    TUNE,
    Resources,
    SweepTraining,
)
from sweeps.sampling import SAMPLERS, argument_types
from sweeps.tuning_settings import TuningSettings

_OWN_KEYWORDS = ("title", "hooks", "space")
_SEEDS = [
    {"type": "integer", "minimum": 1},
    {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
]
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_SPACE = {
    "anyOf": [
        {"type": "null"},
        {"type": "array", "minItems": 1},
        {
            "type": "object",
            "properties": {
                "low": {"type": "number"},
                "high": {"type": "number"},
                "log": {"type": "boolean"},
            },
            "required": ["low", "high"],
            "additionalProperties": False,
        },
    ]
}
_TUNE = {
    "description": "the settings to search: true (all that declare a space), names, or names with spaces",
    "anyOf": [
        {"type": "boolean"},
        {"type": "string"},
        _NAMES,
        {"type": "object", "additionalProperties": _SPACE, "minProperties": 1},
    ],
}
OWN_KEYS: Mapping[str, dict[str, Any]] = {
    "attack": {ATTACK_SEEDS: {"description": "the sweep's first so many seeds, or which",
                              "oneOf": _SEEDS}},
    "defense": {AGAINST: {"description": "the attacks that it is tried against (default: all)",
                          "anyOf": [{"type": "string"}, _NAMES]},
                TUNE: _TUNE},
}  # fmt: skip
"""What an entry has beside the settings of its method."""
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def sweep_schema() -> dict[str, Any]:
    """The schema of sweep files: every method with its settings, each of which may be an axis."""
    definitions: dict[str, Any] = {
        "range": _plain(Range.model_json_schema()),
        "training": _plain(SweepTraining.model_json_schema()),
        "resources": _plain(Resources.model_json_schema()),
        "sampler": _sampler(),
        "tuning": _tuning(),
    }
    for family in SECTIONS.values():
        definitions[family] = {"anyOf": _choices(family, definitions)}
    chain = {
        "type": "object",
        "description": "defenses one after the other",
        "properties": {"chain": _list_of("defense"), **OWN_KEYS["defense"]},
        "required": ["chain"],
        "additionalProperties": False,
    }
    sections = {section: _list_of(family) for section, family in SECTIONS.items()}
    sections["defenses"]["items"] = {"anyOf": [{"$ref": "#/$defs/defense"}, chain]}
    return {
        "$schema": _DRAFT,
        "title": "Sweep file",
        "type": "object",
        "properties": {
            "name": {
                "type": "string",
                "pattern": NAME_PATTERN,
                "description": "name of the sweep and of its output folder",
            },
            **sections,
            "seeds": {
                "description": "how many (3 means 0, 1, 2), or which",
                "default": DEFAULT_SEEDS,
                "oneOf": _SEEDS,
            },
            "training": {"$ref": "#/$defs/training"},
            "tuning": {"$ref": "#/$defs/tuning"},
            "resources": {"$ref": "#/$defs/resources"},
            "slots": {"type": "integer", "minimum": 1, "description": "how many jobs run at once"},
        },
        "required": ["name", *SECTIONS],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _tuning() -> dict[str, Any]:
    """The section `tuning`."""
    found: dict[str, Any] = _plain(TuningSettings.model_json_schema())
    inner = found.pop("$defs")
    properties: dict[str, Any] = found["properties"]
    described = {name: one.get("description", "") for name, one in properties.items()}
    modes = {"enum": list(get_args(TuningMode))}
    properties["modes"] = {
        "anyOf": [modes, {"type": "array", "items": modes, "minItems": 1}],
        "description": described["modes"],
    }
    properties["limits"] = inner["Limits"]
    for name in ("sampler", "post_hoc_sampler"):
        properties[name] = {"$ref": "#/$defs/sampler", "description": described[name]}
    return found


def _sampler() -> dict[str, Any]:
    """A sampler's name, or a mapping with its name and arguments."""
    mappings = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                **{key: {"type": kinds} for key, kinds in argument_types(name).items()},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
        for name in SAMPLERS
    ]
    return {"anyOf": [{"enum": list(SAMPLERS)}, *mappings]}


def _list_of(family: str) -> dict[str, Any]:
    return {"type": "array", "minItems": 1, "items": {"$ref": f"#/$defs/{family}"}}


def _choices(family: Family, definitions: dict[str, Any]) -> list[dict[str, Any]]:
    """The bare names, the mapping of each method, and the user's own files."""
    bare: list[dict[str, Any]] = []
    mappings: list[dict[str, Any]] = []
    for name in catalog.names(family):
        method = catalog.method_class(family, name)
        found = method.model_json_schema(ref_template=f"#/$defs/{family}.{name}.{{model}}")
        for inner, value in found.pop("$defs", {}).items():
            definitions[f"{family}.{name}.{inner}"] = _plain(value)
        required = list(found.get("required", ()))
        summary = method.summary()
        if not required:
            bare.append({"const": name, "description": summary})
        own_keys = OWN_KEYS.get(family, {})
        mappings.append(
            {
                "type": "object",
                "description": summary,
                "properties": {"name": {"const": name}, **own_keys, **_properties(method, found)},
                "required": ["name", *required],
                "additionalProperties": False,
            }
        )
    own = {"type": "string", "pattern": r"\.py$", "description": "a file of your own"}
    mapping_of_own = {"type": "object", "properties": {"name": own}, "required": ["name"]}
    return [*bare, own, *mappings, mapping_of_own]


def _properties(method: type[Method], found: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _axis(value) for name, value in found.get("properties", {}).items()}


def _axis(value: Mapping[str, Any]) -> dict[str, Any]:
    """A setting, a list of its values, or (for numbers) a range of them."""
    inner = _plain(value)
    outer = {key: inner.pop(key) for key in ("description", "default") if key in inner}
    choices = [inner, {"type": "array", "items": inner, "minItems": 1}]
    kinds = {inner.get("type"), *(one.get("type") for one in inner.get("anyOf", ()))}
    if kinds & {"number", "integer"}:
        choices.append({"$ref": "#/$defs/range"})
    return {**outer, "anyOf": choices}


def _plain(value: Any) -> Any:
    """A schema without pydantic's titles and the keywords of this project."""
    if isinstance(value, Mapping):
        return {
            key: {name: _plain(one) for name, one in inner.items()}
            if key == "properties"
            else _plain(inner)
            for key, inner in value.items()
            if key not in _OWN_KEYWORDS
        }
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value

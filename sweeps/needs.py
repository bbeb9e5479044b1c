"""What the rows of a ledger need of a store: to be resumed, reported, exported and asked again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from backdoor_core.errors import SweepError
from backdoor_core.pipeline import SCORED_SPLITS, Pipeline, split_key
from backdoor_core.spec import TrialSpec, digest
from backdoor_core.trial import spec_of


@dataclass
class Needs:
    """The keys of artifacts that rows need, and what named steps of their defenses are made of."""

    keys: set[str] = field(default_factory=set)
    unreadable: int = 0
    """Rows whose trial this version cannot read, or whose methods are not here: what they need is not known."""
    of_other_code: int = 0
    """Rows whose artifacts have other keys in this version, which cannot use them."""

    def __post_init__(self) -> None:
        self._steps: dict[tuple[str, str, str], list[tuple[dict[str, Any], dict[str, str]]]] = {}
        self._cells: set[str] = set()

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds what rows need (columns `spec`, `status`, `observations` and `attack_key`)."""
        for row in rows:
            if row["status"] == "skipped":
                continue
            try:
                pipeline = Pipeline(spec_of(row))
                known = digest("attacked", pipeline.undefended.victim_key, pipeline.triggers_key)
                self.add(pipeline)
            except (SweepError, ValueError):
                self.unreadable += 1
                continue
            self.of_other_code += known != row["attack_key"]
            if row["observations"]:
                self._add_observed(str(row["observations"]))

    def add(self, pipeline: Pipeline) -> None:
        """Adds what one trial needs, but for observations whose key its row alone has."""
        cell = _cell(pipeline.spec)
        if cell not in self._cells:
            self._cells.add(cell)
            for one in (pipeline.twin, pipeline.undefended):
                self._add_victim(one)
            self.keys |= {pipeline.gathered_key, pipeline.triggers_key,
                          pipeline.undefended.triggered_observed_key(pipeline.triggers_key),
                          pipeline.twin.triggered_observed_key(pipeline.triggers_key)}  # fmt: skip
        self._add_victim(pipeline)
        self._add_observed(pipeline.observed_key)
        self.keys |= {pipeline.filtered_key(index) for index in pipeline.overriding("filter")}
        for index, spec in enumerate(pipeline.spec.defenses):
            identity = spec.identity()
            found = self._steps.setdefault(_method(identity), [])
            entry = (identity["settings"], pipeline.step_inputs(index))
            if entry not in found[-1:]:
                found.append(entry)

    def _add_victim(self, pipeline: Pipeline) -> None:
        self.keys |= {pipeline.task_key, pipeline.plm_key, pipeline.tokens_key, pipeline.poison_key,
                      pipeline.supplied_key, pipeline.triggers_key, pipeline.victim_key,
                      pipeline.clean_observed_key}  # fmt: skip

    def _add_observed(self, key: str) -> None:
        self.keys |= {key, *(split_key(key, split) for split in SCORED_SPLITS)}

    def has_step(self, step: Mapping[str, Any]) -> bool:
        """Whether any defense would find this step: `step` is what its artifact's facts say."""
        settings, inputs = step["method"]["settings"], step["inputs"]
        return any(
            settings.items() <= asked.items() and inputs.items() <= given.items()
            for asked, given in self._steps.get(_method(step["method"]), ())
        )


def _method(identity: Mapping[str, Any]) -> tuple[str, str, str]:
    return identity["family"], identity["name"], identity["code"]


def _cell(spec: TrialSpec) -> str:
    """What trials share that differ in their defenses alone."""
    return spec.model_copy(update={"defenses": (), "tuning": type(spec.tuning)()}).key

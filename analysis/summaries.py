"""Means and intervals over seeds, for each attack cell and defense setting.

One `Summary` is one cell x defense setting with its seeds. The clean twin (attack `none`) is one of the cells.
"""

from __future__ import annotations

import gc
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.columns import (
    TWIN,
    Labels,
    Swept,
    attack_label,
    attack_of,
    cell_label,
    setting_label,
    settings_of,
    setup_labels,
    swept,
)
from analysis.grouping import Group, Grouping, grouped
from analysis.scan import Scan
from analysis.seeds import NOTHING, Estimate, over_seeds
from analysis.table import ResultTable
from analysis.totals import Totals, totals_of
from backdoor_core.record import wilson

METRICS = (
    "cacc", "asr", "asr_max", "asrd", "cacc_drop", "frr", "far",
    "triggered_accuracy", "localisation", "auroc",
)  # fmt: skip
REFERENCES = ("victim_cacc", "victim_asr", "twin_cacc", "twin_asr")
_SIGNED = frozenset({"asrd", "cacc_drop"})
_MEANS = (*METRICS, *REFERENCES, "fit_s")
_OWN_INTERVALS = ("cacc_low", "cacc_high", "asr_low", "asr_high", "n_clean", "n_triggered")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One attack cell x defense setting of one setup (task, PLM, training), over its seeds.

    Labels (`task`, `plm`, `cell`, `setting`) are for people and unique within one set of summaries;
    `attack` and `defense` are catalog names, `attack_setting` is the label of the cell without its rate.
    `seeds` are those with numbers; `failed` and `skipped` count the trials without, but not those that a later row
    of the same cell, setting and seed replaced with numbers. `flags` counts rows by
    flag. `superseded` counts rows left out because a later one (other code, files or tuning) measured the
    same cell, setting and seed.
    """

    task: str
    plm: str
    attack: str
    attack_setting: str
    cell: str
    poison_rate: float | None
    adaptive: bool
    defense: str
    setting: str
    settings: Mapping[str, Any]
    tuning_mode: str
    synthetic: bool
    seeds: Sequence[int] = ()
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    flags: Mapping[str, int] = field(default_factory=dict)
    failed: int = 0
    skipped: int = 0
    superseded: int = 0
    fit_s: float | None = None

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm

    @property
    def is_twin(self) -> bool:
        """Whether the cell is the clean twin: no attack."""
        return self.attack == TWIN

    def of(self, metric: str) -> Estimate:
        """The estimate of a metric; an empty one where no seed has it."""
        return self.estimates.get(metric, NOTHING)


def estimate(metric: str, rows: Sequence[Mapping[str, Any]]) -> Estimate:
    """The estimate of a metric over rows of different seeds; nulls and NaN are left out."""
    known = [row for row in rows if row[metric] is not None and math.isfinite(row[metric])]
    if not known:
        return NOTHING
    values = [float(row[metric]) for row in known]
    if len(values) == 1:
        low, high = _own_interval(metric, known[0])
        return Estimate(mean=values[0], low=low, high=high, n=1)
    return over_seeds(values, floor=-1.0 if metric in _SIGNED else 0.0, ceiling=1.0)


def _own_interval(metric: str, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is not None and high is not None:
        return float(low), float(high)
    rows = {"frr": row.get("n_clean"), "far": row.get("n_triggered")}.get(metric)
    return wilson(float(row[metric]), int(rows)) if rows else (None, None)


def summaries(results: ResultTable) -> tuple[Summary, ...]:
    """One summary for each cell x defense setting, sorted by task, PLM, cell and setting.

    Trials that failed or were skipped are counted in theirs, so a cell in which every trial failed stands
    there too, without numbers. Reads only the columns that summaries are made of, a block of rows at a time.
    """
    with _no_search_for_cycles():
        return _summaries(results)


@contextmanager
def _no_search_for_cycles() -> Iterator[None]:
    """Stops the garbage collector's passes, which would look at all of many small new values again and again.

    None of them refers back to another, so nothing waits for the collector.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _summaries(results: ResultTable) -> tuple[Summary, ...]:
    grouping = grouped(results)
    names = swept(grouping.examples)
    totals = totals_of(results.scan, grouping.of, len(grouping.groups), _MEANS)
    estimates = _estimates(results.scan, grouping, totals)
    flags, fits = totals.flags, totals.mean("fit_s")
    words = _Words(names)
    return tuple(
        _summary(group, words, estimates=estimates[i], flags=flags.get(i, {}), fit_s=fits[i])
        for i, group in enumerate(grouping.groups)
    )


class _Words:
    """The labels of one set of summaries; each distinct part of an identity is worded once."""

    def __init__(self, names: Swept) -> None:
        self._names = names
        self._labels = {kind: Labels() for kind in ("task", "plm", "attack", "cell", "setting")}
        self._known: dict[Any, Any] = {}

    def setup(self, group: Group) -> tuple[str, str]:
        """Task and PLM."""
        key = ("setup", group.setup, bool(group.last["synthetic"]))
        if key not in self._known:
            (task, task_settings, *plm), texts = group.setup, setup_labels(group.last, self._names)
            self._known[key] = (
                self._labels["task"].of((task, task_settings), texts[0]),
                self._labels["plm"].of(tuple(plm), texts[1]),
            )
        found: tuple[str, str] = self._known[key]
        return found

    def cell(self, group: Group) -> tuple[str, str]:
        """The attack's setting, and the cell."""
        key = ("cell", group.cell)
        if key not in self._known:
            attack = attack_of(group.last), attack_label(group.last, self._names)
            cell = cell_label(group.last, self._names)
            self._known[key] = (
                self._labels["attack"].of(*attack),
                self._labels["cell"].of(group.cell, cell),
            )
        found: tuple[str, str] = self._known[key]
        return found

    def setting(self, group: Group) -> tuple[str, Mapping[str, Any]]:
        """The defense's setting, and its settings."""
        key = ("setting", group.setting, group.found)
        if key not in self._known:
            text = setting_label(group.last, self._names, found=group.found)
            self._known[key] = (
                self._labels["setting"].of(group.setting, text),
                {} if group.found else settings_of(group.last["defense_settings"]),
            )
        label, settings = self._known[key]
        return label, dict(settings)


def _summary(group: Group, words: _Words, **numbers: Any) -> Summary:
    last = group.last
    task, plm = words.setup(group)
    attack_setting, cell = words.cell(group)
    setting, settings = words.setting(group)
    return Summary(
        task=task,
        plm=plm,
        attack=last["attack"],
        attack_setting=attack_setting,
        cell=cell,
        poison_rate=group.cell[2],
        adaptive=bool(last["adaptive"]),
        defense=last["defense"],
        setting=setting,
        settings=settings,
        tuning_mode=last["tuning_mode"] or "default",
        synthetic=group.synthetic,
        seeds=group.seeds,
        failed=group.failed,
        skipped=group.skipped,
        superseded=group.superseded,
        **numbers,
    )


def _estimates(scan: Scan, grouping: Grouping, totals: Totals) -> list[dict[str, Estimate]]:
    """The estimates of each group, metric by name."""
    found: list[dict[str, Estimate]] = [{} for _ in grouping.groups]
    alone = _alone(scan, grouping, totals)
    for metric in (*METRICS, *REFERENCES):
        n, mean, low, high = totals.intervals(metric, floor=-1.0 if metric in _SIGNED else 0.0)
        for i, (count, *numbers) in enumerate(zip(n, mean, low, high, strict=True)):
            if count > 1:
                found[i][metric] = Estimate(
                    mean=numbers[0], low=numbers[1], high=numbers[2], n=count
                )
            else:
                found[i][metric] = estimate(metric, alone[i, metric]) if count else NOTHING
    return found


def _alone(
    scan: Scan, grouping: Grouping, totals: Totals
) -> dict[tuple[int, str], list[dict[str, Any]]]:
    """The rows of the groups in which only one seed has a metric: its interval is the row's own."""
    lone = {metric: totals.counts(metric) == 1 for metric in (*METRICS, *REFERENCES)}
    groups = np.append(np.logical_or.reduce(list(lone.values())), False)
    rows = np.flatnonzero(groups[grouping.of])
    found: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    table = scan.take(rows, (*METRICS, *REFERENCES, *_OWN_INTERVALS)).to_pylist()
    for group, row in zip(grouping.of[rows].tolist(), table, strict=True):
        for metric, among in lone.items():
            if among[group]:
                found[group, metric].append(row)
    return found

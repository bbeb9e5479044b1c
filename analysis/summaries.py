"""Means and intervals over seeds, for each attack cell and defense setting.

One `Summary` is one cell x defense setting with its seeds. The clean twin (attack `none`) is one of the cells.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy.special import stdtrit

from analysis.columns import (
    TWIN,
    Labels,
    Swept,
    attack_label,
    attack_of,
    axes_of,
    cell_label,
    rate_of,
    setting_label,
    settings_of,
    setup_labels,
    swept,
)
from analysis.table import ResultTable
from backdoor_core.record import wilson

METRICS = (
    "cacc", "asr", "asr_max", "asrd", "cacc_drop", "frr", "far",
    "triggered_accuracy", "localisation", "auroc",
)  # fmt: skip
REFERENCES = ("victim_cacc", "victim_asr", "twin_cacc", "twin_asr")
_SIGNED = frozenset({"asrd", "cacc_drop"})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over `n` seeds with a 95 % interval.

    With two or more seeds it is Student's t-interval over seeds, cut to what the metric can be; with one
    seed the row's own Wilson interval, and None where the metric has none.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    n: int = 0


NOTHING = Estimate()


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One attack cell x defense setting of one setup (task, PLM, training), over its seeds.

    Labels (`task`, `plm`, `cell`, `setting`) are for people and unique within one set of summaries;
    `attack` and `defense` are catalog names, `attack_setting` is the label of the cell without its rate.
    `seeds` are those with numbers; `failed` and `skipped` count the trials without. `flags` counts rows by
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
    seeds: tuple[int, ...] = ()
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
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        low, high = _own_interval(metric, known[0])
        return Estimate(mean=mean, low=low, high=high, n=1)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
    floor = -1.0 if metric in _SIGNED else 0.0
    return Estimate(mean=mean, low=max(floor, mean - half), high=min(1.0, mean + half), n=n)


def _own_interval(metric: str, row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    if low is not None and high is not None:
        return float(low), float(high)
    rows = {"frr": row.get("n_clean"), "far": row.get("n_triggered")}.get(metric)
    return wilson(float(row[metric]), int(rows)) if rows else (None, None)


def summaries(results: ResultTable) -> tuple[Summary, ...]:
    """One summary for each cell x defense setting, sorted by task, PLM, cell and setting.

    Trials that failed or were skipped are counted in theirs, so a cell in which every trial failed stands
    there too, without numbers.
    """
    rows = sorted(results.rows(), key=lambda row: (row["finished_at"] or 0.0, row["key"]))
    names = swept(rows)
    searched = _searched(rows)
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        setup, cell, setting = axes_of(row)
        found = _search_of(row) in searched
        if found:
            setting = (setting[0], None, *setting[2:])
        groups[(setup, cell, setting, found)].append(row)
    ordered = sorted(groups.items(), key=lambda item: _reading_order(item[0]))
    labels = {kind: Labels() for kind in ("task", "plm", "attack", "cell", "setting")}
    return tuple(_summary(identity, group, names, labels) for identity, group in ordered)


def _search_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    setup, _, setting = axes_of(row)
    return setup, setting[0], setting[2], setting[3]


def _searched(rows: Iterable[Mapping[str, Any]]) -> set[tuple[Any, ...]]:
    """The searches (setup, defense, tuning mode, trials) that left one row for each cell and seed.

    There the settings are what the search found, which may differ from cell to cell and seed to seed: they
    are a result, and no part of what is compared.
    """
    counts: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        if (row["tuning_mode"] or "default") != "default":
            counts[(_search_of(row), axes_of(row)[1], row["seed"])] += 1
    several = {search for (search, _, _), count in counts.items() if count > 1}
    return {search for search, _, _ in counts} - several


def _reading_order(identity: tuple[Any, ...]) -> tuple[Any, ...]:
    """Sorts setups and methods by name, `none` first, and numbers within settings as numbers."""
    setup, (attack, attack_settings, rate, adaptive), (defense, settings, *tuning), _ = identity
    bare = attack_of({"attack": attack, "attack_settings": attack_settings, "adaptive": adaptive})
    values = tuple(
        (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))
        for _, value in sorted(settings_of(settings).items())
    )
    return (
        tuple(str(part) for part in setup),
        (attack != TWIN, *bare, rate or 0.0),
        (defense != TWIN, defense, values, str(tuning)),
    )


def _summary(
    identity: tuple[Any, ...],
    group: Sequence[Mapping[str, Any]],
    names: Swept,
    labels: Mapping[str, Labels],
) -> Summary:
    (task, task_settings, *plm), cell, setting, found = identity
    last = group[-1]
    ok = {row["seed"]: row for row in group if row["status"] == "ok"}
    rows = [ok[seed] for seed in sorted(ok)]
    statuses = Counter(row["status"] for row in group)
    task_text, plm_text = setup_labels(last, names)
    fits = [row["fit_s"] for row in rows if row["fit_s"] is not None]
    return Summary(
        task=labels["task"].of((task, task_settings), task_text),
        plm=labels["plm"].of(tuple(plm), plm_text),
        attack=last["attack"],
        attack_setting=labels["attack"].of(attack_of(last), attack_label(last, names)),
        cell=labels["cell"].of(cell, cell_label(last, names)),
        poison_rate=rate_of(last),
        adaptive=bool(last["adaptive"]),
        defense=last["defense"],
        setting=labels["setting"].of(setting, setting_label(last, names, found=found)),
        settings={} if found else settings_of(last["defense_settings"]),
        tuning_mode=last["tuning_mode"] or "default",
        synthetic=any(row["synthetic"] for row in group),
        seeds=tuple(sorted(ok)),
        estimates={metric: estimate(metric, rows) for metric in (*METRICS, *REFERENCES)},
        flags=dict(sorted(Counter(flag for row in rows for flag in row["flags"] or ()).items())),
        failed=statuses["failed"],
        skipped=statuses["skipped"],
        superseded=statuses["ok"] - len(ok),
        fit_s=math.fsum(fits) / len(fits) if fits else None,
    )

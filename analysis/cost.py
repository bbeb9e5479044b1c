"""What a defense setting costs: seconds, memory, hours by kind of device, the search, hours for what it removes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import DEFAULT, SETUP, TWIN, search_of
from analysis.exports import NONE, with_interval
from analysis.groups import Group, groups
from analysis.seeds import NOTHING, Estimate, over_seeds
from analysis.table import ResultTable

_HOUR_S = 3600.0
_TENTH = 0.1

Undefended = Mapping[tuple[tuple[str, str], str, int], Mapping[str, Any]]
_Asked = frozenset[str | None]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One defense setting of one setup over all its finished trials.

    `train_s`, `fit_s`, `eval_s` are means a trial, `peak_rss_gib` the largest. Rows share work (one victim for all
    its repairs, one fit for all thresholds); here every trial counts as if it had run alone, but for the training
    of a victim that is the undefended one's too, which counts under `none`. So `cpu_hours` and
    `accelerator_hours` are sums of fit, evaluation and own training; a device whose name starts with `cpu` is a
    CPU, any other an accelerator.

    `search_s` is the searches' seconds for each trial that they chose for, and None where nothing was searched, or no
    tuning table says how long (`search_known` is False then). `asrd_removed` is the undefended victim's ASRD minus
    this one's, over attack cells and then seeds. `extra_hours` is what one trial takes more than the undefended
    victim of the same cell and seed, with the search; `hours_for_a_tenth` is that for each 0.1 of ASRD removed: None
    where nothing is removed, or where the search's seconds are not known.
    """

    task: str
    plm: str
    defense: str
    setting: str
    tuning_mode: str
    trials: int
    train_s: float | None
    fit_s: float | None
    eval_s: float | None
    peak_rss_gib: float | None
    devices: tuple[str, ...]
    cpu_hours: float
    accelerator_hours: float
    search_s: float | None = None
    search_known: bool = True
    asrd_removed: Estimate = NOTHING
    extra_hours: float | None = None
    hours_for_a_tenth: float | None = None

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm


def costs(results: ResultTable, tuning: Iterable[Mapping[str, Any]] = ()) -> tuple[Cost, ...]:
    """The cost of each defense setting, in the order of `summaries`.

    `tuning` are the rows of `tuning_rows`. Every row of a search counts, failed and pruned ones too, and is shared
    out evenly among the trials of that setup, defense and tuning mode (that were asked the same, see `search_of`, where
    several searches of one mode stand side by side). Adaptive attacks are left out.
    """
    settings: dict[tuple[tuple[str, str], str], list[Group]] = defaultdict(list)
    undefended: dict[tuple[tuple[str, str], str, int], Mapping[str, Any]] = {}
    for group in groups(results):
        if group.adaptive or not group.rows:
            continue
        settings[(group.setup, group.setting)].append(group)
        if group.defense == TWIN:
            undefended |= {(group.setup, group.cell, seed): row for seed, row in group.rows.items()}
    searched = list(tuning)
    searches: dict[tuple[Any, ...], dict[_Asked, int]] = defaultdict(lambda: defaultdict(int))
    for members in settings.values():
        rows = sum(len(group.rows) for group in members)
        searches[_search_of(members[0])][_asked(members)] += rows
    return tuple(
        _cost(members, undefended, _search_s(members, searched, searches[_search_of(members[0])]))
        for members in settings.values()
    )


def _search_of(group: Group) -> tuple[Any, ...]:
    return (*group.identity, group.defense, group.tuning_mode)


def _asked(members: Sequence[Group]) -> _Asked:
    """What was asked of the searches that chose for these trials; the points of a front were asked the same."""
    return frozenset(search_of(row["tuning"]) for _, row in _trials(members))


def _search_s(
    members: Sequence[Group], tuning: Sequence[Mapping[str, Any]], trials: Mapping[_Asked, int]
) -> float | None:
    """Seconds of search for each trial; None where there was none, or no row tells.

    `trials` are those of the setup, defense and tuning mode, by what was asked.
    """
    if members[0].tuning_mode == DEFAULT:
        return None
    wanted, asked = _search_of(members[0]), _asked(members)
    seconds = [
        row["seconds"]
        for row in tuning
        if (*(row[name] for name in SETUP), row["defense"], row["tuning_mode"]) == wanted
        and (len(trials) == 1 or search_of(row["tuning"]) in asked)
    ]
    known = [value for value in seconds if value is not None]
    return math.fsum(known) / trials[asked] if known else None


def _trials(members: Iterable[Group]) -> Iterator[tuple[Group, Mapping[str, Any]]]:
    for group in members:
        for row in group.rows.values():
            yield group, row


def _cost(members: Sequence[Group], undefended: Undefended, search_s: float | None) -> Cost:
    first = members[0]
    rows = [row for _, row in _trials(members)]
    hours = {True: 0.0, False: 0.0}
    for group, row in _trials(members):
        own = _own_train_s(row, undefended.get((group.setup, group.cell, row["seed"])))
        on_cpu = (row["device"] or "").startswith("cpu")
        hours[on_cpu] += (_seconds(row, "fit_s") + _seconds(row, "eval_s") + own) / _HOUR_S
    peaks = [row["peak_rss_gib"] for row in rows if row["peak_rss_gib"] is not None]
    known = search_s is not None or first.tuning_mode == DEFAULT
    removed, extra = _against_undefended(members, undefended, search_s or 0.0)
    pays = known and extra is not None and removed.mean is not None and removed.mean > 0
    return Cost(
        task=first.task,
        plm=first.plm,
        defense=first.defense,
        setting=first.setting,
        tuning_mode=first.tuning_mode,
        trials=len(rows),
        train_s=_mean(rows, "train_s"),
        fit_s=_mean(rows, "fit_s"),
        eval_s=_mean(rows, "eval_s"),
        peak_rss_gib=max(peaks, default=None),
        devices=tuple(sorted({row["device"] for row in rows if row["device"]})),
        cpu_hours=hours[True],
        accelerator_hours=hours[False],
        search_s=search_s,
        search_known=known,
        asrd_removed=removed,
        extra_hours=extra if known else None,
        hours_for_a_tenth=(extra or 0.0) * _TENTH / (removed.mean or 1.0) if pays else None,
    )


def _seconds(row: Mapping[str, Any], column: str) -> float:
    return float(row[column] or 0.0)


def _mean(rows: Sequence[Mapping[str, Any]], column: str) -> float | None:
    known = [row[column] for row in rows if row[column] is not None]
    return math.fsum(known) / len(known) if known else None


def _own_train_s(row: Mapping[str, Any], base: Mapping[str, Any] | None) -> float:
    """Seconds of training that are this row's: none where it took over the undefended victim.

    A victim that was taken over has the very seconds of the undefended one, to the last bit.
    """
    if base is not None and row["defense"] != TWIN and row["train_s"] == base["train_s"]:
        return 0.0
    return _seconds(row, "train_s")


def _against_undefended(
    members: Sequence[Group], undefended: Undefended, search_s: float
) -> tuple[Estimate, float | None]:
    """ASRD removed over seeds, and a trial's hours beyond those of the undefended victim (never below 0)."""
    removed: dict[int, list[float]] = defaultdict(list)
    extra: list[float] = []
    for group, row in _trials(members):
        base = undefended.get((group.setup, group.cell, row["seed"]))
        if base is None or group.defense == TWIN:
            continue
        if row["asrd"] is None or base["asrd"] is None:
            continue
        removed[row["seed"]].append(base["asrd"] - row["asrd"])
        mine = sum(_seconds(row, name) for name in ("train_s", "fit_s", "eval_s"))
        extra.append(mine - _seconds(base, "train_s") - _seconds(base, "eval_s") + search_s)
    if not extra:
        return NOTHING, None
    means = (math.fsum(values) / len(values) for values in removed.values())
    hours = max(0.0, math.fsum(extra) / len(extra) / _HOUR_S)
    return over_seeds(means, floor=-1.0, ceiling=1.0), hours


def cost_table(found: Sequence[Cost]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of costs (of one setup); columns that say nothing anywhere are left out."""
    titles = ["Defense setting", "Trials", "Train, s", "Fit, s", "Evaluate, s", "Search, s"]
    titles += ["Peak memory, GiB", "CPU hours", "Accelerator hours"]
    titles += ["ASRD removed", "Hours for each 0.1 of ASRD"]
    rows = [
        [
            cost.setting,
            str(cost.trials),
            *(_shown(value, 1) for value in (cost.train_s, cost.fit_s, cost.eval_s)),
            _shown(cost.search_s, 1) if cost.search_known else "not recorded",
            _shown(cost.peak_rss_gib, 2),
            _shown(cost.cpu_hours or None, 3),
            _shown(cost.accelerator_hours or None, 3),
            with_interval(cost.asrd_removed),
            _shown(cost.hours_for_a_tenth, 4),
        ]
        for cost in found
    ]
    kept = [place for place in range(len(titles)) if any(row[place] != NONE for row in rows)]
    return [titles[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _shown(value: float | None, decimals: int) -> str:
    return NONE if value is None else f"{value:.{decimals}f}"

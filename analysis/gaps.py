"""What honest tuning loses against tuning that sees the attack: each tuning mode beside `oracle`, seed by seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import DEFAULT, ORACLE, TWIN
from analysis.exports import with_interval
from analysis.groups import Group, groups
from analysis.seeds import Estimate, over_seeds
from analysis.table import ResultTable

HONEST_MODES = ("clean-val", "pseudo", "transfer", DEFAULT)
"""Tuning modes that do not see the attack that is defended against, in the order in which they are listed."""


@dataclass(frozen=True, kw_only=True)
class TuningGap:
    """One honest way to choose a defense's settings against `oracle`, in one attack cell.

    `asr` and `cacc_drop` are means over seeds of honest minus oracle of the same seed, with the t-interval of
    paired differences: an `asr` above zero is what not knowing the attack costs. `pairs` seeds have an ASR in
    both; `unpaired` seeds only in one of them, and those are left out.
    """

    task: str
    plm: str
    cell: str
    defense: str
    tuning_mode: str
    setting: str
    trials: int
    oracle: str
    oracle_trials: int
    asr: Estimate
    cacc_drop: Estimate
    pairs: int
    unpaired: int

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm


@dataclass(frozen=True)
class _Search:
    """The rows of one way of choosing, by seed; of several rows of a seed the one that finished last."""

    group: Group
    rows: Mapping[int, Mapping[str, Any]]


def tuning_gaps(results: ResultTable) -> tuple[TuningGap, ...]:
    """Every honest tuning mode against `oracle` of the same setup, attack cell and defense.

    What a search found may differ from seed to seed and is no part of what is paired. With mode `default` each
    setting that the sweep file names is compared by itself. Searches of several lengths (`tuning_trials`)
    are compared at equal length where both ran it, else each with each. Cells without both are not listed.
    """
    ways: dict[tuple[Any, ...], dict[str, dict[tuple[Any, ...], list[Group]]]] = defaultdict(
        lambda: defaultdict(lambda: defaultdict(list))
    )
    for group in groups(results):
        if group.is_twin or group.defense == TWIN or not group.rows:
            continue
        chosen = (group.setting,) if group.tuning_mode == DEFAULT else ()
        place = ways[(group.setup, group.cell, group.defense)]
        place[group.tuning_mode][(group.tuning_trials, *chosen)].append(group)
    return tuple(
        _gap(_merged(honest), _merged(oracle))
        for modes in ways.values()
        for mode in HONEST_MODES
        for key, honest in modes.get(mode, {}).items()
        for oracle in _rivals(modes.get(ORACLE, {}), key[0])
    )


def _rivals(oracles: Mapping[tuple[Any, ...], list[Group]], trials: int) -> list[list[Group]]:
    equal = oracles.get((trials,))
    return [equal] if equal is not None else list(oracles.values())


def _merged(same: Sequence[Group]) -> _Search:
    every = [(seed, row) for group in same for seed, row in group.rows.items()]
    every.sort(key=lambda item: (item[1]["finished_at"] or 0.0, item[1]["key"]))
    return _Search(same[0], dict(every))


def _gap(honest: _Search, oracle: _Search) -> TuningGap:
    mine = {seed for seed, row in honest.rows.items() if row["asr"] is not None}
    theirs = {seed for seed, row in oracle.rows.items() if row["asr"] is not None}
    both = sorted(mine & theirs)
    return TuningGap(
        task=honest.group.task,
        plm=honest.group.plm,
        cell=honest.group.cell,
        defense=honest.group.defense,
        tuning_mode=honest.group.tuning_mode,
        setting=honest.group.setting,
        trials=honest.group.tuning_trials,
        oracle=oracle.group.setting,
        oracle_trials=oracle.group.tuning_trials,
        asr=_paired("asr", honest, oracle, both),
        cacc_drop=_paired("cacc_drop", honest, oracle, both),
        pairs=len(both),
        unpaired=len(mine ^ theirs),
    )


def _paired(metric: str, honest: _Search, oracle: _Search, seeds: Sequence[int]) -> Estimate:
    pairs = [(honest.rows[seed][metric], oracle.rows[seed][metric]) for seed in seeds]
    known = [a - b for a, b in pairs if a is not None and b is not None]
    # Both drops are from the same victim's CACC, so their difference is one of two accuracies.
    return over_seeds(known, floor=-1.0, ceiling=1.0)


def gap_table(gaps: Sequence[TuningGap]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of gaps (of one setup)."""
    titles = ["Attack cell", "Defense", "Chosen by", "Trials", "Oracle's trials"]
    titles += ["Pairs of seeds", "ASR above oracle's", "CACC drop above oracle's"]
    return titles, [
        [
            gap.cell,
            gap.defense if gap.tuning_mode != DEFAULT else gap.setting,
            gap.tuning_mode,
            str(gap.trials),
            str(gap.oracle_trials),
            str(gap.pairs),
            with_interval(gap.asr),
            with_interval(gap.cacc_drop),
        ]
        for gap in gaps
    ]

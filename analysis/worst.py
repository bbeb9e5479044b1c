"""The worst case over attacks: what a defense setting guarantees, rather than what it does on average."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.columns import ORACLE
from analysis.seeds import NOTHING, Estimate
from analysis.summaries import Summary


@dataclass(frozen=True, kw_only=True)
class Worst:
    """The worst estimate of one metric, and the attack cell that it comes from (None: no cell has it)."""

    estimate: Estimate = NOTHING
    cell: str | None = None


@dataclass(frozen=True, kw_only=True)
class WorstCase:
    """One defense setting over all attack cells of one setup.

    `asr`, `asrd` are the largest means over attack cells; `cacc_drop` is the largest and `cacc` the smallest
    over attack cells and the clean twin, since a defender pays on a clean model too. Adaptive attacks aim at
    one defense, so they would make the comparison unequal: they are left out here. `cells` of
    `all_cells` have an ASR; a setting that lacks some is not `complete` and must not be ranked.
    """

    task: str
    plm: str
    defense: str
    setting: str
    settings: Mapping[str, Any]
    tuning_mode: str
    cells: int
    all_cells: int
    seeds: int
    asr: Worst
    asrd: Worst
    cacc: Worst
    cacc_drop: Worst

    @property
    def setup(self) -> tuple[str, str]:
        """Task and PLM, as labels."""
        return self.task, self.plm

    @property
    def complete(self) -> bool:
        """Whether every attack cell of the setup was measured with this setting."""
        return self.cells == self.all_cells

    @property
    def rankable(self) -> bool:
        """Whether it may be ranked: complete, and not tuned by looking at the attack (`oracle`)."""
        return self.complete and self.tuning_mode != ORACLE


def worst_cases(summaries: Iterable[Summary]) -> tuple[WorstCase, ...]:
    """The worst case of each setup x defense setting, in the order of `summaries`.

    A cell that no setting has an ASR in (every trial failed) asks nothing of anyone. Setups without a
    measured attack cell (only the twin was run, say) have no worst case.
    """
    by_setup: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for summary in summaries:
        if not summary.adaptive:
            by_setup[summary.setup].append(summary)
    found: list[WorstCase] = []
    for members in by_setup.values():
        all_cells = len({member.cell for member in members if _attacked(member)})
        if all_cells == 0:
            continue
        by_setting: dict[str, list[Summary]] = defaultdict(list)
        for member in members:
            by_setting[member.setting].append(member)
        found += [_worst_case(same, all_cells) for same in by_setting.values()]
    return tuple(found)


def _attacked(member: Summary) -> bool:
    return not member.is_twin and member.of("asr").mean is not None


def _worst_case(members: Sequence[Summary], all_cells: int) -> WorstCase:
    first = members[0]
    measured = [member for member in members if _attacked(member)]
    return WorstCase(
        task=first.task,
        plm=first.plm,
        defense=first.defense,
        setting=first.setting,
        settings=first.settings,
        tuning_mode=first.tuning_mode,
        cells=len(measured),
        all_cells=all_cells,
        seeds=min((member.of("asr").n for member in measured), default=0),
        asr=_worst("asr", measured, max),
        asrd=_worst("asrd", measured, max),
        cacc=_worst("cacc", members, min),
        cacc_drop=_worst("cacc_drop", members, max),
    )


def _worst(
    metric: str, members: Sequence[Summary], pick: Callable[[Iterable[float]], float]
) -> Worst:
    means = {
        member.cell: estimate
        for member in members
        if (estimate := member.of(metric)).mean is not None
    }
    if not means:
        return Worst()
    value = pick(estimate.mean for estimate in means.values() if estimate.mean is not None)
    cell = next(name for name, estimate in means.items() if estimate.mean == value)
    return Worst(estimate=means[cell], cell=cell)

"""The numbers that a comparison of defense settings rests on: one for each block and setting, and none missing.

A block is a setup (task, PLM, training), an attack cell and a seed: within it the settings met the same victim.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from analysis.columns import ORACLE
from analysis.groups import groups
from analysis.rank_tests import FEWEST_BLOCKS, FEWEST_METHODS
from analysis.summaries import METRICS, Summary, summaries
from analysis.table import ResultTable
from backdoor_core.errors import ConfigError, DataError, unknown_name

BlockKind = Literal["cell_seed", "cell"]
BLOCK_KINDS = ("cell_seed", "cell")

_Cell = tuple[str, str, str]
_Scores = dict[_Cell, dict[int, dict[str, float]]]
"""The metric by (task, PLM, attack cell), then seed, then defense setting; all by label."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """An attack cell of a setup, and a seed (None: the mean over seeds). Task, PLM and cell are labels."""

    task: str
    plm: str
    cell: str
    seed: int | None = None

    @property
    def label(self) -> str:
        """`sst2 with bert, badnets (rate 0.01), seed 0`."""
        seed = "" if self.seed is None else f", seed {self.seed}"
        return f"{self.task} with {self.plm}, {self.cell}{seed}"


@dataclass(frozen=True, kw_only=True)
class BlockScores:
    """One metric of each block, with a value for each of `methods` (defense settings, by label).

    `defenses` gives the catalog name of each method. `dropped` says why a block in which some setting has a number,
    or an attack cell without any, was not used; `left_out` says it of settings.
    """

    methods: tuple[str, ...]
    table: Mapping[Block, tuple[float, ...]]
    defenses: Mapping[str, str]
    dropped: Mapping[str, str]
    left_out: Mapping[str, str]


def block_scores(
    results: ResultTable,
    metric: str,
    *,
    blocks: BlockKind = "cell_seed",
    settings: Sequence[str] | None = None,
    setup: tuple[str, str] | None = None,
    with_oracle: bool = False,
) -> BlockScores:
    """The blocks in which every setting that is compared has a number; see `analysis.comparison.compare`."""
    if metric not in METRICS:
        raise ConfigError(unknown_name("metric", metric, METRICS))
    if blocks not in BLOCK_KINDS:
        raise ConfigError(unknown_name("kind of block", blocks, BLOCK_KINDS))
    every = summaries(results)
    setups = {one.setup for one in every}
    if setup is not None and setup not in setups:
        known = (" with ".join(one) for one in setups)
        raise ConfigError(unknown_name("setup", " with ".join(setup), known))
    found = [one for one in every if setup in (None, one.setup)]
    scores = _scores(results, metric, found)
    methods, left_out = _methods(found, scores, settings, with_oracle)
    if len(methods) < FEWEST_METHODS:
        raise DataError(_too_few_methods(metric, methods, left_out))
    complete, dropped = _complete(scores, methods)
    table = _table(complete, methods, blocks)
    if len(table) < FEWEST_BLOCKS:
        raise DataError(_too_few_blocks(metric, blocks, scores, methods, len(table)))
    names = {one.setting: one.defense for one in found}
    return BlockScores(
        methods=tuple(methods),
        table=table,
        defenses={name: names[name] for name in methods},
        dropped=dropped | _unmeasured(found, scores),
        left_out=left_out,
    )


def _scores(results: ResultTable, metric: str, found: Iterable[Summary]) -> _Scores:
    """The metric of each cell, seed and setting; cells of adaptive attacks and of other setups are left out."""
    wanted = {(*one.setup, one.cell) for one in found if not one.adaptive}
    scores: _Scores = {}
    for group in groups(results):
        cell = (*group.setup, group.cell)
        for seed, row in group.rows.items() if cell in wanted else ():
            value = row[metric]
            if value is not None and math.isfinite(value):
                scores.setdefault(cell, {}).setdefault(seed, {})[group.setting] = value
    return scores


def _methods(
    found: Iterable[Summary], scores: _Scores, asked: Sequence[str] | None, with_oracle: bool
) -> tuple[list[str], dict[str, str]]:
    """The settings to compare, in the order of the summaries, and why others are left out."""
    modes = {one.setting: one.tuning_mode for one in found}
    for name in asked or ():
        if name not in modes:
            raise ConfigError(unknown_name("defense setting", name, modes))
        if modes[name] == ORACLE and not with_oracle:
            raise ConfigError(
                f"{name!r} was tuned by looking at the attack, so it is not ranked; with_oracle=True ranks it"
            )
    measured = {name for seeds in scores.values() for known in seeds.values() for name in known}
    kept, left_out = [], {}
    for name, mode in modes.items():
        if asked is not None and name not in asked:
            left_out[name] = "not asked for"
        elif mode == ORACLE and not with_oracle:
            left_out[name] = "tuned by looking at the attack (oracle), not ranked"
        elif name not in measured:
            left_out[name] = "no number in any block"
        else:
            kept.append(name)
    return kept, left_out


def _complete(scores: _Scores, methods: Sequence[str]) -> tuple[_Scores, dict[str, str]]:
    """The cells and seeds in which all methods have a number, and of the others which lack it."""
    complete: _Scores = {}
    dropped: dict[str, str] = {}
    for cell, seeds in scores.items():
        for seed, known in seeds.items():
            lacking = [name for name in methods if name not in known]
            if lacking:
                dropped[_block(cell, seed).label] = f"no number of {', '.join(lacking)}"
            else:
                complete.setdefault(cell, {})[seed] = known
    return complete, dropped


def _unmeasured(found: Iterable[Summary], scores: _Scores) -> dict[str, str]:
    """Attack cells that no block comes from, and why. The twin has no ASR by its nature, so it is not named."""
    cells = {(*one.setup, one.cell): one for one in found if not one.is_twin}
    return {
        _block(cell).label: "an adaptive attack, which aims at one defense"
        if one.adaptive
        else "no setting has a number"
        for cell, one in cells.items()
        if cell not in scores
    }


def _table(
    complete: _Scores, methods: Sequence[str], kind: BlockKind
) -> dict[Block, tuple[float, ...]]:
    """The scores of each block, in the order of `methods`."""
    table: dict[Block, tuple[float, ...]] = {}
    for cell, seeds in complete.items():
        rows = {seed: tuple(known[name] for name in methods) for seed, known in seeds.items()}
        if kind == "cell":
            table[_block(cell)] = tuple(np.mean(list(rows.values()), axis=0).tolist())
        else:
            table |= {_block(cell, seed): row for seed, row in rows.items()}
    return table


def _block(cell: _Cell, seed: int | None = None) -> Block:
    return Block(task=cell[0], plm=cell[1], cell=cell[2], seed=seed)


def _too_few_methods(metric: str, methods: Sequence[str], left_out: Mapping[str, str]) -> str:
    others = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    return (
        f"ranks need at least {FEWEST_METHODS} defense settings with {metric}, got {len(methods)} "
        f"({', '.join(methods) or 'none'}). Left out: {others or 'none'}. For two settings use a paired test of "
        "analysis.stats"
    )


def _too_few_blocks(
    metric: str, kind: BlockKind, scores: _Scores, methods: Sequence[str], count: int
) -> str:
    known = [settings for seeds in scores.values() for settings in seeds.values()]
    lacking = Counter(name for settings in known for name in methods if name not in settings)
    most = ", ".join(f"{name} in {times}" for name, times in lacking.most_common(3))
    of = "attack cells" if kind == "cell" else "attack cells x seeds"
    return (
        f"ranks need at least {FEWEST_BLOCKS} {of} in which all {len(methods)} defense settings have {metric}, got "
        f"{count}. Of {len(known)} cells x seeds, these lack a number: {most or 'none'}. Name the settings to "
        "compare with settings=, or run what is missing (more seeds, more attacks)"
    )

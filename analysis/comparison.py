"""Which defense settings differ: ranks over attack cells and seeds, and every pair with a corrected p-value.

from analysis.comparison import compare
comparison = compare(analysis.load("runs/quickstart"), metric="asr")
comparison.ranking.groups, comparison.caution
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from analysis.blocks import Block, BlockKind, block_scores
from analysis.intervals import Values, student_mean
from analysis.rank_tests import ALPHA, Ranking, rank_methods
from analysis.seeds import Estimate
from analysis.stats import PairedTest, differences, holm, wilcoxon
from analysis.table import ResultTable
from backdoor_core.counting import counted

LOWER_IS_BETTER = frozenset({"asr", "asr_max", "asrd", "cacc_drop", "frr", "far"})


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two defense settings over the blocks, first minus second; `first` has the better average rank.

    `adjusted_p` is the p of `test` after Holm's correction over all pairs of the comparison. `difference` is the mean
    difference with Student's t-interval over blocks, by itself and not corrected.
    """

    first: str
    second: str
    difference: Estimate
    test: PairedTest
    adjusted_p: float
    nemenyi_p: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Defense settings compared over blocks in which all of them have a number.

    `scores` has a row for each of `blocks` and a column for each of `ranking.methods`, best first. `defenses` gives
    the catalog name of each. `dropped` says of each block that was not used why, `left_out` of each setting.
    """

    metric: str
    higher_is_better: bool
    block_kind: BlockKind
    blocks: tuple[Block, ...]
    scores: tuple[tuple[float, ...], ...]
    ranking: Ranking
    pairs: tuple[Pair, ...]
    defenses: Mapping[str, str]
    dropped: Mapping[str, str]
    left_out: Mapping[str, str]

    @property
    def caution(self) -> str:
        """What the tests take for granted and the blocks do not give."""
        setups = len({(block.task, block.plm) for block in self.blocks})
        cells = len({(block.task, block.plm, block.cell) for block in self.blocks})
        counts = [(cells, "attack cell"), (setups, "setup")]
        if self.block_kind == "cell_seed":
            counts.append((len({block.seed for block in self.blocks}), "seed"))
        come_from = ", ".join(counted(count, noun) for count, noun in counts)
        return (
            f"The {len(self.blocks)} blocks come from {come_from}. Blocks that share an attack, a seed or a setup "
            "(task, PLM) are not independent, as the tests take them to be; so the p-values can be too small."
        )


def compare(
    results: ResultTable,
    metric: str = "asr",
    *,
    blocks: BlockKind = "cell_seed",
    settings: Sequence[str] | None = None,
    setup: tuple[str, str] | None = None,
    with_oracle: bool = False,
    test: Callable[[Values, Values], PairedTest] = wilcoxon,
    alpha: float = ALPHA,
) -> Comparison:
    """Ranks defense settings by `metric` within blocks, and tests every pair of them.

    A block is a setup (task, PLM, training), an attack cell and a seed in which every setting that is compared has a
    number; labels are those of `summaries`. `blocks="cell"` takes the mean over a cell's complete seeds first.
    Blocks that share a seed or an attack are not independent, though the tests take them to be: with `cell_seed`
    the seeds of a cell count as evidence of their own, so p-values can come out too small; `cell` is the cautious
    choice (Demsar 2006, section 3.2.3). Adaptive attacks are left out, as they are of the worst case.

    `settings` are the labels to compare (default: all that have a number), `setup` restricts to one task and PLM, by
    label. Settings tuned by looking at the attack (`oracle`) are not ranked unless `with_oracle`. `test` compares
    a pair: `wilcoxon`, `paired_t` or `sign_flip` of `analysis.stats`.

    Raises ConfigError for an unknown metric, kind of block, setup or setting; DataError for fewer than 3 settings or
    2 blocks, saying what is lacking.
    """
    found = block_scores(
        results, metric, blocks=blocks, settings=settings, setup=setup, with_oracle=with_oracle
    )
    better = metric not in LOWER_IS_BETTER
    rows = list(found.table.values())
    ranking = rank_methods(rows, found.methods, higher_is_better=better, alpha=alpha)
    columns = dict(zip(found.methods, zip(*rows, strict=True), strict=True))
    return Comparison(
        metric=metric,
        higher_is_better=better,
        block_kind=blocks,
        blocks=tuple(found.table),
        scores=tuple(zip(*(columns[name] for name in ranking.methods), strict=True)),
        ranking=ranking,
        pairs=_pairs(columns, ranking, test),
        defenses=found.defenses,
        dropped=found.dropped,
        left_out=found.left_out,
    )


def _pairs(
    columns: Mapping[str, tuple[float, ...]],
    ranking: Ranking,
    test: Callable[[Values, Values], PairedTest],
) -> tuple[Pair, ...]:
    """Every pair of methods; Holm's correction is over all of them."""
    names = list(combinations(ranking.methods, 2))
    tests = [test(columns[first], columns[second]) for first, second in names]
    adjusted = holm([one.p for one in tests])
    return tuple(
        Pair(
            first=first,
            second=second,
            difference=student_mean(differences(columns[first], columns[second])),
            test=one,
            adjusted_p=p,
            nemenyi_p=ranking.nemenyi_p(first, second),
        )
        for (first, second), one, p in zip(names, tests, adjusted, strict=True)
    )

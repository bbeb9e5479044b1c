"""Comparisons of defense settings from rows of a ledger: blocks, what is left out, pairs, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

import analysis
from analysis.comparison import compare
from analysis.stats import holm, paired_t, wilcoxon
from analysis.table import ResultTable
from backdoor_core.errors import ConfigError, DataError
from backdoor_core.record import TrialRecord

MIXING = "fine_mixing (mixing_ratio=0.7)"


@pytest.fixture(scope="module")
def results(sweep_out: Path) -> ResultTable:
    return analysis.load(sweep_out)


@pytest.fixture
def rows(record, tmp_path: Path, write) -> Callable[..., ResultTable]:
    """Writes ASR values, by (defense, attack, seed), and loads them."""

    def load(values: dict[tuple[str, str, int], float], *more: TrialRecord) -> ResultTable:
        records = [
            record(defense=defense, attack=attack, seed=seed, asr=asr, asrd=asr - 0.05)
            for (defense, attack, seed), asr in values.items()
        ]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return analysis.load(write(folder, [*records, *more]))

    return load


ATTACKS, SEEDS = ("badnets", "syntactic"), (0, 1, 2)


def _values(**asr: float) -> dict[tuple[str, str, int], float]:
    """Each defense's ASR, a little higher for the second attack and for each seed."""
    return {
        (defense, attack, seed): round(value + 0.01 * seed + 0.02 * place, 4)
        for defense, value in asr.items()
        for place, attack in enumerate(ATTACKS)
        for seed in SEEDS
    }


def test_full_sweep(results) -> None:
    found = compare(results)
    # Six attack cells of three seeds, of which x_graad lacks one; the twin has no ASR.
    assert len(found.blocks) == 15
    assert found.ranking.blocks == 15
    assert found.ranking.methods[0] == "epur+fine_mixing"
    assert found.ranking.methods[-1] == "none"
    assert not found.higher_is_better
    assert found.dropped == {
        f"sst2 with bert, syntactic (rate 0.1), seed {seed}": "no number of x_graad"
        for seed in SEEDS
    }
    assert found.left_out == {}
    assert found.defenses[MIXING] == "fine_mixing"
    assert "15 blocks come from 5 attack cells, 1 setup, 3 seeds" in found.caution
    assert found.blocks[0].label == "sst2 with bert, badnets (rate 0.001), seed 0"


def test_scores_are_the_rows_of_the_ledger(results) -> None:
    found = compare(results)
    table = {
        (row["attack_settings"], row["attack"], row["seed"]): row["asr"]
        for row in results.where(defense="onion").rows()
    }
    column = found.ranking.methods.index("onion")
    for block, scores in zip(found.blocks, found.scores, strict=True):
        attack, rate = block.cell.removesuffix(")").split(" (rate ")
        assert scores[column] == table[(f'{{"poison_rate":{rate}}}', attack, block.seed)]


def test_pairs_hold_the_paired_test_over_blocks(results) -> None:
    found = compare(results)
    assert len(found.pairs) == math.comb(8, 2)
    pair = next(pair for pair in found.pairs if {pair.first, pair.second} == {"none", "onion"})
    assert (pair.first, pair.second) == ("onion", "none")
    columns = dict(zip(found.ranking.methods, zip(*found.scores, strict=True), strict=True))
    assert pair.test == wilcoxon(columns["onion"], columns["none"])
    gaps = np.subtract(columns["onion"], columns["none"])
    assert pair.difference.mean == pytest.approx(gaps.mean())
    assert pair.difference.mean < 0
    low, high = scipy.stats.t.interval(0.95, 14, gaps.mean(), scipy.stats.sem(gaps))
    assert (pair.difference.low, pair.difference.high) == pytest.approx((low, high))
    assert tuple(pair.adjusted_p for pair in found.pairs) == holm([p.test.p for p in found.pairs])
    assert pair.nemenyi_p == found.ranking.nemenyi_p("none", "onion")


def test_the_clean_twin_is_a_block_of_accuracy(results) -> None:
    found = compare(results, "cacc")
    assert found.higher_is_better
    assert found.ranking.methods[0] == "none"
    assert len(found.blocks) == 18  # 7 cells of 3 seeds, less the one that x_graad lacks
    assert {block.cell for block in found.blocks} >= {"none (clean twin)"}


def test_blocks_of_cells_take_the_mean_over_seeds(results) -> None:
    cells, seeds = compare(results, blocks="cell"), compare(results)
    assert len(cells.blocks) == 5
    assert all(block.seed is None for block in cells.blocks)
    assert "5 attack cells, 1 setup." in cells.caution
    place = cells.ranking.methods.index(MIXING)
    wanted = np.array([row[seeds.ranking.methods.index(MIXING)] for row in seeds.scores])
    got = [row[place] for row in cells.scores]
    assert got == pytest.approx(wanted.reshape(5, 3).mean(axis=1).tolist())
    assert cells.ranking.critical_difference > seeds.ranking.critical_difference


def test_the_mean_over_seeds_is_over_the_same_seeds_for_all(rows) -> None:
    values = _values(none=0.9, onion=0.5, strip=0.3)
    del values[("strip", "badnets", 2)]
    found = compare(rows(values), blocks="cell")
    none = [row[found.ranking.methods.index("none")] for row in found.scores]
    assert none == pytest.approx([0.905, 0.93])  # badnets without seed 2
    assert found.dropped == {"sst2 with bert, badnets (rate 0.01), seed 2": "no number of strip"}


def test_oracle_is_not_ranked_unless_asked(rows, record) -> None:
    oracle = [
        record(defense="rap", attack=attack, seed=seed, asr=0.01, tuning_mode="oracle")
        for attack in ATTACKS
        for seed in SEEDS
    ]
    results = rows(_values(none=0.9, onion=0.5, strip=0.3), *oracle)
    label = "rap (tuned: oracle)"
    found = compare(results)
    assert label not in found.ranking.methods
    assert "looking at the attack" in found.left_out[label]
    assert compare(results, with_oracle=True).ranking.methods[0] == label
    with pytest.raises(ConfigError, match="with_oracle=True"):
        compare(results, settings=["none", "onion", label])


def test_a_searched_defense_is_one_setting_though_its_settings_differ(rows, record) -> None:
    tuned = [
        record(
            **{"defense": "rap", "attack": attack, "seed": seed, "asr": 0.2},
            **{"tuning_mode": "clean-val", "tuning_trials": 5},
            defense_settings={"threshold": seed / 10},
        )
        for attack in ATTACKS
        for seed in SEEDS
    ]
    found = compare(rows(_values(none=0.9, onion=0.5, strip=0.3), *tuned))
    assert found.ranking.methods == ("rap (tuned: clean-val)", "strip", "onion", "none")
    assert len(found.blocks) == 6


def test_adaptive_attacks_and_cells_without_numbers_are_named(rows, record, blank) -> None:
    more = [
        record(defense=defense, attack="addsent", adaptive=True, asr=0.5)
        for defense in ("none", "onion", "strip")
    ]
    more.append(blank("failed", defense="none", attack="style", error_class="oom", error="memory"))
    found = compare(rows(_values(none=0.9, onion=0.5, strip=0.3), *more))
    assert found.dropped == {
        "sst2 with bert, addsent (rate 0.01, adaptive)": "an adaptive attack, which aims at one defense",
        "sst2 with bert, style (rate 0.01)": "no setting has a number",
    }
    assert len(found.blocks) == 6


def test_a_setting_without_any_number_is_left_out(rows, blank) -> None:
    failed = blank("failed", defense="rap", error_class="oom", error="memory")
    found = compare(rows(_values(none=0.9, onion=0.5, strip=0.3), failed))
    assert found.left_out == {"rap": "no number in any block"}
    assert len(found.blocks) == 6


def test_choosing_settings_setup_and_test(results) -> None:
    chosen = ["none", "onion", "x_graad"]
    found = compare(results, settings=chosen, setup=("sst2", "bert"), test=paired_t)
    assert set(found.ranking.methods) == set(chosen)
    assert found.left_out[MIXING] == "not asked for"
    assert {pair.test.name for pair in found.pairs} == {"paired t"}
    without = compare(results, settings=["none", "onion", MIXING])
    assert len(without.blocks) == 18  # nothing lacks the cell that x_graad does


def test_setups_are_blocks_of_their_own(rows, record) -> None:
    more = [
        record(task="ag_news", defense=defense, seed=seed, asr=asr)
        for defense, asr in (("none", 0.9), ("onion", 0.8), ("strip", 0.7))
        for seed in SEEDS
    ]
    results = rows(_values(none=0.9, onion=0.5, strip=0.3), *more)
    assert len(compare(results).blocks) == 9
    assert "3 attack cells, 2 setups, 3 seeds" in compare(results).caution
    assert len(compare(results, setup=("ag_news", "bert")).blocks) == 3
    with pytest.raises(ConfigError, match="unknown setup 'ag_new with bert'; did you mean"):
        compare(results, setup=("ag_new", "bert"))


def test_the_latest_row_of_a_seed_counts(rows, record) -> None:
    later = record(
        defense="strip", attack="badnets", asr=0.99, threads=4, finished_at=9.0, key="b" * 64
    )
    found = compare(rows(_values(none=0.9, onion=0.5, strip=0.3), later))
    column = found.ranking.methods.index("strip")
    assert found.scores[0][column] == 0.99


def test_too_little_to_compare_says_what_is_lacking(rows) -> None:
    values = _values(none=0.9, onion=0.5, strip=0.3)
    two = {place: value for place, value in values.items() if place[0] != "strip"}
    with pytest.raises(
        DataError, match=r"at least 3 defense settings with asr, got 2 \(none, onion\)"
    ):
        compare(rows(two))
    one = {
        place: v
        for place, v in values.items()
        if place[0] != "strip" or place[1:] == ("badnets", 0)
    }
    with pytest.raises(DataError, match=r"at least 2 attack cells x seeds .* got 1\. .*strip in 5"):
        compare(rows(one))
    with pytest.raises(DataError, match="at least 2 attack cells in which all 3"):
        compare(rows(one), blocks="cell")
    with pytest.raises(DataError, match=r"got 0 \(none\)"):
        compare(rows(values), "auroc")


def test_names_that_are_not_known(results) -> None:
    with pytest.raises(ConfigError, match="unknown metric 'arsd'; did you mean 'asrd'"):
        compare(results, "arsd")
    with pytest.raises(ConfigError, match="unknown kind of block 'seed'"):
        compare(results, blocks="seed")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="unknown defense setting 'onio'; did you mean 'onion'"):
        compare(results, settings=["none", "onio", "x_graad"])

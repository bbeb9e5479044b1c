"""Response curves, stability and importances, on grids and searches whose answers are known."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.importance import LEAST_TRIED, importances
from analysis.seeds import Estimate
from analysis.sensitivity import BINS, response_curve, response_curves, stability
from analysis.tried import tried_settings
from backdoor_core.errors import ConfigError, DependencyError


def _grid(record, value, *, cells=("badnets",), seeds=(0,), **axes) -> list[dict[str, Any]]:
    """Rows of a full grid over `axes`; the ASR is `value(settings, cell, seed)`."""
    results = []
    for cell, seed in itertools.product(cells, seeds):
        for chosen in itertools.product(*axes.values()):
            settings = dict(zip(axes, chosen, strict=True))
            results.append(
                record(
                    attack=cell, attack_settings={}, poison_rate=None, seed=seed, defense="onion",
                    defense_settings=settings, asr=value(settings, cell, seed), cacc=0.9,
                )
            )  # fmt: skip
    return results


def _rows(tmp_path: Path, write, records) -> list[dict[str, Any]]:
    return analysis.load(write(tmp_path, records)).rows()


def _search(value, tried: list[dict[str, Any]], *, study: str = "s", seed: int = 0, **changes):
    """Rows of a tuning table."""
    return [
        {
            "study": study, "number": number, "task": "sst2", "task_settings": "{}",
            "plm": "bert", "plm_settings": "{}", "training_settings": "{}", "attack": "badnets",
            "attack_settings": "{}", "defense": "onion", "tuning_mode": "pseudo", "seed": seed,
            "settings": json.dumps(settings), "state": "complete", "asr": value(settings),
            "cacc_drop": 0.01, "finished_at": float(number),
        } | changes
        for number, settings in enumerate(tried)
    ]  # fmt: skip


def test_marginal_curve_averages_over_the_other_setting(tmp_path: Path, record, write) -> None:
    # ASR = 0.1 * a + 0.2 * b + 0.01 * seed: over a, with b in (0, 1), it is 0.1 * a + 0.1 + 0.01 * seed.
    rows = _rows(
        tmp_path, write,
        _grid(record, lambda s, _, seed: 0.1 * s["a"] + 0.2 * s["b"] + 0.01 * seed,
              seeds=(0, 1, 2), a=[1, 2, 3], b=[0, 1]),
    )  # fmt: skip
    curve = response_curve(rows, "a")
    assert [point.value for point in curve.points] == [1, 2, 3]
    assert [point.estimate.mean for point in curve.points] == pytest.approx([0.21, 0.31, 0.41])
    assert {(point.estimate.n, point.rows) for point in curve.points} == {(3, 6)}
    assert (curve.balanced, curve.left_out) == (True, 0)
    # Seeds 0.01 apart: t of 2 degrees of freedom x 0.01 / sqrt(3).
    half = 4.302652729911275 * 0.01 / 3**0.5
    assert curve.points[0].estimate.high == pytest.approx(0.21 + half)
    held = response_curve(rows, "a", held={"b": 1})
    assert [point.estimate.mean for point in held.points] == pytest.approx([0.31, 0.41, 0.51])
    assert [curve.setting for curve in response_curves(rows)] == ["a", "b"]


def test_a_hole_in_the_grid_does_not_bend_the_curve(tmp_path: Path, record, write) -> None:
    records = _grid(
        record, lambda s, *_: 0.1 * s["a"] + 0.5 * s["b"], a=[1, 2], b=[0, 1], seeds=(0, 1)
    )
    rows = _rows(tmp_path, write, records)
    hole = [
        row
        for row in rows
        if not (row["seed"] == 1 and json.loads(row["defense_settings"]) == {"a": 2, "b": 1})
    ]
    curve = response_curve(hole, "a")
    # Averaged over all that is left, a=2 would look better than a=1: its mean would lack a high value.
    difference = curve.points[1].estimate.mean - curve.points[0].estimate.mean
    assert difference == pytest.approx(0.1)
    assert (curve.balanced, curve.left_out) == (True, 1)


def test_curves_of_words_and_of_one_row_a_point(tmp_path: Path, record, write) -> None:
    rows = _rows(
        tmp_path, write,
        _grid(record, lambda s, *_: {"mean": 0.4, "max": 0.6}[s["by"]], by=["mean", "max"]),
    )  # fmt: skip
    curve = response_curve(rows, "by")
    assert [point.value for point in curve.points] == ["max", "mean"]
    # One row has its own Wilson interval, as `asr_low` and `asr_high` of the row.
    assert curve.points[0].estimate == Estimate(
        mean=0.6, low=rows[1]["asr_low"], high=rows[1]["asr_high"], n=1
    )


def test_a_search_is_cut_into_bins_of_equal_numbers() -> None:
    tried = [{"t": n / 64, "noise": (n * 37) % 64} for n in range(64)]
    rows = _search(lambda s: s["t"], tried)
    curve = response_curve(rows, "t")
    assert [point.rows for point in curve.points] == [8] * BINS
    assert not curve.balanced
    assert curve.left_out == 0
    first = curve.points[0]
    assert (first.low, first.value, first.high) == (0.0, 3.5 / 64, 7 / 64)
    assert first.estimate == Estimate(mean=pytest.approx(3.5 / 64), n=1)


def test_what_counts_as_tried(tmp_path: Path, record, blank, write) -> None:
    settings = {"defense_settings": {"percentile": 90}}
    rows = _rows(
        tmp_path, write,
        [
            record(defense="onion", **settings, finished_at=2.0, asr=0.2, key="1" * 64),
            record(defense="onion", **settings, finished_at=1.0, asr=0.9, key="2" * 64),
            record(defense="onion", tuning_mode="pseudo", asr=0.0),
            record(defense="none"),
            blank("failed", defense="onion", seed=3),
        ],
    )  # fmt: skip
    assert [one.value for one in tried_settings(rows, "asr")] == [0.2]
    pruned = _search(lambda s: 0.5, [{"t": 1}], state="pruned")
    unknown = _search(lambda s: None, [{"t": 2}])
    known = _search(lambda s: 0.25, [{"t": 3}])
    assert [one.settings for one in tried_settings(pruned + unknown + known, "asr")] == [{"t": 3}]


def test_mistakes_are_told(tmp_path: Path, record, write) -> None:
    rows = _rows(tmp_path, write, [record(defense="onion"), record(defense="cube", seed=1)])
    with pytest.raises(ConfigError, match=r"got 2 defenses \(cube, onion\) and 1 setups: select"):
        stability(rows)
    with pytest.raises(ConfigError, match="unknown column 'asrr'; did you mean 'asr'"):
        stability(rows, metric="asrr")
    search = _search(lambda s: 0.5, [{"percentile": 1}])
    with pytest.raises(ConfigError, match="unknown setting 'percentil'; did you mean 'percentile'"):
        response_curve(search, "percentil")
    with pytest.raises(ConfigError, match="unknown setting 'b'"):
        response_curve(search, "percentile", held={"b": 1})
    with pytest.raises(ConfigError, match="unknown evaluator 'anova'"):
        importances(search, evaluator="anova")  # type: ignore[arg-type]
    assert response_curve([], "a").points == ()
    assert stability([]).all_pairs == Estimate()
    assert importances([]).settings == {}


def test_stability_of_one_setting_by_hand(tmp_path: Path, record, write) -> None:
    # Values 0, 0.3, 0.1 at 1, 2, 4: neighbours differ by 0.3 and 0.2, all pairs by 0.3, 0.1, 0.2.
    answers = {1: 0.0, 2: 0.3, 4: 0.1}
    found = stability(
        _rows(tmp_path, write, _grid(record, lambda s, *_: answers[s["a"]], a=list(answers)))
    )
    assert found.neighbours.mean == pytest.approx(0.25)
    assert found.all_pairs.mean == pytest.approx(0.2)
    assert found.spread.mean == pytest.approx(0.3)
    assert (found.neighbour_pairs, found.settings, found.neighbours.n) == (2, 3, 1)


def test_neighbours_differ_in_one_setting_by_one_step(tmp_path: Path, record, write) -> None:
    # 3 x 2 grid of numbers and words: 2 x 2 pairs along a, 3 x 1 along w; a moves ASR by 0.1, w by 0.4.
    rows = _rows(
        tmp_path, write,
        _grid(record, lambda s, *_: 0.1 * s["a"] + 0.4 * (s["w"] == "x"), a=[0, 1, 2], w=["x", "y"]),
    )  # fmt: skip
    found = stability(rows)
    assert found.neighbour_pairs == 7
    assert found.neighbours.mean == pytest.approx((4 * 0.1 + 3 * 0.4) / 7)


def test_stability_is_taken_within_cells_and_seeds(tmp_path: Path, record, write) -> None:
    def value(settings: dict[str, Any], cell: str, seed: int) -> float:
        # The cell and the seed move the level a lot, the setting by 0.1 (badnets) or 0.3 (style).
        step = 0.1 if cell == "badnets" else 0.3
        return 0.2 * seed + (0.3 if cell == "style" else 0.0) + step * settings["a"]

    found = stability(
        _rows(
            tmp_path, write,
            _grid(record, value, a=[0, 1], cells=("badnets", "style"), seeds=(0, 1)),
        )
    )  # fmt: skip
    assert found.neighbours.mean == pytest.approx(0.2)
    assert (found.neighbours.low, found.neighbours.high) == (
        pytest.approx(0.2),
        pytest.approx(0.2),
    )
    assert found.neighbours.n == 2


def test_a_flat_response_is_stable(tmp_path: Path, record, write) -> None:
    found = stability(_rows(tmp_path, write, _grid(record, lambda *_: 0.5, a=[1, 2, 3])))
    assert found.neighbours.mean == found.all_pairs.mean == found.spread.mean == 0.0


def _additive(settings: dict[str, Any]) -> float:
    return 0.3 * settings["strong"] + 0.1 * settings["weak"]


def _lattice(n: int = 12) -> list[dict[str, Any]]:
    steps = [(i + 0.5) / n for i in range(n)]
    return [
        {"strong": a, "weak": b, "constant": 3, "idle": ["x", "y"][(i + j) % 2]}
        for i, a in enumerate(steps)
        for j, b in enumerate(steps)
    ]


def test_ped_anova_finds_the_setting_that_matters(capfd: pytest.CaptureFixture[str]) -> None:
    found = importances(_search(_additive, _lattice()))
    assert next(iter(found.settings)) == "strong"
    assert set(found.settings) == {"strong", "weak", "idle"}
    assert sum(e.mean or 0.0 for e in found.settings.values()) == pytest.approx(1.0)
    assert found.settings["idle"].mean < 0.05
    assert found.settings["strong"].mean > found.settings["weak"].mean > found.settings["idle"].mean
    assert (found.blocks, found.left_out) == (1, 0)
    assert capfd.readouterr().err == "", "Optuna's talk of studies stays away"


def test_fanova_is_near_the_shares_of_variance() -> None:
    pytest.importorskip("sklearn")
    # An additive function of independent uniform settings: shares 0.3^2 / (0.3^2 + 0.1^2) = 0.9 and 0.1.
    found = importances(_search(_additive, _lattice()), evaluator="fanova")
    assert found.settings["strong"].mean == pytest.approx(0.9, abs=0.05)
    assert found.settings["weak"].mean == pytest.approx(0.1, abs=0.05)
    again = importances(_search(_additive, _lattice()), evaluator="fanova")
    assert again == found, "the trees have a fixed seed"
    mdi = importances(_search(_additive, _lattice()), evaluator="mean_decrease_impurity")
    assert next(iter(mdi.settings)) == "strong"


def test_evaluators_without_their_package_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from optuna import importance

    def missing(**_: Any) -> None:
        raise ImportError("no sklearn")

    monkeypatch.setattr(importance, "FanovaImportanceEvaluator", missing)
    with pytest.raises(DependencyError, match="pip install scikit-learn, or take 'ped_anova'"):
        importances(_search(_additive, _lattice()), evaluator="fanova")


def test_shares_are_averaged_within_a_seed_and_estimated_over_seeds() -> None:
    rows = [
        *_search(_additive, _lattice(), study="a", seed=0),
        *_search(_additive, _lattice(), study="b", seed=0, attack="style"),
        *_search(_additive, _lattice(), study="c", seed=1),
        *_search(lambda s: 0.5, _lattice(), study="flat", seed=2),
        *_search(_additive, _lattice()[: LEAST_TRIED - 1], study="short", seed=3),
    ]
    found = importances(rows)
    alone = importances(rows[: len(_lattice())])
    assert (found.blocks, found.left_out) == (3, 2)
    assert found.settings["strong"].n == 2
    assert found.settings["strong"].mean == pytest.approx(alone.settings["strong"].mean)
    assert found.settings["strong"].low == pytest.approx(alone.settings["strong"].mean)


def test_more_is_better_where_it_is() -> None:
    """Only the best count for PED-ANOVA: `a` decides which are the lowest, `b` which are the highest."""
    n = 20
    tried = [{"a": i / n, "b": j / n} for i in range(n) for j in range(n)]

    def value(settings: dict[str, Any]) -> float:
        low, high = settings["a"] < 0.1, settings["b"] >= 0.85
        return 0.5 - 0.4 * low + (0.4 * high if not low else 0.0)

    rows = _search(value, tried)
    for row in rows:
        row["cacc"] = row["asr"]
    assert next(iter(importances(rows, metric="asr").settings)) == "a"
    assert next(iter(importances(rows, metric="cacc").settings)) == "b"


def test_wide_positive_numbers_are_on_a_logarithmic_scale() -> None:
    tried = [{"rate": 10.0 ** -(n % 6), "other": n // 6} for n in range(60)]
    rows = _search(lambda s: 0.1 if s["rate"] <= 1e-4 else 0.9, tried)
    found = importances(rows)
    # On a plain scale the four lowest rates would fall into one step and look alike.
    assert next(iter(found.settings)) == "rate"
    assert found.settings["rate"].mean > 0.9

"""What the report says of searches, tried settings, ranks and texts: the figures and sentences themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import analysis
from analysis.columns import swept
from analysis.examples import Example, TrialExamples, chosen_rows
from analysis.exports import with_interval
from analysis.gaps import tuning_gaps
from analysis.history import histories, history_figure
from analysis.parallel import MOST_LINES, Line, parallel_figure
from analysis.ranks import MOST_METHODS, ranks
from analysis.report import GAPS, write_critical_svg, write_report
from analysis.responses import FILE, SEARCH, sources
from analysis.summaries import summaries
from analysis.tuned import tuning_rows
from analysis.tuning_answers import tuning_answer
from analysis.worst import worst_cases
from backdoor_core.errors import ConfigError, DataError

SETUP = ("sst2", "bert")


def _tuning_answer(out: Path) -> list[str]:
    results = analysis.load(out)
    worst = worst_cases(summaries(results))
    return tuning_answer(tuning_gaps(results), worst, SETUP)


def _histories(out: Path) -> list[Any]:
    return histories(tuning_rows(out), swept(analysis.load(out).rows()))


def test_the_answer_tells_what_tuning_without_the_attack_gets(tuned_only_out: Path) -> None:
    # Made up so that a mode leaves a share of an ASR of 0.05 + 0.93 x reach: 0.5, 0.4, 0.3, and 0.1 for the oracle.
    # Reach is 0.85 and 1.0 at the rates both have, so the mean gap of clean-val is 0.93 x 0.925 x (0.5 - 0.1).
    text = " ".join(_tuning_answer(tuned_only_out))
    assert (
        "(clean-val): the lowest worst-case ASR within a CACC drop of 0.05 is 0.515, by fine_mixing"
        in text
    )
    assert (
        "nobody who defends can do it): the lowest worst-case ASR within a CACC drop of 0.05 is 0.143"
        in text
    )
    gap = 0.93 * 0.925 * 0.4
    assert (
        f"chosen by clean-val leave an ASR {gap:.3f} above the oracle's on average over 4 pairs"
        in text
    )
    assert "at most 0.372 more" in text
    assert "Their CACC drop is the same as the oracle's." in text


def test_the_answer_without_an_oracle_or_without_searches(tmp_path: Path, record, write) -> None:
    rows = [record(), record(defense="onion", asr=0.2, tuning_mode="clean-val", tuning_trials=3)]
    text = " ".join(_tuning_answer(write(tmp_path / "a", rows)))
    assert "is 0.200, by onion" in text
    assert text.endswith("No oracle ran, so what tuning without one loses is not known.")
    assert _tuning_answer(write(tmp_path / "b", [record(), record(defense="onion")])) == []
    rows = [record(), record(defense="onion", asr=0.2, tuning_mode="oracle", tuning_trials=3)]
    text = " ".join(_tuning_answer(write(tmp_path / "c", rows)))
    assert text.startswith("No search without sight of the attack ran")


def test_the_best_so_far_counts_what_kept_the_limits(tuned_out: Path) -> None:
    every = _histories(tuned_out)
    assert [one.mode for one in every[::4]] == ["clean-val", "oracle", "pseudo", "transfer"]
    oracle = next(one for one in every if one.mode == "oracle")
    # Ratios 0, 5, 10, 3, 8, (failed), (pruned), 11, 4, 9, 2, 7 twelfths; above 8.57 the CACC drop is over 0.05.
    best = [0, 5, 5, 5, 8, 8, 8, 8, 8, 8, 8, 8]
    assert oracle.best_so_far() == pytest.approx([1 - ratio / 12 for ratio in best])
    strength = next(one for one in every if one.mode == "clean-val")
    assert strength.goal == "strength"
    assert strength.best_so_far() == pytest.approx([ratio / 12 for ratio in best])
    assert oracle.limit == 0.05


def test_a_history_draws_every_point(tuned_out: Path) -> None:
    figure = history_figure(_histories(tuned_out))
    marks = [t for t in figure.data if t.mode == "markers" and t.visible]
    assert len(marks) == 8, "two panels of four studies"
    assert all(len(trace.x) == 12 for trace in marks)
    symbols = marks[0].marker.symbol
    assert [symbol.split("-")[-1] for symbol in symbols[4:8]] == ["circle", "thin", "thin", "open"]
    assert "failed: out of memory" in marks[0].hovertext[5]
    assert history_figure([]) is None


def test_sources_keep_the_two_kinds_of_numbers_apart(tuned_out: Path) -> None:
    results = analysis.load(tuned_out)
    row = results.rows()[0]
    identity = tuple(
        row[n] for n in ("task", "task_settings", "plm", "plm_settings", "training_settings")
    )
    found = sources(results.rows(), tuning_rows(results), [identity])
    assert [(one.defense, one.kind) for one in found] == [
        ("fine_mixing", FILE),
        ("fine_mixing", SEARCH),
    ]
    assert found[0].varying == ("mixing_ratio",)
    assert set(found[1].varying) == {"mixing_ratio", "learning_rate"}
    assert sources(results.rows(), tuning_rows(results), []) == []


def _lines(count: int) -> list[Line]:
    return [
        Line(where="badnets", settings={"ratio": n / count, "kind": "ab"[n % 2]}, asr=1 - n / count, cacc_drop=0.0)
        for n in range(count)
    ]  # fmt: skip


def test_parallel_coordinates_place_each_line_on_each_axis() -> None:
    figure = parallel_figure(_lines(5), ["ratio", "kind"])
    drawn = [t for t in figure.data if t.visible and t.mode == "lines"]
    assert sum(list(trace.x).count(None) for trace in drawn) == 5, "a gap after each line"
    # Axes: ratio, kind, ASR (0 to 1), CACC drop (from 0). The worst ASR is that of the smallest ratio.
    paths = [list(zip(t.x, t.y, strict=True)) for t in drawn]
    first = next(path for path in paths if path[0] == (0, 0.0))
    assert first[:5] == [(0, 0.0), (1, 0.25), (2, 1.0), (3, 0.0), (None, None)]
    texts = [note.text for note in figure.layout.annotations]
    assert {"<b>ratio</b>", "<b>kind</b>", "<b>ASR</b>", "<b>CACC drop</b>", "a", "b"} <= set(texts)


def test_parallel_coordinates_are_bounded_and_may_lack_numbers() -> None:
    figure = parallel_figure(_lines(3 * MOST_LINES), ["ratio"])
    marks = next(t for t in figure.data if t.mode == "markers")
    assert len(marks.x) == MOST_LINES
    unknown = [dataclasses.replace(line, asr=None) for line in _lines(4)]
    drawn = parallel_figure(unknown, ["ratio"])
    assert "not known here" in next(t for t in drawn.data if t.mode == "markers").hovertext[0]
    assert parallel_figure(_lines(1), ["ratio"]) is None
    assert parallel_figure(_lines(4), []) is None


def test_ranks_of_a_setup(tuned_out: Path) -> None:
    results = analysis.load(tuned_out)
    made = ranks(results, summaries(results), SETUP)
    assert made.comparison is not None
    assert "not independent" in made.notes[0]
    assert "oracle" not in " ".join(made.comparison.ranking.methods)
    with pytest.raises(ConfigError, match="unknown metric"):
        ranks(results, summaries(results), SETUP, "speed")


def test_too_few_settings_have_no_ranks(tmp_path: Path, record, write) -> None:
    out = write(tmp_path, [record(), record(defense="onion", asr=0.2)])
    results = analysis.load(out)
    made = ranks(results, summaries(results), SETUP)
    assert made.comparison is None
    assert made.notes[0].startswith("No ranking by asr: ")
    with pytest.raises(DataError, match="No ranking by asr"):
        write_critical_svg(out, tmp_path / "cd.svg")
    assert made.notes[0].split(".")[0] in write_report(out).read_text(encoding="utf-8").replace(
        "&#39;", "'"
    )


def test_of_too_many_settings_each_defense_gives_its_best(tmp_path: Path, record, write) -> None:
    grid = [("fine_mixing", {"mixing_ratio": n / 40}, 0.9 - n / 80) for n in range(MOST_METHODS)]
    grid += [("none", {}, 0.95), ("onion", {}, 0.4)]
    rows = [
        record(defense=defense, defense_settings=settings, asr=asr, seed=seed)
        for defense, settings, asr in grid
        for seed in (0, 1)
    ]
    results = analysis.load(write(tmp_path, rows))
    made = ranks(results, summaries(results), SETUP)
    assert made.comparison is not None
    best = f"fine_mixing (mixing_ratio={(MOST_METHODS - 1) / 40:g})"
    assert set(made.comparison.ranking.methods) == {"none", "onion", best}
    assert any("flatters" in note for note in made.notes)


def test_defenses_beyond_what_the_diagram_holds_are_named(tmp_path: Path, record, write) -> None:
    many = [f"d{n:02}" for n in range(MOST_METHODS + 1)]
    rows = [
        record(defense=defense, asr=0.9 - n / 40, seed=seed)
        for n, defense in enumerate(["none", *many])
        for seed in (0, 1)
    ]
    results = analysis.load(write(tmp_path / "many", rows))
    made = ranks(results, summaries(results), SETUP)
    assert made.comparison is not None
    assert set(made.comparison.ranking.methods) == {"none", *many[:-2]}
    (note,) = [note for note in made.notes if "left out" in note.lower()]
    assert note.endswith(f": {many[-2]}; {many[-1]}.")
    results = analysis.load(write(tmp_path / "few", rows[: 2 * MOST_METHODS]))
    assert not any(
        "left out" in note.lower() for note in ranks(results, summaries(results), SETUP).notes
    )


def test_critical_difference_as_svg(tuned_out: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = write_critical_svg(tuned_out, tmp_path / "new" / "cd.svg", metric="asrd")
    assert "asrd of sst2 with bert" in path.read_text(encoding="utf-8")


def test_rows_to_drill_into_are_bounded_and_of_every_defense(tuned_out: Path) -> None:
    results = analysis.load(tuned_out)
    every = chosen_rows(results, most=10_000)
    assert {row["seed"] for row in every} == {0}, "the lowest seed that has numbers"
    assert "none" not in {row["attack"] for row in every}
    few = chosen_rows(results, most=12)
    assert len(few) == 12
    assert {row["defense"] for row in few} == {row["defense"] for row in every}


def test_words_are_shaded_by_their_score() -> None:
    plain = {
        "text": "a cf fine film",
        "pair": "so it is",
        "label": "negative",
        "answer": "positive",
    }
    shaded = Example.of(plain | {"word_scores": [None, 4.0, 1.0, -3.0, 2.0, 0.0, float("nan")]})
    assert [(word.text, word.shade) for word in shaded.words] == [
        ("a", 0.0), ("cf", 1.0), ("fine", 0.25), ("film", 0.0), ("so", 0.5), ("it is", 0.0),
    ]  # fmt: skip
    assert [word.pair for word in shaded.words] == [False, False, False, False, True, False]
    without = Example.of(plain | {"refused": True, "answer": "positive"})
    assert [word.text for word in without.words] == ["a cf fine film", "so it is"]
    assert without.answer == "refused"
    long = Example.of(plain | {"text": "word " * 200, "pair": None})
    assert long.left_out == 200 - len(long.words[0].text.split())


def test_the_report_without_texts_says_why(tuned_out: Path, tmp_path: Path) -> None:
    note = "No texts to show for 3 of 3 trials (3: their artifacts are not in the store)."
    page = write_report(tuned_out, tmp_path, examples_note=note).read_text(encoding="utf-8")
    assert note in page
    assert '<details class="trial">' not in page


def test_a_trial_without_a_single_success(tuned_out: Path, tmp_path: Path) -> None:
    results = analysis.load(tuned_out)
    row = chosen_rows(results, most=1)[0]
    kinds = [{"what": "triggered", "target": "positive", "count": 0, "of": 40, "texts": []}]
    examples = [TrialExamples.of({"key": row["key"], "kinds": kinds})]
    page = write_report(results, tmp_path, examples=examples).read_text(encoding="utf-8")
    assert "0 of 40 triggered texts still get the target" in page


def test_the_summary_in_markdown_has_the_gap_to_the_oracle(tuned_out: Path, tmp_path: Path) -> None:
    write_report(tuned_out, tmp_path)
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    gaps = tuning_gaps(analysis.load(tuned_out))
    part = text.split(f"### {GAPS}\n")[1]
    lines = [line for line in part.splitlines() if line.startswith("| ")]
    assert len(lines) == 2 + len(gaps)
    assert f"| {gaps[0].cell} | " in lines[2]
    assert with_interval(gaps[0].asr) in lines[2]

"""The critical-difference diagram: what it shows, that its labels keep apart, and that it repeats."""

from __future__ import annotations

import sys
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest

from analysis.critical import critical_difference_figure, drawn, static_critical_difference
from analysis.looks import UNDEFENDED, UNDEFENDED_COLOUR, style_of
from analysis.rank_tests import Ranking, ranking
from backdoor_core.errors import DependencyError

LONG = "epur+fine_mixing (epur.clusters=5, fine_mixing.mixing_ratio=0.25, tuned: clean-val)"


def _demsar(alpha: float = 0.10) -> Ranking:
    """Demsar 2006, section 3.2.2 and figure 1 (a)."""
    ranks = (3.143, 2.000, 2.893, 1.964)
    return ranking(["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"], ranks, 14, alpha=alpha)


def _many(count: int, spread: float, blocks: int = 60) -> Ranking:
    """`count` methods, some with long labels; their ranks lie close together where `spread` is small."""
    names = [
        "none",
        *(f"{LONG} {place}" if place % 3 == 0 else f"d{place}" for place in range(1, count)),
    ]
    middle = (count + 1) / 2
    return ranking(
        names, [middle + spread * (place - middle + 1) for place in range(count)], blocks
    )


def _texts(figure) -> list:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    return [text for text in figure.axes[0].texts if text.get_text()]


def _apart(boxes) -> bool:
    return not any(one.overlaps(other) for one, other in combinations(boxes, 2))


@pytest.mark.parametrize("count", [3, 4, 7, 12])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_no_two_texts_overlap(count: int, spread: float) -> None:
    pytest.importorskip("matplotlib")
    figure = drawn(_many(count, spread), title="ASR")
    boxes = [text.get_window_extent() for text in _texts(figure)]
    assert len(boxes) == count + count + 2  # labels, ticks, the ruler's name and the heading
    assert _apart(boxes)


def test_lines_keep_clear_of_labels() -> None:
    pytest.importorskip("matplotlib")
    figure = drawn(_many(12, 1.0), title="ASR")
    texts = _texts(figure)
    axes = figure.axes[0]
    for line in axes.lines:
        points = axes.transData.transform(line.get_xydata())
        for start, end in pairwise(points):
            for text in texts:
                box = text.get_window_extent()
                inside = (
                    min(start[0], end[0]) < box.x1 - 1
                    and max(start[0], end[0]) > box.x0 + 1
                    and min(start[1], end[1]) < box.y1 - 1
                    and max(start[1], end[1]) > box.y0 + 1
                )
                assert not inside, text.get_text()


def test_the_best_stands_on_the_right_with_its_rank() -> None:
    pytest.importorskip("matplotlib")
    texts = {text.get_text(): text.get_position() for text in _texts(drawn(_demsar(), title="AUC"))}
    x_best, y_best = texts["1.96  C4.5+m+cf"]
    x_worst, y_worst = texts["C4.5  3.14"]
    assert x_best < 1 < 4 < x_worst  # the axis runs from 4 to 1
    assert y_best == y_worst == min(y for text, (_, y) in texts.items() if "C4.5" in text)
    assert "Critical difference (CD) = 1.12" in texts
    heading = next(text for text in texts if text.startswith("AUC"))
    assert "14 blocks, 1 is best. Friedman's test: p = 0.020" in heading


def _lines(figure) -> list[tuple[list[float], list[float], float]]:
    return [(list(trace.x), list(trace.y), trace.line.width) for trace in figure.data]


def test_bars_join_the_groups_and_the_ruler_is_one_critical_difference_long() -> None:
    found = _demsar()
    figure = critical_difference_figure(found, title="AUC")
    bars = [(x, y) for x, y, width in _lines(figure) if width == 5]
    assert len(bars) == 2
    for (best, worst), group in zip((x for x, _ in bars), found.groups, strict=True):
        joined = {
            method
            for method, rank in zip(found.methods, found.average_ranks, strict=True)
            if best <= rank <= worst
        }
        assert joined == set(group)
    assert bars[0][1] != bars[1][1]  # they overlap, so they stand on two levels
    ruler = next(x for x, y, _ in _lines(figure) if y[0] == y[1] < 0)
    assert ruler[0] - ruler[1] == pytest.approx(found.critical_difference)


def test_one_bar_where_friedman_finds_nothing() -> None:
    ranks = ranking(["a", "b", "c"], [1.5, 2.0, 2.5], 3)
    assert not ranks.significant
    figure = critical_difference_figure(ranks, title="ASR")
    ((best, worst), _, _) = next(line for line in _lines(figure) if line[2] == 5)
    assert best < 1.5
    assert worst > 2.5
    assert "No difference found at alpha = 0.05" in figure.layout.title.text


def test_a_critical_difference_longer_than_the_axis_fits() -> None:
    ranks = ranking(["a", "b", "c"], [1.0, 2.0, 3.0], 2)
    assert ranks.critical_difference > 2
    worst_end, best_end = critical_difference_figure(ranks, title="ASR").layout.xaxis.range
    assert best_end < 3 - ranks.critical_difference < 1 < 3 < worst_end


def test_plotly_rows_keep_apart_and_have_room() -> None:
    figure = critical_difference_figure(_many(12, 0.05), title="ASR")
    labels = [
        note
        for note in figure.layout.annotations
        if note.align != "center" and "CD" not in note.text
    ]
    assert len(labels) == 12
    for side in ("left", "right"):
        rows = sorted(
            (note.y, note.text.count("<br>") + 1) for note in labels if note.xanchor == side
        )
        assert len(rows) == 6
        for (y, lines), (next_y, next_lines) in pairwise(rows):
            assert y + lines / 2 < next_y - next_lines / 2
    longest = max(len(line) for note in labels for line in note.text.split("<br>"))
    assert longest < 48
    assert figure.layout.margin.l > 6 * longest
    deepest, highest = figure.layout.yaxis.range
    assert all(highest < note.y < deepest for note in figure.layout.annotations)


def test_colours_are_those_of_the_defenses() -> None:
    names = {"none": "none", "a (x=1)": "a", "a (x=2)": "a", "b": "b"}
    ranks = ranking(list(names), [4, 1, 2, 3], 9)
    figure = critical_difference_figure(ranks, title="ASR", defenses=names)
    colours = {trace.name: trace.line.color for trace in figure.data if trace.name}
    assert colours["none"] == UNDEFENDED_COLOUR
    assert colours["a (x=1)"] == colours["a (x=2)"] != colours["b"]
    alone = critical_difference_figure(ranks, title="ASR")
    assert len({trace.line.color for trace in alone.data if trace.name}) == 4
    assert style_of(["none"])["none"][0] == UNDEFENDED_COLOUR
    assert any(UNDEFENDED in note.text for note in figure.layout.annotations)


def test_labels_are_escaped_for_plotly() -> None:
    ranks = ranking(["<b>", "b", "c"], [1, 2, 3], 9)
    figure = critical_difference_figure(ranks, title="<i>ASR")
    assert figure.layout.title.text.startswith("&lt;i&gt;ASR")
    assert "1.00  &lt;b&gt;" in [note.text for note in figure.layout.annotations]
    assert next(trace.hovertext for trace in figure.data).startswith("<b>&lt;b&gt;</b>")


def test_static_picture_is_svg_without_a_date_and_the_same_each_time() -> None:
    pytest.importorskip("matplotlib")
    first = static_critical_difference(_demsar(), title="AUC, $x")
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert "<dc:date>" not in first
    assert static_critical_difference(_demsar(), title="AUC, $x") == first


def test_static_picture_without_matplotlib_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match="notebook"):
        static_critical_difference(_demsar(), title="AUC")

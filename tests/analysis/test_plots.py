"""The figures: what is drawn, on which axes, in which style."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

import analysis
from analysis.curves import rate_curves, setting_curves
from analysis.heat import heat_maps
from analysis.looks import COLOURS, SHARE_RANGE, SYMBOLS, number_axis, plain, style_of
from analysis.plots import static_tradeoff, tradeoff_figure
from analysis.summaries import Summary, summaries
from analysis.worst import WorstCase, worst_cases
from backdoor_core.errors import DataError, DependencyError

SETUP = ("sst2", "bert")


@pytest.fixture(scope="module")
def found(sweep_out: Path) -> tuple[Summary, ...]:
    return summaries(analysis.load(sweep_out))


@pytest.fixture(scope="module")
def worst(found: tuple[Summary, ...]) -> tuple[WorstCase, ...]:
    return worst_cases(found)


def test_tradeoff_has_a_choice_for_the_worst_case_and_each_cell(found, worst) -> None:
    figure = tradeoff_figure(found, worst, SETUP)
    buttons = figure.layout.updatemenus[0].buttons
    assert len(buttons) == 7
    assert buttons[0].label == "Worst case over attacks"
    assert tuple(figure.layout.xaxis.range) == SHARE_RANGE
    shown = [trace.visible for trace in figure.data]
    assert shown == list(buttons[0].args[0]["visible"])
    for button in buttons:
        assert any(button.args[0]["visible"])
    assert all(sum(column) == 1 for column in zip(*(b.args[0]["visible"] for b in buttons)))  # noqa: B905


def test_tradeoff_marks_what_is_not_ranked_and_draws_intervals(found, worst) -> None:
    figure = tradeoff_figure(found, worst, SETUP)
    x_graad = next(trace for trace in figure.data if trace.name == "x_graad")
    assert all(symbol.endswith("-open") for symbol in x_graad.marker.symbol)
    assert "not ranked" in x_graad.hovertext[0]
    mixing = next(trace for trace in figure.data if trace.name == "fine_mixing")
    assert len(mixing.x) == 4
    assert all(length > 0 for length in mixing.error_x.array)
    front = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert list(front.x) == sorted(front.x)


def test_figures_of_an_unknown_setup_are_none(found, worst) -> None:
    nowhere = ("x", "y")
    assert tradeoff_figure(found, worst, nowhere) is None
    assert heat_maps(found, nowhere) is None
    assert setting_curves(found, worst, nowhere) == []
    assert rate_curves(found, nowhere) == []
    with pytest.raises(DataError, match="no defense setting"):
        static_tradeoff(found, worst, nowhere)


def test_heat_maps_hold_every_cell_and_setting(found) -> None:
    asr, drop = heat_maps(found, SETUP).data
    assert len(asr.x) == 7
    assert len(asr.y) == 8
    assert (asr.zmin, asr.zmax) == (0, 1)
    assert drop.zmin == -drop.zmax
    assert asr.z[0][0] is None
    assert asr.text[0][asr.x.index("badnets (rate 0.1)")] == "0.98"


def test_curves_over_a_setting_have_a_line_a_cell(found, worst) -> None:
    (curves,) = setting_curves(found, worst, SETUP)
    assert (curves.defense, curves.setting) == ("fine_mixing", "mixing_ratio")
    asr = [trace for trace in curves.figure.data if trace.xaxis == "x"]
    assert len(asr) == 6
    assert all(list(trace.x) == [0.1, 0.3, 0.5, 0.7] for trace in asr)
    assert tuple(curves.figure.layout.yaxis.range) == SHARE_RANGE
    assert curves.figure.layout.xaxis.type == "linear"
    assert not curves.figure.layout.updatemenus


def test_many_lines_are_grouped_behind_the_worst_case(tmp_path: Path, record, write) -> None:
    rows = [
        record(
            attack_settings={"poison_rate": rate},
            defense="fine_mixing",
            defense_settings={"mixing_ratio": ratio, "epochs": epochs, "init": "x"},
        )
        for rate in (0.01, 0.05, 0.1)
        for ratio in (0.1, 0.5)
        for epochs in (1, 2, 3)
    ]
    found = summaries(analysis.load(write(tmp_path, rows)))
    curves = setting_curves(found, worst_cases(found), SETUP)
    assert [one.setting for one in curves] == ["epochs", "mixing_ratio"]
    buttons = curves[1].figure.layout.updatemenus[0].buttons
    assert [button.label for button in buttons] == ["Worst case over attacks", "badnets"]
    visible = [trace.name for trace in curves[1].figure.data if trace.visible]
    assert set(visible) == {"epochs=1", "epochs=2", "epochs=3"}
    ((attack, figure),) = rate_curves(found, SETUP)
    assert attack == "badnets"
    assert len(figure.data) == 2 * 6


def test_curves_over_the_rate_are_logarithmic_where_it_spans_decades(found) -> None:
    curves = rate_curves(found, SETUP)
    assert [attack for attack, _ in curves] == ["badnets", "syntactic"]
    axis = curves[0][1].layout.xaxis
    assert axis.type == "log"
    assert list(axis.ticktext) == ["0.001", "0.01", "0.1"]


def test_number_axis_is_linear_within_a_decade_and_at_zero() -> None:
    for values in ([0.1, 1.0], [0.0, 100.0], [-1.0, 100.0]):
        assert number_axis(values) == {"type": "linear", "exponentformat": "none"}
    dense = number_axis([0.001, 0.00101, 0.1])
    assert dense["ticktext"] == ["0.001", "0.1"]


def test_styles_differ_for_many_names_and_none_stays_apart() -> None:
    names = ["none", *(f"d{place}" for place in range(60))]
    styles = style_of(names)
    assert len(set(styles.values())) == len(names)
    assert styles["none"][0] not in COLOURS
    assert all(styles[name][1] < len(SYMBOLS) - 1 for name in names[1:])


def test_labels_are_escaped_for_plotly() -> None:
    assert plain("<a href='x'>") == "&lt;a href='x'&gt;"


def test_static_picture_is_svg_and_the_same_each_time(found, worst) -> None:
    pytest.importorskip("matplotlib")
    first = static_tradeoff(found, worst, SETUP)
    assert ElementTree.fromstring(first).tag.endswith("svg")
    assert static_tradeoff(found, worst, SETUP) == first


def test_static_picture_without_matplotlib_says_what_to_install(found, worst, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(DependencyError, match="notebook"):
        static_tradeoff(found, worst, SETUP)

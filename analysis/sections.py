"""What the report says of one setup (task x PLM): its figures, tables and sentences, for the template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup

from analysis.answers import answer
from analysis.columns import swept
from analysis.cost import Cost, cost_table, costs
from analysis.critical import critical_difference_figure
from analysis.curves import rate_curves, setting_curves
from analysis.examples import Drilled, TrialExamples, drilled
from analysis.exports import cell_table, worst_table
from analysis.gaps import TuningGap, gap_table, tuning_gaps
from analysis.groups import groups
from analysis.heat import MOST_ROWS, heat_maps
from analysis.history import MOST_STUDIES, histories, history_figure
from analysis.leaderboard import Board, leaderboard
from analysis.parallel import MOST_LINES, parallel_figure
from analysis.plots import tradeoff_figure
from analysis.ranks import ranks
from analysis.resistance import resistance_points, resistance_table
from analysis.responses import (
    FILE,
    IMPORTANCE_MISSING,
    Source,
    file_lines,
    importance_figure,
    importances_of,
    search_lines,
    sources,
    stability_table,
)
from analysis.standings import TITLES, board_rows, over_budget_rows, refused_rows
from analysis.summaries import Summary
from analysis.table import ResultTable
from analysis.tuned import tuning_rows
from analysis.tuning_answers import tuning_answer
from analysis.worst import WorstCase, worst_cases

MOST_TABLE_ROWS = 1500
"""A table shows the first so many rows; `summary.csv` has all."""
_FIGURE_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover"}

Titled = tuple[str, Markup]


@dataclass(frozen=True)
class Contents:
    """Everything that sections are made of, each computed once."""

    results: ResultTable
    found: Sequence[Summary]
    metric: str
    examples: Sequence[TrialExamples] = ()

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """The ledger's rows."""
        return self.results.rows()

    @cached_property
    def tuning(self) -> list[dict[str, Any]]:
        """The rows of the tuning tables."""
        return tuning_rows(self.results)

    @cached_property
    def worst(self) -> tuple[WorstCase, ...]:
        """The worst cases of all setups."""
        return worst_cases(self.found)

    @cached_property
    def gaps(self) -> tuple[TuningGap, ...]:
        """Honest tuning against the oracle."""
        return tuning_gaps(self.results)

    @cached_property
    def costs(self) -> tuple[Cost, ...]:
        """What every defense setting costs."""
        return costs(self.results, self.tuning)

    @cached_property
    def boards(self) -> Mapping[tuple[str, str], Board]:
        """The leaderboards by setup."""
        return {(board.task, board.plm): board for board in leaderboard(self.results).boards}

    @cached_property
    def identities(self) -> Mapping[tuple[str, str], set[tuple[Any, ...]]]:
        """The columns that name each setup, by its labels."""
        known: dict[tuple[str, str], set[tuple[Any, ...]]] = {}
        for group in groups(self.results):
            known.setdefault(group.setup, set()).add(group.identity)
        return known


def section(contents: Contents, setup: tuple[str, str], place: int) -> dict[str, Any]:
    """What the template shows of one setup; `place` keeps the names of its figures apart from other setups'."""
    found, worst = contents.found, contents.worst
    mine = [summary for summary in found if summary.setup == setup]
    cases = [case for case in worst if case.setup == setup]
    settings = len({summary.setting for summary in mine})
    return {
        "title": " with ".join(setup),
        "identity": f"setup-{place}",
        "answer": answer(found, worst, setup),
        "tuning_answer": tuning_answer(contents.gaps, worst, setup),
        "tradeoff": html_of(tradeoff_figure(found, worst, setup), f"tradeoff-{place}"),
        "heat_maps": html_of(heat_maps(found, setup), f"heat-maps-{place}"),
        "heat_maps_cut": f"The first {MOST_ROWS} of {settings} settings."
        if settings > MOST_ROWS
        else "",
        "curves": _curves(contents, setup, place),
        "worst": _table(*worst_table(cases)),
        "cells": _table(*cell_table(mine)),
        "gaps": _table(*gap_table([gap for gap in contents.gaps if gap.setup == setup])),
        "costs": _table(*cost_table([cost for cost in contents.costs if cost.setup == setup])),
        "resistance": _table(
            *resistance_table([p for p in resistance_points(found) if p.setup == setup])
        ),
        "board": _board(contents, setup),
        "ranks": _ranks(contents, setup, place),
        **_settings(contents, setup, place),
        "examples": _examples(contents, setup),
    }


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A table for the template, with a line where it is cut."""
    cut = ""
    if len(rows) > MOST_TABLE_ROWS:
        cut = f"The first {MOST_TABLE_ROWS} of {len(rows)} rows; summary.csv has every attack cell."
    return {"titles": titles, "rows": rows[:MOST_TABLE_ROWS], "cut": cut}


def _curves(contents: Contents, setup: tuple[str, str], place: int) -> list[Titled]:
    curves: list[tuple[str, go.Figure]] = [
        (f"{curve.defense} over {curve.setting}", curve.figure)
        for curve in setting_curves(contents.found, contents.worst, setup)
    ]
    curves += [
        (f"{attack} over the poison rate", fig)
        for attack, fig in rate_curves(contents.found, setup)
    ]
    return _drawn(curves, f"curve-{place}")


def _drawn(figures: Sequence[tuple[str, go.Figure | None]], identity: str) -> list[Titled]:
    """Figures with their titles as pieces of the page; those that there are none of are left out."""
    drawn = [(title, html_of(fig, f"{identity}-{n}")) for n, (title, fig) in enumerate(figures)]
    return [(title, html) for title, html in drawn if html is not None]


def _board(contents: Contents, setup: tuple[str, str]) -> dict[str, Any] | None:
    board = contents.boards.get(setup)
    if board is None:
        return None
    return {
        "ranked": len(board.ranked),
        "entries": _table(TITLES, board_rows(board)),
        "over_budget": _table(TITLES, over_budget_rows(board)),
        "refused": _table(("Defense setting", "Why"), refused_rows(board)),
    }


def _ranks(contents: Contents, setup: tuple[str, str], place: int) -> dict[str, Any]:
    made = ranks(contents.results, contents.found, setup, contents.metric)
    if made.comparison is None:
        return {"figure": None, "notes": made.notes}
    figure = critical_difference_figure(
        made.comparison.ranking, title=made.title, defenses=made.comparison.defenses
    )
    return {"figure": html_of(figure, f"ranks-{place}"), "notes": made.notes}


def _settings(contents: Contents, setup: tuple[str, str], place: int) -> dict[str, Any]:
    """Tuning histories, parallel coordinates, importances and stability."""
    identities = contents.identities.get(setup, set())
    known = sources(contents.rows, contents.tuning, identities)
    names = swept(contents.rows)
    searched = {
        defense: histories(
            [row for row in contents.tuning if _is_of(row, defense, identities)], names
        )
        for defense in dict.fromkeys(row["defense"] for row in contents.tuning)
    }
    summaries = [summary for summary in contents.found if summary.setup == setup]

    def lines(source: Source) -> go.Figure | None:
        if source.kind == FILE:
            return parallel_figure(file_lines(source, summaries), source.varying)
        return parallel_figure(search_lines(source, searched[source.defense]), source.varying)

    shares = importances_of(known, "asr")
    return {
        "histories": _drawn(
            [(defense, history_figure(found)) for defense, found in searched.items()],
            f"history-{place}",
        ),
        "most_studies": MOST_STUDIES,
        "parallel": _drawn([(one.title, lines(one)) for one in known], f"parallel-{place}"),
        "most_lines": MOST_LINES,
        "importance": html_of(importance_figure(shares), f"importance-{place}"),
        "importance_missing": IMPORTANCE_MISSING if known and not shares else "",
        "stability": _table(*stability_table(known)),
    }


def _is_of(row: Mapping[str, Any], defense: str, identities: set[tuple[Any, ...]]) -> bool:
    columns = ("task", "task_settings", "plm", "plm_settings", "training_settings")
    return row["defense"] == defense and tuple(row[name] for name in columns) in identities


def _examples(contents: Contents, setup: tuple[str, str]) -> dict[str, list[Drilled]]:
    return drilled(contents.results, contents.examples, setup) if contents.examples else {}


def html_of(figure: go.Figure | None, identity: str) -> Markup | None:
    """A figure as a piece of the page; plotly.js stands once in its head. Its JSON has no bare `<`."""
    if figure is None:
        return None
    text = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=identity,
        default_width="100%",
        default_height=f"{figure.layout.height}px",
        config=_FIGURE_CONFIG,
    )
    return Markup(text)

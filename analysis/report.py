"""The report of a sweep: one HTML file that opens from disk without a network, and the summaries beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.answers import answer
from analysis.curves import rate_curves, setting_curves
from analysis.exports import cell_table, csv_text, markdown_text, setups_of, worst_table
from analysis.facts import (
    FAILURE_TITLES,
    PROTOCOL,
    environments,
    failures,
    failures_lead,
    flag_rows,
    lead,
    reproduce,
    title,
)
from analysis.plots import heat_maps, static_tradeoff, tradeoff_figure
from analysis.summaries import Summary, summaries
from analysis.table import ResultTable, loaded
from analysis.worst import WorstCase, worst_cases
from backdoor_core.errors import DataError
from backdoor_core.store import Folder

REPORT = "report.html"
SUMMARY_CSV = "summary.csv"
SUMMARY_MARKDOWN = "summary.md"
_FIGURE_CONFIG = {"displaylogo": False, "responsive": True, "displayModeBar": "hover"}


def write_report(
    out: str | Path | Iterable[str | Path], destination: str | Path | None = None
) -> Path:
    """Writes `report.html`, `summary.csv` and `summary.md`; returns the path of the report.

    `out` is a sweep's output folder, or several that are read together; `destination` is the folder that the
    files go to (default: the first output folder). Each file is published in one step. Raises
    StorageError where there is no ledger or the destination cannot be written, DataError for a newer ledger.
    """
    results = loaded(out)
    found = summaries(results)
    folder = Folder(results.folders[0] if destination is None else destination).make()
    folder.write(SUMMARY_CSV, csv_text(found).encode())
    folder.write(SUMMARY_MARKDOWN, markdown_text(found).encode())
    folder.write(REPORT, report_html(results, found).encode())
    return Path(folder.path(REPORT))


def write_tradeoff_svg(
    out: str | Path | Iterable[str | Path], path: str | Path, *, by_attack: bool = False
) -> Path:
    """Writes the trade-off as SVG, for the worst case or with a panel for each attack cell; returns the path.

    With several setups (task x PLM) each gets a file of its own: `name-2.svg` is the second. Raises
    DependencyError without matplotlib, DataError where no defense setting has both ASR and CACC.
    """
    found = summaries(loaded(out))
    worst = worst_cases(found)
    setups = list(dict.fromkeys(case.setup for case in worst))
    if not setups:
        raise DataError("no attack cell has numbers yet, so there is no trade-off to draw")
    first = Path(path)
    folder = Folder(first.resolve().parent).make()
    for place, setup in enumerate(setups, start=1):
        name = first.name if place == 1 else f"{first.stem}-{place}{first.suffix}"
        picture = static_tradeoff(found, worst, setup, by_attack=by_attack)
        folder.write(name, picture.encode())
    return first


def report_html(results: ResultTable, found: Sequence[Summary]) -> str:
    """The text of the report. Whatever comes from the ledger is escaped."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        files("analysis").joinpath("report.jinja").read_text(encoding="utf-8")
    )
    rows = results.rows()
    worst = worst_cases(found)
    return template.render(
        title=title(rows),
        lead=lead(rows, found),
        notices=results.notices,
        plotly_js=Markup(get_plotlyjs()),
        setups=[_setup(found, worst, setup, place) for place, setup in enumerate(setups_of(found))],
        failure_titles=FAILURE_TITLES,
        failures=failures(rows),
        failures_lead=failures_lead(rows),
        flags=flag_rows(found),
        protocol=PROTOCOL,
        reproduce=reproduce(rows, results.folders),
        environments=environments(rows),
    )


def _setup(
    found: Sequence[Summary], worst: Sequence[WorstCase], setup: tuple[str, str], place: int
) -> dict[str, Any]:
    """What the template shows of one setup (task x PLM)."""
    titles, rows = cell_table([summary for summary in found if summary.setup == setup])
    worst_titles, worst_rows = worst_table([case for case in worst if case.setup == setup])
    curves: list[tuple[str, go.Figure]] = [
        (f"{curve.defense} over {curve.setting}", curve.figure)
        for curve in setting_curves(found, worst, setup)
    ]
    curves += [(f"{attack} over the poison rate", fig) for attack, fig in rate_curves(found, setup)]
    return {
        "title": " with ".join(setup),
        "answer": answer(found, worst, setup),
        "tradeoff": _html(tradeoff_figure(found, worst, setup), f"tradeoff-{place}"),
        "heat_maps": _html(heat_maps(found, setup), f"heat-maps-{place}"),
        "curves": [
            {"title": text, "figure": _html(figure, f"curve-{place}-{number}")}
            for number, (text, figure) in enumerate(curves)
        ],
        "titles": titles,
        "rows": rows,
        "worst_titles": worst_titles,
        "worst_rows": worst_rows,
    }


def _html(figure: go.Figure | None, identity: str) -> Markup | None:
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

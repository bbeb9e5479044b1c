"""The report of a sweep: one HTML file that opens from disk without a network, and the summaries beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.critical import static_critical_difference
from analysis.examples import TrialExamples
from analysis.exports import csv_text, markdown_text, setups_of
from analysis.facts import (
    FAILURE_TITLES,
    PROTOCOL,
    environments,
    failures,
    failures_lead,
    flag_rows,
    lead,
    reproduce,
    standing,
    title,
)
from analysis.gaps import gap_table
from analysis.grouping import replaced_keys
from analysis.leaderboard import BUDGET, MIN_SEEDS
from analysis.plots import static_tradeoff
from analysis.ranks import METRIC, ranks
from analysis.sections import Contents, section
from analysis.summaries import summaries
from analysis.table import ResultTable, loaded
from analysis.worst import worst_cases
from backdoor_core.errors import DataError
from backdoor_core.folder import Folder

REPORT = "report.html"
SUMMARY_CSV = "summary.csv"
GAPS = "Tuned settings minus the oracle's, seed by seed"
SUMMARY_MARKDOWN = "summary.md"

Source = ResultTable | str | Path | Iterable[str | Path]
"""Results, a sweep's output folder, or several that are read together."""


def write_report(
    out: Source,
    destination: str | Path | None = None,
    *,
    metric: str = METRIC,
    examples: Sequence[TrialExamples] = (),
    examples_note: str = "",
) -> Path:
    """Writes `report.html`, `summary.csv` and `summary.md`; returns the path of the report.

    `destination` is the folder that the files go to (default: the first output folder), `metric` what the
    critical-difference diagram ranks by. `examples` are texts behind the numbers, `examples_note` what to say of those
    that are missing. Each file is published in one step. Raises StorageError where there is no ledger or the
    destination cannot be written, DataError for a newer ledger, ConfigError for an unknown metric.
    """
    results = _results(out)
    found = summaries(results)
    contents = Contents(results, found, metric, examples)
    page = report_html(contents, examples_note)
    folder = Folder(results.folders[0] if destination is None else destination).make()
    folder.write(SUMMARY_CSV, csv_text(found).encode())
    more = {
        setup: {GAPS: gap_table([gap for gap in contents.gaps if gap.setup == setup])}
        for setup in setups_of(found)
    }
    folder.write(SUMMARY_MARKDOWN, markdown_text(found, more).encode())
    folder.write(REPORT, page.encode())
    return Path(folder.path(REPORT))


def _results(out: Source) -> ResultTable:
    return out if isinstance(out, ResultTable) else loaded(out)


def write_tradeoff_svg(out: Source, path: str | Path, *, by_attack: bool = False) -> Path:
    """Writes the trade-off as SVG, for the worst case or with a panel for each attack cell; returns the path.

    With several setups (task x PLM) each gets a file of its own: `name-2.svg` is the second. Raises
    DependencyError without matplotlib, DataError where no defense setting has both ASR and CACC.
    """
    found = summaries(_results(out))
    worst = worst_cases(found)
    setups = list(dict.fromkeys(case.setup for case in worst))
    if not setups:
        raise DataError("no attack cell has numbers yet, so there is no trade-off to draw")
    pictures = [static_tradeoff(found, worst, setup, by_attack=by_attack) for setup in setups]
    return _published(pictures, Path(path))


def write_critical_svg(out: Source, path: str | Path, *, metric: str = METRIC) -> Path:
    """Writes the critical-difference diagram of each setup as SVG (see `write_tradeoff_svg`); returns the path.

    Setups that cannot be ranked have no file. Raises DependencyError without matplotlib, ConfigError for an unknown
    metric, DataError with the reason where no setup can be ranked.
    """
    results = _results(out)
    found = summaries(results)
    pictures: list[str] = []
    reasons: list[str] = []
    for setup in setups_of(found):
        made = ranks(results, found, setup, metric)
        if made.comparison is None:
            reasons += made.notes
            continue
        ranking, names = made.comparison.ranking, made.comparison.defenses
        pictures.append(static_critical_difference(ranking, title=made.title, defenses=names))
    if not pictures:
        raise DataError(
            " ".join(reasons) or "no trial has finished yet, so there is nothing to rank"
        )
    return _published(pictures, Path(path))


def _published(pictures: Sequence[str], first: Path) -> Path:
    """Writes pictures: the first at the path, the others beside it with a number."""
    folder = Folder(first.resolve().parent).make()
    for place, picture in enumerate(pictures, start=1):
        name = first.name if place == 1 else f"{first.stem}-{place}{first.suffix}"
        folder.write(name, picture.encode())
    return first


def report_html(contents: Contents, examples_note: str = "") -> str:
    """The text of the report. Whatever comes from the ledger is escaped."""
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(_template),
    )
    rows, found = contents.rows, contents.found
    setups = [section(contents, setup, place) for place, setup in enumerate(setups_of(found))]
    replaced = replaced_keys(contents.results)
    left = standing(rows, replaced)
    return environment.get_template("report.jinja").render(
        title=title(rows),
        lead=lead(rows, found, replaced),
        notices=contents.results.notices,
        plotly_js=Markup(get_plotlyjs()),
        setups=setups,
        metric=contents.metric,
        budget=f"{BUDGET:g}",
        min_seeds=MIN_SEEDS,
        examples_note=examples_note,
        failure_titles=FAILURE_TITLES,
        failures=failures(left),
        failures_lead=failures_lead(left),
        flags=flag_rows(found),
        protocol=PROTOCOL,
        reproduce=reproduce(rows, contents.results.folders),
        environments=environments(rows),
    )


def _template(name: str) -> str:
    return files("analysis").joinpath(name).read_text(encoding="utf-8")

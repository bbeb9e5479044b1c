"""The summaries as files: `summary.csv` for other programs, `summary.md` for people."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from analysis.seeds import Estimate
from analysis.summaries import METRICS, REFERENCES, Summary
from analysis.worst import Worst, WorstCase, worst_cases
from backdoor_core.spec import canonical_json

CSV_COLUMNS = (
    *("task", "plm", "synthetic", "attack", "attack_cell", "poison_rate", "adaptive"),
    *("defense", "defense_setting", "defense_settings", "tuning_mode", "seeds"),
    *(f"{metric}{end}" for metric in METRICS for end in ("", "_low", "_high", "_seeds")),
    *REFERENCES,
    *("flags", "failed_trials", "skipped_trials", "superseded_trials", "fit_s"),
)
"""Columns of `summary.csv`. `asr` is the mean over `asr_seeds` seeds, `asr_low` and `asr_high` its interval."""

_LONE_UNDERSCORE = re.compile(r"(?<!\w)_|_(?!\w)")

_FROM_ASR: dict[str, Callable[[float], float]] = {
    "asr_max": lambda asr: asr,
    "triggered_accuracy": lambda asr: 1 - asr,
}
"""What a metric is where an attack has one trigger and the task two classes."""
_SHOWN = (
    ("CACC", "cacc"),
    ("ASR", "asr"),
    ("largest ASR", "asr_max"),
    ("ASRD", "asrd"),
    ("triggered accuracy", "triggered_accuracy"),
    ("CACC drop", "cacc_drop"),
    ("FRR", "frr"),
    ("FAR", "far"),
)
"""Metrics in tables for people, with their titles."""


NONE = "-"
"""Stands where there is no number."""


def number(value: float | None) -> str:
    """Three decimals; a dash where there is no number; no minus sign before zero."""
    if value is None:
        return NONE
    text = f"{value:.3f}"
    return "0.000" if text == "-0.000" else text


def with_interval(estimate: Estimate) -> str:
    """`0.123 [0.100, 0.150]`, or the mean alone where it has no interval."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.mean)
    return f"{number(estimate.mean)} [{number(estimate.low)}, {number(estimate.high)}]"


def flags_text(flags: Iterable[tuple[str, int]]) -> str:
    """`attack_did_not_take (3 rows), ...`."""
    return ", ".join(f"{name} ({count} row{'s' * (count != 1)})" for name, count in flags)


def csv_text(summaries: Iterable[Summary]) -> str:
    """`summary.csv`: one line for each cell x defense setting, null as an empty field."""
    sink = io.StringIO()
    writer = csv.writer(sink, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for summary in summaries:
        estimates = [summary.of(metric) for metric in METRICS]
        writer.writerow(
            [
                *(summary.task, summary.plm, summary.synthetic, summary.attack, summary.cell),
                *(summary.poison_rate, summary.adaptive, summary.defense, summary.setting),
                *(canonical_json(dict(summary.settings)), summary.tuning_mode),
                " ".join(str(seed) for seed in summary.seeds),
                *(part for one in estimates for part in (one.mean, one.low, one.high, one.n)),
                *(summary.of(metric).mean for metric in REFERENCES),
                ";".join(f"{name}={count}" for name, count in summary.flags.items()),
                *(summary.failed, summary.skipped, summary.superseded, summary.fit_s),
            ]
        )
    return sink.getvalue()


def worst_table(worst: Sequence[WorstCase]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of worst cases (of one setup)."""
    titles = ["Defense setting", "Attack cells", "Seeds", "Worst ASR", "against", "Worst ASRD"]
    titles += ["Lowest CACC", "Largest CACC drop", "in"]
    return titles, [
        [
            case.setting,
            f"{case.cells} of {case.all_cells}",
            str(case.seeds),
            *_worst(case.asr),
            with_interval(case.asrd.estimate),
            with_interval(case.cacc.estimate),
            *_worst(case.cacc_drop),
        ]
        for case in worst
    ]


def _worst(worst: Worst) -> list[str]:
    return [with_interval(worst.estimate), worst.cell or NONE]


def cell_table(summaries: Sequence[Summary]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table of all summaries (of one setup)."""
    shown = [(title, metric) for title, metric in _SHOWN if _tells(metric, summaries)]
    titles = ["Attack cell", "Defense setting", "Seeds", *(title for title, _ in shown)]
    titles += ["Fit, s", "Flags", "Without numbers"]
    return titles, [
        [
            summary.cell,
            summary.setting,
            str(len(summary.seeds)),
            *(with_interval(summary.of(metric)) for _, metric in shown),
            NONE if summary.fit_s is None else f"{summary.fit_s:.1f}",
            flags_text(summary.flags.items()) or NONE,
            _without_numbers(summary),
        ]
        for summary in summaries
    ]


def _tells(metric: str, summaries: Sequence[Summary]) -> bool:
    """Whether a column says anything that ASR does not: with one trigger and two classes, some do not."""
    follows = _FROM_ASR.get(metric)
    if follows is None:
        return True
    pairs = ((summary.of("asr").mean, summary.of(metric).mean) for summary in summaries)
    return any(
        asr is not None and value is not None and abs(value - follows(asr)) > 5e-4
        for asr, value in pairs
    )


def _without_numbers(summary: Summary) -> str:
    parts = [
        f"{count} {word}"
        for count, word in ((summary.failed, "failed"), (summary.skipped, "skipped"))
        if count
    ]
    return ", ".join(parts) or NONE


def setups_of(summaries: Iterable[Summary]) -> list[tuple[str, str]]:
    """The setups (task and PLM labels), each once, in order."""
    return list(dict.fromkeys(summary.setup for summary in summaries))


Table = tuple[Sequence[str], Sequence[Sequence[str]]]
"""Titles and rows."""


def markdown_text(
    summaries: Sequence[Summary],
    more: Mapping[tuple[str, str], Mapping[str, Table]] | None = None,
) -> str:
    """`summary.md`: for each setup the worst cases over attacks, then every cell, in GitHub's Markdown.

    `more` has further tables by setup and heading; those without rows are left out.
    """
    parts = ["# Summary", ""]
    if not summaries:
        parts += ["No trial has finished yet.", ""]
    else:
        parts += [
            "Means over seeds with 95 % intervals in brackets: Student's t over seeds where there are two "
            "or more, Wilson's over test rows where there is one. A dash: does not apply, or no numbers.",
            "",
        ]
    worst = worst_cases(summaries)
    for task, plm in setups_of(summaries):
        mine = [summary for summary in summaries if summary.setup == (task, plm)]
        parts += [f"## {escaped(task)} with {escaped(plm)}", ""]
        if mine[0].synthetic:
            parts += ["The task is synthetic: its numbers say nothing about real texts.", ""]
        cases = [case for case in worst if case.setup == (task, plm)]
        if cases:
            parts += ["### Worst case over attacks", "", *_table(*worst_table(cases)), ""]
        parts += ["### Every attack cell", "", *_table(*cell_table(mine)), ""]
        for heading, (titles, rows) in ((more or {}).get((task, plm)) or {}).items():
            if rows:
                parts += [f"### {heading}", "", *_table(titles, rows), ""]
    return "\n".join(parts)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [titles, ["---"] * len(titles), *([escaped(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line of a table.

    Brackets alone and underscores within words mean nothing to GitHub, so they stay readable.
    """
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("\\", "\\\\")
    for mark in "|*`~":
        text = text.replace(mark, f"\\{mark}")
    return _LONE_UNDERSCORE.sub(r"\\_", text).replace("](", "]\\(")

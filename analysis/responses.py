"""What the report says of settings: each defense's tried ones as lines, their importances, how much they matter.

Two kinds of numbers, never mixed: those of the sweep file's settings, measured on the test split, and those that
searches tried, measured on the tune split.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.columns import DEFAULT, TWIN, axes_of, settings_of
from analysis.exports import with_interval
from analysis.history import History
from analysis.importance import LEAST_TRIED, Importances, importances
from analysis.looks import error_bars, hover, layout, style_of, wrapped
from analysis.parallel import Line, line_order
from analysis.sensitivity import stability
from analysis.summaries import Summary
from analysis.tried import tried_settings, varying_settings

FILE = "the sweep file's settings, on test"
SEARCH = "settings tried by searches, on tune"
_LABEL_CHARACTERS = 44
_ANY = "cacc_drop"
"""The column that every finished trial and every tried setting has."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was tried of one defense in one setup, from one kind of table: the rows, and the settings that vary."""

    defense: str
    kind: str
    rows: tuple[Mapping[str, Any], ...]
    varying: tuple[str, ...]

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.defense}: {self.kind}"


def sources(
    rows: Iterable[Mapping[str, Any]],
    tuning: Iterable[Mapping[str, Any]],
    identities: Iterable[tuple[Any, ...]],
) -> list[Source]:
    """The defenses with two tried settings or more. `identities`: the setups' columns, as `axes_of` gives them."""
    wanted = set(identities)
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        usual = (row["tuning_mode"] or DEFAULT) == DEFAULT and row["defense"] != TWIN
        if usual and row["status"] == "ok" and axes_of(row)[0] in wanted:
            found[(row["defense"], FILE)].append(row)
    for row in tuning:
        if tuple(row[name] for name in _IDENTITY) in wanted:
            found[(row["defense"], SEARCH)].append(row)
    made = []
    for (defense, kind), same in sorted(found.items(), key=_file_first):
        varying = varying_settings(tried_settings(same, _ANY))
        if varying:
            made.append(Source(defense=defense, kind=kind, rows=tuple(same), varying=varying))
    return made


def _file_first(item: tuple[tuple[str, str], Any]) -> tuple[str, bool]:
    (defense, kind), _ = item
    return defense, kind == SEARCH


_IDENTITY = ("task", "task_settings", "plm", "plm_settings", "training_settings")


def file_lines(source: Source, found: Iterable[Summary]) -> list[Line]:
    """The lines of the sweep file's settings: means over seeds of each attack cell and setting."""
    lines = [
        Line(
            where=one.cell,
            settings={name: one.settings.get(name) for name in source.varying},
            asr=one.of("asr").mean,
            cacc_drop=one.of("cacc_drop").mean,
        )
        for one in found
        if one.defense == source.defense and one.tuning_mode == DEFAULT and not one.is_twin
    ]
    return sorted(lines, key=line_order)


def search_lines(source: Source, found: Iterable[History]) -> list[Line]:
    """The lines of a source of searches: every setting that was tried to the end, by tuning mode and attack."""
    lines = []
    for one in found:
        for row in one.rows:
            if row["state"] != "complete":
                continue
            settings = settings_of(row["settings"])
            lines.append(
                Line(
                    where=f"{one.mode}, {one.attack}",
                    settings={name: settings.get(name) for name in source.varying},
                    asr=row["asr"],
                    cacc_drop=row["cacc_drop"],
                )
            )
    return sorted(lines, key=line_order)


def importances_of(found: Sequence[Source], metric: str) -> list[tuple[Source, Importances]]:
    """The importances of each source with two varying settings or more that had enough tried."""
    several = [source for source in found if len(source.varying) > 1]
    pairs = [(source, importances(source.rows, metric=metric)) for source in several]
    return [(source, shares) for source, shares in pairs if shares.settings]


def importance_figure(found: Sequence[tuple[Source, Importances]]) -> go.Figure | None:
    """A bar for each setting, the largest of each source on top; None where nothing could be said."""
    if not found:
        return None
    styles = style_of(source.defense for source, _ in found)
    figure = go.Figure()
    bars = 0
    for source, shares in found:
        names, estimates = list(shares.settings), list(shares.settings.values())
        bars += len(names)
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=[wrapped(f"{name} ({source.title})", _LABEL_CHARACTERS) for name in names],
                x=[estimate.mean for estimate in estimates],
                error_x=error_bars(estimates),
                marker={"color": styles[source.defense][0]},
                hovertext=[
                    hover({"": name, "Share": with_interval(one), "Blocks": str(shares.blocks)})
                    for name, one in shares.settings.items()
                ],
                hoverinfo="text",
                name=source.title,
            )
        )
    figure.update_layout(
        **layout(110 + 48 * bars, margin={"t": 20, "b": 60, "l": 20, "r": 20}), showlegend=False
    )
    figure.update_xaxes(title="Importance (share; those of a defense sum to 1)", range=(0, 1.03))
    figure.update_yaxes(autorange="reversed", automargin=True, type="category")
    return figure


IMPORTANCE_MISSING = (
    f"Importances need a defense with two settings that vary and at least {LEAST_TRIED} tried ones for one attack "
    "cell and seed, with an ASR that moves; no defense here has them."
)


def stability_table(found: Iterable[Source]) -> tuple[list[str], list[list[str]]]:
    """Titles and rows: how far ASR and CACC drop move between neighbours, any two, and at most."""
    titles = ["Defense", "Tried", "Settings"]
    titles += [
        f"{metric}: {what}"
        for metric in ("ASR", "CACC drop")
        for what in ("neighbours", "any two", "range")
    ]
    rows = []
    for source in found:
        scores = [stability(source.rows, metric=metric) for metric in ("asr", "cacc_drop")]
        rows.append(
            [
                *(source.defense, source.kind, str(max(one.settings for one in scores))),
                *(
                    with_interval(value)
                    for one in scores
                    for value in (one.neighbours, one.all_pairs, one.spread)
                ),
            ]
        )
    return titles, rows

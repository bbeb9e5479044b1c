"""The report of faults survived: a table by kind, and what differs where anything does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.story import Played

_ENDINGS = {0: "finished", 1: "failed trials", 2: "an error line", 130: "interrupted", -9: "killed"}


def show(acts: Sequence[Played], console: Console, *, seed: int, seconds: float) -> None:
    """Prints the tables of all acts, the differences, and the last line."""
    for act in acts:
        console.print(_table(act))
        _show_verdict(act, console)
    blows = sum(len(act.blows) for act in acts)
    good = all(act.survived for act in acts)
    console.print(
        f"{'all' if good else 'NOT all'} of {blows} faults survived; seed {seed}, {seconds:.0f} s",
        style="bold" if good else "bold red",
    )


def _table(act: Played) -> Table:
    table = Table(title=f"{act.jobs} jobs, storage {act.storage}, {act.seconds:.0f} s")
    table.add_column("fault")
    table.add_column("count", justify="right")
    table.add_column("what was seen")
    counts = Counter(blow.fault.kind for blow in act.blows)
    for kind in sorted(counts):
        table.add_row(kind, str(counts[kind]), _seen(act, kind))
    table.add_row("all", str(len(act.blows)), _restarts(act), style="bold")
    return table


def _seen(act: Played, kind: str) -> str:
    if kind == "node lost":
        return f"{act.nodes_added} nodes added in their place"
    if kind.startswith("artifact"):
        return _fates(act, kind)
    if kind == "ledger file truncated":
        count = len(re.findall(r"note: .*\.parquet is damaged and was set aside", act.output))
        return f"{count} files set aside, their trials run again"
    if kind.startswith("storage ") and act.storage == "s3":
        return f"{act.hurt_connections} connections hurt by all cuts together"
    return ""


def _fates(act: Played, kind: str) -> str:
    """What became of the artifacts that were damaged in this way."""
    keys = [file.split("/")[2] for file, how in act.damaged.items() if how == kind]
    aside = [key for key in keys if any(key in name for name in act.set_aside)]
    return f"{len(aside)} set aside and rebuilt, {len(keys) - len(aside)} not read again"


def _restarts(act: Played) -> str:
    endings = Counter(_ENDINGS.get(code, f"code {code}") for code in act.endings)
    listed = ", ".join(f"{count} {how}" for how, count in endings.most_common())
    return f"{len(act.endings)} drivers: {listed}"


def _show_verdict(act: Played, console: Console) -> None:
    for problem in act.problems:
        console.print(f"problem: {problem}", style="red", markup=False)
    if act.verdict is None:
        return
    verdict = act.verdict
    console.print(
        f"{verdict.rows} rows, {verdict.repeated} written twice with equal numbers, "
        f"{len(verdict.found_damaged)} damaged artifacts found at the end",
        markup=False,
    )
    for difference in verdict.differences:
        console.print(f"differs: {difference}", style="red", markup=False)

"""The report of faults survived: for each act a table by kind, and what differs where anything does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table

from tests.chaos.story import Played

_ENDINGS = {
    0: "finished", 1: "failed trials", 2: "an error line", 130: "interrupted", 143: "terminated",
    -9: "killed",
}  # fmt: skip
_LEDGER_NOTE = r"note: .*\.parquet is damaged and was set aside"


def show_act(act: Played, console: Console) -> None:
    """Prints the table of an act, and what differs."""
    console.print(_table(act))
    _show_verdict(act, console)


def show_end(acts: Sequence[Played], console: Console, *, seed: int, seconds: float) -> None:
    """Prints the last line: whether all faults of all acts were survived."""
    struck = sum(len(act.struck) for act in acts)
    good = all(act.survived for act in acts)
    console.print(
        f"{'all' if good else 'NOT all'} of {struck} faults survived; seed {seed}, {seconds:.0f} s",
        style="bold" if good else "bold red",
    )


def _table(act: Played) -> Table:
    table = Table(title=f"{act.jobs} jobs, storage {act.storage}, {act.seconds:.0f} s")
    table.add_column("fault")
    table.add_column("count", justify="right")
    table.add_column("what was seen")
    counts = Counter(one.blow.fault.kind for one in act.struck)
    for kind in sorted(counts):
        table.add_row(kind, str(counts[kind]), _seen(act, kind))
    table.add_row("all", str(len(act.struck)), _restarts(act), style="bold")
    return table


def _seen(act: Played, kind: str) -> str:
    """What drivers wrote between a fault of this kind and the next of any, and what else is known of them."""
    said = [_SEEN[kind](act)] if kind in _SEEN else []
    if kind.startswith("artifact"):
        said.append(_fates(act, kind))
    text, ended = _after(act, kind)
    again = Counter(re.findall(r"^again: .*?: (\w+): ", text, re.MULTILINE))
    said += [f"{count} jobs tried again ({name})" for name, count in sorted(again.items())]
    if (rebuilt := text.count("; rebuilt\n")) and not kind.startswith("artifact"):
        said.append(f"{rebuilt} artifacts rebuilt")
    if ended:
        said.append(f"{ended} drivers ended, the same command went on")
    return "; ".join(said) or "went on"


_SEEN: dict[str, Callable[[Played], str]] = {
    "artifact: pickle inside": lambda act: (
        f"{act.output.count('is a pickle; nothing of it was loaded')} refusals said"
        + ("; run again by `sweeps rerun --failed unsafe`" if act.reruns else "")
    ),
    "node lost": lambda act: f"{act.nodes_added} nodes added in all",
    "spot notice": lambda act: f"{act.nodes_added} nodes added in all",
    "ledger file truncated": lambda act: (
        f"{len(re.findall(_LEDGER_NOTE, act.output))} files set aside in all, their trials run again"
    ),
}


def _after(act: Played, kind: str) -> tuple[str, int]:
    """What was written, and how many drivers ended, between each fault of a kind and the next of any."""
    texts, ended = [], 0
    ends = [(one.written, one.ended) for one in act.struck[1:]]
    ends.append((len(act.output), len(act.endings)))
    for one, (written, endings) in zip(act.struck, ends, strict=True):
        if one.blow.fault.kind == kind:
            texts.append(act.output[one.written : written])
            ended += sum(code != 0 for code in act.endings[one.ended : endings])
    return "\n".join(texts), ended


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
        f"{len(verdict.found_damaged)} damaged artifacts found at the end"
        + (
            f"; {act.hurt_connections} connections to the storage hurt"
            if act.hurt_connections
            else ""
        ),
        markup=False,
    )
    for difference in verdict.differences:
        console.print(f"differs: {difference}", style="red", markup=False)

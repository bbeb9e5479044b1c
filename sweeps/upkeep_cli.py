"""Commands that look after a store and a machine. Every command imports what it needs when it runs."""

from __future__ import annotations

import json
import sys

import click

EXIT_PROBLEM = 1


@click.command()
@click.option("--store", default=None, help="Artifact store (default: that of the runs).")
@click.option("--out", "outs", multiple=True, metavar="OUT",
              help="Output folder whose artifacts must stay (repeat it).")  # fmt: skip
@click.option("--older-than", "age", default="7d", show_default=True, metavar="AGE",
              help="Leave what is younger, by the storage's own clock: 90s, 30m, 12h, 7d, 2w.")  # fmt: skip
@click.option("--delete", is_flag=True, help="Remove it; else it is only said what would go.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def gc(store: str | None, outs: tuple[str, ...], age: str, delete: bool, as_json: bool) -> None:
    """Remove artifacts that no named output folder needs, and what broken runs left behind.

    With --delete the named ledgers are compacted too. Refused while another driver works on the store.
    """
    from backdoor_core.ledger import Ledger
    from backdoor_core.store import ArtifactStore
    from sweeps.gc import collect, seconds_of, store_of

    found = collect(
        ArtifactStore(store or store_of(outs)),
        [Ledger(out) for out in outs],
        older_than_s=seconds_of(age),
        delete=delete,
        say=lambda text: click.echo(text, err=True),
    )
    click.echo(json.dumps(found.as_dict(), indent=2) if as_json else found.as_text())


@click.command()
@click.option("--store", default=None, help="Also test this artifact store (default: the user's own).")  # fmt: skip
@click.option("--out", default=None, help="Also test this output folder.")
@click.option("--no-ray", is_flag=True, help="Leave out what needs Ray to start.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(store: str | None, out: str | None, no_ray: bool, as_json: bool) -> None:
    """Check this machine: versions, devices, memory, disk, storage, Ray and its workers.

    Each line is ok, a warning or a problem; exit code 1 if there is a problem.
    """
    from backdoor_core.redact import redacted
    from sweeps.doctor import examined

    lines = []
    for finding in examined(store, out, with_ray=not no_ray):
        lines.append(finding)
        if not as_json:
            click.echo(redacted(finding.as_text()))
    if as_json:
        click.echo(redacted(json.dumps([finding.as_dict() for finding in lines], indent=2)))
    if any(finding.level == "problem" for finding in lines):
        sys.exit(EXIT_PROBLEM)

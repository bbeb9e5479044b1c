"""`python -m tests.chaos`: the command behind `make chaos`."""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console

from tests.chaos import isolation
from tests.chaos.faults import Storage


@click.command()
@click.option("--seed", default=1, show_default=True, help="Decides which faults, when, on what.")
@click.option("--faults", "faults", type=click.IntRange(min=0), default=54, show_default=True,
              help="How many, in all acts together.")  # fmt: skip
@click.option("--jobs", type=click.IntRange(min=10), default=220, show_default=True,
              help="The least number of jobs of the sweep.")  # fmt: skip
@click.option("--storage", type=click.Choice(["both", "folder", "s3"]), default="both",
              help="One act on a shared folder, one on S3, or both.")  # fmt: skip
@click.option("--kind", "kinds", multiple=True, help="Only faults of this kind (repeat it).")
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), default=None,
              help="Leave logs and the calm run in this folder.")  # fmt: skip
def main(
    seed: int, faults: int, jobs: int, storage: str, kinds: tuple[str, ...], keep: Path | None
) -> None:
    """Run a sweep while a seeded adversary hurts it, and compare with a calm run. Exit code 1: something differs."""
    isolation.enter()
    isolation.furnish()
    folder = keep or Path(tempfile.mkdtemp(prefix="sweeps-chaos-"))
    try:
        survived = _played(folder.resolve(), seed, faults, jobs, storage, kinds)
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    sys.exit(0 if survived else 1)


def _played(
    folder: Path, seed: int, faults: int, jobs: int, storage: str, kinds: tuple[str, ...]
) -> bool:
    from tests.chaos import report, stage, story, sweep

    start = time.monotonic()
    console = Console(highlight=False, soft_wrap=True)
    folder.mkdir(parents=True, exist_ok=True)
    work = sweep.written(folder, jobs)
    console.print(f"{work.jobs} jobs; the calm run first")
    calm = stage.run_calmly(work.file, folder / "calm")
    console.print(f"calm run: {time.monotonic() - start:.0f} s")
    places: list[Storage] = ["folder", "s3"] if storage == "both" else [storage]  # type: ignore[list-item]
    acts = []
    for number, place in enumerate(places):
        console.print(f"act {number + 1}: storage {place}", style="bold")
        count = faults // len(places) + (number < faults % len(places))
        own = folder / place
        own.mkdir()
        act = story.play(
            own, place, work, calm, seed=seed, count=count, kinds=kinds, say=_said(console)
        )
        acts.append(act)
        report.show_act(act, console)
    report.show_end(acts, console, seed=seed, seconds=time.monotonic() - start)
    return all(act.survived for act in acts)


def _said(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, markup=False)


if __name__ == "__main__":
    main()

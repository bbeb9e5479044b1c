"""The line that a benchmark prints, and the options that all of them have."""

from __future__ import annotations

import json
import os
import platform
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backdoor_core.measure import library_versions

ROOT = Path(__file__).resolve().parent.parent


def options(description: str | None) -> ArgumentParser:
    """A parser with `--strict`."""
    parser = ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--strict", action="store_true", help="exit 1 where a ratio does not hold")
    return parser


def machine() -> dict[str, Any]:
    """Cores, how busy they were in the last minute (1.0: one core), and the versions that were measured."""
    return {
        "cores": os.cpu_count(),
        "load_1min": round(os.getloadavg()[0], 2),
        "platform": platform.machine(),
        "versions": library_versions(),
    }


def say(
    benchmark: str,
    ratio: float,
    wanted: str,
    *,
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    also: bool = True,
) -> bool:
    """Prints one line; returns whether `ratio` is as `wanted` (`>= 4.5`, `<= 1.1`), and `also` holds."""
    sign, limit = wanted.split()
    holds = also and (ratio >= float(limit) if sign == ">=" else ratio <= float(limit))
    _print({"benchmark": benchmark, "ratio": round(ratio, 3), "wanted": wanted, "holds": holds,
            "measured": dict(measured), "settings": dict(settings), "machine": machine()})  # fmt: skip
    return holds


def skip(benchmark: str, why: str) -> None:
    """Prints why a benchmark was not run."""
    _print({"benchmark": benchmark, "skipped": why})


def finish(strict: bool, *held: bool) -> None:
    """Ends the program: with 1 only where `strict` and something did not hold."""
    sys.exit(1 if strict and not all(held) else 0)


def _print(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()

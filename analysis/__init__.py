"""Reads the ledgers that sweeps leave, and makes tables, figures and reports of them.

    import analysis
    results = analysis.load("runs/quickstart")
    results.ok().where(defense="fine_mixing").to_pandas()

Needs neither torch nor ray; importing the package itself imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.table import ResultTable

__all__ = ["ResultTable", "load"]


def load(path_or_paths: str | Path | Iterable[str | Path]) -> ResultTable:
    """The results in one output folder, or in several together.

    Each is a local path or a URL that `sweeps run` wrote to (it holds `ledger/` and `metrics/`). Raises
    StorageError where a folder holds no ledger, DataError where a newer version wrote it.
    """
    from analysis.table import loaded

    return loaded(path_or_paths)


def __getattr__(name: str) -> Any:
    if name == "ResultTable":
        from analysis.table import ResultTable

        return ResultTable
    raise AttributeError(f"module 'analysis' has no attribute {name!r}")

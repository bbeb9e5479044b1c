"""Seconds, peak memory and the machine's facts, as they go into rows."""

from __future__ import annotations

import json
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from backdoor_core.parts import batch_parts

_PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "ray",
    "optuna",
    "backdoor-sweeps",
)
_GIB = 1 << 30


@dataclass(kw_only=True)
class Measured:
    """What a stretch of work took: wall seconds, and the peak resident memory of the process in GiB."""

    seconds: float = 0.0
    peak_rss_gib: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON for an artifact's manifest."""
        return {"seconds": self.seconds, "peak_rss_gib": self.peak_rss_gib, **machine_facts()}


@contextmanager
def measured() -> Iterator[Measured]:
    """Measures the block; the result is filled in when it ends."""
    result = Measured()
    _reset_peak()
    start = time.perf_counter()
    try:
        yield result
    finally:
        result.seconds = time.perf_counter() - start
        result.peak_rss_gib = _peak_rss_bytes() / _GIB


def machine_facts() -> dict[str, Any]:
    """Device, threads, parts that batches are split into, and library versions of this process."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else f"cpu {platform.machine()}",
        "threads": torch.get_num_threads(),
        "batch_parts": batch_parts(),
        "versions": json.dumps(library_versions(), sort_keys=True),
    }


def library_versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _reset_peak() -> None:
    """Lets the kernel count the peak anew, where it can (Linux): a process runs many jobs."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _peak_rss_bytes() -> int:
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

"""The limits of one job in its worker: a time, a share of the GPU's memory, and the machine's memory.

What a job asks for is also what it gets: one that takes more fails by itself, with a clear error class, and its
neighbours go on.
"""

from __future__ import annotations

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from backdoor_core.errors import JobTimeoutError, error_class

_GIB = 1 << 30
_STATUS = Path("/proc/self/status")


@contextmanager
def limited(
    *, time_limit_s: float | None = None, memory_gib: float | None = None, gpu: float = 0.0
) -> Iterator[None]:
    """Holds a job to its limits.

    Past `time_limit_s` it ends with JobTimeoutError; an allocation that would take the process more than `memory_gib`
    above what it holds now fails (MemoryError, or torch's own error). Of a GPU that is shared (`gpu` below 1) it
    may fill its share. Time is watched in the main thread only, memory on Linux only.
    """
    with ExitStack() as stack:
        if memory_gib is not None:
            stack.enter_context(_memory(memory_gib))
        if 0 < gpu < 1:
            limit_gpu_share(gpu)
        if time_limit_s is not None and threading.current_thread() is threading.main_thread():
            stack.enter_context(_time(time_limit_s))
        yield


def limit_gpu_share(share: float) -> None:
    """Lets this process fill at most `share` of its GPU's memory; without a GPU nothing happens."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(share)


@contextmanager
def _time(limit_s: float) -> Iterator[None]:
    def up(number: int, frame: FrameType | None) -> None:
        raise JobTimeoutError(
            f"the job ran longer than resources.time_limit_s = {limit_s:g} s; raise it, or make the job smaller"
        )

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _memory(limit_gib: float) -> Iterator[None]:
    held = _data_bytes()
    if held is None:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = held + int(limit_gib * _GIB)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted if hard < 0 else min(wanted, hard), hard))
    try:
        yield
    except Exception as error:
        if error_class(error) != "oom":
            raise
        raise MemoryError(
            f"more than resources.memory_gib = {limit_gib:g} above what the worker holds; raise it ({error})"
        ) from error
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _data_bytes() -> int | None:
    """What counts against RLIMIT_DATA now; None where the kernel does not say."""
    if not sys.platform.startswith("linux"):
        return None
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return None

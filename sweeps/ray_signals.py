"""Signals while Ray starts: it takes SIGTERM for itself, twice, and would end the run with a stack of its own.

Names with an underscore are those of the Ray that `pyproject.toml` pins; a test holds them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private import utils

from sweeps.interruption import SIGNALS


@contextmanager
def signals_kept() -> Iterator[None]:
    """Keeps the handlers of Ctrl-C and SIGTERM through `ray.init`, where somebody has set one for SIGTERM.

    Ray sets a handler in Python that exits at once, and its core another below Python, which prints a stack.
    """
    if threading.current_thread() is not threading.main_thread() or not callable(
        signal.getsignal(signal.SIGTERM)
    ):
        yield
        return
    kept = {number: signal.getsignal(number) for number in SIGNALS}
    core: Any = ray._raylet
    set_handler, core_worker = utils.set_sigterm_handler, core.CoreWorker

    def made(*arguments: Any, **more: Any) -> Any:
        worker = core_worker(*arguments, **more)
        for number, handler in kept.items():
            signal.signal(number, handler)
        return worker

    utils.set_sigterm_handler = lambda handler: None
    core.CoreWorker = made
    try:
        yield
    finally:
        utils.set_sigterm_handler, core.CoreWorker = set_handler, core_worker

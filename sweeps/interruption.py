"""How a run is stopped from outside: Ctrl-C or SIGTERM lets the running jobs end, and gives them up after a while.

The first signal starts nothing new; the running jobs have `GRACE_S` to end. A second signal, or the end of that time,
gives them up: their work so far is lost, what was published stays.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

GRACE_S = 30.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(KeyboardInterrupt):
    """SIGTERM, where nothing watches for it: ends a command as Ctrl-C does, so that what is open is left in order."""


def signal_of(interrupt: KeyboardInterrupt) -> signal.Signals:
    """The signal behind an interruption."""
    return signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """In the block SIGTERM raises `Terminated` (in the main thread, where nobody has set another handler)."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def ended(number: int, frame: FrameType | None) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, ended)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass
class Interruption:
    """Whether a run was asked to stop, and by which signal. `say` is told what happens, in a line."""

    grace_s: float
    say: Callable[[str], None]
    asked: signal.Signals | None = None
    given_up: bool = False
    _timer: threading.Timer | None = field(default=None, repr=False)

    def watch(self) -> dict[signal.Signals, Any]:
        """Takes the signals over, also from Ray, which sets them when it starts; returns what was there."""
        return {number: signal.signal(number, self._asked) for number in SIGNALS}

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None:
            self.given_up = True
            raise KeyboardInterrupt
        self.asked = signal.Signals(number)
        if self.grace_s <= 0:
            self.given_up = True
            raise KeyboardInterrupt
        self._timer = threading.Timer(self.grace_s, os.kill, (os.getpid(), number))
        self._timer.daemon = True
        self._timer.start()
        self.say(
            f"{self.asked.name}: nothing new starts; running jobs have {self.grace_s:g} s to end "
            "(the same signal again gives them up at once)"
        )

    def over(self) -> None:
        """The jobs have ended: no signal comes any more by itself."""
        if self._timer is not None:
            self._timer.cancel()

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 128 + its number."""
        return 128 + (self.asked or signal.SIGINT)


@contextmanager
def interruptible(say: Callable[[str], None], grace_s: float = GRACE_S) -> Iterator[Interruption]:
    """Watches for Ctrl-C and SIGTERM in the block (in the main thread; elsewhere nothing is watched)."""
    found = Interruption(grace_s, say)
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = found.watch()
    try:
        yield found
    finally:
        found.over()
        for number, handler in before.items():
            signal.signal(number, handler)

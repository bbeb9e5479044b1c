"""For the stories that start hosts."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest


@pytest.fixture(scope="module")
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the tests as Ctrl-C does: what was started is taken down."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)

"""Ray takes SIGTERM while it starts, in Python and below it: the run's own handlers stand afterwards, and meanwhile."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import pytest

from sweeps import tune_bridge  # noqa: F401  (before Ray, which reads its environment once)


def theirs(number: int, frame: Any) -> None:
    """What Ray would do."""


def ours(number: int, frame: Any) -> None:
    """What the run would do."""


@pytest.fixture
def signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def started(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What Ray does to signals when it starts, and the handlers of SIGTERM that stand after each of its two steps."""
    import ray
    from ray._private import utils

    from sweeps.ray_signals import signals_kept

    def core(*arguments: Any, **more: Any) -> str:
        signal.signal(signal.SIGTERM, theirs)
        return "the core"

    monkeypatch.setattr(ray._raylet, "CoreWorker", core)
    with signals_kept():
        utils.set_sigterm_handler(theirs)
        seen = [signal.getsignal(signal.SIGTERM)]
        assert ray._raylet.CoreWorker() == "the core"
        seen.append(signal.getsignal(signal.SIGTERM))
    assert ray._raylet.CoreWorker is core
    return seen


def test_the_runs_own_handlers_stand(signals: None, monkeypatch: pytest.MonkeyPatch) -> None:
    signal.signal(signal.SIGTERM, ours)
    assert started(monkeypatch) == [ours, ours]


def test_where_nobody_watches_ray_may_have_them(
    signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert started(monkeypatch) == [theirs, theirs]


def test_ray_still_looks_these_two_up_where_they_are_replaced() -> None:
    import inspect

    import ray._private.worker as worker

    assert "ray._private.utils.set_sigterm_handler(" in inspect.getsource(worker.init)
    assert "ray._raylet.CoreWorker(" in inspect.getsource(worker.connect)

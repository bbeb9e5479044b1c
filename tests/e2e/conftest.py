"""What the stories of this folder have in common: a calm run to compare with, and hosts that are taken down."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import pytest
from click.testing import Result


@pytest.fixture(scope="module")
def calm(sweep: Path, tmp_path_factory: pytest.TempPathFactory, cli: Callable[..., Result]) -> Path:
    """The output folder of the module's `sweep`, run through by one driver without a break."""
    folder = tmp_path_factory.mktemp("calm")
    result = cli("run", sweep, "--local", "--out", folder / "out", "--store", folder / "store")
    assert result.exit_code == 0, result.output
    assert not list((folder / "store" / "claims").iterdir())
    return folder / "out"


@pytest.fixture(scope="module")
def ended_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the tests as Ctrl-C does: what was started is taken down."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    yield
    signal.signal(signal.SIGTERM, before)

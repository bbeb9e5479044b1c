"""What the tests of drivers that are killed, stopped or many have in common."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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

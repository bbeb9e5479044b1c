"""The page on faults says what the code does, and names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from backdoor_core.errors import ERROR_CLASSES
from sweeps.retries import RETRIES

ROOT = Path(__file__).resolve().parents[2]
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "faults.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| fault |")
]


@pytest.mark.parametrize("row", ROWS, ids=[row[0][:40] for row in ROWS])
def test_each_fault_has_its_class_its_tries_and_its_test(row: list[str]) -> None:
    _, named, tries, _, tests = row
    for error_class in re.findall(r"`(\w+)`", named):
        assert error_class in ERROR_CLASSES
        assert tries.split(",")[0] == str(RETRIES.get(error_class, 0)), error_class
    found = re.findall(r"`([\w/]+\.py)::(\w+)`", tests)
    assert found
    for file, name in found:
        assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8"), name


def test_no_class_is_left_out() -> None:
    named = {name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])}
    assert named == set(ERROR_CLASSES)

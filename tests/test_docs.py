"""The documents name what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_core import catalog

METHODS = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
WITHOUT_A_PAPER = {"none", "fine_tune", "placebo", "checkpoint"}


@pytest.mark.parametrize("family", ["attack", "defense"])
def test_every_method_has_its_table(family: str) -> None:
    text = METHODS.read_text(encoding="utf-8")
    headings = "\n".join(line for line in text.splitlines() if line.startswith("## "))
    for name in catalog.names(family):  # type: ignore[arg-type]
        where = text if name in WITHOUT_A_PAPER else headings
        assert f"`{name}`" in where, name


def test_tables_have_the_five_columns_everywhere() -> None:
    sections = METHODS.read_text(encoding="utf-8").split("\n## ")[1:]
    for section in sections:
        rows = [line for line in section.splitlines() if line.startswith("|")]
        assert rows, section.splitlines()[0]
        for row in rows:
            cells = row.replace(r"\|", "").strip().strip("|").split("|")
            assert len(cells) == 5, row

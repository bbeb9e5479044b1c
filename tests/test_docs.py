"""The documents name what there is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from backdoor_core import catalog
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import TrialSpec

README = Path(__file__).resolve().parent.parent / "README.md"
METHODS = Path(__file__).resolve().parent.parent / "docs" / "methods.md"
WITHOUT_A_PAPER = {"none", "fine_tune", "placebo", "checkpoint", "pseudo"}


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


def test_readmes_example_of_a_defense_runs(
    tmp_path: Path, workshop: Workshop, small_trial: Callable[..., TrialSpec]
) -> None:
    """As a user would take it: the block of Python copied to a file, given by path, alone and after a repair."""
    import torch

    blocks = README.read_text(encoding="utf-8").split("```python\n")[1:]
    (example,) = [block.split("```")[0] for block in blocks]
    file = tmp_path / "my_defense.py"
    file.write_text(example, encoding="utf-8")
    mine = {"name": str(file), "strength": 1.0}
    model = workshop.repaired(Pipeline(small_trial("none", [mine])))[0].model
    plain = workshop.repaired(Pipeline(small_trial("none", [mine | {"strength": 0.0}])))[0].model
    same = [
        torch.equal(value, plain.get_parameter(name)) for name, value in model.named_parameters()
    ]
    assert not all(same), "strength 1 takes the PLM's weights"
    assert any(same), "the head, which the PLM lacks, stays"
    assert len(Pipeline(small_trial("none", ["fine_tune", mine])).defenses) == 2
    workshop.repaired(Pipeline(small_trial("none", ["fine_tune", mine])))

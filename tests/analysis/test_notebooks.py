"""The notebooks run from the first cell to the last, say what a ledger lacks, and are stored clean."""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

import analysis
from backdoor_core.ledger import Ledger
from backdoor_core.spec import canonical_json

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "analysis" / "notebooks"
NAMES = ("01_tradeoff", "02_thresholds", "03_compare_defenses")
VARIABLE = "BACKDOOR_SWEEPS_OUT"
MODES = {"oracle": 0.1, "transfer": 0.2, "clean-val": 0.3}
"""ASR of what each mode chose, so the gaps to the oracle are 0.1 and 0.2 in every cell and seed."""
TRIALS = 12

Shown = tuple[str, list[str]]
"""What a notebook showed: all texts, and the kinds of its pictures."""


def _book(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], Shown]]:
    """Runs a notebook on an output folder; a warning in one of its cells is an error."""
    place = tmp_path_factory.mktemp("jupyter")

    def execute(name: str, out: Path) -> Shown:
        book = _book(name)
        make = nbformat.v4.new_code_cell
        book.cells.insert(0, make("import warnings\n\nwarnings.simplefilter('error')"))
        book.cells.append(make("warnings.resetwarnings()"))  # the kernel's own, as it ends
        environment.setenv(VARIABLE, str(out))
        NotebookClient(
            book,
            kernel_name="python3",
            timeout=300,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(FOLDER)}},
        ).execute()
        return _shown(book)

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(ROOT))
        for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR"):
            environment.setenv(variable, str(place))
        yield execute


def _shown(book: Any) -> Shown:
    texts, pictures = [], []
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            assert output.output_type in ("display_data", "execute_result"), output
            kinds = output.data.keys()
            pictures += [kind for kind in kinds if kind.startswith("image/")]
            kind = next((k for k in ("text/markdown", "text/html") if k in kinds), "text/plain")
            texts.append(output.data[kind])
    return "\n".join(texts), pictures


@pytest.fixture(scope="module")
def tuned_out(
    tmp_path_factory: pytest.TempPathFactory, sweep_out: Path, record: Any, write: Any
) -> Path:
    """The made-up sweep with what searches chose in two of its cells, and what they tried."""
    out = tmp_path_factory.mktemp("tuned") / "out"
    shutil.copytree(sweep_out, out)
    cells = [
        (mode, attack, seed)
        for mode in MODES
        for attack in ("badnets", "syntactic")
        for seed in (0, 1, 2)
    ]
    write(out, [_chosen(record, *cell) for cell in cells])
    Ledger(out).append_tried([row for cell in cells for row in _tried(*cell)])
    return out


def _chosen(record: Any, mode: str, attack: str, seed: int) -> Any:
    asr = MODES[mode] + 0.01 * seed
    return record(
        attack=attack,
        defense="fine_mixing",
        defense_settings={"mixing_ratio": 0.1 + 0.1 * seed, "epochs": 1},
        tuning_mode=mode,
        tuning_trials=TRIALS,
        seed=seed,
        asr=asr,
        asrd=asr - 0.05,
        cacc=0.88,
        cacc_drop=0.02,
        twin_asr=0.05,
    )


def _tried(mode: str, attack: str, seed: int) -> Iterator[dict[str, Any]]:
    """A search: the ASR is the mixing ratio, half of the settings cost too much, one failed, one was ended early."""
    for number in range(TRIALS):
        ratio = (5 * number % TRIALS) / TRIALS
        state = {3: "failed", 5: "pruned"}.get(number, "complete")
        complete = state == "complete"
        yield {
            "study": f"{mode}-{attack}-{seed}",
            "number": number,
            "sweep": "made-up",
            "task": "sst2",
            "task_settings": "{}",
            "plm": "bert",
            "plm_settings": "{}",
            "attack": attack,
            "attack_settings": canonical_json({"poison_rate": 0.01}),
            "defense": "fine_mixing",
            "training_settings": canonical_json({"epochs": 3}),
            "seed": seed,
            "tuning_mode": mode,
            "tuning": "{}",
            "settings": canonical_json({"mixing_ratio": ratio, "words": 10 * (number % 3)}),
            "state": state,
            "asr": ratio if complete and mode != "clean-val" else None,
            "cacc_drop": 0.1 * (1 - ratio) if complete else None,
            "strength": 1 - ratio if mode == "clean-val" else None,
            "feasible": complete and ratio >= 0.5,
            "seconds": 1.0,
            "finished_at": float(number),
        }


@pytest.fixture(scope="module")
def tiny_out(
    tmp_path_factory: pytest.TempPathFactory,
    cli: Callable[..., Any],
    tiny_sweep: Callable[..., Path],
) -> Path:
    """A real sweep of seconds: one seed, nothing tuned, like the quickstart."""
    folder = tmp_path_factory.mktemp("tiny")
    out = folder / "out"
    result = cli("run", tiny_sweep(folder), "--local", "--out", out, "--store", folder / "store")
    assert result.exit_code == 0, result.output
    return out


def test_these_are_all() -> None:
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.ipynb"))) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_they_are_stored_without_outputs_and_with_valid_metadata(name: str) -> None:
    path = FOLDER / f"{name}.ipynb"
    book = _book(name)
    nbformat.validate(book)
    assert book.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert len({cell.id for cell in book.cells}) == len(book.cells)
    for cell in book.cells:
        assert cell.metadata == {}, cell.id
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), cell.id
    text = path.read_text(encoding="utf-8")
    assert text == nbformat.writes(book) + "\n", "store it as nbformat writes it, for small diffs"
    assert not re.search(r"/(home|Users|root|work|tmp|mnt)/|[A-Z]:\\\\", text), "a machine's path"


@pytest.mark.parametrize("name", NAMES)
def test_they_teach_and_take_public_names_only(name: str) -> None:
    cells = _book(name).cells
    assert cells[0].cell_type == "markdown"
    assert cells[0].source.startswith("# ")
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert VARIABLE in first.source
    assert '"runs" / "quickstart"' in first.source
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if "plt.show()" in cell.source or "SVG(" in cell.source or "drawn(" in cell.source:
            assert after is not None, "a figure at the end"
            assert after.cell_type == "markdown", f"{cell.id}: a figure that nothing reads"
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    for node in ast.walk(ast.parse(code)):
        assert not isinstance(node, ast.FunctionDef), f"a wrapper: {node.name} belongs in analysis"
        if isinstance(node, ast.ImportFrom):
            assert not [alias.name for alias in node.names if alias.name.startswith("_")]
        if isinstance(node, ast.Attribute):
            assert (
                not node.attr.startswith("_") or node.attr == "__name__" or node.attr == "__file__"
            )


def test_the_sweep_file_for_a_search_is_one(tmp_path: Path, cli: Callable[..., Any]) -> None:
    text = "\n".join(c.source for c in _book("02_thresholds").cells if c.cell_type == "markdown")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    file = tmp_path / "tuned.yaml"
    file.write_text(block, encoding="utf-8")
    assert cli("validate", file).exit_code == 0
    assert yaml.safe_load(block)["name"] == "tuned", "the text names runs/tuned"


@pytest.mark.slow
def test_01_on_three_seeds(run: Any, tuned_out: Path) -> None:
    text, pictures = run("01_tradeoff", tuned_out)
    assert pictures == ["image/png", "image/svg+xml", "image/svg+xml", "image/png", "image/png"]
    count = len(analysis.load(tuned_out))
    # 7 cells x 8 settings x 3 seeds, and 3 modes x 2 cells x 3 seeds.
    assert count == 7 * 8 * 3 + 18
    assert f"{count} trials" in text
    assert "has **3 seeds**" in text
    assert "attack_did_not_take" in text
    # x_graad has no number in one of 6 attack cells, what was tuned only in 2.
    assert "5 of 6" in text
    assert "2 of 6" in text
    assert "no setting is that cheap" not in text, "the undefended victim costs nothing"


@pytest.mark.slow
def test_02_shows_what_searches_did(run: Any, tuned_out: Path) -> None:
    text, pictures = run("02_thresholds", tuned_out)
    assert f"holds {18 * TRIALS} tried settings" in text
    for curve in (
        "fine_mixing, grid: mixing_ratio",
        "fine_mixing, searched by oracle: mixing_ratio, words",
        "fine_mixing, searched by transfer: mixing_ratio, words",
    ):
        assert f"- {curve}" in text
    # Five curves, importances, histories and gaps.
    assert pictures == ["image/png"] * 8
    assert "Nothing can be said of: fine_mixing, grid." in text, "4 settings in a cell are too few"
    assert "18 tried settings failed and 18 were ended early" in text
    assert "0.100 [0.100, 0.100]" in text, "transfer above oracle"
    assert "0.200 [0.200, 0.200]" in text, "clean-val above oracle"


@pytest.mark.slow
def test_03_on_three_seeds(run: Any, tuned_out: Path) -> None:
    text, pictures = run("03_compare_defenses", tuned_out)
    assert pictures == ["image/png"] * 4
    assert "with 3 seeds: 0, 1, 2" in text
    # 2 / 2^3 and the first n with 2 / 2^n below 0.05.
    assert "cannot give a p below **0.25**" in text
    assert "can reach 0.05 is 6" in text
    assert "# Leaderboard" in text
    assert "tuned by looking at the attack (oracle)" in text
    assert "Nothing was searched here" not in text


@pytest.mark.slow
def test_01_on_a_real_sweep_of_one_seed(run: Any, tiny_out: Path) -> None:
    text, pictures = run("01_tradeoff", tiny_out)
    assert "11 trials (11 ok" in text
    assert "has **one seed**" in text
    assert len(pictures) == 5


@pytest.mark.slow
def test_02_on_a_sweep_without_a_search(run: Any, tiny_out: Path) -> None:
    text, pictures = run("02_thresholds", tiny_out)
    assert "has no tuning table: nothing was searched" in text
    assert "No search, so no history." in text
    assert "No gap can be shown" in text
    # The grids of placebo's rate and of the mixing ratio.
    assert pictures == ["image/png"] * 2


@pytest.mark.slow
def test_03_on_a_real_sweep_of_one_seed(run: Any, tiny_out: Path) -> None:
    text, pictures = run("03_compare_defenses", tiny_out)
    assert "with 1 seed: 0" in text
    assert "a t-test needs at least 2 pairs, got 1; run more seeds" in text
    assert "No defense setting can be ranked." in text
    assert "fewer than 3 seeds" in text
    assert len(pictures) == 4


@pytest.mark.slow
def test_03_on_two_settings_says_what_cannot_be_compared(
    run: Any, tmp_path: Path, record: Any, write: Any
) -> None:
    rows = [record(), record(defense="fine_tune", asr=0.3, asrd=0.25, cacc=0.88, cacc_drop=0.02)]
    text, pictures = run("03_compare_defenses", write(tmp_path, rows))
    assert "No comparison of many settings is possible here" in text
    assert "ranks need at least 3 defense settings" in text
    assert "No plot: it needs at least three settings" in text
    # What n seeds can show, worst against average, and the cost of the one defense.
    assert pictures == ["image/png"] * 3

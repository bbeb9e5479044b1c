"""The shape of the project: imports point one way, methods stand alone, libraries stay quiet and safe."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("backdoor_core", "sweeps", "analysis")
METHOD_FOLDERS = ("tasks", "plms", "attacks", "defenses")

# Each module of backdoor_core may import those above it. A new module is put where it belongs.
ORDER = (
    "errors",
    "counting",
    "redact",
    "patience",
    "address",
    "folder",
    "fingerprint",
    "rng",
    "parts",
    "measure",
    "lexicon",
    "stop_words",
    "grammar",
    "space",
    "corpus",
    "records",
    "rows",
    "split_files",
    "spec",
    "method",
    "record",
    "artifact_layout",
    "artifact_check",
    "node_cache",
    "stock",
    "store",
    "open_table",
    "ledger",
    "task",
    "hub_task",
    "roles",
    "plm",
    "hub",
    "text",
    "token_text",
    "trigger_words",
    "victim",
    "rewriting",
    "salience",
    "training",
    "attack",
    "paraphrase",
    "plm_attack",
    "defense",
    "repair",
    "frequency",
    "catalog",
    "checks",
    "evaluation",
    "pipeline",
    "tuning",
    "trial",
)
# What method files build on, but the family's own base class: everything above `catalog`.
BELOW_METHODS = frozenset(ORDER[: ORDER.index("catalog")])
ANALYSIS_READS = frozenset(
    {"errors", "counting", "spec", "record", "address", "folder", "store", "open_table", "ledger"}
)
HEAVY = frozenset({"torch", "transformers", "datasets", "sentence_transformers", "ray"})
FORBIDDEN_STEMS = frozenset({"utils", "util", "common", "helpers", "helper", "base", "misc"})
UNSAFE_MODULES = frozenset({"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve"})


def _files(*folders: str) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


def _module(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def _names(node: ast.Import | ast.ImportFrom, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement needs: `from a import b` is `a.b` where that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    start = node.module or ""
    if node.level:
        parents = module.split(".")
        kept = len(parents) - node.level + (1 if is_package else 0)
        start = ".".join([*parents[:kept], *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{start}.{alias.name}"
        yield inner if _is_module(inner) else start


def _is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _statements(node: ast.AST, *, inside_functions: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child):
            for other in child.orelse:
                yield other
                yield from _statements(other, inside_functions=inside_functions)
            continue
        if not inside_functions and isinstance(
            child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
        ):
            continue
        yield child
        yield from _statements(child, inside_functions=inside_functions)


def _imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """What a file imports while it runs (not what only a type checker imports)."""
    module, is_package = _module(path), path.name == "__init__.py"
    return {
        name
        for node in _statements(_tree(path), inside_functions=inside_functions)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in _names(node, module, is_package)
    }


def _tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _core_module(name: str) -> str | None:
    """`space` for `backdoor_core.space`, `tasks.sst2` for a method; None outside and for the package itself."""
    return name.removeprefix("backdoor_core.") if name.startswith("backdoor_core.") else None


def test_core_imports_no_scheduler_and_no_analysis() -> None:
    for path in _files("backdoor_core"):
        wrong = _tops(_imports(path)) & {"ray", "sweeps", "analysis", "optuna"}
        assert not wrong, f"{_module(path)} imports {wrong}"


def test_only_sweeps_imports_ray() -> None:
    for path in _files("analysis"):
        assert not _tops(_imports(path)) & {"ray", "torch", "transformers"}, _module(path)


def test_analysis_reads_only_torch_free_values() -> None:
    for path in _files("analysis"):
        names = _imports(path)
        assert "sweeps" not in _tops(names), _module(path)
        core = {_core_module(name) for name in names} - {None}
        assert core <= ANALYSIS_READS, f"{_module(path)} imports {core - ANALYSIS_READS}"


def test_only_the_command_line_calls_analysis() -> None:
    for path in _files("sweeps"):
        if path.name != "cli.py":
            assert "analysis" not in _tops(_imports(path)), _module(path)


def test_every_core_module_has_its_place() -> None:
    found = {path.stem for path in (ROOT / "backdoor_core").glob("*.py")} - {"__init__"}
    assert found <= set(ORDER), f"put these into ORDER where they belong: {found - set(ORDER)}"


def test_core_modules_import_only_what_is_below_them() -> None:
    for number, stem in enumerate(ORDER):
        path = ROOT / "backdoor_core" / f"{stem}.py"
        if not path.is_file():
            continue
        above = {
            name
            for imported in _imports(path)
            if (name := _core_module(imported)) is not None and name not in ORDER[:number]
        }
        assert not above, f"backdoor_core.{stem} imports {above}, which stand above it"


@pytest.mark.parametrize("folder", METHOD_FOLDERS)
def test_methods_stand_alone(folder: str) -> None:
    for path in _files(f"backdoor_core/{folder}"):
        names = {_core_module(name) for name in _imports(path)} - {None}
        wrong = names - BELOW_METHODS
        assert not wrong, (
            f"{_module(path)} imports {wrong}; move what is shared down into its own file"
        )
        if path.name == "__init__.py":
            assert not names, f"{folder}/__init__.py imports {names}: methods are found, not listed"


def test_no_file_is_named_for_nothing() -> None:
    for path in _files(*PACKAGES, "tests", "benchmarks"):
        parts = [*path.relative_to(ROOT).parts[:-1], path.stem]
        wrong = [part for part in parts if part in FORBIDDEN_STEMS or part.endswith("_v2")]
        assert not wrong, f"{path.relative_to(ROOT)}: name it for what it holds"


@pytest.mark.parametrize("path", _files(*PACKAGES), ids=_module)
def test_libraries_are_quiet_and_safe(path: Path) -> None:
    unsafe = _tops(_imports(path)) & UNSAFE_MODULES
    assert not unsafe, f"{_module(path)} imports {unsafe}"
    for node in ast.walk(_tree(path)):
        place = f"{_module(path)}, line {getattr(node, 'lineno', '?')}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{place}: bare except"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called != "print", f"{place}: print"
            assert called != "torch.load", f"{place}: torch.load reads pickles"
            assert called != "logging.basicConfig", f"{place}: changes the root logger"
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            assert isinstance(node.value, ast.Constant), place
            assert node.value.value is False, f"{place}: trust_remote_code is never on"
        elif isinstance(node, ast.Dict):
            keys = [key.value for key in node.keys if isinstance(key, ast.Constant)]
            assert "trust_remote_code" not in keys, (
                f"{place}: pass trust_remote_code=False in words"
            )


def test_planning_modules_import_nothing_heavy_at_the_top() -> None:
    """The closure of the catalog, every method file, and the top of the command line."""
    waiting = ["backdoor_core.catalog", "sweeps.cli", "sweeps.config"]
    waiting += [_module(p) for folder in METHOD_FOLDERS for p in _files(f"backdoor_core/{folder}")]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        place = ROOT.joinpath(*name.split("."))
        path = (
            place.with_suffix(".py")
            if place.with_suffix(".py").is_file()
            else place / "__init__.py"
        )
        if name in seen or not path.is_file():
            continue
        seen.add(name)
        names = _imports(path, inside_functions=False)
        assert not _tops(names) & HEAVY, f"{name} imports {_tops(names) & HEAVY} at the top"
        waiting += [other for other in names if other.split(".")[0] in PACKAGES]


def _loaded_by(code: str) -> set[str]:
    """The top-level packages in memory after a fresh interpreter ran `code`."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return {name.split(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


EVERY_METHOD = """
from backdoor_core import catalog
for family in ("task", "plm", "attack", "defense"):
    for name in catalog.names(family):
        catalog.method_class(family, name)
"""


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import backdoor_core", HEAVY | {"numpy", "pyarrow"}),
        (EVERY_METHOD, HEAVY),
        ("import sweeps.cli", HEAVY | {"pandas", "plotly", "optuna"}),
        ("import sweeps.config", HEAVY),
        ("import analysis", HEAVY),
    ],
    ids=["backdoor_core", "every method", "sweeps.cli", "sweeps.config", "analysis"],
)
def test_importing_stays_light(code: str, absent: frozenset[str]) -> None:
    loaded = _loaded_by(code) & absent
    assert not loaded, f"{code.strip()} loads {loaded}"

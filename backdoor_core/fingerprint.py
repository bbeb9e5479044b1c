"""Fingerprints of code and of the user's files: what makes a key change when the work changes.

`code_fingerprint` hashes a module and all that it imports from this project, as syntax trees without
docstrings and comments: rewording an explanation keeps every cached victim, changing a statement does not.
`path_fingerprint` hashes a file or a folder by content.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from backdoor_core.errors import ConfigError

PACKAGE = "backdoor_core"
_BLOCK_BYTES = 1 << 20


@cache
def code_fingerprint(*modules: str) -> str:
    """SHA-256 over the code of `modules` and of all project modules that they import, at any depth.

    A module is a dotted name inside the project or the path of a user's own `.py` file.
    """
    seen: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        text, imports = _parsed(str(_source(name)))
        seen[name] = text
        waiting.extend(sorted(imports - set(seen)))
    sha = hashlib.sha256()
    for name in sorted(seen):
        label = Path(name).name if name.endswith(".py") else name
        sha.update(f"{label}\x1f{seen[name]}\x1e".encode())
    return sha.hexdigest()


def _source(module: str) -> Path:
    if module.endswith(".py"):
        return Path(module)
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError(f"no source file for module {module!r}; reinstall the project")
    return Path(spec.origin)


@cache
def _parsed(path: str) -> tuple[str, frozenset[str]]:
    """The hash of a file's statements, and the project modules that it imports."""
    tree = ast.parse(Path(path).read_text(encoding="utf-8"))
    imports: set[str] = set()
    _walk_imports(tree, imports)
    for node in ast.walk(tree):
        _drop_docstring(node)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imports)


def _drop_docstring(node: ast.AST) -> None:
    if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return
    node.body = [
        statement
        for statement in node.body
        if not (
            isinstance(statement, ast.Expr)
            and isinstance(statement.value, ast.Constant)
            and isinstance(statement.value.value, str)
        )
    ]


def _walk_imports(node: ast.AST, found: set[str]) -> None:
    """Project modules imported below `node`, except those that only a type checker imports."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            _walk_imports(ast.Module(body=child.orelse, type_ignores=[]), found)
            continue
        if isinstance(child, ast.Import):
            found.update(a.name for a in child.names if a.name.startswith(PACKAGE + "."))
        elif isinstance(child, ast.ImportFrom) and child.module and not child.level:
            if child.module == PACKAGE:
                found.update(
                    f"{PACKAGE}.{a.name}"
                    for a in child.names
                    if importlib.util.find_spec(f"{PACKAGE}.{a.name}") is not None
                )
            elif child.module.startswith(PACKAGE + "."):
                found.add(child.module)
        _walk_imports(child, found)


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def file_sha256(path: Path) -> str:
    """SHA-256 (64 hex digits) of one file's bytes."""
    sha = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            sha.update(block)
    return sha.hexdigest()


def path_fingerprint(path: Path) -> str:
    """SHA-256 of a file, or of a folder's files with their relative names (hidden ones left out).

    Raises ConfigError where nothing is there.
    """
    if not path.exists():
        raise ConfigError(
            f"no such file or folder: {path} (a path in a sweep file is relative to that file)"
        )
    return _path_fingerprint(str(path), _stamp(path))


def _visible_files(folder: Path) -> list[Path]:
    return sorted(
        item
        for item in folder.rglob("*")
        if item.is_file()
        and not any(part.startswith(".") for part in item.relative_to(folder).parts)
    )


def _stamp(path: Path) -> tuple[tuple[str, int, int], ...]:
    files = [path] if path.is_file() else _visible_files(path)
    return tuple((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in files)


@cache
def _path_fingerprint(name: str, stamp: tuple[tuple[str, int, int], ...]) -> str:
    path = Path(name)
    if path.is_file():
        return file_sha256(path)
    sha = hashlib.sha256()
    for file_name, _, _ in stamp:
        file = Path(file_name)
        sha.update(f"{file.relative_to(path).as_posix()}\x1f{file_sha256(file)}\x1e".encode())
    return sha.hexdigest()

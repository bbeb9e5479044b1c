"""Fingerprints: what changes the work changes the key, and nothing else does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from backdoor_core.errors import ConfigError
from backdoor_core.fingerprint import _parsed, code_fingerprint, file_sha256, path_fingerprint

ROOT = Path(__file__).resolve().parents[2]

CODE = '''"""What it is."""

import numpy as np

from backdoor_core.rng import uniform


class Thing:
    """A thing."""

    size = 3

    def grow(self, by: int) -> int:
        """Grows."""
        return self.size + by  # and says so
'''


def of(text: str, folder: Path) -> str:
    """The fingerprint of a user's file with this text, always of the same name."""
    for cached in (code_fingerprint, _parsed):
        cached.cache_clear()
    file = folder / "mine.py"
    file.write_text(text)
    return code_fingerprint(str(file))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("A thing.", "Another explanation."),
        ("What it is.", "Something else."),
        ("        # and says so", ""),
        ("  # and says so", "  # and is silent"),
        ("    size = 3\n\n", "    size = 3\n    # a remark\n\n\n"),
        ('        """Grows."""\n', ""),
        ("self.size + by", "(self.size + by)"),
    ],
)
def test_words_about_the_code_do_not_count(tmp_path: Path, old: str, new: str) -> None:
    assert of(CODE.replace(old, new), tmp_path) == of(CODE, tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size = 3", "size = 4"),
        ("self.size + by", "self.size - by"),
        ("def grow", "def shrink"),
        ("by: int", "by: int = 1"),
        ("import numpy as np", "import numpy"),
        ("backdoor_core.rng import uniform", "backdoor_core.rng import derive"),
        ("backdoor_core.rng import uniform", "backdoor_core.spec import digest"),
        ("    size = 3\n", '    size = 3\n    name = "text"\n'),
    ],
)
def test_statements_count(tmp_path: Path, old: str, new: str) -> None:
    assert old in CODE
    assert of(CODE.replace(old, new), tmp_path) != of(CODE, tmp_path)


def test_a_files_place_does_not_count_but_its_name_does(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert of(CODE, tmp_path / "a") == of(CODE, tmp_path / "b")
    other = tmp_path / "other.py"
    other.write_text(CODE)
    assert code_fingerprint(str(other)) != of(CODE, tmp_path / "a")


def fingerprints(project: Path, *modules: str) -> list[str]:
    """The fingerprints of modules in a copy of the project, in a fresh process."""
    code = (
        "import sys; from backdoor_core.fingerprint import code_fingerprint\n"
        "for m in sys.argv[1:]: print(code_fingerprint(m))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *modules],
        cwd=project,
        env=os.environ | {"PYTHONPATH": str(project)},
        capture_output=True,
        text=True,
        check=True,
    )
    return result.stdout.split()


def test_a_change_of_an_imported_module_counts_for_all_that_import_it(tmp_path: Path) -> None:
    shutil.copytree(
        ROOT / "backdoor_core",
        tmp_path / "backdoor_core",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    mine = tmp_path / "mine.py"
    mine.write_text("from backdoor_core.attack import inserted\n")
    modules = (
        "backdoor_core.attacks.badnets",
        "backdoor_core.defenses.epur",
        "backdoor_core.defenses.placebo",
        "backdoor_core.pipeline",
        str(mine),
    )

    def changed(file: str, old: str, new: str) -> list[bool]:
        path = tmp_path / "backdoor_core" / file
        text = path.read_text()
        assert text.count(old) >= 1
        before = fingerprints(tmp_path, *modules)
        path.write_text(text.replace(old, new, 1))
        after = fingerprints(tmp_path, *modules)
        path.write_text(text)
        return [a != b for a, b in zip(before, after, strict=True)]

    badnets, epur, placebo, pipeline, user = 0, 1, 2, 3, 4
    repair = changed("repair.py", "np.log(", "np.log2(")
    assert repair[epur]
    assert not repair[badnets]
    assert not repair[placebo]
    assert not repair[user]
    attack = changed("attack.py", "rng.integers(len(triggers))", "rng.integers(1)")
    assert attack[badnets]
    assert attack[pipeline]
    assert attack[user]
    assert all(changed("rng.py", ">> 1", ">> 2"))
    assert not any(changed("repair.py", '"""', '"""Reworded. '))


def test_imports_for_a_type_checker_do_not_count(tmp_path: Path) -> None:
    guarded = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import backdoor_core.{}\n"
        "else:\n    import backdoor_core.rng\n"
    )
    first, second = tmp_path / "a", tmp_path / "b"
    for folder, name in ((first, "trial"), (second, "rng")):
        folder.mkdir()
        (folder / "mine.py").write_text(guarded.format(name))
    imports = [_parsed(str(folder / "mine.py"))[1] for folder in (first, second)]
    assert imports == [frozenset({"backdoor_core.rng"})] * 2


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("import backdoor_core.rng", {"backdoor_core.rng"}),
        ("import backdoor_core.rng as r, os", {"backdoor_core.rng"}),
        ("from backdoor_core import rng, __version__", {"backdoor_core.rng"}),
        ("from backdoor_core.rng import derive", {"backdoor_core.rng"}),
        ("def f():\n    from backdoor_core.text import encode", {"backdoor_core.text"}),
        ("try:\n    import backdoor_core.plm\nexcept ImportError: pass", {"backdoor_core.plm"}),
        ("import numpy", set()),
        ("from backdoor_core_other import rng", set()),
    ],
)
def test_imports_are_found_wherever_they_stand(tmp_path: Path, line: str, found: set[str]) -> None:
    file = tmp_path / f"m{abs(hash(line))}.py"
    file.write_text(line + "\n")
    assert _parsed(str(file))[1] == found


def test_a_module_that_is_not_there_is_told() -> None:
    with pytest.raises(ConfigError, match="no source file"):
        code_fingerprint("backdoor_core.no_such_module")


def test_a_path_counts_by_its_content(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "x.csv").write_text("one")
        (tmp_path / name / "deep" / "y.csv").write_text("two")
    first = path_fingerprint(tmp_path / "a")
    assert path_fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / ".DS_Store").write_text("hidden")
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "z").write_text("hidden")
    assert path_fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "x.csv").rename(tmp_path / "b" / "w.csv")
    renamed = path_fingerprint(tmp_path / "b")
    assert renamed != first
    (tmp_path / "b" / "w.csv").rename(tmp_path / "b" / "x.csv")
    assert path_fingerprint(tmp_path / "b") == first
    (tmp_path / "b" / "deep" / "y.csv").write_text("TWO")
    assert path_fingerprint(tmp_path / "b") != first


def test_a_path_that_changes_within_a_session_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("one")
    first = path_fingerprint(file)
    assert first == file_sha256(file)
    file.write_text("another text")
    assert path_fingerprint(file) == file_sha256(file) != first


def test_a_path_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        path_fingerprint(tmp_path / "nothing")

"""What the tests of single methods share: a folder with a tiny random model of each architecture."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def architecture_folder(
    tmp_path_factory: pytest.TempPathFactory, one_thread: None
) -> Callable[[str], Path]:
    """Where a masked language model of an architecture of test_architectures.KINDS lies; made once each."""
    name = "architectures_to_build"
    file = Path(__file__).with_name("test_architectures.py")
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            module.saved(made[kind], module.KINDS[kind])
        return made[kind]

    return folder

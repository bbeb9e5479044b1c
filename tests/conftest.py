"""What all tests share: a store of their own, a small PLM, a small task, and trials made of them.

Everything here is made once a session and is fast: a one-layer PLM with 32 dimensions, a few hundred short rows.
Nothing imports torch before a test asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings as hypothesis_settings

from backdoor_core import catalog
from backdoor_core.grammar import reviews
from backdoor_core.lexicon import DOMAINS
from backdoor_core.pipeline import Pipeline, Workshop
from backdoor_core.spec import MethodSpec, TrainingSettings, TrialSpec, digest
from backdoor_core.store import ArtifactStore

# A busy machine is no bug, and a suite that must pass draws the same examples every time.
hypothesis_settings.register_profile("tests", deadline=None, derandomize=True)
hypothesis_settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first: no process idles at the end while another has a long file to go."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server on loopback (host:port), with dummy credentials in the environment of all tests that follow."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "dummy-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "dummy-secret")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"{host}:{port}"
        server.stop()


@pytest.fixture(scope="session")
def new_bucket(s3_endpoint: str) -> Callable[[], str]:
    """Makes an empty bucket and returns its URL: `s3://name?endpoint_override=...&scheme=http`."""
    from pyarrow import fs

    filesystem = fs.S3FileSystem(
        endpoint_override=s3_endpoint, scheme="http", allow_bucket_creation=True
    )
    made: list[str] = []

    def make() -> str:
        made.append(f"bucket-{len(made)}")
        filesystem.create_dir(made[-1])
        return f"s3://{made[-1]}?endpoint_override={s3_endpoint}&scheme=http"

    return make


@pytest.fixture(scope="session")
def one_thread() -> None:
    """Torch on one thread: fast for small models, and the same numbers on every machine's core count."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """One store for the session: what one test has built, another finds."""
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def workshop(store: ArtifactStore, one_thread: None) -> Workshop:
    """A workshop over the session's store."""
    return Workshop(store)


@pytest.fixture(scope="session")
def small_plm() -> MethodSpec:
    """The PLM `tiny`, as small as it goes: about a second to make."""
    settings = {"texts": 300, "epochs": 1, "layers": 1, "hidden": 32}
    return catalog.make("plm", "tiny", settings).spec()


@pytest.fixture(scope="session")
def small_task() -> MethodSpec:
    """The task `toy_reviews` with few rows (160 train, 40 clean, 30 tune, 60 test)."""
    settings = {"train_sentences": 200, "dev_sentences": 30, "test_sentences": 60}
    return catalog.make("task", "toy_reviews", settings).spec()


@pytest.fixture(scope="session")
def domain_task(tmp_path_factory: pytest.TempPathFactory) -> MethodSpec:
    """A task of text pairs with 4 classes: which domain two reviews are about."""
    folder = tmp_path_factory.mktemp("domains")
    names = list(DOMAINS)[:4]
    for split, size in (("train", 40), ("dev", 8), ("test", 12)):
        lines = []
        for label, name in enumerate(names):
            found = reviews(7, split, name, domains=(name,))
            for _ in range(size):
                row = {"text": next(found)[0], "pair": next(found)[0], "label": label}
                lines.append(json.dumps(row))
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = {"path": str(folder), "pair": "pair", "label_names": names}
    return catalog.make("task", "files", settings).spec()


OWN_HEAD = """
from typing import ClassVar
import json
import numpy as np
import pyarrow as pa
from backdoor_core.attack import *
from backdoor_core.defense import *
from backdoor_core.space import setting
"""


@pytest.fixture(scope="session")
def own_method(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MethodSpec]:
    """Makes a method of the user's own: `own_method("defense", TEXT, strength=0.1)`.

    TEXT is one class, and what goes with it; it stands in a file that is called like the class in lower case. The
    names that methods need are imported. One text is one file: its class is the same in every call.
    """
    folder = tmp_path_factory.mktemp("own")

    def spec(family: Any, text: str, **settings: Any) -> MethodSpec:
        name = text.split("\nclass ")[-1].split("(")[0].lower()
        file = folder / digest(text)[:8] / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(OWN_HEAD + text, encoding="utf-8")
        return catalog.make(family, str(file), settings).spec()

    return spec


@pytest.fixture(scope="session")
def small_trial(small_plm: MethodSpec, small_task: MethodSpec) -> Callable[..., TrialSpec]:
    """Makes trials: `small_trial(attack, [defense, ...], seed=..., training={...})`.

    An attack or a defense is a name, a mapping as in a sweep file, or a spec; one epoch of training by default.
    """

    def spec_of(family: Any, item: str | dict[str, Any] | MethodSpec) -> MethodSpec:
        if isinstance(item, MethodSpec):
            return item
        settings = {"name": item} if isinstance(item, str) else dict(item)
        return catalog.make(family, settings.pop("name"), settings).spec()

    def trial(
        attack: str | dict[str, Any] | MethodSpec = "none",
        defenses: Sequence[str | dict[str, Any] | MethodSpec] = (),
        *,
        training: dict[str, Any] | None = None,
        **other: Any,
    ) -> TrialSpec:
        settings = {"epochs": 1, "batch_rows": 32, "learning_rate": 1e-3, "max_tokens": 64}
        fields = {
            "task": small_task,
            "plm": small_plm,
            "attack": spec_of("attack", attack),
            "defenses": tuple(spec_of("defense", item) for item in defenses),
            "training": TrainingSettings(**(settings | (training or {}))),
        }
        return TrialSpec(**(fields | other))

    return trial


@pytest.fixture(scope="session")
def victim_folder(workshop: Workshop, small_trial: Callable[..., TrialSpec]) -> Path:
    """A saved BadNets victim, as a user's suspect model."""
    pipeline = Pipeline(small_trial({"name": "badnets", "poison_rate": 0.2, "words": ["cf"]}))
    workshop.victim(pipeline)
    return workshop.store.open(pipeline.victim_key)


ROOT = Path(__file__).resolve().parent.parent
TINY_SECTIONS: dict[str, Any] = {
    "name": "tiny-sweep",
    "tasks": [
        {"name": "toy_reviews", "train_sentences": 200, "dev_sentences": 30, "test_sentences": 60}
    ],
    "plms": [{"name": "tiny", "texts": 300, "epochs": 1, "layers": 1, "hidden": 32}],
    "seeds": 1,
    "attacks": [
        {"name": "badnets", "words": ["cf"], "poison_rate": 0.2},
        {"name": "addsent", "poison_rate": 0.2},
    ],
    "defenses": [
        {"name": "placebo", "rate": [0.1, 0.4]},
        {"name": "fine_mixing", "mixing_ratio": [0.3, 0.7], "epochs": 1, "learning_rate": 1e-3},
    ],
    "training": {"epochs": 1, "batch_rows": 32, "learning_rate": 1e-3, "max_tokens": 64},
    "resources": {"cpu": 1},
}


@pytest.fixture(scope="session")
def tiny_sweep() -> Callable[..., Path]:
    """Writes a sweep file that runs in seconds: `tiny_sweep(folder, seeds=2, ...)` changes its sections.

    The file has one section a line; None leaves a section out.
    """

    def write(folder: Path, /, file: str = "tiny.yaml", **sections: Any) -> Path:
        path = folder / file
        kept = {
            key: value for key, value in (TINY_SECTIONS | sections).items() if value is not None
        }
        lines = [f"{key}: {json.dumps(value)}\n" for key, value in kept.items()]
        path.write_text("".join(lines), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def sweeps_environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a `sweeps` process: the project importable, a default store of its own."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "BACKDOOR_SWEEPS_STORE": str(tmp_path_factory.mktemp("default-store")),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }


@pytest.fixture(scope="session")
def sweeps_process(sweeps_environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Starts the command line in a process of its own: `sweeps_process("run", file, ...)`.

    It leads a process group; stdout and stderr are one stream. `env` adds to its environment. It listens to Ctrl-C also
    where the tests run in the background of a shell, which makes its children ignore it.
    """
    words = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    words += "from sweeps.cli import main; main()"

    def start(*arguments: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", words, *map(str, arguments)],
            env=sweeps_environment | (env or {}),
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


@pytest.fixture(scope="session")
def cli(sweeps_environment: dict[str, str]) -> Callable[..., Result]:
    """Runs the command line in this process: `cli("run", file, "--local", ...)`.

    An exception that the command line does not turn into a message is raised.
    """

    def invoke(*arguments: object, **other: Any) -> Result:
        from sweeps.cli import main

        words = [str(word) for word in arguments]
        result = CliRunner(env=sweeps_environment).invoke(main, words, **other)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke

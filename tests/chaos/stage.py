"""What the story is played on: a small disk, a storage on it or behind S3, a cluster, and the command that is run."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from backdoor_core.ledger import Ledger
from backdoor_core.node_cache import CACHE_VARIABLE
from backdoor_core.store import ArtifactStore
from tests.chaos import endpoint, isolation
from tests.chaos.cluster import Cluster, own_folders
from tests.chaos.endpoint import Endpoint
from tests.chaos.faults import Storage

ROOT = Path(__file__).resolve().parents[2]
DISK_MIB = 160
CLOCK = Path(__file__).parent / "clock"
"""Put first on PYTHONPATH: `sitecustomize` there moves the clock by this many seconds."""
SKEW = "BACKDOOR_SWEEPS_CHAOS_SKEW_S"
_TOKEN = secrets.token_hex(16)
"""One for all acts: the library reads it once."""
_BALLAST = "ballast"
_CHUNK = bytes(1 << 20)


class Stage:
    """One act's place. `out` and `store` are as the sweep knows them; `ledger` and `artifacts` are the audience's way.

    With `folder` storage both lie on a small disk that all nodes share; with `s3` in a bucket behind a proxy, and the
    disk has the nodes' temporary files and caches.
    """

    def __init__(self, folder: Path, storage: Storage) -> None:
        self.folder, self.storage = folder, storage
        self.disk = folder / "disk"
        isolation.mount_memory(self.disk, size_mib=DISK_MIB)
        (self.disk / "tmp").mkdir()
        self.environment = _environment() | own_folders(self.disk / "tmp")
        os.environ[CACHE_VARIABLE] = str(folder / "audience")
        self.endpoint: Endpoint | None = None
        if storage == "s3":
            # The audience asks the server itself, the sweep asks through the proxy.
            os.environ.update(endpoint.CREDENTIALS, AWS_ENDPOINT_URL=endpoint.SERVER_URL)
            self.environment |= endpoint.CREDENTIALS
            self.endpoint = Endpoint(folder)
            self.environment["AWS_ENDPOINT_URL"] = endpoint.PROXY_URL
            self.out, self.store = (f"s3://{endpoint.BUCKET}/{name}" for name in ("out", "store"))
        else:
            self.out, self.store = str(self.disk / "out"), str(self.disk / "store")
        self.ledger, self.artifacts = Ledger(self.out), ArtifactStore(self.store)
        os.environ.update({k: v for k, v in self.environment.items() if k.startswith("RAY_")})
        self.cluster = Cluster(folder, self.disk / "tmp", self.environment)

    @property
    def proxy(self) -> endpoint.Proxy:
        """What stands between the sweep and its storage. Raises LookupError where that is a folder."""
        if self.endpoint is None:
            raise LookupError("only S3 has a proxy")
        return self.endpoint.proxy

    def driver(
        self, file: Path, log: Path, *, rerun: str | None = None, skew_s: float = 0
    ) -> subprocess.Popen[bytes]:
        """Starts `sweeps run` on the cluster, in a process group of its own; its output goes on in `log`.

        `rerun`: the error class whose failed trials are run again.
        """
        environment = self.environment | {"RAY_ADDRESS": self.cluster.address}
        if skew_s:
            path = os.pathsep.join([str(CLOCK), environment["PYTHONPATH"]])
            environment |= {SKEW: str(skew_s), "PYTHONPATH": path}
        command = ["run"] if rerun is None else ["rerun", "--failed", rerun]
        command += [str(file), "--out", self.out, "--store", self.store]
        with log.open("ab") as stream:
            return subprocess.Popen(
                _sweeps(*command), env=environment, start_new_session=True,
                stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def fill_disk(self) -> None:
        """Leaves no byte free: every write fails with ENOSPC."""
        with contextlib.suppress(OSError), (self.disk / _BALLAST).open("wb", buffering=0) as file:
            while True:
                file.write(_CHUNK)
        # What does not hold a whole page more is full.
        with contextlib.suppress(OSError), (self.disk / _BALLAST).open("ab", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)

    def free_disk(self) -> None:
        """Takes the ballast away."""
        (self.disk / _BALLAST).unlink(missing_ok=True)

    def hide_disk(self) -> None:
        """As when a network share is gone: an empty folder that nobody can write stands in its place."""
        isolation.mount_memory(self.disk, size_mib=1, read_only=True)

    def show_disk(self) -> None:
        """The share is back."""
        isolation.unmount(self.disk)

    def artifact_files(self) -> Iterator[tuple[str, str]]:
        """Key and path in the store of each published file."""
        from pyarrow import fs

        folder = self.artifacts.folder.child("objects")
        selector = fs.FileSelector(folder.root, recursive=True, allow_not_found=True)
        for info in folder.filesystem.get_file_info(selector):
            inner = info.path[len(folder.root) + 1 :].split("/")
            if info.type == fs.FileType.File and len(inner) > 2:
                yield inner[1], "objects/" + "/".join(inner)

    def close(self) -> None:
        """Ends what was started."""
        self.cluster.lose_all()
        if self.endpoint is not None:
            self.endpoint.close()


def run_calmly(file: Path, folder: Path) -> Ledger:
    """Runs the sweep with nobody in its way, without Ray; its ledger. Raises RuntimeError where it fails."""
    command = ["run", str(file), "--local", "--out", folder / "out", "--store", folder / "store"]
    result = subprocess.run(
        _sweeps(*map(str, command)), env=_environment(), capture_output=True, text=True
    )
    if result.returncode != 0:
        raise RuntimeError(f"the calm run failed:\n{result.stdout}\n{result.stderr}")
    return Ledger(folder / "out")


def _sweeps(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from sweeps.cli import main; main()", *arguments]


def _environment() -> dict[str, str]:
    """One thread everywhere, and a cluster that only who has its token may use."""
    own: Mapping[str, str] = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": _TOKEN,
        "RAY_memory_monitor_refresh_ms": "0",
    }
    return os.environ | dict(own)

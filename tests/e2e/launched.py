"""A real cluster on the hosts of a lab, through Ray's own launcher: `deploy/on_premises.yaml`, filled in.

Commands run on the laptop, in the project's folder, as a user would type them. The storage is an S3 endpoint on the
laptop, whose log says which host wrote what. (`on_aws.py` has the cluster of instances.)
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import psutil
import yaml

from tests.e2e.hosts import Host, waited_for
from tests.e2e.lab import LAPTOP, ROOT, Lab

S3_PORT = 5000
BUCKET = "sweeps"
HEAD, WORKERS = "head", ("worker1", "worker2")
TOKEN_FILE = ".ray/auth_token"
PROJECT = "backdoor-sweeps"
# What each login of each host has. The credentials are no secret: moto takes any.
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_ENDPOINT_URL": f"http://{LAPTOP}:{S3_PORT}",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # Before the installed project, which is the laptop's: a host runs what was sent to it.
    "PYTHONPATH": f"{{home}}/{PROJECT}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
}
PLACES = {"out": f"s3://{BUCKET}/runs", "store": f"s3://{BUCKET}/store"}
# Two hosts and a head share this machine's memory.
SMALL = "--object-store-memory=100000000"
JOINED = "Registering new node"
"""In the log of the head's GCS, with the address of a node that joins."""
_PUT = re.compile(r'^(\S+) - - \[[^]]*\] "PUT /(\S+) HTTP')


@dataclass(frozen=True, kw_only=True)
class Written:
    """One object that a host put into the storage."""

    host: str
    name: str


@dataclass(kw_only=True)
class Storage:
    """moto's server, on the laptop; `server` is the command that starts it."""

    lab: Lab
    server: Sequence[str] = (sys.executable, "-m", "moto.server")
    process: subprocess.Popen[str] | None = None

    @property
    def log(self) -> Path:
        return self.lab.laptop.folder / "s3.log"

    def start(self) -> None:
        """Serves an empty bucket."""
        laptop = self.lab.laptop
        words = [*self.server, "-H", laptop.address, "-p", str(S3_PORT)]
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                laptop.command(*words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, text=True
            )
        waited_for(lambda: "Running on" in self.log.read_text(encoding="utf-8"), 60)
        code = f"import boto3; boto3.client('s3').create_bucket(Bucket={BUCKET!r})"
        must(laptop.run(sys.executable, "-c", code))

    def stop(self) -> None:
        """Ends the server."""
        if self.process is not None:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                process.kill()
            self.process.wait(timeout=30)

    def written(self) -> list[Written]:
        """All objects that were put, in order; one that was put twice stands there twice."""
        names = {host.address: host.name for host in self.lab.hosts.values()}
        return [
            Written(host=names.get(address, address), name=name)
            for address, name in self._puts()
            if name != BUCKET
        ]

    def _puts(self) -> Iterator[tuple[str, str]]:
        for line in self.log.read_text(encoding="utf-8").splitlines():
            if found := _PUT.match(line):
                yield found[1], found[2].split("?")[0]

    def fetch(self, prefix: str, folder: Path) -> Path:
        """Copies what lies under `prefix` of the bucket to a folder of this machine."""
        code = (
            "import sys; from pyarrow import fs; found, path = fs.FileSystem.from_uri(sys.argv[1]); "
            "fs.copy_files(path, sys.argv[2], found, fs.LocalFileSystem())"
        )
        inside = self.lab.laptop.home / folder.name
        url = f"s3://{BUCKET}/{prefix}"
        must(self.lab.laptop.run(sys.executable, "-c", code, url, str(inside)))
        inside.rename(folder)
        return folder


@dataclass(kw_only=True)
class Cluster:
    """A cluster whose hosts are a lab's. `seconds` has how long each of its steps took."""

    lab: Lab
    ray: ClassVar[str] = "ray"
    """Ray's command on the head."""
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def file(self) -> Path:
        return self.lab.laptop.home / "cluster.yaml"

    @property
    def hosts(self) -> list[Host]:
        """The cluster's hosts; the head is the first of them."""
        raise NotImplementedError

    @property
    def head(self) -> Host:
        return self.hosts[0]

    def write(self, config: dict[str, Any]) -> None:
        """The cluster file, and the token, as the docs say."""
        self.file.write_text(yaml.safe_dump(config, width=1000, sort_keys=False), encoding="utf-8")
        if not (self.lab.laptop.home / TOKEN_FILE).exists():
            must(self.typed("sh", "-c", "umask 077; ray get-auth-token --generate"))

    def typed(self, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """A command in the project's folder on the laptop."""
        return self.lab.laptop.run(*words, timeout_s=timeout_s, folder=ROOT, PYTHONPATH=str(ROOT))

    def sweeps(self, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        """A command of this project on the laptop."""
        code = "from sweeps.cli import main; main()"
        return self.typed(sys.executable, "-c", code, *words, timeout_s=timeout_s)

    def given(self, file: Path) -> Path:
        """A copy of a sweep file, on the laptop."""
        sent = self.lab.laptop.home / file.name
        sent.write_bytes(file.read_bytes())
        return sent

    def submit(self, file: Path) -> str:
        """`sweeps submit` of a file on the laptop; the id of the run."""
        said = must(self.sweeps("submit", str(file), "--cluster", str(self.file)))
        return said.split()[1].rstrip(";")  # "started e2e-1; ..."

    def ray_status(self) -> str:
        """What `ray status` says on the head."""
        command = f"RAY_AUTH_MODE=token {self.ray} status"
        return self.typed("ray", "exec", "--no-config-cache", str(self.file), command).stdout

    def head_log(self, name: str) -> str:
        """A log of Ray on the head; empty where there is none."""
        # `session_latest` is a link within the head's own /tmp.
        found = sorted((self.head.folder / "tmp" / "ray").glob(f"session_2*/logs/{name}"))
        return found[-1].read_text(encoding="utf-8", errors="replace") if found else ""

    def down(self, limit_s: float) -> list[str]:
        """`ray down`; what still runs on the hosts when that and `limit_s` have passed."""
        start = time.monotonic()
        must(self.typed("ray", "down", "-y", str(self.file)))
        self.seconds["ray down"] = time.monotonic() - start
        try:
            waited_for(lambda: not self.running(), limit_s, every_s=1)
        except TimeoutError:
            return self.running()
        self.seconds["down"] = time.monotonic() - start
        return []

    def keep_logs(self, folder: Path) -> Path:
        """Copies the logs of the hosts, for who must find out why a run failed."""
        for host in self.lab.hosts.values():
            files = [*host.folder.glob("*.log"), *host.home.glob("*.log")]
            files += (host.folder / "tmp").glob("*.log")
            files += (host.folder / "tmp" / "ray").glob("session_2*/logs/*.*")
            kept = folder / host.name
            kept.mkdir(parents=True)
            for file in files:
                if file.is_file():
                    shutil.copy(file, kept)
        return folder

    def running(self) -> list[str]:
        """What runs on the cluster's hosts."""
        return [
            f"{host.name}: {one.command[:200]}" for host in self.hosts for one in host.processes()
        ]


@dataclass(kw_only=True)
class OnPremises(Cluster):
    """The cluster of `deploy/on_premises.yaml`."""

    ray: ClassVar[str] = f"~/{PROJECT}/.venv/bin/ray"

    @property
    def hosts(self) -> list[Host]:
        """The head and its workers, whose places are known from the start."""
        return [self.lab.hosts[name] for name in (HEAD, *WORKERS)]

    def write_file(self) -> None:
        """The file with the addresses and sizes of these hosts."""
        text = (ROOT / "deploy" / "on_premises.yaml").read_text(encoding="utf-8")
        text = text.replace("--num-cpus=0", f"--num-cpus=0 {SMALL}")
        text = text.replace("ray start --address", f"ray start --num-cpus=1 {SMALL} --address")
        config: dict[str, Any] = yaml.safe_load(text)
        workers = [self.lab.hosts[name].address for name in WORKERS]
        config["provider"] |= {"head_ip": self.head.address, "worker_ips": workers}
        config["auth"]["ssh_user"] = "root"
        config["metadata"]["storage"] = PLACES
        self.write(config)

    def install_without_network(self) -> None:
        """In place of the installation on each host, which would download: a link to this machine's own."""
        config = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        config["setup_commands"] = [f"ln -sfn {sys.prefix} ~/{PROJECT}/.venv"]
        self.write(config)

    def up(self) -> None:
        """`ray up`, and until all hosts have joined."""
        start = time.monotonic()
        must(self.typed("ray", "up", "-y", "--no-config-cache", str(self.file), timeout_s=600))
        self.seconds["up"] = time.monotonic() - start
        wanted = re.compile(rf"/{len(WORKERS)}\.0 CPU")
        waited_for(lambda: wanted.search(self.ray_status()), 600, every_s=1)
        self.seconds["joined"] = time.monotonic() - start


def must(done: subprocess.CompletedProcess[str]) -> str:
    """The output of a command that went well. Raises RuntimeError with what it said where it did not."""
    if done.returncode:
        command = " ".join(done.args[done.args.index("-C") + 2 :])
        raise RuntimeError(
            f"exit code {done.returncode} from {command[-300:]}:\n{done.stdout[-6000:]}"
        )
    return done.stdout

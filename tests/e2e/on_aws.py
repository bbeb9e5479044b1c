"""The cluster of `cluster.yaml` on a simulated EC2: each instance that it lists is a host of the lab, while it runs.

The file is the project's own but for what `OnAws.write_file` and `without_docker` change.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from tests.e2e.hosts import Host
from tests.e2e.lab import LAPTOP, ROOT, Lab
from tests.e2e.launched import BUCKET, JOINED, PLACES, PROJECT, SMALL, Cluster, Storage, must

NETWORKS = (f"{LAPTOP}/24", "172.31.255.254/16")
"""The laptop's, and the simulated EC2's default network."""
USER = "ubuntu"
MAX_WORKERS = 2
# Long enough to submit and to look, short enough to wait for.
IDLE_MINUTES = 0.4
_ROLES = """
import boto3, sys
stacks = boto3.client("cloudformation")
stacks.create_stack(
    StackName="roles", TemplateBody=open(sys.argv[1]).read(), Capabilities=["CAPABILITY_NAMED_IAM"],
    Parameters=[{"ParameterKey": "Bucket", "ParameterValue": sys.argv[2]}],
)
"""


@dataclass(kw_only=True)
class Instance:
    """An instance as the simulated EC2 lists it."""

    instance: str
    state: str
    address: str
    public_address: str
    market: str
    public_key: str
    tags: dict[str, str]

    @property
    def kind(self) -> str:
        """Its node type."""
        return self.tags.get("ray-user-node-type", "")


@dataclass(kw_only=True)
class Machines:
    """The machines behind the instances, for the time of a `with`: on when one runs, off when it is terminated."""

    lab: Lab
    hosts: dict[str, Host] = field(default_factory=dict)
    """By the instance's id, in the order in which they were started."""
    failure: BaseException | None = None
    _end: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    @property
    def file(self) -> Path:
        return self.lab.laptop.folder / "instances.json"

    @property
    def server(self) -> Sequence[str]:
        """The command that serves the simulated AWS."""
        words = (sys.executable, str(ROOT / "tests" / "e2e" / "simulated_aws.py"))
        return (*words, "--instances", str(self.file))

    def __enter__(self) -> Machines:
        self._thread = threading.Thread(target=self._watch, name="machines", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:  # fmt: skip
        self._end.set()
        assert self._thread is not None
        self._thread.join(60)
        if self.failure is not None and error is None:
            raise self.failure

    def told(self) -> dict[str, Any]:
        """What the simulated AWS says of itself: `instances`, `refused`, `asked`."""
        told: dict[str, Any] = json.loads(self.file.read_text(encoding="utf-8"))
        return told

    def instances(self, kind: str = "") -> list[Instance]:
        """All instances that there are or were, oldest first; those of one node type."""
        found = [Instance(**one) for one in self.told()["instances"]]
        return [one for one in found if kind in ("", one.kind)]

    def running(self, kind: str = "") -> list[Instance]:
        """The instances that run."""
        return [one for one in self.instances(kind) if one.state == "running"]

    def _watch(self) -> None:
        try:
            while not self._end.wait(0.2):
                if self.file.exists():
                    self._follow()
        except BaseException as error:
            self.failure = error

    def _follow(self) -> None:
        for one in self.instances():
            host = self.hosts.get(one.instance)
            if host is None and one.state == "running":
                name = f"node{len(self.hosts)}"
                self.hosts[one.instance] = self.lab.add(name, one.address, one.public_key)
            elif host is not None and host.pid and one.state == "terminated":
                self.lab.cut(host)


@dataclass(kw_only=True)
class OnAws(Cluster):
    """The cluster of `cluster.yaml`."""

    machines: Machines

    @property
    def hosts(self) -> list[Host]:
        """The hosts of all instances so far."""
        return list(self.machines.hosts.values())

    def write_file(self) -> None:
        """The project's file for a smaller cluster, with a bucket; nodes reach one another, and no one else does."""
        text = (ROOT / "cluster.yaml").read_text(encoding="utf-8")
        text = text.replace("ray start --head", f"ray start --head {SMALL}")
        text = text.replace("ray start --address", f"ray start {SMALL} --address")
        config: dict[str, Any] = yaml.safe_load(text)
        config["provider"]["use_internal_ips"] = True
        config["metadata"]["storage"] = PLACES
        config["max_workers"] = config["upscaling_speed"] = MAX_WORKERS
        config["idle_timeout_minutes"] = IDLE_MINUTES
        self.write(config)

    def without_docker(self) -> None:
        """Each machine has Python and what the project needs, and it is shown that the project was sent there."""
        config = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        del config["docker"]
        config["setup_commands"] = [f"cd ~/{PROJECT} && test -f pyproject.toml"]
        self.write(config)

    def make_roles(self) -> None:
        """The stack of `deploy/aws_roles.yaml`."""
        template = str(ROOT / "deploy" / "aws_roles.yaml")
        must(self.lab.laptop.run(sys.executable, "-c", _ROLES, template, BUCKET))

    def up(self) -> str:
        """`ray up`; what it printed."""
        start = time.monotonic()
        said = must(self.typed("ray", "up", "-y", str(self.file), timeout_s=600))
        self.seconds["ray up"] = time.monotonic() - start
        return said

    def ways_out(self) -> dict[str, subprocess.CompletedProcess[str]]:
        """What comes of trying to leave the lab, by host: a connection to an address that moto has made up."""
        (public, *_) = (one.public_address for one in self.machines.instances())
        code = f"import socket; socket.create_connection(({public!r}, 22), 3)"
        places = (self.lab.laptop, *(host for host in self.hosts if host.pid))
        return {host.name: host.run(sys.executable, "-c", code) for host in places}

    def joined(self, kind: str) -> list[Instance]:
        """The instances of this node type that run, and whose Ray has joined the head's."""
        lines = self.head_log("gcs_server.out").splitlines()
        ends = tuple(line.rpartition("node_address=")[2] for line in lines if JOINED in line)
        return [one for one in self.machines.running(kind) if one.address in ends]


def storage_of(machines: Machines) -> Storage:
    """The bucket of the simulated AWS."""
    return Storage(lab=machines.lab, server=machines.server)

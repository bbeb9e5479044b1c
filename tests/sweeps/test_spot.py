"""Spot notices, told by a metadata service on loopback that speaks as AWS and Google Cloud do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from backdoor_core.errors import ConfigError
from sweeps import spot
from sweeps.spot import Notice, notice_of, only_watcher, watch


class Metadata(ThreadingHTTPServer):
    """`body` is what the cloud says of this node; None: no notice yet."""

    body: str | None = None
    asked = 0


class _Handler(BaseHTTPRequestHandler):
    server: Metadata

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def _say(self, code: int, text: str = "") -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self) -> None:
        has_ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"] is not None
        self._say(200 if self.path == "/latest/api/token" and has_ttl else 400, "secret")

    def do_GET(self) -> None:
        self.server.asked += 1
        if self.path == "/latest/meta-data/spot/instance-action":
            if self.headers["X-aws-ec2-metadata-token"] != "secret":
                self._say(401)
            elif self.server.body is None:
                self._say(404)
            else:
                self._say(200, self.server.body)
        elif self.path == "/computeMetadata/v1/instance/preempted":
            is_google = self.headers["Metadata-Flavor"] == "Google"
            self._say(200 if is_google else 403, self.server.body or "FALSE")
        else:
            self._say(404)


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    server = Metadata(("127.0.0.1", 0), _Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _url(server: Metadata) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def _aws(seconds: float) -> str:
    at = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": at.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_aws(metadata: Metadata) -> None:
    assert notice_of("aws", _url(metadata)) is None
    metadata.body = _aws(120)
    notice = notice_of("aws", _url(metadata))
    assert notice is not None
    assert notice.action == "terminate"
    assert 110 < notice.seconds <= 120
    metadata.body = "words that are new"
    assert notice_of("aws", _url(metadata)) == Notice(action="unknown", seconds=120.0)


def test_google(metadata: Metadata) -> None:
    assert notice_of("gcp", _url(metadata)) is None
    metadata.body = "TRUE"
    assert notice_of("gcp", _url(metadata)) == Notice(action="preempted", seconds=30.0)


def test_watch_outlives_a_silent_service_and_acts_once(metadata: Metadata) -> None:
    handled: list[Notice] = []
    said: list[str] = []
    looks = 0

    def sleep(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            metadata.body = _aws(120)

    notice = watch(
        "aws", endpoint=_url(metadata), on_notice=handled.append, say=said.append, sleep=sleep
    )
    assert handled == [notice]
    assert looks == 3
    assert said == [f"notice: terminate in {notice.seconds:.0f} s"]

    quiet: list[str] = []

    class StoppedError(Exception):
        pass

    def stop(_: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 6:
            raise StoppedError

    with pytest.raises(StoppedError):
        watch(
            "aws",
            endpoint="http://127.0.0.1:9",
            on_notice=handled.append,
            say=quiet.append,
            sleep=stop,
        )
    assert len(quiet) == 1, "a silent service is told of once"
    assert len(handled) == 1


def test_one_watcher_a_node(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with only_watcher(lock), pytest.raises(ConfigError, match="already"), only_watcher(lock):
        pass
    with only_watcher(lock):
        pass


DRAIN = """
import json, os, sys, time
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
going = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=1)
def where(seconds):
    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()

assert ray.get(where.remote(0)) == going.node_id
runs = where.remote(float(os.environ["RUNS_S"]))
time.sleep(1)
print(json.dumps({"address": cluster.address, "node": going.node_id}), flush=True)
assert sys.stdin.readline().strip() == "drained"
staying = cluster.add_node(num_cpus=1)
later = [ray.get(where.remote(0), timeout=60) for _ in range(3)]
print(json.dumps({
    "later": sorted(set(later)), "staying": staying.node_id,
    "finished_where": ray.get(runs, timeout=60),
}), flush=True)
ray.shutdown()
cluster.shutdown()
"""


@pytest.mark.slow
def test_a_notice_drains_a_real_node(metadata: Metadata, tmp_path: Path) -> None:
    """After the notice no new job starts on the node, and the job that ran there ends in its time."""
    env = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0", "TMPDIR": str(tmp_path), "RAY_TMPDIR": "/tmp", "RUNS_S": "6",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "t" * 32,
        "PYTHONPATH": str(Path(spot.__file__).resolve().parent.parent),
    }  # fmt: skip
    stage = subprocess.Popen(
        [sys.executable, "-c", DRAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, env=env,
    )  # fmt: skip
    assert stage.stdin is not None
    assert stage.stdout is not None
    try:
        place = json.loads(_json_line(stage.stdout))
        watcher = subprocess.Popen(
            [sys.executable, "-m", "sweeps.cli", "cluster", "watch-spot", "--cloud", "aws", "--every", "0.2",
             "--endpoint", _url(metadata), "--address", place["address"], "--node-id", place["node"]],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not metadata.asked and time.monotonic() < deadline:
            time.sleep(0.1)
        metadata.body = _aws(120)
        said, _ = watcher.communicate(timeout=60)
        assert watcher.returncode == 0, said
        assert "drained" in said
        assert (tmp_path / spot.DRAINING.name).exists(), "workers that live on learn of it too"
        stage.stdin.write("drained\n")
        stage.stdin.flush()
        result = json.loads(_json_line(stage.stdout))
        assert result["later"] == [result["staying"]]
        assert result["finished_where"] == place["node"]
        assert stage.wait(timeout=60) == 0
    finally:
        if stage.poll() is None:
            stage.kill()
        stage.communicate()


def _json_line(stream: object) -> str:
    for line in stream:  # type: ignore[attr-defined]
        if line.startswith("{"):
            return str(line)
    raise AssertionError("the cluster's process ended early")

"""Secrets of the environment stand in no file that a sweep writes, and Ray lets in only who has the token."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from backdoor_core.ledger import Ledger
from backdoor_core.redact import redacted

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "planted-aws-0123456789",
    "HF_TOKEN": "hf_planted0123456789",
    "RAY_AUTH_TOKEN": "planted-ray-0123456789abcdef0123456789abcdef",
    "WANDB_API_KEY": "planted-wandb-0123456789",
    "MY_OWN_PASSWORD": "planted-own-0123456789",
}
IN_A_URL = "planted-in-a-url"
FAILS = f'''
import os
from backdoor_core.defense import Defense


class Leaks(Defense):
    """Fails as a client of some service does, with all that it knows in its message."""

    @property
    def access(self):
        return frozenset({{"victim"}})

    def repair(self, view):
        known = " ".join(os.environ[name] for name in {list(SECRETS)!r})
        raise RuntimeError("no answer from https://me:{IN_A_URL}@host/x?token={IN_A_URL} for " + known)
'''
ASKS = """
import sys, urllib.error, urllib.request
from sweeps.tune_bridge import start_ray
start_ray(1)
import psutil, ray
from sweeps.ray_access import answers_without_token
address = ray.get_runtime_context().gcs_address
print("open:", answers_without_token(address))
print("mode:", __import__("os").environ["RAY_AUTH_MODE"])
inside = ("127.0.0.1", "::1", "::ffff:127.0.0.1")
me = psutil.Process()
agents = []
for process in me.children(recursive=True):
    for c in process.net_connections(kind="tcp"):
        if c.status != "LISTEN":
            continue
        title = " ".join(process.cmdline()) + process.name()
        # The dashboard's process starts all the same, without its server: it shows figures, and no more.
        figures = "dashboard/dashboard.py" not in title or c.laddr.ip in inside
        try:
            url = f"http://127.0.0.1:{c.laddr.port}/api/job_agent/jobs/"
            said = urllib.request.urlopen(url, timeout=3).read()
            if said.startswith(b"# HELP"):
                figures = True
            else:
                print("answered:", c.laddr.port, said)
        except urllib.error.HTTPError as error:
            agents.append(error.code)
        except Exception:
            pass
        assert figures, (title, c.laddr)
print("agents:", set(agents) | {401})
"""


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose name is short: Ray's sockets lie in it."""
    made = Path(tempfile.mkdtemp(prefix="s"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def test_planted_secrets_stand_in_no_file(
    sweeps_process: Callable[..., subprocess.Popen[str]],
    tiny_sweep: Callable[..., Path],
    short: Path,
) -> None:
    (short / "leaks.py").write_text(FAILS, encoding="utf-8")
    file = tiny_sweep(short, attacks=["badnets"], defenses=[{"name": "leaks.py"}])
    places = ("--out", short / "out", "--store", short / "store")
    process = sweeps_process("run", file, *places, env=SECRETS | {"RAY_TMPDIR": str(short)})
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 1, said
    (row,) = [r for r in Ledger(short / "out").table().to_pylist() if r["status"] == "failed"]
    assert row["error"].startswith(
        "RuntimeError: no answer from https://***@host/x?token=*** for ***"
    )
    assert "no answer from https://***@host" in said
    assert "no answer from" in (short / "out" / row["log"]).read_text(encoding="utf-8")
    written = [path for path in short.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any("raylet" in path.name for path in written), "Ray's own logs are among them"
    assert len([path for path in written if path.is_relative_to(short / "store")]) > 5
    for secret in (*SECRETS.values(), IN_A_URL):
        assert secret not in said
        for path in written:
            if path.name not in ("leaks.py", "leaks.cpython-311.pyc"):
                assert secret.encode() not in path.read_bytes(), f"{secret} in {path}"


def test_a_local_ray_lets_in_only_who_has_the_token(
    sweeps_environment: dict[str, str], short: Path
) -> None:
    """The token is made for this user alone; neither Ray's port nor the agent's answers without it."""
    environment = {k: v for k, v in sweeps_environment.items() if not k.startswith("RAY_")}
    environment |= {"HOME": str(short), "RAY_TMPDIR": str(short)}
    done = subprocess.run(
        [sys.executable, "-c", ASKS], env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert "open: False" in done.stdout
    assert "mode: token" in done.stdout
    assert "agents: {401}" in done.stdout, "what listens over HTTP asks for the token"
    assert "answered" not in done.stdout
    token = short / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o777 == 0o600
    assert len(token.read_text()) == 64
    for path in short.rglob("*"):
        if path.is_file() and path != token:
            assert token.read_bytes() not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("s3://id:word@bucket/x failed", "s3://***@bucket/x failed"),
        ("GET https://h/x?a=1&X-Amz-Signature=abc&b=2", "GET https://h/x?a=1&X-Amz-Signature=***&b=2"),
        ("wrong: hunter2hunter2", "wrong: ***"),
        ("learning_rate=0.1, max_tokens=64 at user@host", "learning_rate=0.1, max_tokens=64 at user@host"),
        ("the word short stays", "the word short stays"),
        ("/home/me/token.json", "/home/me/token.json"),
    ],
)  # fmt: skip
def test_what_is_masked_and_what_stays(text: str, kept: str) -> None:
    environment = {
        "DB_PASSWORD": "hunter2hunter2", "API_KEY": "short", "HF_TOKEN_PATH": "/home/me/token.json"
    }  # fmt: skip
    assert redacted(text, environment) == kept

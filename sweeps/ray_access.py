"""Who may talk to Ray: token authentication of local runs, and a word where a cluster has none.

Ray's own ports listen on every address of the machine, and whoever may talk to them may run code. A token that only
this user can read keeps others out. It is never in a log, an argument or a file of a sweep.
"""

from __future__ import annotations

import logging
import os
import secrets
import sys
from pathlib import Path

_LOG = logging.getLogger(__name__)
MODE, TOKEN, TOKEN_PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's own environment variables."""
_PROBE_TIMEOUT_S = 5.0


def ask_for_token() -> None:
    """Turns token authentication on for a Ray that this process starts, where the user has not said otherwise.

    To be called before Ray is started. Where it was imported already, it is told to read its environment again.
    """
    if os.environ.get("RAY_ADDRESS") or MODE in os.environ:
        return
    os.environ[MODE] = "token"
    if "ray._raylet" in sys.modules:
        sys.modules["ray._raylet"].Config.initialize("")


def ensure_token() -> None:
    """Sees to it that there is a token for a local Ray: the one that the environment names, or the user's own file.

    The file is Ray's own place, so that `ray` commands of the same user find it; it is made where it is missing, for
    this user alone. Ray itself would make it readable for all.
    """
    if os.environ.get(MODE) != "token":
        _LOG.warning(
            "Ray runs without token authentication (%s=%s): whoever reaches this machine's ports can "
            "run code here; unset it", MODE, os.environ.get(MODE),
        )  # fmt: skip
        return
    if os.environ.get(TOKEN) or os.environ.get(TOKEN_PATH):
        return
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not file.exists():
        _create(file)
    if file.stat().st_mode & 0o077:
        file.chmod(0o600)


def _create(file: Path) -> None:
    """Writes a new token, whole from the start; where another process was first, its token stays."""
    aside = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(secrets.token_hex(32))
        os.link(aside, file)
    except FileExistsError:
        pass
    finally:
        aside.unlink(missing_ok=True)


def answers_without_token(address: str) -> bool:
    """Whether the Ray at `host:port` answers one who has no token: then anyone may run code there.

    False where it cannot be told.
    """
    try:
        import grpc
    except ImportError:
        return False
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=_PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            # An open Ray may refuse the empty question, but for another reason.
            return bool(error.code() == grpc.StatusCode.INVALID_ARGUMENT)
    return True


def warn_of_open_cluster(address: str) -> None:
    """One line of warning where the cluster that was joined lets anyone in."""
    if answers_without_token(address):
        _LOG.warning(
            "the Ray cluster at %s has token authentication off: whoever reaches its ports can run code on "
            "it; start its nodes with %s=token", address, MODE,
        )  # fmt: skip

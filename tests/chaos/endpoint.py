"""An S3 endpoint on loopback, and before it a proxy that can refuse, drop or hang."""

from __future__ import annotations

import contextlib
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

Mood = Literal["passes", "refuses", "drops", "hangs"]
SERVER_PORT, PROXY_PORT = 5000, 9000
SERVER_URL = f"http://127.0.0.1:{SERVER_PORT}"
PROXY_URL = f"http://127.0.0.1:{PROXY_PORT}"
BUCKET = "chaos"
CREDENTIALS: Mapping[str, str] = {
    "AWS_ACCESS_KEY_ID": "chaos",
    "AWS_SECRET_ACCESS_KEY": "chaos",
    "AWS_REGION": "us-east-1",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""Of a server that asks for none; the libraries do."""
_PATIENCE_S = 60
_CHUNK_BYTES = 1 << 16
_RESET = struct.pack("ii", 1, 0)


class Endpoint:
    """moto's server with one bucket, and the proxy in front of it."""

    def __init__(self, folder: Path) -> None:
        import boto3

        with (folder / "s3.log").open("wb") as log:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(SERVER_PORT)],
                stdout=log, stderr=subprocess.STDOUT,
            )  # fmt: skip
        _wait_for(SERVER_PORT)
        boto3.client("s3", endpoint_url=SERVER_URL).create_bucket(Bucket=BUCKET)
        self.proxy = Proxy()

    def close(self) -> None:
        """Ends the proxy and the server; what it held is gone."""
        self.proxy.close()
        self._server.kill()
        self._server.wait()


def _wait_for(port: int) -> None:
    limit = time.monotonic() + _PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        if time.monotonic() > limit:
            raise TimeoutError(f"nothing listens at port {port} after {_PATIENCE_S} s")
        time.sleep(0.1)


class Proxy:
    """Passes TCP connections on, in the mood that it is in. `hurt` counts connections that met a bad one.

    `refuses`: nobody listens. `drops`: each connection, old or new, is reset. `hangs`: all are kept, none is answered.
    """

    def __init__(self) -> None:
        self.hurt = 0
        self._mood: Mood = "passes"
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._calm = threading.Event()
        self._calm.set()
        self._listener = self._listening()

    @property
    def mood(self) -> Mood:
        """How connections fare now."""
        return self._mood

    @mood.setter
    def mood(self, mood: Mood) -> None:
        before, self._mood = self._mood, mood
        if mood == "hangs":
            self._calm.clear()
        else:
            self._calm.set()
        if mood == "refuses":
            _shut(self._listener)
        elif before == "refuses":
            self._listener = self._listening()
        if mood in ("refuses", "drops"):
            self._reset_all()

    def close(self) -> None:
        """Listens no more."""
        self._calm.set()
        _shut(self._listener)
        self._reset_all()

    def _listening(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", PROXY_PORT), reuse_port=True, backlog=256)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return  # closed
            if self._mood == "drops":
                self.hurt += 1
                _reset(client)
                continue
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", SERVER_PORT))
        except OSError:
            _reset(client)
            return
        with self._lock:
            self._open |= {client, server}
        back = threading.Thread(target=self._pump, args=(server, client), daemon=True)
        back.start()
        self._pump(client, server)
        back.join()
        with self._lock:
            self._open -= {client, server}
        for one in (client, server):
            one.close()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(_CHUNK_BYTES):
                if not self._calm.is_set():
                    self.hurt += 1
                    self._calm.wait()
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            for one in (source, sink):
                _shut(one)

    def _reset_all(self) -> None:
        with self._lock:
            found = list(self._open)
        self.hurt += len(found) // 2
        for one in found:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _shut(one)


def _shut(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    if one.type == socket.SOCK_STREAM:
        with contextlib.suppress(OSError):
            one.close()


def _reset(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()

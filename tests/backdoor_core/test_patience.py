"""What is tried again, what is not, and for how long; against a server that fails as it is told to."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from backdoor_core.address import Address
from backdoor_core.errors import ConfigError, JobTimeoutError, StorageError, error_class
from backdoor_core.folder import Folder
from backdoor_core.patience import PATIENCE_VARIABLE, is_full, may_pass, patience_s, patiently


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backdoor_core.patience._FIRST_WAIT_S", 0.01)


def failing(times: int, error: BaseException) -> tuple[Callable[[], str], list[int]]:
    calls: list[int] = []

    def act() -> str:
        calls.append(1)
        if len(calls) <= times:
            raise error
        return "done"

    return act, calls


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "Input/output error"),
        OSError(errno.ESTALE, "Stale file handle"),
        ConnectionResetError("reset"),
        TimeoutError("slow"),
        OSError("AWS Error SLOW_DOWN during PutObject operation: slow"),
        OSError(
            "AWS Error UNKNOWN (HTTP status 503) during HeadObject operation: No response body."
        ),
        OSError("AWS Error NETWORK_CONNECTION during GetObject operation: curlCode: 7"),
        OSError("google::cloud::Status(UNAVAILABLE: try again)"),
    ],
)
def test_what_may_pass_is_tried_again(error: OSError) -> None:
    act, calls = failing(2, error)
    assert patiently("place", act) == "done"
    assert len(calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file"),
        PermissionError(errno.EACCES, "Permission denied"),
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EROFS, "Read-only file system"),
        OSError("AWS Error NO_SUCH_BUCKET during PutObject operation: none"),
        OSError("AWS Error ACCESS_DENIED during PutObject operation: no"),
        OSError("AWS Error UNKNOWN (HTTP status 301) during HeadObject operation: moved"),
        OSError("google::cloud::Status(PERMISSION_DENIED: no)"),
        OSError("Couldn't deserialize thrift"),
    ],
)
def test_what_will_not_pass_is_told_at_once(error: OSError) -> None:
    act, calls = failing(99, error)
    with pytest.raises(StorageError) as caught:
        patiently("place", act)
    assert len(calls) == 1
    assert caught.value.__cause__ is error
    assert error_class(caught.value) == "storage"


def test_our_own_errors_and_bugs_pass_through() -> None:
    for error in (JobTimeoutError("over"), ConfigError("bad"), ValueError("bug")):
        act, calls = failing(99, error)
        with pytest.raises(type(error)) as caught:
            patiently("place", act)
        assert caught.value is error
        assert len(calls) == 1
        assert not may_pass(error)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, "0.3")
    act, calls = failing(10**9, OSError(errno.EIO, "Input/output error"))
    start = time.monotonic()
    with pytest.raises(
        StorageError, match=r"cannot use place: .*Input/output error \(tried \d+ times"
    ):
        patiently("place", act)
    assert 0.3 <= time.monotonic() - start < 60
    assert len(calls) > 2
    assert [record.message for record in caplog.records if "trying again" in record.message]


@pytest.mark.parametrize("text", ["soon", "-1", "inf", "nan"])
def test_a_patience_that_is_no_time_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(PATIENCE_VARIABLE, text)
    with pytest.raises(ConfigError, match="number of seconds"):
        patience_s()


class Server:
    """A server that gives the answers it is told to, in order, and the last of them for ever.

    An answer is an HTTP status with an S3 error code (or a body), `cut` (the connection is closed) or `ok`.
    """

    def __init__(self) -> None:
        self.answers: list[tuple[int, str] | str] = ["ok"]
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.asked.append(self.command)
                said = outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0]
                if said == "cut":
                    self.close_connection = True
                    return
                status, code = (200, "") if isinstance(said, str) else said
                body = (
                    f"<Error><Code>{code}</Code><Message>told so</Message></Error>" if code else ""
                )
                body = code if code.startswith("<") else body
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body.encode())

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:
                """Nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.http.serve_forever, daemon=True).start()
        self.folder = Folder(
            f"s3://bucket/x?endpoint_override=127.0.0.1:{self.http.server_port}&scheme=http&region=us-east-1"
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "dummy-id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "dummy-secret")
    monkeypatch.setattr("backdoor_core.address._TRIES", 1)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.mark.parametrize(
    "trouble",
    [(503, "SlowDown"), (500, "InternalError"), (502, ""), (429, "TooManyRequests"), "cut"],
    ids=str,
)
def test_a_busy_server_is_waited_for(server: Server, trouble: Any) -> None:
    server.answers = [trouble, trouble, "ok"]
    server.folder.write("a", b"data")
    assert server.asked == ["PUT"] * 3


@pytest.mark.parametrize(
    ("answer", "advice"),
    [
        ((404, "NoSuchBucket"), "there is no such bucket"),
        ((403, "AccessDenied"), "access is refused; credentials come from the environment"),
        ((403, "InvalidAccessKeyId"), "access is refused"),
        ((403, "SignatureDoesNotMatch"), "access is refused"),
        ((403, "RequestTimeTooSkewed"), "clock is wrong"),
        ((301, "PermanentRedirect"), "in another region"),
    ],
)
def test_a_refusal_is_told_at_once_with_what_to_do(
    server: Server, answer: tuple[int, str], advice: str
) -> None:
    server.answers = [answer]
    with pytest.raises(StorageError) as caught:
        server.folder.make()
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "dummy-secret" not in str(caught.value)
    assert server.asked == ["PUT"]


def test_a_silent_server_is_noticed(monkeypatch: pytest.MonkeyPatch, server: Server) -> None:
    """It accepts connections and says nothing."""
    import socket

    monkeypatch.setattr("backdoor_core.address.SILENCE_TIMEOUT_S", 1.0)
    monkeypatch.setenv(PATIENCE_VARIABLE, "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        place = f"s3://b/x?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=us-east-1"
        start = time.monotonic()
        with pytest.raises(
            StorageError, match=r"nothing answers there.*It said: .*NETWORK_CONNECTION"
        ):
            Folder(place).read("a")
        assert time.monotonic() - start < 30


def test_a_failing_part_publishes_no_part_of_a_file(server: Server, tmp_path: Path) -> None:
    """The upload's last request, which would make the object of its parts, is never sent."""
    big = tmp_path / "big"
    big.write_bytes(bytes(12 * 2**20))
    started = (
        "<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
    )
    server.answers = [(200, started), (403, "AccessDenied")]
    with pytest.raises(StorageError, match="access is refused"):
        server.folder.send(big, "big")
    assert server.asked[:2] == ["POST", "PUT"]
    assert "POST" not in server.asked[1:]


class Outage:
    """A filesystem that fails `times` times in each operation that is named."""

    def __init__(self, inner: Any, error: OSError, times: int, *names: str) -> None:
        self.inner, self.error, self.left, self.names = inner, error, times, names

    def __getattr__(self, name: str) -> Any:
        def act(*arguments: Any) -> Any:
            if name in self.names and self.left > 0:
                self.left -= 1
                raise self.error
            return getattr(self.inner, name)(*arguments)

        return act


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_network_filesystem_that_stalls_is_waited_for(tmp_path: Path, number: int) -> None:
    folder = Folder(tmp_path)
    folder.write("a", b"1")
    error = OSError(number, os.strerror(number))
    for names, act, wanted in (
        (("open_input_stream",), lambda: folder.read("a"), b"1"),
        (("get_file_info",), lambda: folder.names(), ["a"]),
        (("get_file_info",), lambda: folder.exists("a"), True),
        (("move",), lambda: folder.move("a", "b"), None),
        (("delete_file",), lambda: folder.remove("b"), None),
    ):
        folder.filesystem = Outage(Address.of(tmp_path).filesystem(), error, 2, *names)
        assert act() == wanted
        assert folder.filesystem.left == 0, names
    assert folder.names() == []


def test_a_full_disk_has_its_own_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("backdoor_core.folder.os.fsync", full)
    with pytest.raises(StorageError, match="no space is left there; free some") as caught:
        Folder(tmp_path).write("a", b"1")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_in_the_words_of_the_writer_of_weights_is_one() -> None:
    from safetensors import SafetensorError

    error = SafetensorError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )
    assert is_full(error)
    assert not is_full(SafetensorError("Error while deserializing header: header too large"))

"""moto's server as an AWS without spot capacity, which says what was asked of it and which instances there are.

A spot request is refused as EC2 refuses it. What an instance would be, a machine, `on_aws.py` makes from the file that
is written here.
"""

from __future__ import annotations

import argparse
import io
import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from moto.ec2.models import ec2_backends
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple

ACCOUNT, REGION = "123456789012", "us-east-1"
FORM = "application/x-www-form-urlencoded"
REFUSAL = b"""<?xml version="1.0" encoding="UTF-8"?>
<Response><Errors><Error><Code>InsufficientInstanceCapacity</Code>\
<Message>There is no Spot capacity available that matches your request.</Message>\
</Error></Errors><RequestID>00000000-0000-0000-0000-000000000000</RequestID></Response>"""


class WithoutSpot:
    """A WSGI application around moto's.

    `place` has, as JSON, the instances, the actions by the address that asked for them, and how often spot was refused.
    """

    def __init__(self, moto: Callable[..., Iterable[bytes]], place: Path) -> None:
        self._moto, self._place, self._refused = moto, place, 0
        self._asked: dict[str, set[str]] = {}
        self._lock = threading.Lock()
        self._write()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        """Answers a request."""
        if not environ.get("CONTENT_TYPE", "").startswith(FORM):
            return self._moto(environ, start_response)
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = parse_qs(body.decode())
        action = form.get("Action", [""])[0]
        with self._lock:
            self._asked.setdefault(environ["REMOTE_ADDR"], set()).add(action)
        if action == "RunInstances" and form.get("InstanceMarketOptions.MarketType") == ["spot"]:
            self._refused += 1
            self._write()
            start_response("500 Internal Server Error", [("Content-Type", "text/xml")])
            return [REFUSAL]
        answer = list(self._moto(environ, start_response))
        self._write()
        return answer

    def _write(self) -> None:
        with self._lock:
            self._write_now()

    def _write_now(self) -> None:
        backend = ec2_backends[ACCOUNT][REGION]
        instances = [
            {
                "instance": instance.id, "state": instance.state, "address": instance.private_ip,
                "public_address": instance.public_ip, "market": instance.lifecycle or "on-demand",
                "public_key": backend.key_pairs[instance.key_name or ""].public_key,
                "tags": {tag["key"]: tag["value"] for tag in instance.get_tags()},
            }
            for instance in backend.all_instances()
        ]  # fmt: skip
        asked = {address: sorted(actions) for address, actions in self._asked.items()}
        told = {"refused": self._refused, "asked": asked, "instances": instances}
        new = self._place.with_suffix(".new")
        new.write_text(json.dumps(told), encoding="utf-8")
        new.replace(self._place)


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("-H", dest="host")
    parser.add_argument("-p", dest="port", type=int)
    parser.add_argument("--instances", type=Path)
    given = parser.parse_args()
    application = WithoutSpot(DomainDispatcherApplication(create_backend_app), given.instances)
    run_simple(
        given.host, given.port, application, threaded=True, request_handler=MotoRequestHandler
    )


if __name__ == "__main__":
    main()

"""Where a place of storage is: a local path or a URL, in its parts, and the filesystem that serves it.

`runs/a`, `file:///data/a`, `s3://bucket/prefix`, `gs://bucket/prefix`. Options stand in the query, e.g.
`s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http`. Credentials come from the environment or the
machine's role alone: a URL is written down beside the results and passed to workers, so one that holds any is refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from pyarrow import fs

from backdoor_core.errors import ConfigError, unknown_name
from backdoor_core.patience import FIRST_CONTACT_S, patiently

CONNECT_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 10.0
"""A request that moves no byte for so long has failed; pyarrow tries `_TRIES` times before our own patience counts."""
_TRIES = 2
_LIKE_URL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):/")
_SCHEMES = ("file", "gs", "s3")
_OPTIONS = {
    "file": frozenset[str](),
    "gs": frozenset({"anonymous", "endpoint_override", "scheme"}),
    "s3": frozenset({"anonymous", "endpoint_override", "region", "scheme"}),
}
_SECRET = re.compile(r"key|secret|token|password|passwd|credential|signature|sig$", re.IGNORECASE)
_HARMLESS = re.compile(r"[A-Za-z_-]{1,32}")
_NO_CREDENTIALS = (
    "a storage URL must not hold credentials, since it is written down with the results: take them out, and set "
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or GOOGLE_APPLICATION_CREDENTIALS) in the environment"
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """A place: `scheme` is file, s3 or gs; `root` the absolute path, or bucket/prefix; `options` the query."""

    scheme: str
    root: str
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, place: str | Path) -> Address:
        """Reads a local path or a URL. Raises ConfigError, which repeats no part that may be secret."""
        text = str(place)
        found = _LIKE_URL.match(text)
        if found is None:
            return cls(scheme="file", root=str(Path(text).expanduser().resolve()))
        scheme = found.group(1).lower()
        if scheme == "gcs":
            scheme = "gs"
        if scheme not in _SCHEMES:
            raise ConfigError(unknown_name("kind of storage URL", scheme, _SCHEMES))
        if text[found.end(1) :][:3] != "://":
            raise ConfigError(f"a storage URL starts with {scheme}://, with two slashes")
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise ConfigError(_NO_CREDENTIALS)
        options = _options(scheme, parts)
        path = _path(parts)
        if scheme == "file":
            if parts.netloc not in ("", "localhost"):
                raise ConfigError("a file URL has three slashes: file:///folder")
            return cls(scheme="file", root=str(Path(unquote(path) or "/").resolve()))
        if not parts.netloc:
            raise ConfigError(f"a storage URL names a bucket: {scheme}://bucket/prefix")
        return cls(scheme=scheme, root=f"{parts.netloc}{path}", options=options)

    @property
    def is_local(self) -> bool:
        """Whether this is a folder of this machine's (a network filesystem that is mounted is one too)."""
        return self.scheme == "file"

    @property
    def bucket(self) -> str:
        """The bucket; "" for a local folder."""
        return "" if self.is_local else self.root.split("/")[0]

    @property
    def url(self) -> str:
        """The address as one text that `of` reads: a local path, or a URL with its query."""
        if self.is_local:
            return self.root
        query = f"?{urlencode(self.options, safe=':/')}" if self.options else ""
        return f"{self.scheme}://{self.root}{query}"

    def child(self, name: str) -> Address:
        """The address of `name` below this one."""
        return replace(self, root=f"{self.root}/{name}" if name else self.root)

    def filesystem(self) -> Any:
        """A `pyarrow.fs` filesystem for it. Credentials are looked for when it is used."""
        if self.is_local:
            return fs.LocalFileSystem()
        options = dict(self.options)
        if self.scheme == "gs":
            return fs.GcsFileSystem(
                anonymous=_is_true(options),
                endpoint_override=options.get("endpoint_override"),
                scheme=options.get("scheme"),
                retry_time_limit=timedelta(seconds=SILENCE_TIMEOUT_S * _TRIES),
            )
        return _s3(self.bucket, options)


def _path(parts: SplitResult) -> str:
    """The path with single slashes and none at its end. Raises ConfigError for one that goes up."""
    if parts.fragment or "#" in parts.geturl():
        raise ConfigError("a storage URL cannot hold a #")
    names = [name for name in parts.path.split("/") if name]
    if ".." in names or "." in names:
        raise ConfigError("a storage URL cannot hold . or .. as a folder's name")
    return "".join(f"/{name}" for name in names)


def _options(scheme: str, parts: SplitResult) -> tuple[tuple[str, str], ...]:
    """The query of a URL. Values are never repeated in an error, nor is a name that looks like a secret."""
    known = _OPTIONS[scheme]
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError("the query of a storage URL is name=value&name=value") from error
    for name, value in pairs:
        if name not in known and (_SECRET.search(name) or not _HARMLESS.fullmatch(name)):
            raise ConfigError(_NO_CREDENTIALS)
        if name not in known:
            raise ConfigError(unknown_name(f"option of a {scheme}:// URL", name, known))
        if name == "endpoint_override" and "@" in value:
            raise ConfigError(_NO_CREDENTIALS)
        if name == "scheme" and value not in ("http", "https"):
            raise ConfigError("the option scheme of a storage URL is http or https")
    return tuple(sorted(dict(pairs).items()))


def _is_true(options: dict[str, str]) -> bool:
    return options.get("anonymous", "false").lower() in ("1", "true", "yes")


def _s3(bucket: str, options: dict[str, str]) -> fs.S3FileSystem:
    """S3 at the endpoint that the URL or the environment names, or AWS's."""
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    endpoint = options.get("endpoint_override") or environment
    scheme, slashes, host = endpoint.rpartition("://")
    if "@" in host:
        raise ConfigError("AWS_ENDPOINT_URL must not hold credentials: set AWS_ACCESS_KEY_ID")
    region = options.get("region") or os.environ.get("AWS_REGION")
    region = region or os.environ.get("AWS_DEFAULT_REGION")
    if not region:
        region = "us-east-1" if endpoint else _region(bucket)
    return fs.S3FileSystem(
        anonymous=_is_true(options),
        endpoint_override=host.rstrip("/") or None,
        scheme=options.get("scheme") or (scheme if slashes else "https"),
        region=region,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=SILENCE_TIMEOUT_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_TRIES),
        # A small object is then put in one request, so that it is there whole or not at all.
        allow_delayed_open=True,
    )


@cache
def _region(bucket: str) -> str:
    place = f"s3://{bucket}"
    return str(patiently(place, lambda: fs.resolve_s3_region(bucket), at_most_s=FIRST_CONTACT_S))

"""Addresses of storage: what is read from a path or URL, what is refused, and what is never repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

from backdoor_core.address import Address
from backdoor_core.errors import ConfigError
from backdoor_core.folder import Folder


def test_paths_and_file_urls_are_local_folders(tmp_path: Path) -> None:
    assert Address.of(tmp_path) == Address.of(f"file://{tmp_path}") == Address.of(f"{tmp_path}/")
    assert Address.of(f"file://{tmp_path}/a%20b").root == f"{tmp_path}/a b"
    assert Address.of("runs/x").root == str(Path.cwd() / "runs" / "x")
    assert Address.of("~/x").root == str(Path.home() / "x")
    assert Address.of(tmp_path).is_local


@pytest.mark.parametrize(
    ("url", "root", "again"),
    [
        ("s3://bucket", "bucket", None),
        ("s3://bucket/a//b/", "bucket/a/b", "s3://bucket/a/b"),
        ("gs://bucket/a", "bucket/a", None),
        ("gcs://bucket/a", "bucket/a", "gs://bucket/a"),
        ("s3://b/a?endpoint_override=127.0.0.1:9000&scheme=http", "b/a", None),
        ("s3://b/a?scheme=http&endpoint_override=http://host:9", "b/a",
         "s3://b/a?endpoint_override=http://host:9&scheme=http"),
        ("s3://b?region=eu-west-1", "b", None),
    ],
)  # fmt: skip
def test_a_url_reads_as_it_is_written(url: str, root: str, again: str | None) -> None:
    address = Address.of(url)
    assert address.root == root
    assert address.url == (again or url)
    assert Address.of(address.url) == address
    assert address.bucket == root.split("/")[0]


def test_options_survive_in_what_lies_below() -> None:
    folder = Folder("s3://b/a?endpoint_override=127.0.0.1:9&scheme=http").child("c").child("d/e")
    assert folder.url == "s3://b/a/c/d/e?endpoint_override=127.0.0.1:9&scheme=http"
    assert folder.located("f") == "s3://b/a/c/d/e/f?endpoint_override=127.0.0.1:9&scheme=http"
    assert folder.path("f") == "b/a/c/d/e/f"


@pytest.mark.parametrize(
    "url",
    [
        "s3://id:hunter2@bucket/a",
        "s3://hunter2@bucket/a",
        "s3://b/a?access_key=id&secret_key=hunter2",
        "s3://b/a?session_token=hunter2",
        "s3://b/a?X-Amz-Signature=hunter2",
        "s3://b/a?hunter2%20=1",
        "s3://b/a?endpoint_override=id:hunter2@host:9",
        "gs://b/a?access_token=hunter2",
        "file:///a?password=hunter2",
    ],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError, match="must not hold credentials") as caught:
        Address.of(url)
    assert "hunter2" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s4://bucket/a", "unknown kind of storage URL 's4'; did you mean 's3'?"),
        ("https://host/a", "Known: file, gs, s3"),
        ("s3:/bucket/a", "starts with s3://, with two slashes"),
        ("s3:///a", "names a bucket"),
        ("s3://b/a?endpoint=h:1", "did you mean 'endpoint_override'"),
        ("s3://b/a?hunter2", "name=value"),
        ("s3://b/../c", "cannot hold . or .."),
        ("s3://b/a#b", "cannot hold a #"),
        ("s3://b?scheme=ftp", "http or https"),
        ("file://host/a", "three slashes"),
    ],
)
def test_what_cannot_be_an_address_is_one_clear_line(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Folder(url)
    assert said in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_the_endpoint_may_stand_in_the_environment(
    s3_endpoint: str, new_bucket: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(new_bucket)
    bucket = Address.of(new_bucket()).bucket
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{s3_endpoint}")
    folder = Folder(f"s3://{bucket}/a").make()
    folder.write("b", b"c")
    assert Folder(f"s3://{bucket}").read("a/b") == b"c"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://id:hunter2@{s3_endpoint}")
    with pytest.raises(ConfigError, match="must not hold credentials") as caught:
        Folder(f"s3://{bucket}/a")
    assert "hunter2" not in str(caught.value)

"""Where a cluster file says that things are: storage, region and zone, and what still stands for the user's own."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from backdoor_core.address import Address
from backdoor_core.errors import ConfigError, nearest
from sweeps.cluster_file import StoragePlaces
from sweeps.cluster_findings import Findings
from sweeps.source import Keys, texts_in

_PLACEHOLDER = re.compile(r"MY-BUCKET|\bmy-(?:project|registry)\b")
"""What the shipped files say where only the user knows the name."""
_AWS_REGION = re.compile(r"[a-z]{2,4}(-[a-z]+)+-\d")
_GOOGLE_REGION = re.compile(r"[a-z]+(-[a-z]+)+\d+")


def check_storage(found: Findings, storage: StoragePlaces, value: dict[str, Any]) -> None:
    """`out` and `store` are URLs that can be used, or folders that every node may have mounted."""
    kind = value["provider"].get("type") if "provider" in value else None
    mounts = any(
        re.search(r"\bmount", text) for keys, text in texts_in(value) if "commands" in str(keys)
    )
    for name, place in (("out", storage.out), ("store", storage.store)):
        keys: Keys = ("metadata", "storage", name)
        try:
            address = Address.of(place)
        except ConfigError as error:  # repeats nothing of the URL: it may hold a secret
            found.mistake(keys, str(error))
            continue
        if address.is_local and not place.startswith(("/", "file:")):
            found.mistake(
                keys, "expected a place that every node reaches (s3://..., gs://..., or the absolute path of a "
                f"shared folder), got {place!r}",
            )  # fmt: skip
        elif address.is_local and kind in ("aws", "gcp") and not mounts:
            bucket = "s3" if kind == "aws" else "gs"
            found.mistake(
                keys, f"{place} is a folder of each node, and goes with the node: no command mounts anything there; "
                f"expected a bucket such as {bucket}://bucket/{name}",
            )  # fmt: skip


def check_region(found: Findings, provider: dict[str, Any]) -> None:
    """The region is one, and the zones are in it. One that botocore does not know yet is a doubt."""
    kind, region = provider.get("type"), provider.get("region")
    keys: Keys = ("provider", "region")
    if kind not in ("aws", "gcp") or region is None:
        return
    pattern, example = (
        (_AWS_REGION, "us-east-1") if kind == "aws" else (_GOOGLE_REGION, "us-central1")
    )
    if not isinstance(region, str) or not pattern.fullmatch(region):
        found.mistake(keys, _no_region(region, pattern, example))
        return
    if kind == "aws" and region not in _aws_regions():
        match = nearest(region, _aws_regions())
        hint = f"; did you mean {match!r}?" if match else ""
        found.doubt(keys, f"{region!r} is no region that botocore knows{hint}")
    zones = str(provider.get("availability_zone") or region).split(",")
    if outside := [zone.strip() for zone in zones if not zone.strip().startswith(region)]:
        place: Keys = ("provider", "availability_zone")
        found.mistake(place, f"{', '.join(outside)}: not in the region {region}")


def _no_region(region: Any, pattern: re.Pattern[str], example: str) -> str:
    text = f"expected a region such as {example}, got {region!r}"
    zone = re.fullmatch(rf"({pattern.pattern})-?[a-z]", str(region))
    if zone:
        return (
            f"{text}, which is a zone: write {zone[1]}, and the zone as provider.availability_zone"
        )
    known = nearest(str(region), _aws_regions()) if pattern is _AWS_REGION else None
    return f"{text}; did you mean {known!r}?" if known else text


@cache
def _aws_regions() -> frozenset[str]:
    """Those where EC2 is, of all partitions, as the installed botocore lists them."""
    import botocore.session

    session = botocore.session.get_session()
    return frozenset(
        region
        for partition in session.get_available_partitions()
        for region in session.get_available_regions("ec2", partition)
    )


def note_placeholders(found: Findings, value: Any) -> None:
    """A doubt for each name that the shipped files leave to the user, where it stands first."""
    told: set[str] = set()
    for keys, text in texts_in(value):
        for word in _PLACEHOLDER.findall(text):
            if word not in told:
                told.add(word)
                found.doubt(keys, f"change this: {word} stands for a name of your own")

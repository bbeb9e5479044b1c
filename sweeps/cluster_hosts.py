"""What a cluster file says of own machines: their addresses, how many they are, and the key that opens them."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path
from typing import Any

from backdoor_core.counting import counted
from sweeps.cluster_findings import Findings
from sweeps.source import Keys

_LABEL = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)")


def check_hosts(found: Findings, value: dict[str, Any]) -> None:
    """The hosts of the local provider: each an address or a host name, each once, and enough for the workers."""
    provider = value.get("provider", {})
    workers: list[str] = provider.get("worker_ips", [])
    places: list[tuple[Keys, str]] = [
        (("provider", "worker_ips", number), host) for number, host in enumerate(workers)
    ]
    if "head_ip" in provider:
        places.insert(0, (("provider", "head_ip"), provider["head_ip"]))
    seen: dict[str, Keys] = {}
    for keys, host in places:
        if not _is_host(host):
            found.mistake(
                keys, f"expected an address such as 10.0.0.1, or a host name, got {host!r}"
            )
        if host in seen:
            both = "the head too" if seen[host][-1] == "head_ip" else "named twice"
            found.mistake(keys, f"{host} is {both}; each machine is one node")
        seen.setdefault(host, keys)
    for key in ("min_workers", "max_workers"):
        if value.get(key, 0) > len(workers):
            has = counted(len(workers), "host")
            found.mistake((key,), f"{value[key]} workers, and provider.worker_ips names {has}")


def check_key(found: Findings, value: dict[str, Any]) -> None:
    """A private key that is not on this machine is a doubt: `ray up` may be started on another."""
    key = value.get("auth", {}).get("ssh_private_key")
    if key is not None and not Path(key).expanduser().is_file():
        found.doubt(("auth", "ssh_private_key"), f"there is no key {key} on this machine")


def _is_host(text: str) -> bool:
    """An IP address, or a host name. One that ends in a number is an address (10.0.0.1111 is then none)."""
    try:
        ipaddress.ip_address(text)
        return True
    except ValueError:
        labels = text.rstrip(".").split(".")
        return (
            len(text) <= 253
            and not labels[-1].isdecimal()
            and all(_LABEL.fullmatch(label) for label in labels)
        )

"""What the shell commands and the image of a cluster file must say: token, loopback, monitor, versions."""

from __future__ import annotations

import os
import pkgutil
import re
import stat
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sweeps.cluster_findings import Findings
from sweeps.source import Keys, dotted

START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")
SETUP_COMMANDS = ("setup_commands", "head_setup_commands", "worker_setup_commands")
_OURS = "sweeps"
_PYTHON = re.compile(r"-(py3\d+)\b")
_IMAGE = re.compile(r"^(?P<name>[^@]+?)(?::(?P<tag>[^:/@]+))?(?P<digest>@sha256:[0-9a-f]{64})?$")


def check_commands(found: Findings, value: dict[str, Any]) -> None:
    """The commands that start Ray, and those that install the project."""
    for section in START_COMMANDS:
        starts = [(keys, text) for keys, text in _commands(value, section) if "ray start" in text]
        if not starts:
            found.mistake(
                (section,), "no command here is `ray start`, so no node joins the cluster"
            )
        for keys, text in starts:
            _check_start(found, keys, text, value, is_head=section.startswith("head"))
    _check_ports(found, value)
    setup = [text for section in SETUP_COMMANDS for _, text in _commands(value, section)]
    if setup and not any("constraints.txt" in text for text in setup):
        found.mistake(
            ("setup_commands",),
            "nothing installs the project with `-c constraints.txt`, so nodes would get other versions than the tests",
        )
    elif not setup:
        found.doubt((), "no setup_commands: the nodes must have the project already")


def _check_ports(found: Findings, value: dict[str, Any]) -> None:
    """A worker joins at the port that the head listens on; Ray's own is 6379."""
    head = [text for _, text in _commands(value, START_COMMANDS[0]) if "ray start" in text]
    if not head:
        return
    named = re.search(r"--port[= ](\d+)", head[0])
    port = named[1] if named else "6379"
    for keys, text in _commands(value, START_COMMANDS[1]):
        asked = re.search(r"ray start\b.*?--address[= ]\S*?:(\d+)", text)
        if asked and asked[1] != port:
            found.mistake(
                keys, f"the worker looks for the head at port {asked[1]}, and it listens at {port}"
            )


def _check_scorer(found: Findings, keys: Keys, text: str) -> None:
    """The scorer is imported by Ray on the head; one that cannot be ends the autoscaler there."""
    named = re.search(r"RAY_AUTOSCALER_UTILIZATION_SCORER=[\"']?([^\s;\"']+)", text)
    if named is None:
        return
    if why := _not_importable(named[1]):
        found.mistake(
            keys, f"RAY_AUTOSCALER_UTILIZATION_SCORER={named[1]} cannot be imported here ({why}); expected "
            "sweeps.node_choice.score",
        )  # fmt: skip


def _not_importable(name: str) -> str:
    """Why `package.module.function` cannot be imported; "" where it can. A check runs no code but the project's own."""
    package = name.partition(".")[0]
    if package != _OURS:
        there = package.isidentifier() and find_spec(package) is not None
        return "" if there else f"there is no package {package!r}"
    try:
        return "" if callable(pkgutil.resolve_name(name)) else "it is no function"
    except (ImportError, AttributeError, ValueError) as error:
        return " ".join(str(error).split())


def _commands(value: dict[str, Any], section: str) -> Iterator[tuple[Keys, str]]:
    for number, text in enumerate(value.get(section) or []):
        if isinstance(text, str):
            yield (section, number), text


def _check_start(
    found: Findings, keys: Keys, text: str, value: dict[str, Any], *, is_head: bool
) -> None:
    if "RAY_AUTH_MODE=token" not in text:
        found.mistake(
            keys, "token authentication is off: write RAY_AUTH_MODE=token before `ray start`; Ray's "
            "ports listen on all addresses, and whoever reaches one runs code on the node",
        )  # fmt: skip
    if match := re.search(
        r"--(dashboard-host|ray-client-server-host|node-ip-address)[= ](0\.0\.0\.0|::)", text
    ):
        found.mistake(
            keys, f"--{match[1]}={match[2]} listens on all addresses; expected 127.0.0.1 (ssh forwards it)"
        )  # fmt: skip
    if "RAY_memory_monitor_refresh_ms=0" not in text:
        found.mistake(
            keys, "Ray's memory monitor is on, and ends the whole sweep where one job needs too much memory; "
            "write RAY_memory_monitor_refresh_ms=0 before `ray start`",
        )  # fmt: skip
    if "RAY_USAGE_STATS_ENABLED=0" not in text and "--disable-usage-stats" not in text:
        found.doubt(keys, "usage statistics are sent to Ray: RAY_USAGE_STATS_ENABLED=0 ends that")
    if not is_head:
        return
    if "--autoscaling-config" not in text:
        found.mistake(
            keys,
            "without --autoscaling-config=~/ray_bootstrap_config.yaml no worker is ever started",
        )
    _check_scorer(found, keys, text)
    if "RAY_enable_autoscaler_v2=0" in text:
        return
    if (value.get("provider") or {}).get("type") == "local":
        found.mistake(
            keys, "with Ray's second autoscaler (the default) a worker of the local provider never starts; write "
            "RAY_enable_autoscaler_v2=0 before `ray start`",
        )  # fmt: skip
    elif "RAY_AUTOSCALER_UTILIZATION_SCORER" in text:
        found.mistake(
            keys, "RAY_AUTOSCALER_UTILIZATION_SCORER is read by Ray's first autoscaler only: write "
            "RAY_enable_autoscaler_v2=0 before `ray start`"
        )  # fmt: skip


def check_image(found: Findings, keys: Keys, image: Any) -> None:
    """An image of one release, with the Ray that is installed here: its tag says so, or a digest pins it."""
    import ray

    match = _IMAGE.match(image) if isinstance(image, str) else None
    if match is None:
        found.mistake(
            keys,
            f"expected an image such as rayproject/ray:{ray.__version__}-py311-gpu, got {image!r}",
        )
    elif match["digest"]:
        return
    elif match["tag"] is None or re.match(r"(latest|nightly|master)\b", match["tag"]):
        found.mistake(
            keys, f"{image} is not pinned: it is another image tomorrow; expected a release, such as "
            f"{match['name']}:{ray.__version__}-py311-gpu",
        )  # fmt: skip
    elif version := re.search(r"\d+\.\d+\.\d+", match["tag"]):
        if version[0] != ray.__version__:
            found.mistake(
                keys, f"{image} has Ray {version[0]}, and here is Ray {ray.__version__}; both must be the same"
            )  # fmt: skip
    else:
        found.doubt(keys, f"the tag of {image} does not name its Ray; it must be {ray.__version__}")


def check_docker(found: Findings, value: dict[str, Any]) -> None:
    """The images of a cluster file; those without docker install Ray by the constraints."""
    docker = value.get("docker") or {}
    images = {key: docker[key] for key in ("image", "head_image", "worker_image") if key in docker}
    for key, image in images.items():
        check_image(found, ("docker", key), image)
    _check_pythons(found, value, images)
    provider = (value.get("provider") or {}).get("type")
    if not images and provider in ("aws", "gcp"):
        found.mistake(
            ("docker",) if "docker" in value else (),
            "no image is pinned: write docker.image and docker.container_name, so that every node has the same Ray "
            "and Python",
        )  # fmt: skip
    if images and not docker.get("container_name"):
        found.mistake(
            ("docker",), "container_name is missing, and Ray then leaves the image unused"
        )


def _check_pythons(found: Findings, value: dict[str, Any], images: dict[str, str]) -> None:
    """Ray refuses a node whose Python is another than the head's; the tag of Ray's own images names it."""
    placed: dict[Keys, str] = {("docker", key): image for key, image in images.items()}
    for name, given in value.get("available_node_types", {}).items():
        for key, image in given.get("docker", {}).items():
            placed[("available_node_types", name, "docker", key)] = str(image)
    named = {keys: match[1] for keys, image in placed.items() if (match := _PYTHON.search(image))}
    first = next(iter(named), None)
    for keys, python in named.items():
        if first and python != named[first]:
            found.mistake(
                keys, f"an image with Python {python}, and {dotted(first)} has {named[first]}; both must be the same"
            )  # fmt: skip


def check_mounts(found: Findings, value: dict[str, Any]) -> None:
    """The local side of each mount exists, and a token among them is nobody else's to read."""
    mounts = value.get("file_mounts") or {}
    has_token = False
    for remote, local in mounts.items() if isinstance(mounts, dict) else ():
        keys: Keys = ("file_mounts", remote)
        place = Path(os.path.expanduser(str(local)))
        is_token = str(remote).rstrip("/").endswith(".ray/auth_token")
        has_token = has_token or is_token
        if is_token and not place.exists():
            found.doubt(
                keys, f"no token at {local} yet: (umask 077; ray get-auth-token --generate)"
            )  # fmt: skip
        elif not place.exists():
            found.mistake(
                keys, f"nothing to mount at {local} (from {Path.cwd()}, where `ray up` would be started)"
            )  # fmt: skip
        elif is_token and stat.S_IMODE(place.stat().st_mode) & 0o077:
            found.doubt(keys, f"others on this machine can read the token: chmod 600 {local}")
    if not has_token and "RAY_AUTH_TOKEN" not in str(value.get("head_start_ray_commands")):
        found.mistake(
            ("file_mounts",) if mounts else (),
            "the nodes get no token: mount it with `~/.ray/auth_token: ~/.ray/auth_token`",
        )

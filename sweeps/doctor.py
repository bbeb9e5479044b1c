"""What a machine has to run sweeps with, and what is wrong with it: one line a finding, and what to do."""

from __future__ import annotations

import importlib
import ipaddress
import os
import platform
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement

from backdoor_core import __version__
from backdoor_core.address import Address
from backdoor_core.counting import counted
from backdoor_core.errors import SweepError
from backdoor_core.folder import Folder
from sweeps.plan import BF16_CPU_FLAGS, cpu_flags, default_store

Level = Literal["ok", "warning", "problem"]
PACKAGES = ("ray", "torch", "transformers", "optuna", "pyarrow")
_GIB = 1 << 30
LEAST_MEMORY_GIB = 4.0
LEAST_DISK_GIB = 10.0
SLOW_STORAGE_S = 2.0
CLOCK_S = 60.0
SLOW_WORKER_S = 60.0
WORKER_LIMIT_S = 180.0


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at; `advice` says what to do where it is not ok."""

    level: Level
    what: str
    found: str
    advice: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def as_text(self) -> str:
        """One line."""
        return (
            f"{self.level:<8} {self.what}: {self.found}{f' - {self.advice}' if self.advice else ''}"
        )


def _ok(what: str, found: str) -> Finding:
    return Finding(level="ok", what=what, found=found)


def _warning(what: str, found: str, advice: str) -> Finding:
    return Finding(level="warning", what=what, found=found, advice=advice)


def _problem(what: str, found: str, advice: str) -> Finding:
    return Finding(level="problem", what=what, found=found, advice=advice)


def examined(store: str | None, out: str | None, *, with_ray: bool = True) -> Iterator[Finding]:
    """Everything that is looked at, as it is found."""
    yield from versions()
    yield from processors()
    yield from devices()
    yield from memory()
    yield from places({"store": store or str(default_store()), "out": out})
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    found = "off (HF_HUB_OFFLINE)" if offline else "may be asked; HF_HUB_OFFLINE=1 forbids it"
    yield _ok("model hub", found)
    if with_ray:
        yield from ray_starts()


def versions() -> Iterator[Finding]:
    """Python, this project, and the packages that it leans on, against the range that it is tested with."""
    yield _ok("python", platform.python_version())
    yield _ok("backdoor-sweeps", __version__)
    tested = _tested()
    for name in PACKAGES:
        wanted = tested.get(name)
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _problem(name, "not installed", f"install {wanted or name}")
            continue
        if wanted is None or wanted.specifier.contains(version, prereleases=True):
            yield _ok(name, version)
        else:
            yield _warning(name, f"{version}, tested with {wanted.specifier}", f"install {wanted}")


def _tested() -> dict[str, Requirement]:
    try:
        listed = metadata.requires("backdoor-sweeps") or []
    except metadata.PackageNotFoundError:
        return {}  # run from a checkout that is not installed
    found = [Requirement(text) for text in listed]
    return {one.name: one for one in found if one.marker is None}


def processors() -> Iterator[Finding]:
    """CPUs against what this process may use, and whether they do bf16."""
    count, limit = os.cpu_count() or 1, cpu_limit()
    flags = sorted(cpu_flags() & BF16_CPU_FLAGS)
    found = f"{count}, of which {limit:g} may be used; bf16: {', '.join(flags) or 'no'}"
    if limit < count:
        slots = max(1, int(limit))
        yield _warning(
            "cpus", found, f"Ray may count {count}: say `slots: {slots}` in the sweep file"
        )
    else:
        yield _ok("cpus", found)


def cpu_limit(cgroup: Path = Path("/sys/fs/cgroup")) -> float:
    """How many CPUs this process may use: its affinity and the limit of its control group."""
    affinity = getattr(os, "sched_getaffinity", None)
    limit = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    text = _text(cgroup / "cpu.max")
    if text:
        quota, period = text.split()
        return limit if quota == "max" else min(limit, int(quota) / int(period))
    quota, period = _text(cgroup / "cpu/cpu.cfs_quota_us"), _text(cgroup / "cpu/cpu.cfs_period_us")
    return min(limit, int(quota) / int(period)) if quota and int(quota) > 0 else limit


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def devices() -> Iterator[Finding]:
    """GPUs: what the driver sees, and whether torch can use them."""
    torch = importlib.import_module("torch")
    listed = _nvidia()
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(i)
            driver = listed[i] if i < len(listed) else "driver unknown"
            size = f"{facts.total_memory / _GIB:.0f} GiB"
            yield _ok(f"gpu {i}", f"{facts.name}, {size}, {driver}, CUDA {torch.version.cuda}")
    elif listed:
        found = f"{len(listed)} seen, but torch {torch.__version__} cannot use them"
        yield _problem("gpu", found, "install a build of torch for this driver's CUDA")
    else:
        yield _ok("gpu", "none")


def _nvidia() -> list[str]:
    """The driver of each GPU, as nvidia-smi tells."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return []
    return [f"driver {line.strip()}" for line in done.stdout.splitlines() if line.strip()]


def memory() -> Iterator[Finding]:
    """Free memory, also by the limit of the control group, and free room for temporary files."""
    fields = dict(re.findall(r"^(\w+):\s+(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE))
    free = int(fields.get("MemAvailable", 0)) / (1 << 20)
    limit = _text(Path("/sys/fs/cgroup/memory.max"))
    if limit.isdecimal():
        used = int(_text(Path("/sys/fs/cgroup/memory.current")) or 0)
        free = min(free, (int(limit) - used) / _GIB)
    advice = "lower `slots`, or use a larger machine"
    yield _enough("memory", f"{free:.1f} GiB free", free, LEAST_MEMORY_GIB, advice)
    place = tempfile.gettempdir()
    room = shutil.disk_usage(place).free / _GIB
    advice = "point TMPDIR at a larger disk"
    yield _enough(
        "temporary files", f"{room:.0f} GiB free in {place}", room, LEAST_DISK_GIB, advice
    )


def _enough(what: str, found: str, have: float, least: float, advice: str) -> Finding:
    if have >= least:
        return _ok(what, found)
    return _warning(what, found, advice)


def places(named: Mapping[str, str | None]) -> Iterator[Finding]:
    """Each place of storage; where a bucket has trouble, another place in it is not tried too."""
    troubled: dict[tuple[str, tuple[tuple[str, str], ...]], str] = {}
    for what, place in named.items():
        if not place:
            continue
        try:
            address = Address.of(place)
        except SweepError as error:
            yield _problem(what, str(error), "")
            continue
        bucket = (address.bucket, address.options)
        if bucket in troubled:
            yield _problem(what, f"not tried: it is in the bucket of {troubled[bucket]}", "")
            continue
        for finding in storage(what, place):
            if finding.level == "problem" and address.bucket:
                troubled[bucket] = what
            yield finding


def storage(what: str, place: str) -> Iterator[Finding]:
    """Writing, reading, listing and removing a file there, with times; and its clock against this machine's."""
    name, start = f"doctor-{uuid.uuid4().hex}", time.perf_counter()
    times: list[str] = []

    def timed(step: str, call: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        result = call()
        times.append(f"{step} {1000 * (time.perf_counter() - begin):.0f} ms")
        return result

    try:
        folder = Folder(place).make()
        timed("write", lambda: folder.write(name, b"x" * (1 << 20)))
        right = timed("read", lambda: folder.read(name)) == b"x" * (1 << 20)
        right &= name in timed("list", folder.names)
        info = folder.filesystem.get_file_info(folder.path(name))
        apart = info.mtime.timestamp() - time.time()
        timed("remove", lambda: folder.remove(name))
    except SweepError as error:  # says where, and what to do
        yield _problem(what, str(error), "")
        return
    except (OSError, ValueError) as error:
        advice = "check the path, its rights, and the credentials in the environment"
        yield _problem(what, f"{place}: {error}", advice)
        return
    if not right:
        found = f"{place}: what was just written is not read or listed"
        yield _problem(what, found, "use storage whose listing is consistent")
        return
    found = f"{place}: 1 MiB, {', '.join(times)}"
    if time.perf_counter() - start > SLOW_STORAGE_S:
        yield _warning(what, found, "slow: keep it nearer to the workers")
    else:
        yield _ok(what, found)
    if abs(apart) > CLOCK_S:
        advice = "nothing depends on it but times in rows; set the clock right"
        yield _warning(f"clock of {what}", f"{apart:+.0f} s from this machine's", advice)
    if folder.is_local:
        room = shutil.disk_usage(folder.root).free / _GIB
        advice = "`sweeps gc`, or another disk"
        yield _enough(f"disk of {what}", f"{room:.0f} GiB free", room, LEAST_DISK_GIB, advice)


def ray_starts() -> Iterator[Finding]:
    """Whether Ray starts, where its ports listen, who may use them, and how long a worker takes to be ready."""
    from sweeps.tune_bridge import start_ray

    ray = importlib.import_module("ray")  # not before: the bridge sets its environment

    start = time.perf_counter()
    try:
        start_ray()
        took = time.perf_counter() - start
        have = ray.cluster_resources()
        counts = ", ".join(counted(int(have.get(name, 0)), name) for name in ("CPU", "GPU"))
        found = f"{counts}, ready in {took:.1f} s"
        yield _ok("ray", found)
        yield ports()
        yield worker()
    except Exception as error:  # whatever Ray raises is what the user must see
        first = " ".join(str(error).split())[:300]
        advice = "see whether another Ray runs here (`ray status`), and RAY_ADDRESS"
        yield _problem("ray", f"{type(error).__name__}: {first}", advice)
    finally:
        ray.shutdown()


def ports() -> Finding:
    """Where the ports of this user's Ray processes listen, and whether a token is asked for."""
    psutil = importlib.import_module("psutil")
    open_to_all = 0
    count = 0
    for process in psutil.process_iter(["name"]):
        if process.info["name"] not in ("gcs_server", "raylet"):
            continue
        try:
            listening = [c for c in process.net_connections(kind="inet") if c.status == "LISTEN"]
        except psutil.Error:
            continue
        count += len(listening)
        open_to_all += sum(not ipaddress.ip_address(c.laddr.ip).is_loopback for c in listening)
    token = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    found = (
        f"{count} of gcs and raylet, {open_to_all} of them beyond loopback; token authentication "
    )
    if open_to_all and not token:
        advice = "set RAY_AUTH_MODE=token before Ray starts, or keep others off this network"
        return _warning("ray ports", found + "off", advice)
    return _ok("ray ports", found + ("on" if token else "off"))


def worker() -> Finding:
    """How long a worker takes until torch and transformers are imported in it."""
    ray = importlib.import_module("ray")

    def imported() -> int:
        for name in ("torch", "transformers"):
            importlib.import_module(name)
        return os.getpid()

    start = time.perf_counter()
    ray.get(ray.remote(imported).remote(), timeout=WORKER_LIMIT_S)
    took = time.perf_counter() - start
    found = f"ready, torch and transformers imported, after {took:.1f} s"
    if took > SLOW_WORKER_S:
        return _warning("ray worker", found, "a slow disk or few CPUs; each worker pays this once")
    return _ok("ray worker", found)

"""A laptop and hosts behind its bridge, each with an sshd of its own: namespaces on this machine.

Nothing is made in the machine's own network or mounts. Needs root, and the programs of `PROGRAMS`.
"""

from __future__ import annotations

import ipaddress
import json
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.e2e.hosts import NAMESPACES, Host, waited_for

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "rsync", "unshare", "nsenter", "setpriv", "ip", "mount")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BRIDGE = "laptop0"
NETWORK = "10.77.0"
LAPTOP = f"{NETWORK}.1"
SSHD_CONFIG = """\
ListenAddress {address}
HostKey {folder}/host_key
AuthorizedKeysFile {keys}
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
MaxStartups 100
SetEnv {environment}
"""


def missing() -> str:
    """What this machine lacks to be several hosts, in one line; empty where it lacks nothing."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=SYSTEM_PATH) is None]
    if absent:
        return (
            f"needs the programs {', '.join(absent)} (on Debian: openssh-server, rsync, iproute2)"
        )
    trial = ["unshare", *NAMESPACES, "--fork", "--mount-proc", "ip", "link", "add", "type", "veth"]
    done = subprocess.run(trial, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"needs the right to make namespaces and veth links (root): {done.stderr.strip()}"
    return ""


@dataclass(kw_only=True)
class Lab:
    """A laptop and hosts behind its bridge, for the time of a `with`: whatever happens, nothing stays behind.

    No way leads out: the laptop has its bridge alone, and a host sends what is not for its network to the laptop.
    """

    names: Sequence[str]
    """The hosts that are there from the start; `add` brings more."""
    environment: Mapping[str, str]
    """What every login has beside HOME and PATH, as a machine's own environment gives it; `{home}` is HOME."""
    user: str = "root"
    """How root is called on every host."""
    networks: Sequence[str] = (f"{LAPTOP}/24",)
    """The laptop's addresses, one in each network that hosts may be in."""
    folder: Path = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)

    def __enter__(self) -> Lab:
        # Not below /tmp: each host has a /tmp of its own.
        self.folder = Path(tempfile.mkdtemp(prefix="sweeps-e2e-", dir="/var/tmp"))
        try:
            self._write_keys()
            for number, name in enumerate(("laptop", *self.names), start=1):
                self.add(name, f"{NETWORK}.{number}")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def laptop(self) -> Host:
        return self.hosts["laptop"]

    def add(self, name: str, address: str, public_key: str = "") -> Host:
        """A new host, switched on; it lets in who has the key of `public_key` (the laptop's user, if none is given)."""
        key = public_key or (self.folder / "user_key.pub").read_text(encoding="utf-8")
        # In place: each host has this very file as its own.
        with (self.folder / "hosts").open("a", encoding="utf-8") as file:
            file.write(f"{address} {name}\n")
        self.hosts[name] = host = self._described(name, address, key)
        self.boot(host)
        return host

    def _write_keys(self) -> None:
        for name in ("host_key", "user_key"):
            path = self.folder / name
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(path)],
                check=True,
            )
        (self.folder / "nothing").mkdir()
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n", encoding="utf-8")
        (self.folder / "resolv.conf").write_text("nameserver 127.0.0.1\n", encoding="utf-8")

    def _described(self, name: str, address: str, public_key: str) -> Host:
        folder = self.folder / name
        (folder / "tmp").mkdir(parents=True)
        (folder / "tmp").chmod(0o1777)
        home = folder / "home"
        (home / ".ssh").mkdir(parents=True, mode=0o700)
        path = f"{sysconfig.get_path('scripts')}:{SYSTEM_PATH}"
        environment = {"HOME": str(home), "PATH": path, "USER": self.user, "LANG": "C.UTF-8"}
        # A login shell resets PATH; this machine's installation is every host's.
        for file in (".bashrc", ".bash_profile"):
            (home / file).write_text(f"export PATH={path}\n", encoding="utf-8")
        users = f"{self.user}:x:0:0:root:{home}:/bin/bash\nsshd:x:100:65534::/run/sshd:/bin/false\n"
        (folder / "passwd").write_text(users, encoding="utf-8")
        own = {key: value.format(home=home) for key, value in self.environment.items()}
        host = Host(name=name, address=address, folder=folder, environment=environment | own)
        if name == "laptop":
            shutil.copy(self.folder / "user_key", home / ".ssh" / "id_ed25519")
        pairs = " ".join(f'{key}="{value}"' for key, value in own.items())
        keys = folder / "authorized_keys"
        keys.write_text(public_key.strip() + "\n", encoding="utf-8")
        text = SSHD_CONFIG.format(address=address, folder=self.folder, keys=keys, environment=pairs)
        (host.folder / "sshd_config").write_text(text, encoding="utf-8")
        return host

    def _boot_plan(self, host: Host) -> Path:
        hidden = () if host is self.laptop else ("backdoor_core", "sweeps", "analysis")
        shown = {str(ROOT), sys.prefix, sys.base_prefix}
        plan = {
            "name": host.name,
            "bound": {
                str(self.folder / "hosts"): "/etc/hosts",
                str(self.folder / "resolv.conf"): "/etc/resolv.conf",
                str(host.folder / "passwd"): "/etc/passwd",
            },
            # The hosts have this machine's Python, but the project only as it was sent to them.
            "hidden": [str(ROOT / name) for name in hidden],
            "nothing": str(self.folder / "nothing"),
            "memory_folders": ["/run", "/dev/shm"],
            "temporary": str(host.folder / "tmp"),
            "shown": [path for path in shown if Path(path).is_relative_to("/tmp")],
            "sshd": shutil.which("sshd", path=SYSTEM_PATH),
            "sshd_config": str(host.folder / "sshd_config"),
            "sshd_log": str(host.folder / "sshd.log"),
        }
        path = host.folder / "boot.json"
        path.write_text(json.dumps(plan), encoding="utf-8")
        return path

    def boot(self, host: Host) -> None:
        """Switches a host on, and connects it."""
        plan = self._boot_plan(host)
        shutil.rmtree(host.folder / "tmp")
        (host.folder / "tmp").mkdir()
        (host.folder / "tmp").chmod(0o1777)
        # Should this process be killed, the kernel ends `unshare`, and with it the host.
        words = ["setpriv", "--pdeathsig", "KILL", "unshare", *NAMESPACES, "--fork"]
        words += ["--mount-proc", "--kill-child", sys.executable, str(ROOT / "tests/e2e/boot.py")]
        with (host.folder / "boot.log").open("a", encoding="utf-8") as log:
            host.first = subprocess.Popen(
                [*words, str(plan)],
                env=host.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        (child,) = waited_for(lambda: psutil.Process(host.first.pid).children(), 10)
        host.pid = child.pid
        self._connect(host)
        assert host.first.stdin is not None
        assert host.first.stdout is not None
        host.first.stdin.write("connected\n")
        host.first.stdin.flush()
        if host.first.stdout.readline() != "ready\n":
            logs = (host.folder / name for name in ("boot.log", "sshd.log"))
            said = " ".join(log.read_text(encoding="utf-8") for log in logs if log.exists())
            raise RuntimeError(f"the host {host.name} did not start: {said.strip()}")

    def _connect(self, host: Host) -> None:
        """Gives a host its address: the laptop's is its bridge's, the others have a cable to that bridge."""
        if host is self.laptop:
            steps = [(host, f"link add {BRIDGE} type bridge"), (host, f"link set {BRIDGE} up")]
            steps += [(host, f"address add {address} dev {BRIDGE}") for address in self.networks]
        else:
            (laptop,) = (
                found for found in map(ipaddress.ip_interface, self.networks)
                if ipaddress.ip_address(host.address) in found.network
            )  # fmt: skip
            steps = [
                (self.laptop, f"link add {host.link} type veth peer name eth0 netns {host.pid}"),
                (self.laptop, f"link set {host.link} master {BRIDGE} up"),
                (host, f"address add {host.address}/{laptop.network.prefixlen} dev eth0"),
                (host, "link set eth0 up"),
                (host, f"route add default via {laptop.ip}"),
            ]
        for place, step in steps:
            subprocess.run(place.entered("ip", *step.split(), only=["--net"]), check=True)

    def cut(self, host: Host) -> None:
        """Power gone: the cable first, so that no process says goodbye, then SIGKILL for all."""
        words = ("ip", "link", "delete", host.link)
        subprocess.run(self.laptop.entered(*words, only=["--net"]), check=True)
        self.switch_off(host)

    def switch_off(self, host: Host) -> None:
        """Ends every process of a host; nothing where it is off."""
        if host.first is None:
            return
        if host.pid:
            psutil.Process(host.pid).kill()
        else:
            host.first.kill()
        host.first.communicate(timeout=30)
        host.first, host.pid = None, 0

    def close(self) -> None:
        """Switches all off and removes their files."""
        for host in reversed(self.hosts.values()):
            self.switch_off(host)
        shutil.rmtree(self.folder)

    def left_behind(self) -> list[str]:
        """What is still there of this lab: processes, links, mounts, files. For after its end."""
        mark = str(self.folder)
        found = [f"folder {mark}"] if self.folder.exists() else []
        for process in psutil.process_iter(["cmdline", "environ"]):
            texts = (process.info["cmdline"] or []) + list((process.info["environ"] or {}).values())
            if any(mark in text for text in texts):
                found.append(f"process {process.pid} {shlex.join(process.info['cmdline'] or [])}")
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
        found += [f"mount {line}" for line in mounts if mark in line]
        links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True)
        names = [BRIDGE, *(host.link for host in self.hosts.values())]
        found += [f"link {name}" for name in names if f" {name}@" in links.stdout]
        return found

"""Hosts on one machine: a network of computers, each with its own name, address, processes, disk, home and SSH server.

Made of Linux namespaces, without containers: root, iproute2, util-linux, openssh-server and rsync are all it needs.  A
"client" (the machine of the user) holds the network's switch and the disks; all other hosts live inside it, so that
nothing of this shows outside, two of these networks never meet, and everything is gone with the client, which ends with
the process that made it, however that ends.  The disk of a host survives a loss of its power.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

NEEDED = ("ip", "unshare", "nsenter", "mount", "sshd", "ssh", "ssh-keygen", "rsync", "bash")
PATH = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
MACHINE = (Path(__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix))  # what hosts share with it, read only
CLIENT = "client"
DISK = "1g"  # of memory, at most

# What every host, the client included, does when it boots; it halts when its standard input ends.
BOOT = """
set -e
hostname $NAME
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 755 /run/sshd /run/tmp
mount --bind $FOLDER/disks/$NAME $FOLDER/disk
mount --rbind /tmp /run/tmp
mount --bind $FOLDER/disk/tmp /tmp
for path in $KEPT; do mkdir -p $path; mount --rbind /run$path $path; done
mount --bind $FOLDER/etc/passwd /etc/passwd
mount --bind $FOLDER/etc/hosts /etc/hosts
ip link set lo up
"""
CLIENT_BOOTS = (
    """
set -e
for name in $NAMES; do
  mkdir -p $FOLDER/disks/$name
  mount -t tmpfs -o size=$DISK tmpfs $FOLDER/disks/$name
  mkdir -m 1777 $FOLDER/disks/$name/tmp
  mkdir -p -m 700 $FOLDER/disks/$name/home/.ssh
  cp /etc/skel/.bashrc $FOLDER/disks/$name/home/ 2>/dev/null || touch $FOLDER/disks/$name/home/.bashrc
done
mount -t tmpfs -o size=$DISK tmpfs $FOLDER/shared
ssh-keygen -q -t ed25519 -N '' -f $FOLDER/disks/$NAME/home/.ssh/id_ed25519
ip link add switch type bridge
ip link set switch up
ip address add $ADDRESS/24 dev switch
ip route add unreachable default
echo 1 > /proc/sys/net/ipv4/ip_forward
"""
    + BOOT
)
HOST_BOOTS = (
    BOOT
    + """
echo ready
read                            # until it is plugged in
ip address add $ADDRESS/24 dev eth0
ip link set eth0 up
ip route add default via $GATEWAY
$SSHD -f $FOLDER/etc/sshd_config
"""
)
WAIT = "\necho up\nread || true\n"  # bash as process 1 takes in orphans while it waits
SSHD_CONFIG = """
HostKey {folder}/etc/host_key
AuthorizedKeysFile {folder}/etc/authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
StrictModes no
MaxStartups 100
PidFile none
"""


@dataclass
class Host:
    """One computer; `process` is None while it has no power."""

    network: Network = field(repr=False)
    name: str
    address: str
    process: subprocess.Popen[str] | None = None

    @property
    def home(self) -> Path:
        """As it is called on every host."""
        return self.network.folder / "disk" / "home"

    def seen(self, path: Path) -> Path:
        """A file of this host, from outside."""
        return Path(f"/proc/{self.pid}/root{path}")

    @property
    def pid(self) -> int:
        """Of its process 1."""
        assert self.process is not None, f"{self.name} is off"
        return _first(self.process.pid)

    def inside(self, *command: str | Path, cwd: Path | None = None) -> list[str]:
        """The command line that runs a command on this host, at home or in `cwd`."""
        facts = {"HOME": self.home, "PATH": PATH, "USER": "root", "LANG": "C.UTF-8", "TERM": "dumb"}
        clean = ["env", "-i", f"--chdir={cwd or self.home}", *(f"{key}={value}" for key, value in facts.items())]
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-n", "-p", *clean, *map(str, command)]

    def run(self, *command: str | Path, cwd: Path | None = None, timeout: float = 300) -> tuple[int, str]:
        """Exit code and output, errors included."""
        done = subprocess.run(
            self.inside(*command, cwd=cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8", timeout=timeout, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def start(self, *command: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.inside(*command, cwd=cwd), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            encoding="utf-8",
        )  # fmt: skip

    def kill(self) -> None:
        """Pull the plug: every process of this host is gone at once; its disk stays."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGKILL)
        self.process.wait(timeout=30)
        self.process = None

    def boot(self) -> None:
        """Give it power, or give it back."""
        assert self.process is None, f"{self.name} is on"
        network = self.network
        self.process = network.boot(self.name, self.address, HOST_BOOTS, network.client.inside())
        _expect(self.process, "ready")
        plug = ["link", "add", f"to-{self.name}", "type", "veth", "peer", "name", "eth0", "netns", str(self.pid)]
        network.ip(*plug)
        network.ip("link", "set", f"to-{self.name}", "master", "switch", "up")
        _say(self.process, "plugged in")
        _expect(self.process, "up")

    def cut(self) -> None:
        """Unplug its network cable."""
        self.network.ip("link", "set", f"to-{self.name}", "down")

    def heal(self) -> None:
        self.network.ip("link", "set", f"to-{self.name}", "up")

    def fill(self) -> None:
        """Its own disk, which holds its home and /tmp, to the last block."""
        self.network.fill(self.network.folder / "disks" / self.name)

    def relieve(self) -> None:
        self.network.relieve(self.network.folder / "disks" / self.name)


@dataclass
class Network:
    """The client, and the hosts by name; `shared` is a folder that all of them see."""

    folder: Path
    client: Host = field(init=False)
    hosts: dict[str, Host] = field(default_factory=dict)

    @property
    def shared(self) -> Path:
        return self.folder / "shared"

    def fill(self, disk: Path) -> None:
        """`shared`, or a host's own."""
        used = os.statvfs(there := self.client.seen(disk))
        self._remount(disk, f"{(used.f_blocks - used.f_bfree) * used.f_frsize // 1024 + 64}k")
        with contextlib.suppress(OSError), open(there / "full", "wb", buffering=0) as file:
            while True:
                file.write(b"0" * 4096)

    def relieve(self, disk: Path) -> None:
        self._remount(disk, DISK)
        (self.client.seen(disk) / "full").unlink()

    def _remount(self, disk: Path, size: str) -> None:
        _sh(["nsenter", "-t", str(self.client.pid), "-m", "mount", "-o", f"remount,size={size}", str(disk)])

    def ip(self, *words: str) -> None:
        """At the switch; processes are named as outside."""
        _sh(["nsenter", "-t", str(self.client.pid), "-n", "ip", *words])

    def boot(self, name: str, address: str, script: str, where: Sequence[str] = ()) -> subprocess.Popen[str]:
        names = [CLIENT, *self.hosts]
        kept = {str(path) for path in (self.folder, *MACHINE) if path.is_relative_to("/tmp")}
        facts = {"NAME": name, "ADDRESS": address, "GATEWAY": self.client.address, "NAMES": " ".join(names)}
        exports = [
            f"{key}={value}"
            for key, value in {
                **facts,
                "KEPT": " ".join(sorted(kept)),
                "FOLDER": self.folder,
                "DISK": DISK,
                "PATH": PATH,
            }.items()
        ]
        exports.append(f"SSHD={shutil.which('sshd', path=PATH)}")
        new = ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            [*where, "env", *exports, *new, "bash", "-c", script + WAIT],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
        )  # fmt: skip
        if not where:
            _expect(process, "up")
        return process


def reason_to_skip() -> str | None:
    """Why hosts cannot be made here."""
    if os.name != "posix" or os.geteuid() != 0:
        return "hosts in namespaces need root"
    if missing := [name for name in NEEDED if shutil.which(name, path=PATH) is None]:
        return f"hosts in namespaces need {', '.join(missing)} (openssh-server, rsync, iproute2, util-linux)"
    trial = "ip link add switch type bridge && ip link add one type veth peer name two && mount -t tmpfs tmpfs /run"
    tried = subprocess.run(
        ["unshare", "--mount", "--uts", "--net", "--pid", "--fork", "--mount-proc", "bash", "-c", trial],
        capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PATH": PATH},
    )  # fmt: skip
    if tried.returncode:
        return f"namespaces are not allowed here: {tried.stderr.strip().splitlines()[-1]}"
    return None


@contextlib.contextmanager
def network(folder: Path, names: Sequence[str]) -> Iterator[Network]:
    """A client and hosts of these names, all with power, each with an SSH server that knows the client's key."""
    lan = Network(folder)
    lan.client = Host(lan, CLIENT, "10.77.0.1")
    lan.hosts = {name: Host(lan, name, f"10.77.0.{10 + number}") for number, name in enumerate(names)}
    for part in ("disks", "disk", "shared", "etc"):
        (folder / part).mkdir(parents=True)
    etc = folder / "etc"
    users = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
    root = f"root:x:0:0:root:{lan.client.home}:/bin/bash"
    (etc / "passwd").write_text(
        "\n".join([root, *(user for user in users if not user.startswith("root:"))]) + "\n", encoding="utf-8"
    )
    everyone = [lan.client, *lan.hosts.values()]
    (etc / "hosts").write_text(
        "127.0.0.1 localhost\n" + "".join(f"{one.address} {one.name}\n" for one in everyone), encoding="utf-8"
    )
    (etc / "sshd_config").write_text(SSHD_CONFIG.format(folder=folder), encoding="utf-8")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(etc / "host_key")], check=True)
    try:
        lan.client.process = lan.boot(CLIENT, lan.client.address, CLIENT_BOOTS)
        key = lan.client.seen(lan.client.home / ".ssh" / "id_ed25519.pub")
        (etc / "authorized_keys").write_text(key.read_text(encoding="utf-8"))
        for host in lan.hosts.values():
            host.boot()
        yield lan
    finally:
        if lan.client.process is not None:
            lan.client.process.communicate(timeout=60)  # its input ends, and with it everything


def _first(pid: int) -> int:
    """Process 1 of the host that this process made (nsenter and unshare have one child each)."""
    while (
        "1"
        != Path(f"/proc/{pid}/status").read_text(encoding="utf-8").partition("NSpid:")[2].splitlines()[0].split()[-1]
    ):
        pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()[0])
    return pid


def _say(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{text}\n")
    process.stdin.flush()


def _expect(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    heard = []
    for line in process.stdout:
        if line.strip() == text:
            return
        heard.append(line)
    raise RuntimeError("A host does not boot: " + "".join(heard))


def _sh(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False, env={**os.environ, "PATH": PATH})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

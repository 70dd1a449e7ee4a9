"""What this process may use of its machine: a home directory, CPUs, a folder for Ray's sockets, a Ray cluster."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from lnl.system import processes

CLUSTER_FILE = Path("/tmp/ray/ray_current_cluster")  # written by `ray start` on every node
# Ray's longest socket in a folder of ours; Ray opens its own folder `r` to everybody, ours around it stays closed.
RAY_SOCKET = f"r/session_2026-11-21_00-00-00_000000_{2**22}/sockets/plasma_store"
SOCKET_BYTES = 107 if sys.platform == "linux" else 103  # the longest name of a UNIX socket
RAY = "ray"  # the purpose of its scratch folder
FREE = 2**24  # bytes that Ray's logs may take


def expanded(path: str | Path, instead: str = "give a path without '~'") -> Path:
    """The path with the home directory in place of `~`.  Raises `ValueError` where this user has none."""
    try:
        return Path(path).expanduser()
    except RuntimeError:  # neither HOME nor an entry in the password database
        raise ValueError(f"There is no home directory for '{path}': set HOME, or {instead}.") from None


def has_home() -> bool:
    """Whether this user has a home directory by name, whether or not it exists."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


# -------------------------------------------------------------------------------------------------------------- CPUs


def cpus() -> int:
    """How many CPUs this process may use, by its affinity and the quotas of its control groups; at least one."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.floor(min(affinity, _quota(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))))


def _quota(groups: Path, mount: Path) -> float:
    """The least quota of CPU time, in CPUs, of this process's control groups (version 1 or 2) and those above them."""
    least = math.inf
    with contextlib.suppress(OSError, ValueError):  # where there are none, or others than these
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = mount / controllers if controllers else mount
            # In a container the path may be the host's: then what is mounted is the group itself.
            for group in [(inner := root / path.lstrip("/")), *inner.parents]:
                least = min(least, _quota_of(group))
                if group == root:
                    break
    return least


def _quota_of(group: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
        return math.inf if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text(encoding="ascii") for name in ("quota", "period"))
        return math.inf if int(quota) < 0 else int(quota) / int(period)
    return math.inf


# --------------------------------------------------------------------------------------------------- a folder for Ray


def temporary_folders() -> list[Path]:
    """Where a Ray of our own may have its folder: those that the environment names, then the system's own."""
    folders = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR"), "/tmp", "/var/tmp", "/dev/shm"]
    return list(dict.fromkeys(Path(folder).absolute() for folder in folders if folder))


@contextlib.contextmanager
def ray_folder() -> Iterator[Path]:
    """A folder of this user alone, in which a Ray of our own can open its sockets; removed at the end.

    Each candidate is tried first, and one that Ray cannot use is passed over.  Raises `OSError` where none is left.
    """
    reasons = []
    for parent in temporary_folders():
        with contextlib.ExitStack() as stack:
            try:
                folder = stack.enter_context(processes.scratch(RAY, parent))
            except OSError as error:
                reasons.append(f"{parent} ({error.strerror})")
                continue
            if reason := _unfit(folder):
                reasons.append(f"{parent} ({reason})")
                continue
            yield folder
            return
    raise OSError(
        f"Ray finds no folder for its sockets and logs (not {', '.join(reasons)}): set TMPDIR to one that can be "
        f"written, has {FREE >> 20} MiB free and a name of at most {_longest_parent()} bytes."
    )


def _longest_parent() -> int:
    return SOCKET_BYTES - len(f"/{processes.PREFIX}{RAY}-12345678/{RAY_SOCKET}")


def _unfit(folder: Path) -> str | None:
    """Why Ray cannot use a folder, found by doing what Ray does; None: it can."""
    path = folder / RAY_SOCKET
    if (length := len(os.fsencode(folder.parent))) > _longest_parent():
        return f"a name of {length} bytes, and {_longest_parent()} is the most that leaves room for a socket's"
    try:
        path.parent.mkdir(parents=True)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
        with path.with_name("log").open("wb") as log:
            for _ in range(16):
                log.write(bytes(FREE // 16))
    except OSError as error:
        return error.strerror or str(error)
    finally:
        shutil.rmtree(folder / "r", ignore_errors=True)
    return None


# ------------------------------------------------------------------------------------------------------- a Ray cluster


def cluster() -> tuple[str | None, str | None]:
    """The address of the Ray cluster that this machine belongs to, and a sentence where its file is not trusted.

    Every user may write where the file lies, and a cluster runs code here: so only a file of this user or root counts.
    """
    refused = (
        f"{CLUSTER_FILE} is not followed to a Ray cluster, because {{}}: remove it, or name the cluster (--address)."
    )
    try:
        file = os.open(CLUSTER_FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None, None
    except OSError as error:
        is_link = CLUSTER_FILE.is_symlink()
        return None, refused.format("it is a symbolic link" if is_link else f"it cannot be read ({error.strerror})")
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            return None, refused.format("it is not a regular file")
        if about.st_uid not in (0, os.getuid()):
            return None, refused.format(f"it belongs to another user ({about.st_uid})")
        if about.st_mode & stat.S_IWOTH:
            return None, refused.format("everybody may write it")
        return os.read(file, 1000).decode(errors="replace").strip() or None, None
    finally:
        os.close(file)

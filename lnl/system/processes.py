"""Processes, told apart whatever the clock says, and their scratch folders.

A process is known by its machine and boot (`boot_id`, which no clock moves), its PID namespace, its number and the tick
of this boot in which it began.  So a number that another process got since, or got after a restart, is not mistaken.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypedDict, TypeGuard

import psutil

PREFIX = "lnl-"  # of scratch folders below the system's temporary one
OWNER = "owner.json"  # a file in them: whose they are


def this_host() -> str:
    """Name of this machine, boot and process space: a container with its own processes is another host."""
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}/{_boot()}/{space}"


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"{psutil.boot_time():.0f}"


class Identity(TypedDict):
    """A process, as plain data."""

    host: str  # see `this_host`
    pid: int
    born: float | None  # see `_born`


def identity() -> Identity:
    """This process, as plain data that `lives` can be asked about later."""
    return {"host": this_host(), "pid": os.getpid(), "born": _born(os.getpid())}


def is_identity(record: Mapping[str, object]) -> TypeGuard[Identity]:
    """Whether a record has the fields of `identity`."""
    kinds = {"host": str, "pid": int, "born": float | int}
    return all(isinstance(record.get(name), kind) for name, kind in kinds.items())


def lives(record: Identity) -> bool | None:
    """Whether the process with this identity still runs; None where that cannot be seen from here."""
    if record["host"] != this_host():
        return None
    born = _born(record["pid"])
    then = record["born"]
    return born is not None and then is not None and abs(born - then) < 1


def _born(pid: int) -> float | None:
    """When a process began, in ticks since the machine started, or else in seconds; None: it has ended."""
    if os.path.exists("/proc/self/stat"):
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        state, *fields = text.rpartition(")")[2].split()  # the program's name before may hold anything
        return None if state in "ZX" else float(fields[18])  # Z: its parent has not asked for its end yet
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


# --------------------------------------------------------------------------------------------------- scratch folders


@contextlib.contextmanager
def scratch(purpose: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder below `parent`, or the system's temporary one, removed at the end; after a kill by a later `clear`."""
    folder = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{purpose}-", dir=parent))
    try:
        with contextlib.suppress(OSError):  # a full disk, which who writes there next tells
            (folder / OWNER).write_text(json.dumps(identity()), encoding="utf-8")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def left_over(parents: Iterable[Path] = ()) -> list[Path]:
    """Scratch folders of this user whose processes have ended, below these folders and the system's temporary one."""
    left = []
    places = {Path(tempfile.gettempdir()), *parents}
    for folder in sorted(folder for place in places for folder in place.glob(f"{PREFIX}*")):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
        except (OSError, ValueError):  # not one of these, or gone by now
            continue
        if isinstance(owner, dict) and is_identity(owner) and _is_dead(owner):
            left.append(folder)
    return left


def clear(parents: Iterable[Path] = ()) -> None:
    """Remove what `left_over` finds."""
    for folder in left_over(parents):
        shutil.rmtree(folder, ignore_errors=True)


def _is_dead(owner: Identity) -> bool:
    """Whether a process has certainly ended, or its machine has restarted; of other machines nothing is known."""
    name, boot, _ = this_host().split("/", 2)
    restarted = owner["host"].startswith(f"{name}/") and not owner["host"].startswith(f"{name}/{boot}/")
    return restarted or lives(owner) is False

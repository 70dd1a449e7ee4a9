"""Reading files that anybody may have put there, and naming them in messages.

A file is read, or refused at once by an `OSError` that names it.  No reader waits for ever: what is not a plain file (a
pipe, a socket, a device, a folder) is refused before it is read.
"""

from __future__ import annotations

import errno
import fcntl
import fnmatch
import os
import stat
import zipfile
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from lnl.storage.objects import ObjectPath, StorageError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_file(path: Path) -> BufferedReader:
    """Open a plain file for reading.  Raises `OSError`, also where something else has the name."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a blocking open waits for a pipe's writer
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"It is {_KINDS.get(stat.S_IFMT(mode), 'no file')}", str(path))
    return os.fdopen(descriptor, "rb")


def read_file(path: Path | ObjectPath) -> bytes:
    """All of a plain file, or of an object.  Raises `OSError`, also where something else has the name."""
    if isinstance(path, ObjectPath):
        return path.read_bytes()
    with open_file(path) as file:
        try:
            return file.read()
        except OSError as error:  # reading does not know the name
            raise OSError(error.errno, error.strerror, str(path)) from error


def zip_damage(file: BinaryIO) -> str | None:
    """What is wrong with a .zip, as `torch.save` writes, by the checksums that torch ignores; None: nothing."""
    damage = None
    if zipfile.is_zipfile(file):
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            broken = archive.testzip()
        damage = broken and f"{broken} in it does not have its checksum"
    file.seek(0)
    return damage


def is_no_file(error: OSError) -> bool:
    """Whether reading failed because something else than a file has the name, which waiting does not change."""
    return error.errno in (errno.EINVAL, errno.ELOOP, errno.EISDIR, errno.ENXIO)


def is_there(path: Path) -> bool:
    """Whether something has this name, even a link that leads nowhere: opening it will say so."""
    return os.path.lexists(path)


def lock_file(path: Path, waiting: Callable[[], None] = lambda: None) -> BinaryIO:
    """Lock a file, which is made where it is missing: one process holds the lock until it closes the file, or dies.

    Calls `waiting` before it waits for another process.  Raises `OSError`, also where something else has the name.
    Not `filelock`, which takes a pipe for a lock's file, asks 20 times a second instead of waiting its turn (of eight
    processes one waited 0.8 s, here 0.05 s) and, on a file system without such locks, leaves one behind where a process
    dies.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)  # refuses a pipe
    file = os.fdopen(descriptor, "wb")
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(file, fcntl.LOCK_EX)
    except BaseException:
        file.close()
        raise
    return file


def listed(folder: Path | ObjectPath, pattern: str, *, deep: bool = False) -> list[Path | ObjectPath]:
    """The paths in a folder, or anywhere below, whose names fit; in order; none where there is no such folder.

    Unlike `Path.glob`, which passes over folders that it may not read.  Raises `StorageError`.
    """
    if isinstance(folder, ObjectPath):
        return sorted((folder.rglob if deep else folder.glob)(pattern))
    paths: list[Path | ObjectPath] = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        paths += [Path(parent, name) for name in fnmatch.filter(folders + names, pattern)]
        if not deep:
            break
    return sorted(paths)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        where = shown(error.filename)
        raise StorageError(f"{where} cannot be read ({reason(error)}): make it a folder that you may read.") from error


def reason(error: BaseException) -> str:
    """The first sentence of another library's message, to stand within one of ours; without the file's name."""
    text = str(getattr(error, "reason", "") or getattr(error, "strerror", "") or error) or type(error).__name__
    return text.split("\n")[0].split(". ")[0].rstrip(".")


def shown(path: Path | ObjectPath | str) -> str:
    """A path as people see it: bytes that are not UTF-8 as backslashes, so that every message can be stored."""
    return printable(str(path))


def printable(text: str) -> str:
    """The text with whatever UTF-8 has no bytes for (names of files that are not UTF-8) as backslashes."""
    return text.encode(errors="backslashreplace").decode()

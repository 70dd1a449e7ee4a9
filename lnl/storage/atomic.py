"""Writing a file whole or not at all: `write_atomically`, and the errors of writing."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.places import Place
from lnl.system import processes

Write = Callable[[Path], object]


def write_atomically(path: Place, write: Write, *, once: bool = False) -> None:
    """Call `write(temporary_path)`, flush to disk and rename to `path`: readers see the whole file or none.

    Object storage gets the whole file in one PUT.  `once`: only if there is no file of that name, whoever else writes;
    else raises `Overtaken`.  Raises `StorageError` where the disk is full or the place cannot be written; nothing
    half-written stays behind.
    """
    if isinstance(path, ObjectPath):
        _put(path, write, once)
        return
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        if not once:
            os.replace(temporary, path)
        elif not _linked(temporary, path):
            raise already_there(path)
    except StorageError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError without a number
        raise storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _linked(temporary: Path, path: Path) -> bool:
    """Give the file its name, unless another has it: unlike a renaming, a link never replaces."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return os.stat(temporary).st_nlink == 2  # over NFS the answer to our own link may have been lost
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP) or path.exists():  # file systems without links
            raise
        os.replace(temporary, path)
    return True


def _put(path: ObjectPath, write: Write, once: bool) -> None:
    with processes.scratch("put") as folder:
        temporary = folder / path.name
        try:
            write(temporary)
            content = temporary.read_bytes() if once else b""
        except (OSError, RuntimeError) as error:
            raise storage_error(temporary, error) from error
        if not once:
            path.upload(temporary)
        elif path.exchange(content, None) is None:
            raise already_there(path)


class Overtaken(StorageError):
    """Another process has written this file, which is never overwritten."""


def already_there(path: Place) -> Overtaken:
    """The error of a file that exists already."""
    return Overtaken(f"{path} is there already, and attempts are never overwritten: run again.")


def storage_error(path: Path, error: Exception) -> StorageError:
    """The error of a file that could not be written, with what to do."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _free_bytes(path.parent) < 2**20:
        return StorageError(f"No space left to write {path}: free some, or give another --storage; then run again.")
    return StorageError(f"Cannot write {path} ({error}): check the folder's permissions; then run again.")


def _free_bytes(folder: Path) -> float:
    try:
        return float(psutil.disk_usage(str(folder)).free)
    except OSError:
        return float("inf")

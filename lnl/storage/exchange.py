"""Small files that several processes write at once: compare and swap, in a folder or on S3.

`shared_file(path)` is the file at a path, as a `SharedFile`.  Reading it gives a `Version`; whoever replaces it names
the version that they have read, and of all who name the same version exactly one succeeds.  There are two kinds:

- `FolderFile`: each step happens under a lock of the folder (`lock_folder`), which the system frees when its process
  dies.
- `ObjectFile`: each step is one conditional request to the object storage.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

from lnl.storage.atomic import storage_error, write_atomically
from lnl.storage.files import is_no_file, lock_file, read_file, reason, shown
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.places import Place


class Version(NamedTuple):
    """A file as it was at one moment."""

    content: bytes
    tag: str  # differs after every change
    changed: datetime  # by the clock of the machine that keeps the file


class UnreadableFile(StorageError):
    """This one file cannot be read; the storage itself works."""


class SharedFile(Protocol):
    """A small file that several processes write.  Every method raises `StorageError`."""

    @property
    def path(self) -> Place: ...

    def read(self) -> Version | None:
        """The present version; None where there is no file of this name."""
        ...

    def exchange(self, content: bytes, tag: str | None) -> str | None:
        """Write if the file still has this tag (None: if there is no file); returns the new tag, or None.

        Give content that no other process writes: on object storage, an answer that was lost is recognised by it.
        """
        ...

    def renew(self, content: bytes, tag: str, is_ours: Callable[[bytes], bool]) -> str | None:
        """Give the file a new time of change; returns its tag, or None where another process has replaced it.

        `content`: what may be written for it, different at each call; `is_ours`: whether this is our content.
        """
        ...

    def remove(self, is_ours: Callable[[bytes], bool], is_fresh: Callable[[], bool], within: float) -> None:
        """Remove the file if it is still ours.

        `is_fresh`: whether it was renewed so recently that nobody can replace it `within` so many seconds.
        """
        ...


def shared_file(path: Place) -> SharedFile:
    """The file at a path, in a folder or on object storage."""
    return ObjectFile(path) if isinstance(path, ObjectPath) else FolderFile(path)


@dataclass(frozen=True)
class FolderFile:
    """A `SharedFile` in a folder, here or shared."""

    path: Path

    def read(self) -> Version | None:
        """Raises `UnreadableFile`, but not where something else than a file has the name: that is replaced."""
        try:
            content, changed_ns = read_file(self.path), self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return None
        except OSError as error:
            if is_no_file(error):
                return None
            raise UnreadableFile(
                f"{shown(self.path)} cannot be read ({reason(error)}): make it readable; then run again."
            ) from error
        return Version(content, f"{changed_ns} {content!r}", datetime.fromtimestamp(changed_ns / 1e9, UTC))

    def exchange(self, content: bytes, tag: str | None) -> str | None:
        with lock_folder(self.path.parent):
            if self._tag() != tag:
                return None
            write_atomically(self.path, lambda temporary: temporary.write_bytes(content))
            return self._tag()

    def renew(self, content: bytes, tag: str, is_ours: Callable[[bytes], bool]) -> str | None:
        with contextlib.suppress(OSError, StorageError):  # a moment without a shared folder loses nothing
            version = self.read()
            if version is None or not is_ours(version.content):
                return None
            os.utime(self.path)
        return tag

    def remove(self, is_ours: Callable[[bytes], bool], is_fresh: Callable[[], bool], within: float) -> None:
        with lock_folder(self.path.parent):
            version = self.read()
            if version is not None and is_ours(version.content):
                self.path.unlink(missing_ok=True)

    def _tag(self) -> str | None:
        version = self.read()
        return None if version is None else version.tag


@dataclass(frozen=True)
class ObjectFile:
    """A `SharedFile` on object storage."""

    path: ObjectPath

    def read(self) -> Version | None:
        try:
            content, about = self.path.read()
        except FileNotFoundError:
            return None
        return Version(content, about.tag, datetime.fromtimestamp(about.st_mtime, UTC))

    def exchange(self, content: bytes, tag: str | None) -> str | None:
        return self.path.exchange(content, tag)

    def renew(self, content: bytes, tag: str, is_ours: Callable[[bytes], bool]) -> str | None:
        return self.path.exchange(content, tag)

    def remove(self, is_ours: Callable[[bytes], bool], is_fresh: Callable[[], bool], within: float) -> None:
        # An object cannot be removed on a condition: it is removed while a fresh renewal keeps all others from it.
        if is_fresh():
            self.path.unlink(missing_ok=True, within=within)


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Let one process at a time into a folder; the system frees the lock of a process that dies.

    Raises `StorageError`.
    """
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock_file(path)
    except OSError as error:
        raise storage_error(path, error) from error
    with file:
        yield

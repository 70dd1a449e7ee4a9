"""Leases: one worker at a time holds a trial, and others take over when it stops renewing."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lnl.storage.atomic import _storage_error, write_atomically
from lnl.storage.files import is_no_file, listed, lock_file, read_file, reason, shown
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.places import Place, canonical, now, partition
from lnl.system import processes

if TYPE_CHECKING:
    from lnl.storage.store import Store

HEARTBEAT_S = 5.0
EXPIRY_S = 60.0


@dataclass
class Lease:
    """The right to train one trial, held by one process.  Use as a context manager.

    A small file whose time of change is the heartbeat; studies that share a trial have one each.  It lapses when its
    process is gone (seen at once on the same host) or silent (another host), see `_Seen.alive`.  In a folder it is
    made, taken over and removed under a lock; on object storage each of these is one conditional PUT, of which one
    succeeds.

    A holder that is cut off while it trains loses its lease after `EXPIRY_S`, and another goes on from its last
    checkpoint.  Both train then, until the first comes to its next heartbeat or to its row, which it may only write
    after a last heartbeat: it finds itself `lost` and drops its attempt, of which the other has written the row
    (`preempted`).  So every attempt has one row, and of one trial no two are `ok` through this.
    """

    path: Place
    record: Mapping[str, Any]
    tag: str  # of the file as this process wrote it last
    previous_beat: datetime | None = None  # the last one of the dead holder before
    lost: bool = False  # another process holds it now
    _beaten: float = 0.0  # when, by this process's clock
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def token(self) -> str:
        return str(self.record["token"])

    def __enter__(self) -> Lease:
        threading.Thread(target=self._beat, daemon=True, name=f"lease {self.path.stem}").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if isinstance(self.path, ObjectPath):
            # an object cannot be removed on condition: it is, while a fresh heartbeat keeps all others from it
            if not self.lost and (time.monotonic() - self._beaten < EXPIRY_S / 4 or self.holds()):
                with self._turn:
                    self.path.unlink(missing_ok=True, within=EXPIRY_S / 4)
            return
        with locked(self.path.parent):
            if (record := _look(self.path).record) and record["token"] == self.token:
                self.path.unlink(missing_ok=True)

    def holds(self) -> bool:
        """A heartbeat; False where another has taken the lease over.  Raises `StorageError`."""
        with self._turn:
            began = time.monotonic()
            if isinstance(self.path, ObjectPath):
                record = {**self.record, "beat": now().isoformat()}  # another content, and so another tag
                tag = None if self.lost else self.path.exchange(canonical(record).encode(), self.tag)
                self.tag, self.lost = tag or "", tag is None
            else:
                with contextlib.suppress(OSError, StorageError):  # a moment without the shared folder
                    record = _look(self.path).record or {}
                    self.lost = record.get("token") != self.token
                    if not self.lost:
                        os.utime(self.path)
            self._beaten = began
            return not self.lost

    def _beat(self) -> None:
        while not self.lost and not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError):  # a moment without the storage must not end the heartbeat
                self.holds()


def claim(store: Store, study: str, trial: str, **about: Any) -> tuple[Lease | None, dict[str, Any] | None]:
    """Try to take a trial's lease: (lease, a dead holder's record or None), or (None, the living holder's record).

    `run` names a driver.  One that starts a trial anew has lost the worker before: that one is dead, or is cut off and
    will find its lease `lost`, so nobody waits for the lease to lapse.
    """
    return _claim(store.lease_path(study, trial), {"study": study, **about})


def _claim(path: Place, about: Mapping[str, Any]) -> tuple[Lease | None, dict[str, Any] | None]:
    record = {"token": uuid.uuid4().hex, **processes.identity(), "since": now().isoformat(), **about}
    seen = NOTHING  # most often right, and on object storage a request less
    while True:
        began = time.monotonic()
        if tag := _exchange(path, canonical(record), seen.tag):
            beat = min(seen.beat, now()) if seen.record and seen.beat else None
            return Lease(path, record, tag, beat, _beaten=began), seen.record
        seen = _look(path)
        mine = "run" in about and seen.record is not None and seen.record.get("run") == about["run"]
        if not mine and (seen.alive() or (seen.from_the_future() and _beats(path, seen))):
            return None, seen.record


def leases(store: Store, study: str | None = None) -> dict[tuple[str, str], dict[str, Any]]:
    """(Study, trial) -> record of its lease, with `alive` and `from_the_future`; of one study, or of all."""
    folder = store.root / "leases"
    found = {}
    for path in listed(folder, "*.json", deep=True) if study is None else listed(folder / partition(study), "*.json"):
        of = path.parent.name.removeprefix("study=")
        try:
            seen = _look(path)
        except StorageError:
            if isinstance(path, ObjectPath):
                raise
            continue  # one file that cannot be read ends nothing but a claim to its trial; doctor names it
        if of != path.parent.name and seen.record:
            found[of, path.stem] = {**seen.record, "alive": seen.alive(), "from_the_future": seen.from_the_future()}
    return found


def tidy_leases(store: Store, study: str, finished: Collection[str]) -> None:
    """Remove the leases of finished trials whose holders died between their row and their lease's end."""
    for (_, trial), record in leases(store, study).items():
        if trial in finished and not record["alive"]:
            lease, _ = claim(store, study, trial)
            if lease is not None:
                with lease:
                    store.tidy(study, trial)


def is_held(store: Store, study: str, trial: str) -> bool:
    """Whether a living process holds the trial's lease."""
    return _look(store.lease_path(study, trial)).alive()


@dataclass(frozen=True)
class _Seen:
    """A lease's file at one moment."""

    record: dict[str, Any] | None = None  # none where it is damaged, or there is none
    tag: str | None = None  # another one after every change; None: there is none
    beat: datetime | None = None  # by the clock of who keeps the file
    unchanged_s: float = 0.0  # for how long this process has found it so, by its own clock that nobody sets
    moved: bool = False  # this process has seen a later heartbeat follow an earlier one

    def alive(self) -> bool:
        """Whether its holder lives.  On this host the system knows.  Of another host the heartbeats tell:

        - A heartbeat that this process has found unchanged for `EXPIRY_S` is the last one, whatever its date.
        - One that was seen to follow another is of a living holder, whatever its date.
        - Who looks for the first time can only go by the date, and so clocks must agree to some seconds: the holder
          is dead where it is more than `EXPIRY_S` away from now.  In the future, too, where it says nothing: then
          `claim` watches for a heartbeat before it takes the lease.
        """
        if self.record is None or self.beat is None:
            return False
        if (lives := processes.lives(self.record)) is not None:
            return lives
        if self.unchanged_s >= EXPIRY_S:
            return False
        return self.moved or abs((now() - self.beat).total_seconds()) < EXPIRY_S

    def from_the_future(self) -> bool:
        """Whether only watching can tell if its holder lives."""
        if self.record is None or self.beat is None or processes.lives(self.record) is not None:
            return False
        return self.unchanged_s < EXPIRY_S < (self.beat - now()).total_seconds()


def _beats(path: Place, seen: _Seen) -> bool:
    """Whether a lease's file changes within the time that a silent holder has."""
    while seen.unchanged_s < EXPIRY_S:
        time.sleep(min(1.0, EXPIRY_S - seen.unchanged_s))
        before, seen = seen, _look(path)
        if seen.tag != before.tag:
            return True
    return False


NOTHING = _Seen()


_known_beats: dict[Place, tuple[_Seen, float]] = {}  # the last look at each lease of another host, and when it changed


def _look(path: Place) -> _Seen:
    try:
        if isinstance(path, ObjectPath):
            content, about = path.read()
            tag, changed = about.tag, about.st_mtime
        else:
            content, changed_ns = read_file(path), path.stat().st_mtime_ns
            tag, changed = f"{changed_ns} {content!r}", changed_ns / 1e9
    except FileNotFoundError:
        _known_beats.pop(path, None)
        return NOTHING
    except OSError as error:
        if not is_no_file(error):
            raise StorageError(f"{shown(path)} cannot be read ({reason(error)}): see to it; then run again.") from error
        return NOTHING  # it holds nothing, and whoever claims the trial replaces it
    try:
        record = json.loads(content)
    except ValueError:
        record = None
    whole = isinstance(record, dict) and isinstance(record.get("token"), str) and processes.is_identity(record)
    return _compared(path, _Seen(record if whole else None, tag, datetime.fromtimestamp(changed, UTC)))


def _compared(path: Place, seen: _Seen) -> _Seen:
    """With what this process knows from its earlier looks."""
    if seen.record is None or seen.beat is None or processes.lives(seen.record) is not None:
        return seen
    clock = time.monotonic()
    before, since = _known_beats.get(path, (NOTHING, clock))
    if before.beat is not None and before.tag != seen.tag:
        since, seen = clock, replace(seen, moved=before.moved or seen.beat > before.beat)
    else:
        seen = replace(seen, moved=before.moved)
    _known_beats[path] = seen, since
    return replace(seen, unchanged_s=clock - since)


def _exchange(path: Place, text: str, tag: str | None) -> str | None:
    """Write where the file is as it was when `_look` gave this tag (None: there was none); its new tag, else None."""
    if isinstance(path, ObjectPath):
        return path.exchange(text.encode(), tag)
    with locked(path.parent):
        if _look(path).tag != tag:
            return None
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return _look(path).tag


@contextlib.contextmanager
def locked(folder: Place) -> Iterator[None]:
    """One process at a time; a process that dies frees the lock.  Raises `StorageError`.

    In a folder the system sees to that; on object storage the lock is a lease, which another host waits `EXPIRY_S` for.
    """
    if isinstance(folder, ObjectPath):
        while (lease := _claim(folder / ".lock", {})[0]) is None:
            time.sleep(random.uniform(0.05, 0.3))
        with lease:
            yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = lock_file(folder / ".lock")
    except OSError as error:
        raise _storage_error(folder / ".lock", error) from error
    with file:
        yield

"""Leases: one process at a time holds a trial, and another takes over when it stops renewing.

A lease is a small file (see `exchange`) whose time of change is the last heartbeat of its holder.  Each study has its
own leases: studies that share a trial do not wait for each other.

- `claim` takes a trial's lease, which is a `Lease`: `start` renews it in the background until `release`.
- `leases`, `is_held` and `tidy_leases` look at the leases of a store.
- `read_lease` gives a lease's `LeaseState`, which decides whether its holder is alive.
- `locked` lets one process at a time into a folder; on object storage this, too, is a lease.
"""

from __future__ import annotations

import contextlib
import json
import random
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import NotRequired, Protocol, cast

from lnl.storage.exchange import SharedFile, UnreadableFile, lock_folder, shared_file
from lnl.storage.files import listed
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.part_names import partition, study_of
from lnl.storage.places import Place, canonical, now
from lnl.system import processes

HEARTBEAT_S = 5.0
EXPIRY_S = 60.0

Scalar = str | int | float | bool | None


class LeaseRecord(processes.Identity):
    """What a lease's file says of its holder, beside whatever the holder adds (see `claim`)."""

    token: str  # no other lease has the same
    since: str
    study: NotRequired[str]
    run: NotRequired[str]  # of the driver that the holder works for


class LeaseEntry(LeaseRecord):
    """A lease as `leases` lists it."""

    alive: bool
    from_the_future: bool


class LeaseStore(Protocol):
    """What leases need of a `Store`."""

    @property
    def root(self) -> Place: ...
    def lease_path(self, study: str, trial: str) -> Place: ...
    def tidy(self, study: str, trial: str) -> None: ...


@dataclass
class Lease:
    """The right to train one trial, held by one process.  Use it as a context manager, or `start` and `release` it.

    It lapses when its process has ended (seen at once on the same host) or is silent (another host), see
    `LeaseState.is_alive`.

    A holder that is cut off while it trains loses its lease after `EXPIRY_S`, and another process goes on from its
    last checkpoint.  Both train then, until the first comes to its next heartbeat or to its row, which it may only
    write after a renewal: it finds itself `lost` and drops its attempt, of which the other has written the row
    (`preempted`).  So every attempt has one row, and of one trial no two are `ok` through this.
    """

    file: SharedFile
    record: LeaseRecord
    tag: str  # of the file as this process wrote it last
    previous_beat: datetime | None = None  # the last heartbeat of the dead holder before
    lost: bool = False  # another process holds it now
    _renewed: float = 0.0  # when, by this process's own clock
    _ended: threading.Event = field(default_factory=threading.Event, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def path(self) -> Place:
        return self.file.path

    @property
    def token(self) -> str:
        return self.record["token"]

    def __enter__(self) -> Lease:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def start(self) -> None:
        """Renew the lease in the background, until it is released or lost."""
        threading.Thread(target=self._beat, daemon=True, name=f"lease {self.path.stem}").start()

    def renew(self) -> bool:
        """Renew the lease; False if another process holds it now.  Raises `StorageError`."""
        with self._lock:
            began = time.monotonic()
            if not self.lost:
                content = canonical({**self.record, "beat": now().isoformat()}).encode()
                tag = self.file.renew(content, self.tag, self._is_ours)
                self.tag, self.lost = tag or "", tag is None
            self._renewed = began
            return not self.lost

    def release(self) -> None:
        """Give the lease back, unless another process holds it now.  Raises `StorageError`."""
        self._ended.set()
        with self._lock:
            self.file.remove(self._is_ours, self._is_fresh, within=EXPIRY_S / 4)

    def _is_ours(self, content: bytes) -> bool:
        record = _parsed(content)
        return record is not None and record["token"] == self.token

    def _is_fresh(self) -> bool:
        return not self.lost and (time.monotonic() - self._renewed < EXPIRY_S / 4 or self.renew())

    def _beat(self) -> None:
        while not self.lost and not self._ended.wait(HEARTBEAT_S):
            with contextlib.suppress(StorageError):  # a moment without the storage must not end the heartbeat
                self.renew()


def claim(store: LeaseStore, study: str, trial: str, **about: Scalar) -> tuple[Lease | None, LeaseRecord | None]:
    """Try to take a trial's lease: (lease, a dead holder's record or None), or (None, the living holder's record).

    `about` is written into the record.  In it `run` names a driver: one that starts a trial anew has lost the worker
    before, which is dead, or is cut off and will find its lease `lost`; so nobody waits for that lease to lapse.
    """
    return _claim(store.lease_path(study, trial), {"study": study, **about})


def _claim(path: Place, about: Mapping[str, Scalar]) -> tuple[Lease | None, LeaseRecord | None]:
    record = cast(LeaseRecord, {"token": uuid.uuid4().hex, **processes.identity(), "since": now().isoformat(), **about})
    file, content = shared_file(path), canonical(record).encode()
    state = NO_LEASE  # most often right, and on object storage one request less
    while True:
        began = time.monotonic()
        if tag := file.exchange(content, state.tag):
            previous_beat = min(state.beat, now()) if state.record and state.beat else None
            return Lease(file, record, tag, previous_beat, _renewed=began), state.record
        state = read_lease(path)
        if not state.is_of_run(record) and (state.is_alive() or (state.is_from_the_future() and _beats(path, state))):
            return None, state.record


def leases(store: LeaseStore, study: str | None = None) -> dict[tuple[str, str], LeaseEntry]:
    """The leases of one study, or of all: (study, trial) -> record, with `alive` and `from_the_future`."""
    folder = store.root / "leases"
    paths = listed(folder, "*.json", deep=True) if study is None else listed(folder / partition(study), "*.json")
    entries: dict[tuple[str, str], LeaseEntry] = {}
    for path in paths:
        name = study_of(path)
        try:
            state = read_lease(path)
        except UnreadableFile:  # it ends nothing but a claim to its own trial; `lnl doctor` names it
            continue
        if name is not None and state.record:
            flags = {"alive": state.is_alive(), "from_the_future": state.is_from_the_future()}
            entries[name, path.stem] = cast(LeaseEntry, {**state.record, **flags})
    return entries


def tidy_leases(store: LeaseStore, study: str, finished: Collection[str]) -> None:
    """Remove the leases of finished trials whose holders died between writing the row and releasing the lease."""
    for (_, trial), entry in leases(store, study).items():
        if trial in finished and not entry["alive"]:
            lease, _ = claim(store, study, trial)
            if lease is not None:
                with lease:
                    store.tidy(study, trial)


def is_held(store: LeaseStore, study: str, trial: str) -> bool:
    """Whether a living process holds the trial's lease."""
    return read_lease(store.lease_path(study, trial)).is_alive()


@contextlib.contextmanager
def locked(folder: Place) -> Iterator[None]:
    """Let one process at a time into a folder; a process that dies frees the lock.  Raises `StorageError`.

    In a folder the system sees to that; on object storage the lock is a lease, for which another host waits `EXPIRY_S`.
    """
    if not isinstance(folder, ObjectPath):
        with lock_folder(folder):
            yield
        return
    while (lease := _claim(folder / ".lock", {})[0]) is None:
        time.sleep(random.uniform(0.05, 0.3))
    with lease:
        yield


# --------------------------------------------------------------------------------------------------- dead or alive


@dataclass(frozen=True)
class LeaseState:
    """A lease's file at one moment, beside what this process has seen of it before."""

    record: LeaseRecord | None = None  # None where the file is damaged, or absent
    tag: str | None = None  # differs after every change; None where the file is absent
    beat: datetime | None = None  # the last heartbeat, by the clock of the machine that keeps the file
    unchanged_s: float = 0.0  # for how long this process has found it so, by its own monotonic clock
    has_moved: bool = False  # this process has seen a later heartbeat follow an earlier one

    def is_alive(self) -> bool:
        """Whether the holder is alive.  On this host the system knows.  Of another host the heartbeats tell:

        - A heartbeat that this process has seen unchanged for `EXPIRY_S` is the last one, whatever its date.
        - One that was seen to follow another is of a living holder, whatever its date.
        - A process that looks for the first time can only go by the date, and so clocks must agree to some seconds:
          the holder is dead where its heartbeat is more than `EXPIRY_S` away from now.  In the future, too, where the
          date tells nothing: then `claim` watches for a heartbeat before it takes the lease.
        """
        if self.record is None or self.beat is None:
            return False
        if (lives := processes.lives(self.record)) is not None:
            return lives
        if self.unchanged_s >= EXPIRY_S:
            return False
        return self.has_moved or abs((now() - self.beat).total_seconds()) < EXPIRY_S

    def is_from_the_future(self) -> bool:
        """Whether the heartbeat is dated so far ahead that only watching can tell if the holder is alive."""
        if self.record is None or self.beat is None or processes.lives(self.record) is not None:
            return False
        return self.unchanged_s < EXPIRY_S < (self.beat - now()).total_seconds()

    def is_of_run(self, record: LeaseRecord) -> bool:
        """Whether the holder works for the same driver as the process with this record."""
        return "run" in record and self.record is not None and self.record.get("run") == record["run"]


NO_LEASE = LeaseState()

_last_states: dict[Place, tuple[LeaseState, float]] = {}  # of leases of other hosts, and when each was seen to change


def read_lease(path: Place) -> LeaseState:
    """The present state of a lease.  Raises `StorageError`."""
    version = shared_file(path).read()
    if version is None:
        _last_states.pop(path, None)
        return NO_LEASE
    return _compared(path, LeaseState(_parsed(version.content), version.tag, version.changed))


def _parsed(content: bytes) -> LeaseRecord | None:
    """The record in a lease's file; None where it is damaged."""
    try:
        record = json.loads(content)
    except ValueError:
        return None
    whole = isinstance(record, dict) and isinstance(record.get("token"), str) and processes.is_identity(record)
    return cast(LeaseRecord, record) if whole else None


def _compared(path: Place, state: LeaseState) -> LeaseState:
    """The state, with what this process knows from its earlier looks."""
    if state.record is None or state.beat is None or processes.lives(state.record) is not None:
        return state
    clock = time.monotonic()
    before, since = _last_states.get(path, (NO_LEASE, clock))
    has_moved = before.has_moved
    if before.beat is not None and before.tag != state.tag:
        since, has_moved = clock, before.has_moved or state.beat > before.beat
    state = replace(state, has_moved=has_moved)
    _last_states[path] = state, since
    return replace(state, unchanged_s=clock - since)


def _beats(path: Place, state: LeaseState) -> bool:
    """Whether a lease's file changes within the time that a silent holder has."""
    while state.unchanged_s < EXPIRY_S:
        time.sleep(min(1.0, EXPIRY_S - state.unchanged_s))
        before, state = state, read_lease(path)
        if state.tag != before.tag:
            return True
    return False

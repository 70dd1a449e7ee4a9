"""Results on disk: the parquet schema, an atomic writer, a tolerant reader, selection rules and leases.

Layout below one root folder (the `--storage` of every command):

    trials/study=<study>/<trial>-<attempt>.parquet    one wide row per attempt
    epochs/study=<study>/<trial>-<attempt>.parquet    long rows: trial, epoch, split, metric, value
    arrays/study=<study>/<trial>-<attempt>.parquet    what figures need: histograms, mixtures, matrices, embeddings
    suggestions/study=<study>/<search>-<number>.parquet   one row per suggestion of a search, see lnl.search
    studies/<study>-<preset>-<plan>.parquet           every plan that was submitted, as JSON
    events/<time>-<kind>-<uuid>.parquet               append-only log, one row per file
    trained/<trial>.pt                                prerequisites of other trials, after their last epoch
    checkpoints/<trial>.pt  leases/<trial>.json       working files of trials that have not finished

Rules: an explicit schema on every write and read; one writer per file; a file appears whole or not at all (written
under a dot-prefixed name in the same folder, flushed to disk, then renamed); attempts are never overwritten; a part
that cannot be read is reported and skipped.  Accuracies are fractions.  Nothing here imports torch or Ray, so
notebooks can read results anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

SCHEMA_VERSION = 1
TIME = pa.timestamp("us", tz="UTC")

TRIALS = pa.schema(
    [
        # identity
        ("trial", pa.string()),  # hash of the identity fields of the configuration
        ("attempt", pa.int32()),  # 1, 2, … : executions of this trial
        ("preset", pa.string()),
        ("arm", pa.string()),
        ("setting", pa.string()),  # JSON: factor -> value where it differs from the base
        ("replicate", pa.int32()),
        ("plan_hash", pa.string()),
        # what was asked for
        ("method", pa.string()),
        ("dataset", pa.string()),
        ("network", pa.string()),
        ("labels", pa.int64()),  # labelled training images, all classes together
        ("unlabelled", pa.int64()),  # unlabelled training images
        ("noise_kind", pa.string()),
        ("noise_rate", pa.float64()),  # nominal
        ("epochs", pa.int32()),
        ("config", pa.string()),  # canonical JSON of the whole trial
        # what was realised
        ("noise_realised", pa.float64()),  # share of labelled images whose label is wrong
        ("transition", pa.string()),  # JSON K × K: realised P(given label | true label)
        ("parameters", pa.int64()),
        ("data_hash", pa.string()),
        ("noise_hash", pa.string()),
        ("split_hash", pa.string()),  # labelled, probe and validation images
        ("unlabelled_hash", pa.string()),
        ("init_hash", pa.string()),
        # where a search asked for it, see lnl.search; null in all other trials
        ("search", pa.string()),
        ("suggestion", pa.int32()),
        # outcome
        ("status", pa.string()),  # ok | failed | preempted | pruned
        ("failure_class", pa.string()),  # oom | nan | preempted | timeout | code_error | data_error
        ("failure_message", pa.string()),
        ("epochs_done", pa.int32()),
        ("accuracy_last", pa.float64()),
        ("accuracy_last10", pa.float64()),
        ("accuracy_val_selected", pa.float64()),
        ("epoch_val_selected", pa.int32()),
        ("validation_labels", pa.string()),  # clean | noisy
        ("accuracy_best_test", pa.float64()),  # oracle: chosen by looking at the test set
        # cost and provenance
        ("seconds", pa.float64()),  # of all attempts that this one continues
        ("peak_memory_mb", pa.float64()),  # accelerator memory; null on CPU
        ("device", pa.string()),
        ("cpus", pa.float64()),
        ("gpus", pa.float64()),
        ("host", pa.string()),
        ("code_hash", pa.string()),  # of the method's source and all that it imports from lnl
        ("git_commit", pa.string()),
        ("git_dirty", pa.bool_()),
        ("version_python", pa.string()),
        ("version_torch", pa.string()),
        ("version_ray", pa.string()),
        ("started_at", TIME),
        ("ended_at", TIME),
        ("schema_version", pa.int32()),
    ]
)
EPOCHS = pa.schema(
    [
        ("trial", pa.string()),
        ("attempt", pa.int32()),
        ("epoch", pa.int32()),  # 1-based: the state after this many epochs
        ("step", pa.int64()),  # optimizer steps so far
        ("split", pa.string()),  # train | validation | test | oracle (true labels of training images)
        ("metric", pa.string()),
        ("value", pa.float64()),  # NaN: computed but undefined
        ("seconds", pa.float64()),  # since the trial began, earlier attempts included
        ("schema_version", pa.int32()),
    ]
)
ARRAYS = pa.schema(
    [
        ("trial", pa.string()),
        ("attempt", pa.int32()),
        ("epoch", pa.int32()),
        ("split", pa.string()),
        ("name", pa.string()),  # see lnl.trial.diagnose and embed
        ("shape", pa.list_(pa.int32())),
        ("values", pa.list_(pa.float32())),  # row by row
        ("schema_version", pa.int32()),
    ]
)
SUGGESTIONS = pa.schema(
    [
        ("search", pa.string()),  # name of the search, in Optuna's storage too
        ("number", pa.int32()),  # 0, 1, … : the arm's own values are the first
        ("arm", pa.string()),
        ("setting", pa.string()),  # JSON, as in trials
        ("sampler", pa.string()),
        ("state", pa.string()),  # complete | pruned | failed
        ("params", pa.string()),  # JSON: dotted field -> value, of the fields that were searched
        ("values", pa.list_(pa.float64())),  # one per objective: means over the replicates; of a pruned one the last
        ("trials", pa.list_(pa.string())),  # one per replicate
        ("diverged", pa.int32()),  # replicates that diverged, and counted as chance
        ("epochs", pa.int32()),  # trained, all replicates together
        ("seconds", pa.float64()),  # of training, all replicates together
        ("message", pa.string()),  # why it failed
        ("refused", pa.bool_()),  # it failed because its values cannot be trained with
        ("curve", pa.string()),  # JSON: epoch -> validation accuracy, where a pruner looked at it
        ("code_hash", pa.string()),
        ("space", pa.string()),  # JSON: the whole space it was drawn from
        ("preset", pa.string()),
        ("asked_at", TIME),
        ("told_at", TIME),
        ("schema_version", pa.int32()),
    ]
)
STUDIES = pa.schema(
    [
        ("study", pa.string()),
        ("preset", pa.string()),
        ("plan_hash", pa.string()),
        ("plan", pa.string()),  # JSON, see lnl.study.Study.plan
        ("submitted_at", TIME),
        ("git_commit", pa.string()),
        ("schema_version", pa.int32()),
    ]
)
EVENTS = pa.schema(
    [
        ("at", TIME),
        ("study", pa.string()),
        ("trial", pa.string()),
        ("kind", pa.string()),  # run_started | run_ended | retried | lost | failed | looked
        ("payload", pa.string()),  # JSON
        ("schema_version", pa.int32()),
    ]
)
TABLES = {
    "trials": TRIALS,
    "epochs": EPOCHS,
    "arrays": ARRAYS,
    "suggestions": SUGGESTIONS,
    "studies": STUDIES,
    "events": EVENTS,
}
PARTITIONED = ("trials", "epochs", "arrays", "suggestions")
PARTITION = pa.field("study", pa.string())  # their only partition key

FAILURES_THAT_ARE_OUTCOMES = ("nan",)  # the method's own doing: never retried, never dropped


class StorageError(RuntimeError):
    """Results could not be written or read; the message says what to do."""


def now() -> datetime:
    """With its time zone, UTC, as the tables store it."""
    return datetime.now(UTC)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def short_hash(text: str) -> str:
    """12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Path, write: Any) -> None:
    """Call `write(temporary_path)`, flush to disk and rename to `path`: readers see the whole file or none.

    Raises `StorageError` where the disk is full or the folder cannot be written; nothing half-written stays behind.
    """
    temporary = path.parent / f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError without a number
        raise _storage_error(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _storage_error(path: Path, error: Exception) -> StorageError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _free_bytes(path.parent) < 2**20:
        return StorageError(f"No space left to write {path}: free some, or give another --storage; then run again.")
    return StorageError(f"Cannot write {path} ({error}): check the folder's permissions; then run again.")


def _free_bytes(folder: Path) -> float:
    try:
        return float(psutil.disk_usage(str(folder)).free)
    except OSError:
        return float("inf")


def write_rows(path: Path, schema: pa.Schema, rows: Sequence[Mapping[str, Any]]) -> None:
    """One parquet file from row dictionaries; a key that the schema lacks is an error, a missing one is null."""
    names = set(schema.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"Columns that the schema lacks: {sorted(unknown)}.")
    filled = [{"schema_version": SCHEMA_VERSION, **row} for row in rows]
    table = pa.Table.from_pylist(filled, schema=schema)
    write_atomically(
        path, lambda temporary: pq.write_table(table, temporary, compression="zstd", write_page_checksum=True)
    )


@dataclass(frozen=True)
class Store:
    """The results folder.  Cheap to make; holds no open file."""

    root: Path

    def identity(self) -> str:
        """A random name of this folder, made on first use: processes that read the same name share the folder."""
        path = self.root / ".identity"
        with locked(self.root):
            if not path.exists():
                write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex))
        return path.read_text()

    def check_identity(self, expected: str) -> None:
        """Raise `StorageError` where this machine does not see the folder that `identity` named elsewhere."""
        if not (self.root / ".identity").exists() or self.identity() != expected:
            raise StorageError(
                f"{socket.gethostname()} does not see the results folder {self.root}: "
                "give a --storage that all nodes share."
            )

    def attempt_path(self, table: str, study: str, trial: str, attempt: int) -> Path:
        return self.root / table / f"study={study}" / f"{trial}-{attempt}.parquet"

    def write_attempt(
        self,
        study: str,
        row: Mapping[str, Any],
        epochs: Sequence[Mapping[str, Any]],
        arrays: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """The trial row comes last: one that exists always has its curve and its arrays."""
        trial, attempt = row["trial"], row["attempt"]
        if (path := self.attempt_path("trials", study, trial, attempt)).exists():
            raise StorageError(f"{path} is there already, and attempts are never overwritten: run again.")
        for table, rows in (("arrays", arrays), ("epochs", epochs)):
            if rows:
                write_rows(self.attempt_path(table, study, trial, attempt), TABLES[table], rows)
        write_rows(path, TRIALS, [row])

    def suggestion_path(self, study: str, search: str, number: int) -> Path:
        return self.root / "suggestions" / f"study={study}" / f"{short_hash(search)}-{number}.parquet"

    def write_suggestion(self, study: str, row: Mapping[str, Any]) -> None:
        write_rows(self.suggestion_path(study, row["search"], row["number"]), SUGGESTIONS, [row])

    def write_plan(self, row: Mapping[str, Any]) -> None:
        write_rows(self.root / "studies" / f"{row['study']}-{row['preset']}-{row['plan_hash']}.parquet", STUDIES, [row])

    def write_event(self, study: str, kind: str, trial: str | None = None, **payload: Any) -> None:
        at = now()
        path = self.root / "events" / f"{at:%Y%m%dT%H%M%S}-{kind}-{uuid.uuid4().hex[:12]}.parquet"
        write_rows(
            path, EVENTS, [{"at": at, "study": study, "trial": trial, "kind": kind, "payload": canonical(payload)}]
        )

    def checkpoint_path(self, trial: str) -> Path:
        return self.root / "checkpoints" / f"{trial}.pt"

    def lease_path(self, trial: str) -> Path:
        return self.root / "leases" / f"{trial}.json"

    def give_up(self, trial: str) -> None:
        """Tell the worker that trains it that it is stopped for good.  Raises `StorageError`."""
        try:
            self._mark(trial).touch()
        except OSError as error:
            raise _storage_error(self._mark(trial), error) from error

    def is_given_up(self, trial: str) -> bool:
        """Whether it was; the mark is gone after that."""
        if marked := self._mark(trial).exists():
            self._mark(trial).unlink(missing_ok=True)
        return marked

    def _mark(self, trial: str) -> Path:
        return self.root / "leases" / f"{trial}.pruned"

    @property
    def trained(self) -> Path:
        """Folder of trained prerequisites."""
        return self.root / "trained"

    def next_attempt(self, study: str, trial: str) -> int:
        """One more than the newest attempt that has a row, readable or not."""
        paths = (self.root / "trials" / f"study={study}").glob(f"{trial}-*.parquet")
        return 1 + max((int(path.stem.rpartition("-")[2]) for path in paths), default=0)

    # ------------------------------------------------------------------------------------------------------ reading

    def read(
        self,
        table: str,
        study: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Any = None,
        *,
        files: str = "*",
    ) -> tuple[pd.DataFrame, list[Path]]:
        """All readable parts of a table (of those whose files are named so), and the parts that could not be read.

        `filters` are (column, operator, value) that all must hold.  Unwanted columns are never decoded; those that an
        older file lacks read as null.
        """
        schema = TABLES[table]
        folder = self.root / table
        if study is not None and table in PARTITIONED:
            folder = folder / f"study={study}"
        paths = sorted(path for path in folder.rglob(f"{files}.parquet") if not path.name.startswith("."))
        partitioned = table in PARTITIONED
        wanted = list(columns) if columns is not None else [*(["study"] if partitioned else []), *schema.names]
        inside = [name for name in wanted if not (partitioned and name == "study")] or schema.names[:1]  # rows to count
        parts, broken = [], []
        for path in paths:
            try:
                part = _read_part(path, schema, inside, filters)
            except (OSError, UnicodeDecodeError, pa.ArrowException):
                broken.append(path)
                continue
            if partitioned and "study" in wanted:
                name = path.parent.name.removeprefix("study=")
                part = part.append_column(PARTITION, pa.array([name] * part.num_rows, pa.string()))
            parts.append(part)
        fields = [PARTITION if partitioned and name == "study" else schema.field(name) for name in wanted]
        if not parts:
            return pa.schema(fields).empty_table().to_pandas(), broken
        joined = pa.concat_tables([part.select(wanted) for part in parts])
        return joined.to_pandas(), broken

    def plans(self, study: str | None = None) -> pd.DataFrame:
        """Submitted plans, oldest first."""
        frame, _ = self.read("studies")
        if study is not None:
            frame = frame[frame["study"] == study]
        return frame.sort_values("submitted_at", ignore_index=True)


def _read_part(path: Path, schema: pa.Schema, names: Sequence[str], filters: Any) -> pa.Table:
    """The named columns of one file, of the rows that pass the filters."""
    needed = list(dict.fromkeys([*names, *(column for column, _, _ in filters or [])]))
    part = pq.ParquetFile(path, page_checksum_verification=True).read(columns=needed)
    columns = []
    for name in needed:
        kind = schema.field(name).type
        columns.append(part[name].cast(kind) if name in part.column_names else pa.nulls(part.num_rows, kind))
    table = pa.table(columns, schema=pa.schema([schema.field(name) for name in needed]))
    return table.filter(pq.filters_to_expression(filters)).select(list(names)) if filters else table


def latest(trials: pd.DataFrame) -> pd.DataFrame:
    """One row per trial: its newest finished attempt (`ok`, or failed as an outcome), else its newest."""
    if trials.empty:
        return trials
    rank = is_outcome(trials).astype(int)
    order = trials.assign(_rank=rank).sort_values(["_rank", "attempt"], kind="stable")
    return order.groupby("trial", sort=False).tail(1).drop(columns="_rank").sort_index()


def is_outcome(trials: pd.DataFrame) -> pd.Series:
    """True where a trial is finished: it trained to its end, or the method itself diverged."""
    return (trials["status"] == "ok") | trials["failure_class"].isin(FAILURES_THAT_ARE_OUTCOMES)


def counting(suggestions: pd.DataFrame, budget: int) -> pd.DataFrame:
    """Of one search's suggestions those that count: the first `budget` by number that are complete or pruned."""
    return suggestions[suggestions["state"].isin(["complete", "pruned"])].sort_values("number").head(budget)


def selection_rules(test: Sequence[float], validation: Sequence[float] | None = None) -> dict[str, float | int | None]:
    """The four selection rules from per-epoch accuracies, in epoch order.

    `last`: the last epoch.  `last10`: mean of the last ten.  `val_selected`: the first epoch with the best validation
    accuracy (null without a validation set).  `best_test`: the maximum over test accuracies, an oracle.
    """
    scores = np.asarray(test, dtype=float)
    if len(scores) == 0:
        return {}
    picked = None
    held = np.asarray([] if validation is None else validation, dtype=float)
    if len(held) not in (0, len(scores)):
        raise ValueError(f"{len(scores)} test accuracies but {len(held)} of validation: give one of each an epoch.")
    if not np.isnan(held).all():
        picked = int(np.nanargmax(held))
    return {
        "accuracy_last": float(scores[-1]),
        "accuracy_last10": float(scores[-10:].mean()),
        "accuracy_val_selected": None if picked is None else float(scores[picked]),
        "epoch_val_selected": None if picked is None else picked + 1,
        "accuracy_best_test": float(np.nanmax(scores)) if not np.isnan(scores).all() else float("nan"),
    }


# ----------------------------------------------------------------------------------------------------------- leases

HEARTBEAT_S = 5.0
EXPIRY_S = 60.0


def _this_host() -> str:
    """Name of this machine's process space: a container with its own processes is another host."""
    space = os.readlink("/proc/self/ns/pid") if os.path.exists("/proc/self/ns/pid") else ""
    return f"{socket.gethostname()}/{psutil.boot_time():.0f}/{space}"


@dataclass
class Lease:
    """The right to train one trial, held by one process.

    A file made under a lock; its modification time is the heartbeat.  It lapses when its process is gone (seen at
    once on the same host) or when the heartbeat is older than `EXPIRY_S` (another host).  Use as a context manager.
    """

    path: Path
    token: str
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def __enter__(self) -> Lease:
        threading.Thread(target=self._beat, daemon=True, name=f"lease {self.path.stem}").start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with locked(self.path.parent):
            if (record := _read_lease(self.path)) and record["token"] == self.token:
                self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):  # a moment without the shared folder must not end the heartbeat
                os.utime(self.path)


def claim(store: Store, trial: str, **about: Any) -> tuple[Lease | None, dict[str, Any] | None]:
    """Try to take a trial's lease: (lease, a dead holder's record or None), or (None, the living holder's record)."""
    path = store.lease_path(trial)
    process = psutil.Process()
    with locked(path.parent):
        previous = _read_lease(path)
        if previous is not None and _alive(path, previous):
            return None, previous
        token = uuid.uuid4().hex
        record = {
            "token": token,
            "host": _this_host(),
            "pid": process.pid,
            "born": process.create_time(),
            "since": now().isoformat(),
            **about,
        }
        write_atomically(path, lambda temporary: temporary.write_text(canonical(record)))
    return Lease(path, token), previous


def leases(store: Store) -> dict[str, dict[str, Any]]:
    """Trial -> record of its lease, with `alive`."""
    found = {}
    for path in (store.root / "leases").glob("*.json"):
        if record := _read_lease(path):
            found[path.stem] = {**record, "alive": _alive(path, record)}
    return found


def is_held(store: Store, trial: str) -> bool:
    """Whether a living process holds the trial's lease."""
    path = store.lease_path(trial)
    record = _read_lease(path)
    return record is not None and _alive(path, record)


def _read_lease(path: Path) -> dict[str, Any] | None:
    try:
        record = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and {"token", "host", "pid", "born"} <= record.keys() else None


def _alive(path: Path, record: Mapping[str, Any]) -> bool:
    if record["host"] == _this_host():
        try:
            process = psutil.Process(record["pid"])
            ended = process.status() == psutil.STATUS_ZOMBIE  # its parent has not asked for its end yet
            return not ended and abs(process.create_time() - record["born"]) < 1.0
        except psutil.NoSuchProcess:
            return False
    try:
        return time.time() - path.stat().st_mtime < EXPIRY_S
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time; the system frees the lock of a process that dies.  Raises `StorageError`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "a")
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        raise _storage_error(folder / ".lock", error) from error
    with file:
        yield

"""Results on disk: the parquet schema, an atomic writer, a tolerant reader, selection rules and leases.

Layout below one root (the `--storage` of every command): a folder, here or shared, or s3://bucket/prefix:

    trials/study=<study>/<trial>-<attempt>.parquet    one wide row per attempt
    epochs/study=<study>/<trial>-<attempt>.parquet    long rows: trial, epoch, split, metric, value
    arrays/study=<study>/<trial>-<attempt>.parquet    what figures need: histograms, mixtures, matrices, embeddings
    suggestions/study=<study>/<search>-<number>.parquet   one row per suggestion of a search, see lnl.search
    studies/<study>-<preset>-<plan>.parquet           every plan that was submitted, as JSON
    events/<time>-<kind>-<uuid>.parquet               append-only log, one row per file
    trials/study=<study>/.joined                      a copy of the rows beside it, to read thousands of them fast
    logs/study=<study>/<trial>-<attempt>.txt          what an attempt printed and its traceback, where there is any
    trained/<trial>-<hash>.pt                         prerequisites of other trials as they ended, or why they diverged
    trained/<trial>-<hash>.labels                     what one that is a teacher says of all training images
    checkpoints/study=<study>/<trial>.pt              working files of trials that have not finished, see
    leases/study=<study>/<trial>.json                 lnl.checkpoints and `Lease`; each study has its own

Rules: an explicit schema on every write and read; one writer per file; a file appears whole or not at all (written
under a dot-prefixed name in the same folder, flushed to disk, then renamed; on object storage by one PUT); attempts
are never overwritten; a part that cannot be read, or whose name is not that of its rows, is reported and skipped.
Accuracies are fractions.  Nothing here imports torch or Ray, so notebooks can read results anywhere.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import random
import re
import shlex
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lnl import machine, objects, processes
from lnl.filenames import file_name
from lnl.files import is_no_file, listed, lock_file, printable, read_file, reason, shown
from lnl.logs import mask
from lnl.objects import ObjectPath, StorageError

logger = logging.getLogger(__name__)

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
        ("classes", pa.int32()),  # K of the data set
        ("parameters", pa.int64()),
        ("data_hash", pa.string()),  # of the data set's images and labels
        ("sources_hash", pa.string()),  # of all data behind the trial: its data set, human labels, prerequisites' data
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
        ("peak_memory_mb", pa.float64()),  # accelerator memory that the process held; null on CPU
        ("device_memory_mb", pa.float64()),  # that the accelerator has; null on CPU
        ("device", pa.string()),
        ("cpus", pa.float64()),
        ("gpus", pa.float64()),
        ("host", pa.string()),
        ("code_hash", pa.string()),  # of the code that can change its numbers, see `lnl.code_hash`
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
        ("sources_hash", pa.string()),  # of the data behind its trials, as in trials
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
        ("current", pa.string()),  # JSON: the code and data that its trials would use when it was submitted
        ("submitted_at", TIME),
        (
            "first_submitted_at",
            TIME,
        ),  # of the same plan; null where an earlier version submitted it
        ("git_commit", pa.string()),
        ("sequence", pa.int64()),  # 1, 2, … within the study, see `by_submission`; null in older files
        ("schema_version", pa.int32()),
    ]
)
EVENTS = pa.schema(
    [
        ("at", TIME),
        ("study", pa.string()),
        ("trial", pa.string()),
        ("kind", pa.string()),  # run_started | run_resized | run_ended | retried | lost | failed | looked
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
_ATTEMPT = ("trial", "attempt")
PART_KEYS = {  # what names a part: all of its rows have the same
    "trials": _ATTEMPT,
    "epochs": _ATTEMPT,
    "arrays": _ATTEMPT,
    "suggestions": ("search", "number"),
    "studies": ("study", "preset", "plan_hash"),
    "events": ("at", "kind"),
}
ROW_KEYS = PART_KEYS | {  # what no two rows of a table have in common
    "epochs": (*_ATTEMPT, "epoch", "split", "metric"),
    "arrays": (*_ATTEMPT, "epoch", "split", "name"),
    "events": ("at", "study", "trial", "kind", "payload"),
}
TWICE = "rows that are there twice count once"  # of a part whose other rows count
PARTITIONED = ("trials", "epochs", "arrays", "suggestions")
PARTITION = pa.field("study", pa.string())  # their only partition key
PART, STAMP = pa.field("part", pa.string()), pa.field("stamp", pa.string())  # of a joined file: whose rows, and when

# Columns, and fields of an event, whose text is for people and may quote anything: secrets are masked there, and only
# there, for no code reads them back.
SPOKEN = ("failure_message", "message", "reason", "stopped")
FAILURES_THAT_ARE_OUTCOMES = ("nan",)  # the method's own doing: never retried, never dropped
CLASSES = {"digits": 10, "cifar10": 10, "stl10": 10, "cifar100": 100}  # for rows that were written without theirs


Place = Path | ObjectPath


def place(text: str | Path | ObjectPath) -> Place:
    """Where results are: an absolute folder, or a prefix on S3-compatible storage.  Raises `ValueError`."""
    if isinstance(text, ObjectPath):
        return text
    if str(text).startswith(f"{objects.SCHEME}:/"):
        return objects.parse(str(text))
    if "://" in str(text):
        raise ValueError(
            "A storage is a folder or s3://bucket/prefix, and no other address: other clouds have an S3-compatible "
            "endpoint, too (AWS_ENDPOINT_URL)."
        )
    return machine.expanded(text).resolve()


STORAGE = "results"  # below the current folder, where neither a flag nor a variable says another place


def default_storage() -> str:
    """Where commands without `--storage` look for results."""
    return os.environ.get("LNL_STORAGE", STORAGE)


def storage_flag(root: Place) -> str:
    """What a command needs to look there, too, whoever gives it later: the variable need not be set for them."""
    here = "LNL_STORAGE" not in os.environ and root == place(STORAGE)
    return "" if here else f" --storage {shlex.quote(str(root))}"


def now() -> datetime:
    """With its time zone, UTC, as the tables store it."""
    return datetime.now(UTC)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def partition(study: str) -> str:
    """The folder of a study's rows, below that of their table."""
    return f"study={file_name(study)}"


def attempt_name(trial: str, attempt: int) -> str:
    """Of an attempt's files, without their ending."""
    return f"{trial}-{attempt}"


def parse_attempt(name: str) -> tuple[str, int] | None:
    """Trial and attempt of a name that `attempt_name` made; None for any other."""
    trial, _, attempt = name.rpartition("-")
    return (trial, int(attempt)) if re.fullmatch("[1-9][0-9]*", attempt) and trial else None


def part_name(table: str, *key: Any) -> str:
    """How a part with rows of this key (see `PART_KEYS`) is called, without its ending; of events how that begins."""
    if table == "suggestions":
        search, number = key
        return f"{short_hash(search)}-{number}"
    if table == "events":
        at, kind = key
        return f"{at:%Y%m%dT%H%M%S}-{kind}-"
    if table == "studies":
        study, preset, plan_hash = key
        return f"{file_name(f'{study}-{preset}')}-{plan_hash}"
    return attempt_name(*key)


def holds_many(stem: str) -> bool:
    """Whether a part of this name, which has no dash, may hold rows of any key."""
    return "-" not in stem


def _is_named(table: str, stem: str, *key: Any) -> bool:
    """Whether rows of this key belong into a part of this name: copies of parts and foreign parts are told so."""
    if holds_many(stem):
        return True
    if None in key:
        return False
    name = part_name(table, *key)
    if table == "events":
        return stem.startswith(name) and re.fullmatch("[0-9a-f]{12}", stem.removeprefix(name)) is not None
    return stem == name or (table == "studies" and stem == "-".join(map(str, key)))  # as earlier versions named plans


def short_hash(text: str) -> str:
    """12 hex digits."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


# ---------------------------------------------------------------------------------------------------------- writing


def write_atomically(path: Place, write: Any, *, once: bool = False) -> None:
    """Call `write(temporary_path)`, flush to disk and rename to `path`: readers see the whole file or none.

    Object storage gets the whole file in one PUT.  `once`: only where none has that name, whoever else writes.
    Raises `StorageError` where the disk is full or the place cannot be written; nothing half-written stays behind.
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
            raise _there_already(path)
    except StorageError:
        raise
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError without a number
        raise _storage_error(path, error) from error
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


def _put(path: ObjectPath, write: Any, once: bool) -> None:
    with processes.scratch("put") as folder:
        temporary = folder / path.name
        try:
            write(temporary)
            content = temporary.read_bytes() if once else b""
        except (OSError, RuntimeError) as error:
            raise _storage_error(temporary, error) from error
        if not once:
            path.upload(temporary)
        elif path.exchange(content, None) is None:
            raise _there_already(path)


class Overtaken(StorageError):
    """Somebody else has written this attempt's row."""


def _there_already(path: Place) -> Overtaken:
    return Overtaken(f"{path} is there already, and attempts are never overwritten: run again.")


def _storage_error(path: Path, error: Exception) -> StorageError:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _free_bytes(path.parent) < 2**20:
        return StorageError(f"No space left to write {path}: free some, or give another --storage; then run again.")
    return StorageError(f"Cannot write {path} ({error}): check the folder's permissions; then run again.")


def _free_bytes(folder: Path) -> float:
    try:
        return float(psutil.disk_usage(str(folder)).free)
    except OSError:
        return float("inf")


def write_rows(path: Place, schema: pa.Schema, rows: Sequence[Mapping[str, Any]], *, once: bool = False) -> None:
    """One parquet file from row dictionaries; a key that the schema lacks is an error, a missing one is null."""
    names = set(schema.names)
    for row in rows:
        if unknown := set(row) - names:
            raise KeyError(f"Columns that the schema lacks: {sorted(unknown)}.")
    spoken = [name for name in SPOKEN if name in names]
    filled = [
        {
            "schema_version": SCHEMA_VERSION,
            **row,
            **{name: printable(mask(row[name])) for name in spoken if row.get(name)},
        }
        for row in rows
    ]
    table = pa.Table.from_pylist(filled, schema=schema)
    # pages of one value: codecs, dictionaries and statistics are most of such a file, and of the time to read it
    one_row = {"compression": "none", "use_dictionary": False, "write_statistics": False, "store_schema": False}
    _write_table(path, table, once=once, **(one_row if len(rows) == 1 else {}))


def _write_table(path: Place, table: pa.Table, *, once: bool = False, **options: Any) -> None:
    options = {"compression": "zstd", "write_page_checksum": True, **options}

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:  # pyarrow itself opens no name that is not UTF-8
            pq.write_table(table, file, **options)

    write_atomically(path, write, once=once)


@dataclass(frozen=True)
class Store:
    """The results folder.  Cheap to make; holds no open file."""

    root: Place

    def within(self, path: Place) -> str:
        """A path of this store as messages name it."""
        return path.as_posix().removeprefix(f"{self.root.as_posix()}/")

    def identity(self) -> str:
        """A random name of this folder, made on first use: processes that read the same name share the folder."""
        if (name := self.known_identity()) is None:
            if isinstance(self.root, ObjectPath):
                self.root.check_conditions()
            _exchange(self.root / ".identity", uuid.uuid4().hex, None)
            name = self.known_identity()
        return name or ""

    def known_identity(self) -> str | None:
        """The folder's name, if it has one.  Raises `StorageError` where that cannot be read."""
        path = self.root / ".identity"
        try:
            name = read_file(path).decode(errors="replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(path, reason(error)) from error
        if not re.fullmatch("[0-9a-f]{32}", name):
            raise _unreadable(path, "it holds no name of a results folder")
        return name

    def check_identity(self, expected: str) -> None:
        """Raise `StorageError` where this machine does not see the folder that `identity` named elsewhere."""
        if self.known_identity() != expected:
            raise StorageError(
                f"{socket.gethostname()} does not see the results folder {self.root}: "
                "give a --storage that all nodes share."
            )

    def attempt_path(self, table: str, study: str, trial: str, attempt: int) -> Place:
        return self.root / table / partition(study) / f"{attempt_name(trial, attempt)}.parquet"

    def log_path(self, study: str, trial: str, attempt: int) -> Place:
        return self.root / "logs" / partition(study) / f"{attempt_name(trial, attempt)}.txt"

    def write_log(self, study: str, trial: str, attempt: int, text: str) -> None:
        """What an attempt said; without secrets, see `lnl.logs`."""
        path, content = self.log_path(study, trial, attempt), printable(mask(text)).encode()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

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
            raise _there_already(path)
        for table, rows in (("arrays", arrays), ("epochs", epochs)):
            if rows:
                write_rows(self.attempt_path(table, study, trial, attempt), TABLES[table], rows)
        write_rows(path, TRIALS, [row], once=True)

    def suggestion_path(self, study: str, search: str, number: int) -> Place:
        return self.root / "suggestions" / partition(study) / f"{part_name('suggestions', search, number)}.parquet"

    def write_suggestion(self, study: str, row: Mapping[str, Any]) -> None:
        write_rows(self.suggestion_path(study, row["search"], row["number"]), SUGGESTIONS, [row])

    def write_plan(self, row: Mapping[str, Any]) -> None:
        """It becomes the newest of its study, whatever the clocks of those say that wrote the others.

        The same plan again keeps the time at which it was submitted first: contrasts were declared then.
        """
        folder = self.root / "studies"
        name = part_name("studies", *(row[key] for key in PART_KEYS["studies"]))
        with locked(folder):
            columns = ["plan_hash", "preset", "sequence", "submitted_at", "first_submitted_at"]
            of_study = [("study", "==", row["study"])]
            known, _ = self.read("studies", columns=columns, filters=of_study, files=f"{row['study']}-*")
            newest = known["sequence"].max()
            same = known[(known["plan_hash"] == row["plan_hash"]) & (known["preset"] == row["preset"])]
            first = row.get("submitted_at") if same.empty else same["first_submitted_at"].iloc[0]
            about = {
                "sequence": 1 + (0 if pd.isna(newest) else int(newest)),
                "first_submitted_at": None if pd.isna(first) else first,
            }
            write_rows(folder / f"{name}.parquet", STUDIES, [{**row, **about}])

    def write_event(self, study: str, kind: str, trial: str | None = None, **payload: Any) -> None:
        at = now()
        path = self.root / "events" / f"{part_name('events', at, kind)}{uuid.uuid4().hex[:12]}.parquet"
        about = {"at": at, "study": study, "trial": trial, "kind": kind}
        spoken = {name: mask(payload[name]) for name in SPOKEN if payload.get(name)}
        write_rows(path, EVENTS, [{**about, "payload": printable(canonical({**payload, **spoken}))}])

    def checkpoint_path(self, study: str, trial: str) -> Place:
        return self.root / "checkpoints" / partition(study) / f"{trial}.pt"

    def lease_path(self, study: str, trial: str) -> Place:
        return self.root / "leases" / partition(study) / f"{trial}.json"

    def give_up(self, study: str, trial: str) -> None:
        """Tell the worker that trains it that it is stopped for good.  Raises `StorageError`."""
        write_atomically(self._mark(study, trial), Path.touch)

    def is_given_up(self, study: str, trial: str) -> bool:
        """Whether it was; the mark is gone after that."""
        if marked := (mark := self._mark(study, trial)).exists():
            mark.unlink(missing_ok=True)
        return marked

    def tidy(self, study: str, trial: str) -> None:
        """Remove the working files of a trial that is finished, also half-written ones of a worker that was killed."""
        checkpoint = self.checkpoint_path(study, trial)
        checkpoint.unlink(missing_ok=True)
        if isinstance(checkpoint, Path):
            for half in checkpoint.parent.glob(f".{checkpoint.name}.*.tmp"):
                half.unlink(missing_ok=True)
        self._mark(study, trial).unlink(missing_ok=True)

    def _mark(self, study: str, trial: str) -> Place:
        return self.lease_path(study, trial).with_suffix(".pruned")

    @property
    def trained(self) -> Place:
        """Folder of trained prerequisites."""
        return self.root / "trained"

    def next_attempt(self, study: str, trial: str) -> int:
        """One more than the newest attempt that has a part of its name, readable or not."""
        stems = [path.stem for path in listed(self.root / "trials" / partition(study), f"{trial}-*.parquet")]
        return 1 + max((known[1] for stem in stems if (known := parse_attempt(stem))), default=0)

    def logs(self, study: str) -> tuple[dict[str, Place], list[Place]]:
        """Name of an attempt -> its log; and what lies beside these under another name."""
        paths = listed(self.root / "logs" / partition(study), "*.txt")
        known = {path.stem: path for path in paths if parse_attempt(path.stem)}
        return known, [path for path in paths if path.stem not in known and not path.name.startswith(".")]

    # ------------------------------------------------------------------------------------------------------ reading

    def read(
        self,
        table: str,
        study: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Any = None,
        *,
        files: str | Collection[str] = "*",
        check: bool = False,
    ) -> tuple[pd.DataFrame, LeftOut]:
        """All readable parts of a table, and the parts that are left out, with what is wrong with each.

        A part's name agrees with its rows (see `part_name`), so that copies of it, and parts of others, never count.
        `filters` are (column, operator, value) that all must hold; `files`: only parts named so, a pattern or names
        without their ending (beside these, files of many attempts: those whose name has no dash).  Unwanted columns
        are never decoded; those that an older file lacks read as null, those that only a newer one knows are left out
        with a warning.  `check`: open every file, also those whose rows are known.
        """
        folder = self.root / table
        if study is not None and table in PARTITIONED:
            folder = folder / partition(study)
        pattern, named = (files, None) if isinstance(files, str) else ("*", set(files))
        flat = study is not None or table not in PARTITIONED
        paths = [
            path
            for path in listed(folder, f"{pattern}.parquet", deep=not flat)
            if not path.name.startswith(".") and (named is None or path.stem in named or holds_many(path.stem))
        ]
        schema = TABLES[table].insert(0, PARTITION) if table in PARTITIONED else TABLES[table]
        wanted = pa.schema([schema.field(name) for name in (schema.names if columns is None else columns)])
        found: list[_Found] = [([wanted.empty_table()], 0, {})]
        many = [path for path in paths if holds_many(path.stem)]
        if table == "trials" and files == "*" and not check and not many:
            for place, inside in groupby(paths, key=lambda path: path.parent):
                rows, unknown = _joined(place, list(inside))
                found.append(([_chosen(rows, wanted, filters)], _newest(rows["schema_version"]), {}))
                found += _read_all(unknown, table, wanted, filters)
        else:
            found += _read_all([path for path in paths if not holds_many(path.stem)], table, wanted, filters)
            own = set(paths).difference(many, *(broken for _, _, broken in found))
            found += _read_many(many, own, table, wanted, filters)
        tables, versions, broken = zip(*found, strict=True)
        if (newest := max(versions)) > SCHEMA_VERSION:
            warnings.warn(
                f"Some files below {folder} were written by a newer version of lnl (their schema is {newest}, this "
                f"version knows {SCHEMA_VERSION}): what it does not know in them is left out until you update it.",
                stacklevel=2,
            )
        joined = pa.concat_tables(chain.from_iterable(tables)).combine_chunks()
        return joined.to_pandas(), dict(sorted(chain.from_iterable(left.items() for left in broken)))

    def plans(self, study: str | None = None) -> pd.DataFrame:
        """Submitted plans, oldest first."""
        frame, broken = self.read("studies")
        tell_left_out(broken)
        if study is not None:
            frame = frame[frame["study"] == study]
        return by_submission(frame).reset_index(drop=True)


def by_submission(plans: pd.DataFrame) -> pd.DataFrame:
    """Plans, oldest first: by their number within the study, which no clock moves; those without it first, by time."""
    numbered = plans.assign(_sequence=plans["sequence"].astype("float64").fillna(0.0))
    return numbered.sort_values(["_sequence", "submitted_at"], kind="stable").drop(columns="_sequence")


LeftOut = dict[Place, str]  # parts -> why they, or some of their rows, are left out, to stand within a sentence
_Found = tuple[list[pa.Table], int, LeftOut]  # rows, the newest schema version, what is left out


def tell_left_out(parts: LeftOut) -> None:
    """Where rows are read that nobody gets to see as such; each part once per process."""
    for path, why in parts.items():
        _tell(path, why)


@cache
def _tell(path: Place, why: str) -> None:
    logger.warning("%s is left out (%s): see `lnl doctor`.", shown(path), why)


def _unreadable(path: Place, why: str) -> StorageError:
    return StorageError(f"{shown(path)} cannot be read ({why}): remove it; then run again.")


UNREADABLE = (OSError, KeyError, UnicodeDecodeError, pa.ArrowException)  # of damaged files; KeyError: of their columns
TOGETHER = 50  # parts that a thread reads at once: thousands of small tables that live together are slow to make
REQUESTS = 32  # objects that are asked for at once: a thread waits for most of its time
JOINED = ".joined"  # not .parquet: other readers, such as DuckDB, would count its rows again
MANY = 200  # parts that are not in the joined file yet, and make it worth writing anew


def _read_all(paths: Sequence[Place], table: str, wanted: pa.Schema, filters: Any) -> list[_Found]:
    """As `_read_parts`, in threads."""
    read = partial(_read_parts, table=table, wanted=wanted, filters=filters)
    far = any(isinstance(path, ObjectPath) for path in paths[:1])
    together = max(1, min(TOGETHER, len(paths) // REQUESTS)) if far else TOGETHER
    groups = [paths[start : start + together] for start in range(0, len(paths), together)]
    with ThreadPoolExecutor(REQUESTS if far else pa.cpu_count()) as pool:
        return list(pool.map(read, groups))


def _joined(folder: Place, paths: Sequence[Place]) -> tuple[pa.Table, list[Place]]:
    """The rows of a folder's trials that its joined file holds as they are, and the parts to be read one by one.

    The joined file is a copy and never the record: a part counts by its name, size and time of change, and where many
    are not in it, it is written anew.  Without it, or where it cannot be written, everything takes longer and is the
    same.
    """
    stamps = {}
    for path in paths:
        with contextlib.suppress(OSError):  # such as removed since it was listed: that is told where it is opened
            about = path.stat()
            stamps[path.name] = f"{about.st_size}-{about.st_mtime_ns}"
    known = _known(folder / JOINED, stamps)
    unknown = _others(paths, known)
    if len(unknown) > MANY:
        read = [part for parts, *_ in _read_all(unknown, "trials", TRIALS.append(PART), None) for part in parts]
        fresh = pa.concat_tables(read) if read else known.select([*TRIALS.names, PART.name]).slice(0, 0)
        stamp = pa.array([stamps.get(name) for name in fresh[PART.name].to_pylist()], pa.string())
        known = pa.concat_tables([known, fresh.append_column(STAMP, stamp)]).combine_chunks()
        with contextlib.suppress(StorageError):
            _write_table(folder / JOINED, known)
        unknown = _others(paths, known)  # those that cannot be read
    study = pa.array([folder.name.removeprefix("study=")] * len(known), pa.string())
    return known.append_column(PARTITION, study), unknown


def _known(path: Place, stamps: Mapping[str, str]) -> pa.Table:
    """The rows of a joined file whose parts are as they were; none where it is absent, damaged or of another schema."""
    schema = TRIALS.append(PART).append(STAMP)
    try:
        rows = pq.ParquetFile(pa.BufferReader(read_file(path)), page_checksum_verification=True).read()
    except UNREADABLE:
        return schema.empty_table()
    if not rows.schema.equals(schema):
        return schema.empty_table()
    columns = zip(*(rows[name].to_pylist() for name in (PART.name, STAMP.name, *_ATTEMPT)), strict=True)
    good = [
        stamps.get(name) == stamp and _is_named("trials", name.removesuffix(".parquet"), *key)
        for name, stamp, *key in columns
    ]
    return rows.filter(pa.array(good, pa.bool_()))


def _others(paths: Sequence[Place], rows: pa.Table) -> list[Place]:
    there = set(rows[PART.name].to_pylist())
    return [path for path in paths if path.name not in there]


def _read_parts(paths: Sequence[Place], table: str, wanted: pa.Schema, filters: Any) -> _Found:
    """The wanted columns of the rows that pass, the newest schema version, and the files that are left out."""
    inside = _needed(table, wanted, filters, PART_KEYS[table])
    parts: list[tuple[Place, pa.Table]] = []
    broken: LeftOut = {}
    for path in paths:
        try:
            parts.append((path, _read_part(path, inside, table)))
        except UNREADABLE as error:
            broken[path] = reason(error)
    return (*_together(parts, table, wanted, filters), broken)


def _read_many(
    paths: Sequence[Place], taken: set[Place], table: str, wanted: pa.Schema, filters: Any
) -> Iterator[_Found]:
    """As `_read_parts`, of files of many attempts; `taken`: parts of one attempt, whose rows count before theirs."""
    inside = _needed(table, wanted, filters, ROW_KEYS[table])
    for path in paths:
        try:
            part = _read_part(path, inside, table)
        except UNREADABLE as error:
            yield [], 0, {path: reason(error)}
            continue
        twice = _twice(part, path, table, taken)
        parts = [(path, part.filter(pa.array(~twice)) if twice.any() else part)]
        broken = {path: f"{twice.sum()} of its rows; {TWICE}"} if twice.any() else {}
        yield (*_together(parts, table, wanted, filters), broken)


def _twice(part: pa.Table, path: Place, table: str, taken: set[Place]) -> np.ndarray:
    """Which rows of a file of many attempts are there before, in this one or in another, which `taken` grows by."""
    rows = part.select(ROW_KEYS[table]).to_pandas()
    twice = rows.duplicated().to_numpy(copy=True)
    for key, inside in rows.groupby(list(PART_KEYS[table]), sort=False).indices.items():
        own = path.parent / f"{part_name(table, *key)}.parquet"
        twice[inside] |= own in taken
        taken.add(own)
    return twice


def _needed(table: str, wanted: pa.Schema, filters: Any, keys: Sequence[str]) -> pa.Schema:
    names = {*keys, *wanted.names, *(column for column, _, _ in filters or []), "schema_version"}
    return pa.schema([field for field in TABLES[table] if field.name in names])


def _together(
    parts: Sequence[tuple[Place, pa.Table]], table: str, wanted: pa.Schema, filters: Any
) -> tuple[list[pa.Table], int]:
    """The wanted columns of the rows that pass, and the newest schema version."""
    if not parts:
        return [], 0
    rows = pa.concat_tables(part for _, part in parts)
    if table in PARTITIONED and PARTITION.name in wanted.names:
        studies = [path.parent.name.removeprefix("study=") for path, _ in parts]
        rows = rows.append_column(PARTITION, pa.array(np.repeat(studies, [part.num_rows for _, part in parts])))
    if PART.name in wanted.names:
        names = [path.name for path, _ in parts]
        rows = rows.append_column(PART, pa.array(np.repeat(names, [part.num_rows for _, part in parts])))
    return [_chosen(rows, wanted, filters)], _newest(rows["schema_version"])


def _chosen(rows: pa.Table, wanted: pa.Schema, filters: Any) -> pa.Table:
    if filters:
        rows = rows.filter(pq.filters_to_expression(filters))
    return rows.select(wanted.names).combine_chunks()


def _read_part(path: Place, inside: pa.Schema, table: str) -> pa.Table:
    """These columns of one file, null where it lacks them.

    Raises where it is damaged, empty or of another kind, and where its name is not that of its rows.
    """
    known = TABLES[table]
    # all bytes at once: a seek for each column takes longer; and the caller has threads
    file = pq.ParquetFile(pa.BufferReader(read_file(path)), page_checksum_verification=True)
    part = file.read(columns=inside.names, use_threads=False)
    if not part.schema.equals(inside) or not part.num_rows:
        part = _fitted(part, file.schema_arrow.names, inside, known)
    if not holds_many(path.stem):
        keys = [part[name].unique().to_pylist() for name in PART_KEYS[table]]
        if any(len(values) != 1 for values in keys) or not _is_named(table, path.stem, *(key for (key,) in keys)):
            raise pa.ArrowInvalid("its name is not that of its rows")
    return part


def _fitted(part: pa.Table, names: Sequence[str], inside: pa.Schema, known: pa.Schema) -> pa.Table:
    present = set(part.column_names)
    newer = "schema_version" in present and _newest(part["schema_version"].cast(pa.int32())) > SCHEMA_VERSION
    renamed = not present.issuperset(inside.names) and not set(known.names).issuperset(names)
    if part.num_rows == 0 or known.names[0] not in present or (renamed and not newer):  # no checksum guards the names
        raise pa.ArrowInvalid("it holds no rows of this table")
    columns = [
        part[field.name].cast(field.type) if field.name in present else pa.nulls(part.num_rows, field.type)
        for field in inside
    ]
    return pa.table(columns, schema=inside)


def _newest(versions: pa.ChunkedArray) -> int:
    return pc.max(versions).as_py() or 0


class Sources(NamedTuple):
    """The code and the data that a trial would use now, as hashes; None: not known on this machine."""

    code_hash: str
    data_hash: str | None
    sources_hash: str | None


def sources_text(current: Mapping[str, Sources]) -> str:
    """What trials and searches would use, as JSON: each distinct triple of hashes once, and which of them each uses."""
    distinct = list(dict.fromkeys(current.values()))
    place = {sources: index for index, sources in enumerate(distinct)}
    return canonical({"sources": distinct, "of": {name: place[sources] for name, sources in current.items()}})


def sources_from(text: str | None) -> dict[str, Sources]:
    """What `sources_text` wrote; nothing where a plan of an earlier version has none."""
    if not isinstance(text, str):
        return {}
    record = json.loads(text)
    distinct = [Sources(*hashes) for hashes in record["sources"]]
    return {name: distinct[place] for name, place in record["of"].items()}


CHANGED_CODE, CHANGED_DATA, CHANGED_SOURCES = "code", "data set", "human labels or prerequisites' data"
CHANGED_RULE = "rule for comparing code"  # an earlier version hashed other parts of it: whether it changed is not known
BY_CODE = (CHANGED_CODE, CHANGED_RULE)  # reasons that leave the data as they are


def why_stale(trials: pd.DataFrame, current: Mapping[str, Sources]) -> pd.Series:
    """What has changed since each attempt ran, one of `CHANGED_…`; empty where nothing has that is known of.

    `current`: of trials, what they would use now.  An attempt whose row lacks a hash (it diverged in its first epoch,
    or was written by an earlier version) is judged by those that it has.  Rows of data come before code: numbers of
    other data never stand beside current ones, those of other code may.
    """
    now = [current.get(trial) for trial in trials["trial"]]
    reason = pd.Series("", trials.index, dtype=object)
    for name, why in (
        ("code_hash", CHANGED_CODE),
        ("sources_hash", CHANGED_SOURCES),
        ("data_hash", CHANGED_DATA),
    ):
        wanted = pd.Series([one and getattr(one, name) for one in now], trials.index, dtype=object)
        had = trials[name] if name in trials else pd.Series(None, trials.index, dtype=object)
        changed = wanted.notna() & had.notna() & (wanted != had)
        reason[changed] = why
        if why == CHANGED_CODE:
            reason[changed & (wanted.map(_hash_rule) != had.map(_hash_rule))] = CHANGED_RULE
    return reason


def _hash_rule(code_hash: object) -> str:
    """The prefix of a code hash, see `lnl.code_hash.RULE`; earlier versions wrote none."""
    match = re.match(r"\d+-", code_hash) if isinstance(code_hash, str) else None
    return match.group() if match else ""


def latest(trials: pd.DataFrame, current: Mapping[str, Sources]) -> pd.DataFrame:
    """One row per trial, the attempt that counts, with the column `stale` (see `why_stale`).

    Among finished attempts (`ok`, or failed as an outcome) the newest of the current code and data, else the newest of
    the current data, else the newest; where none is finished the newest attempt.
    """
    trials = trials.assign(stale=why_stale(trials, current))
    if trials.empty:
        return trials
    rank = is_outcome(trials) * (1 + trials["stale"].isin(["", *BY_CODE]) + (trials["stale"] == ""))
    order = trials.assign(_rank=rank).sort_values(["_rank", "attempt"], kind="stable")
    return order.groupby("trial", sort=False).tail(1).drop(columns="_rank").sort_index()


def is_outcome(trials: pd.DataFrame) -> pd.Series:
    """True where a trial is finished: it trained to its end, or the method itself diverged."""
    return (trials["status"] == "ok") | trials["failure_class"].isin(FAILURES_THAT_ARE_OUTCOMES)


def diverged(trials: pd.DataFrame) -> pd.Series:
    """Trials whose method diverged: outcomes, not accidents."""
    return trials["failure_class"].isin(FAILURES_THAT_ARE_OUTCOMES)


def accuracies(trials: pd.DataFrame, rule: str) -> pd.Series:
    """Test accuracy of each trial under a selection rule, NaN where it gives none; a diverged trial counts as chance.

    Chance is 1/K of the K classes of the trial's data set.  Rows of earlier versions have no `classes`: theirs come
    from their transition matrix, which a trial that diverged in its first epoch lacks, else from the other rows, where
    those of the same data set agree in theirs, else from the data set's name.  Where all that tells nothing (all
    trials on somebody's own data set diverged in their first epoch) the accuracy is NaN: such a replicate is left out,
    and the sentences that count those say so.
    """
    scores = trials[f"accuracy_{rule}"].astype(float).to_numpy(copy=True)
    lost = diverged(trials).to_numpy(bool)
    if lost.any():
        scores[lost] = 1 / _classes(trials[lost], trials)
    return pd.Series(scores, trials.index)


def _classes(trials: pd.DataFrame, among: pd.DataFrame) -> np.ndarray:
    """How many classes the data set of each trial has, NaN where nothing tells; `among`: rows that may tell."""
    own = [_classes_of(*row) for row in zip(trials["classes"], trials["transition"], strict=True)]
    of_name: dict[str, float] = dict(CLASSES)
    for name in set(trials.loc[np.isnan(own), "dataset"]):
        rows = among[among["dataset"] == name].drop_duplicates(["data_hash", "classes"])
        told = {_classes_of(*row) for row in zip(rows["classes"], rows["transition"], strict=True)}
        known = {count for count in told if not np.isnan(count)}
        if known:
            of_name[name] = known.pop() if len(known) == 1 else np.nan
    named = [of_name.get(name, np.nan) for name in trials["dataset"]]
    return np.where(np.isnan(own), named, own)


def _classes_of(classes: float, transition: str | None) -> float:
    """Of one row; matrices are read only where they must be: those of 100 classes take a millisecond each."""
    if not pd.isna(classes):
        return float(classes)
    return float(len(json.loads(transition))) if isinstance(transition, str) else np.nan


def renamed(trials: pd.DataFrame, plans: pd.DataFrame) -> pd.DataFrame:
    """Rows of trials under the names that their arms have by now: a row keeps the name that its arm had when it ran.

    `plans`: submitted ones of the study, oldest first.  The newest with the trial names its arm, one of the row's own
    preset before others.
    """
    names: dict[Any, str] = {}
    for preset, text in zip(plans["preset"], plans["plan"], strict=True):
        plan = json.loads(text)
        for entry in [*plan.get("prerequisites", []), *plan.get("trials", [])]:
            names[entry["trial"]] = names[entry["trial"], preset] = entry["arm"]
    arms = [
        names.get((trial, preset), names.get(trial, arm))
        for trial, preset, arm in zip(trials["trial"], trials["preset"], trials["arm"], strict=True)
    ]
    return trials.assign(arm=pd.Series(arms, index=trials.index, dtype=object))


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

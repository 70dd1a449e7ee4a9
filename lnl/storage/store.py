"""The `Store`: where each result lies, and what writes and reads it.

Layout below one root (the `--storage` of every command): a folder, here or shared, or s3://bucket/prefix:

    trials/study=<study>/<trial>-<attempt>.parquet    one wide row per attempt
    epochs/study=<study>/<trial>-<attempt>.parquet    long rows: trial, epoch, split, metric, value
    arrays/study=<study>/<trial>-<attempt>.parquet    what figures need: histograms, mixtures, matrices, embeddings
    predictions/study=<study>/<trial>-<attempt>.parquet   on request: what a trained method says of each image,
    beliefs/study=<study>/<trial>-<attempt>.parquet       of each given label, the most suspected first,
    weights/study=<study>/<trial>-<attempt>.safetensors   and its final weights; see lnl.storage.kept
    suggestions/study=<study>/<search>-<number>.parquet   one row per suggestion of a search, see lnl.search
    studies/<study>-<preset>-<plan>.parquet           every plan that was submitted, as JSON
    events/<time>-<kind>-<uuid>.parquet               append-only log, one row per file
    trials/study=<study>/.joined                      a copy of the rows beside it, to read thousands of them fast
    logs/study=<study>/<trial>-<attempt>.txt          what an attempt printed and its traceback, where there is any
    trained/<trial>-<hash>.pt                         prerequisites of other trials as they ended, or why they diverged
    trained/<trial>-<hash>.labels                     what one that is a teacher says of all training images
    checkpoints/study=<study>/<trial>.pt              working files of trials that have not finished, see
    leases/study=<study>/<trial>.json                 lnl.storage.checkpoints and `Lease`; each study has its own

Rules: an explicit schema on every write and read; one writer per file; a file appears whole or not at all (written
under a dot-prefixed name in the same folder, flushed to disk, then renamed; on object storage by one PUT); attempts
are never overwritten; a part that cannot be read, or whose name is not that of its rows, is reported and skipped.
Accuracies are fractions.  Nothing here imports torch or Ray, so notebooks can read results anywhere.
"""

from __future__ import annotations

import re
import socket
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lnl.storage.atomic import already_there, write_atomically
from lnl.storage.exchange import shared_file
from lnl.storage.files import listed, printable, read_file, reason, shown
from lnl.storage.leases import locked
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.part_names import Kept, attempt_name, parse_attempt, part_name, partition
from lnl.storage.places import Place, canonical, now
from lnl.storage.schema import (
    EVENTS,
    FREE_TEXT_COLUMNS,
    PART_KEYS,
    STUDIES,
    SUGGESTIONS,
    TABLES,
    TRIALS,
)
from lnl.storage.secrets import mask
from lnl.storage.tables import Filters, LeftOut, read_table, tell_left_out, write_rows


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
            shared_file(self.root / ".identity").exchange(uuid.uuid4().hex.encode(), None)
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
            raise _unreadable(path, "it does not hold the name of a results folder")
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

    def kept_path(self, kind: Kept, study: str, trial: str, attempt: int) -> Place:
        """Where an attempt keeps what is asked for beside its rows."""
        table = self.attempt_path(kind, study, trial, attempt)
        return table.with_suffix(".safetensors") if kind == "weights" else table

    def log_path(self, study: str, trial: str, attempt: int) -> Place:
        return self.root / "logs" / partition(study) / f"{attempt_name(trial, attempt)}.txt"

    def write_log(self, study: str, trial: str, attempt: int, text: str) -> None:
        """Store what an attempt printed, without secrets."""
        path, content = self.log_path(study, trial, attempt), printable(mask(text)).encode()
        write_atomically(path, lambda temporary: temporary.write_bytes(content))

    def write_attempt(
        self,
        study: str,
        row: Mapping[str, Any],
        epochs: Sequence[Mapping[str, Any]],
        arrays: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Store an attempt.  Its trial row is written last: one that exists always has its curve and its arrays.

        Raises `Overtaken` where another process has written this attempt.
        """
        trial, attempt = row["trial"], row["attempt"]
        if (path := self.attempt_path("trials", study, trial, attempt)).exists():
            raise already_there(path)
        for table, rows in (("arrays", arrays), ("epochs", epochs)):
            if rows:
                write_rows(self.attempt_path(table, study, trial, attempt), TABLES[table], rows)
        write_rows(path, TRIALS, [row], once=True)

    def suggestion_path(self, study: str, search: str, number: int) -> Place:
        return self.root / "suggestions" / partition(study) / f"{part_name('suggestions', search, number)}.parquet"

    def write_suggestion(self, study: str, row: Mapping[str, Any]) -> None:
        """Store a suggestion of a search."""
        write_rows(self.suggestion_path(study, row["search"], row["number"]), SUGGESTIONS, [row])

    def write_plan(self, row: Mapping[str, Any]) -> None:
        """Store a plan as the newest of its study, whatever the clocks of other drivers say.

        A plan that was submitted before keeps the time of its first submission: its contrasts were declared then.
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
        """Store that something has happened, now."""
        at = now()
        path = self.root / "events" / f"{part_name('events', at, kind)}{uuid.uuid4().hex[:12]}.parquet"
        about = {"at": at, "study": study, "trial": trial, "kind": kind}
        free_text = {name: mask(payload[name]) for name in FREE_TEXT_COLUMNS if payload.get(name)}
        write_rows(path, EVENTS, [{**about, "payload": printable(canonical({**payload, **free_text}))}])

    def checkpoint_path(self, study: str, trial: str) -> Place:
        return self.root / "checkpoints" / partition(study) / f"{trial}.pt"

    def lease_path(self, study: str, trial: str) -> Place:
        return self.root / "leases" / partition(study) / f"{trial}.json"

    def request_prune(self, study: str, trial: str) -> None:
        """Ask the worker that trains a trial to end it for good.  Raises `StorageError`."""
        write_atomically(self._prune_request(study, trial), Path.touch)

    def pop_prune_request(self, study: str, trial: str) -> bool:
        """Return whether the trial is to be pruned, and clear the request."""
        if is_requested := (request := self._prune_request(study, trial)).exists():
            request.unlink(missing_ok=True)
        return is_requested

    def tidy(self, study: str, trial: str) -> None:
        """Remove the working files of a finished trial, also half-written ones of a worker that was killed."""
        checkpoint = self.checkpoint_path(study, trial)
        checkpoint.unlink(missing_ok=True)
        if isinstance(checkpoint, Path):
            for half in checkpoint.parent.glob(f".{checkpoint.name}.*.tmp"):
                half.unlink(missing_ok=True)
        self._prune_request(study, trial).unlink(missing_ok=True)

    def _prune_request(self, study: str, trial: str) -> Place:
        return self.lease_path(study, trial).with_suffix(".pruned")

    @property
    def trained(self) -> Place:
        """Folder of trained prerequisites."""
        return self.root / "trained"

    def next_attempt(self, study: str, trial: str) -> int:
        """The number of a trial's next attempt: one more than that of its newest part, readable or not."""
        stems = [path.stem for path in listed(self.root / "trials" / partition(study), f"{trial}-*.parquet")]
        return 1 + max((parsed[1] for stem in stems if (parsed := parse_attempt(stem))), default=0)

    def logs(self, study: str) -> tuple[dict[str, Place], list[Place]]:
        """The logs of a study, by the names of their attempts, and the files beside them under other names."""
        paths = listed(self.root / "logs" / partition(study), "*.txt")
        known = {path.stem: path for path in paths if parse_attempt(path.stem)}
        return known, [path for path in paths if path.stem not in known and not path.name.startswith(".")]

    # ------------------------------------------------------------------------------------------------------ reading

    def read(
        self,
        table: str,
        study: str | None = None,
        columns: Sequence[str] | None = None,
        filters: Filters = None,
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
        return read_table(self.root, table, study, columns, filters, files, check)

    def plans(self, study: str | None = None) -> pd.DataFrame:
        """Submitted plans, oldest first."""
        frame, broken = self.read("studies")
        tell_left_out(broken)
        if study is not None:
            frame = frame[frame["study"] == study]
        return by_submission(frame).reset_index(drop=True)


def _unreadable(path: Place, why: str) -> StorageError:
    return StorageError(f"{shown(path)} cannot be read ({why}): remove it; then run again.")


def by_submission(plans: pd.DataFrame) -> pd.DataFrame:
    """Plans, oldest first: by their number within the study, which no clock moves; those without it first, by time."""
    numbered = plans.assign(_sequence=plans["sequence"].astype("float64").fillna(0.0))
    return numbered.sort_values(["_sequence", "submitted_at"], kind="stable").drop(columns="_sequence")

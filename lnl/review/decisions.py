"""What reviewers decided on labels: `decisions.jsonl` in the output folder, one line each, never rewritten.

A decision is on the disk before it is answered.  Several processes may append to one file: each waits for a lock, and a
line that a killed process left half-written is closed first, so that it spoils no other.  Reading leaves such a line
out and says so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from lnl.storage.files import lock_file, open_file, reason, shown
from lnl.storage.objects import StorageError

FILE_NAME = "decisions.jsonl"
LOCK_NAME = ".decisions.lock"
LONGEST_NAME = 100  # characters of a reviewer's name

Action = Literal["keep", "change", "skip", "undo"]


class Decision(BaseModel):
    """What one reviewer said of one image.

    `keep`: the given label is right; `change`: `label` is right; `skip`: no answer; `undo`: what the same reviewer said
    before of this image no longer counts.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=0)
    """Of the image in the table that was reviewed."""
    file: str
    """The image's name, which tells it from all others."""
    given: str | None
    """The class that it was given; None: it has no label."""
    action: Action
    label: str | None
    """The class that is right, of `keep` and `change`; None of the others."""
    reviewer: str = Field(min_length=1, max_length=LONGEST_NAME)
    at: AwareDatetime

    @model_validator(mode="after")
    def _has_a_label_that_fits(self) -> Decision:
        if self.action == "keep" and (self.label is None or self.label != self.given):
            raise ValueError("'keep' says the given label, which must be there")
        if self.action == "change" and (self.label is None or self.label == self.given):
            raise ValueError("'change' says another label than the given one")
        if self.action in ("skip", "undo") and self.label is not None:
            raise ValueError(f"'{self.action}' says no label")
        return self


@dataclass(frozen=True)
class Reading:
    """The lines of a file of decisions from some byte on."""

    decisions: tuple[Decision, ...]  # in the order of the file
    start: int  # 0 also where the file is shorter than the byte that was asked for: it is another one
    end: int  # byte from which a later reading goes on
    problems: tuple[str, ...]  # a sentence on each line that is left out


@dataclass(frozen=True)
class Standing:
    """What reviewers say of one image after all: the last decision of each, unless it is undone."""

    decisions: tuple[Decision, ...]  # one for each reviewer, the latest last

    @property
    def labels(self) -> frozenset[str]:
        """The classes that reviewers say are right; who skipped the image says none."""
        return frozenset(decision.label for decision in self.decisions if decision.label is not None)

    @property
    def is_conflict(self) -> bool:
        """Whether two reviewers say different classes."""
        return len(self.labels) > 1

    @property
    def label(self) -> str | None:
        """The class that is right; None where all skipped the image, or where they do not agree."""
        return next(iter(self.labels)) if len(self.labels) == 1 else None


def append(folder: Path, decision: Decision) -> None:
    """Add a decision to the folder's file; it is on the disk when this returns.

    Raises `StorageError` where it could not be written: then the file is as it was before.
    """
    line = decision.model_dump_json().encode() + b"\n"
    path = folder / FILE_NAME
    try:
        with lock_file(folder / LOCK_NAME):
            is_new = not path.exists()
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
            try:
                _append(descriptor, line)
            finally:
                os.close(descriptor)
            if is_new:
                _flush_folder(folder)
    except OSError as error:
        remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check the folder's permissions"
        raise StorageError(f"{shown(path)} cannot be written ({reason(error)}): {remedy}.") from error


def _append(descriptor: int, line: bytes) -> None:
    """Write a line at the end of a file, after a line break where the last line has none, and flush it to the disk."""
    size = os.fstat(descriptor).st_size
    if size and os.pread(descriptor, 1, size - 1) != b"\n":
        line = b"\n" + line
    try:
        while line:
            line = line[os.write(descriptor, line) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _flush_folder(folder: Path) -> None:
    """Flush to the disk that a folder has a new file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(folder: Path, start: int = 0) -> Reading:
    """The decisions of a folder from byte `start` on, where an earlier reading ended; none where there is no file.

    Raises `StorageError` where the file cannot be read.
    """
    path = folder / FILE_NAME
    try:
        with open_file(path) as file:
            start = start if start <= file.seek(0, os.SEEK_END) else 0
            file.seek(start)
            content = file.read()
    except FileNotFoundError:
        return Reading((), 0, 0, ())
    except OSError as error:
        raise StorageError(
            f"{shown(path)} cannot be read ({reason(error)}): make it a file that you may read."
        ) from error
    decisions, problems, end = [], [], start
    for line in content.splitlines(keepends=True):
        try:
            if line.strip():
                decisions.append(Decision.model_validate_json(line))
        except ValidationError as error:
            problems.append(_problem(path, line, end, error))
            if not line.endswith(b"\n"):
                break  # it may be on its way: the next reading starts with it
        end += len(line)
    return Reading(tuple(decisions), start, end, tuple(problems))


def _problem(path: Path, line: bytes, start: int, error: ValidationError) -> str:
    """A sentence on a line that is left out."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return (
            f"{shown(path)}: the line at byte {start} is incomplete ({len(line):,} bytes), as after a crash: "
            "it is left out, and was never answered as saved."
        )
    where = ".".join(map(str, first["loc"]))
    told = f"{where}: {first['msg']}" if where else first["msg"]
    return f"{shown(path)}: the line at byte {start} is no decision ({told}): it is left out."


def current(decisions: Iterable[Decision]) -> Mapping[str, Standing]:
    """What stands of each image that somebody has decided on, by its file.

    An index is of one table: where images were added since, it is another image's.
    """
    latest: dict[str, dict[str, Decision]] = {}
    for decision in decisions:
        of_image = latest.setdefault(decision.file, {})
        of_image.pop(decision.reviewer, None)  # so that the latest comes last
        if decision.action != "undo":
            of_image[decision.reviewer] = decision
    return {file: Standing(tuple(of_image.values())) for file, of_image in latest.items() if of_image}

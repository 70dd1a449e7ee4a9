"""The output folder of a job: `about.json`, which says what was asked, and one table with a row for each image.

| job | table | what stands in it |
|--|--|--|
| errors | `errors` | given labels, the most suspect first |
| propagate | `labels` | a label for every image, empty where none is sure enough |
| next | `next` | the images to label next, first and with a rank; the `.csv` file has these alone |

Each table is a `.parquet` file and a `.csv` file of the same name.  Classes stand there by name, and an empty cell, or
null, is no label.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
from pydantic import BaseModel, ValidationError

from lnl.data import DataError
from lnl.labelling.problem import Share
from lnl.storage.atomic import write_atomically
from lnl.storage.files import is_there, read_file, reason, shown

Kind = Literal["errors", "propagate", "next"]
TABLES: dict[Kind, str] = {"errors": "errors", "propagate": "labels", "next": "next"}
ABOUT = "about.json"
BETWEEN = ";"  # the entries of one cell of a .csv file
# What an interrupted job leaves for the next one.
OURS = ("features.npy", "features.json", "rounds.npz", "index.html", "images")


@dataclass(frozen=True)
class Checked:
    """Reviewed labels, compared with what was expected of them."""

    count: int
    wrong: int
    expected: float  # how many wrong ones, by their probabilities


class About(BaseModel, frozen=True, extra="forbid"):
    """What a folder is of, and how it was made."""

    kind: Kind
    images: str
    """what names the images, as `lnl.review.images.open_images` takes it; a path is absolute"""
    data: str | None = None
    """the folder of data sets, where one was named"""
    labels: str | None = None
    """the table of labels, where one was named"""
    columns: tuple[str, ...]
    """the columns of labels that were judged"""
    consensus: str | None = None
    """of several columns: how one label was made of them"""
    class_names: tuple[str, ...]
    judge: str
    """the detector, or what chose the images to label next"""
    features: str
    """where they come from, in words"""
    count: int
    """images"""
    labelled: int
    """those with a given label"""
    wrong: Share | None = None
    """errors: the estimated share of wrong labels among these"""
    checked: Checked | None = None
    """errors: the reviewed labels on which probabilities were calibrated"""
    budget: int | None = None
    """errors: how many labels are to be looked at"""
    confidence: float | None = None
    """propagate: the probability below which no label is given"""
    unreadable: tuple[str, ...] = ()
    """names of files that could not be read and are left out"""
    remarks: tuple[str, ...] = ()
    """sentences on what is odd about the images"""
    seed: int = 0
    made: datetime
    version: str
    """of lnl; "unknown" where it is not installed"""


def now() -> datetime:
    """The time, in UTC and whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


# --------------------------------------------------------------------------------------------------------------- tables


def named(numbers: np.ndarray, class_names: Sequence[str]) -> pa.Array:
    """Classes by name, null where a number is negative: (N,) int64 -> N texts."""
    texts = pa.array([*class_names, None], pa.string())
    return texts.take(pa.array(np.where(numbers < 0, len(class_names), numbers)))


def write_table(out: Path, kind: Kind, table: pa.Table) -> None:
    """Write the table of a job as .parquet and as .csv, whose cells join lists by semicolons."""
    path = out / f"{TABLES[kind]}.parquet"
    write_atomically(path, partial(pyarrow.parquet.write_table, table))
    if kind == "next":  # the others are in the .parquet file alone
        table = table.filter(pyarrow.compute.is_valid(table["rank"]))
    flat = pa.table({name: _flat(column) for name, column in zip(table.column_names, table.columns, strict=True)})
    write_csv(path.with_suffix(".csv"), flat)


def write_csv(path: Path, table: pa.Table) -> None:
    """Write a table without lists as .csv; an empty cell is null."""
    options = pyarrow.csv.WriteOptions(quoting_style="needed")
    write_atomically(path, lambda temporary: pyarrow.csv.write_csv(table, temporary, options))


def write_plain(path: Path, table: pa.Table) -> None:
    """Write a table without lists as .csv or .parquet, as the file's name says."""
    if path.suffix == ".parquet":
        write_atomically(path, partial(pyarrow.parquet.write_table, table))
    else:
        write_csv(path, table)


def _flat(column: pa.ChunkedArray) -> pa.ChunkedArray | pa.Array:
    if not pa.types.is_list(column.type):
        return column
    joined = [BETWEEN.join("" if entry is None else str(entry) for entry in row) for row in column.to_pylist()]
    return pa.array(joined, pa.string())


def read_table(out: Path) -> tuple[About, pa.Table]:
    """What a folder is of, and its table.  Raises `DataError`."""
    about = read_about(out)
    path = out / f"{TABLES[about.kind]}.parquet"
    try:
        return about, pyarrow.parquet.read_table(path)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DataError(
            f"{shown(path)} cannot be read ({reason(error)}): run `lnl label {about.kind}` again."
        ) from error


# ---------------------------------------------------------------------------------------------------------- the folder


def read_about(out: Path) -> About:
    """What a folder is of.  Raises `DataError`, also where it is not one of these."""
    path = out / ABOUT
    if not is_there(path):
        raise DataError(f"{shown(out)} has no {ABOUT}: name a folder that `lnl label errors` or the like has written.")
    try:
        return About.model_validate_json(read_file(path))
    except (OSError, ValidationError) as error:
        raise DataError(f"{shown(path)} cannot be read ({reason(error)}): run `lnl label` again.") from error


def write_about(out: Path, about: About) -> None:
    """Write what a folder is of; its last file, so that a folder with one is complete."""
    write_atomically(out / ABOUT, lambda temporary: temporary.write_text(about.model_dump_json(indent=1), "utf-8"))


def prepare(out: Path, kind: Kind, images: str) -> None:
    """Make the folder, or accept the one that an earlier call has made for the same job and images.

    Raises `DataError` for a folder with something else in it, and for one that cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{shown(out)} cannot be made ({reason(error)}): name another folder with --out.") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise DataError(f"{shown(out)} cannot be written: change its permissions, or name another folder with --out.")
    if is_there(out / ABOUT):
        earlier = read_about(out)
        if (earlier.kind, earlier.images) != (kind, images):
            raise DataError(
                f"{shown(out)} is of `lnl label {earlier.kind}` on {earlier.images}: name another folder with --out."
            )
    elif others := [path.name for path in out.iterdir() if not path.name.startswith(".") and path.name not in OURS]:
        raise DataError(
            f"{shown(out)} is not empty (it has {sorted(others)[0]}), and not made by `lnl label`: name another folder "
            "with --out."
        )

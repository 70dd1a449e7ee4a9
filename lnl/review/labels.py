"""Which labels the images of a user were given: by their folders, by a table, or by a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnl.data import DataError, label_file
from lnl.data.label_file import LabelFile, key, normal
from lnl.review.images import FOLDER, TABLES, ImageSet
from lnl.storage.files import printable, shown

SHOWN = 10  # classes that a message lists


@dataclass(frozen=True, eq=False)
class Given:
    """The labels that N images were given, by one annotator or several."""

    class_names: tuple[str, ...]
    columns: Mapping[str, np.ndarray]  # name of a column -> (N,) int64, -1: none


def given_labels(images: ImageSet, file: Path | None, column: str | None) -> Given:
    """The labels of a table, or those that come with the images.

    `file`: a table beside the images (.csv or .parquet).  `column`: the only column that is asked for; else all that
    hold labels, those of a table in place of the folders' names.  Raises `DataError`.
    """
    if file is not None and file.suffix not in TABLES:
        raise DataError(f"{shown(file)} is no table of labels: give a .csv or a .parquet file.")
    table = label_file.read(file, [column] if column else []) if file else images.table
    if table is None or (column in images.labels and column not in table.columns):
        return _own(images, column)
    return _of_table(images, _with_column(table, column), column)


def _with_column(table: LabelFile, column: str | None) -> LabelFile:
    if column and column not in table.columns:
        table = label_file.read(table.path, [column])
    if column and column not in table.columns:
        raise DataError(
            f"{shown(table.path)} has no column '{printable(column)}': choose {' or '.join(table.columns)}, or add it."
        )
    return table


def _own(images: ImageSet, column: str | None) -> Given:
    if not images.labels:
        raise DataError(
            f"{printable(images.source)} has no labels: put the images into folders of classes, or say them with "
            "--labels FILE.csv, whose first line is file,label."
        )
    if column and column not in images.labels:
        raise DataError(
            f"{printable(images.source)} has no labels '{printable(column)}': choose {' or '.join(images.labels)}."
        )
    return Given(images.class_names, {column: images.labels[column]} if column else images.labels)


def _of_table(images: ImageSet, table: LabelFile, column: str | None) -> Given:
    columns = [column] if column else table.columns
    rows = dict(table.rows)
    of_images = [rows.pop(key(file), None) for file in images.files]
    if rows:
        file, row = next(iter(rows.items()))
        raise DataError(
            f"{row.where}: there is no image '{file}' in {printable(images.source)} (rows without one: {len(rows):,}): "
            "write paths from that folder on, such as cat/1.png."
        )
    said = {row.cells[name] for row in table.rows.values() for name in columns if name in row.cells}
    if not said:
        raise DataError(f"{shown(table.path)} gives no image a label: fill the column {' or '.join(columns)}.")
    class_names = _class_names(images, said)
    numbers = {normal(name): number for number, name in enumerate(class_names)}
    for row in table.rows.values():
        for name in columns:
            if (label := row.cells.get(name)) is not None and label not in numbers:
                listed = listed_classes(class_names)
                raise DataError(
                    f"{row.where}: '{name}' is '{label}', which is none of the classes {listed}: correct it."
                )
    return Given(
        class_names,
        {
            name: np.array([-1 if row is None else numbers.get(row.cells.get(name, ""), -1) for row in of_images])
            for name in columns
        },
    )


def listed_classes(class_names: Sequence[str]) -> str:
    """The first classes, for a message."""
    return ", ".join(class_names[:SHOWN]) + (", …" if len(class_names) > SHOWN else "")


def _class_names(images: ImageSet, said: set[str]) -> tuple[str, ...]:
    """Those of the folders or of the data set; of a table alone where folders are named after something else."""
    known = {normal(name) for name in images.class_names}
    if known and (said & known or FOLDER not in images.labels):
        return images.class_names
    return tuple(sorted(said))


def check(where: str, classes: Sequence[str], labels: np.ndarray, least: int) -> None:
    """Raise `DataError` unless there are at least two classes and `least` images with a label."""
    labelled = int((labels >= 0).sum())
    if not labelled:
        raise DataError(f"{printable(where)}: no image has a label: fill the column, or name another with --column.")
    present = np.unique(labels[labels >= 0])
    if len(present) < 2:
        raise DataError(
            f"{printable(where)}: every label is '{classes[present[0]]}': wrong labels show among two classes or more."
        )
    if labelled < least:
        raise DataError(
            f"{printable(where)}: {labelled} images have a label, but at least {least} are needed: label more of them."
        )

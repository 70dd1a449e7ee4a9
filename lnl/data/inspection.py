"""What is checked of a data set when it is read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lnl.data.dataset import Contents, DataError
from lnl.storage.files import printable, shown


def check_labels(name: str, contents: Contents) -> None:
    """Raise `DataError` unless labels are classes, there are images of each, and given labels fit their images."""
    classes = len(contents.class_names)
    if classes < 2:
        raise DataError(f"{name}: there is one class only: training needs images of at least two.")
    true = contents.train.labels
    for split, labels, lowest in (("train", true, -1), ("test", contents.test.labels, 0)):
        if not len(labels):
            raise DataError(f"{name}: the {split} split is empty: give it at least one image.")
        _check_range(f"{name}: the {split} split", labels, lowest, classes)
    for column, given in contents.given.items():
        _check_column(name, column, given, len(true))
        _check_range(f"{name}: the given labels '{column}'", given, -1, classes)
    known = np.concatenate([true, *contents.given.values()])
    counts = np.bincount(known[known >= 0], minlength=classes)
    if not counts.all():
        empty = int(np.argmin(counts))
        raise DataError(
            f"{name}: class {empty} ({contents.class_names[empty]}) has no labelled training image: "
            "add some or remove the class."
        )


def _check_range(what: str, labels: np.ndarray, lowest: int, classes: int) -> None:
    wrong = labels[(labels < lowest) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{what} has the label {wrong[0]}, but its {classes} classes are 0..{classes - 1}.")


def _check_column(name: str, column: str, given: np.ndarray, images: int) -> None:
    """Raise `DataError` unless a column of given labels has a name, one label for each image, and one that is known."""
    if not column or printable(column) != column:
        raise DataError(f"{name}: a column of given labels is called '{printable(column)}': give it another name.")
    if given.dtype != np.int64 or given.shape != (images,):
        raise DataError(
            f"{name}: the given labels '{column}' are {given.dtype}{given.shape}, but there are {images} training "
            "images: give one whole number for each, -1 where there is no label."
        )
    if (given < 0).all():
        raise DataError(f"{name}: no training image has a given label '{column}': fill the column or leave it out.")


def check_class_names(where: Path, names: Sequence[str]) -> None:
    """Raise `DataError` unless the class names are valid UTF-8 and all different."""
    for name in names:
        if printable(name) != name:
            raise DataError(f"{shown(where)}: the class name '{printable(name)}' is not UTF-8: give the class another.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{shown(where)}: two classes are called '{twice}': give each a name of its own.")

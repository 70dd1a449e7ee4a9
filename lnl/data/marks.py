"""Which class each image of a folder has: its true one, and those that people gave it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lnl.data.dataset import DataError
from lnl.data.label_file import CLEAN, LabelFile, Row, key, normal
from lnl.storage.files import shown

NO_FOLDER = ""  # in place of a class: images that lie in train or test itself
FOLDER_COLUMN = "folder"  # the given labels that folders say
SHOWN = 10  # classes that a message lists
NOTHING = Row("", {})  # of an image without a row

Splits = dict[str, dict[str, list[Path]]]  # split -> class -> its images


@dataclass(frozen=True)
class Marks:
    """Classes by number, -1 where none is known; the images of clean stand behind those of train."""

    class_names: tuple[str, ...]
    train: np.ndarray  # (N,) true classes
    test: np.ndarray  # (T,) true classes
    given: dict[str, np.ndarray]  # column -> (N,)
    remarks: tuple[str, ...]


def classes_of(folder: Path, splits: Splits, labels: LabelFile | None, folders_are_true: bool) -> Marks:
    """Read folders and rows together.  Raises `DataError` with one sentence where they do not fit."""
    images = {split: [path for paths in classes.values() for path in paths] for split, classes in splits.items()}
    folders = {split: [name for name, paths in classes.items() for _ in paths] for split, classes in splits.items()}
    rows = _rows_of(folder, images, labels)
    clean = {split: _texts(of_split, CLEAN) for split, of_split in rows.items()}
    names = _class_names(folder, splits, labels, [text for texts in clean.values() for text in texts])
    numbers = {normal(name): number for number, name in enumerate(names)}

    def numbered(split: str, column: str) -> np.ndarray:
        return np.array([_number(row, column, numbers) for row in rows[split]], np.int64)

    def of_folders(split: str) -> np.ndarray:
        return np.array([numbers.get(normal(name), -1) for name in folders[split]], np.int64)

    test = of_folders("test") if NO_FOLDER not in splits["test"] else numbered("test", CLEAN)
    if (test < 0).any():
        nameless = images["test"][int(np.argmax(test < 0))]
        raise DataError(
            f"{shown(nameless)} has no class, but test images are judged by their true ones: move it to "
            "test/<class>/ or fill the column 'clean'."
        )
    given = {column: numbered("train", column) for column in (labels.columns if labels else ())}
    if NO_FOLDER not in splits["train"] and folders_are_true:
        _refuse_clean(rows["train"])
        train = of_folders("train")
    else:
        train = numbered("train", CLEAN)
        if not folders_are_true:
            given[FOLDER_COLUMN] = of_folders("train")
    if "clean" in splits:
        train = np.concatenate([train, of_folders("clean")])
        given = {name: np.concatenate([of, np.full(len(train) - len(of), -1)]) for name, of in given.items()}
    return Marks(names, train, test, given, _remarks(labels, rows["train"]))


def _remarks(labels: LabelFile | None, rows: Sequence[Row]) -> tuple[str, ...]:
    without = sum(row is NOTHING for row in rows)
    if labels is None or not without:
        return ()
    return (f"{without:,} of {len(rows):,} training images have no row in {labels.path.name}.",)


def _rows_of(folder: Path, images: Mapping[str, Sequence[Path]], labels: LabelFile | None) -> dict[str, list[Row]]:
    """The row of each image, an empty one where it has none.  Raises `DataError` for a row without an image."""
    rows = dict(labels.rows) if labels else {}
    found = {
        split: [rows.pop(key(path.relative_to(folder).as_posix()), NOTHING) for path in paths]
        for split, paths in images.items()
    }
    if rows:
        image, row = next(iter(rows.items()))
        raise DataError(
            f"{row.where}: there is no image '{image}' in {shown(folder)} (rows without one: {len(rows)}): write paths "
            "from that folder on, such as train/1.png."
        )
    return found


def _texts(rows: Sequence[Row], column: str) -> list[str]:
    return [row.cells[column] for row in rows if column in row.cells]


def _class_names(folder: Path, splits: Splits, labels: LabelFile | None, clean: Sequence[str]) -> tuple[str, ...]:
    """The folders' names, else all that the column `clean` says."""
    names = {name for classes in splits.values() for name in classes if name != NO_FOLDER} or {*clean}
    if not names and labels:
        raise DataError(
            f"{shown(labels.path)} and the folders of {shown(folder)} name no true class: test images need theirs, "
            "from test/<class>/ or from a column 'clean'."
        )
    return tuple(sorted(names))


def _number(row: Row, column: str, numbers: Mapping[str, int]) -> int:
    if column not in row.cells:
        return -1
    label = row.cells[column]
    if label not in numbers:
        listed = ", ".join([*numbers][:SHOWN]) + (", …" if len(numbers) > SHOWN else "")
        raise DataError(f"{row.where}: '{column}' is '{label}', which is none of the classes {listed}: correct it.")
    return numbers[label]


def _refuse_clean(rows: Sequence[Row]) -> None:
    """Raise `DataError` where a row says a true class of an image whose folder does."""
    for row in rows:
        if CLEAN in row.cells:
            raise DataError(
                f"{row.where}: 'clean' says a true class, but the folder of the image does already: leave the column "
                "out, or ask for folder:PATH?labels=given where folders are what people gave."
            )

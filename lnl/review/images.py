"""The images of a user before they are read: a folder, a table of files, or a data set; and one of them to look at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from lnl import data
from lnl.data import DataError, Dataset, label_file
from lnl.data.cache import expanded, file_stamp
from lnl.data.files import ImageFiles
from lnl.data.label_file import LabelFile
from lnl.review.outputs import ABOUT
from lnl.storage.files import printable, shown
from lnl.system import user_code

FOLDER, LABEL = "folder", "label"  # columns of labels that folders say, and of a data set's only labels
TABLES = (".csv", ".parquet")


@dataclass(frozen=True, eq=False)
class ImageSet:
    """N images by the name of their file, and the labels that come with them; pixels are not read yet."""

    source: str  # what names them on the command line
    files: tuple[str, ...]  # (N,) all different; of images without a file their number
    stamp: str  # changes with their content
    paths: tuple[Path, ...] | None = None  # (N,) where they are files
    stored: np.ndarray | None = None  # else (N, C, H, W) uint8, or vectors (N, D) float32
    table: LabelFile | None = None  # of labels, which lies beside them or names them
    class_names: tuple[str, ...] = ()  # of `labels`
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)  # column -> (N,) int64, -1: none
    remarks: tuple[str, ...] = ()

    def at(self, positions: np.ndarray) -> ImageSet:
        """Those at these positions (n,), in that order."""
        return ImageSet(
            self.source,
            tuple(self.files[position] for position in positions),
            self.stamp,
            None if self.paths is None else tuple(self.paths[position] for position in positions),
            None if self.stored is None else self.stored[positions],
            self.table,
            self.class_names,
            {column: labels[positions] for column, labels in self.labels.items()},
            self.remarks,
        )

    @property
    def are_vectors(self) -> bool:
        """Whether there is nothing to look at."""
        return self.stored is not None and self.stored.ndim == 2

    def open(self, index: int) -> Image.Image:
        """One image as it is stored.  Raises `OSError` or `ValueError` where it cannot be read or there is none."""
        if self.paths is not None:
            return Image.open(self.paths[index])
        if self.stored is None or self.are_vectors:
            raise ValueError(f"{printable(self.source)} holds features, not images")
        pixels = np.asarray(self.stored[index])
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))

    def path(self, index: int) -> Path | None:
        """The file of one image, None where it is an entry of an array."""
        return None if self.paths is None else self.paths[index]


def open_images(source: str, root: Path | None = None) -> ImageSet:
    """The images that a folder, a table of files (.csv, .parquet) or a data set's name stands for.

    `root`: the folder of data sets.  Raises `DataError`.
    """
    if ":" in source or user_code.is_reference(source):
        return _of_dataset(source, root)
    path = expanded(source, "give a path without '~'")
    if path.is_dir():
        return _in_folder(source, path)
    if path.suffix in TABLES:
        return _in_table(source, path)
    if path.suffix != ".npz" and source not in data.names():
        raise DataError(
            f"There is no folder, table or data set '{printable(source)}': name one of yours, or one of "
            f"{', '.join(data.names())}."
        )
    return _of_dataset(f"npz:{source}" if path.suffix == ".npz" else source, root)


def _of_dataset(source: str, root: Path | None) -> ImageSet:
    dataset = data.with_given_labels(data.load(source, root), root)
    count = len(dataset.train_labels)
    known = {LABEL: dataset.train_labels} if (dataset.train_labels >= 0).any() else {}
    images = dataset.train_images
    return ImageSet(
        source,
        _different(dataset) or tuple(map(str, range(count))),
        dataset.checksum,
        tuple(images.paths()) if isinstance(images, ImageFiles) else None,
        None if isinstance(images, ImageFiles) else images,
        class_names=dataset.class_names,
        labels=dict(dataset.given) or known,
    )


def _different(dataset: Dataset) -> tuple[str, ...] | None:
    """The names of the training images, where they have names that tell them apart."""
    files = dataset.train_files
    return files if files and len(set(files)) == len(files) else None


def _in_folder(source: str, folder: Path) -> ImageSet:
    endings = _endings()
    files, others = [], 0
    for path in _walk(folder, set()):
        if path.suffix.lower() in endings:
            files.append(path)
        else:
            others += path.name not in label_file.NAMES
    if not files:
        raise DataError(f"{shown(folder)} has no images, in it or below: name the folder that has them.")
    names = [path.parent.name if path.parent != folder else "" for path in files]
    class_names = tuple(sorted({printable(name) for name in names} - {""}))
    numbers = {name: number for number, name in enumerate(class_names)}
    table = label_file.find(folder)
    return ImageSet(
        source,
        tuple(printable(path.relative_to(folder).as_posix()) for path in files),
        file_stamp(*files),
        tuple(files),
        class_names=class_names,
        labels={FOLDER: np.array([numbers.get(printable(name), -1) for name in names])} if class_names else {},
        table=label_file.read(table) if table else None,
        remarks=(f"Files that are passed over, being no images by their ending: {others:,}.",) if others else (),
    )


def _in_table(source: str, path: Path) -> ImageSet:
    table = label_file.read(path)
    paths = tuple(path.parent / file for file in table.rows)
    if not paths:
        raise DataError(f"{shown(path)} has no rows: give it one for each image.")
    if missing := [file for file, found in zip(table.rows, paths, strict=True) if not found.exists()]:
        raise DataError(
            f"{table.rows[missing[0]].where}: there is no file '{missing[0]}' (rows without one: {len(missing):,}): "
            f"write paths from {shown(path.parent)} on."
        )
    return ImageSet(source, tuple(table.rows), file_stamp(*paths), paths, table=table)


def _walk(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """All files below a folder, in order, without those that start with a dot and what `lnl label` has written.

    A loop of links is entered once.
    """
    status = folder.stat()
    if (status.st_dev, status.st_ino) in seen or (folder / ABOUT).exists():
        return
    seen.add((status.st_dev, status.st_ino))
    with os.scandir(folder) as entries:
        inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    for entry in inside:
        if entry.is_dir():
            yield from _walk(Path(entry.path), seen)
        elif entry.is_file():
            yield Path(entry.path)


def _endings() -> set[str]:
    """The endings, in small letters, of files that Pillow can open."""
    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}

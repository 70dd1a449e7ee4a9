"""A folder of images, train/<class>/* and test/<class>/*, in any format of Pillow, resized once to one square size.

The shorter side is resized and the middle of the longer one is kept.  The size is that of `folder:PATH?size=64`, or the
smaller of 96 and the median shorter side.  Images are grey where all files are, else RGB.

What people said of the images may lie beside them in `labels.csv` or `labels.parquet` (`lnl.data.label_file`).  The
true class of an image is its folder or, where images lie in train/* or test/* itself, what the column `clean` says.
With `folder:PATH?labels=given` the folders of train are what people gave, and the truth is not known.  Where it is not,
clean/<class>/* may hold further images whose class is true.  With `folder:PATH?read=on_demand` images stay in their
files, see `lnl.data.files.ImageFiles`: all are read once, to check them, and none is copied to the cache.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from lnl.data import label_file
from lnl.data.cache import file_stamp, find
from lnl.data.dataset import Contents, DataError, Source, Split, chunks
from lnl.data.files import Header, ImageFiles, first_error_raised, in_threads, read_header
from lnl.data.inspection import check_class_names
from lnl.data.marks import NO_FOLDER, Splits, classes_of
from lnl.storage.files import printable, shown

LARGEST_DEFAULT = 96  # pixels


@dataclass(frozen=True)
class Options:
    """What is asked for after the path, as in `?size=64&labels=given`."""

    size: int | None = None  # pixels per side
    folders_are_true: bool = True  # whether the folders of train are true classes
    on_demand: bool = False  # whether images stay in their files

    @classmethod
    def read(cls, name: str, path: str, text: str) -> Options:
        """Raises `DataError`."""
        options = cls()
        for option in text.split("&"):
            key, _, value = option.partition("=")
            if key == "size" and value.isdecimal() and int(value) > 0:
                options = replace(options, size=int(value))
            elif option == "labels=given":
                options = replace(options, folders_are_true=False)
            elif option == "read=on_demand":
                options = replace(options, on_demand=True)
            else:
                raise DataError(
                    f"{name}: '{option}' is not an option of a folder: write for example folder:{path}?size=64, "
                    "labels=given or read=on_demand, joined by '&'."
                )
        return options


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    path, question, option = name.partition(":")[2].partition("?")
    options = Options.read(name, path, option) if question else Options()
    folder = find(path, root, name)
    splits = {split: _files(folder / split) for split in ("train", "test")}
    if (folder / "clean").is_dir():
        splits["clean"] = _files(folder / "clean")
    labels = label_file.find(folder)
    _check_layout(folder, splits, labels, options.folders_are_true)
    stamped = [path for split in splits.values() for paths in split.values() for path in paths]
    images_stamp = file_stamp(*stamped)
    stamp = f"{images_stamp} {file_stamp(labels)}" if labels else images_stamp
    key = f"folder-{folder.name}-{hashlib.sha256(os.fsencode(f'{folder}?{option}')).hexdigest()[:8]}"
    return Source(key, stamp, partial(_read, folder, splits, labels, options), images_stamp=images_stamp)


def _files(split: Path) -> dict[str, list[Path]]:
    """Class name -> its files, both sorted; names that start with a dot are the system's own.

    Where there are no folders of classes, all files are those of `NO_FOLDER`.
    """
    if not split.is_dir():
        raise DataError(f"{shown(split)} is missing: arrange the images as train/<class>/* and test/<class>/*.")
    inside = [path for path in split.iterdir() if not path.name.startswith(".")]
    if odd := sorted(path for path in inside if not path.is_dir() and not path.is_file()):
        raise DataError(f"{shown(odd[0])} is neither a folder nor a file, but a loop, a pipe or the like: remove it.")
    classes = sorted(path for path in inside if path.is_dir())
    if not classes and inside:
        return {NO_FOLDER: sorted(inside)}
    return {
        folder.name: sorted(path for path in folder.iterdir() if not path.name.startswith(".")) for folder in classes
    }


def _check_layout(folder: Path, splits: Splits, labels: Path | None, folders_are_true: bool) -> None:
    """Raise `DataError` unless each image can have a class."""
    for split, classes in splits.items():
        if NO_FOLDER in classes and (labels is None or split == "clean"):
            raise DataError(
                f"{shown(folder / split)} has images but no folders of classes: arrange them as {split}/<class>/*"
                + ("." if split == "clean" else f", or say their classes in {shown(folder / label_file.NAMES[0])}.")
            )
    _check_classes(folder, splits, folders_are_true)


def _check_classes(folder: Path, splits: Splits, folders_are_true: bool) -> None:
    """Raise `DataError` unless the folders of classes are those of training, and fit to what they are taken for."""
    names = {split: [name for name in classes if name != NO_FOLDER] for split, classes in splits.items()}
    if names["train"]:
        for split in names.keys() - {"train"}:
            if untrained := sorted({*names[split]} - {*names["train"]}):
                raise DataError(
                    f"{shown(folder / split / untrained[0])} has no folder of its name in {shown(folder / 'train')}: "
                    "add one."
                )
    for class_name in names["train"]:
        if not splits["train"][class_name]:
            raise DataError(f"{shown(folder / 'train' / class_name)} has no image: add some or remove the folder.")
    if names["train"] and folders_are_true and "clean" in splits:
        raise DataError(
            f"{shown(folder / 'clean')} belongs to images whose true class is not known: move its images to "
            f"{shown(folder / 'train')}, or ask for folder:PATH?labels=given."
        )
    if not names["train"] and not folders_are_true:
        raise DataError(
            f"{shown(folder / 'train')} has no folders of classes, so that labels=given says nothing: leave it out."
        )
    check_class_names(folder / "train", sorted({name for classes in names.values() for name in classes}))


def _read(folder: Path, splits: Splits, labels: Path | None, options: Options) -> Contents:
    paths = {split: [path for paths in classes.values() for path in paths] for split, classes in splits.items()}
    marked = classes_of(folder, splits, label_file.read(labels) if labels else None, options.folders_are_true)
    parts = {"train": paths["train"] + paths.get("clean", []), "test": paths["test"]}
    headers = list(first_error_raised(in_threads(read_header, parts["train"] + parts["test"])))
    size = options.size or min(LARGEST_DEFAULT, int(np.median([min(header.size) for header in headers])))
    channels = 1 if all(header.is_grey for header in headers) else 3

    def split(name: str, true: np.ndarray) -> Split:
        images = ImageFiles.of(folder, parts[name], channels, size)
        files = [printable(path.relative_to(folder).as_posix()) for path in parts[name]]
        return Split(chunks(images), true, files, images if options.on_demand else None)

    return Contents(
        train=split("train", marked.train),
        test=split("test", marked.test),
        class_names=marked.class_names,
        flip=True,
        given=marked.given,
        remarks=(*_remarks(headers, size), *marked.remarks),
    )


def _remarks(headers: Sequence[Header], size: int) -> Iterator[str]:
    """What the images were before all were made alike."""
    sides = [header.size for header in headers]
    if len(set(sides)) > 1:
        smallest, largest = (size_of(sides, key=lambda side: side[0] * side[1]) for size_of in (min, max))
        yield (
            f"Images are of {len(set(sides))} sizes, from {smallest[0]} × {smallest[1]} to {largest[0]} × {largest[1]} "
            f"pixels: all were brought to {size} × {size}."
        )
    if enlarged := sum(min(side) < size for side in sides):
        yield f"{enlarged:,} of {len(sides):,} images were smaller than that and are enlarged."
    if 0 < (grey := sum(header.is_grey for header in headers)) < len(headers):
        yield f"{grey:,} of {len(headers):,} images are grey, the others in colour: all are read as RGB."

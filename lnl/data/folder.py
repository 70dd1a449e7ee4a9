"""A folder of images, train/<class>/* and test/<class>/*, in any format of Pillow, resized once to one square size.

The shorter side is resized and the middle of the longer one is kept.  The size is that of `folder:PATH?size=64`, or the
smaller of 96 and the median shorter side.  Images are grey where all files are, else RGB.

What people said of the images may lie beside them in `labels.csv` or `labels.parquet` (`lnl.data.label_file`).  The
true class of an image is its folder or, where images lie in train/* or test/* itself, what the column `clean` says.
With `folder:PATH?labels=given` the folders of train are what people gave, and the truth is not known.  Where it is not,
clean/<class>/* may hold further images whose class is true.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lnl.data import label_file
from lnl.data.cache import file_stamp, find
from lnl.data.dataset import CHUNK, Contents, DataError, Source, Split
from lnl.data.inspection import check_class_names
from lnl.data.marks import NO_FOLDER, Splits, classes_of
from lnl.storage.files import open_file, printable, reason, shown
from lnl.system import machine

LARGEST_DEFAULT = 96  # pixels
T = TypeVar("T")


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    path, question, option = name.partition(":")[2].partition("?")
    size, folders_are_true = _options(name, path, option) if question else (None, True)
    folder = find(path, root, name)
    splits = {split: _files(folder / split) for split in ("train", "test")}
    if (folder / "clean").is_dir():
        splits["clean"] = _files(folder / "clean")
    labels = label_file.find(folder)
    _check_layout(folder, splits, labels, folders_are_true)
    stamped = [path for split in splits.values() for paths in split.values() for path in paths]
    images_stamp = file_stamp(*stamped)
    stamp = f"{images_stamp} {file_stamp(labels)}" if labels else images_stamp
    key = f"folder-{folder.name}-{hashlib.sha256(os.fsencode(f'{folder}?{option}')).hexdigest()[:8]}"
    read = partial(_read, folder, splits, labels, size, folders_are_true)
    return Source(key, stamp, read, images_stamp=images_stamp)


def _options(name: str, path: str, text: str) -> tuple[int | None, bool]:
    """The size, and whether the folders of train are true classes, as `?size=64&labels=given` says."""
    size, folders_are_true = None, True
    for option in text.split("&"):
        key, _, value = option.partition("=")
        if key == "size" and value.isdecimal() and int(value) > 0:
            size = int(value)
        elif option == "labels=given":
            folders_are_true = False
        else:
            raise DataError(
                f"{name}: '{option}' is not an option of a folder: write for example folder:{path}?size=64, or "
                "labels=given, joined by '&'."
            )
    return size, folders_are_true


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
    names = {split: [name for name in classes if name != NO_FOLDER] for split, classes in splits.items()}
    for split, classes in splits.items():
        if NO_FOLDER in classes and (labels is None or split == "clean"):
            raise DataError(
                f"{shown(folder / split)} has images but no folders of classes: arrange them as {split}/<class>/*"
                + ("." if split == "clean" else f", or say their classes in {shown(folder / label_file.NAMES[0])}.")
            )
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


def _read(folder: Path, splits: Splits, labels: Path | None, size: int | None, folders_are_true: bool) -> Contents:
    paths = {split: [path for paths in classes.values() for path in paths] for split, classes in splits.items()}
    marked = classes_of(folder, splits, label_file.read(labels) if labels else None, folders_are_true)
    parts = {"train": paths["train"] + paths.get("clean", []), "test": paths["test"]}
    headers = list(_all_of(in_threads(read_header, parts["train"] + parts["test"])))
    size = size or min(LARGEST_DEFAULT, int(np.median([min(header.size) for header in headers])))
    resized = partial(read_square, size=size, mode="L" if all(header.is_grey for header in headers) else "RGB")

    def split(name: str, true: np.ndarray) -> Split:
        pieces = (parts[name][start : start + CHUNK] for start in range(0, len(parts[name]), CHUNK))
        files = [printable(path.relative_to(folder).as_posix()) for path in parts[name]]
        return Split((np.stack(list(_all_of(in_threads(resized, piece)))) for piece in pieces), true, files)

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


def in_threads(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T | DataError]:
    """The function of each path, in threads, because Pillow decodes and resizes without holding Python's lock.

    A file that Pillow cannot read gives a `DataError` in place of a result.
    """

    def checked(path: Path) -> T | DataError:
        try:
            return function(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
            why = "of no kind that is known" if isinstance(error, UnidentifiedImageError) else reason(error)
            return DataError(f"{shown(path)} cannot be used as an image ({why}): replace or remove it.")

    with ThreadPoolExecutor(min(16, machine.cpus())) as threads:
        yield from threads.map(checked, paths)


def _all_of(results: Iterable[T | DataError]) -> Iterator[T]:
    """The results; raises the first error among them."""
    for result in results:
        if isinstance(result, DataError):
            raise result
        yield result


@dataclass(frozen=True)
class Header:
    """What is known of an image before it is decoded."""

    size: tuple[int, int]  # width and height in pixels
    is_grey: bool


def read_header(path: Path) -> Header:
    """Raises ValueError for other than 8-bit channels."""
    with open_file(path) as file, Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"mode {image.mode}, more than 8 bits per channel")
        return Header(image.size, image.mode in ("1", "L"))


def read_square(path: Path, size: int, mode: str) -> np.ndarray:
    """The image, upright, resized and cropped to a square: (C, size, size) uint8."""
    with open_file(path) as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image).convert(mode)
        pixels = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

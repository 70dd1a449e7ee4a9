"""A folder of images, train/<class>/* and test/<class>/*, in any format of Pillow, resized once to one square size.

The shorter side is resized and the middle of the longer one is kept.  The size is that of `folder:PATH?size=64`, or the
smaller of 96 and the median shorter side.  Images are grey where all files are, else RGB.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

from lnl.data.cache import file_stamp, find
from lnl.data.dataset import CHUNK, Contents, DataError, Source, Split
from lnl.data.inspection import check_class_names
from lnl.storage.files import open_file, reason, shown
from lnl.system import machine

LARGEST_DEFAULT = 96  # pixels
T = TypeVar("T")


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    path, question, option = name.partition(":")[2].partition("?")
    size = option.removeprefix("size=")
    if question and not (option.startswith("size=") and size.isdecimal() and int(size) > 0):
        raise DataError(f"{name}: '{option}' is not an option of a folder: write for example folder:{path}?size=64.")
    folder = find(path, root, name)
    files = {split: _files(folder / split) for split in ("train", "test")}
    untrained = sorted(files["test"].keys() - files["train"].keys())
    if untrained:
        raise DataError(
            f"{shown(folder / 'test' / untrained[0])} has no folder of its name in {shown(folder / 'train')}: add one."
        )
    for class_name, paths in files["train"].items():
        if not paths:
            raise DataError(f"{shown(folder / 'train' / class_name)} has no image: add some or remove the folder.")
    check_class_names(folder / "train", list(files["train"]))
    stamp = file_stamp(*(path for split in files.values() for paths in split.values() for path in paths))
    key = f"folder-{folder.name}-{hashlib.sha256(os.fsencode(f'{folder}?{option}')).hexdigest()[:8]}"
    return Source(key, stamp, partial(_read, files, int(size) if question else None))


def _files(split: Path) -> dict[str, list[Path]]:
    """Class name -> its files, both sorted; names that start with a dot are the system's own."""
    if not split.is_dir():
        raise DataError(f"{shown(split)} is missing: arrange the images as train/<class>/* and test/<class>/*.")
    inside = [path for path in split.iterdir() if not path.name.startswith(".")]
    if odd := sorted(path for path in inside if not path.is_dir() and not path.is_file()):
        raise DataError(f"{shown(odd[0])} is neither a folder nor a file, but a loop, a pipe or the like: remove it.")
    classes = sorted(path for path in inside if path.is_dir())
    return {
        folder.name: sorted(path for path in folder.iterdir() if not path.name.startswith(".")) for folder in classes
    }


def _read(files: dict[str, dict[str, list[Path]]], size: int | None) -> Contents:
    class_names = tuple(files["train"])
    paths = {split: [path for paths in classes.values() for path in paths] for split, classes in files.items()}
    labels = {
        split: np.repeat(
            [class_names.index(name) for name in classes], [len(paths) for paths in classes.values()]
        ).astype(np.int64)
        for split, classes in files.items()
    }
    headers = list(_in_threads(_header, paths["train"] + paths["test"]))
    size = size or min(LARGEST_DEFAULT, int(np.median([side for side, _ in headers])))
    resized = partial(_resized, size=size, mode="L" if all(grey for _, grey in headers) else "RGB")

    def split(name: str) -> Split:
        pieces = (paths[name][start : start + CHUNK] for start in range(0, len(paths[name]), CHUNK))
        return Split((np.stack(list(_in_threads(resized, piece))) for piece in pieces), labels[name])

    return Contents(train=split("train"), test=split("test"), class_names=class_names, flip=True)


def _in_threads(function: Callable[[Path], T], paths: Sequence[Path]) -> Iterator[T]:
    """The function of each path, in threads, because Pillow decodes and resizes without holding Python's lock.

    Raises `DataError` for a file that Pillow cannot read.
    """

    def checked(path: Path) -> T:
        try:
            return function(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
            raise DataError(
                f"{shown(path)} cannot be used as an image ({reason(error)}): replace or remove it."
            ) from error

    with ThreadPoolExecutor(min(16, machine.cpus())) as threads:
        yield from threads.map(checked, paths)


def _header(path: Path) -> tuple[int, bool]:
    """Shorter side of an image in pixels, and whether it is grey.  Raises ValueError for other than 8-bit channels."""
    with open_file(path) as file, Image.open(file) as image:
        if image.mode[0] in "IF":
            raise ValueError(f"mode {image.mode}, more than 8 bits per channel")
        return min(image.size), image.mode in ("1", "L")


def _resized(path: Path, size: int, mode: str) -> np.ndarray:
    """The image, upright, resized and cropped to a square: (C, size, size) uint8."""
    with open_file(path) as file, Image.open(file) as image:
        upright = ImageOps.exif_transpose(image).convert(mode)
        pixels = np.asarray(ImageOps.fit(upright, (size, size), Image.Resampling.BICUBIC))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))

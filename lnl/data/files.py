"""Images in files: read in threads, brought to a square, and an array of them that decodes what is asked of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lnl.data.dataset import DataError
from lnl.storage.files import open_file, reason, shown
from lnl.system import machine

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Images that stay in their files: what is taken of this array (N, C, size, size) uint8 is decoded then.

    Raises `DataError` that names the file where one is missing or is no image.
    """

    folder: str
    names: np.ndarray  # (N,) bytes: paths below the folder, in one block that processes can share
    channels: int  # 1: grey, 3: RGB
    size: int  # pixels per side, see `read_square`
    dtype = np.dtype(np.uint8)

    @classmethod
    def of(cls, folder: Path, paths: Sequence[Path], channels: int, size: int) -> ImageFiles:
        """The images at these paths, all of them below the folder."""
        names = [os.fsencode(path.relative_to(folder)) for path in paths]
        return cls(str(folder), np.array(names, dtype=np.bytes_), channels, size)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.names), self.channels, self.size, self.size

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Decoded in threads: (n,) -> (n, C, size, size)."""
        images = list(first_error_raised(self.at(index).decode()))
        return np.stack(images) if images else np.empty((0, *self.shape[1:]), np.uint8)

    def at(self, index: slice | np.ndarray) -> ImageFiles:
        """The images at these positions (n,), not decoded."""
        return ImageFiles(self.folder, self.names[index], self.channels, self.size)

    def paths(self) -> Iterator[Path]:
        """Where each image is."""
        return (Path(self.folder, os.fsdecode(name)) for name in self.names.tolist())

    def decode(self, threads: int | None = None) -> Iterator[np.ndarray | DataError]:
        """All images (C, size, size), errors in place of those that cannot be read; `threads` as in `in_threads`."""
        read = partial(read_square, size=self.size, mode="L" if self.channels == 1 else "RGB")
        return in_threads(read, list(self.paths()), threads)


def in_threads(
    function: Callable[[Path], T], paths: Sequence[Path], threads: int | None = None
) -> Iterator[T | DataError]:
    """The function of each path, in threads, because Pillow decodes and resizes without holding Python's lock.

    A file that Pillow cannot read gives a `DataError` in place of a result.  `threads` None: one for each CPU, at most
    16; 1: this one.
    """

    def checked(path: Path) -> T | DataError:
        try:
            return function(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
            why = "of no kind that is known" if isinstance(error, UnidentifiedImageError) else reason(error)
            return DataError(f"{shown(path)} cannot be used as an image ({why}): replace or remove it.")

    if threads == 1:
        yield from map(checked, paths)
        return
    with ThreadPoolExecutor(threads or min(16, machine.cpus())) as pool:
        yield from pool.map(checked, paths)


def first_error_raised(results: Iterable[T | DataError]) -> Iterator[T]:
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

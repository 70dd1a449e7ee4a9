"""Files of images as one array on disk: resized once, those that cannot be read left out and named.

The array grows block by block beside a note of how far it is, so that an interrupted reading goes on.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from lnl.data import DataError
from lnl.data.files import in_threads, read_header, read_square
from lnl.storage.atomic import write_atomically
from lnl.storage.files import read_file

BLOCK = 512  # images at a time
Tell = Callable[[int, int], None]  # images that are done, of how many


@dataclass(frozen=True)
class Form:
    """What all images are brought to."""

    channels: int  # 1 where all are grey, else 3
    size: int  # pixels per side

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.channels, self.size, self.size


@dataclass(frozen=True, eq=False)
class Pixels:
    """The images that could be read."""

    images: np.ndarray  # (R, C, size, size) uint8, memory-mapped
    readable: np.ndarray  # (R,) int64: where they stand among the files
    unreadable: dict[int, str]  # where others stand, and what is wrong, a sentence


def common_form(paths: Sequence[Path], size: int | None, largest: int) -> Form:
    """Grey or RGB, and one size: `size`, or the median shorter side, at most `largest`.

    Raises `DataError` where no file is an image.
    """
    headers = [header for header in in_threads(read_header, paths) if not isinstance(header, DataError)]
    if not headers:
        raise DataError(f"None of the {len(paths):,} files can be read as an image: check one of them.")
    median = int(np.median([min(header.size) for header in headers]))
    return Form(1 if all(header.is_grey for header in headers) else 3, size or max(8, min(largest, median)))


def read_pixels(paths: Sequence[Path], form: Form, stamp: str, folder: Path, tell: Tell) -> Pixels:
    """All images as one array in a folder, which is removed by `remove`.

    `stamp`: changes with the files; what was read of others is read anew.  Raises `DataError` where no image can be
    read.
    """
    made_of = f"{stamp} {form.channels} {form.size}"
    folder.mkdir(parents=True, exist_ok=True)
    path, note = folder / "pixels.npy", folder / "pixels.json"
    done, unreadable = _so_far(note, made_of) if path.exists() else (0, {})
    array = open_memmap(path, "r+" if done else "w+", np.uint8, (len(paths), *form.shape))
    read = partial(read_square, size=form.size, mode="L" if form.channels == 1 else "RGB")
    row = done - len(unreadable)
    for start in range(done, len(paths), BLOCK):
        for position, image in enumerate(in_threads(read, paths[start : start + BLOCK]), start):
            if isinstance(image, DataError):
                unreadable[position] = str(image)
            else:
                array[row] = image
                row += 1
        done = min(start + BLOCK, len(paths))
        array.flush()
        write_atomically(note, partial(_write, {"made_of": made_of, "done": done, "unreadable": unreadable}))
        tell(done, len(paths))
    if not row:
        raise DataError(f"None of the {len(paths):,} images can be read.  The first: {unreadable[0]}")
    readable = np.setdiff1d(np.arange(len(paths)), [*unreadable])
    return Pixels(np.load(path, mmap_mode="r")[:row], readable, unreadable)


def _so_far(note: Path, made_of: str) -> tuple[int, dict[int, str]]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(read_file(note))
        if known["made_of"] == made_of:
            return int(known["done"]), {int(position): str(why) for position, why in known["unreadable"].items()}
    return 0, {}


def _write(note: Mapping[str, object], path: Path) -> None:
    path.write_text(json.dumps(note), encoding="utf-8")


def remove(folder: Path) -> None:
    """Remove the array, once features are made of it."""
    shutil.rmtree(folder, ignore_errors=True)

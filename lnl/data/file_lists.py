"""What data sets have in common that are published as lists of files, with images too many for memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lnl.data.dataset import DataError, Split, chunks
from lnl.data.files import ImageFiles
from lnl.storage.files import printable, read_file, shown

DEFAULT_SIZE = 224  # pixels per side
# Of ImageNet's training images, as published with its networks.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def lines(path: Path) -> list[str]:
    """The lines of a text file, without empty ones.  Raises `DataError` where it is no text, `OSError` elsewhere."""
    try:
        text = read_file(path).decode()
    except UnicodeDecodeError:
        raise DataError(f"{shown(path)} is no text in UTF-8: download it again.") from None
    return [line for line in text.splitlines() if line.strip()]


def numbered(path: Path, classes: int) -> tuple[list[str], np.ndarray]:
    """Files and classes (N,) of a list with lines `FILE CLASS`: those of the first `classes` classes.

    Raises `DataError` for other lines.
    """
    files, labels = [], []
    for number, line in enumerate(lines(path), 1):
        file, _, label = line.rpartition(" ")
        if not file or not label.isdecimal():
            raise DataError(
                f"{shown(path)}, line {number}: '{printable(line)}' is not a file and its class, as in 'a.jpg 3'."
            )
        if int(label) < classes:
            files.append(file)
            labels.append(int(label))
    return files, np.array(labels, dtype=np.int64)


def split(folder: Path, names: Sequence[str], labels: np.ndarray, size: int) -> Split:
    """The images at these paths below a folder, read on demand, and their true labels (N,)."""
    images = ImageFiles.of(folder, [folder / name for name in names], channels=3, size=size)
    return Split(chunks(images), labels, tuple(map(printable, names)), images)


def size_of(name: str, option: str) -> int:
    """The size that an option `size=299` names.  Raises `DataError` for another option."""
    key, _, value = option.partition("=")
    if key != "size" or not value.isdecimal() or int(value) < 8:
        raise DataError(f"{name}: '{printable(option)}' is not an option of it: write for example ?size=299.")
    return int(value)

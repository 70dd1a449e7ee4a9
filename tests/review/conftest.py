"""A user's own folder: digits as files of images, three classes, some labels wrong, one file damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnl import data

CLASSES = ("null", "eins", "zwölf")
DAMAGED = "eins/kaputt.png"


@pytest.fixture
def photos(tmp_path: Path) -> Callable[..., Path]:
    """`photos(each=8)`: a folder of classes in which every fourth image lies in the next class's folder."""

    def make(each: int = 8, damaged: bool = True) -> Path:
        digits, folder = data.load("digits"), tmp_path / "photos"
        for label, name in enumerate(CLASSES):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for number, position in enumerate(np.flatnonzero(digits.train_labels == label)[:each]):
                given = CLASSES[(label + 1) % 3] if number % 4 == 3 else name
                (folder / given).mkdir(exist_ok=True)
                Image.fromarray(digits.train_images[position, 0]).save(folder / given / f"größe {label} {number}.png")
        if damaged:
            (folder / DAMAGED).write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
        return folder

    return make

"""Printed capital letters that look like scikit-learn's digits: 8×8 grey pixels, 26 classes, drawn from a fixed seed.

Another data set to learn from before digits, which needs no download: each letter in the twelve DejaVu fonts that come
with matplotlib, slanted, turned and stretched at random.  As with the digits, a bitmap of 32×32 is cut into blocks of
4×4, and a pixel is the number of those that are set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from string import ascii_uppercase

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lnl.data.dataset import Contents, Source, Split, chunks

TRAIN, TEST = 8, 1  # images of each letter in each font
SIDE, BLOCK = 32, 4  # pixels of a bitmap, and of a block of it


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    return Source(name, stamp="1", read=_read)


def _read() -> Contents:
    generator = np.random.default_rng(0)
    fonts = _fonts()
    train, test = (list(_images(fonts, count, generator)) for count in (TRAIN, TEST))
    labels = [np.repeat(np.arange(26), count * len(fonts)) for count in (TRAIN, TEST)]
    return Contents(
        train=Split(chunks(np.stack(train)), labels[0]),
        test=Split(chunks(np.stack(test)), labels[1]),
        class_names=tuple(ascii_uppercase),
        flip=False,
    )


def _fonts() -> list[ImageFont.FreeTypeFont]:
    import matplotlib  # its fonts alone

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    styles = {"Sans": "Oblique", "SansMono": "Oblique", "Serif": "Italic"}
    names = [
        f"DejaVu{family}{style}"
        for family, slanted in styles.items()
        for style in ("", "-Bold", f"-{slanted}", f"-Bold{slanted}")
    ]
    return [ImageFont.truetype(folder / f"{name}.ttf", 3 * SIDE) for name in names]


def _images(
    fonts: Sequence[ImageFont.FreeTypeFont], count: int, generator: np.random.Generator
) -> Iterator[np.ndarray]:
    """`count` images of each letter in each font, each (1, 8, 8) uint8, letter by letter."""
    for letter in ascii_uppercase:
        for font in fonts:
            for _ in range(count):
                yield _image(letter, font, generator)


def _image(letter: str, font: ImageFont.FreeTypeFont, generator: np.random.Generator) -> np.ndarray:
    """One letter: (1, 8, 8) uint8."""
    size = 8 * SIDE
    drawn = Image.new("L", (size, size))
    ImageDraw.Draw(drawn).text((size // 2, size // 2), letter, fill=255, font=font, anchor="mm")
    slant, angle, width = generator.uniform((-0.3, -12.0, 0.6), (0.3, 12.0, 0.85))
    slanted = drawn.transform(drawn.size, Image.Transform.AFFINE, (1, slant, -slant * size / 2, 0, 1, 0))
    turned = slanted.rotate(angle)
    box = turned.getbbox()
    assert box is not None  # a letter is not blank
    across = round(SIDE * min(width, (box[2] - box[0]) / (box[3] - box[1])))
    bitmap = np.zeros((SIDE, SIDE), bool)
    left = (SIDE - across) // 2
    letter_itself = turned.resize((across, SIDE), Image.Resampling.BOX, box)
    bitmap[:, left : left + across] = np.asarray(letter_itself) >= 128
    counts = bitmap.reshape(SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).sum((1, 3))
    return np.rint(counts * (255 / BLOCK**2)).astype(np.uint8)[None]

"""Small reviews for the tests of the page and its server, and decisions on them."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
from PIL import Image

from lnl.review.decisions import Decision
from lnl.review.page import Review

CLASSES = ("cat", "dog", "owl")
EVIL = "<img src=x onerror=\"document.title='owned'\">"  # the name of a file, and of a class


class Squares:
    """Images of one colour each, 32 × 32, of which number 3 cannot be read."""

    def open(self, index: int) -> Image.Image:
        if index == 3:
            raise OSError("broken")
        return Image.new("RGB", (32, 32), (index % 256, 90, 160))

    def path(self, index: int) -> Path | None:
        return None


def review(rows: int = 30, *, classes: tuple[str, ...] = CLASSES, images: Squares | None = None) -> Review:
    """The first images are the most suspect; row r is image 2 · r + 1, given r mod K, and r + 1 mod K is proposed."""
    row, count = np.arange(rows), len(classes)
    return Review(
        title="Pets & <b>co</b>",
        facts=("About 12 % of the labels are wrong.",),
        class_names=classes,
        index=2 * row + 1,
        files=[f"pets/{number}.png" for number in row],
        given=row % count,
        proposed=(row + 1) % count,
        probability=0.9 - 0.8 * row / rows,
        neighbours=np.stack([2 * row, 2 * row + 2], 1),
        neighbour_labels=np.stack([row % count, (row + 1) % count], 1),
        images=images or Squares(),
    )


def decision(file: str = "a.png", action: str = "keep", label: str | None = "cat", by: str = "ada") -> Decision:
    """A decision on an image that was given the class `cat`."""
    at = datetime.datetime(2026, 11, 30, 9, 30, tzinfo=datetime.UTC)
    said = {"index": 7, "file": file, "given": "cat", "action": action, "label": label, "reviewer": by, "at": at}
    return Decision.model_validate(said)

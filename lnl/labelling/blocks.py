"""Images some at a time, so that memory stays bounded however many there are."""

from __future__ import annotations

from collections.abc import Iterator

NUMBERS = 2**22  # float32 numbers of a block: 16 MB


def blocks(images: int, width: int) -> Iterator[slice]:
    """Slices over `images` rows of `width` numbers, so that a block of them takes 16 MB."""
    size = max(1, NUMBERS // max(1, width))
    for start in range(0, images, size):
        yield slice(start, min(start + size, images))

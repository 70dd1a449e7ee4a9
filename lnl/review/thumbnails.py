"""Small pictures of a user's images for the review page, which never get a file of the user's as it is.

Every picture is decoded and encoded anew, so that nothing but pixels reaches the browser.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image, ImageOps

LARGEST = 512  # pixels, of the longer side
LARGEST_LOSSLESS = 128  # pixels, up to which a PNG is small
JPEG_QUALITY = 88


class Images(Protocol):
    """Where the images of a data set are, by their index."""

    def open(self, index: int) -> Image.Image:
        """The image.  Raises `OSError` or `ValueError` where it cannot be read."""

    def path(self, index: int) -> Path | None:
        """The image's own file; None where images are entries of an array."""


@dataclass(frozen=True)
class Thumbnail:
    """An encoded picture."""

    content: bytes
    suffix: str  # "png" or "jpeg", as in the media type

    @property
    def media_type(self) -> str:
        """As in the header Content-Type."""
        return f"image/{self.suffix}"


class Unreadable(ValueError):
    """An image cannot be shown."""


def thumbnail(images: Images, index: int) -> Thumbnail:
    """A picture of at most `LARGEST` pixels, upright, without transparency.  Raises `Unreadable`."""
    try:
        with images.open(index) as opened:
            opened.draft("RGB", (LARGEST, LARGEST))  # a large JPEG is decoded at a fraction of its size
            image = _on_white(ImageOps.exif_transpose(opened))
            image.thumbnail((LARGEST, LARGEST))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG
        raise Unreadable(f"image {index} cannot be read ({error})") from error
    buffer = io.BytesIO()
    if max(image.size) <= LARGEST_LOSSLESS:
        image.save(buffer, "PNG")
        return Thumbnail(buffer.getvalue(), "png")
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return Thumbnail(buffer.getvalue(), "jpeg")


def _on_white(image: Image.Image) -> Image.Image:
    """The image as grey or RGB, what is transparent as white."""
    if not image.has_transparency_data:
        return image.convert(image.mode if image.mode in ("L", "RGB") else "RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")

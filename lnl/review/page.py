"""The page on which people review suspect labels: as a file of its own, or for the server.

The page is one HTML file without anything external.  What it shows stands in it as JSON, by columns and in chunks, and
only its own script puts that on the screen, as text.  A file keeps decisions in the browser and exports them; the
server's page saves each of them there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup

from lnl.review.thumbnails import Images, Unreadable, thumbnail
from lnl.storage.atomic import storage_error, write_atomically
from lnl.storage.files import printable

PAGE_NAME = "index.html"
IMAGES_NAME = "images"
MOST_ROWS = 50_000  # that one page holds, in about 5 MB
MOST_PICTURED = 1_000  # rows of which a page without a server has pictures that are not files of their own
CHUNK = 5_000  # rows of one piece of JSON
SHOWN_BY_BROWSERS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
WEB = Path(__file__).parent / "web"
SCRIPTS = (
    "rows",
    "decisions",
    "stores",
    "list",
    "image",
    "found",
    "actions",
    "start",
)  # parts of one program, in order

Tell = Callable[[int, int], None]  # done, of how many


@dataclass(frozen=True, eq=False)
class Review:
    """What the page shows: the images to look at, the most suspect first.

    R images in rows, k neighbours each.  Classes are numbers into `class_names`, -1 for none.
    """

    title: str  # such as the data set and the column of labels
    facts: tuple[str, ...]  # sentences on how the rows came about and what to expect
    class_names: tuple[str, ...]
    index: np.ndarray  # (R,) int64, of the images in their data set, all different
    files: Sequence[str]  # (R,) names
    given: np.ndarray  # (R,) int64
    proposed: np.ndarray  # (R,) int64
    # (R,) float64, of an error, or where there is no given label of the proposal; NaN where it is not known.
    probability: np.ndarray
    neighbours: np.ndarray  # (R, k) int64, indexes of the nearest images, -1 for none
    neighbour_labels: np.ndarray  # (R, k) int64, the classes that these were given
    images: Images | None  # None: there are only features

    def __post_init__(self) -> None:
        """Raise ValueError unless columns are of one length."""
        columns = (self.files, self.given, self.proposed, self.probability, self.neighbours, self.neighbour_labels)
        if lengths := {len(column) for column in columns} - {len(self.index)}:
            raise ValueError(f"a review has {len(self.index)} rows, but columns of {sorted(lengths)}")

    @property
    def identity(self) -> str:
        """A hash of the images and their given labels: decisions on other ones are not shown as decisions on these."""
        names = "\0".join(map(printable, (*self.class_names, *self.files)))
        rows = self.index.astype(np.int64).tobytes() + self.given.astype(np.int64).tobytes()
        return hashlib.sha256(names.encode() + rows).hexdigest()[:16]

    def pictured(self, rows: int) -> list[int]:
        """The indexes of all images that the first rows show, neighbours too, each once."""
        shown = np.column_stack([self.index[:rows], self.neighbours[:rows]]).ravel()
        return list(dict.fromkeys(shown[shown >= 0].tolist()))


@dataclass(frozen=True)
class Served:
    """What the page needs to know to speak with its server."""

    key: str  # secret, sent with each request
    reviewer: str  # name at first


def write(review: Review, folder: Path, tell: Tell = lambda done, of: None) -> Path:
    """Write the page, which works from a file, and the pictures it needs into the folder; return its path.

    Images that are files of their own, of a kind that browsers show, are linked where they are; of others the first
    `MOST_PICTURED` rows get pictures, in the folder `images`.  Raises `StorageError`.
    """
    pictures = _pictures(review, folder, tell)
    path = folder / PAGE_NAME
    content = render(review, pictures=pictures).encode()
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def render(review: Review, *, served: Served | None = None, pictures: Mapping[int, str] | None = None) -> str:
    """The page as HTML, for the server or, with the addresses of pictures by index, as a file."""
    style, script = _style_and_script()
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    rows = min(len(review.index), MOST_ROWS)
    settings = {
        "identity": review.identity,
        "classes": [printable(name) for name in review.class_names],
        "pictures": {str(index): url for index, url in (pictures or {}).items()},
        "has_images": review.images is not None,
        "server": None if served is None else {"key": served.key, "reviewer": served.reviewer},
    }
    return environment.get_template("page.html.jinja").render(
        title=printable(review.title),
        facts=[*map(printable, review.facts), *_left_out(review, pictures)],
        settings=_json(settings),
        chunks=[_json(_columns(review, start, min(start + CHUNK, rows))) for start in range(0, rows, CHUNK)],
        style=Markup(style),
        script=Markup(script),
        policy=content_security_policy(),
    )


def content_security_policy() -> str:
    """What the browser may load for the page: its own style and script, pictures beside it, its own server."""
    style, script = map(_source_hash, _style_and_script())
    return (
        f"default-src 'none'; img-src 'self' file: data:; style-src {style}; script-src {script}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'"
    )


def _style_and_script() -> tuple[str, str]:
    """As they stand in the page."""
    style = (WEB / "page.css").read_text(encoding="utf-8")
    parts = [(WEB / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS]
    return style, "\n".join(['"use strict";', "{", *parts, "}"])


def _source_hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _json(value: object) -> Markup:
    """Compact JSON that cannot end the element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _columns(review: Review, start: int, end: int) -> dict[str, list[object]]:
    """Some rows by columns; an unknown probability is null."""
    rows = slice(start, end)
    return {
        "index": review.index[rows].tolist(),
        "file": [printable(name) for name in review.files[rows]],
        "given": review.given[rows].tolist(),
        "proposed": review.proposed[rows].tolist(),
        "probability": [None if np.isnan(p) else p for p in review.probability[rows].astype(float).round(4).tolist()],
        "neighbours": review.neighbours[rows].tolist(),
        "neighbour_labels": review.neighbour_labels[rows].tolist(),
    }


def _left_out(review: Review, pictures: Mapping[int, str] | None) -> Iterable[str]:
    """Sentences on what the page does not hold."""
    if (rows := len(review.index)) > MOST_ROWS:
        yield f"The page holds the {MOST_ROWS:,} most suspect of {rows:,} images; the table has all."
    if review.images is None:
        yield "There are only features, no images, to look at."
    elif pictures is not None and not pictures.keys() >= {*review.index[MOST_PICTURED:MOST_ROWS].tolist()}:
        yield f"This file has pictures of the first {MOST_PICTURED:,} rows; lnl label review shows all."


def _pictures(review: Review, folder: Path, tell: Tell) -> dict[int, str]:
    """The address of each picture, relative to the page; of images that cannot be read there is none."""
    if review.images is None:
        return {}
    linked = {index: path for index in review.pictured(MOST_ROWS) if (path := _shown_file(review.images, index))}
    addresses = {index: quote(os.fsencode(os.path.relpath(path, folder))) for index, path in linked.items()}
    drawn = [index for index in review.pictured(MOST_PICTURED) if index not in addresses]
    for done, index in enumerate(drawn):
        tell(done, len(drawn))
        try:
            picture = thumbnail(review.images, index)
        except Unreadable:
            continue
        addresses[index] = f"{IMAGES_NAME}/{index}.{picture.suffix}"
        _write_picture(folder / addresses[index], picture.content)
    return addresses


def _write_picture(path: Path, content: bytes) -> None:
    """Not flushed to the disk, unlike the page: thousands of them would take minutes, and can be made anew."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise storage_error(path, error) from error


def _shown_file(images: Images, index: int) -> Path | None:
    path = images.path(index)
    return path if path is not None and path.suffix.lower() in SHOWN_BY_BROWSERS else None

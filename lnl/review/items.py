"""Images of a user with their labels and features, as the commands of `lnl label` work on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lnl.data import DataError
from lnl.review import features, labels
from lnl.review.features import Choice, Tell
from lnl.review.images import ImageSet, open_images
from lnl.review.outputs import About
from lnl.storage.files import shown

NAMED = 3  # files that a remark lists


@dataclass(frozen=True, eq=False)
class Items:
    """N images that could be read."""

    images: ImageSet
    class_names: tuple[str, ...]
    columns: Mapping[str, np.ndarray]  # of given labels -> (N,) int64, -1: none
    features: np.ndarray  # (N, D) float32, perhaps memory-mapped
    features_from: str  # in words
    unreadable: tuple[str, ...]  # the names of others
    remarks: tuple[str, ...]  # sentences on what is odd about the images, and on their features


@dataclass(frozen=True)
class Asked:
    """Which images, labels and features a user asks for."""

    images: str  # a folder, a table, or a data set
    labels: Path | None = None  # a table beside the images
    column: str | None = None  # the only one of its columns that counts
    features: Choice = field(default_factory=Choice)
    data: Path | None = None  # the folder of data sets


def read(asked: Asked, out: Path, least: int, tell: Tell) -> Items:
    """The images with their labels, of which there must be at least `least`, and their features, which may take long.

    Raises `DataError`, for whatever is wrong with the labels before the features are made.
    """
    images = open_images(asked.images, asked.data)
    given = labels.given_labels(images, asked.labels, asked.column)
    _check(asked, given, np.arange(len(images.files)), least)
    made = features.features_of(images, asked.features, out, asked.data, tell)
    unreadable = tuple(images.files[position] for position in made.unreadable)
    if unreadable:
        _check(asked, given, made.readable, least)
        images = images.at(made.readable)
    columns = {name: column[made.readable] for name, column in given.columns.items()}
    return Items(
        images,
        given.class_names,
        columns,
        made.values,
        made.words,
        unreadable,
        (*images.remarks, *_remarks(images, columns, made)),
    )


def _check(asked: Asked, given: labels.Given, readable: np.ndarray, least: int) -> None:
    of_images = np.stack([column[readable] for column in given.columns.values()])
    labels.check(asked.images, given.class_names, of_images.max(0), least)


def _remarks(images: ImageSet, columns: Mapping[str, np.ndarray], made: features.Features) -> Iterator[str]:
    count = len(images.files)
    if made.unreadable:
        names = ", ".join([*made.unreadable.values()][:NAMED])
        yield f"{len(made.unreadable):,} of {count + len(made.unreadable):,} images are left out: {names}"
    if len(made.copies):
        later, first = made.copies.T
        differ = np.zeros(len(later), bool)
        for column in columns.values():
            differ |= (column[later] >= 0) & (column[first] >= 0) & (column[later] != column[first])
        other = f", {int(differ.sum()):,} of them with another label" if differ.any() else ""
        example = int(differ.argmax())
        yield (
            f"{len(later):,} of {count:,} images are equal to an earlier one{other} (as "
            f"{images.files[first[example]]} and {images.files[later[example]]})."
        )
    if made.remark:
        yield made.remark


def reopened(about: About) -> ImageSet:
    """The images of an output folder in the order of their `index`, to be looked at.

    Raises `DataError`, also where there are others now.
    """
    images = open_images(about.images, None if about.data is None else Path(about.data))
    left_out = set(about.unreadable)
    if left_out:
        images = images.at(np.array([place for place, file in enumerate(images.files) if file not in left_out]))
    if len(images.files) != about.count:
        raise DataError(
            f"{shown(about.images)} has {len(images.files):,} images now, but had {about.count:,}: run "
            f"`lnl label {about.kind}` again."
        )
    return images

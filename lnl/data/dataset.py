"""What a data set is: `Dataset` as it is used, `Source` and `Contents` as they are read, and the errors of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias, Union

import numpy as np

if TYPE_CHECKING:
    from lnl.data.files import ImageFiles

Stored: TypeAlias = Union[np.ndarray, "ImageFiles"]  # images, or vectors, as a data set holds them

CHUNK = 512  # images handled at a time


class DataError(ValueError):
    """A data set cannot be used; the message is one sentence that says what to do."""


class Unfit(DataError):
    """A data set is present but does not suit the trial, or its method, as it would not on any other machine."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images as uint8 (N, C, H, W), or vectors as float32 (N, D), read-only and memory-mapped; labels as int64 (N,).

    Images that are read on demand stay in their files.
    """

    name: str
    train_images: Stored
    train_labels: np.ndarray  # the true classes, -1 where they are not known (as in the unlabelled part of STL-10)
    test_images: Stored
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixels in [0, 1]; of vectors per feature
    std: tuple[float, ...]
    flip: bool  # whether a mirrored image keeps its class
    checksum: str  # first 16 hexadecimal digits of a SHA-256 over the four arrays
    train_files: tuple[str, ...] | None = None  # names of the images (N,); None: they have none
    test_files: tuple[str, ...] | None = None
    # Labels that people gave to the training images, by the name of their column: (N,) int64, -1 where there is none.
    given: Mapping[str, np.ndarray] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()  # sentences on what a reader of results should know, such as images that stand twice

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W), or of one vector, (D,)."""
        return tuple(self.train_images.shape[1:])

    @property
    def truth_known(self) -> bool:
        """Whether the true class is known of every training image that has a given label."""
        return not any(((self.train_labels < 0) & (labels >= 0)).any() for labels in self.given.values())


@dataclass(frozen=True)
class Split:
    """Images in contiguous chunks, so that no split is held in memory twice; labels (N,) int64.

    A chunk is (n, C, H, W) uint8, or (n, D) float32 of vectors.
    """

    images: Iterable[np.ndarray]
    labels: np.ndarray
    files: Sequence[str] | None = None  # the images' names; None: they have none
    on_demand: ImageFiles | None = None  # where the images stay: they are checked and not copied; None: in the cache


@dataclass(frozen=True)
class Contents:
    """What a source delivers.  Without `mean` and `std` they are computed from the training images."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    flip: bool
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    given: Mapping[str, np.ndarray] = field(default_factory=dict)  # as in `Dataset`
    remarks: tuple[str, ...] = ()  # of the reader; those on images and classes are added


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: `read` is called only where the cache lacks what has this stamp."""

    key: str  # folder name in the cache
    stamp: str  # changes with the files behind the data set
    read: Callable[[], Contents]
    local: bool = True  # all that `read` needs is on this machine; otherwise it is fetched first
    images_stamp: str = ""  # changes with the images' files alone, which are not read again where only labels change


def chunks(images: Stored) -> Iterator[np.ndarray]:
    """(N, …) in any memory order -> contiguous pieces of at most `CHUNK` images."""
    for start in range(0, len(images), CHUNK):
        yield np.ascontiguousarray(images[start : start + CHUNK])

"""What is checked of a data set when it is read: what cannot be used is refused, what is odd is remarked on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lnl.data.dataset import Contents, DataError, Split
from lnl.storage.files import printable, shown


def check_labels(name: str, contents: Contents) -> None:
    """Raise `DataError` unless labels are classes, there are images of each, and given labels fit their images."""
    classes = len(contents.class_names)
    if classes < 2:
        raise DataError(f"{name}: there is one class only: training needs images of at least two.")
    true = contents.train.labels
    for split, labels, lowest in (("train", true, -1), ("test", contents.test.labels, 0)):
        if not len(labels):
            raise DataError(f"{name}: the {split} split is empty: give it at least one image.")
        _check_range(f"{name}: the {split} split", labels, lowest, classes)
    for column, given in contents.given.items():
        _check_column(name, column, given, len(true))
        _check_range(f"{name}: the given labels '{column}'", given, -1, classes)
    known = np.concatenate([true, *contents.given.values()])
    counts = np.bincount(known[known >= 0], minlength=classes)
    if not counts.all():
        empty = int(np.argmin(counts))
        raise DataError(
            f"{name}: class {empty} ({contents.class_names[empty]}) has no labelled training image: "
            "add some or remove the class."
        )


def _check_range(what: str, labels: np.ndarray, lowest: int, classes: int) -> None:
    wrong = labels[(labels < lowest) | (labels >= classes)]
    if len(wrong):
        raise DataError(f"{what} has the label {wrong[0]}, but its {classes} classes are 0..{classes - 1}.")


def _check_column(name: str, column: str, given: np.ndarray, images: int) -> None:
    """Raise `DataError` unless a column of given labels has a name, one label for each image, and one that is known."""
    if not column or printable(column) != column:
        raise DataError(f"{name}: a column of given labels is called '{printable(column)}': give it another name.")
    if given.dtype != np.int64 or given.shape != (images,):
        raise DataError(
            f"{name}: the given labels '{column}' are {given.dtype}{given.shape}, but there are {images} training "
            "images: give one whole number for each, -1 where there is no label."
        )
    if (given < 0).all():
        raise DataError(f"{name}: no training image has a given label '{column}': fill the column or leave it out.")


def check_class_names(where: Path | str, names: Sequence[str]) -> None:
    """Raise `DataError` unless the class names are valid UTF-8 and all different."""
    for name in names:
        if printable(name) != name:
            raise DataError(f"{shown(where)}: the class name '{printable(name)}' is not UTF-8: give the class another.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise DataError(f"{shown(where)}: two classes are called '{twice}': give each a name of its own.")


# ------------------------------------------------------------------------------------------------------------- remarks

DARK = 1  # the largest pixel of images that were scaled to [0, 1] and cut to whole numbers
NAMED = 5  # classes that a remark lists


Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of each channel or feature


class PixelSums:
    """Sums over the pixels of each channel, in whole numbers: exact in any order of summation."""

    def __init__(self) -> None:
        self._count = 0  # pixels of a channel
        self._total = self._squares = np.zeros(1, np.uint64)

    def add(self, images: np.ndarray) -> None:
        """Add images (n, C, H, W) uint8."""
        self._count += images.size // images.shape[1]
        self._total = self._total + images.sum((0, 2, 3), dtype=np.uint64)
        self._squares = self._squares + np.square(images, dtype=np.uint16).sum((0, 2, 3), dtype=np.uint64)

    def moments(self) -> Moments:
        """Of pixels in [0, 1]; a channel of one value only has deviation 1."""
        mean = self._total / self._count
        std = np.sqrt(self._squares / self._count - mean**2) / 255
        return tuple((mean / 255).tolist()), tuple(np.where(std > 0, std, 1).tolist())


class Survey:
    """What is noted of images while they pass by on their way to the cache: a hash of each, and their values."""

    def __init__(self) -> None:
        self.pixels = PixelSums()  # of images, and not of vectors
        self._hashes: list[np.ndarray] = []
        self.most = -np.inf  # the largest pixel
        self.blank = 0  # images of one value only

    def of(self, parts: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The same parts (n, …), each noted."""
        for part in parts:
            digests = [hashlib.blake2b(image.data, digest_size=8).digest() for image in part]
            self._hashes.append(np.frombuffer(b"".join(digests), np.uint64))
            flat = part.reshape(len(part), -1)
            highest = flat.max(1)
            self.most = max(self.most, highest.max() if part.dtype == np.uint8 else np.inf)
            self.blank += int((highest == flat.min(1)).sum())
            if part.ndim == 4 and part.dtype == np.uint8:  # what else has four axes is refused
                self.pixels.add(part)
            yield part

    @property
    def hashes(self) -> np.ndarray:
        """(N,) uint64: equal for images of equal bytes; others meet once in 10^9 sets of 100,000 images."""
        return np.concatenate(self._hashes)


def remarks_on(contents: Contents, train: Survey, test: Survey) -> list[str]:
    """One sentence for each oddity of images and classes that a reader of results should know."""
    remarks = [
        *_remarks_on_copies("training", contents.train, train),
        *_remarks_on_copies("test", contents.test, test),
        *_remarks_on_leaks(contents, train, test),
    ]
    counts = np.bincount(contents.test.labels, minlength=len(contents.class_names))
    if not counts.all():
        missing = [contents.class_names[k] for k in np.flatnonzero(counts == 0)]
        listed = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        remarks.append(f"No test image is of {_count(len(missing), 'class', 'classes')}: {listed}.")
    for what, survey, part in (("training", train, contents.train), ("test", test, contents.test)):
        if survey.most <= DARK:
            remarks.append(f"No pixel of the {what} images is above {int(survey.most)} of 255: were they scaled?")
        if survey.blank:
            remarks.append(f"{_of(survey.blank, part, what)} of one value only.")
    return remarks


def _remarks_on_copies(what: str, part: Split, survey: Survey) -> Iterator[str]:
    _, first, group = np.unique(survey.hashes, return_index=True, return_inverse=True)
    original = first[group]  # of each image the first that is equal to it
    copies = np.flatnonzero(original != np.arange(len(original)))
    if len(copies):
        both = (part.labels[copies] >= 0) & (part.labels[original[copies]] >= 0)
        differ = int((both & (part.labels[copies] != part.labels[original[copies]])).sum())
        other = f", {differ} of them with another class" if differ else ""
        example = f"{_name(part, int(original[copies[0]]))} and {_name(part, int(copies[0]))}"
        yield f"{_of(len(copies), part, what)} equal to an earlier one{other} (as {example})."


def _remarks_on_leaks(contents: Contents, train: Survey, test: Survey) -> Iterator[str]:
    trained = np.isin(test.hashes, train.hashes)
    if trained.any():
        in_test = int(np.argmax(trained))
        in_train = int(np.argmax(train.hashes == test.hashes[in_test]))
        example = f"{_name(contents.test, in_test)} is {_name(contents.train, in_train)}"
        yield (
            f"{_of(int(trained.sum()), contents.test, 'test')} among the training images as well, which flatters "
            f"accuracy (as {example})."
        )


def _of(count: int, part: Split, what: str) -> str:
    return f"{count:,} of {len(part.labels):,} {what} images {'is' if count == 1 else 'are'}"


def _count(number: int, one: str, many: str) -> str:
    return f"one {one}" if number == 1 else f"{number} {many}"


def _name(part: Split, position: int) -> str:
    return part.files[position] if part.files else f"number {position}"

"""Data sets by name.  One file per source; each delivers the same: images, int64 labels, class names, mean, std.

Images are uint8 (N, C, H, W), or in their place vectors, float32 (N, D).

    digits  digits_vectors   scikit-learn's handwritten digits, 8×8, and as vectors, bundled: need no download
    letters                  printed capital letters, 8×8, to learn from before digits, likewise
    cifar10  cifar100        `<root>/cifar10.npz` if it is there, else through torchvision
    stl10                    96×96, with its unlabelled part, likewise
    webvision  webvision_mini  food101n   images from the web, decoded on demand; `?size=299`, else 224
    npz:PATH                 a .npz file with x_train y_train x_test y_test
    features:PATH            such a file with vectors (N, D) in place of images
    folder:PATH[?size=64]    images in train/<class>/* and test/<class>/*
    FILE.py[:FUNCTION]       what a function of yours returns

`root` is the folder of all data: the environment variable LNL_DATA, or ~/.cache/lnl.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from lnl.data import cifar, digits, features, folder, food101n, human, letters, npz, own, stl10, webvision
from lnl.data.arrays import from_arrays
from lnl.data.cache import cached, expanded, opened, remarks
from lnl.data.dataset import DataError, Dataset, Source, Unfit
from lnl.storage.files import printable, reason, shown
from lnl.system import user_code

__all__ = [
    "DataError",
    "Dataset",
    "Unfit",
    "from_arrays",
    "given_column",
    "given_labels",
    "is_known",
    "load",
    "names",
    "outline",
    "present",
    "remarks_of_cached",
    "with_given_labels",
]

_SOURCES = {
    "digits": digits.source,
    "digits_vectors": digits.source,
    "letters": letters.source,
    "cifar10": cifar.source,
    "cifar100": cifar.source,
    "stl10": stl10.source,
    "webvision": webvision.source,
    "webvision_mini": webvision.source,
    "food101n": food101n.source,
    "npz:PATH": npz.source,
    "features:PATH": features.source,
    "folder:PATH": folder.source,
}
_WITH_OPTIONS = ("webvision", "webvision_mini", "food101n")  # such as ?size=299; and what has a PATH


# Training images with and without labels, test images, shape, classes.
_PUBLISHED: dict[str, tuple[int, int, int, tuple[int, ...], int]] = {
    "digits": (1437, 0, 360, (1, 8, 8), 10),
    "digits_vectors": (1437, 0, 360, (64,), 10),
    "letters": (2496, 0, 312, (1, 8, 8), 26),
    "cifar10": (50_000, 0, 10_000, (3, 32, 32), 10),
    "cifar100": (50_000, 0, 10_000, (3, 32, 32), 100),
    "stl10": (5_000, 100_000, 8_000, (3, 96, 96), 10),
}


def names() -> list[str]:
    """The names that `load` accepts; PATH stands for a path."""
    return list(_SOURCES)


def is_known(name: str) -> bool:
    """Whether `name` is one of `names`, with a path and options where they take some."""
    return _entry(name) in _SOURCES


def _entry(name: str) -> str:
    """What stands in `_SOURCES` for a name, if it is known."""
    kind, colon, _ = name.partition(":")
    without, _, _ = name.partition("?")
    return f"{kind}:PATH" if colon else without if without in _WITH_OPTIONS else name


def load(name: str, root: Path | None = None, *, verify: bool = False) -> Dataset:
    """The data set `name`, from its cache or from its source.  Raises `DataError`.

    `verify`: read all images of the cache once, which takes seconds for large sets, and build it anew where they have
    changed since they were written.
    """
    root = data_folder(root)
    with _files_named(name, root):
        return cached(name, _source(name, root), root, verify)


def present(name: str, root: Path | None = None) -> Dataset | None:
    """The data set where it is on this machine; None where it would have to be fetched.  Raises `DataError`."""
    root = data_folder(root)
    with _files_named(name, root):
        source = _source(name, root)
        return cached(name, source, root) if source.local else opened(name, source, root)


@contextlib.contextmanager
def _files_named(name: str, root: Path) -> Iterator[None]:
    """Within the block, an error of a file or folder becomes a `DataError` that names it."""
    try:
        yield
    except OSError as error:
        where = shown(error.filename or root)
        raise DataError(
            f"{printable(name)}: {where} cannot be read ({reason(error)}): check that it exists and is readable."
        ) from error


def _source(name: str, root: Path) -> Source:
    if user_code.is_reference(name):
        return own.source(name, root)
    source = _SOURCES.get(_entry(name))
    if source is None:
        raise DataError(f"There is no data set '{name}': choose one of {', '.join(names())}, or a file.")
    return source(name, root)


def outline(name: str, root: Path | None = None) -> Dataset | None:
    """A data set without fetching or preparing it: from its cache, else of its published size; None where unknown.

    With a published size the images are blank and all classes have equally many.
    """
    try:
        root = data_folder(root)
        source = _source(name, root)
    except (DataError, OSError):
        return None
    if dataset := opened(name, source, root):
        return dataset
    if name not in _PUBLISHED or (root / f"{name}.npz").exists():
        return None
    train, unlabelled, test, shape, classes = _PUBLISHED[name]
    blank = np.zeros((), np.uint8 if len(shape) == 3 else np.float32)  # takes no memory, whatever its shape
    return Dataset(
        name=name,
        train_images=np.broadcast_to(blank, (train + unlabelled, *shape)),
        train_labels=np.concatenate([np.arange(train) % classes, np.full(unlabelled, -1)]),
        test_images=np.broadcast_to(blank, (test, *shape)),
        test_labels=np.arange(test) % classes,
        class_names=tuple(map(str, range(classes))),
        mean=(0.5,) * shape[0],
        std=(0.5,) * shape[0],
        flip=False,
        checksum="",
    )


def given_column(dataset: Dataset, column: str) -> str:
    """The name of a column of labels that people gave to the data set's images; "" asks for the only one.

    Raises `Unfit` where there is no such column, or more than one to choose from.
    """
    columns = [*dataset.given, *human.COLUMNS.get(dataset.name, ())]
    if not columns:
        raise Unfit(
            f"{dataset.name} has no labels that people gave: choose another kind of noise, or store such labels with "
            "it as docs/your-data.md says."
        )
    if column in columns:
        return column
    if column:
        raise Unfit(f"{dataset.name} has no given labels '{column}': choose one of {', '.join(columns)}.")
    if len(columns) > 1:
        raise Unfit(
            f"{dataset.name} has several columns of given labels: set noise.column to one of {', '.join(columns)}."
        )
    return columns[0]


def given_labels(dataset: Dataset, column: str, root: Path | None = None) -> np.ndarray:
    """A column of labels that people gave, "" for the only one: (N,) int64 in the order of `dataset.train_labels`.

    -1 stands where there is none.  They come with the data set, or are CIFAR-10N and CIFAR-100N (Wei et al. 2022),
    which lie in a file of their own.  Raises `DataError`.
    """
    column = given_column(dataset, column)
    return dataset.given[column] if column in dataset.given else human.read(dataset, column, data_folder(root))


def with_given_labels(dataset: Dataset, root: Path | None = None) -> Dataset:
    """The data set with all columns of labels that people gave, those of CIFAR-10N and CIFAR-100N where they are here.

    Raises `DataError` where these are damaged.
    """
    root = data_folder(root)
    columns = human.COLUMNS.get(dataset.name, ()) if human.is_here(dataset.name, root) else ()
    return replace(dataset, given={**dataset.given, **{name: human.read(dataset, name, root) for name in columns}})


def remarks_of_cached(root: Path | None = None) -> dict[str, tuple[str, ...]]:
    """What was remarked on the data sets in the cache, such as images that stand twice: sentences by data set.

    Data sets whose files are gone are left out; those that the user's own code makes are not asked for.
    """
    try:
        root = data_folder(root)
    except DataError:  # a user without a home directory has no cache
        return {}
    return {name: told for name, told in remarks(root).items() if user_code.is_reference(name) or _is_here(name, root)}


def _is_here(name: str, root: Path) -> bool:
    try:
        return present(name, root) is not None
    except DataError:
        return False


def data_folder(root: Path | None = None) -> Path:
    """The folder of all data sets.  Raises `DataError` where it is below the home of a user who has none."""
    place = root or os.environ.get("LNL_DATA") or "~/.cache/lnl"
    return expanded(place, "name a folder for data sets with --data or LNL_DATA").absolute()

"""Any .npz file with x_train y_train x_test y_test: uint8 images (N, H, W, C) or, grey, (N, H, W); whole numbers (N,).

Optional: `x_unlabelled` (further training images without label), `class_names` (K texts), `flip` (one truth value).
"""

from __future__ import annotations

import hashlib
import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from lnl.data.cache import Contents, DataError, Source, Split, check_class_names, chunks, file_stamp, find
from lnl.storage.files import open_file, reason, shown

logger = logging.getLogger(__name__)

NEEDED, OPTIONAL = ("x_train", "y_train", "x_test", "y_test"), ("x_unlabelled", "class_names", "flip")
Inputs = Callable[[Path, Mapping[str, np.ndarray], str], np.ndarray]  # the array of this name, checked


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    return source_of(name, root, "npz", read)


def source_of(name: str, root: Path, kind: str, reader: Callable[[Path], Contents]) -> Source:
    """The source `kind:PATH`, whose one .npz file `reader` reads.  Raises `DataError`."""
    path = find(name.partition(":")[2], root, name)
    if path.is_dir():
        raise DataError(
            f"{shown(name)}: {shown(path)} is not a file: name a .npz file, or use 'folder:' for a folder of images."
        )
    key = f"{kind}-{path.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    return Source(key, file_stamp(path), partial(reader, path))


def read(path: Path, inputs: Inputs | None = None) -> Contents:
    """The contents of one file, whose arrays x_… are `images`, or what `inputs` says.  Raises `DataError`."""
    inputs = inputs or images
    try:
        with open_file(path) as content, np.load(content, allow_pickle=False) as file:
            names = list(file.files)
            arrays = {key: file[key] for key in (*NEEDED, *OPTIONAL) if key in names}
    except (
        OSError,
        ValueError,
        EOFError,
        TypeError,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{shown(path)} cannot be read as .npz file of plain arrays ({reason(error)}): "
            "write it anew with numpy.savez."
        ) from error
    if unknown := [key for key in names if key not in arrays]:
        optional = ", ".join(OPTIONAL)
        logger.warning("%s has %s, which are not used: the optional arrays are %s.", path, ", ".join(unknown), optional)
    missing = [key for key in NEEDED if key not in arrays]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}: it must have x_train, y_train, x_test and y_test.")
    train_labels, test_labels = _labels(path, arrays, "y_train"), _labels(path, arrays, "y_test")
    train = chunks(inputs(path, arrays, "x_train"))
    if "x_unlabelled" in arrays:
        unlabelled = inputs(path, arrays, "x_unlabelled")
        if len(train_labels) != len(arrays["x_train"]):  # otherwise an unlabelled image would get a label
            raise DataError(
                f"{path}: x_train has {len(arrays['x_train'])} images but y_train has {len(train_labels)} labels."
            )
        if unlabelled.shape[1:] != (shape := inputs(path, arrays, "x_train").shape[1:]):
            raise DataError(
                f"{path}: x_unlabelled has images {_words(unlabelled.shape[1:])}, but those of x_train are "
                f"{_words(shape)}: make them equal."
            )
        train = chain(train, chunks(unlabelled))
        train_labels = np.concatenate([train_labels, np.full(len(unlabelled), -1)])
    return Contents(
        train=Split(train, train_labels),
        test=Split(chunks(inputs(path, arrays, "x_test")), test_labels),
        class_names=_class_names(path, arrays, train_labels),
        flip=_flip(path, arrays),
    )


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _flip(path: Path, arrays: dict[str, np.ndarray]) -> bool:
    flip = arrays.get("flip", np.array(True))
    if flip.dtype.kind not in "biu" or flip.size != 1 or flip.item() not in (0, 1):
        raise DataError(f"{path}: flip is {flip.dtype}{flip.shape}, but must be one truth value: True or False.")
    return bool(flip.item())


def images(path: Path, arrays: Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """The array `key` as images (N, C, H, W) uint8, a view.  Raises `DataError`."""
    array = arrays[key]
    if array.dtype.kind == "f" and array.ndim == 2:
        raise DataError(f"{path}: {key} holds vectors: name the data set features:{path.name}, not npz:{path.name}.")
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise DataError(
            f"{path}: {key} is {array.dtype}{array.shape}, but must be uint8 (N, H, W, C) or, grey, (N, H, W)."
        )
    if array.ndim == 3:
        return array[:, None]
    if array.shape[3] > 4:
        raise DataError(
            f"{path}: {key} has shape {array.shape}, but colour channels come last: store it as (N, H, W, C)."
        )
    return array.transpose(0, 3, 1, 2)


def _labels(path: Path, arrays: dict[str, np.ndarray], key: str) -> np.ndarray:
    labels = arrays[key]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(f"{path}: {key} is {labels.dtype}{labels.shape}, but must be whole numbers of shape (N,).")
    if len(labels) and not 0 <= labels.min() <= labels.max() < 2**31:
        raise DataError(
            f"{path}: {key} has labels from {labels.min()} to {labels.max()}, but classes count from 0 upwards."
        )
    return labels.astype(np.int64)


def _class_names(path: Path, arrays: dict[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    if "class_names" in arrays:
        given = arrays["class_names"]
        if given.dtype.kind != "U" or given.ndim != 1:
            raise DataError(f"{path}: class_names is {given.dtype}{given.shape}, but must be one text for each class.")
        names = tuple(str(name) for name in given)
        check_class_names(path, names)
        return names
    classes = int(labels.max(initial=-1)) + 1
    if classes > len(labels):
        raise DataError(
            f"{path}: y_train has the label {classes - 1}, but only {len(labels)} images: number the classes 0..K-1."
        )
    return tuple(str(label) for label in range(classes))

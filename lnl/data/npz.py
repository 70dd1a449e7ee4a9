"""Any .npz file with x_train y_train x_test y_test: uint8 images (N, H, W, C) or, grey, (N, H, W); whole numbers (N,).

Optional: `x_unlabelled` (further training images without label), `class_names` (K texts), `flip` (one truth value).

`y_train_given`, or several `y_train_given_NAME`, hold labels that people gave: whole numbers (N,), -1 for none.  Beside
them `y_train`, the true labels, may be -1 where they are unknown, or be left out; `x_clean` and `y_clean` are then
images whose labels are true.
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

from lnl.data.cache import file_stamp, find
from lnl.data.dataset import Contents, DataError, Source, Split, chunks
from lnl.data.inspection import check_class_names
from lnl.storage.files import open_file, reason, shown

logger = logging.getLogger(__name__)

NEEDED, OPTIONAL = ("x_train", "x_test", "y_test"), ("x_unlabelled", "class_names", "flip")
TRUE, GIVEN = "y_train", "y_train_given"  # the true labels, and those that people gave
CLEAN = ("x_clean", "y_clean")
PROVENANCE = "provenance"  # what a file was made of, for people
Inputs = Callable[[str, str, np.ndarray], np.ndarray]  # where it is, its name and the array -> the array, checked


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
            arrays = {key: file[key] for key in names if _is_ours(key)}
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
    if unknown := [key for key in names if key not in (*arrays, PROVENANCE)]:
        optional = ", ".join((*OPTIONAL, GIVEN, f"{GIVEN}_NAME", *CLEAN))
        logger.warning("%s has %s, which are not used: the optional arrays are %s.", path, ", ".join(unknown), optional)
    return contents(str(path), arrays, inputs)


def contents(where: str, arrays: Mapping[str, np.ndarray], inputs: Inputs) -> Contents:
    """What arrays with these names hold, those called x_… checked by `inputs`.

    Raises `DataError`, which names `where` they come from.
    """
    _check_presence(where, arrays)
    arrays = {key: inputs(where, key, array) if key.startswith("x_") else array for key, array in arrays.items()}
    given = _given(where, arrays)
    parts, true = _training(where, arrays)
    given = {name: _padded(labels, len(true)) for name, labels in given.items()}
    known = [true, *given.values()]
    return Contents(
        train=Split(chain.from_iterable(map(chunks, parts)), true),
        test=Split(chunks(arrays["x_test"]), _labels(where, arrays, "y_test")),
        class_names=_class_names(where, arrays, np.concatenate(known)),
        flip=_flip(where, arrays),
        given=given,
    )


def _is_ours(key: str) -> bool:
    return key in (*NEEDED, *OPTIONAL, TRUE, GIVEN, *CLEAN) or key.startswith(f"{GIVEN}_")


def _check_presence(where: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise `DataError` unless the arrays that belong together are there."""
    has_given = any(key.startswith(GIVEN) for key in arrays)
    missing = [key for key in NEEDED if key not in arrays]
    if TRUE not in arrays and not has_given:
        missing.insert(min(1, len(missing)), TRUE)
    if missing:
        raise DataError(
            f"{where} lacks {', '.join(missing)}: it must have x_train, y_train, x_test and y_test, or "
            "y_train_given in place of y_train."
        )
    if len(clean := [key for key in CLEAN if key in arrays]) == 1:
        raise DataError(f"{where} has {clean[0]} but not the other of x_clean and y_clean: store both or none.")
    if clean and TRUE in arrays:
        raise DataError(
            f"{where} has x_clean beside y_train, whose labels are true as well: add these images to x_train."
        )


def _given(where: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The labels that people gave to the images of x_train, by column: (N,) int64.  Raises `DataError`."""
    count = len(arrays["x_train"])
    given = {}
    for key in sorted(arrays):
        if key.startswith(GIVEN):
            labels = _labels(where, arrays, key, lowest=-1)
            _check_count(where, "x_train", count, key, len(labels))
            given[key.removeprefix(f"{GIVEN}_") if key != GIVEN else "given"] = labels
    return given


def _training(where: str, arrays: Mapping[str, np.ndarray]) -> tuple[list[np.ndarray], np.ndarray]:
    """Arrays of images, and the true labels (N,) of all of them, -1 where they are unknown.  Raises `DataError`.

    The images of x_train come first, then those without a label, then the clean ones.
    """
    parts = [arrays["x_train"]]
    lowest = -1 if any(key.startswith(GIVEN) for key in arrays) else 0  # then the truth of some may be unknown
    true = _labels(where, arrays, TRUE, lowest) if TRUE in arrays else np.full(len(parts[0]), -1)
    _check_count(where, "x_train", len(parts[0]), TRUE, len(true))
    for key, of_labels in (("x_unlabelled", None), CLEAN):
        if key not in arrays:
            continue
        further = arrays[key]
        labels = np.full(len(further), -1) if of_labels is None else _labels(where, arrays, of_labels)
        _check_count(where, key, len(further), of_labels, len(labels))
        if further.shape[1:] != (shape := parts[0].shape[1:]):
            raise DataError(
                f"{where}: {key} has images {_words(further.shape[1:])}, but those of x_train are {_words(shape)}: "
                "make them equal."
            )
        parts.append(further)
        true = np.concatenate([true, labels])
    return parts, true


def _check_count(where: str, images_key: str, images: int, labels_key: str | None, labels: int) -> None:
    if images != labels:
        raise DataError(
            f"{where}: {images_key} has {images} images but {labels_key} has {labels} labels: "
            "give every image one label."
        )


def _padded(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels (N,) of the first images, and -1 for all others: (count,)."""
    return np.concatenate([labels, np.full(count - len(labels), -1)])


def _words(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _flip(where: str, arrays: Mapping[str, np.ndarray]) -> bool:
    flip = arrays.get("flip", np.array(True))
    if flip.dtype.kind not in "biu" or flip.size != 1 or flip.item() not in (0, 1):
        raise DataError(f"{where}: flip is {flip.dtype}{flip.shape}, but must be one truth value: True or False.")
    return bool(flip.item())


def images(where: str, key: str, array: np.ndarray) -> np.ndarray:
    """The array called `key` as images (N, C, H, W) uint8, a view.  Raises `DataError`."""
    if array.dtype.kind == "f" and array.ndim == 2:
        raise DataError(
            f"{where}: {key} holds vectors: name the data set features:{Path(where).name}, not npz:{Path(where).name}."
        )
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or not array.size:
        raise DataError(
            f"{where}: {key} is {array.dtype}{array.shape}, but must be uint8 (N, H, W, C) or, grey, (N, H, W)."
        )
    if array.ndim == 3:
        return array[:, None]
    if array.shape[3] > 4:
        raise DataError(
            f"{where}: {key} has shape {array.shape}, but colour channels come last: store it as (N, H, W, C)."
        )
    return array.transpose(0, 3, 1, 2)


def _labels(where: str, arrays: Mapping[str, np.ndarray], key: str, lowest: int = 0) -> np.ndarray:
    labels = arrays[key]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        remedy = f"; store each column of it as {GIVEN}_NAME" if key == GIVEN and labels.ndim == 2 else ""
        raise DataError(
            f"{where}: {key} is {labels.dtype}{labels.shape}, but must be whole numbers of shape (N,){remedy}."
        )
    if len(labels) and not lowest <= labels.min() <= labels.max() < 2**31:
        raise DataError(
            f"{where}: {key} has labels from {labels.min()} to {labels.max()}, but classes count from 0 upwards."
        )
    return labels.astype(np.int64)


def _class_names(where: str, arrays: Mapping[str, np.ndarray], labels: np.ndarray) -> tuple[str, ...]:
    if "class_names" in arrays:
        given = arrays["class_names"]
        if given.dtype.kind != "U" or given.ndim != 1:
            raise DataError(f"{where}: class_names is {given.dtype}{given.shape}, but must be one text for each class.")
        names = tuple(str(name) for name in given)
        check_class_names(where, names)
        return names
    classes = int(labels.max(initial=-1)) + 1
    if classes > len(labels):
        raise DataError(
            f"{where}: y_train has the label {classes - 1}, but only {len(labels)} images: number the classes 0..K-1."
        )
    return tuple(str(label) for label in range(classes))

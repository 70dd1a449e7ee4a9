"""CIFAR-10N and CIFAR-100N (Wei et al. 2022): the labels that people gave to the 50,000 training images.

Read from the published CIFAR-10_human.pt / CIFAR-100_human.pt (without executing what a pickle may contain), or from
cifar10n.npz (clean, aggre, random1, random2, random3, worse) / cifar100n.npz (clean, fine).
"""

from __future__ import annotations

import pickle
import zipfile
import zlib
from pathlib import Path

import numpy as np

from lnl.data.dataset import DataError, Dataset
from lnl.storage.files import is_there, open_file, reason, shown, zip_damage

_FILES = {"cifar10": ("CIFAR-10_human.pt", "cifar10n.npz"), "cifar100": ("CIFAR-100_human.pt", "cifar100n.npz")}
COLUMNS = {  # data set -> our name of a column -> its name in the published file
    "cifar10": {
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "worse": "worse_label",
    },
    "cifar100": {"fine": "noisy_label"},
}


def is_here(name: str, root: Path) -> bool:
    """Whether the human labels of the data set called `name` lie in the folder of data."""
    return any(is_there(root / file) for file in _FILES.get(name, ()))


def read(dataset: Dataset, column: str, root: Path) -> np.ndarray:
    """The column of human labels of the training images of CIFAR-10 or CIFAR-100: (N,) int64.

    Raises `DataError` where they are missing or damaged, or where the file's clean labels are not the data set's.
    """
    path = next((root / file for file in _FILES[dataset.name] if is_there(root / file)), None)
    if path is None:
        raise DataError(
            f"The human labels of {dataset.name} are not in {root}: put {' or '.join(_FILES[dataset.name])} there."
        )
    arrays = _load(path)
    published = COLUMNS[dataset.name][column]
    names = ("clean_label", published) if path.suffix == ".pt" else ("clean", column)
    clean, labels = (_labels(path, arrays, key, len(dataset.class_names)) for key in names)
    if len(clean) != len(dataset.train_labels) or len(labels) != len(clean):
        raise DataError(
            f"{path} has {len(labels)} labels, but {dataset.name} has {len(dataset.train_labels)} training images: "
            "human labels need the complete training set."
        )
    different = int((clean != dataset.train_labels).sum())
    if different:
        raise DataError(
            f"{path} is in another order: {different} of its clean labels differ from those of {dataset.name}; "
            "use the training images in the order of CIFAR's python version."
        )
    return labels


def _load(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names there.  Raises `DataError`."""
    try:
        if path.suffix == ".npz":
            with open_file(path) as content, np.load(content, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        import torch  # so that opening a data set does not need it

        with open_file(path) as content, torch.serialization.safe_globals(_array_parts()):
            if damage := zip_damage(content):
                raise ValueError(damage)
            return dict(torch.load(content, map_location="cpu", weights_only=True))
    except (
        OSError,
        ValueError,
        TypeError,
        EOFError,
        RuntimeError,
        AttributeError,
        KeyError,
        IndexError,
        MemoryError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(f"{shown(path)} cannot be read ({reason(error)}): fetch it again.") from error
    except pickle.UnpicklingError as error:
        raise DataError(
            f"{path} holds something other than whole numbers and was not loaded: fetch the published file again."
        ) from error


def _array_parts() -> list:
    """The classes and functions that a pickled integer array refers to, by their names in numpy 1 and 2."""
    reconstruct = np.empty(0).__reduce__()[0]
    integers = [type(np.dtype(f"{kind}{size}")) for kind in "iu" for size in (1, 2, 4, 8)]
    modules = ("numpy.core.multiarray", "numpy._core.multiarray")
    return [np.ndarray, np.dtype, *integers, *((reconstruct, f"{module}._reconstruct") for module in modules)]


def _labels(path: Path, arrays: dict[str, np.ndarray], key: str, classes: int) -> np.ndarray:
    """The array `key` as labels (N,) int64 in 0..K-1.  Raises `DataError`."""
    labels = arrays.get(key)
    if labels is None:
        raise DataError(
            f"{path} has no labels '{key}', only {', '.join(map(str, arrays))}: fetch the published file again."
        )
    labels = np.asarray(labels)
    if (
        labels.dtype.kind not in "iu"
        or labels.ndim != 1
        or (len(labels) and not 0 <= labels.min() <= labels.max() < classes)
    ):
        raise DataError(
            f"{path}: '{key}' must hold whole numbers from 0 to {classes - 1}, one per image: fetch the file again."
        )
    return labels.astype(np.int64)

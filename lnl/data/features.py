"""Any .npz file of vectors, such as embeddings by a pre-trained network: x_train (N, D) and x_test floating point.

Labels and all else are as in the .npz files of images (`lnl.data.npz`).  `lnl embed` writes such files.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from lnl.data import npz
from lnl.data.dataset import DataError, Source


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    return npz.source_of(name, root, "features", partial(npz.read, inputs=vectors))


def vectors(where: str, key: str, array: np.ndarray) -> np.ndarray:
    """The array called `key` as vectors (N, D) float32.  Raises `DataError`."""
    if array.dtype == np.uint8 and array.ndim in (3, 4):
        raise DataError(
            f"{where}: {key} holds images: name the data set npz:{Path(where).name}, or make vectors of it by "
            "lnl embed."
        )
    if array.dtype.kind != "f" or array.ndim != 2 or not array.size:
        raise DataError(f"{where}: {key} is {array.dtype}{array.shape}, but must be floating point of shape (N, D).")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which the next line refuses
        array = array.astype(np.float32, copy=False)
    if not (finite := np.isfinite(array).all(1)).all():
        row = int(finite.argmin())
        raise DataError(
            f"{where}: row {row} of {key} has entries that are no finite numbers: make it anew or remove it."
        )
    return array

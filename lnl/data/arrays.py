"""A data set from arrays in memory, by the names and rules of an .npz file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from lnl.data import features, npz
from lnl.data.cache import ARRAYS, ArrayRecord, checksum, moments
from lnl.data.dataset import Dataset
from lnl.data.inspection import check_labels

WHERE = "from_arrays(…)"  # in messages


def from_arrays(
    *,
    x_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    y_train: np.ndarray | None = None,
    given: Mapping[str, np.ndarray] | None = None,
    x_unlabelled: np.ndarray | None = None,
    x_clean: np.ndarray | None = None,
    y_clean: np.ndarray | None = None,
    class_names: Sequence[str] | None = None,
    flip: bool = True,
) -> Dataset:
    """A data set of images (N, H, W, C), or grey (N, H, W), uint8, or of vectors (N, D), floating point.

    `y_train`: true classes (N,), whole numbers from 0 on; they may be left out where `given` is there: labels that
    people gave, by the name of their column, (N,) with -1 for none.  `x_clean` and `y_clean`: further images whose
    classes are true, where `y_train` is left out.  `x_unlabelled`: further images without a label.  `flip`: whether a
    mirrored image keeps its class.  Raises `DataError` with one sentence for arrays that do not fit.
    """
    columns = {f"{npz.GIVEN}_{name}": labels for name, labels in (given or {}).items()}
    others = {"y_train": y_train, "x_unlabelled": x_unlabelled, "x_clean": x_clean, "y_clean": y_clean}
    others["class_names"] = None if class_names is None else np.array(class_names)
    arrays = {"x_train": x_train, "x_test": x_test, "y_test": y_test, "flip": np.array(flip)}
    arrays |= columns | {name: array for name, array in others.items() if array is not None}
    inputs = features.vectors if np.ndim(x_train) == 2 else npz.images
    contents = npz.contents(WHERE, {name: np.asarray(array) for name, array in arrays.items()}, inputs)
    check_labels(WHERE, contents)
    train_images, test_images = (np.concatenate(list(split.images)) for split in (contents.train, contents.test))
    of_data = (train_images, contents.train.labels, test_images, contents.test.labels)
    mean, std = moments(train_images)
    return Dataset(
        "arrays",
        *of_data,
        class_names=contents.class_names,
        mean=mean,
        std=std,
        flip=contents.flip,
        checksum=checksum(dict(zip(ARRAYS, map(_record, of_data), strict=True))),
        given=contents.given,
    )


def _record(array: np.ndarray) -> ArrayRecord:
    sha256 = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "bytes": array.nbytes, "sha256": sha256}

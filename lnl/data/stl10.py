"""STL-10 (Coates et al. 2011): 5,000 labelled and 100,000 unlabelled training images, 8,000 test images, 96×96."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from lnl.data import npz
from lnl.data.cache import file_stamp
from lnl.data.dataset import Contents, Source, Split, chunks
from lnl.data.download import through_torchvision
from lnl.storage.files import is_there

_CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    path = root / "stl10.npz"
    local = is_there(path)
    return Source(name, file_stamp(path) if local else "torchvision", partial(_read, root), local)


def _read(root: Path) -> Contents:
    path = root / "stl10.npz"
    contents = npz.read(path) if is_there(path) else _download(root)
    mean, std = (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713)
    return replace(contents, class_names=_CLASSES, flip=True, mean=mean, std=std)


def _download(root: Path) -> Contents:
    from torchvision.datasets import STL10  # seconds of import, and only the first process needs it

    through_torchvision("stl10", STL10, root, split="test")  # fetches and checks all files
    folder = root / STL10.base_folder
    train, unlabelled, test = (_images(folder / f"{part}_X.bin") for part in ("train", "unlabeled", "test"))
    labels = np.concatenate([_labels(folder / "train_y.bin"), np.full(len(unlabelled), -1)])
    return Contents(
        train=Split(chain(chunks(train), chunks(unlabelled)), labels),
        test=Split(chunks(test), _labels(folder / "test_y.bin")),
        class_names=_CLASSES,
        flip=True,
    )


def _images(path: Path) -> np.ndarray:
    """-> (N, 3, 96, 96), mapped from the disk: the unlabelled part alone has 2.8 GB."""
    return np.memmap(path, np.uint8, mode="r").reshape(-1, 3, 96, 96).transpose(0, 1, 3, 2)  # columns come first


def _labels(path: Path) -> np.ndarray:
    return np.fromfile(path, np.uint8).astype(np.int64) - 1  # stored as 1..10

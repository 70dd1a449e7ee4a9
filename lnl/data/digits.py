"""scikit-learn's bundled handwritten digits: 8×8 grey pixels, 1,437 images for training and 360 for testing.

`digits_vectors` are the same digits as vectors of 64 numbers, the grey values 0 … 16.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from lnl.data.dataset import Contents, Source, Split, chunks


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    return Source(name, stamp="scikit-learn", read=partial(_read, vectors=name == "digits_vectors"))


def _read(vectors: bool) -> Contents:
    from sklearn.datasets import load_digits  # over a second of import, and only the first process needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # grey values 0..16
    if vectors:
        images = digits.data.astype(np.float32)
    labels = digits.target.astype(np.int64)
    # The same test images in every replicate: replicates differ in noise and training, not in what is measured.
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Contents(
        train=Split(chunks(images[train]), labels[train]),
        test=Split(chunks(images[test]), labels[test]),
        class_names=tuple("0123456789"),
        flip=False,
    )

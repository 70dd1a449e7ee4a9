"""scikit-learn's bundled handwritten digits: 8×8 grey pixels, 1,437 images for training and 360 for testing."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lnl.data.dataset import Contents, Source, Split, chunks


def source(name: str, root: Path) -> Source:
    """Where the data set comes from and how it is read."""
    return Source("digits", stamp="scikit-learn", read=_read)


def _read() -> Contents:
    from sklearn.datasets import load_digits  # over a second of import, and only the first process needs it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[:, None]  # grey values 0..16
    labels = digits.target.astype(np.int64)
    # The same test images in every replicate: replicates differ in noise and training, not in what is measured.
    train, test = train_test_split(np.arange(len(labels)), test_size=360, stratify=labels, random_state=0)
    return Contents(
        train=Split(chunks(images[train]), labels[train]),
        test=Split(chunks(images[test]), labels[test]),
        class_names=tuple("0123456789"),
        flip=False,
    )

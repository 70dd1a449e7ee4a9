"""Data sets of vectors: read, standardised, cached, and refused where they cannot be used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lnl import data

Write = Callable[..., data.Dataset]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of 60 + 20 vectors of 5 numbers with some arrays replaced, and load it."""

    def make(**arrays: np.ndarray) -> data.Dataset:
        generator = np.random.default_rng(0)
        vectors = generator.normal(3.0, 2.0, (80, 5))
        vectors[:, 4] = 7.0
        labels = np.arange(80) % 3
        whole = {"x_train": vectors[:60], "y_train": labels[:60], "x_test": vectors[60:], "y_test": labels[60:]}
        np.savez(tmp_path / "vectors.npz", **(whole | arrays))
        return data.load("features:vectors.npz", tmp_path)

    return make


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_vectors_are_float32_with_mean_and_deviation_of_each_feature(write: Write, kind: type) -> None:
    vectors = np.random.default_rng(1).normal(100.0, 0.5, (60, 5)).astype(kind)
    vectors[:, 4] = 7.0
    loaded = write(x_train=vectors)
    assert loaded.shape == (5,) and loaded.train_images.dtype == np.float32
    assert np.array_equal(loaded.train_images, vectors.astype(np.float32))
    whole = loaded.train_images.astype(np.float64)
    np.testing.assert_allclose(loaded.mean, whole.mean(0), rtol=1e-12)
    np.testing.assert_allclose(loaded.std[:4], whole.std(0)[:4], rtol=1e-9)
    assert loaded.std[4] == 1, "a constant feature is 0 after centring, whatever it is divided by"
    assert loaded.class_names == ("0", "1", "2")


def test_the_cache_is_mapped_and_the_checksum_is_that_of_the_content(write: Write) -> None:
    first, again = write(), write()
    assert isinstance(again.train_images, np.memmap) and first.checksum == again.checksum
    assert write(x_test=np.zeros((20, 5))).checksum != first.checksum


def test_vectors_without_a_label_come_last(write: Write) -> None:
    loaded = write(x_unlabelled=np.ones((4, 5), np.float32))
    assert len(loaded.train_images) == 64 and list(loaded.train_labels[60:]) == [-1] * 4


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x_train": np.zeros((60, 2, 2, 3), np.uint8)}, "x_train holds images: name the data set npz:FILE"),
        ({"x_train": np.zeros((60, 5), np.int64)}, r"x_train is int64\(60, 5\), but must be floating point"),
        ({"x_train": np.zeros((60, 5, 1))}, r"x_train is float64\(60, 5, 1\), but must be floating point"),
        ({"x_test": np.zeros((20, 4))}, "training images are 5, but test images are 4: make them equal"),
        ({"x_test": np.full((20, 5), np.nan)}, "row 0 of x_test has entries that are no finite numbers"),
        ({"x_test": np.full((20, 5), 1e300)}, "row 0 of x_test has entries that are no finite numbers"),
        ({"y_train": np.arange(59) % 3}, "x_train has 60 images but y_train has 59 labels"),
        ({"x_unlabelled": np.ones((4, 6))}, "x_unlabelled has images 6, but those of x_train are 5: make them equal"),
    ],
)
def test_files_that_cannot_be_used(write: Write, arrays: dict[str, np.ndarray], sentence: str) -> None:
    with pytest.raises(data.DataError, match=sentence) as error:
        write(**arrays)
    assert "\n" not in str(error.value)


def test_vectors_named_as_images_are_told_apart(write: Write, tmp_path: Path) -> None:
    write()
    with pytest.raises(data.DataError, match=r"x_train holds vectors: name the data set features:FILE, not npz:"):
        data.load("npz:vectors.npz", tmp_path)


def test_digits_as_vectors_are_the_digits(tmp_path: Path) -> None:
    images, vectors = data.load("digits", tmp_path), data.load("digits_vectors", tmp_path)
    assert vectors.shape == (64,) and np.array_equal(images.test_labels, vectors.test_labels)
    pixels = np.rint(vectors.train_images * (255 / 16)).astype(np.uint8)
    assert np.array_equal(pixels.reshape(-1, 1, 8, 8), images.train_images)
    outline = data.outline("digits_vectors", tmp_path / "elsewhere")
    assert outline is not None and outline.train_images.shape == vectors.train_images.shape

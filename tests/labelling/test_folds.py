"""Each fold has its part of each class."""

from __future__ import annotations

import numpy as np

from lnl.labelling.folds import NONE, stratified


def test_folds_and_classes_within_them_are_even_to_one_image() -> None:
    given = np.random.default_rng(0).integers(-1, 4, 203)
    fold_of = stratified(given, np.random.default_rng(1), folds=5)
    assert ((fold_of == NONE) == (given < 0)).all()
    for some in (given >= 0, *(given == label for label in range(4))):
        counts = np.bincount(fold_of[some], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_two_labels_of_a_class_are_in_two_folds() -> None:
    fold_of = stratified(np.array([0, 1] * 2), np.random.default_rng(0), folds=5)
    assert len(set(fold_of)) == 4


def test_the_generator_decides() -> None:
    given = np.zeros(100, np.int64)
    first, again, other = (stratified(given, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first == again).all() and (first != other).any()

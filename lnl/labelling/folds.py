"""Folds, so that no image is judged by what was fitted to its own label."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax

FOLDS = 5
NONE = -1  # the fold of an image without a given label: no fit uses it, and all fits judge it


def stratified(given: np.ndarray, generator: np.random.Generator, folds: int = FOLDS) -> np.ndarray:
    """A fold for each image with a given label, so that each fold has its part of each class, to within one image.

    Given labels (N,), -1 for none -> folds (N,) int64, `NONE` for images without a label.  A class with as many
    labels as there are folds, or fewer, has at most one in each.  (scikit-learn's StratifiedKFold refuses such classes
    or warns of them.)
    """
    labelled = np.flatnonzero(given >= 0)
    shuffled = generator.permutation(labelled)
    by_class = shuffled[np.argsort(given[shuffled], kind="stable")]
    fold_of = np.full(len(given), NONE)
    fold_of[by_class] = np.arange(len(by_class)) % folds
    return fold_of


def own_fold(log_p: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """What each image's own fold says of it: (N, FOLDS, K) -> (N, K); of an image of no fold the normalised mean."""
    own = np.take_along_axis(log_p, fold_of.clip(min=0)[:, None, None], axis=1)[:, 0]
    none = fold_of < 0
    own[none] = log_softmax(log_p[none].mean(1), axis=1)
    return own

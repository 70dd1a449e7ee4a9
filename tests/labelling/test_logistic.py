"""Known answers of scikit-learn's logistic regression, fold by fold."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression

from lnl.labelling import blocks, logistic
from lnl.labelling.folds import FOLDS, stratified

IMAGES, WIDTH, CLASSES = 400, 6, 3


@pytest.fixture(scope="module")
def problem() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, one-hot targets and folds of three overlapping blobs."""
    generator = np.random.default_rng(0)
    labels = generator.integers(0, CLASSES, IMAGES)
    centres = generator.normal(size=(CLASSES, WIDTH))
    features = (centres[labels] + generator.normal(size=(IMAGES, WIDTH))).astype(np.float32)
    targets = np.eye(CLASSES, dtype=np.float32)[labels]
    return features, labels, targets, stratified(labels, generator)


def by_sklearn(
    features: np.ndarray, labels: np.ndarray, penalty: float, weights: np.ndarray | None = None
) -> np.ndarray:
    """Weights (d + 1, K), centred over classes."""
    mass = len(labels) if weights is None else weights.sum()
    regression = LogisticRegression(C=1 / (penalty * mass), tol=1e-8, max_iter=2000)
    regression.fit(features.astype(np.float64), labels, sample_weight=weights)
    return centred(np.vstack([regression.coef_.T, regression.intercept_]))


def centred(weights: np.ndarray) -> np.ndarray:
    """A constant that is added to all classes changes no probability."""
    return weights - weights.mean(-1, keepdims=True)


@pytest.mark.parametrize("numbers", [blocks.NUMBERS, 1500])
def test_each_fold_has_the_regression_of_the_others_images(problem, numbers, monkeypatch) -> None:
    features, labels, targets, fold_of = problem
    monkeypatch.setattr(blocks, "NUMBERS", numbers)
    weights = logistic.fit(features, targets, fold_of, penalty=1e-2, iterations=200)
    log_p = logistic.out_of_fold(features, weights, fold_of)
    for fold in range(FOLDS):
        others = fold_of != fold
        wanted = by_sklearn(features[others], labels[others], 1e-2)
        np.testing.assert_allclose(centred(weights[:, fold]), wanted, atol=2e-3)
        logits = features[~others] @ wanted[:-1] + wanted[-1]
        np.testing.assert_allclose(log_p[~others], log_softmax(logits, axis=1), atol=1e-2)


def test_soft_targets_are_weights_of_repeated_images(problem) -> None:
    features, _, targets, fold_of = problem
    soft = 0.7 * targets + 0.1
    weights = logistic.fit(features, soft, fold_of, penalty=1e-2, iterations=200)
    others = fold_of != 0
    repeated = np.vstack([features[others]] * CLASSES)
    of_class = np.repeat(np.arange(CLASSES), others.sum())
    wanted = by_sklearn(repeated, of_class, 1e-2, soft[others].T.ravel())
    np.testing.assert_allclose(centred(weights[:, 0]), wanted, atol=2e-3)


def test_rows_of_zeros_and_images_of_no_fold_take_no_part(problem) -> None:
    features, labels, targets, fold_of = problem
    left_out = np.arange(IMAGES) < 100
    targets, fold_of = targets.copy(), fold_of.copy()
    targets[left_out] = 0
    fold_of[:50] = -1
    weights = logistic.fit(features, targets, fold_of, penalty=1e-2, iterations=200)
    some = (fold_of != 0) & ~left_out
    np.testing.assert_allclose(centred(weights[:, 0]), by_sklearn(features[some], labels[some], 1e-2), atol=2e-3)
    log_p = logistic.out_of_fold(features, weights, fold_of)
    each = log_softmax(np.einsum("nd,dfk->nfk", features[:50], weights[:-1]) + weights[-1], axis=-1)
    np.testing.assert_allclose(log_p[:50], log_softmax(each.mean(1), axis=-1), atol=1e-4)


def test_the_walk_ends_at_the_penalty_with_the_smallest_cross_entropy_out_of_fold(problem) -> None:
    features, _, targets, fold_of = problem
    penalties = (10.0, 1.0, 0.1, 0.01)
    losses = []
    for penalty in penalties:
        weights = logistic.fit(features, targets, fold_of, penalty, iterations=100)
        losses.append(-np.vdot(targets, logistic.out_of_fold(features, weights, fold_of)))
    best = int(np.argmin(losses))
    for first in (0, len(penalties) - 1):
        assert logistic.walk(features, targets, fold_of, first, penalties=penalties)[0] == best

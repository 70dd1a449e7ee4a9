"""Linear discriminant analysis out of fold: the cheapest good classifier of features."""

from __future__ import annotations

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize
from scipy.special import log_softmax

from lnl.labelling.blocks import blocks
from lnl.labelling.folds import FOLDS, own_fold

SHRINKAGE = 0.1
CALIBRATED_ON = 20_000  # images, at most: enough for one temperature and a bias for each class


def out_of_fold(features: np.ndarray, given: np.ndarray, fold_of: np.ndarray, classes: int) -> np.ndarray:
    """Logits (N, K) float32 of each image by an analysis of the other folds' images.

    Features (N, d) float32, given labels (N,), -1 for none.  One covariance for all classes, shrunk by a tenth to its
    mean variance, as scikit-learn's solver "lsqr"; here the features are read once for all folds, whose moments are
    those of all images less their own.  Every class needs labels in two folds.
    """
    counts, sums, squares = _moments(features, given, fold_of, classes)
    width = features.shape[1]
    slopes, intercepts = np.empty((width, FOLDS, classes)), np.empty((FOLDS, classes))
    for fold in range(FOLDS):
        count = counts.sum(0) - counts[fold]
        mean = (sums.sum(0) - sums[fold]) / count[:, None]
        within = (squares.sum(0) - squares[fold] - (count[:, None] * mean).T @ mean) / count.sum()
        shrunk = (1 - SHRINKAGE) * within
        shrunk[np.diag_indices(width)] += SHRINKAGE * max(np.trace(within) / width, 1e-12)
        slope = cho_solve(cho_factor(shrunk), mean.T)
        slopes[:, fold] = slope
        intercepts[fold] = np.log(count / count.sum()) - 0.5 * (mean.T * slope).sum(0)
    joined = slopes.reshape(width, -1).astype(np.float32)
    logits = np.empty((len(features), classes), dtype=np.float32)
    for rows in blocks(len(features), FOLDS * classes * 8):
        of_folds = (features[rows] @ joined).reshape(-1, FOLDS, classes) + intercepts
        logits[rows] = own_fold(of_folds, fold_of[rows])
    return logits


def _moments(
    features: np.ndarray, given: np.ndarray, fold_of: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By fold: labels of each class (F, K), sums of their features (F, K, d), sums of outer products (F, d, d)."""
    width = features.shape[1]
    counts = np.zeros((FOLDS, classes))
    sums, squares = np.zeros((FOLDS, classes, width)), np.zeros((FOLDS, width, width))
    for rows in blocks(len(features), width):
        for fold in range(FOLDS):
            mine = fold_of[rows] == fold
            block, labels = features[rows][mine], given[rows][mine]
            members = np.zeros((len(block), classes), dtype=np.float32)
            members[np.arange(len(block)), labels] = 1
            counts[fold] += members.sum(0)
            sums[fold] += members.T @ block
            squares[fold] += block.T @ block
    return counts, sums, squares


def calibrated(logits: np.ndarray, given: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """log p (N, K) by a temperature and class biases, and the mean -log p of the given labels.

    Logits (N, K), given labels (N,), -1 for none.  Both are those under which the given labels of at most 20,000
    images are likeliest.
    """
    known = np.flatnonzero(given >= 0)
    if len(known) > CALIBRATED_ON:
        known = generator.choice(known, CALIBRATED_ON, replace=False)
    sample, labels = logits[known].astype(np.float64), given[known]
    wanted = np.zeros_like(sample)
    wanted[np.arange(len(sample)), labels] = 1

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(np.exp(parameters[0]) * sample + parameters[1:], axis=1)
        residual = np.exp(log_p) - wanted
        slope = np.exp(parameters[0]) * (residual * sample).sum()
        gradient = np.append(slope, residual.sum(0)) / len(sample)
        return -float((wanted * log_p).sum()) / len(sample), gradient

    found = minimize(objective, np.zeros(1 + logits.shape[1]), jac=True, method="L-BFGS-B")
    log_p = log_softmax(np.exp(found.x[0]) * logits + found.x[1:], axis=1).astype(np.float32)
    return log_p, float(found.fun)

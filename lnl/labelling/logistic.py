"""Multinomial logistic regression out of fold, on hard, soft or partly missing targets.

The regressions of all folds are fitted as one: their losses add up, they share no parameter, and each block of images
is read once for all of them.  scikit-learn's LogisticRegression takes no soft targets, and fits one fold at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize

from lnl.labelling.blocks import blocks
from lnl.labelling.folds import FOLDS, own_fold

ITERATIONS = 10
PENALTIES = (3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6)
FIRST_PENALTY = 5  # its place in `PENALTIES`


def fit(
    features: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
    penalty: float,
    start: np.ndarray | None = None,
    iterations: int = ITERATIONS,
    folds: int = FOLDS,
) -> np.ndarray:
    """Weights (d + 1, folds, K), the last row the intercepts; those of a fold are fitted to the images of the others.

    Features (N, d) float32, targets (N, K): one-hot, soft, or a row of zeros for an image that is left out.  Each
    fold's mean cross-entropy plus penalty / 2 times its squared weights is brought down by L-BFGS from `start`,
    preconditioned by the diagonal of the Hessian where all classes are equally likely.
    """
    classes, width = targets.shape[1], features.shape[1]
    shape = (width + 1, folds, classes)
    mass = targets.sum(1)
    shares = mass[:, None] * (fold_of[:, None] != np.arange(folds))
    shares = (shares / shares.sum(0).clip(min=1e-12)).astype(np.float32)
    scaled = targets / mass.clip(min=1e-12)[:, None]
    scaled = scaled.astype(np.float32)
    spread = (1 - 1 / classes) / classes
    variance = np.append(np.einsum("nd,nd->d", features, features) / len(features) - features.mean(0) ** 2, 1.0)
    shrinkage = np.append(np.full(width, penalty), 0.0)
    conditioner = (1 / np.sqrt(spread * variance + np.maximum(shrinkage, 1e-12)))[:, None]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = conditioner * flat.reshape(width + 1, -1)
        gradient = shrinkage[:, None] * weights
        loss = 0.5 * float((gradient * weights).sum())
        single = weights.astype(np.float32)
        for rows in blocks(len(features), folds * classes * 8):
            block, share = features[rows], shares[rows][:, :, None]
            log_p = _log_softmax((block @ single[:-1] + single[-1]).reshape(len(block), folds, classes))
            wanted = scaled[rows][:, None, :] * share
            loss -= float(np.vdot(wanted, log_p))
            residual = (np.exp(log_p, out=log_p) * share - wanted).reshape(len(block), -1)
            gradient[:-1] += block.T @ residual
            gradient[-1] += residual.sum(0)
        return loss, (conditioner * gradient).ravel()

    first = np.zeros(shape) if start is None else start
    found = minimize(
        objective,
        (first.reshape(width + 1, -1) / conditioner).ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations},
    )
    return (conditioner * found.x.reshape(width + 1, -1)).reshape(shape)


def out_of_fold(features: np.ndarray, weights: np.ndarray, fold_of: np.ndarray) -> np.ndarray:
    """log p (N, K) float32 of each image by the regression of its own fold, which has not seen its label.

    Images of no fold: the mean of all folds' log p, normalised.
    """
    width, folds, classes = weights.shape[0] - 1, *weights.shape[1:]
    single = weights.reshape(width + 1, -1).astype(np.float32)
    result = np.empty((len(features), classes), dtype=np.float32)
    for rows in blocks(len(features), folds * classes * 8):
        logits = (features[rows] @ single[:-1] + single[-1]).reshape(-1, folds, classes)
        result[rows] = own_fold(_log_softmax(logits), fold_of[rows])
    return result


def walk(
    features: np.ndarray,
    targets: np.ndarray,
    fold_of: np.ndarray,
    first: int = FIRST_PENALTY,
    start: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
) -> tuple[int, np.ndarray, np.ndarray]:
    """The place of the penalty whose out-of-fold cross-entropy to the targets is smallest, its weights and log p.

    From `first` downwards while that improves; where the first step does not, upwards.
    """

    def attempt(place: int, start: np.ndarray | None) -> tuple[float, int, np.ndarray, np.ndarray]:
        weights = fit(features, targets, fold_of, penalties[place], start)
        log_p = out_of_fold(features, weights, fold_of)
        return -float(np.vdot(targets, log_p)), place, weights, log_p

    best = attempt(first, start)
    for step in (1, -1):
        place = first + step
        while 0 <= place < len(penalties) and (tried := attempt(place, best[2]))[0] < best[0]:
            best = tried
            place += step
        if best[1] != first:
            break
    return best[1:]


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis; the argument is overwritten."""
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits

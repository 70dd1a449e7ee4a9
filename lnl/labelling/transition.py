"""How true classes become given labels: confident learning, the transition matrix, and a share of wrong labels.

T[z, y] = P(given label y | true class z).  p (N, K) are class probabilities that do not use an image's own label.
Northcutt et al. 2021, "Confident learning" (arXiv:1911.00068), section 3; expectation maximisation for T alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

EM_STEPS = 30
PSEUDO_COUNT = 10  # images of each true class, spread evenly over the labels, that are added to what was counted
RARE = 1e-12  # least probability of a transition
SHARPNESS = (0.3, 4.0)  # least and largest exponent b
BISECTIONS = 10
FITTED_ON = 50_000  # images, at most, for T and b


def thresholds(p: np.ndarray, given: np.ndarray) -> np.ndarray:
    """t_k, the mean p[k] of the images that are labelled k: (N, K), (N,) -> (K,); infinite for a class without any."""
    counts = np.bincount(given, minlength=p.shape[1])
    sums = np.bincount(given, p[np.arange(len(p)), given], minlength=p.shape[1])
    return np.divide(sums, counts, out=np.full(p.shape[1], np.inf), where=counts > 0)


def confident_class(log_p: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The likeliest class among those whose probability reaches its threshold, -1 where none does.

    log p (N, K), labels (N,) -> (N,).
    """
    p = np.exp(log_p)
    reached = p >= thresholds(p, given)
    return np.where(reached.any(1), np.where(reached, p, -1).argmax(1), -1)


def joint(confident: np.ndarray, given: np.ndarray, classes: int) -> np.ndarray:
    """Images of confident class z (row) and label y (column), each column scaled to the number of labels y: (K, K).

    A label without a confident image counts as right.
    """
    known = confident >= 0
    counts = np.zeros((classes, classes))
    np.add.at(counts, (confident[known], given[known]), 1)
    empty = counts.sum(0) == 0
    counts[empty, empty] = 1
    return counts * (np.bincount(given, minlength=classes) / counts.sum(0))


def confident_transition(log_p: np.ndarray, given: np.ndarray) -> np.ndarray:
    """T of confident learning, the joint's rows normalised; a class without images keeps its label.

    log p (N, K), labels (N,) -> (K, K).
    """
    images = joint(confident_class(log_p, given), given, log_p.shape[1])
    totals = images.sum(1, keepdims=True)
    return np.where(totals > 0, images / np.where(totals > 0, totals, 1), np.eye(len(images)))


def confident_share(log_p: np.ndarray, given: np.ndarray) -> float:
    """The share of wrong labels by confident learning: what of the joint is off its diagonal.

    A classifier's own errors count as errors of labels, so that this is rather too large.
    """
    images = joint(confident_class(log_p, given), given, log_p.shape[1])
    return float(1 - np.trace(images) / images.sum())


def posterior(log_p: np.ndarray, given: np.ndarray, matrix: np.ndarray, sharpness: float = 1.0) -> np.ndarray:
    """q[z] proportional to p[z]^b T[z, y]: what the true class is, given image and label.

    log p (N, K), labels (N,), T (K, K) -> (N, K) float64.
    """
    log_q = sharpness * log_p.astype(np.float64) + np.log(matrix.T[given].clip(min=RARE))
    log_q -= log_q.max(1, keepdims=True)
    q = np.exp(log_q, out=log_q)
    q /= q.sum(1, keepdims=True)
    return q


def likeliest_sharpness(log_p: np.ndarray, given: np.ndarray, matrix: np.ndarray) -> float:
    """The exponent b under which the given labels are likeliest, by p^b T: probabilities fitted to soft targets are
    less sure than they could be.

    log p (N, K), labels (N,), T (K, K).
    """
    column = matrix.T[given].clip(min=RARE)

    def loss(log_sharpness: float) -> float:
        p = np.exp(log_softmax(np.exp(log_sharpness) * log_p.astype(np.float64), axis=1))
        return -float(np.log((p * column).sum(1)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(SHARPNESS), method="bounded", options={"xatol": 0.01}).x))


def wrong_share(q: np.ndarray, given: np.ndarray) -> float:
    """The mean of 1 - q[y]."""
    return float(1 - q[np.arange(len(q)), given].mean())


class Maximisation:
    """Expectation maximisation for T at a fixed p^b: which T makes the given labels likeliest.

    log p (N, K), labels (N,), of which at most 50,000 images are used.
    """

    def __init__(self, log_p: np.ndarray, given: np.ndarray, generator: np.random.Generator) -> None:
        chosen = np.arange(len(given))
        if len(given) > FITTED_ON:
            chosen = generator.choice(chosen, FITTED_ON, replace=False)
        order = chosen[np.argsort(given[chosen], kind="stable")]
        self.log_p = log_p[order].astype(np.float64)
        self.classes = log_p.shape[1]
        self.ends = np.cumsum(np.bincount(given[order], minlength=self.classes))

    def fit(self, sharpness: float = 1.0) -> tuple[np.ndarray, float]:
        """T (K, K) and the share of wrong labels under it: 30 steps from .7 of the identity and .3 spread evenly."""
        p = np.exp(sharpness * self.log_p)
        matrix = 0.7 * np.eye(self.classes) + 0.3 / self.classes
        right = 0.0
        for _ in range(EM_STEPS):
            sums = np.zeros_like(matrix)
            right = 0.0
            for label, of_label in self._by_label(p):
                sums[:, label] = matrix[:, label] * (of_label.T @ (1 / (of_label @ matrix[:, label])))
                right += float(sums[label, label])
            sums += PSEUDO_COUNT / self.classes
            matrix = sums / sums.sum(1, keepdims=True)
        return matrix, 1 - right / len(p)

    def sharpness_for(self, share: float) -> float:
        """The exponent b at which the share of wrong labels is the one asked for, or the nearest within its bounds."""
        low, high = np.log(SHARPNESS)
        rising = self.fit(np.exp(high))[1] > self.fit(np.exp(low))[1]
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            if (self.fit(np.exp(middle))[1] < share) == rising:
                low = middle
            else:
                high = middle
        return float(np.exp((low + high) / 2))

    def _by_label(self, p: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        start = 0
        for label, end in enumerate(self.ends):
            if end > start:
                yield label, p[start:end]
            start = end

"""What reviews say of a detector's probabilities: they are recalibrated, and with them the share of wrong labels.

P(error) becomes sigmoid(a + e^b logit P), fitted to the reviewed labels under the priors a ~ N(0, 1.5²) and
b ~ N(0, 0.5²), so that a few reviews correct the level and many the slope (Platt 1999, with priors).  Between reviews
nothing is fitted anew to the images: that would win nothing before some hundreds of reviews.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from lnl.labelling.problem import Share, Suspicion

PRIOR_SHIFT, PRIOR_LOG_SLOPE = 1.5, 0.5  # standard deviations of a and b
# No probability counts as nearer to 0 or 1: features that hardly tell classes apart make many near 1, which a few
# reviews must be able to undo.
LOWEST, HIGHEST = 1e-4, 0.99
DRAWS = 2000  # of a and b, for the interval
INTERVAL = (0.025, 0.975)


@dataclass(frozen=True)
class Recalibration:
    """sigmoid(shift + exp(log_slope) logit P), and how sure both parameters are."""

    shift: float = 0.0
    log_slope: float = 0.0
    covariance: tuple[tuple[float, float], tuple[float, float]] = ((PRIOR_SHIFT**2, 0.0), (0.0, PRIOR_LOG_SLOPE**2))

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Probabilities (N,) -> (N,); NaN stays NaN."""
        return expit(self.shift + np.exp(self.log_slope) * _logits(probability))


def recalibration(probability: np.ndarray, wrong: np.ndarray) -> Recalibration:
    """The likeliest recalibration, given a detector's probabilities (n,) for the reviewed labels and which were wrong.

    Without reviews it changes nothing.  The covariance is that of the normal distribution at the maximum (Laplace).
    """
    logits, outcome = _logits(probability), np.asarray(wrong, dtype=np.float64)
    precision = np.diag([PRIOR_SHIFT**-2, PRIOR_LOG_SLOPE**-2])

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        steep = np.exp(parameters[1]) * logits
        z = parameters[0] + steep
        residual = expit(z) - outcome
        loss = float((np.logaddexp(0, z) - outcome * z).sum() + parameters @ precision @ parameters / 2)
        return loss, np.array([residual.sum(), (residual * steep).sum()]) + precision @ parameters

    found = minimize(objective, np.zeros(2), jac=True, method="BFGS", options={"gtol": 1e-6 * max(1, len(outcome))})
    shift, log_slope = map(float, found.x)
    steep = np.exp(log_slope) * logits
    weight = expit(shift + steep) * expit(-shift - steep)
    columns = np.stack([np.ones_like(steep), steep])
    covariance = np.linalg.inv((columns * weight) @ columns.T + precision)  # Fisher's information and the priors
    (a, b), (c, d) = covariance.tolist()
    return Recalibration(shift, log_slope, ((a, b), (c, d)))


def after_reviews(suspicion: Suspicion, positions: np.ndarray, wrong: np.ndarray) -> Suspicion:
    """A detector's answer, recalibrated on the labels at `positions` (n,) that reviewers found wrong or right (n,).

    Its probabilities change, its ranking does not.  The share of wrong labels and its 95 % interval are those of the
    reviewed labels as they were found, and of the others by their new probabilities; so many of the first are flagged.
    The interval knows the uncertainty of a and b, not that reviews of the most suspect say little of the others.
    """
    if not len(positions):
        return suspicion
    fitted = recalibration(suspicion.probability[positions], wrong)
    reviewed = np.zeros(len(suspicion.score), dtype=bool)
    reviewed[positions] = True
    share = _share(suspicion.probability, reviewed, int(np.sum(wrong)), fitted)
    return replace(
        suspicion,
        probability=fitted(suspicion.probability),
        flagged=most_suspect(suspicion.score, share.value),
        wrong=share,
    )


def most_suspect(score: np.ndarray, share: float) -> np.ndarray:
    """Whether a label is among this share of the judged ones, the most suspect first: scores (N,) -> (N,) bool."""
    judged = np.flatnonzero(np.isfinite(score))
    flagged = np.zeros(len(score), dtype=bool)
    flagged[judged[np.argsort(-score[judged], kind="stable")[: round(share * len(judged))]]] = True
    return flagged


def expected_errors(score: np.ndarray, probability: np.ndarray, images: int) -> float:
    """How many errors to expect among so many of the most suspect: scores and probabilities (N,)."""
    judged = np.flatnonzero(np.isfinite(score))
    return float(probability[judged[np.argsort(-score[judged], kind="stable")[:images]]].sum())


def _share(probability: np.ndarray, reviewed: np.ndarray, found: int, fitted: Recalibration) -> Share:
    """The share of wrong labels where `found` of the reviewed are wrong, with its interval."""
    others = probability[np.isfinite(probability) & ~reviewed]
    judged = len(others) + int(reviewed.sum())
    values, counts = np.unique(np.round(_logits(others), 1), return_counts=True)
    draws = np.random.default_rng(0).multivariate_normal((fitted.shift, fitted.log_slope), fitted.covariance, DRAWS)
    shares = (found + expit(draws[:, :1] + np.exp(draws[:, 1:]) * values) @ counts) / judged
    low, high = np.quantile(shares, INTERVAL)
    value = (found + float(fitted(others).sum())) / judged
    return Share(value, min(value, float(low)), max(value, float(high)))


def _logits(probability: np.ndarray) -> np.ndarray:
    return logit(np.clip(probability, LOWEST, HIGHEST))

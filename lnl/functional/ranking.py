"""How well scores rank, on their device: scikit-learn's numbers, without its import, two seconds of a short trial."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def roc_area(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve, the probability that a positive has a larger score than a negative; ties count half.

    Scores (N,), positive (N,) bool.  Scores that are not finite do not count; NaN where one of the two kinds has none.
    """
    of_positives, of_negatives = _counted(scores, positive)
    below = of_negatives.cumsum(0) - of_negatives
    pairs = of_positives.sum() * of_negatives.sum()
    return float((of_positives * (below + of_negatives / 2)).sum() / pairs) if pairs else math.nan


def average_precision(scores: Tensor, positive: Tensor) -> float:
    """Sum over the scores, the largest first, of the recall that each adds times the precision down to it.

    Arguments as of `roc_area`; NaN where one of the two kinds has no finite score.
    """
    of_positives, of_negatives = (counts.flip(0) for counts in _counted(scores, positive))
    if not of_positives.any() or not of_negatives.any():
        return math.nan
    found = of_positives.cumsum(0)
    precision = found / (found + of_negatives.cumsum(0))
    return float((precision * of_positives).sum() / of_positives.sum())


def _counted(scores: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """Positives and negatives at each score that occurs, the smallest first."""
    known = scores.isfinite()
    values, place = torch.unique(scores[known], return_inverse=True)
    positive = positive[known].double()
    of_positives = torch.bincount(place, positive, minlength=len(values))
    return of_positives, torch.bincount(place, minlength=len(values)) - of_positives

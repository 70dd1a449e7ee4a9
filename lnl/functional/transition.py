"""Transition matrices T[i, j] = P(given label j | true label i): written down, estimated, and corrected for.

Rows sum to 1: the noisy posterior of a row p of class probabilities is p @ T.  Losses are float32 whatever the
network's precision, and their logarithms have floors, because T has zeros.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

RARE = 1e-12  # least probability of a transition inside a logarithm
UNLIKELY = 1e-7  # least class probability of the backward correction, as in Patrini's code


def matrix(
    kind: str, rate: float, classes: int, mapping: Sequence[int] | None = None, include_true: bool = False
) -> Tensor:
    """T of the noise that `lnl.functional.noise` draws: (K, K) float64.  For studies that hand a method the truth.

    `symmetric` (`include_true`: the new label is uniform over all classes, the true one among them), `pair`, or
    `asymmetric` with the `mapping` of `lnl.functional.noise.asymmetric_map`.  Raises ValueError for other kinds.
    """
    if include_true and kind != "symmetric":
        raise ValueError(f"include_true belongs to symmetric noise: leave it out for '{kind}'.")
    same = torch.eye(classes, dtype=torch.float64)
    if kind == "symmetric":
        other = torch.full_like(same, 1 / classes) if include_true else (1 - same) / (classes - 1)
    elif kind == "pair":
        other = same.roll(1, dims=1)
    elif kind == "asymmetric" and mapping is not None:
        other = same[list(mapping)]
    else:
        raise ValueError(
            f"Noise '{kind}' has no matrix to write down: choose symmetric, pair, or asymmetric with its mapping."
        )
    return (1 - rate) * same + rate * other


# ---------------------------------------------------------------------------------------------------------- estimates


def from_anchors(probabilities: Tensor, percentile: float = 1.0) -> Tensor:
    """T̂ whose row i is the prediction for the anchor of class i, the image with the largest p_i (Patrini et al. 2017).

    Noisy posteriors (N, K) -> (K, K).  Below 1, images whose p_i reaches this percentile of p_i (numpy's `higher`) are
    no anchors of class i: outliers.  The official code filters inside its table of predictions, so that later
    classes' filters delete strong confusions of anchors found before; here each class is filtered on its own.
    """
    candidates = probabilities
    if percentile < 1:
        rank = math.ceil(percentile * (len(probabilities) - 1))
        threshold = probabilities.sort(dim=0).values[rank]
        candidates = probabilities.where(probabilities < threshold, 0.0)
    return probabilities[candidates.argmax(dim=0)]


def from_trusted(probabilities: Tensor, labels: Tensor, classes: int) -> Tensor:
    """T̂ whose row i is the mean prediction for images that truly are of class i (GLC, Hendrycks et al. 2018).

    Noisy posteriors (N, K) and right labels (N,) -> (K, K); the identity's row for a class that does not occur.
    """
    members = one_hot(labels, classes).to(probabilities.dtype)
    counts = members.sum(dim=0)[:, None]
    same = torch.eye(classes, dtype=probabilities.dtype, device=probabilities.device)
    return torch.where(counts > 0, members.mT @ probabilities / counts.clamp(min=1), same)


# --------------------------------------------------------------------------------------------------------- correction


def forward_correction(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """-log (p @ T)_n for the given label n (Patrini et al. 2017, theorem 2; GLC's loss of untrusted images).

    Under the right T its minimiser is the clean posterior.  Logits (..., K), labels (...), T (K, K) -> (...).
    """
    return -torch.logsumexp(_joint(logits, labels, matrix), dim=-1)


def posterior(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """P(true class i | image, given label n) = p_i T_in / Σ_j p_j T_jn.  Shapes as above -> (..., K)."""
    return torch.softmax(_joint(logits, labels, matrix), dim=-1)


def backward_correction(logits: Tensor, labels: Tensor, inverse: Tensor) -> Tensor:
    """Σ_j (T⁻¹)_nj ℓ_j with ℓ_j = -log p_j (Patrini et al. 2017, theorem 1).  T⁻¹ (K, K), shapes as above -> (...).

    Its expectation over the given label is the loss of the true one, but it can be negative.  Without the floor of p_j
    it would have no lower bound: T⁻¹ rewards making classes impossible.
    """
    logarithms = torch.log_softmax(logits, dim=-1, dtype=torch.float32).clamp(min=math.log(UNLIKELY))
    return -(inverse[labels] * logarithms).sum(dim=-1)


def inverse(matrix: Tensor) -> Tensor:
    """T⁻¹, or the pseudo-inverse where two classes share their anchor.  (K, K) -> (K, K)."""
    return torch.linalg.pinv(matrix.double(), rtol=1e-6).to(matrix.dtype)  # a T̂ is not known better than float32


def _joint(logits: Tensor, labels: Tensor, matrix: Tensor) -> Tensor:
    """log P(true class i, given label n | image) = log p_i + log T_in.  (..., K)."""
    column = matrix.float().clamp(min=RARE).log().mT[labels]
    return torch.log_softmax(logits, dim=-1, dtype=torch.float32) + column

"""Losses per example, in float32 whatever the precision of the network: the caller weights and averages them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize, softplus


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y.  Logits (..., K), labels (...) -> (...)."""
    return -torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-Σ_k q_k log p_k.  Logits and targets (..., K) -> (...)."""
    return -(targets * torch.log_softmax(logits, -1, dtype=torch.float32)).sum(-1)


def generalised_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """L_q = (1 - p_y^q) / q for 0 < q <= 1, Zhang & Sabuncu 2018: near cross-entropy at q near 0, 1 - p_y at 1.

    Its gradient is p_y^q times that of cross-entropy.  By the logarithm of p_y: where p_y underflows to 0, the
    derivative of a power would be 0 · ∞.  Logits (..., K), labels (...) -> (...).
    """
    return torch.expm1(-q * cross_entropy(logits, labels)) / -q


def kl_divergence(target: Tensor, logits: Tensor) -> Tensor:
    """KL(p || q) = Σ_k p_k (log p_k - log q_k), p and q the softmax of the two logits.  (..., K), (..., K) -> (...)."""
    log_p = torch.log_softmax(target, -1, dtype=torch.float32)
    return (log_p.exp() * (log_p - torch.log_softmax(logits, -1, dtype=torch.float32))).sum(-1)


def negative_entropy(logits: Tensor) -> Tensor:
    """Σ_k p_k log p_k, the confidence penalty of Pereyra et al. 2017: lowest for uniform p.  (..., K) -> (...)."""
    log_p = torch.log_softmax(logits, -1, dtype=torch.float32)  # p log p by the logarithm of p is NaN where p is 0
    return (log_p.exp() * log_p).sum(-1)


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """(1/K) Σ_k (p_k - q_k)², the mean over classes of MixMatch eq. 4.  Logits and targets (..., K) -> (...)."""
    return (torch.softmax(logits, -1, dtype=torch.float32) - targets).square().mean(-1)


def uniform_prior(logits: Tensor) -> Tensor:
    """Σ_k (1/K) log((1/K) / p̄_k), p̄ the batch mean of p: keeps the predictions from one class.  (..., B, K) -> (...).

    Tanaka et al. 2018, eq. 8, with a uniform prior; in logarithms, so that the loss of a class that is never predicted
    is finite.
    """
    average = torch.log_softmax(logits, -1, dtype=torch.float32).logsumexp(-2) - math.log(logits.shape[-2])
    return -math.log(logits.shape[-1]) - average.mean(-1)


def nt_xent(first: Tensor, second: Tensor, temperature: float, images: Tensor | None = None) -> Tensor:
    """SimCLR's loss of each of 2N views, Chen et al. 2020 eq. 1: find the other view of the same image among 2N - 1.

    Projections of the two views (..., N, D), of any length -> (..., 2N), the first views before the second ones.
    The paper's loss is the mean (the official code returns twice that).  `images` (N,) names each image: where one
    occurs twice in the batch, its other views are no negatives of it.
    """
    count = first.shape[-2]
    with torch.autocast(first.device.type, enabled=False):  # autocast would multiply in half precision
        views = normalize(torch.cat([first, second], -2).float(), dim=-1)
        similarities = views @ views.mT / temperature  # (..., 2N, 2N)
    names = torch.arange(count, device=first.device) if images is None else images
    other = torch.arange(2 * count, device=first.device).roll(count)
    same = (names[:, None] == names).repeat(2, 2)
    same[other.roll(count), other] = False  # every view keeps its partner
    return cross_entropy(similarities.masked_fill(same, -torch.inf), other.expand(similarities.shape[:-1]))


def barlow_twins(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Σ_i (1 - C_ii)² + weight Σ_{i≠j} C_ij², Zbontar et al. 2021 eq. 1: of a whole batch, not per example.

    C (D, D) correlates the dimensions of the two views (..., N, D) over the batch: standardised with the biased
    variance and ε = 1e-5, as BatchNorm does -> (...).  Noise of the sample alone keeps it above
    weight · D (D - 1) / N.
    """
    with torch.autocast(first.device.type, enabled=False):  # autocast would multiply in half precision
        first, second = _standardised(first.float()), _standardised(second.float())
        correlations = first.mT @ second / first.shape[-2]
    diagonal = correlations.diagonal(dim1=-2, dim2=-1)
    redundancy = correlations.square().sum((-2, -1)) - diagonal.square().sum(-1)
    return (1 - diagonal).square().sum(-1) + weight * redundancy


def _standardised(values: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the batch (..., N, D); a constant dimension becomes 0."""
    variance, mean = torch.var_mean(values, -2, correction=0, keepdim=True)
    return (values - mean) * (variance + 1e-5).rsqrt()


def negative_cosine(first: Tensor, second: Tensor) -> Tensor:
    """-cos(p, z), from -1 to 1, of vectors (..., D) -> (...).  BYOL (Grill et al. 2020, eq. 2) takes 2 - 2 cos."""
    with torch.autocast(first.device.type, enabled=False):
        return -(normalize(first.float(), dim=-1) * normalize(second.float(), dim=-1)).sum(-1)


def batch_hard_triplet(embeddings: Tensor, images: Tensor) -> Tensor:
    """log(1 + e^(p - n)) of each example, Hermans et al. 2017 (arXiv:1703.07737) eq. 5 with a soft margin.

    p: Euclidean distance to the farthest other view of the same image, n: to the nearest view of another one.
    Embeddings (N, D), as long as they are; `images` (N,) names each view's image -> (N,).  An example without a
    positive or without a negative costs 0.
    """
    with torch.autocast(embeddings.device.type, enabled=False):
        values = embeddings.float()
        # By differences: squares minus products lose tiny distances, and with them their gradients.
        distances = torch.cdist(values, values, compute_mode="donot_use_mm_for_euclid_dist")
    same = images[:, None] == images
    is_another_view = ~torch.eye(len(images), dtype=torch.bool, device=images.device)
    farthest = distances.masked_fill(~(same & is_another_view), -torch.inf).amax(-1)
    nearest = distances.masked_fill(same, torch.inf).amin(-1)
    return softplus(farthest - nearest)

"""Which labels to trust: by small losses, by the labels of neighbours, by FINE's scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize

POWER_STEPS = 50  # products of a power iteration


def smallest(losses: Tensor, rate: float) -> Tensor:
    """Indices of the round(rate · B) smallest losses, at least one.  (..., B) -> (..., kept)."""
    return losses.topk(max(1, round(rate * losses.shape[-1])), dim=-1, largest=False).indices


def indices_or_all(mask: Tensor) -> Tensor:
    """Indices where the mask (N,) bool is True -> (kept,); all of them if it never is."""
    return (mask if mask.any() else ~mask).nonzero().squeeze(-1)


def neighbour_agreement(labels: Tensor, cosines: Tensor, neighbours: Tensor, temperature: float) -> Tensor:
    """Share of an image's neighbours that have its label, each weighing exp(cosine / temperature); infinite: all alike.

    Labels (N,), cosines and indices of the neighbours (N, k) as from `graph.nearest` -> (N,).
    """
    weights = torch.softmax(cosines.float() / temperature, -1)
    return (weights * (labels[neighbours] == labels.unsqueeze(-1))).sum(-1)


def fine_scores(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """|<u, z / |z|>|, u the leading eigenvector of the Gram matrix Σ z zᵀ of the images with z's label.

    FINE, Kim et al. 2021, eq. 1: near 1 where an image lies along its class.  (N, D), (N,) -> (N,), float64.
    By power iteration, of all classes at once, from a vector that is positive, as u is for features that are, and else
    orthogonal to nothing in particular: `POWER_STEPS` products shrink an error by (λ₂/λ₁)^POWER_STEPS.
    """
    features = features.detach().double()
    grams = torch.stack([features[labels == k].mT @ features[labels == k] for k in range(classes)])  # (K, D, D)
    leading = 1 + torch.arange(features.shape[-1], device=features.device).cos().double().expand(classes, -1)
    for _ in range(POWER_STEPS):
        leading = normalize((grams @ leading.unsqueeze(-1)).squeeze(-1), dim=-1)
    return (normalize(features, dim=-1) * leading[labels]).sum(-1).abs()

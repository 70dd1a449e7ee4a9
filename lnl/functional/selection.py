"""Which labels to trust: small losses and mixtures of two components.

Everything works on the last axis, the images; leading axes are networks.  Mixtures are for once an epoch, in float64.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import normalize

if TYPE_CHECKING:  # imported where it is used: that takes a second
    pass

PRODUCTS = 50  # of a power iteration


def smallest(losses: Tensor, rate: float) -> Tensor:
    """Places of the round(rate · B) smallest losses, at least one.  (..., B) -> (..., kept)."""
    return losses.topk(max(1, round(rate * losses.shape[-1])), dim=-1, largest=False).indices


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
    orthogonal to nothing in particular: `PRODUCTS` steps shrink an error by (λ₂/λ₁)^PRODUCTS.
    """
    features = features.detach().double()
    grams = torch.stack([features[labels == one].mT @ features[labels == one] for one in range(classes)])  # (K, D, D)
    leading = 1 + torch.arange(features.shape[-1], device=features.device).cos().double().expand(classes, -1)
    for _ in range(PRODUCTS):
        leading = normalize((grams @ leading.unsqueeze(-1)).squeeze(-1), dim=-1)
    return (normalize(features, dim=-1) * leading[labels]).sum(-1).abs()

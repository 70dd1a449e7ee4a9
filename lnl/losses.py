"""Losses per example, in float32 whatever the precision of the network: the caller weights and averages them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y.  Logits (..., K), labels (...) -> (...)."""
    return -torch.log_softmax(logits, -1, dtype=torch.float32).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """-Σ_k q_k log p_k.  Logits and targets (..., K) -> (...)."""
    return -(targets * torch.log_softmax(logits, -1, dtype=torch.float32)).sum(-1)


def squared_error(logits: Tensor, targets: Tensor) -> Tensor:
    """(1/K) Σ_k (p_k - q_k)², the mean over classes of MixMatch eq. 4.  Logits and targets (..., K) -> (...)."""
    return (torch.softmax(logits, -1, dtype=torch.float32) - targets).square().mean(-1)


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

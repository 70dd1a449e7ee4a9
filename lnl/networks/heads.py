"""Heads: what stands on the features of a backbone."""

from __future__ import annotations

from torch import nn


def linear(width: int, classes: int) -> nn.Linear:
    """Class logits: (..., width) -> (..., classes)."""
    return nn.Linear(width, classes)


def projection(width: int, hidden: int = 128, out: int = 128) -> nn.Sequential:
    """The projection head of SimCLR (Chen et al. 2020): (..., width) -> (..., out).

    Without BatchNorm, so that a frozen head keeps no statistics that could still change.
    """
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))


def mlp(width: int, hidden: int, out: int, layers: int = 2) -> nn.Sequential:
    """`layers` linear layers with BatchNorm and ReLU between them: (B, width) -> (B, out).

    Two are BYOL's projector and predictor (Grill et al. 2020), three the projector of Barlow Twins (Zbontar et al.
    2021), none the identity.
    """
    modules: list[nn.Module] = []
    for _ in range(layers - 1):
        modules += [nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True)]
        width = hidden
    return nn.Sequential(*modules, *([nn.Linear(width, out)] if layers else []))

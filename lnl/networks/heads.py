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

"""Backbones for vectors: one hidden layer, and none, on which every head is a linear classifier."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class MLP(nn.Module):
    """A linear layer with 512 outputs and ReLU, without BatchNorm: (B, inputs) -> (B, 512)."""

    width = 512

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(inputs, self.width)

    def forward(self, vectors: Tensor) -> Tensor:
        return relu(self.hidden(vectors))


class Linear(nn.Module):
    """No layer and no weights, so that a linear head is a linear classifier: (B, inputs) -> (B, inputs)."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.width = inputs

    def forward(self, vectors: Tensor) -> Tensor:
        return vectors

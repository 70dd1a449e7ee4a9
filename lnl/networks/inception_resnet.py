"""Inception-ResNet-v2 (Szegedy et al. 2017, arXiv:1602.07261): inception blocks whose sum with their input is scaled.

Layers and widths are those of the authors' TensorFlow code, whose published parameters are 55.8 million: its stem is
simpler than the paper's figure 3.  Left out: dropout before the classifier (its draws would come from none of a
trial's streams), and the auxiliary classifier, which the paper does not have and the code only on request.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

Kernel = int | tuple[int, int]
Layer = tuple[int, Kernel, int, bool]  # outputs, kernel, stride, whether its edges are padded


class Convolution(nn.Sequential):
    """A convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Kernel = 1, stride: int = 1, padded: bool = True) -> None:
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        super().__init__(
            nn.Conv2d(inputs, outputs, (height, width), stride, padding, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.ReLU(),
        )


def _branch(inputs: int, *layers: Layer) -> nn.Sequential:
    """Convolutions one after the other."""
    widths = [inputs, *(layer[0] for layer in layers)]
    return nn.Sequential(*(Convolution(width, *layer) for width, layer in zip(widths, layers, strict=False)))


def _same(*layers: tuple[int, Kernel]) -> tuple[Layer, ...]:
    """Layers of stride 1 that keep the size, by outputs and kernel."""
    return tuple((outputs, kernel, 1, True) for outputs, kernel in layers)


class Branches(nn.Module):
    """Branches side by side, their channels joined: (B, inputs, H, W) -> (B, sum of outputs, H', W')."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([branch(images) for branch in self.branches], dim=1)


class Residual(nn.Module):
    """x + scale · (branches of x, brought to its channels by a convolution with bias), and ReLU where `activated`."""

    def __init__(self, inputs: int, scale: float, *branches: tuple[Layer, ...], activated: bool = True) -> None:
        super().__init__()
        self.scale, self.activated = scale, activated
        self.branches = Branches(*(_branch(inputs, *layers) for layers in branches))
        self.joined = nn.Conv2d(sum(layers[-1][0] for layers in branches), inputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        total = images + self.scale * self.joined(self.branches(images))
        return functional.relu(total) if self.activated else total


def _valid(outputs: int, stride: int = 2) -> Layer:
    """A layer of 3 × 3 whose edges are not padded."""
    return outputs, 3, stride, False


class InceptionResNetV2(nn.Sequential):
    """Images of at least 75 pixels, 299 in the paper: (B, C, H, W) -> (B, 1536)."""

    def __init__(self, channels: int = 3) -> None:
        pool = nn.MaxPool2d(3, stride=2)
        a = ((32, 1),), ((32, 1), (32, 3)), ((32, 1), (48, 3), (64, 3))
        b = ((192, 1),), ((128, 1), (160, (1, 7)), (192, (7, 1)))
        c = ((192, 1),), ((192, 1), (224, (1, 3)), (256, (3, 1)))
        super().__init__(
            _branch(channels, _valid(32), _valid(32, 1), (64, 3, 1, True)),
            pool,
            _branch(64, (80, 1, 1, False), _valid(192, 1)),
            pool,
            Branches(
                _branch(192, *_same((96, 1))),
                _branch(192, *_same((48, 1), (64, 5))),
                _branch(192, *_same((64, 1), (96, 3), (96, 3))),
                nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), Convolution(192, 64)),
            ),
            *(Residual(320, 0.17, *(_same(*layers) for layers in a)) for _ in range(10)),
            Branches(
                _branch(320, _valid(384)),
                _branch(320, *_same((256, 1), (256, 3)), _valid(384)),
                pool,
            ),
            *(Residual(1088, 0.10, *(_same(*layers) for layers in b)) for _ in range(20)),
            Branches(
                _branch(1088, *_same((256, 1)), _valid(384)),
                _branch(1088, *_same((256, 1)), _valid(288)),
                _branch(1088, *_same((256, 1), (288, 3)), _valid(320)),
                pool,
            ),
            *(Residual(2080, 0.20, *(_same(*layers) for layers in c)) for _ in range(9)),
            Residual(2080, 1.0, *(_same(*layers) for layers in c), activated=False),
            Convolution(2080, 1536),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.width = 1536

"""A small convolutional network for digits and for quick runs on a CPU."""

from __future__ import annotations

from torch import Tensor, nn


def _block(inputs: int, outputs: int, *pooling: nn.Module) -> list[nn.Module]:
    """Pooling comes before the activation: both are monotone, so the result is the same for a quarter of the work."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(outputs), *pooling, nn.LeakyReLU(0.1, inplace=True)]


class SmallConvNet(nn.Module):
    """Three 3×3 convolutions of 24, 48 and 96 channels with pooling between: (B, C, H, W) -> (B, 96)."""

    width = 96

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(  # on a CPU max-pooling is faster, and on digits better, than strided convolutions
            *_block(channels, 24, nn.MaxPool2d(2)), *_block(24, 48, nn.MaxPool2d(2)), *_block(48, self.width)
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((-2, -1))

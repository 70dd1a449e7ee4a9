"""Plain convolutional networks: a small one for quick runs, that of seed document 002, and Co-teaching's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Generator, Tensor, nn


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


class ConvNet002(nn.Module):
    """The ConvNet of seed document 002: (B, C, size, size) -> (B, width), the last map itself, not its average.

    Blocks of a 3×3 convolution with stride 2 to 128 channels and ReLU.  On its 96 pixels five of them without padding
    leave 2×2 pixels, width 512.  Images on which those would leave less get as many padded ones as lead to 2×2, which
    is the same width: four on 32 pixels.
    """

    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        blocks, padding, side = 5, 0, size
        for _ in range(blocks):
            side = (side - 1) // 2
        if side < 2:
            padding, side = 1, 2
            blocks = (size - 1).bit_length() - 1  # each block halves the image, rounded up
        layers: list[nn.Module] = []
        for block in range(blocks):
            inputs = 128 if block else channels
            layers += [nn.Conv2d(inputs, 128, 3, stride=2, padding=padding), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.width = 128 * side**2

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class ChannelDropout(nn.Module):
    """Sets whole channels to zero in training: (B, C, H, W) -> (B, C, H, W).

    PyTorch's draws from the global generator; this one from a stream of its own, seeded by the stream that initialises
    the network and by the layer's `index` in it.  The state dict counts the draws, so that a restored network draws the
    masks that it would have drawn.
    """

    def __init__(self, probability: float, index: int) -> None:
        super().__init__()
        self.probability, self.seed, self.draws = probability, torch.initial_seed() // 2 + (index << 24), 0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.draws)

    def set_extra_state(self, state: Tensor) -> None:
        self.draws = int(state)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        self.draws += 1
        generator = Generator(x.device).manual_seed(self.seed + self.draws)
        kept = torch.rand(x.shape[:2], generator=generator, device=x.device) >= self.probability
        return x * kept[..., None, None] / (1 - self.probability)


@contextmanager
def dropout_repeated(module: nn.Module, ahead: int = 0) -> Iterator[None]:
    """Within the block, dropout draws the masks that are due `ahead` passes from now, and its count of draws stays.

    So blocks with the same `ahead` draw the same masks.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, ChannelDropout)]
    before = [layer.draws for layer in layers]
    for layer in layers:
        layer.draws += ahead
    try:
        yield
    finally:
        for layer, draws in zip(layers, before, strict=True):
            layer.draws = draws


class CoTeachingCNN(nn.Module):
    """The nine convolutions of Co-teaching (Han et al. 2018, table 2): (B, C, H, W) -> (B, 128), from 28 pixels up.

    The official code's dropout stays active in evaluation; here it does not.
    """

    width = 128

    def __init__(self, channels: int) -> None:
        super().__init__()

        def convolutions(*widths: int, padding: int) -> Iterator[nn.Module]:
            for inputs, outputs in pairwise(widths):
                yield nn.Conv2d(inputs, outputs, 3, padding=padding)
                yield nn.BatchNorm2d(outputs)
                yield nn.LeakyReLU(0.01, inplace=True)

        self.layers = nn.Sequential(
            *convolutions(channels, 128, 128, 128, padding=1),
            nn.MaxPool2d(2),
            ChannelDropout(0.25, index=0),
            *convolutions(128, 256, 256, 256, padding=1),
            nn.MaxPool2d(2),
            ChannelDropout(0.25, index=1),
            *convolutions(256, 512, 256, 128, padding=0),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images).mean((-2, -1))

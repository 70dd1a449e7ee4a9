"""ResNet-29 as in the code of IEG (Zhang et al. 2020, arXiv:1910.00701): pre-activation bottlenecks, depth 9n + 2.

The first 1×1 convolution of a block has BatchNorm before it but no ReLU, and in the very first block neither: the code
that IEG builds on skips both in that one block, IEG's forgets to switch the ReLU on again.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """1×1, 3×3 and 1×1 convolutions, each after BatchNorm, the last two also after ReLU, and a shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int = 1, normalised: bool = True) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs) if normalised else nn.Identity()
        self.conv1 = nn.Conv2d(inputs, hidden, 1, stride, bias=False)
        self.norm2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(hidden)
        self.conv3 = nn.Conv2d(hidden, outputs, 1, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv2(relu(self.norm2(self.conv1(self.norm1(x))), inplace=True))
        return self.conv3(relu(self.norm3(hidden), inplace=True)) + self.shortcut(x)


class ResNet29(nn.Module):
    """A stem of 16 channels and three stages of three blocks to 64, 128 and 256: (B, C, H, W) -> (B, 256)."""

    width = 256

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        blocks: list[Block] = []
        for inputs, hidden, outputs, stride in [(16, 16, 64, 1), (64, 64, 128, 2), (128, 128, 256, 2)]:
            blocks.append(Block(inputs, hidden, outputs, stride, normalised=inputs > 16))
            blocks += [Block(outputs, hidden, outputs) for _ in range(2)]
        self.blocks = nn.Sequential(*blocks)
        self.norm2 = nn.BatchNorm2d(self.width)

    def forward(self, images: Tensor) -> Tensor:
        stem = relu(self.norm1(self.conv(images)), inplace=True)
        return relu(self.norm2(self.blocks(stem)), inplace=True).mean((-2, -1))

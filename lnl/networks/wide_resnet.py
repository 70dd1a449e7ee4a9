"""Wide ResNet-28 (Zagoruyko & Komodakis 2016) in the layout of the official MixMatch code, without convolution biases.

Every block normalises and activates before its first convolution.  The most copied PyTorch version feeds it the raw
input where the number of channels changes in stages two and three, which leaves two BatchNorms without any gradient.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

activate = partial(leaky_relu, negative_slope=0.1, inplace=True)
batch_norm = partial(nn.BatchNorm2d, eps=1e-3)  # TensorFlow's default epsilon, under which MixMatch was tuned


class Block(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and LeakyReLU, and a shortcut.

    A shortcut that changes the number of channels is a 1×1 convolution of the raw input; only the network's first block
    (`activated_shortcut`) takes it after the activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, activated_shortcut: bool = False) -> None:
        super().__init__()
        self.norm1 = batch_norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = batch_norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        self.activated_shortcut = activated_shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = activate(self.norm1(x))
        hidden = activate(self.norm2(self.conv1(activated)))
        return self.conv2(hidden) + self.shortcut(activated if self.activated_shortcut else x)


class WideResNet28(nn.Module):
    """A stem of 16 channels, then four blocks each of 16, 32 and 64 × factor: (B, C, H, W) -> (B, 64 × factor)."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.width = 64 * factor
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        blocks: list[Block] = []
        for stage, (inputs, outputs) in enumerate(pairwise((16, 16 * factor, 32 * factor, 64 * factor))):
            first = Block(inputs, outputs, stride=1 if stage == 0 else 2, activated_shortcut=stage == 0)
            blocks += [first, *(Block(outputs, outputs) for _ in range(3))]
        self.blocks = nn.Sequential(*blocks)
        self.norm = batch_norm(self.width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, by fan-out, as MixMatch does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return activate(self.norm(self.blocks(self.conv(images)))).mean((-2, -1))

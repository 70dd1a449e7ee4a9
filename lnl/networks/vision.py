"""Networks of torchvision without their last layer, for pre-trained weights, and ones for small images.

Stochastic depth is off: its draws would come from none of a trial's streams.
"""

from __future__ import annotations

from torch import Tensor, nn
from torchvision import models
from torchvision.models.convnext import CNBlockConfig
from torchvision.ops import StochasticDepth


class Headless(nn.Module):
    """A network of torchvision up to its features: (B, C, H, W) -> (B, width).  Grey images become three channels."""

    def __init__(self, network: nn.Module, width: int) -> None:
        super().__init__()
        self.network, self.width = network, width

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.network(images.expand(-1, 3, -1, -1))
        return features


def resnet(name: str, stem: str) -> Headless:
    """`resnet18`, `resnet34` or `resnet50` (He et al. 2016).

    `stem`: "imagenet", 7×7 with stride 2 and max-pooling, or "cifar", 3×3 with stride 1 and no pooling, without which
    32 pixels shrink to one: some ten points of accuracy.
    """
    network = models.get_model(name)
    if stem == "cifar":
        network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        network.maxpool = nn.Identity()
    width = network.fc.in_features
    network.fc = nn.Identity()
    return Headless(network, width)


def vit_b_16(size: int) -> Headless:
    """Vision transformer of 16×16 patches (Dosovitskiy et al. 2021) for images of `size` pixels, a multiple of 16."""
    if size % 16:
        raise ValueError(f"vit_b_16 cuts images into patches of 16 pixels, not images of {size}: resize them to 224.")
    network = models.vit_b_16(image_size=size)
    network.heads = nn.Identity()
    return Headless(network, network.hidden_dim)


def swin_t() -> Headless:
    """Swin transformer (Liu et al. 2021)."""
    return _without_head(models.swin_t())


def convnext_tiny() -> Headless:
    """ConvNeXt (Liu et al. 2022); the LayerNorm of its features stays."""
    return _without_classifier(models.convnext_tiny())


def vit_small_images(size: int) -> Headless:
    """ViT of four layers on patches of 2 pixels, above 16 pixels of 4: for images of `size` pixels, a multiple."""
    patch = _patch(size)
    if size % patch:
        raise ValueError(
            f"vit_small_images cuts images into patches of {patch} pixels, not images of {size}: resize them to "
            f"{patch * (size // patch + 1)}."
        )
    network = models.VisionTransformer(size, patch, num_layers=4, num_heads=4, hidden_dim=64, mlp_dim=128)
    network.heads = nn.Identity()
    return Headless(network, network.hidden_dim)


def swin_small_images(size: int) -> Headless:
    """Swin transformer of two stages on such patches, with windows of four patches a side, or of half the image."""
    patch = _patch(size)
    window = min(4, size // patch // 2)
    network = models.SwinTransformer(
        [patch] * 2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=[window] * 2, stochastic_depth_prob=0.0
    )
    return _without_head(network)


def convnext_small_images(size: int) -> Headless:
    """ConvNeXt of two stages on such patches, of 4 pixels in torchvision at every size."""
    patch = _patch(size)
    stages = [CNBlockConfig(32, 64, 2), CNBlockConfig(64, None, 2)]
    network = models.ConvNeXt(stages)
    stem = nn.Conv2d(3, 32, patch, patch)
    nn.init.trunc_normal_(stem.weight, std=0.02)  # as torchvision does
    nn.init.zeros_(stem.get_parameter("bias"))
    network.features[0][0] = stem
    return _without_classifier(network)


def _patch(size: int) -> int:
    """Pixels of a patch of small images."""
    return 2 if size <= 16 else 4


def imagenet(name: str) -> dict[str, Tensor]:
    """torchvision's first ImageNet weights for its network `name`, downloaded once.

    Raises ValueError where they cannot be had.
    """
    try:
        weights = models.get_model_weights(name)["IMAGENET1K_V1"]
        state: dict[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network, a full disk, a damaged file: the remedy is the same
        raise ValueError(
            f"the ImageNet weights of {name} cannot be downloaded ({type(error).__name__}: {error}): fetch the file "
            "elsewhere and give its path as weights."
        ) from error
    return state


def _without_head(network: models.SwinTransformer) -> Headless:
    width = network.head.in_features
    network.head = nn.Identity()
    return Headless(_without_stochastic_depth(network), width)


def _without_classifier(network: models.ConvNeXt) -> Headless:
    width = network.classifier[2].in_features
    network.classifier[2] = nn.Identity()
    return Headless(_without_stochastic_depth(network), width)


def _without_stochastic_depth(network: nn.Module) -> nn.Module:
    for module in network.modules():
        if isinstance(module, StochasticDepth):
            module.p = 0.0
    return network

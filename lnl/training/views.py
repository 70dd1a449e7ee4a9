"""The views that a data set has: of images their augmentations, of vectors dropout and noise.

What papers and official codes do differently is a field: a method whose `Config` has `weak`, `strong` or `contrastive`
has its own defaults there.  `ViewSettings` is what a trial asks for, `of` makes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn.functional import interpolate

from lnl.data import Dataset, Unfit
from lnl.functional import augment
from lnl.functional.auto_augment import RandAugmentName
from lnl.functional.image_operations import Padding
from lnl.functional.vectors import Perturbation
from lnl.settings import Settings
from lnl.training.task import VIEWS, Transform, VectorViews, View


class WeakView(Settings):
    """The view `weak`: an image is shifted and mirrored; `strong` and `autoaugment` begin with it."""

    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    """the largest, as a share of the size: 0.125 is 4 of 32 pixels; at least one pixel unless it is 0"""
    padding: Padding = "reflect"
    """what a shift shows outside of the image: its reflection, or black"""


class StrongView(Settings):
    """The view `strong`: RandAugment and cutout, as in FixMatch."""

    rand_augment: RandAugmentName = "code"
    """code: FixMatch's official code, with which its numbers were measured: each of two operations half of the time,
    brightness 0.28 to 1.72, 1 to 4 bits | paper: always, brightness 0.05 to 0.95, 4 to 8 bits, …"""


class ContrastiveView(Settings):
    """The view `contrastive`: SimCLR's crops and colours."""

    jitter: Annotated[float, Field(ge=0, le=1)] | None = None
    """strength of the colour jitter; None: 0.5 up to 32 pixels, where nothing is blurred, and 1 above"""


class ViewSettings(Settings):
    """All that a trial asks of its views."""

    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    vectors: VectorViews = VectorViews()
    size: int | None = None
    """pixels per side that the network sees; None: those that the images have"""


@dataclass(frozen=True)
class Resized:
    """An augmentation of images that become as large as it expects: uint8 (B, C, H, W) -> float32 (B, C, size, size).

    So every image is interpolated before it is cut, shifted, turned and blurred, at the size that the network sees.
    """

    augmentation: augment.Augmentation

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        size = self.augmentation.size
        smaller = images.shape[-1] > size  # only then is there something to smooth
        resized = interpolate(images.float(), (size, size), mode="bilinear", antialias=smaller)
        return self.augmentation(resized.round_().clamp_(0, 255).to(torch.uint8), generator)


def of(data: Dataset, settings: ViewSettings, device: torch.device) -> Mapping[View, Transform]:
    """The views of a data set by name.

    Of vectors `none` only standardises, `weak` has the weak strengths of `settings.vectors`, and all others the strong
    ones.  Of images `none` is as large as they are stored, and all others as large as the network sees them.  Raises
    `Unfit` where strengths for vectors are given for images.
    """
    if len(data.shape) == 1:
        mean, std = (torch.tensor(moments, dtype=torch.float32, device=device) for moments in (data.mean, data.std))
        perturbed, given = partial(Perturbation, mean, std), settings.vectors
        strengths = {"none": (0.0, 0.0), "weak": (given.weak_dropout, given.weak_noise)}
        strong = (given.strong_dropout, given.strong_noise)
        return {name: perturbed(*strengths.get(name, strong)) for name in VIEWS}
    if settings.vectors != VectorViews():
        raise Unfit(f"vector_views belong to data sets of vectors, and {data.name} has images: leave them out.")
    channels, stored, _ = data.shape

    def made(name: View) -> Transform:
        size = stored if name == "none" else settings.size or stored
        augmentation = augment.pipeline(
            name,
            size=size,
            channels=channels,
            flip=data.flip,
            mean=data.mean,
            std=data.std,
            largest_shift=settings.weak.shift,
            padding=settings.weak.padding,
            operations=settings.strong.rand_augment,
            strength=settings.contrastive.jitter,
        )
        return augmentation if size == stored else Resized(augmentation)

    return {name: made(name) for name in VIEWS}

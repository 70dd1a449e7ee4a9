"""Augmentations of a batch on its own device, with random parameters per image: draw the parameters, then apply them.

Here: seven pipelines by name (`none`, `weak`, `contrastive`, `blurred`, `solarised`, `strong`, `autoaugment`), the pure
operations they are made of, and the functions that draw an operation's parameters from a given generator.  Not here:
MixUp (a part of the objective).

Images are uint8 or float tensors (B, C, H, W) of pixel values 0…255 with one or three channels; only `normalise`,
always last, leaves that scale.  Every shape is known before the draw, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from lnl.functional.auto_augment import (
    RAND_AUGMENT,
    RandAugment,
    RandAugmentName,
    apply_policies,
    draw_operations,
    draw_policies,
    rand_augment,
)
from lnl.functional.image_operations import (
    Jitter,
    Padding,
    cutout,
    gaussian_blur,
    identity,
    jitter,
    normalise,
    resized_crop,
    shift,
)

BLURRED_ABOVE = 32  # pixels: SimCLR's recipe for CIFAR has no blur and half the strength of colour jitter


@dataclass(frozen=True)
class Augmentation:
    """`augmentation(images, generator)`: uint8 (B, C, size, size) -> float32, normalised, parameters drawn per image.

    `draw(B, generator)` returns the parameters, `apply(images, parameters)` is pure.  `mean` and `std` are per channel,
    of pixels in [0, 1].  The generator lives on the images' device; the same state gives the same output.
    """

    size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    draw: Callable[[int, Generator], Any]
    apply: Callable[[Tensor, Any], Tensor]

    def __call__(self, images: Tensor, generator: Generator) -> Tensor:
        expected = (self.channels, self.size, self.size)
        if images.dtype != torch.uint8:
            raise ValueError(f"augmentation takes uint8 images with pixel values 0…255, not {images.dtype}.")
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(
                f"this augmentation was made for images (batch, {', '.join(map(str, expected))}), not "
                f"{tuple(images.shape)}; make one with pipeline(…, size=…, channels=…) for these."
            )
        with torch.autocast(images.device.type, enabled=False):  # colours in bfloat16 would be off by whole grey levels
            return normalise(self.apply(images, self.draw(len(images), generator)), self.mean, self.std)


def pipeline(
    name: str,
    *,
    size: int,
    channels: int,
    flip: bool,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    smallest_crop: float | None = None,
    largest_shift: float = 1 / 8,
    padding: Padding = "reflect",
    operations: RandAugmentName = "code",
    strength: float | None = None,
) -> Augmentation:
    """The augmentation called `name` for images (channels, size, size); `flip`: a mirrored image keeps its class.

    none         normalise only.
    weak         shift by up to `largest_shift` of the size, at least a pixel unless it is 0, and mirror (MixMatch,
                 Berthelot et al. 2019, official code).  `padding`: what a shift shows outside of the image.
    contrastive  resized crop, mirror, colour jitter, grey, and blur above 32 pixels (SimCLR, Chen et al. 2020, app. A).
                 `smallest_crop` is the least area of the crop (default 0.08, and 0.5 up to 16 pixels), `strength`
                 that of the jitter (default 0.5, and 1 where images are blurred).
    blurred, solarised
                 the two views of BYOL (Grill et al. 2020, app. B) and Barlow Twins: as contrastive, with half of the
                 jitter's strength, and of saturation a quarter; above 32 pixels all images or one in ten are blurred;
                 of the second one in five is solarised, so that pixels from 128 on are inverted.
    strong       weak, two operations of RandAugment in the variant `operations`, cutout of half the size (FixMatch,
                 Sohn et al. 2020).
    autoaugment  weak, the policy that AutoAugment found on CIFAR-10 (Cubuk et al. 2019; Nishi et al. 2021 with noise).

    Greyscale images get no operation that needs colour.  Raises ValueError for arguments that do not fit together.
    """
    if channels not in (1, 3):
        raise ValueError(f"augmentation is for images with 1 or 3 channels, not {channels}.")
    if not (len(mean) == len(std) == channels and all(0 <= m <= 1 for m in mean) and all(0 < s <= 1 for s in std)):
        raise ValueError(
            f"give mean and std for each of the {channels} channels, of pixels in [0, 1] and std above 0, not "
            f"mean={mean} and std={std}."
        )
    if smallest_crop is None:
        smallest_crop = 0.5 if size <= 16 else 0.08  # 8 % of an 8×8 digit would be 2×2 pixels
    if not 0 < smallest_crop <= 1:
        raise ValueError(f"smallest_crop is a part of the image's area in (0, 1], not {smallest_crop}.")
    if not 0 <= largest_shift <= 0.5:
        raise ValueError(f"largest_shift is a part of the image's size in [0, 0.5], not {largest_shift}.")
    draw_shifts = partial(draw_weak, limit=max(1, int(largest_shift * size)) if largest_shift else 0, flip=flip)
    variant, blur = RAND_AUGMENT[operations].of(channels), size > BLURRED_ABOVE
    if strength is None:
        strength = 1.0 if blur else 0.5
    draw_views = partial(draw_contrastive, flip=flip, smallest_crop=smallest_crop, blur=blur)
    draw_of_two = partial(draw_views, strength=0.5, saturation=0.5)
    pipelines: dict[str, tuple[Callable[[int, Generator], Any], Callable[[Tensor, Any], Tensor]]] = {
        "none": (draw_nothing, identity),
        "weak": (draw_shifts, partial(weak, padding=padding)),
        "contrastive": (partial(draw_views, strength=strength), contrastive),
        "blurred": (partial(draw_of_two, blur_probability=1.0), contrastive),
        "solarised": (partial(draw_of_two, blur_probability=0.1, solarise_probability=0.2), contrastive),
        "strong": (
            partial(draw_strong, size=size, draw_shifts=draw_shifts, variant=variant),
            partial(strong, padding=padding, variant=variant),
        ),
        "autoaugment": (partial(draw_autoaugment, draw_shifts=draw_shifts), partial(autoaugment, padding=padding)),
    }
    if name not in pipelines:
        raise ValueError(f"there is no augmentation {name!r}; choose one of {', '.join(pipelines)}.")
    return Augmentation(size, channels, tuple(mean), tuple(std), *pipelines[name])


class Weak(NamedTuple):
    """Parameters of `weak`: offsets (B, 2) int64 in pixels (down, right), mirrored (B,) bool."""

    offsets: Tensor
    mirrored: Tensor


class Contrastive(NamedTuple):
    """Parameters of `contrastive`: see `draw_crop`, `draw_mirror`, `draw_jitter`, `draw_blur` (None: no blur).

    `solarised` (B,) bool: images whose values from 128 on are inverted; None: none is.
    """

    boxes: Tensor
    mirrored: Tensor
    jitter: Jitter
    sigma: Tensor | None
    solarised: Tensor | None = None


class Strong(NamedTuple):
    """Parameters of `strong`: see `draw_weak`, `draw_operations` (two rounds: (2, B) each), `draw_cutout`."""

    weak: Weak
    slots: Tensor
    magnitudes: Tensor
    centres: Tensor


class AutoAugment(NamedTuple):
    """Parameters of `autoaugment`: see `draw_weak`, `draw_policies` (two rounds: (2, B) each)."""

    weak: Weak
    slots: Tensor
    magnitudes: Tensor


def draw_nothing(batch: int, generator: Generator) -> None:
    """`none` has no parameters and leaves the generator as it is."""


def draw_weak(batch: int, generator: Generator, *, limit: int, flip: bool) -> Weak:
    """Offsets uniform over the integers -limit…limit, both ends included; mirrored with probability 1/2 if `flip`."""
    offsets = torch.randint(-limit, limit + 1, (batch, 2), generator=generator, device=generator.device)
    return Weak(offsets, draw_mirror(batch, generator, flip=flip))


def weak(images: Tensor, parameters: Weak, *, padding: Padding = "reflect") -> Tensor:
    """Mirror, then shift; outside of the image is its reflection, or black."""
    return shift(images, parameters.offsets, parameters.mirrored, padding)


def draw_contrastive(
    batch: int,
    generator: Generator,
    *,
    flip: bool,
    smallest_crop: float,
    blur: bool,
    strength: float,
    saturation: float = 1.0,
    blur_probability: float = 0.5,
    solarise_probability: float = 0.0,
) -> Contrastive:
    """SimCLR's parameters with colour jitter of `strength` s: (0.8s, 0.8s, 0.8s · `saturation`, 0.2s)."""
    return Contrastive(
        draw_crop(batch, generator, smallest=smallest_crop),
        draw_mirror(batch, generator, flip=flip),
        draw_jitter(batch, generator, strength=strength, saturation=saturation),
        draw_blur(batch, generator, probability=blur_probability) if blur else None,
        torch.rand(batch, generator=generator, device=generator.device) < solarise_probability
        if solarise_probability
        else None,
    )


def contrastive(images: Tensor, parameters: Contrastive) -> Tensor:
    """Resized crop, mirror, jitter and grey, blur, solarise; saturation, hue and grey do nothing to one channel."""
    images = jitter(resized_crop(images, parameters.boxes, parameters.mirrored), parameters.jitter)
    if parameters.sigma is not None:
        images = gaussian_blur(images, parameters.sigma)
    if parameters.solarised is not None:
        images = torch.where(parameters.solarised[:, None, None, None] & (images >= 128), 255 - images, images)
    return images


def draw_strong(
    batch: int, generator: Generator, *, size: int, draw_shifts: Callable[[int, Generator], Weak], variant: RandAugment
) -> Strong:
    """Parameters of the weak view, of two rounds of RandAugment and of cutout."""
    rounds = [draw_operations(batch, generator, variant) for _ in range(2)]
    slots, magnitudes = (torch.stack(drawn) for drawn in zip(*rounds, strict=True))
    return Strong(draw_shifts(batch, generator), slots, magnitudes, draw_cutout(batch, generator, size=size))


def strong(images: Tensor, parameters: Strong, *, padding: Padding, variant: RandAugment) -> Tensor:
    """The weak view, two rounds of RandAugment, cutout of half the size."""
    images = weak(images, parameters.weak, padding=padding)
    for slots, magnitudes in zip(parameters.slots, parameters.magnitudes, strict=True):
        images = rand_augment(images, slots, magnitudes, variant)
    return cutout(images, parameters.centres, images.shape[-1] // 2)


def draw_autoaugment(batch: int, generator: Generator, *, draw_shifts: Callable[[int, Generator], Weak]) -> AutoAugment:
    """Parameters of the weak view and of a sub-policy for each image."""
    return AutoAugment(draw_shifts(batch, generator), *draw_policies(batch, generator))


def autoaugment(images: Tensor, parameters: AutoAugment, *, padding: Padding) -> Tensor:
    """The weak view, then the two operations of each image's sub-policy."""
    return apply_policies(weak(images, parameters.weak, padding=padding), parameters.slots, parameters.magnitudes)


def draw_mirror(batch: int, generator: Generator, *, flip: bool) -> Tensor:
    """(B,) bool, true with probability 1/2 if `flip`, else never."""
    return torch.rand(batch, generator=generator, device=generator.device) < (0.5 if flip else 0.0)


def draw_crop(batch: int, generator: Generator, *, smallest: float, ratio: float = 4 / 3, tries: int = 10) -> Tensor:
    """Boxes (B, 4) = left, top, width, height as fractions of a square image (Szegedy et al. 2015).

    Area uniform in (smallest, 1), log of width / height uniform in ± log(ratio), position uniform.  As in torchvision,
    the first of ten candidates that fits into the image is taken, or else the whole image; unlike there, boxes are not
    rounded to whole pixels.
    """
    area, aspect, left, top = torch.rand(4, batch, tries, generator=generator, device=generator.device)
    area = smallest + (1 - smallest) * area
    aspect = (log(ratio) * (2 * aspect - 1)).exp()
    boxes = torch.stack([left, top, (area * aspect).sqrt(), (area / aspect).sqrt()], dim=-1)
    fits = (boxes[..., 2:] <= 1).all(-1)
    first = fits.int().argmax(1)
    chosen = boxes.gather(1, first[:, None, None].expand(-1, 1, 4)).squeeze(1)
    position, extent = chosen[:, :2], torch.where(fits.any(1, keepdim=True), chosen[:, 2:], 1.0)
    return torch.cat([position * (1 - extent), extent], dim=1)


def draw_jitter(
    batch: int,
    generator: Generator,
    *,
    strength: float,
    saturation: float = 1.0,
    probability: float = 0.8,
    grey: float = 0.2,
) -> Jitter:
    """Factors uniform in 1 ± 0.8 strength, hue in ± 0.2 strength, with `probability` together; grey with `grey`.

    `saturation`: by how much that one's range is smaller or larger.

    Source: SimCLR (Chen et al. 2020), appendix A, with factors as in torchvision (brightness is a product, not a sum).
    """
    draws = torch.rand(6, batch, generator=generator, device=generator.device)
    change = torch.where(draws[4] < probability, strength * (2 * draws[:4] - 1), 0.0)
    factors = [1 + 0.8 * spread * part for spread, part in zip((1.0, 1.0, saturation), change[:3], strict=True)]
    return Jitter(factors[0], factors[1], torch.where(draws[5] < grey, 0.0, factors[2]), 0.2 * change[3])


def draw_blur(batch: int, generator: Generator, *, probability: float = 0.5) -> Tensor:
    """Standard deviations (B,) in pixels, uniform in (0.1, 2) with `probability`, else 0: no blur (SimCLR, app. A)."""
    sigma, chance = torch.rand(2, batch, generator=generator, device=generator.device)
    return torch.where(chance < probability, 0.1 + 1.9 * sigma, 0.0)


def draw_cutout(batch: int, generator: Generator, *, size: int) -> Tensor:
    """Centres (B, 2) int64 = row, column, uniform over the pixels."""
    return torch.randint(size, (batch, 2), generator=generator, device=generator.device)

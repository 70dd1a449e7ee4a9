"""Augmentations of a batch on its own device, with random parameters per image: draw the parameters, then apply them.

Here: five pipelines by name (`none`, `weak`, `contrastive`, `strong`, `autoaugment`), the pure operations they are made
of, and the functions that draw an operation's parameters from a given generator.  Not here: MixUp (a part of the
objective).

Images are uint8 or float tensors (B, C, H, W) of pixel values 0…255 with one or three channels; only `normalise`,
always last, leaves that scale.  Every shape is known before the draw, so no step waits for the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from math import ceil, log, pi
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

GREY = 127  # fills what an operation leaves empty, as in FixMatch
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL and torchvision
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


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
) -> Augmentation:
    """The augmentation called `name` for images (channels, size, size); `flip`: a mirrored image keeps its class.

    none         normalise only.
    weak         shift by up to size // 8 pixels, mirror (MixMatch, Berthelot et al. 2019, official code).
    contrastive  resized crop, mirror, colour jitter, grey, and blur above 32 pixels (SimCLR, Chen et al. 2020, app. A).
                 `smallest_crop` is the least area of the crop (default 0.08, and 0.5 up to 16 pixels).
    strong       weak, two operations of RandAugment, cutout of half the size (FixMatch, Sohn et al. 2020).
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
    draw_shifts = partial(draw_weak, limit=size // 8, flip=flip)
    pipelines: dict[str, tuple[Callable[[int, Generator], Any], Callable[[Tensor, Any], Tensor]]] = {
        "none": (draw_nothing, identity),
        "weak": (draw_shifts, weak),
        "contrastive": (partial(draw_contrastive, flip=flip, smallest_crop=smallest_crop, blur=size > 32), contrastive),
        "strong": (partial(draw_strong, size=size, channels=channels, flip=flip), strong),
        "autoaugment": (partial(draw_autoaugment, size=size, flip=flip), autoaugment),
    }
    if name not in pipelines:
        raise ValueError(f"there is no augmentation {name!r}; choose one of {', '.join(pipelines)}.")
    return Augmentation(size, channels, tuple(mean), tuple(std), *pipelines[name])


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel / 255 - mean) / std per channel, as one product and one sum: (B, C, H, W) -> float32."""
    scale = _constant(tuple(1 / (255 * s) for s in std), images.device)
    offset = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device)
    return images.to(torch.float32, copy=True).mul_(scale[:, None, None]).add_(offset[:, None, None])


# ------------------------------------------------------------------------------------------------------------ pipelines


class Weak(NamedTuple):
    """Parameters of `weak`: offsets (B, 2) int64 in pixels (down, right), mirrored (B,) bool."""

    offsets: Tensor
    mirrored: Tensor


class Contrastive(NamedTuple):
    """Parameters of `contrastive`: see `draw_crop`, `draw_mirror`, `draw_jitter`, `draw_blur` (None: no blur)."""

    boxes: Tensor
    mirrored: Tensor
    jitter: Jitter
    sigma: Tensor | None


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


def weak(images: Tensor, parameters: Weak) -> Tensor:
    """Mirror, then shift with reflection at the border."""
    return shift(images, parameters.offsets, parameters.mirrored)


def draw_contrastive(
    batch: int, generator: Generator, *, flip: bool, smallest_crop: float, blur: bool, strength: float = 0.5
) -> Contrastive:
    """SimCLR's parameters with colour jitter of `strength` s: (0.8s, 0.8s, 0.8s, 0.2s)."""
    return Contrastive(
        draw_crop(batch, generator, smallest=smallest_crop),
        draw_mirror(batch, generator, flip=flip),
        draw_jitter(batch, generator, strength=strength),
        draw_blur(batch, generator) if blur else None,
    )


def contrastive(images: Tensor, parameters: Contrastive) -> Tensor:
    """Resized crop, mirror, jitter and grey, blur; saturation, hue and grey have no effect on one channel."""
    images = jitter(resized_crop(images, parameters.boxes, parameters.mirrored), parameters.jitter)
    return images if parameters.sigma is None else gaussian_blur(images, parameters.sigma)


def draw_strong(batch: int, generator: Generator, *, size: int, channels: int, flip: bool) -> Strong:
    """Parameters of the weak view, of two rounds of RandAugment and of cutout."""
    rounds = [draw_operations(batch, generator, operations=len(pool(channels))) for _ in range(2)]
    slots, magnitudes = (torch.stack(drawn) for drawn in zip(*rounds, strict=True))
    return Strong(
        draw_weak(batch, generator, limit=size // 8, flip=flip),
        slots,
        magnitudes,
        draw_cutout(batch, generator, size=size),
    )


def strong(images: Tensor, parameters: Strong) -> Tensor:
    """The weak view, two rounds of RandAugment, cutout of half the size."""
    images = weak(images, parameters.weak)
    for slots, magnitudes in zip(parameters.slots, parameters.magnitudes, strict=True):
        images = rand_augment(images, slots, magnitudes)
    return cutout(images, parameters.centres, images.shape[-1] // 2)


def draw_autoaugment(batch: int, generator: Generator, *, size: int, flip: bool) -> AutoAugment:
    """Parameters of the weak view and of a sub-policy for each image."""
    return AutoAugment(draw_weak(batch, generator, limit=size // 8, flip=flip), *draw_policies(batch, generator))


def autoaugment(images: Tensor, parameters: AutoAugment) -> Tensor:
    """The weak view, then the two operations of each image's sub-policy."""
    return apply_policies(weak(images, parameters.weak), parameters.slots, parameters.magnitudes)


# ------------------------------------------------------------------------------------------------- shift, crop, mirror


def draw_mirror(batch: int, generator: Generator, *, flip: bool) -> Tensor:
    """(B,) bool, true with probability 1/2 if `flip`, else never."""
    return torch.rand(batch, generator=generator, device=generator.device) < (0.5 if flip else 0.0)


def shift(images: Tensor, offsets: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror where (B,) `mirrored`, then move the view by (B, 2) `offsets` pixels (down, right).

    What lies outside of the image is its reflection, in which the border pixels are not repeated.
    """
    height, width = images.shape[-2:]
    rows = _reflect(_range(height, images) + offsets[:, :1], height)
    columns = _reflect(_range(width, images) + offsets[:, 1:], width)
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    return _gather(images, rows[:, :, None], columns[:, None, :])


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
    place, extent = chosen[:, :2], torch.where(fits.any(1, keepdim=True), chosen[:, 2:], 1.0)
    return torch.cat([place * (1 - extent), extent], dim=1)


def resized_crop(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut out `boxes` (B, 4) = left, top, width, height in [0, 1], resize to the old size, mirror: -> float.

    Bilinear between pixel centres; a crop is never larger than its image, so there is nothing to anti-alias.
    """
    height, width = images.shape[-2:]
    across = (_range(width, images) + 0.5) / width
    down = (_range(height, images) + 0.5) / height
    across = torch.where(mirrored[:, None], 1 - across, across)
    columns = 2 * (boxes[:, 0:1] + boxes[:, 2:3] * across) - 1  # the borders are at -1 and 1
    rows = 2 * (boxes[:, 1:2] + boxes[:, 3:4] * down) - 1
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


# -------------------------------------------------------------------------------------------------------- colour, blur


class Jitter(NamedTuple):
    """Factors of brightness, contrast and saturation (1 = unchanged, saturation 0 = grey), hue in turns: (B,) each."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


def draw_jitter(
    batch: int, generator: Generator, *, strength: float, probability: float = 0.8, grey: float = 0.2
) -> Jitter:
    """Factors uniform in 1 ± 0.8 strength, hue in ± 0.2 strength, with `probability` together; grey with `grey`.

    Source: SimCLR (Chen et al. 2020), appendix A, with factors as in torchvision (brightness is a product, not a sum).
    """
    draws = torch.rand(6, batch, generator=generator, device=generator.device)
    change = torch.where(draws[4] < probability, strength * (2 * draws[:4] - 1), 0.0)
    factors = 1 + 0.8 * change[:3]
    return Jitter(factors[0], factors[1], torch.where(draws[5] < grey, 0.0, factors[2]), 0.2 * change[3])


def jitter(images: Tensor, parameters: Jitter) -> Tensor:
    """Brightness b, contrast c, saturation s and hue h as one 3×4 matrix per image, clamped once: -> float.

    x' = b c A x + b (1 - c) m, with m the image's mean luma and A = YIQ⁻¹ diag(1, s R(-2πh)) YIQ, where R is a
    rotation of the (I, Q) plane.  A keeps luma and grey, so without clamps in between the four commute and need no
    random order.  torchvision clamps after each and shifts hue in HSV, which keeps max and min instead of luma.
    """
    batch, channels = images.shape[:2]
    pixels = images.flatten(2).float()
    linear = gain = (parameters.brightness * parameters.contrast)[:, None, None]
    offset = (parameters.brightness[:, None, None] - gain) * luma(pixels.mean(2))[:, :, None]
    if channels == 3:
        angle, saturation = 2 * pi * parameters.hue[:, None, None], parameters.saturation[:, None, None]
        keep_luma, keep_chroma, turn_chroma = _hue_basis(images.device)
        linear = gain * (keep_luma + saturation * (angle.cos() * keep_chroma + angle.sin() * turn_chroma))
    return torch.baddbmm(offset.expand(batch, channels, 1), linear, pixels).clamp_(0, 255).view_as(images)


def luma(images: Tensor) -> Tensor:
    """0.299 R + 0.587 G + 0.114 B: (B, C, …) -> float (B, 1, …); a single channel is its own luma."""
    if images.shape[1] == 1:
        return images.float()
    red, green, blue = images.split(1, dim=1)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def draw_blur(batch: int, generator: Generator, *, probability: float = 0.5) -> Tensor:
    """Standard deviations (B,) in pixels, uniform in (0.1, 2) with `probability`, else 0: no blur (SimCLR, app. A)."""
    sigma, chance = torch.rand(2, batch, generator=generator, device=generator.device)
    return torch.where(chance < probability, 0.1 + 1.9 * sigma, 0.0)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian filter with (B,) `sigma` per image, a kernel of a tenth of the size, reflected border: -> float."""
    batch, channels = images.shape[:2]
    radius = images.shape[-1] // 20
    distance = torch.arange(-radius, radius + 1, device=images.device)
    # The floor makes sigma = 0 the identity instead of 0 / 0.
    kernel = (-(distance**2) / (2 * sigma.clamp(min=0.01) ** 2)[:, None]).softmax(1)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, None, :]
    planes = F.pad(images.float(), [radius] * 4, mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernel, groups=batch * channels)
    return F.conv2d(planes, kernel.mT, groups=batch * channels).view_as(images)


# ---------------------------------------------------------------------------------------- RandAugment and AutoAugment


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretch each channel's values to 0…255; a constant channel stays as it is."""
    lowest, highest = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    stretched = (images - lowest) * 255 / (highest - lowest)
    return torch.where(highest > lowest, stretched, images).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with black: 0 is black, 1 the image."""
    return _blend(images, images.new_zeros(()), factor)


def colour(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's luma: 0 is grey, 1 the image."""
    return _blend(images, luma(images), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image's mean luma: 0 is one grey, 1 the image."""
    return _blend(images, luma(images).mean((2, 3), keepdim=True), factor)


def equalise(images: Tensor, _: Tensor) -> Tensor:
    """Flatten each channel's histogram, in the whole-number arithmetic of PIL: no effect under 256 pixels."""
    values = images.flatten(2).long()
    ones = values.new_ones(()).expand_as(values)
    histogram = values.new_zeros(*values.shape[:2], 256).scatter_add_(2, values, ones)
    brightest = histogram.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - brightest) // 255
    table = ((histogram.cumsum(2) - histogram + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, _range(256, images)).to(torch.uint8)
    return table.gather(2, values).view_as(images)


def identity(images: Tensor, _: Tensor | None = None) -> Tensor:
    """The images themselves."""
    return images


def invert(images: Tensor, _: Tensor) -> Tensor:
    """255 - value."""
    return ~images


def posterise(images: Tensor, bits: Tensor) -> Tensor:
    """Keep the highest `bits` of each value, rounded to a whole number in 0…8."""
    mask = 256 - 2 ** (8 - bits.round())
    return images & _per_image(mask).to(torch.uint8)


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Turn counter-clockwise about the centre."""
    height, width = images.shape[-2:]
    angle = torch.deg2rad(degrees)[:, None, None]
    rows, columns = _centres(images)
    rows, columns = rows - height / 2, columns - width / 2
    return _nearest(
        images,
        angle.sin() * columns + angle.cos() * rows + height / 2,
        angle.cos() * columns - angle.sin() * rows + width / 2,
    )


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with the image smoothed by (1 1 1; 1 5 1; 1 1 1) / 13: 0 is smooth, 1 the image; the border is kept."""
    smooth = images.float()
    rows = smooth[:, :, :-2] + smooth[:, :, 1:-1] + smooth[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    inner = smooth[:, :, 1:-1, 1:-1]
    inner.copy_(((box + 4 * inner) / 13).round())
    return _blend(images, smooth, factor)


def shear_x(images: Tensor, factor: Tensor) -> Tensor:
    """Row y shows what was `factor` · y to its right; the top edge stays."""
    rows, columns = _centres(images)
    return _nearest(images, rows, columns + factor[:, None, None] * rows)


def shear_y(images: Tensor, factor: Tensor) -> Tensor:
    """Column x shows what was `factor` · x below it; the left edge stays."""
    rows, columns = _centres(images)
    return _nearest(images, rows + factor[:, None, None] * columns, columns)


def solarise(images: Tensor, threshold: Tensor) -> Tensor:
    """Invert the values at or above `threshold` (0…256)."""
    inverted = (images >= _per_image(threshold)).to(torch.uint8)
    return images ^ (255 * inverted)  # 255 - value, in bits


def translate_x(images: Tensor, fraction: Tensor) -> Tensor:
    """Show what was `fraction` of the width to the right."""
    rows, columns = _centres(images)
    return _nearest(images, rows, columns + (fraction * images.shape[-1])[:, None, None])


def translate_y(images: Tensor, fraction: Tensor) -> Tensor:
    """Show what was `fraction` of the height below."""
    rows, columns = _centres(images)
    return _nearest(images, rows + (fraction * images.shape[-2])[:, None, None], columns)


class Operation(NamedTuple):
    """apply(images uint8 (B, C, H, W), value (B,)) -> uint8; the value is `low` at magnitude 0 and `high` at 1."""

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0


# The transformations and ranges that FixMatch (Sohn et al. 2020, appendix) lists for RandAugment.
OPERATIONS = (
    Operation(autocontrast),
    Operation(brightness, 0.05, 0.95),
    Operation(colour, 0.05, 0.95),
    Operation(contrast, 0.05, 0.95),
    Operation(equalise),
    Operation(identity),
    Operation(posterise, 3.5, 8.5),  # rounded: 4…8 bits, equally often
    Operation(rotate, -30, 30),
    Operation(sharpness, 0.05, 0.95),
    Operation(shear_x, -0.3, 0.3),
    Operation(shear_y, -0.3, 0.3),
    Operation(solarise, 0, 256),
    Operation(translate_x, -0.3, 0.3),
    Operation(translate_y, -0.3, 0.3),
)


def pool(channels: int) -> tuple[Operation, ...]:
    """FixMatch's operations, without those that need colour for one channel."""
    return tuple(operation for operation in OPERATIONS if channels == 3 or operation.apply is not colour)


def draw_operations(batch: int, generator: Generator, *, operations: int) -> tuple[Tensor, Tensor]:
    """One operation per image as a slot, int64 (B,), and a magnitude in [0, 1), (B,).

    Every operation has ceil(B / operations) slots and every image gets its own slot, so that group sizes are known
    without asking the device.  Each image's operation is slot // ceil(B / operations), uniform over the operations;
    within a batch they are drawn without replacement.
    """
    slots = _draw_slots(batch, generator, groups=operations)
    return slots, torch.rand(batch, generator=generator, device=generator.device)


def rand_augment(images: Tensor, slots: Tensor, magnitudes: Tensor) -> Tensor:
    """One round of RandAugment, each image with its own operation and magnitude: uint8 -> uint8.

    Every drawn operation is applied, as in the text of FixMatch and as its authors confirm (issue 65 of the official
    code); the official code and the re-implementation most used skip each with probability 1/2.
    """
    choices = pool(images.shape[1])
    return _by_operation(images, choices, [ceil(len(images) / len(choices))] * len(choices), slots, magnitudes)


# AutoAugment's operations; a magnitude of 9 is 1 here.  As in PIL, colour has no effect on one channel.
POLICY_OPERATIONS = (
    Operation(autocontrast),
    Operation(brightness, 1, 1.9),
    Operation(colour, 1, 1.9),
    Operation(contrast, 1, 1.9),
    Operation(equalise),
    Operation(invert),
    Operation(posterise, 8, 4),
    Operation(rotate, 0, 30),
    Operation(sharpness, 1, 1.9),
    Operation(shear_y, 0, 0.3),
    Operation(solarise, 256, 0),
    Operation(translate_x, 0, 150 / 331),
    Operation(translate_y, 0, 150 / 331),
)
UNSIGNED = (posterise, solarise)  # every other magnitude is negated with probability 1/2

# The 25 sub-policies for CIFAR-10 (Cubuk et al. 2019, appendix): two steps of (operation, probability, magnitude 0…9).
POLICY = (
    ((invert, 0.1, 0), (contrast, 0.2, 6)),
    ((rotate, 0.7, 2), (translate_x, 0.3, 9)),
    ((sharpness, 0.8, 1), (sharpness, 0.9, 3)),
    ((shear_y, 0.5, 8), (translate_y, 0.7, 9)),
    ((autocontrast, 0.5, 0), (equalise, 0.9, 0)),
    ((shear_y, 0.2, 7), (posterise, 0.3, 7)),
    ((colour, 0.4, 3), (brightness, 0.6, 7)),
    ((sharpness, 0.3, 9), (brightness, 0.7, 9)),
    ((equalise, 0.6, 0), (equalise, 0.5, 0)),
    ((contrast, 0.6, 7), (sharpness, 0.6, 5)),
    ((colour, 0.7, 7), (translate_x, 0.5, 8)),
    ((equalise, 0.3, 0), (autocontrast, 0.4, 0)),
    ((translate_y, 0.4, 3), (sharpness, 0.2, 6)),
    ((brightness, 0.9, 6), (colour, 0.2, 8)),
    ((solarise, 0.5, 2), (invert, 0.0, 0)),
    ((equalise, 0.2, 0), (autocontrast, 0.6, 0)),
    ((equalise, 0.2, 0), (equalise, 0.6, 0)),
    ((colour, 0.9, 9), (equalise, 0.6, 0)),
    ((autocontrast, 0.8, 0), (solarise, 0.2, 8)),
    ((brightness, 0.1, 3), (colour, 0.7, 0)),
    ((solarise, 0.4, 5), (autocontrast, 0.9, 0)),
    ((translate_y, 0.9, 9), (translate_y, 0.7, 9)),
    ((autocontrast, 0.9, 0), (solarise, 0.8, 3)),
    ((equalise, 0.8, 0), (invert, 0.1, 0)),
    ((translate_y, 0.7, 9), (autocontrast, 0.9, 0)),
)


# For each of the two steps the operation of every sub-policy, as a place in POLICY_OPERATIONS: (2, 25).
POLICY_CHOICES = tuple(
    tuple([operation.apply for operation in POLICY_OPERATIONS].index(apply) for apply, _, _ in steps)
    for steps in zip(*POLICY, strict=True)
)


def draw_policies(batch: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """One sub-policy per image, as slots and magnitudes of its two steps: int64 (2, B) and in [-1, 1], (2, B).

    As in `draw_operations` every sub-policy has ceil(B / 25) slots.  A step lays them out by operation; behind them
    comes one slot per image for those that skip the step.
    """
    capacity = ceil(batch / len(POLICY))
    drawn = _draw_slots(batch, generator, groups=len(POLICY))
    tables = _policy_tables(generator.device)
    rank, probability, magnitude, signed = (table[:, drawn // capacity] for table in tables)
    chance, sign = torch.rand(2, 2, batch, generator=generator, device=generator.device)
    skipped = len(POLICY) * capacity + torch.arange(batch, device=generator.device)
    slots = torch.where(chance < probability, rank * capacity + drawn % capacity, skipped)
    return slots, torch.where(signed & (sign < 0.5), -magnitude, magnitude)


def apply_policies(images: Tensor, slots: Tensor, magnitudes: Tensor) -> Tensor:
    """The two steps of each image's sub-policy, from `draw_policies`: uint8 -> uint8."""
    batch = len(images)
    capacity = ceil(batch / len(POLICY))
    operations = (*POLICY_OPERATIONS, Operation(identity))
    for choices, *parameters in zip(POLICY_CHOICES, slots, magnitudes, strict=True):
        sizes = [capacity * choices.count(place) for place in range(len(POLICY_OPERATIONS))]
        images = _by_operation(images, operations, [*sizes, batch], *parameters)
    return images


def draw_cutout(batch: int, generator: Generator, *, size: int) -> Tensor:
    """Centres (B, 2) int64 = row, column, uniform over the pixels."""
    return torch.randint(size, (batch, 2), generator=generator, device=generator.device)


def cutout(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Grey square of `side` pixels around (B, 2) `centres`, cut off at the border (DeVries & Taylor 2017)."""
    first = centres - side // 2
    rows = _range(images.shape[-2], images) - first[:, :1]
    columns = _range(images.shape[-1], images) - first[:, 1:]
    hidden = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    mask = 255 * hidden.to(torch.uint8)
    return (images & ~mask) | (GREY & mask)  # in bits: torch.where and masked_fill on bytes take ten times as long


# ------------------------------------------------------------------------------------------------------------- helpers


@cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """A float32 constant, copied to the device once and not with every batch."""
    return torch.tensor(values, device=device)


@cache
def _hue_basis(device: torch.device) -> Tensor:
    """(3, 3, 3): YIQ⁻¹ D YIQ for D = keep luma, keep chroma, turn chroma by -90 degrees (red towards green)."""
    yiq = torch.tensor(YIQ, dtype=torch.float64)
    blocks = torch.zeros(3, 3, 3, dtype=torch.float64)
    blocks[0, 0, 0] = blocks[1, 1, 1] = blocks[1, 2, 2] = blocks[2, 1, 2] = 1
    blocks[2, 2, 1] = -1
    return (torch.linalg.inv(yiq) @ blocks @ yiq).to(device, torch.float32)


def _draw_slots(batch: int, generator: Generator, *, groups: int) -> Tensor:
    """A slot of its own for each image, int64 (B,), among ceil(B / groups) per group, drawn without replacement."""
    draws = torch.rand(groups * ceil(batch / groups), generator=generator, device=generator.device)
    return draws.argsort()[:batch]


def _by_operation(
    images: Tensor, operations: Sequence[Operation], sizes: Sequence[int], slots: Tensor, magnitudes: Tensor
) -> Tensor:
    """To each image the operation among whose slots, `sizes` of them side by side, its own is: uint8 -> uint8."""
    # Slots that no image drew work on image 0; nobody reads their result.
    occupant = slots.new_zeros(sum(sizes)).scatter_(0, slots, _range(len(images), images))
    groups = images.index_select(0, occupant).split(sizes), magnitudes[occupant].split(sizes)
    results = [
        operation.apply(group, operation.low + (operation.high - operation.low) * magnitude)
        for operation, group, magnitude in zip(operations, *groups, strict=True)
        if len(group)
    ]
    return torch.cat(results).index_select(0, slots)


@cache
def _policy_tables(device: torch.device) -> tuple[Tensor, ...]:
    """Of the policy's steps: rank in the order of operations, probability, magnitude in 0…1, signed: (2, 25) each."""
    rank = torch.tensor(POLICY_CHOICES).argsort(stable=True).argsort()
    apply, probability, magnitude = zip(*(zip(*steps, strict=True) for steps in zip(*POLICY, strict=True)), strict=True)
    signed = torch.tensor([[step not in UNSIGNED for step in steps] for steps in apply])
    return tuple(table.to(device) for table in (rank, torch.tensor(probability), torch.tensor(magnitude) / 9, signed))


def _range(length: int, images: Tensor) -> Tensor:
    return torch.arange(length, device=images.device)


def _centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (1, W) of the pixels' centres: ½, 1½, …"""
    height, width = images.shape[-2:]
    return _range(height, images)[:, None] + 0.5, _range(width, images)[None, :] + 0.5


def _per_image(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _reflect(index: Tensor, length: int) -> Tensor:
    """Indices beyond either end, mirrored about the end pixel: -1 -> 1, length -> length - 2."""
    return (length - 1) - ((length - 1) - index.abs()).abs()


def _gather(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """images[b, :, rows[b], columns[b]] for int64 rows and columns that broadcast to (B, H, W).

    One index per pixel for all channels, on uint8: five times as fast as indexing with four index tensors.
    """
    index = rows * images.shape[-1] + columns
    shape = (len(images), images.shape[1], *index.shape[1:])
    return images.flatten(2).gather(2, index.flatten(1)[:, None].expand(-1, shape[1], -1)).view(shape)


def _nearest(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The pixels that contain the points (rows, columns), broadcastable to (B, H, W); grey outside of the image."""
    height, width = images.shape[-2:]
    framed = F.pad(images, [1, 1, 1, 1], value=GREY)
    return _gather(framed, (rows + 1).clamp(0, height + 1).long(), (columns + 1).clamp(0, width + 1).long())


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · images + (1 - factor) · other, clamped and cut to whole numbers as in PIL and torchvision."""
    return torch.lerp(other.float(), images.float(), _per_image(factor)).clamp_(0, 255).to(torch.uint8)

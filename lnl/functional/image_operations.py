"""Operations on batches of images."""

from __future__ import annotations

from functools import cache
from math import pi
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Padding = Literal["reflect", "zeros"]  # what a shift shows outside of an image
GREY = 127  # fills what an operation leaves empty, as in FixMatch
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as in PIL and torchvision
YIQ = (LUMA, (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def normalise(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(pixel / 255 - mean) / std per channel, as one product and one sum: (B, C, H, W) -> float32."""
    scale = _constant(tuple(1 / (255 * s) for s in std), images.device)
    offset = _constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device)
    return images.to(torch.float32, copy=True).mul_(scale[:, None, None]).add_(offset[:, None, None])


def shift(images: Tensor, offsets: Tensor, mirrored: Tensor, padding: Padding = "reflect") -> Tensor:
    """Mirror where (B,) `mirrored`, then move the view by (B, 2) `offsets` pixels (down, right).

    What lies outside of the image is its reflection, in which the border pixels are not repeated, or black (`zeros`).
    """
    height, width = images.shape[-2:]
    rows, columns = positions(height, images) + offsets[:, :1], positions(width, images) + offsets[:, 1:]
    columns = torch.where(mirrored[:, None], width - 1 - columns, columns)
    if padding == "zeros":
        return _framed(images, rows[:, :, None], columns[:, None, :], 0)
    return _gather(images, _reflect(rows, height)[:, :, None], _reflect(columns, width)[:, None, :])


def resized_crop(images: Tensor, boxes: Tensor, mirrored: Tensor) -> Tensor:
    """Cut out `boxes` (B, 4) = left, top, width, height in [0, 1], resize to the old size, mirror: -> float.

    Bilinear between pixel centres; a crop is never larger than its image, so there is nothing to anti-alias.
    """
    height, width = images.shape[-2:]
    across = (positions(width, images) + 0.5) / width
    down = (positions(height, images) + 0.5) / height
    across = torch.where(mirrored[:, None], 1 - across, across)
    columns = 2 * (boxes[:, 0:1] + boxes[:, 2:3] * across) - 1  # the borders are at -1 and 1
    rows = 2 * (boxes[:, 1:2] + boxes[:, 3:4] * down) - 1
    grid = torch.stack(torch.broadcast_tensors(columns[:, None, :], rows[:, :, None]), dim=-1)
    return F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


class Jitter(NamedTuple):
    """Factors of brightness, contrast and saturation (1 = unchanged, saturation 0 = grey), hue in turns: (B,) each."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor


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
    table = torch.where(step > 0, table, positions(256, images)).to(torch.uint8)
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


def cutout(images: Tensor, centres: Tensor, side: int) -> Tensor:
    """Grey square of `side` pixels around (B, 2) `centres`, cut off at the border (DeVries & Taylor 2017)."""
    first = centres - side // 2
    rows = positions(images.shape[-2], images) - first[:, :1]
    columns = positions(images.shape[-1], images) - first[:, 1:]
    hidden = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
    mask = 255 * hidden.to(torch.uint8)
    return (images & ~mask) | (GREY & mask)  # in bits: torch.where and masked_fill on bytes take ten times as long


@cache
def _constant(values: tuple[object, ...], device: torch.device) -> Tensor:
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


def positions(length: int, images: Tensor) -> Tensor:
    """0, 1, …, length - 1 as int64 (length,) on the images' device."""
    return torch.arange(length, device=images.device)


def _centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (H, 1) and columns (1, W) of the pixels' centres: ½, 1½, …"""
    height, width = images.shape[-2:]
    return positions(height, images)[:, None] + 0.5, positions(width, images)[None, :] + 0.5


def _per_image(values: Tensor) -> Tensor:
    """One value per image, (B,), in a shape that broadcasts with images: (B, 1, 1, 1)."""
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
    return _framed(images, rows, columns, GREY)


def _framed(images: Tensor, rows: Tensor, columns: Tensor, value: int) -> Tensor:
    """The pixels that contain the points (rows, columns), broadcastable to (B, H, W); `value` outside of the image."""
    height, width = images.shape[-2:]
    framed = F.pad(images, [1, 1, 1, 1], value=value)
    return _gather(framed, (rows + 1).clamp(0, height + 1).long(), (columns + 1).clamp(0, width + 1).long())


def _blend(images: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    """factor · images + (1 - factor) · other, clamped and cut to whole numbers as in PIL and torchvision."""
    return torch.lerp(other.float(), images.float(), _per_image(factor)).clamp_(0, 255).to(torch.uint8)

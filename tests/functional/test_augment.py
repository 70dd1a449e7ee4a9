"""Augmentation against PIL, torchvision, independent numpy, hand-made images and the distributions of its draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch import Generator, Tensor
from torchvision.transforms import AutoAugment, AutoAugmentPolicy, InterpolationMode, v2
from torchvision.transforms.v2 import functional as reference

from lnl.functional import augment, auto_augment, image_operations

PAPER, CODE = (auto_augment.RAND_AUGMENT[name] for name in ("paper", "code"))
NAMES = ("none", "weak", "contrastive", "blurred", "solarised", "strong", "autoaugment")
SHAPES = ((1, 8), (3, 8), (1, 28), (3, 32), (3, 33), (3, 96))


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def noise(batch: int = 4, channels: int = 3, size: int = 32, width: int | None = None) -> Tensor:
    """Images of independent pixels: no two rows, columns or channels agree."""
    return torch.randint(0, 256, (batch, channels, size, width or size), generator=seeded(1), dtype=torch.uint8)


def scene(batch: int = 4, channels: int = 3, size: int = 32) -> Tensor:
    """Images of slow waves with values well inside 0…255, so that small factors never reach a clamp."""
    waves = torch.rand(batch, channels, 4, 4, generator=seeded(2))
    waves = torch.nn.functional.interpolate(waves, (size, size), mode="bilinear")
    return (80 + 90 * waves).to(torch.uint8)


def make(name: str, channels: int = 3, size: int = 32, flip: bool = True, **more: Any) -> augment.Augmentation:
    statistics = {"mean": (0.3, 0.5, 0.4)[:channels], "std": (0.2, 0.25, 0.3)[:channels]}
    return augment.pipeline(name, size=size, channels=channels, flip=flip, **statistics, **more)


def pixels(output: Tensor, augmentation: augment.Augmentation) -> Tensor:
    """Undo the normalisation: values 0…255."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (augmentation.mean, augmentation.std))
    return (output * std + mean) * 255


# ------------------------------------------------------------------------------------------------------------ pipelines


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize(("channels", "size"), SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_pipelines_return_finite_normalised_floats_of_the_same_shape(
    name: str, channels: int, size: int, batch: int
) -> None:
    augmentation, images = make(name, channels, size), noise(batch, channels, size)
    before = images.clone()
    output = augmentation(images, seeded())
    assert output.dtype == torch.float32 and output.shape == images.shape
    assert torch.equal(images, before), "the input was changed"
    values = pixels(output, augmentation)
    assert values.min() >= -1e-3 and values.max() <= 255 + 1e-3
    assert values.std() > 5, "the image was lost"  # a contrast of 0.2 and blur leave little of noise


@pytest.mark.parametrize("name", NAMES)
def test_same_generator_state_same_output(name: str) -> None:
    augmentation, images = make(name), noise()
    assert torch.equal(augmentation(images, seeded(3)), augmentation(images, seeded(3)))
    assert torch.equal(augmentation(images, seeded(3)), augmentation(images, seeded(4))) == (name == "none")


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize(("channels", "size"), [(3, 32), (1, 8)])
def test_parameters_are_drawn_per_image(name: str, channels: int, size: int) -> None:
    same = noise(1, channels, size).expand(100, -1, -1, -1)
    output = make(name, channels, size)(same, seeded())
    assert len(torch.unique(output.flatten(1), dim=0)) >= 15, "8×8 pixels have 9 shifts × 2 mirrors as weak views"


def test_none_is_normalisation_and_draws_nothing() -> None:
    images, generator = noise(), seeded(5)
    output = make("none")(images, generator)
    expected = (images.numpy() / 255 - np.reshape([0.3, 0.5, 0.4], (3, 1, 1))) / np.reshape([0.2, 0.25, 0.3], (3, 1, 1))
    np.testing.assert_allclose(output.numpy(), expected, atol=1e-5)
    assert torch.equal(generator.get_state(), seeded(5).get_state())


def test_normalise_leaves_float_input_alone() -> None:
    images = scene().float()
    before = images.clone()
    image_operations.normalise(images, (0.5,) * 3, (0.5,) * 3)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", NAMES[1:])
def test_pipeline_of_a_batch_is_the_pipeline_of_its_images(name: str) -> None:
    images, augmentation = noise(20, size=48), make(name, size=48)
    parameters = augmentation.draw(20, seeded())
    whole = augmentation.apply(images, parameters)
    for index in range(20):
        alone = augmentation.apply(images[index : index + 1], single(parameters, index))
        torch.testing.assert_close(alone[0], whole[index], atol=2e-3, rtol=0)


def single(parameters: Any, index: int) -> Any:
    """The parameters of one image: NamedTuples of tensors whose batch axis is the first, or the second after rounds."""
    if isinstance(parameters, Tensor):
        return parameters[index : index + 1]
    if isinstance(parameters, augment.Strong):
        operations = len(CODE.operations)
        slots = parameters.slots // math.ceil(parameters.slots.shape[1] / operations)  # one slot per operation
        return augment.Strong(
            single(parameters.weak, index),
            slots[:, index : index + 1].clamp(max=operations),  # behind them is that of a skipped one
            parameters.magnitudes[:, index : index + 1],
            single(parameters.centres, index),
        )
    if isinstance(parameters, augment.AutoAugment):
        return alone(parameters, index, batch=parameters.slots.shape[1])
    return type(parameters)(*(part if part is None else single(part, index) for part in parameters))


def alone(parameters: augment.AutoAugment, index: int, batch: int) -> augment.AutoAugment:
    """AutoAugment's slots for a batch of one: a sub-policy has one slot, and slot 25 skips the step."""
    capacity, policies = math.ceil(batch / 25), len(auto_augment.POLICY)
    slots = (parameters.slots[:, index : index + 1] // capacity).clamp(max=policies)
    return augment.AutoAugment(single(parameters.weak, index), slots, parameters.magnitudes[:, index : index + 1])


def test_digits_are_never_mirrored() -> None:
    for name in NAMES[1:]:
        parameters = make(name, 1, 8, flip=False).draw(500, seeded())
        mirrored = parameters.weak.mirrored if hasattr(parameters, "weak") else parameters.mirrored
        assert not mirrored.any()


def test_mirror_has_probability_one_half() -> None:
    assert abs(augment.draw_mirror(10_000, seeded(), flip=True).float().mean() - 0.5) < 5 * 0.5 / 100


def test_autocast_does_not_touch_the_colours() -> None:
    augmentation, images = make("contrastive"), noise()
    values = augmentation.apply(images, augmentation.draw(4, seeded()))
    expected = image_operations.normalise(values, augmentation.mean, augmentation.std)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(augmentation(images, seeded()), expected)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"name": "medium"},
            "there is no augmentation 'medium'; choose one of none, weak, contrastive, blurred, solarised, "
            "strong, autoaugment",
        ),
        ({"channels": 4}, "1 or 3 channels, not 4"),
        ({"mean": (0.5,)}, "give mean and std for each of the 3 channels"),
        ({"mean": (125.0, 122.0, 113.0)}, r"of pixels in \[0, 1\]"),
        ({"std": (0.2, 0.2, 0.0)}, "std above 0"),
        ({"largest_shift": 0.6}, r"largest_shift is a part of the image's size in \[0, 0.5\], not 0.6"),
        ({"smallest_crop": 0.0}, r"smallest_crop is a part of the image's area in \(0, 1\], not 0.0"),
    ],
)
def test_bad_settings_are_refused_in_one_sentence(change: dict[str, Any], sentence: str) -> None:
    settings: dict[str, Any] = {"name": "weak", "size": 32, "channels": 3, "flip": True, "mean": (0.5,) * 3}
    settings |= {"std": (0.2,) * 3} | change
    with pytest.raises(ValueError, match=sentence):
        augment.pipeline(settings.pop("name"), **settings)


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (noise().float(), r"uint8 images with pixel values 0…255, not torch\.float32"),
        (noise(channels=1), r"images \(batch, 3, 32, 32\), not \(4, 1, 32, 32\)"),
        (noise(size=28), r"not \(4, 3, 28, 28\)"),
        (noise()[0], r"not \(3, 32, 32\)"),
    ],
)
def test_bad_images_are_refused_in_one_sentence(images: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make("weak")(images, seeded())


# ------------------------------------------------------------------------------------------------- shift, crop, mirror


def test_shift_of_a_hand_made_image() -> None:
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
    still, mirrored = torch.tensor([False]), torch.tensor([True])
    assert image_operations.shift(image, torch.tensor([[0, 0]]), still).tolist() == image.tolist()
    assert image_operations.shift(image, torch.tensor([[0, 0]]), mirrored)[0, 0].tolist() == [
        [3, 2, 1],
        [6, 5, 4],
        [9, 8, 7],
    ]
    assert image_operations.shift(image, torch.tensor([[1, 0]]), still)[0, 0].tolist() == [
        [4, 5, 6],
        [7, 8, 9],
        [4, 5, 6],
    ]
    assert image_operations.shift(image, torch.tensor([[0, -1]]), still)[0, 0].tolist() == [
        [2, 1, 2],
        [5, 4, 5],
        [8, 7, 8],
    ]


@pytest.mark.parametrize(("padding", "mode"), [("reflect", "reflect"), ("zeros", "constant")])
def test_shift_is_a_crop_of_the_padded_image_for_every_offset(padding: image_operations.Padding, mode: str) -> None:
    limit, size = 2, 9
    offsets = torch.cartesian_prod(*[torch.arange(-limit, limit + 1)] * 2)
    for mirror in (False, True):
        images = noise(len(offsets), 3, size)
        output = image_operations.shift(images, offsets, torch.full((len(offsets),), mirror), padding)
        for image, (down, right), got in zip(images.numpy(), offsets.tolist(), output.numpy(), strict=True):
            source = image[..., ::-1] if mirror else image
            padded = np.pad(source, ((0, 0), (limit, limit), (limit, limit)), mode=mode)
            top, left = limit + down, limit + right
            np.testing.assert_array_equal(got, padded[:, top : top + size, left : left + size])


@pytest.mark.parametrize(
    ("size", "share", "limit"),
    [(8, 1 / 8, 1), (28, 1 / 8, 3), (32, 1 / 8, 4), (96, 1 / 8, 12), (8, 1 / 16, 1), (32, 1 / 16, 2), (32, 0.0, 0)],
)
def test_weak_draws_every_offset_equally_often_the_last_included(size: int, share: float, limit: int) -> None:
    offsets = make("weak", 1, size, largest_shift=share).draw(50_000, seeded()).offsets
    sides = 2 * limit + 1
    counts = torch.bincount((offsets[:, 0] + limit) * sides + offsets[:, 1] + limit, minlength=sides**2).double()
    assert offsets.min() == -limit and offsets.max() == limit and len(counts) == sides**2
    expected = 50_000 / sides**2
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    freedom = sides**2 - 1
    assert abs(chi_squared - freedom) <= 5 * math.sqrt(2 * freedom)


def test_whole_image_as_a_box_is_the_image_or_its_mirror_image() -> None:
    for size in (8, 28, 32):
        images, whole = noise(size=size), torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(4, -1)
        mirrored = torch.tensor([False, True, False, True])
        expected = torch.where(mirrored[:, None, None, None], images.flip(-1), images).float()
        torch.testing.assert_close(image_operations.resized_crop(images, whole, mirrored), expected, atol=1e-2, rtol=0)


def test_resized_crop_of_a_hand_made_ramp() -> None:
    ramp = torch.tensor([0, 10, 20, 30], dtype=torch.uint8).expand(1, 1, 4, 4)
    right_half = torch.tensor([[0.5, 0.0, 0.5, 0.5]])
    # Points 2.25, 2.75, 3.25, 3.75 from the left; pixel centres at 0.5, 1.5, 2.5, 3.5 and a constant border.
    expected = torch.tensor([17.5, 22.5, 27.5, 30.0])
    for mirror, row in ((False, expected), (True, expected.flip(0))):
        output = image_operations.resized_crop(ramp, right_half, torch.tensor([mirror]))
        torch.testing.assert_close(output, row.expand(1, 1, 4, 4), atol=1e-4, rtol=0)


def test_resized_crop_agrees_with_torchvision_inside_of_the_box() -> None:
    images = noise(3)
    boxes = [(3, 5, 20, 16), (0, 0, 9, 12), (10, 12, 22, 20)]  # left, top, width, height in pixels
    output = image_operations.resized_crop(images, torch.tensor(boxes) / 32, torch.zeros(3, dtype=torch.bool))
    for image, (left, top, width, height), got in zip(images.float(), boxes, output, strict=True):
        bilinear = InterpolationMode.BILINEAR
        expected = reference.resized_crop(image, top, left, height, width, [32, 32], bilinear, antialias=False)
        # Within half a pixel of the box's edge torchvision repeats the edge, ours reads the neighbour outside.
        inner = slice(2, -2)
        torch.testing.assert_close(got[:, inner, inner], expected[:, inner, inner], atol=0.05, rtol=0)


def test_crop_boxes_have_torchvision_s_distribution() -> None:
    boxes = augment.draw_crop(20_000, seeded(), smallest=0.08)
    left, top, width, height = boxes.T
    area, aspect = width * height, width / height
    assert (boxes[:, :2] >= 0).all() and (boxes[:, :2] + boxes[:, 2:] <= 1 + 1e-6).all()
    assert area.min() >= 0.08 - 1e-6 and area.max() <= 1
    assert aspect.min() >= 3 / 4 - 1e-5 and aspect.max() <= 4 / 3 + 1e-5
    assert abs(aspect.log().mean()) < 5 * aspect.log().std() / math.sqrt(20_000), "as often wide as tall"
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(1000)
    drawn = [crop.make_params([torch.empty(3, 1000, 1000)]) for _ in range(1500)]
    theirs = torch.tensor([[d["left"], d["top"], d["width"], d["height"]] for d in drawn]) / 1000
    for mine, other in zip((left, top, width, height, area), (*theirs.T, theirs[:, 2] * theirs[:, 3]), strict=True):
        error = math.sqrt(mine.var() / len(mine) + other.var() / len(other))
        assert abs(mine.mean() - other.mean()) < 5 * error
        assert abs(mine.std() - other.std()) < 0.05 * other.std()


def test_crop_falls_back_to_the_whole_image() -> None:
    boxes = augment.draw_crop(50, seeded(), smallest=1.0)  # fits only if the aspect ratio is exactly 1
    assert torch.equal(boxes, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(50, -1))


@pytest.mark.parametrize(
    ("size", "asked", "smallest"), [(8, None, 0.5), (16, None, 0.5), (28, None, 0.08), (32, None, 0.08), (32, 0.2, 0.2)]
)
def test_smallest_crop_is_larger_for_small_images(size: int, asked: float | None, smallest: float) -> None:
    boxes = make("contrastive", 1, size, smallest_crop=asked).draw(5_000, seeded()).boxes
    area = boxes[:, 2] * boxes[:, 3]
    assert smallest - 1e-6 <= area.min() < smallest + 0.01


# -------------------------------------------------------------------------------------------------------- colour, blur


def jitter_of(batch: int, **change: float) -> image_operations.Jitter:
    unchanged = {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}
    return image_operations.Jitter(
        **{name: torch.full((batch,), value) for name, value in (unchanged | change).items()}
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("factor", [0.6, 1.0, 1.4])
@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
def test_jitter_by_one_factor_agrees_with_torchvision(kind: str, factor: float, channels: int) -> None:
    images = noise(channels=channels)
    got = image_operations.jitter(images, jitter_of(4, **{kind: factor}))
    expected = (
        torch.stack([getattr(reference, f"adjust_{kind}")(image, factor) for image in images.float() / 255]) * 255
    )
    torch.testing.assert_close(got, expected, atol=0.1, rtol=0)  # torchvision's luma weights sum to 0.9999


def test_grey_is_luma() -> None:
    images = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)[:, :, None, None]
    got = image_operations.jitter(images, jitter_of(3, saturation=0.0)).squeeze()
    expected = 255 * torch.tensor([0.299, 0.587, 0.114])[:, None].expand(3, 3)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=0)


def test_hue_keeps_luma_and_grey_and_turns_as_in_torchvision() -> None:
    images = scene()
    for hue in (-0.1, -0.05, 0.05, 0.1):
        got = image_operations.jitter(images, jitter_of(4, hue=hue))
        torch.testing.assert_close(image_operations.luma(got), image_operations.luma(images), atol=1e-2, rtol=0)
        expected = reference.adjust_hue(images.float() / 255, hue) * 255
        chroma = [colours - image_operations.luma(colours) for colours in (images.float(), got, expected)]
        # HSV keeps other things than YIQ: the two agree on where the colours go (the other way gives 4), not on values.
        assert (chroma[1] - chroma[2]).square().mean() < 0.3 * (chroma[0] - chroma[2]).square().mean()
    grey = scene(channels=1).expand(-1, 3, -1, -1)
    torch.testing.assert_close(image_operations.jitter(grey, jitter_of(4, hue=0.1)), grey.float(), atol=1e-2, rtol=0)


def test_jitter_is_its_parts_in_any_order() -> None:
    images = scene()
    change = {"brightness": 1.1, "contrast": 0.8, "saturation": 0.7, "hue": 0.06}
    together = image_operations.jitter(images, jitter_of(4, **change))
    for order in (list(change), list(change)[::-1], ["hue", "contrast", "saturation", "brightness"]):
        step = images.float()
        for kind in order:
            step = image_operations.jitter(step, jitter_of(4, **{kind: change[kind]}))
        torch.testing.assert_close(step, together, atol=1e-2, rtol=0)
    assert (together - images).abs().mean() > 5


def test_jitter_draws_have_simclr_s_ranges_and_probabilities() -> None:
    brightness, contrast, saturation, hue = augment.draw_jitter(20_000, seeded(), strength=0.5)
    jittered = brightness != 1
    assert abs(jittered.float().mean() - 0.8) < 0.015
    assert torch.equal(contrast != 1, jittered) and torch.equal(hue != 0, jittered), "jittered together or not at all"
    for group in (jittered, ~jittered):
        assert abs((saturation[group] == 0).float().mean() - 0.2) < 0.03, "grey whether jittered or not"
    for values, centre, spread in (
        (brightness, 1, 0.4),
        (contrast, 1, 0.4),
        (saturation[saturation > 0], 1, 0.4),
        (hue, 0, 0.1),
    ):
        lowest, highest = values.min().item(), values.max().item()
        assert centre - spread <= lowest + 1e-6 and lowest < centre - 0.97 * spread
        assert centre + spread >= highest - 1e-6 and highest > centre + 0.97 * spread
    assert abs(torch.corrcoef(torch.stack([brightness, contrast]))[0, 1]) < 0.04, "drawn independently"


@pytest.mark.parametrize(
    ("size", "asked", "strength"), [(32, None, 0.5), (33, None, 1.0), (96, None, 1.0), (32, 1.0, 1.0), (96, 0.5, 0.5)]
)
def test_jitter_is_as_strong_as_simclr_s_recipes_have_it_by_size(
    size: int, asked: float | None, strength: float
) -> None:
    """Half the strength without blur (CIFAR), the whole one with it (ImageNet), or what is asked for."""
    drawn = make("contrastive", 3, size, strength=asked).draw(5_000, seeded())
    assert (drawn.sigma is not None) == (size > 32)
    assert 0.97 * 0.8 * strength < (drawn.jitter.brightness - 1).abs().max() <= 0.8 * strength + 1e-6
    assert 0.97 * 0.2 * strength < drawn.jitter.hue.abs().max() <= 0.2 * strength + 1e-6


def test_greyscale_contrastive_has_brightness_and_contrast_only() -> None:
    augmentation, images = make("contrastive", 1, 28), noise(6, 1, 28)
    parameters = augmentation.draw(6, seeded())
    plain = parameters.jitter._replace(saturation=torch.ones(6), hue=torch.zeros(6))
    assert torch.equal(
        augmentation.apply(images, parameters), augmentation.apply(images, parameters._replace(jitter=plain))
    )


def test_blur_agrees_with_torchvision_and_leaves_the_others_alone() -> None:
    images, sigma = noise(4, size=96), torch.tensor([0.0, 0.3, 1.0, 2.0])
    got = image_operations.gaussian_blur(images, sigma)
    assert torch.equal(got[0], images[0].float())
    for index in (1, 2, 3):
        expected = reference.gaussian_blur(images[index].float(), [9, 9], [sigma[index].item()] * 2)
        torch.testing.assert_close(got[index], expected, atol=1e-2, rtol=0)


def test_blur_is_drawn_for_half_of_the_images_above_32_pixels() -> None:
    assert make("contrastive", size=32).draw(4, seeded()).sigma is None
    sigma = make("contrastive", size=33).draw(10_000, seeded()).sigma
    assert abs((sigma > 0).float().mean() - 0.5) < 0.025
    assert 0.1 <= sigma[sigma > 0].min() < 0.11 and 1.99 < sigma.max() <= 2


def test_two_unlike_views_have_byol_s_probabilities() -> None:
    """Grill et al. (2020), table 6: blur 1 and .1, solarisation 0 and .2, jitter (.4, .4, .2, .1)."""
    first, second = (make(name, size=96).draw(20_000, seeded()) for name in ("blurred", "solarised"))
    assert first.solarised is None and (first.sigma > 0).all()
    assert abs((second.sigma > 0).float().mean() - 0.1) < 0.01
    assert abs(second.solarised.float().mean() - 0.2) < 0.012
    assert make("blurred", size=32).draw(4, seeded()).sigma is None
    for drawn in (first.jitter, second.jitter):
        widest = [(drawn.brightness - 1), (drawn.contrast - 1), (drawn.saturation[drawn.saturation > 0] - 1), drawn.hue]
        for values, largest in zip(widest, (0.4, 0.4, 0.2, 0.1), strict=True):
            assert 0.97 * largest < values.abs().max() <= largest + 1e-6


def test_solarised_images_are_inverted_from_128_on_after_all_else() -> None:
    augmentation, images = make("solarised", size=48), noise(20, size=48)
    parameters = augmentation.draw(20, seeded())
    plain = augmentation.apply(images, parameters._replace(solarised=None)).numpy()
    chosen = parameters.solarised.numpy()
    assert chosen.any() and not chosen.all()
    expected = np.where(chosen[:, None, None, None] & (plain >= 128), 255 - plain, plain)
    np.testing.assert_array_equal(augmentation.apply(images, parameters).numpy(), expected)


# ---------------------------------------------------------------------------------------------------------- RandAugment


def pil_affine(coefficients: Callable[[float, int], tuple[float, ...]]) -> Callable[[Image.Image, float], Image.Image]:
    def transform(image: Image.Image, value: float) -> Image.Image:
        fill = 127 if image.mode == "L" else (127, 127, 127)
        kind = Image.Transform.AFFINE
        return image.transform(image.size, kind, coefficients(value, image.size[0]), fillcolor=fill)

    return transform


def pil_rotate(image: Image.Image, degrees: float) -> Image.Image:
    return image.rotate(degrees, fillcolor=127 if image.mode == "L" else (127, 127, 127))


PIL = {
    "autocontrast": lambda image, _: ImageOps.autocontrast(image),
    "brightness": lambda image, factor: ImageEnhance.Brightness(image).enhance(factor),
    "colour": lambda image, factor: ImageEnhance.Color(image).enhance(factor),
    "contrast": lambda image, factor: ImageEnhance.Contrast(image).enhance(factor),
    "equalise": lambda image, _: ImageOps.equalize(image),
    "identity": lambda image, _: image,
    "posterise": lambda image, bits: ImageOps.posterize(image, round(bits)),
    "rotate": pil_rotate,
    "sharpness": lambda image, factor: ImageEnhance.Sharpness(image).enhance(factor),
    "shear_x": pil_affine(lambda factor, _: (1, factor, 0, 0, 1, 0)),
    "shear_y": pil_affine(lambda factor, _: (1, 0, 0, factor, 1, 0)),
    "solarise": lambda image, threshold: ImageOps.solarize(image, math.ceil(threshold)),
    "translate_x": pil_affine(lambda fraction, size: (1, 0, fraction * size, 0, 1, 0)),
    "translate_y": pil_affine(lambda fraction, size: (1, 0, 0, 0, 1, fraction * size)),
}
# The official code's operations whose ranges are no parts of the paper's.
WIDER = tuple(
    operation
    for operation in CODE.operations
    if operation.apply.__name__ in ("brightness", "colour", "contrast", "sharpness", "posterise")
)
ROUNDED = ("autocontrast", "brightness", "colour", "contrast", "sharpness")  # PIL rounds intermediate values


def by_name(operation: auto_augment.Operation) -> str:
    return operation.apply.__name__


@pytest.mark.parametrize("size", [8, 31, 32])
@pytest.mark.parametrize(
    ("channels", "operation"),
    [
        (channels, operation)
        for channels in (1, 3)
        for operation in (*PAPER.of(channels).operations, *WIDER)
        if channels == 3 or operation.apply is not image_operations.colour
    ],
)
def test_operation_agrees_with_pil(operation: auto_augment.Operation, channels: int, size: int) -> None:
    images = torch.cat([noise(4, channels, size), scene(4, channels, size)])
    share = torch.tensor([0.013, 0.21, 0.377, 0.4441, 0.5321, 0.618, 0.797, 0.961])
    values = operation.low + (operation.high - operation.low) * share
    output = operation.apply(images, values)
    assert output.dtype == torch.uint8 and output.shape == images.shape
    for image, value, got in zip(images, values.tolist(), output, strict=True):
        picture = Image.fromarray(image.squeeze(0).numpy() if channels == 1 else image.permute(1, 2, 0).numpy())
        expected = np.asarray(PIL[by_name(operation)](picture, value)).reshape(size, size, channels).transpose(2, 0, 1)
        difference = np.abs(got.numpy().astype(int) - expected.astype(int))
        wrong = (difference > (by_name(operation) in ROUNDED)).any(0).sum()
        assert wrong <= (by_name(operation) == "rotate"), "PIL's 16-bit fractions may put one point into the next pixel"


@pytest.mark.parametrize("operation", (*PAPER.operations, *auto_augment.POLICY_OPERATIONS), ids=by_name)
def test_operation_on_a_batch_is_the_operation_on_its_images(operation: auto_augment.Operation) -> None:
    images = noise(6, size=20, width=17)
    values = operation.low + (operation.high - operation.low) * torch.rand(6, generator=seeded())
    whole = operation.apply(images, values)
    for index in range(6):
        one = slice(index, index + 1)
        assert torch.equal(operation.apply(images[one], values[one]), whole[one])


@pytest.mark.parametrize("factor", [0.25, 0.5, 1.0, 1.75])
@pytest.mark.parametrize("kind", ["brightness", "contrast"])
def test_brightness_and_contrast_agree_with_torchvision(kind: str, factor: float) -> None:
    images = noise()
    got = getattr(image_operations, kind)(images, torch.full((4,), factor))
    expected = torch.stack([getattr(reference, f"adjust_{kind}")(image, factor) for image in images])
    assert (got.int() - expected.int()).abs().max() <= (
        0 if kind == "brightness" else 1
    )  # it cuts luma to whole numbers


def test_values_of_posterise_and_solarise() -> None:
    row = torch.tensor([[[[0, 15, 16, 127, 128, 255]]]], dtype=torch.uint8)
    assert image_operations.posterise(row, torch.tensor([4.0])).flatten().tolist() == [0, 0, 16, 112, 128, 240]
    assert image_operations.posterise(row, torch.tensor([8.5])).flatten().tolist() == row.flatten().tolist()
    assert image_operations.solarise(row, torch.tensor([128.0])).flatten().tolist() == [0, 15, 16, 127, 127, 0]
    assert image_operations.solarise(row, torch.tensor([0.0])).flatten().tolist() == [255, 240, 239, 128, 127, 0]
    assert image_operations.solarise(row, torch.tensor([256.0])).flatten().tolist() == row.flatten().tolist()


def test_geometry_of_a_hand_made_image() -> None:
    image = torch.arange(1, 17, dtype=torch.uint8).view(1, 1, 4, 4)
    grey = image_operations.GREY
    moved = image_operations.translate_x(image, torch.tensor([0.25]))[0, 0]
    assert moved[:, :3].tolist() == image[0, 0, :, 1:].tolist() and (moved[:, 3] == grey).all()
    moved = image_operations.translate_y(image, torch.tensor([-0.5]))[0, 0]
    assert moved[2:].tolist() == image[0, 0, :2].tolist() and (moved[:2] == grey).all()
    assert image_operations.rotate(image, torch.tensor([90.0]))[0, 0].tolist() == torch.rot90(image[0, 0]).tolist()
    # Rows ½ … 3½ move by ¼ … 1¾ pixels, so the point at column ½ is read at ¾, 1¼, 1¾ and 2¼.
    sheared = image_operations.shear_x(image, torch.tensor([0.5]))[0, 0]
    assert sheared[:, 0].tolist() == [1, 6, 10, 15] and sheared[3].tolist() == [15, 16, grey, grey]


def test_equalise_and_autocontrast_leave_what_has_no_histogram() -> None:
    nothing = torch.zeros(2)
    constant = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(image_operations.autocontrast(constant, nothing), constant)
    assert torch.equal(image_operations.equalise(constant, nothing), constant)
    stretched = image_operations.autocontrast(torch.tensor([[[[50, 100, 150]]]], dtype=torch.uint8), nothing[:1])
    assert stretched.flatten().tolist() == [0, 127, 255]


def test_operations_of_the_paper_are_its_list() -> None:
    enhance, shear = (0.05, 0.95), (-0.3, 0.3)
    assert {by_name(operation): (operation.low, operation.high) for operation in PAPER.operations} == {
        **dict.fromkeys(("autocontrast", "equalise", "identity"), (0.0, 0.0)),
        **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), enhance),
        **dict.fromkeys(("shear_x", "shear_y", "translate_x", "translate_y"), shear),
        "posterise": (3.5, 8.5),
        "rotate": (-30, 30),
        "solarise": (0, 256),
    }
    for variant in (PAPER, CODE):
        names = [by_name(operation) for operation in variant.operations]
        assert len(names) == 14 and [by_name(operation) for operation in variant.of(3).operations] == names
        assert {*names} - {by_name(operation) for operation in variant.of(1).operations} == {"colour"}


def level_of_the_code(name: str, level: int) -> float:
    """What the official code of FixMatch makes of a level from 1 to 9, by its rules: v / 10 of the largest value."""
    return {
        **dict.fromkeys(("brightness", "colour", "contrast", "sharpness"), 0.1 + 1.8 * level / 10),
        **dict.fromkeys(("shear_x", "shear_y"), 0.3 * level / 10),
        **dict.fromkeys(("translate_x", "translate_y"), level / 32),  # whole pixels of 32
        "posterise": 4 - int(level * 4 / 10),
        "rotate": int(level * 30 / 10),
        "solarise": 256 - int(level * 256 / 10),
    }.get(name, 0.0)


@pytest.mark.parametrize("operation", CODE.operations, ids=by_name)
def test_operations_of_the_code_have_its_values_at_each_level(operation: auto_augment.Operation) -> None:
    images, name = noise(1), by_name(operation)
    for level in range(1, 10):
        ours = operation.low + (operation.high - operation.low) * torch.tensor([level / 10])
        theirs = torch.tensor([float(level_of_the_code(name, level))])
        difference = operation.apply(images, ours).int() - operation.apply(images, theirs).int()
        assert difference.abs().max() <= (name in ROUNDED), level  # factors agree to the last bit but one


def test_operations_of_the_code_are_applied_half_of_the_time_at_nine_levels_in_both_directions() -> None:
    batch = 14_000
    slots, magnitudes = auto_augment.draw_operations(batch, seeded(), CODE)
    assert len(slots.unique()) == batch
    applied = slots < batch
    assert abs(applied.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(batch)
    names = np.array([by_name(operation) for operation in CODE.operations])[slots[applied] // 1000]
    values = magnitudes[applied].numpy()
    assert {name: (names == name).sum() > 400 for name in names} == dict.fromkeys(PIL, True)
    directed = np.isin(names, ("rotate", "shear_x", "shear_y", "translate_x", "translate_y"))
    assert (values[~directed] > 0).all() and abs((values[directed] < 0).mean() - 0.5) < 0.05
    levels, counts = np.unique(np.abs(values).round(6), return_counts=True)
    assert np.allclose(levels, np.arange(1, 10) / 10)
    assert np.abs(counts - applied.sum().item() / 9).max() < 5 * math.sqrt(applied.sum().item() / 9)


def test_the_code_changes_images_less_than_the_paper_says() -> None:
    images = scene(500)
    changes = {}
    for name in ("paper", "code"):
        augmentation = make("strong", operations=name, largest_shift=0.0, flip=False)
        view = augmentation.apply(images, augmentation.draw(500, seeded()))
        changes[name] = (view.float() - images.float()).abs().mean()
    assert changes["code"] < 0.8 * changes["paper"]


@pytest.mark.parametrize("batch", [1, 14, 15, 64])
def test_operations_are_drawn_uniformly_into_groups_of_known_size(batch: int) -> None:
    generator, capacity, rounds = seeded(), math.ceil(batch / 14), 400
    counts = torch.zeros(batch, 14)
    for _ in range(rounds):
        slots, magnitudes = auto_augment.draw_operations(batch, generator, PAPER)
        assert slots.shape == magnitudes.shape == (batch,) and len(slots.unique()) == batch
        assert slots.min() >= 0 and slots.max() < 14 * capacity and 0 <= magnitudes.min() and magnitudes.max() < 1
        counts[torch.arange(batch), slots // capacity] += 1
    # Every image sees every operation equally often: 6 sigma of a binomial count.
    assert (counts - rounds / 14).abs().max() < 6 * math.sqrt(rounds / 14 * 13 / 14)


@pytest.mark.parametrize("batch", [1, 5, 33])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["paper", "code"])
def test_rand_augment_gives_every_image_its_own_operation_and_magnitude(
    name: auto_augment.RandAugmentName, channels: int, batch: int
) -> None:
    images, variant = noise(batch, channels, 16), auto_augment.RAND_AUGMENT[name].of(channels)
    slots, magnitudes = auto_augment.draw_operations(batch, seeded(), variant)
    output = auto_augment.rand_augment(images, slots, magnitudes, variant)
    capacity = math.ceil(batch / len(variant.operations))
    for index in range(batch):
        one, slot = slice(index, index + 1), int(slots[index]) // capacity
        if slot >= len(variant.operations):
            assert torch.equal(output[one], images[one]), "skipped"
            continue
        operation = variant.operations[slot]
        value = operation.low + (operation.high - operation.low) * magnitudes[one]
        assert torch.equal(output[one], operation.apply(images[one], value))


def test_strong_is_the_weak_view_then_two_operations_then_cutout() -> None:
    images, names = noise(1), [by_name(operation) for operation in PAPER.operations]
    drawn = make("strong", operations="paper").draw(1, seeded())
    assert drawn.slots.shape == drawn.magnitudes.shape == (2, 1)
    chosen = torch.tensor([[names.index("solarise")], [names.index("posterise")]])
    parameters = drawn._replace(slots=chosen, magnitudes=torch.tensor([[0.5], [0.1]]))
    for padding in ("reflect", "zeros"):
        expected = image_operations.shift(images, drawn.weak.offsets, drawn.weak.mirrored, padding)
        expected = image_operations.posterise(
            image_operations.solarise(expected, torch.tensor([128.0])), torch.tensor([4.0])
        )
        expected = image_operations.cutout(expected, drawn.centres, 16)
        assert torch.equal(make("strong", operations="paper", padding=padding).apply(images, parameters), expected)


def test_cutout_of_a_hand_made_image() -> None:
    image = torch.full((3, 1, 6, 6), 9, dtype=torch.uint8)
    output = image_operations.cutout(image, torch.tensor([[3, 2], [0, 0], [5, 5]]), 4)
    expected = np.full((3, 6, 6), 9)
    expected[0, 1:5, 0:4] = expected[1, 0:2, 0:2] = expected[2, 3:6, 3:6] = image_operations.GREY
    np.testing.assert_array_equal(output[:, 0].numpy(), expected)


def test_strong_cuts_out_half_the_size_around_every_pixel() -> None:
    augmentation = make("strong", 1, 8)
    parameters = augmentation.draw(5_000, seeded())
    centres = parameters.centres
    assert len(torch.unique(centres, dim=0)) == 64 and centres.min() == 0 and centres.max() == 7
    whole = (centres >= 2).all(1) & (centres <= 6).all(1)
    hidden = augmentation.apply(noise(5_000, 1, 8), parameters) == image_operations.GREY
    assert (hidden[whole].sum((1, 2, 3)) >= 16).all(), "a square of 4 × 4 pixels"


# ---------------------------------------------------------------------------------------------------------- AutoAugment

TORCHVISION_NAMES = {
    "autocontrast": "AutoContrast",
    "brightness": "Brightness",
    "colour": "Color",
    "contrast": "Contrast",
    "equalise": "Equalize",
    "invert": "Invert",
    "posterise": "Posterize",
    "rotate": "Rotate",
    "sharpness": "Sharpness",
    "shear_y": "ShearY",
    "solarise": "Solarize",
    "translate_x": "TranslateX",
    "translate_y": "TranslateY",
}


def by_torchvision(image: Tensor, name: str, level: float) -> Tensor:
    """The operation at `level` of 9 (-9…9) on one image by torchvision, with the official code's magnitudes."""
    affine = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "fill": [image_operations.GREY]}
    # The official code moves by 14.5 of 32 pixels, which reads whole pixels 15 away, and 14 the other way.
    pixels = math.floor(150 / 331 * image.shape[-1] * level / 9 + 0.5)
    return {
        "autocontrast": lambda: reference.autocontrast(image),
        "brightness": lambda: reference.adjust_brightness(image, 1 + 0.1 * level),
        "colour": lambda: reference.adjust_saturation(image, 1 + 0.1 * level) if len(image) == 3 else image,
        "contrast": lambda: reference.adjust_contrast(image, 1 + 0.1 * level),
        "equalise": lambda: reference.equalize(image),
        "invert": lambda: reference.invert(image),
        "posterise": lambda: reference.posterize(image, round(8 - 4 * level / 9)),
        "rotate": lambda: reference.rotate(image, 30 * level / 9, fill=[image_operations.GREY]),
        "sharpness": lambda: reference.adjust_sharpness(image, 1 + 0.1 * level),
        "shear_y": lambda: reference.affine(
            image, **affine | {"shear": [0.0, math.degrees(math.atan(0.3 * level / 9))]}, center=[0, 0]
        ),
        "solarise": lambda: reference.solarize(image, 256 - 256 * level / 9),
        "translate_x": lambda: reference.affine(image, **affine | {"translate": [-pixels, 0]}),
        "translate_y": lambda: reference.affine(image, **affine | {"translate": [0, -pixels]}),
    }[name]()


def order_of(step: int) -> list[int]:
    """The sub-policies in the order of their slots at a step: by operation, as listed."""
    names = [by_name(operation) for operation in auto_augment.POLICY_OPERATIONS]
    return sorted(range(25), key=lambda policy: names.index(auto_augment.POLICY[policy][step][0].__name__))


def test_policy_is_torchvision_s() -> None:
    theirs = [
        tuple((name, chance, level or 0) for name, chance, level in steps)
        for steps in AutoAugment(AutoAugmentPolicy.CIFAR10).policies
    ]
    ours = [
        tuple((TORCHVISION_NAMES[apply.__name__], chance, level) for apply, chance, level in steps)
        for steps in auto_augment.POLICY
    ]
    assert ours == theirs and len(ours) == 25


def test_magnitudes_of_the_policy() -> None:
    def value(name: str, level: int) -> float:
        (operation,) = (operation for operation in auto_augment.POLICY_OPERATIONS if by_name(operation) == name)
        return operation.low + (operation.high - operation.low) * level / 9

    assert value("shear_y", 8) == pytest.approx(0.266667, abs=1e-6)
    assert 32 * value("translate_x", 9) == pytest.approx(14.50, abs=0.005)
    assert value("translate_y", 3) == pytest.approx(150 / 331 / 3)
    assert value("rotate", 2) == pytest.approx(30 * 2 / 9)
    assert round(value("posterise", 7)) == 5
    assert value("solarise", 5) == pytest.approx(113.78, abs=0.005)
    for name in ("colour", "contrast", "sharpness", "brightness"):
        assert (value(name, 3), value(name, -3)) == pytest.approx((1.3, 0.7))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("policy", range(25))
def test_sub_policy_agrees_with_torchvision(policy: int, channels: int) -> None:
    """Each step from the same input (colours may differ by one level of rounding), then both steps together."""
    steps = [torch.tensor([order_of(step).index(policy)]) for step in (0, 1)]
    skipped = torch.tensor([25])
    for image, signs in itertools.product([noise(1, channels), scene(1, channels)], [(1, 1), (-1, 1), (1, -1)]):
        levels = [
            level * (1 if apply in auto_augment.UNSIGNED else sign)
            for sign, (apply, _, level) in zip(signs, auto_augment.POLICY[policy], strict=True)
        ]
        magnitudes = torch.tensor(levels)[:, None] / 9
        first = auto_augment.apply_policies(image, torch.stack([steps[0], skipped]), magnitudes)
        both = auto_augment.apply_policies(image, torch.stack(steps), magnitudes)
        assert torch.equal(both, auto_augment.apply_policies(first, torch.stack([skipped, steps[1]]), magnitudes))
        for before, after, (apply, _, _), level in zip(
            (image, first), (first, both), auto_augment.POLICY[policy], levels, strict=True
        ):
            difference = (after[0].int() - by_torchvision(before[0], apply.__name__, level).int()).abs()
            assert (difference > (apply.__name__ in ROUNDED)).sum() <= (apply.__name__ == "rotate"), apply.__name__


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 26, 64])
def test_policies_are_drawn_uniformly_with_their_probabilities_and_signs(batch: int) -> None:
    generator, capacity, rounds = seeded(), math.ceil(batch / 25), 1_000 if batch == 1 else 400
    orders = torch.tensor([order_of(0), order_of(1)])
    applied, negated = torch.zeros(2, 25), torch.zeros(2, 25)
    for _ in range(rounds):
        slots, magnitudes = auto_augment.draw_policies(batch, generator)
        assert slots.shape == magnitudes.shape == (2, batch)
        assert all(len(step.unique()) == batch for step in slots), "every image has its own slot"
        for step in (0, 1):
            done = slots[step] < 25 * capacity
            assert torch.equal(slots[step, ~done], 25 * capacity + (~done).nonzero().squeeze(1))
            policies = orders[step, slots[step, done] // capacity]
            applied[step] += torch.bincount(policies, minlength=25)
            negated[step] += torch.bincount(policies, (magnitudes[step, done] < 0).float(), minlength=25)
            levels = torch.tensor([float(steps[step][2]) for steps in auto_augment.POLICY])[policies]
            torch.testing.assert_close(9 * magnitudes[step, done].abs(), levels)
    drawn = rounds * batch / 25
    for step in (0, 1):
        for policy, steps in enumerate(auto_augment.POLICY):
            apply, probability, level = steps[step]
            spread = math.sqrt(drawn * probability)  # of a Poisson count: no less than that of ours
            assert abs(applied[step, policy] - drawn * probability) <= 5 * spread, (policy, step)
            share = 0.5 if level and apply not in auto_augment.UNSIGNED else 0.0
            expected = share * applied[step, policy]
            assert abs(negated[step, policy] - expected) <= 5 * math.sqrt(expected / 2), (policy, step)


def test_autoaugment_is_the_weak_view_then_the_policy() -> None:
    augmentation, images = make("autoaugment"), noise(40)
    drawn = augmentation.draw(40, seeded())
    expected = auto_augment.apply_policies(augment.weak(images, drawn.weak), drawn.slots, drawn.magnitudes)
    assert torch.equal(augmentation.apply(images, drawn), expected)
    changed = (expected != augment.weak(images, drawn.weak)).flatten(1).any(1)
    assert 20 <= changed.sum() < 40, "steps are skipped for some images"

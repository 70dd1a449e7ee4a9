"""RandAugment and AutoAugment on batches of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from lnl.functional.image_operations import (
    autocontrast,
    brightness,
    colour,
    contrast,
    equalise,
    identity,
    invert,
    positions,
    posterise,
    rotate,
    sharpness,
    shear_x,
    shear_y,
    solarise,
    translate_x,
    translate_y,
)


class Operation(NamedTuple):
    """apply(images uint8 (B, C, H, W), value (B,)) -> uint8; the value is `low` at magnitude 0 and `high` at 1."""

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0


class RandAugment(NamedTuple):
    """A variant of RandAugment: one round draws an operation for each image, uniformly, and its magnitude.

    With `levels`, magnitudes are 1/10 to `levels`/10, and operations with a direction go either way; without, they are
    uniform in [0, 1).  A drawn operation is applied with `probability`.
    """

    operations: tuple[Operation, ...]
    levels: int = 0
    probability: float = 1.0

    def of(self, channels: int) -> RandAugment:
        """The variant for images with so many channels: one has no operations that need colour."""
        return self._replace(
            operations=tuple(each for each in self.operations if channels == 3 or each.apply != colour)
        )


RandAugmentName = Literal["code", "paper"]
DIRECTED = (rotate, shear_x, shear_y, translate_x, translate_y)
RAND_AUGMENT: dict[RandAugmentName, RandAugment] = {
    # The transformations and ranges that FixMatch (Sohn et al. 2020, appendix) lists; its authors say that they are
    # always applied (issue 65 of the official code).
    "paper": RandAugment(
        (
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
    ),
    # What the official code does, with which the paper's numbers were measured: every operation with probability 1/2,
    # at levels 1…9 of 10.  It moves by whole pixels of 32; here by as large a share of other sizes.
    "code": RandAugment(
        (
            Operation(autocontrast),
            Operation(brightness, 0.1, 1.9),
            Operation(colour, 0.1, 1.9),
            Operation(contrast, 0.1, 1.9),
            Operation(equalise),
            Operation(identity),
            Operation(posterise, 4.49, 0.49),  # rounded: 4, 4, 3, 3, 2, 2, 2, 1 and 1 bits at levels 1…9
            Operation(rotate, 0, 30),
            Operation(sharpness, 0.1, 1.9),
            Operation(shear_x, 0, 0.3),
            Operation(shear_y, 0, 0.3),
            Operation(solarise, 256, 0),
            Operation(translate_x, 0, 10 / 32),
            Operation(translate_y, 0, 10 / 32),
        ),
        levels=9,
        probability=0.5,
    ),
}


def draw_operations(batch: int, generator: Generator, variant: RandAugment) -> tuple[Tensor, Tensor]:
    """One operation per image as a slot, int64 (B,), and a magnitude in [0, 1), or in (-1, 1) with `levels`, (B,).

    Every operation has ceil(B / operations) slots and every image gets its own slot, so that group sizes are known
    without asking the device.  Each image's operation is slot // ceil(B / operations), uniform over the operations;
    within a batch they are drawn without replacement.  Behind these comes one slot per image for those whose operation
    is not applied.
    """
    groups, capacity = len(variant.operations), ceil(batch / len(variant.operations))
    slots = _draw_slots(batch, generator, groups=groups)
    magnitudes = torch.rand(batch, generator=generator, device=generator.device)
    if variant.levels:
        levels = ((variant.levels * magnitudes).floor() + 1) / 10
        sign = torch.rand(batch, generator=generator, device=generator.device)
        directed = _directed(variant.operations, generator.device)[slots // capacity]
        magnitudes = torch.where(directed & (sign < 0.5), -levels, levels)
    if variant.probability < 1:
        chance = torch.rand(batch, generator=generator, device=generator.device)
        skipped = groups * capacity + torch.arange(batch, device=generator.device)
        slots = torch.where(chance < variant.probability, slots, skipped)
    return slots, magnitudes


def rand_augment(images: Tensor, slots: Tensor, magnitudes: Tensor, variant: RandAugment) -> Tensor:
    """One round of RandAugment, each image with its own operation and magnitude: uint8 -> uint8."""
    operations = variant.operations
    sizes = [ceil(len(images) / len(operations))] * len(operations)
    if variant.probability < 1:
        operations, sizes = (*operations, Operation(identity)), [*sizes, len(images)]
    return _by_operation(images, operations, sizes, slots, magnitudes)


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


# For each of the two steps the operation of every sub-policy, as an index of POLICY_OPERATIONS: (2, 25).
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
        sizes = [capacity * choices.count(operation) for operation in range(len(POLICY_OPERATIONS))]
        images = _by_operation(images, operations, [*sizes, batch], *parameters)
    return images


def _draw_slots(batch: int, generator: Generator, *, groups: int) -> Tensor:
    """A slot of its own for each image, int64 (B,), among ceil(B / groups) per group, drawn without replacement."""
    draws = torch.rand(groups * ceil(batch / groups), generator=generator, device=generator.device)
    return draws.argsort()[:batch]


def _by_operation(
    images: Tensor, operations: Sequence[Operation], sizes: Sequence[int], slots: Tensor, magnitudes: Tensor
) -> Tensor:
    """Apply to each image the operation that owns its slot; operation i has `sizes[i]` of them.  uint8 -> uint8"""
    # Slots that no image drew work on image 0; their results are not used.
    occupant = slots.new_zeros(sum(sizes)).scatter_(0, slots, positions(len(images), images))
    groups = images.index_select(0, occupant).split(sizes), magnitudes[occupant].split(sizes)
    results = [
        operation.apply(group, operation.low + (operation.high - operation.low) * magnitude)
        for operation, group, magnitude in zip(operations, *groups, strict=True)
        if len(group)
    ]
    return torch.cat(results).index_select(0, slots)


@cache
def _directed(operations: tuple[Operation, ...], device: torch.device) -> Tensor:
    """(operations,) bool: whether an operation has a direction."""
    return torch.tensor([operation.apply in DIRECTED for operation in operations], device=device)


@cache
def _policy_tables(device: torch.device) -> tuple[Tensor, ...]:
    """Of the policy's steps: rank in the order of operations, probability, magnitude in 0…1, signed: (2, 25) each."""
    rank = torch.tensor(POLICY_CHOICES).argsort(stable=True).argsort()
    apply, probability, magnitude = zip(*(zip(*steps, strict=True) for steps in zip(*POLICY, strict=True)), strict=True)
    signed = torch.tensor([[step not in UNSIGNED for step in steps] for steps in apply])
    return tuple(table.to(device) for table in (rank, torch.tensor(probability), torch.tensor(magnitude) / 9, signed))

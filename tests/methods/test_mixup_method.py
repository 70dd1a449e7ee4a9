"""The method mixup: who is mixed with whom, and what is left of it without mixing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.targets import mixup, mixup_coefficients, one_hot
from lnl.trial.run import run


@pytest.fixture
def batch(tiny: Callable, build: Callable) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Mixed images and labels of sixteen labelled images, and their given labels."""

    def make(**fields: Any) -> tuple[Tensor, Tensor, Tensor]:
        method = build(tiny("mixup", {f"method.{name}": value for name, value in fields.items()})).method
        index = method.task.labelled[:16]
        return *method.mixed(index), method.task.labels[index]

    return make


def shares(mixed: Tensor, labels: Tensor) -> Tensor:
    """Weight of the first label of each pair of different ones: (B',)."""
    first = mixed.gather(-1, labels[:, None])[:, 0]
    return first[first < 1]


def test_one_coefficient_for_a_batch_or_for_each_image(batch: Callable) -> None:
    common = shares(*batch()[1:])
    assert len(common) > 8 and 0.5 <= common[0] < 1
    assert_close(common, common[:1].expand(len(common)))
    own = shares(*batch(coefficient="image")[1:])
    assert len(own.unique()) == len(own) and (own >= 0.5).all()


@pytest.mark.parametrize("coefficient", ["batch", "image"])
def test_labels_are_mixed_like_the_images(batch: Callable, coefficient: str) -> None:
    """Every row is some pair of the batch's images, their labels in the same proportion."""
    images, mixed, labels = batch(coefficient=coefficient)
    unmixed = batch(coefficient=coefficient, alpha=1e-6)[0]
    rows = torch.cat([images.flatten(1), mixed], -1)
    sources = torch.cat([unmixed.flatten(1), one_hot(labels, 10)], -1)
    first = mixed.gather(-1, labels[:, None])
    share = shares(mixed, labels)[:1].expand(16, 1) if coefficient == "batch" else first
    pairs = share[..., None] * sources[:, None] + (1 - share[..., None]) * sources  # (16, 16, features)
    nearest = (pairs - rows[:, None]).abs().amax(-1).amin(-1)
    assert (nearest[first[:, 0] < 1] < 1e-5).all()  # of two of one class the labels do not tell the share


def test_large_alpha_mixes_halves_and_small_alpha_nothing(batch: Callable) -> None:
    _, mixed, labels = batch(alpha=1e6)
    assert (shares(mixed, labels) - 0.5).abs().max() < 0.01
    _, mixed, labels = batch(alpha=1e-6)
    assert torch.equal(mixed, one_hot(labels, 10))


def test_swapping_a_common_coefficient_gives_the_same_batch_back() -> None:
    """Why drawing max(l, 1 - l) is drawing l: the inverse permutation is as likely as the permutation."""
    random = torch.Generator().manual_seed(0)
    images, labels = torch.randn(8, 3, generator=random), one_hot(torch.arange(8), 8)
    permutation, coefficient = torch.randperm(8, generator=random), mixup_coefficients(1.0, 1, random)
    straight = mixup(images, labels, permutation, coefficient)
    swapped = mixup(images, labels, permutation.argsort(), 1 - coefficient)
    for one, other in zip(straight, swapped, strict=True):
        assert_close(other[permutation], one)


def test_without_mixing_it_is_supervised_training(tiny: Callable) -> None:
    same: dict[str, object] = {"method.optimizer.nesterov": False, "method.optimizer.weight_decay": 1e-4}
    same |= {"method.weak.padding": "zeros"}
    same |= {"method.optimizer.learning_rate": 0.03, "method.optimizer.schedule": "constant"}
    supervised = [row.metrics["train", "loss"] for row in run(tiny("supervised", same))]
    unmixed = [row.metrics["train", "loss"] for row in run(tiny("mixup", {**same, "method.alpha": 1e-6}))]
    assert unmixed == pytest.approx(supervised, rel=1e-5)

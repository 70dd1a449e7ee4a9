"""Barlow Twins: the loss, its floors, and the projector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.losses import barlow_twins

FIRST = torch.tensor([[1.0, 2, 0], [0, 1, 1], [2, 0, 1], [1, 1, 3]])
SECOND = torch.tensor([[1.0, 1, 0], [0, 2, 1], [2, 0, 2], [0, 1, 3]])


def random_views(count: int, size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    first, second = torch.randn(2, count, size, generator=torch.Generator().manual_seed(seed))
    return first, second


def test_loss_known_answers() -> None:
    """On the diagonal 0.277553, beside it 1.916202; with the unbiased variance it would be 0.620544."""
    assert barlow_twins(FIRST, SECOND, 0.0).item() == pytest.approx(0.277553, abs=1e-5)
    assert (barlow_twins(FIRST, SECOND, 1.0) - barlow_twins(FIRST, SECOND, 0.0)).item() == pytest.approx(
        1.916202, abs=1e-5
    )
    assert barlow_twins(FIRST, SECOND, 0.0051).item() == pytest.approx(0.287326, abs=1e-5)


@pytest.mark.parametrize("size", [1, 3, 6])
def test_loss_against_numpy(size: int) -> None:
    first, second = random_views(5, size)
    a, b = ((x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (first.double().numpy(), second.double().numpy()))
    expected = 0.0
    for i in range(size):
        for j in range(size):
            correlation = np.mean(a[:, i] * b[:, j])
            expected += (1 - correlation) ** 2 if i == j else 0.3 * correlation**2
    assert barlow_twins(first, second, 0.3).item() == pytest.approx(expected, rel=1e-5)


def test_loss_knows_neither_scale_nor_offset_of_a_dimension() -> None:
    first, second = random_views(64, 6)
    scale, offset = torch.tensor([0.5, 1, 2, 3, 5, 10]), torch.arange(6.0)
    loss = barlow_twins(first, second, 0.0051)
    assert_close(barlow_twins(first * scale + offset, second, 0.0051), loss, atol=1e-3, rtol=1e-4)  # ε is not scaled
    assert_close(barlow_twins(second, first, 0.0051), loss)
    assert barlow_twins(first, -first, 0.0).item() == pytest.approx(4 * 6, rel=1e-3)  # but a sign it does


@pytest.mark.parametrize(("size", "same", "apart"), [(128, 0.664, 130.1), (512, 10.70, 525.5)])
def test_loss_between_the_floor_of_its_sample_and_independence(size: int, same: float, apart: float) -> None:
    """With 125 images of as many or more dimensions, noise of the sample alone costs λ D (D - 1) / N."""
    first, second = random_views(125, size)
    assert barlow_twins(first, first, 0.0051).item() == pytest.approx(same, rel=0.05)
    assert barlow_twins(first, second, 0.0051).item() == pytest.approx(apart, rel=0.05)


def test_a_constant_dimension_costs_one_and_has_a_finite_gradient() -> None:
    first, second = random_views(8, 3)
    first[:, 1] = 4.0
    first.requires_grad_()
    loss = barlow_twins(first, second, 0.0)
    others = barlow_twins(first[:, [0, 2]], second[:, [0, 2]], 0.0)
    assert_close(loss, others + 1)
    loss.backward()
    assert first.grad is not None and first.grad.isfinite().all()


def test_loss_takes_leading_axes_and_is_float32_under_autocast() -> None:
    first, second = torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    stacked = barlow_twins(first, second, 0.1)
    assert stacked.shape == (3,)
    assert_close(stacked[1], barlow_twins(first[1], second[1], 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(barlow_twins(first, second, 0.1), stacked)


# -------------------------------------------------------------------------------------------------------------- method


def method_of(build: Callable, tiny: Callable, **settings: Any) -> Any:
    return build(tiny("barlow_twins", {f"method.{field}": value for field, value in settings.items()})).method


@pytest.mark.parametrize(("layers", "linear"), [(0, 0), (1, 1), (3, 3)])
def test_layers_of_the_projector(layers: int, linear: int, build: Callable, tiny: Callable) -> None:
    head = method_of(build, tiny, projector_layers=layers, projector_width=20).learner.network.heads["projection"]
    kinds = [type(module).__name__ for module in head]
    assert kinds.count("Linear") == linear
    assert kinds.count("BatchNorm1d") == kinds.count("ReLU") == max(linear - 1, 0)
    assert head(torch.zeros(2, 96)).shape == (2, 20 if layers else 96)


def test_without_projector_the_loss_is_on_the_features(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, projector_layers=0)
    network = method.learner.network.eval()
    views = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = barlow_twins(network.features(views[:6]), network.features(views[6:]), 0.0051)
    assert_close(method.objective(network, views), expected)


def test_each_view_has_its_own_batch_statistics(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    method.train_epoch(0)
    tracked = [int(b) for name, b in method.learner.network.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(tracked) == {6}  # three steps, two views


def test_labels_do_not_matter_for_training(build: Callable, tiny: Callable) -> None:
    one, other = method_of(build, tiny), method_of(build, tiny)
    other.task.labels[other.task.labelled] = 0
    for epoch in range(2):
        assert one.train_epoch(epoch)["loss"] == other.train_epoch(epoch)["loss"]

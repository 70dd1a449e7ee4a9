"""S4L: orientations, the triplet loss, and what the two halves of a batch teach."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional
from torch.testing import assert_close

from lnl.functional.losses import batch_hard_triplet, cross_entropy
from lnl.methods.s4l import Config, orientations


def method_of(build: Callable, tiny: Callable, **settings: Any) -> Any:
    return build(tiny("s4l", {f"method.{field}": value for field, value in settings.items()})).method


# --------------------------------------------------------------------------------------------------- pure functions


def test_orientations_known_answers() -> None:
    turned = orientations(torch.tensor([[1, 2], [3, 4]])[None, None])
    assert turned[:, 0].tolist() == [[[1, 2], [3, 4]], [[2, 4], [1, 3]], [[4, 3], [2, 1]], [[3, 1], [4, 2]]]
    images = torch.arange(2 * 3 * 16).view(2, 3, 4, 4)
    expected = np.concatenate([np.rot90(images.numpy(), turns, (2, 3)) for turns in range(4)])
    assert np.array_equal(orientations(images).numpy(), expected)


POINTS = functional.normalize(torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [0.3, 1]]), dim=-1)


def test_a_triplet_has_a_gradient_at_any_distance() -> None:
    """Two views 1e-6 apart, the other image 1 away: the slope of the softplus times a unit vector."""
    points = torch.tensor([[0.0, 0.0], [1e-6, 0.0], [1.0, 0.0], [1.0, 1.0]], requires_grad=True)
    (gradient,) = torch.autograd.grad(batch_hard_triplet(points, torch.tensor([0, 0, 1, 1]))[0], points)
    slope = 1 / (1 + np.exp(1 - 1e-6))  # towards the other view, and as much away from the other image
    np.testing.assert_allclose(gradient.numpy(), [[0, 0], [slope, 0], [-slope, 0], [0, 0]], atol=1e-5)
    same = torch.zeros(4, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(batch_hard_triplet(same, torch.tensor([0, 0, 1, 1])).sum(), same)
    assert gradient.isfinite().all()


def test_triplet_known_answer() -> None:
    positive = np.array([0.110601, 0.110601, 0.290426, 0.290426])
    negative = np.array([1.193861, 1.103300, 1.333843, 1.103300])
    losses = batch_hard_triplet(POINTS, torch.tensor([0, 0, 1, 1]))
    np.testing.assert_allclose(losses.numpy(), np.log1p(np.exp(positive - negative)), atol=1e-5)
    assert losses.mean().item() == pytest.approx(0.318917, abs=1e-5)


def test_triplet_against_numpy() -> None:
    random = np.random.default_rng(0)
    points, images = random.normal(size=(12, 7)), np.array([3, 3, 3, 1, 1, 0, 0, 0, 0, 2, 2, 2])
    expected = []
    for i, point in enumerate(points):
        distances = np.linalg.norm(points - point, axis=1)
        same = images == images[i]
        expected.append(np.log1p(np.exp(distances[same].max() - distances[~same].min())))
    actual = batch_hard_triplet(torch.tensor(points), torch.tensor(images))
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5)


def test_triplet_with_equal_points_has_a_finite_gradient() -> None:
    points = torch.ones(6, 4, requires_grad=True)
    losses = batch_hard_triplet(points, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert_close(losses, torch.full((6,), np.log(2.0), dtype=torch.float32), atol=2e-3, rtol=0)
    losses.sum().backward()
    assert points.grad is not None and points.grad.isfinite().all()


def test_triplet_without_others_costs_nothing() -> None:
    points = POINTS.clone().requires_grad_()
    for images in (torch.zeros(4), torch.arange(4)):
        losses = batch_hard_triplet(points, images)
        assert torch.equal(losses, torch.zeros(4))
        (gradient,) = torch.autograd.grad(losses.sum(), points)
        assert torch.equal(gradient, torch.zeros(4, 2))


def test_triplet_is_float32_under_autocast() -> None:
    images = torch.tensor([0, 0, 1, 1])
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(batch_hard_triplet(POINTS, images), batch_hard_triplet(POINTS.double(), images), atol=1e-6, rtol=0)


# ----------------------------------------------------------------------------------------------------------- objective


def joint_parts(method: Any) -> tuple[Any, torch.Tensor, torch.Tensor]:
    task = method.task
    index = torch.cat([task.labelled[:16], task.unlabelled[:16]])
    return method.learner.network.eval(), method.copies(index), index


def test_rotation_is_learned_from_all_images_and_classes_from_all_copies_of_labelled_ones(
    build: Callable, tiny: Callable
) -> None:
    method = method_of(build, tiny, weight=0.7)
    network, images, index = joint_parts(method)
    assert images.shape == (4 * 32, 1, 8, 8)
    copies = images.view(4, 32, 1, 8, 8)
    labels = method.task.labels[index[:16]]
    supervised, turned = [], []
    for turns, copy in enumerate(copies):
        assert torch.equal(copy, copies[0].rot90(turns, (-2, -1)))
        supervised.append(cross_entropy(network(copy[:16]), labels).mean())
        turned.append(cross_entropy(network(copy, head="pretext"), torch.full((32,), turns)).mean())
    expected = torch.stack(supervised).mean() + 0.7 * torch.stack(turned).mean()
    assert_close(method.joint(network, (images, index)), expected, atol=1e-5, rtol=1e-5)


def test_exemplars_are_compared_within_either_half(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, pretext="exemplar", exemplars=3, embedding=5, weight=0.7)
    network, images, index = joint_parts(method)
    assert images.shape == (3 * 32, 1, 8, 8)
    views = images.view(3, 32, 1, 8, 8)
    assert not torch.equal(views[0], views[1])
    triplets, supervised = [], []
    for half in (slice(0, 16), slice(16, 32)):
        points = torch.cat([functional.normalize(network(view[half], head="pretext"), dim=-1) for view in views])
        assert points.shape == (48, 5)
        triplets.append(batch_hard_triplet(points, index[half].repeat(3)).mean())
    labels = method.task.labels[index[:16]]
    supervised = [cross_entropy(network(view[:16]), labels).mean() for view in views]
    expected = torch.stack(supervised).mean() + 0.7 * torch.stack(triplets).mean()
    assert_close(method.joint(network, (images, index)), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pretext", ["rotation", "exemplar"])
def test_pretraining_uses_no_labels_and_fine_tuning_no_pretext(pretext: str, build: Callable, tiny: Callable) -> None:
    settings = {"mode": "pretrain", "pretrain_epochs": 1, "pretext": pretext, "embedding": 8}
    one, other = (method_of(build, tiny, **settings) for _ in range(2))
    other.task.labels[other.task.labelled] = 0
    for method in (one, other):
        method.train_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(one.learner.parameters, other.learner.parameters, strict=True))
    before = [tensor.detach().clone() for tensor in one.learner.parameters]
    one.train_epoch(1)
    pairs = enumerate(zip(one.learner.parameters, before, strict=True))
    assert {p for p, (mine, old) in pairs if torch.equal(mine, old)} == set(one.learner.part("heads.pretext"))


def test_prediction_from_all_orientations_is_the_mean_of_their_logits(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, evaluation="all_orientations")
    method.train_epoch(0)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = [method.learner.logits(images.rot90(turns, (-2, -1))) for turns in range(4)]
    assert_close(method.predict(images), torch.stack(logits).mean(0).softmax(-1))
    assert_close(method.predict(images.rot90(1, (-2, -1))), method.predict(images), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"mode": "pretrain"}, "mode pretrain needs pretrain_epochs"),
        ({"pretext": "exemplar", "evaluation": "all_orientations"}, "evaluation all_orientations needs"),
        ({"mode": "pretrain", "pretrain_epochs": 1, "evaluation": "all_orientations"}, "which trains on them"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        Config(**settings)

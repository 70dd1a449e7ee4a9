"""RoG: the robust discriminant, and that it is a head only."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from lnl.methods.rog import discriminant, gaussians, mahalanobis, nearest
from lnl.training.learner import trained_backbone
from lnl.trial.run import run

POINTS = torch.tensor(
    [[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0.5], [0.4, 0.6], [0.6, 0.4], [0.5, 0.4], [6, 6], [7, 5]],
    dtype=torch.float64,
)


def close(found: Tensor, expected: list, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=tolerance, rtol=tolerance)


def one_step(points: Tensor, labels: Tensor, kept: Tensor, classes: int = 1) -> Tensor:
    return nearest(mahalanobis(points, labels, *gaussians(points, labels, kept, classes)), labels, 0.7, classes)


def test_one_step_leaves_the_outliers_out() -> None:  # R1
    labels, everyone = torch.zeros(10, dtype=torch.long), torch.ones(10, dtype=torch.float64)
    close(gaussians(POINTS, labels, everyone, 1)[0], [[1.70, 1.49]])
    kept = one_step(POINTS, labels, everyone)
    assert kept.nonzero().flatten().tolist() == [0, 1, 3, 4, 5, 6, 7]
    means, precision = gaussians(POINTS, labels, kept, 1)
    close(means, [[0.571429, 0.414286]])
    close(1 / torch.linalg.det(precision), 0.0093985, 1e-6)
    assert torch.equal(one_step(POINTS, labels, kept), kept)


def test_a_step_never_enlarges_the_determinant() -> None:
    """The theorem behind the minimum covariance determinant (Rousseeuw & Van Driessen 1999), for one class."""
    random = torch.Generator().manual_seed(0)
    points = torch.randn(60, 3, generator=random, dtype=torch.float64)
    points[:12] += 8
    labels = torch.zeros(60, dtype=torch.long)
    kept = nearest(torch.rand(60, generator=random, dtype=torch.float64), labels, 0.7, 1)
    volumes = []
    for _ in range(6):
        volumes.append(-float(torch.logdet(gaussians(points, labels, kept, 1)[1])))
        kept = one_step(points, labels, kept)
    assert all(after <= before + 1e-9 for before, after in pairwise(volumes))
    assert volumes[-1] < volumes[0] - 0.5


def test_discriminant() -> None:  # R2
    means = torch.tensor([[0, 0], [2, 0], [0, 2]], dtype=torch.float64)
    precision = torch.linalg.inv(torch.tensor([[1, 0.5], [0.5, 2]], dtype=torch.float64))
    head = discriminant(means, precision, torch.tensor([5, 3, 2], dtype=torch.float64))
    close(head.weights, [[0, 0], [2.285714, -0.571429], [-0.571429, 1.142857]])
    close(head.biases, [-0.693147, -3.489687, -2.752295])
    close(head.probabilities(torch.ones(2)), [0.639093, 0.216544, 0.144363])
    uniform = discriminant(means, precision, torch.ones(3, dtype=torch.float64))
    close(uniform.probabilities(torch.ones(1, 2)), [[0.469608, 0.265196, 0.265196]])


def test_the_covariance_is_tied_over_all_classes() -> None:  # R4
    random = np.random.default_rng(0)
    groups = []
    for variance in (1, 2, 3):
        group = random.normal(size=(10, 2))
        group -= group.mean(0)
        groups.append(group @ np.linalg.inv(np.linalg.cholesky(np.cov(group.T, bias=True))).T * variance**0.5)
    points = torch.from_numpy(np.concatenate(groups))
    labels = torch.arange(3).repeat_interleave(10)
    _, precision = gaussians(points, labels, torch.ones(30, dtype=torch.float64), 3)
    close(torch.linalg.inv(precision), [[2, 0], [0, 2]])


def test_gaussians_against_numpy() -> None:
    random = np.random.default_rng(1)
    points, labels, kept = random.normal(size=(40, 4)), np.arange(40) % 3, random.integers(2, size=40)
    means = np.stack([points[(labels == k) & (kept == 1)].mean(0) for k in range(3)])
    centred = (points - means[labels])[kept == 1]
    found = gaussians(*map(torch.from_numpy, (points, labels, kept.astype(float))), 3)
    np.testing.assert_allclose(found[0], means, atol=1e-9)
    np.testing.assert_allclose(found[1], np.linalg.inv(centred.T @ centred / kept.sum()), rtol=1e-6)


def test_a_class_with_wrong_labels_keeps_its_mean() -> None:
    random = torch.Generator().manual_seed(0)
    true = torch.arange(600) % 3
    centres = torch.tensor([[0, 0], [6, 0], [0, 6]], dtype=torch.float64)
    points = centres[true] + torch.randn(600, 2, generator=random, dtype=torch.float64)
    labels = true.clone()
    labels[:180] = (true[:180] + 1 + torch.randint(2, (180,), generator=random)) % 3
    everyone = torch.ones(600, dtype=torch.float64)
    plain, _ = gaussians(points, labels, everyone, 3)
    robust, _ = gaussians(points, labels, one_step(points, labels, everyone, 3), 3)
    assert (plain - centres).norm(dim=-1).min() > 1
    assert (robust - centres).norm(dim=-1).max() < 0.3


def test_the_nearest_of_each_class() -> None:
    distances = torch.tensor([3, 1, 2, 9, 8, 7, 6, 5.0], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 2, 3])
    assert nearest(distances, labels, 0.5, 4).tolist() == [0, 1, 1, 0, 0, 1, 1, 1]
    assert nearest(distances, labels, 0.01, 4).sum() == 3
    assert nearest(distances, labels, 1.0, 4).all()


def test_a_class_without_images_gets_no_probability() -> None:
    points, labels = torch.randn(20, 2), torch.arange(20) % 2
    means, precision = gaussians(points, labels, torch.ones(20, dtype=torch.float64), 3)
    found = discriminant(means, precision, torch.bincount(labels, minlength=3).double()).probabilities(points)
    assert (found[:, 2] == 0).all()
    torch.testing.assert_close(found.sum(-1), torch.ones(20))


def test_shrinkage_ends_in_a_sphere() -> None:
    points, labels = torch.randn(20, 5), torch.zeros(20, dtype=torch.long)
    everyone = torch.ones(20, dtype=torch.float64)
    _, precision = gaussians(points, labels, everyone, 1, shrinkage=1.0)
    variance = points.double().var(0, correction=0).mean()
    torch.testing.assert_close(precision, torch.eye(5, dtype=torch.float64) / variance)
    assert gaussians(points[:3], labels[:3], everyone[:3], 1)[1].isfinite().all()  # fewer images than features


def test_the_head_trains_nothing(tiny: Callable, build: Callable) -> None:
    methods = [build(tiny("rog", {"method.head": head})).method for head in ("generative", "softmax")]
    for method in methods:
        method.train_epoch(0)
        method.beliefs()
    first, second = (method.learner.state_dict()["network"] for method in methods)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_beliefs(tiny: Callable, build: Callable) -> None:
    built = build(tiny("rog", {"labels": 100, "method.support": 0.6}))
    built.method.train_epoch(0)
    beliefs, task = built.method.beliefs(), built.task
    given = task.labels[task.labelled]
    for k in range(10):
        assert beliefs.selected[given == k].sum() == round(0.6 * int((given == k).sum()))
    predicted = built.method.predict(task.view(task.labelled, "none", torch.Generator()))
    torch.testing.assert_close(beliefs.clean, predicted.gather(-1, given[:, None]).squeeze(-1))
    with pytest.raises(AssertionError):
        torch.testing.assert_close(beliefs.clean, predicted.max(-1).values)


@pytest.mark.slow
def test_the_head_is_better_than_the_softmax_that_has_memorised(tiny: Callable, build: Callable) -> None:
    """Half of the labels wrong, no augmentation; where images are few beside features, by a shrunk covariance."""
    trial = tiny("rog", {"labels": 400, "noise.rate": 0.5, "epochs": 8, "steps": 20, "method.augmentation": "none"})
    built = build(trial.override({"method.batch_size": 32, "method.shrinkage": 0.5}))
    for epoch in range(8):
        built.method.train_epoch(epoch)
    images, labels = built.truth.test_images, built.truth.test_labels
    softmax, generative = (
        float((head.argmax(-1) == labels).double().mean())
        for head in (built.method.learner.logits(images), built.method.predict(images))
    )
    assert generative > softmax + 0.02


def test_it_reads_any_trained_network(tiny: Callable, build: Callable) -> None:
    """With `init_from` and without training, the backbone is the other trial's, and stays so."""
    source = {"method": {"name": "supervised", "batch_size": 16}, "epochs": 2}
    trial = tiny("rog", {"init_from": source, "method.train": False})
    *_, row = run(trial.prerequisites["initialisation"])
    trained = trained_backbone(row.snapshot()["parts"])
    built = build(trial)
    first = built.method.train_epoch(0)["loss"]
    mine = built.method.learner.network.backbone.state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in mine.items())
    assert 0 < first < 1 and built.method.train_epoch(1)["loss"] == first and built.method.learner.done == 0
    given = built.task.labels[built.task.labelled, None]
    likelihood = built.task.over(built.task.labelled, built.method.predict).gather(-1, given)
    torch.testing.assert_close(first, 1 - likelihood.mean())
    with pytest.raises(ValueError, match="head softmax would not be trained"):
        tiny("rog", {"method.train": False, "method.head": "softmax"})

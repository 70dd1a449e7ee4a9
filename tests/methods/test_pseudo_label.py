"""Pseudo-Label: loss, ramp, and who moves BatchNorm's statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lnl.methods.pseudo_label import PseudoLabelBatch
from lnl.networks import Network


@pytest.fixture
def method(tiny: Callable, build: Callable) -> Any:
    return build(tiny("pseudo_label", {"method.threshold": 0.7})).method


def identity() -> Network:
    return Network(nn.Identity(), {"classifier": nn.Identity()})


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5])
def test_loss_against_numpy(method: Any, weight: float) -> None:
    """Averaged over all unlabelled images, and not over the confident ones."""
    random = np.random.default_rng(0)
    labelled, unlabelled = random.normal(size=(6, 10)), 4 * random.normal(size=(8, 10))
    labels = random.integers(10, size=6)
    powers = np.exp(unlabelled)
    guesses = (powers / powers.sum(-1, keepdims=True)).max(-1)
    confident = guesses[guesses >= 0.7]
    assert 0 < len(confident) < 8
    supervised = np.mean([np.log(np.exp(row).sum()) - row[label] for row, label in zip(labelled, labels, strict=True)])
    expected = supervised + weight * -np.log(confident).sum() / 8
    batch = PseudoLabelBatch(*(torch.tensor(x) for x in (labelled, labels, unlabelled)), torch.arange(8), weight)
    assert method.objective(identity(), batch).item() == pytest.approx(expected, rel=1e-5)
    # What the official code computes, and we do not: losses (B) times a column of masks (B, 1), averaged over (B, B).
    by_pairs = (-np.log(guesses) * (guesses >= 0.7)[:, None]).mean()
    assert by_pairs == pytest.approx(-np.log(guesses).mean() * len(confident) / 8)
    assert by_pairs != pytest.approx(-np.log(confident).sum() / 8)


def test_a_guess_is_a_label_and_carries_no_gradient_itself(method: Any) -> None:
    logits = torch.tensor([[4.0] + [0.0] * 9]).requires_grad_()
    labelled, labels = torch.zeros(1, 10), torch.tensor([3])
    method.objective(identity(), PseudoLabelBatch(labelled, labels, logits, torch.tensor([0]), 1.0)).backward()
    assert_close(logits.grad, logits.softmax(-1).detach() - torch.eye(10)[:1])


def test_only_the_labelled_pass_moves_the_statistics(method: Any) -> None:
    network = method.learner.network.train()
    expected = copy.deepcopy(network)
    labelled, unlabelled = torch.randn(2, 8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    expected(labelled)
    method.objective(network, PseudoLabelBatch(labelled, torch.arange(8), unlabelled, torch.arange(8), 1.0))
    for mine, wanted in zip(network.buffers(), expected.buffers(), strict=True):
        assert torch.equal(mine, wanted)


def test_the_weight_rises_over_the_first_two_fifths(
    tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = build(tiny("pseudo_label", {"epochs": 5, "steps": 2, "method.lambda_u": 2.0})).method
    weights: list[float] = []
    step = method.learner.step
    monkeypatch.setattr(method.learner, "step", lambda f, batch: weights.append(batch.weight) or step(f, batch))
    for epoch in range(5):
        method.train_epoch(epoch)
    assert weights == pytest.approx([0, 0.5, 1, 1.5, *[2.0] * 6])


def test_without_weight_it_is_supervised_learning(tiny: Callable, build: Callable) -> None:
    same = {"optimizer.schedule": "cosine", "optimizer.average": 0.0}
    settings = {f"method.{field}": value for field, value in same.items()}
    ours = build(tiny("pseudo_label", {**settings, "method.lambda_u": 0.0})).method
    baseline = build(tiny("supervised", settings)).method
    for epoch in range(2):
        assert ours.train_epoch(epoch)["loss"] == baseline.train_epoch(epoch)["loss"]
    images = ours.task.view(ours.task.labelled, "none", torch.Generator())
    assert torch.equal(ours.predict(images), baseline.predict(images))

"""BYOL: the loss, and the network that follows slowly."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.losses import negative_cosine
from lnl.functional.schedules import target_decay


def method_of(build: Callable, tiny: Callable, **settings: Any) -> Any:
    return build(tiny("byol", {f"method.{field}": value for field, value in settings.items()})).method


def parameters(network: torch.nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in network.parameters()]


# ------------------------------------------------------------------------------------------------------ pure functions


def test_loss_known_answer() -> None:
    first = torch.tensor([[1.0, 0], [1, 1]]), torch.tensor([[0.0, -1], [4, 3]])
    second = torch.tensor([[0.0, 2], [3, 4]]), torch.tensor([[1.0, 1], [1, -1]])
    assert_close(-negative_cosine(*first), torch.tensor([0, 0.989950]), atol=1e-6, rtol=0)
    assert_close(-negative_cosine(*second), torch.tensor([0.707107, -0.141421]), atol=1e-6, rtol=0)
    loss = (negative_cosine(*first) + negative_cosine(*second)).mean() / 2
    assert loss.item() == pytest.approx(-0.388909, abs=1e-6)
    assert (4 + 4 * loss).item() == pytest.approx(2.444365, abs=1e-5)  # the paper's


def test_cosine_against_numpy() -> None:
    first, second = np.random.default_rng(0).normal(size=(2, 3, 5, 7))
    expected = -(first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    np.testing.assert_allclose(negative_cosine(torch.tensor(first), torch.tensor(second)).numpy(), expected, rtol=1e-5)
    zero = torch.zeros(2, 4, requires_grad=True)
    negative_cosine(zero, torch.ones(2, 4)).sum().backward()
    assert zero.grad is not None and zero.grad.isfinite().all()


@pytest.mark.parametrize(
    ("base", "expected"),
    [
        (0.99, [0.99, 0.99146447, 0.995, 0.99853553, 1]),
        (0.998, [0.998, 0.99829289, 0.999, 0.99970711, 1]),
        (0.9993, [0.9993, 0.99940251, 0.99965, 0.99989749, 1]),
        (1.0, [1, 1, 1, 1, 1]),
    ],
)
def test_decay_of_the_target(base: float, expected: list[float]) -> None:
    assert [target_decay(progress, base) for progress in (0, 0.25, 0.5, 0.75, 1)] == pytest.approx(expected, abs=5e-9)


# ----------------------------------------------------------------------------------------------------------- objective


def test_each_view_predicts_the_targets_projection_of_the_other(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    method.train_epoch(0)
    network, target = copy.deepcopy(method.learner.network), copy.deepcopy(method.target)
    first, second = torch.randn(2, 6, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def cosine(wanted: Tensor, view: Tensor) -> Tensor:
        predicted = network.heads["predictor"](network(view, head="projection"))
        return (torch.nn.functional.cosine_similarity(target(wanted, head="projection"), predicted)).mean()

    expected = -(cosine(first, second) + cosine(second, first)) / 2
    loss = method.objective(method.learner.network.train(), torch.cat([first, second]))
    assert_close(loss, expected, atol=1e-5, rtol=1e-5)


def test_no_gradient_goes_through_the_target(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    owned = {id(tensor) for group in method.learner.optimizers["all"].param_groups for tensor in group["params"]}
    views = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    method.objective(method.learner.network.train(), views).backward()
    for tensor in method.target.parameters():
        assert tensor.grad is None and not tensor.requires_grad and id(tensor) not in owned
    assert all(tensor.grad is not None for tensor in method.learner.parameters)


# -------------------------------------------------------------------------------------------------------------- target


def test_the_target_starts_as_the_network_and_follows_by_its_decay(
    build: Callable, tiny: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = method_of(build, tiny, target_decay=0.9)
    step, expected = method.learner.step, parameters(method.target)
    assert all(torch.equal(a, b) for a, b in zip(expected, method.learner.parameters, strict=True))

    def stepped(objective: Callable, views: Tensor) -> Tensor:
        for mine, wanted in zip(method.target.parameters(), expected, strict=True):
            assert_close(mine, wanted)
        decay = target_decay(method.learner.done / 6, 0.9)
        loss = step(objective, views)
        expected[:] = [
            decay * old + (1 - decay) * new for old, new in zip(expected, method.learner.parameters, strict=True)
        ]
        return loss

    monkeypatch.setattr(method.learner, "step", stepped)
    for epoch in range(2):
        method.train_epoch(epoch)
    for mine, wanted in zip(method.target.parameters(), expected, strict=True):
        assert_close(mine, wanted)


def test_a_decay_of_one_freezes_the_target(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, target_decay=1.0)
    start = parameters(method.target)
    method.train_epoch(0)
    assert all(torch.equal(a, b) for a, b in zip(parameters(method.target), start, strict=True))
    assert not torch.equal(method.learner.parameters[0], start[0])


def test_a_decay_of_zero_is_the_network_of_the_step_before(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, target_decay=0.0)
    method.steps = 1
    method.train_epoch(0)
    for mine, theirs in zip(method.target.parameters(), method.learner.parameters, strict=True):
        assert_close(mine, theirs)


def test_labels_do_not_matter_for_training(build: Callable, tiny: Callable) -> None:
    one, other = method_of(build, tiny), method_of(build, tiny)
    other.task.labels[other.task.labelled] = 0
    for epoch in range(2):
        assert one.train_epoch(epoch)["loss"] == other.train_epoch(epoch)["loss"]

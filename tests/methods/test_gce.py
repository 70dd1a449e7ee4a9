"""Generalised cross-entropy, plain and truncated: the loss, the pruning, what it believes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.losses import cross_entropy, generalised_cross_entropy
from lnl.trial.run import run

LOGITS = torch.tensor([2.0, 1, 0]).expand(3, 3)
BATCH = torch.tensor([[2.0, 1, 0], [0, 0, 0], [-1, 3, 0], [5, 0, 0]]), torch.tensor([0, 1, 0, 0])


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        (0.7, [0.354614, 0.895260, 1.163737]),
        (0.3, [0.383670, 1.148169, 1.714524]),
        (1.0, [0.334759, 0.755272, 0.909969]),
    ],
)
def test_loss_known_answers(q: float, expected: list[float]) -> None:
    assert_close(generalised_cross_entropy(LOGITS, torch.arange(3), q), torch.tensor(expected), atol=2e-6, rtol=0)


def test_loss_near_cross_entropy() -> None:
    assert generalised_cross_entropy(LOGITS[0], torch.tensor(0), 1e-3).item() == pytest.approx(0.407523, abs=1e-6)
    assert_close(generalised_cross_entropy(LOGITS, torch.arange(3), 1e-7), cross_entropy(LOGITS, torch.arange(3)))


@pytest.mark.parametrize(
    ("label", "expected"), [(0, [-0.251662, 0.183980, 0.067682]), (2, [0.123325, 0.045369, -0.168694])]
)
def test_gradient_known_answers(label: int, expected: list[float]) -> None:
    logits = LOGITS[0].clone().requires_grad_()
    generalised_cross_entropy(logits, torch.tensor(label), 0.7).backward()
    assert_close(logits.grad, torch.tensor(expected), atol=1e-6, rtol=0)


def test_gradient_is_finite_where_the_probability_underflows() -> None:
    logits = torch.tensor([200.0, 0, 0], requires_grad=True)
    loss = generalised_cross_entropy(logits, torch.tensor(1), 0.7)
    loss.backward()
    assert loss.item() == pytest.approx(1.428571, abs=1e-6)
    assert_close(logits.grad, torch.zeros(3))


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.sampled_from([(5,), (4, 3), (2, 3, 7)]),
    q=st.floats(1e-3, 1.0),
    precision=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_loss_against_numpy(seed: int, shape: tuple[int, ...], q: float, precision: torch.dtype) -> None:
    random = np.random.default_rng(seed)
    logits = torch.tensor(4 * random.normal(size=shape)).to(precision)
    labels = random.integers(shape[-1], size=shape[:-1])
    powers = np.exp(logits.double().numpy())
    likelihood = np.take_along_axis(powers / powers.sum(-1, keepdims=True), labels[..., None], -1)[..., 0]
    actual = generalised_cross_entropy(logits, torch.tensor(labels), q)
    assert actual.dtype == torch.float32
    np.testing.assert_allclose(actual.numpy(), (1 - likelihood**q) / q, rtol=1e-4, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- pruning


@pytest.fixture
def method(tiny: Callable, build: Callable) -> Callable[..., Any]:
    def make(**fields: Any) -> Any:
        return build(tiny("gce", {f"method.{name}": value for name, value in fields.items()})).method

    return make


def fixed(logits: Tensor) -> Callable[[Tensor], Tensor]:
    """In place of a network: the same predictions for whatever images."""
    return lambda images: logits


def test_objective_known_answers(method: Callable) -> None:
    logits, labels = BATCH
    everybody, kept = torch.ones(4), torch.tensor([1.0, 0, 0, 1])
    plain, truncated = method(), method(truncated=True)
    assert plain.objective(fixed(logits), (None, labels, everybody)).item() == pytest.approx(0.620008, abs=1e-6)
    assert truncated.limit == pytest.approx(0.549183, abs=1e-6)
    loss = truncated.objective(fixed(logits), (None, labels, kept)).item()
    assert loss == pytest.approx(-0.182607, abs=1e-6)
    assert loss + truncated.limit == pytest.approx(0.366576, abs=1e-6)  # the mean of the truncated loss
    assert torch.equal((logits.softmax(-1).gather(-1, labels[:, None])[:, 0] > truncated.config.k).float(), kept)


def test_pruned_images_pull_nothing(method: Callable) -> None:
    logits = BATCH[0].clone().requires_grad_()
    method(truncated=True).objective(fixed(logits), (None, BATCH[1], torch.tensor([1.0, 0, 0, 1]))).backward()
    assert (logits.grad[[1, 2]] == 0).all() and (logits.grad[[0, 3]] != 0).any(-1).all()


def test_pruning_keeps_the_likely_images_from_its_epoch_on(method: Callable) -> None:
    k = 0.095
    one = method(truncated=True, k=k, prune_from=0.5, prune_every=10)
    labels = one.task.labels[one.task.labelled]
    one.train_epoch(0)
    assert (one.beliefs().selected == 1).all()
    images = one.task.view(one.task.labelled, "none", one.streams["none"])
    likely = one.predict(images).gather(-1, labels[:, None])[:, 0] > k
    assert 0 < likely.sum() < len(likely)
    one.train_epoch(1)
    assert torch.equal(one.beliefs().selected, likely.float())


def test_beliefs_are_the_pull_of_each_label(method: Callable) -> None:
    one = method()
    one.train_epoch(0)
    beliefs, index = one.beliefs(), one.task.labelled
    logits = one.learner.logits(one.task.view(index, "none", one.streams["none"]))
    labels = one.task.labels[index]
    assert beliefs.selected is None
    assert_close(beliefs.loss, 0.7 * generalised_cross_entropy(logits, labels, 0.7))
    assert_close(beliefs.clean, torch.exp(-0.7 * cross_entropy(logits, labels)))


def test_pruning_after_the_end_is_refused(tiny: Callable) -> None:
    with pytest.raises(ValueError, match=r"^method.prune_from: [^\n]*less than 1[^\n]*$"):
        tiny("gce", {"method.truncated": True, "method.prune_from": 1.0})


def test_near_q_0_it_is_supervised_training(tiny: Callable) -> None:
    optimizer: dict[str, object] = {"method.optimizer.learning_rate": 0.03, "method.optimizer.schedule": "constant"}
    same = {**optimizer, "method.optimizer.nesterov": False, "method.optimizer.weight_decay": 0.0}
    same["method.weak.padding"] = "zeros"
    supervised = [row.metrics["train", "loss"] for row in run(tiny("supervised", same))]
    gce = [row.metrics["train", "loss"] for row in run(tiny("gce", {**same, "method.q": 1e-6}))]
    assert gce == pytest.approx(supervised, rel=1e-4)

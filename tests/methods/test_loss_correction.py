"""Loss correction: its two phases, the matrix it estimates, or the one that it is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lnl.data import DataError
from lnl.functional import losses, transition
from lnl.trial.run import run

IDENTITY = torch.eye(10).tolist()
PAIR = transition.matrix("pair", 0.4, 10)


@pytest.fixture
def method(tiny: Callable, build: Callable) -> Callable[..., Any]:
    def make(epochs: int = 2, **fields: Any) -> Any:
        changes = {f"method.{name}": value for name, value in fields.items()}
        return build(tiny("loss_correction", {"epochs": epochs, **changes})).method

    return make


def logits_of(method: Any, learner: Any) -> torch.Tensor:
    return learner.logits(method.task.view(method.task.labelled, "none", method.streams["none"]))


def assert_same_weights(one: Any, other: Any, same: bool = True) -> None:
    assert all(torch.equal(*pair) for pair in zip(one.parameters, other.parameters, strict=True)) == same


def test_both_phases_start_from_the_same_weights_and_train_one_after_the_other(method: Callable) -> None:
    corrected, untouched = method(epochs=4, estimation=0.75), method()
    assert_same_weights(corrected.first, corrected.learner)
    images = corrected.task.view(corrected.task.labelled[:5], "none", corrected.streams["none"])
    for epoch in range(3):
        corrected.train_epoch(epoch)
        assert_same_weights(corrected.learner, untouched.learner)
        assert corrected.first.done == 3 * (epoch + 1)
        assert torch.equal(corrected.predict(images), corrected.first.logits(images).softmax(-1))
        assert torch.equal(corrected.features(images), corrected.first.features(images))
    before = [parameter.clone() for parameter in corrected.first.parameters]
    corrected.train_epoch(3)
    assert all(torch.equal(*pair) for pair in zip(corrected.first.parameters, before, strict=True))
    assert (corrected.first.done, corrected.learner.done) == (9, 3)
    assert_same_weights(corrected.learner, untouched.learner, same=False)
    assert torch.equal(corrected.predict(images), corrected.learner.logits(images).softmax(-1))
    assert torch.equal(corrected.features(images), corrected.learner.features(images))


def test_each_phase_goes_through_its_own_schedule(method: Callable) -> None:
    corrected = method(epochs=4, estimation=0.25)
    assert (corrected.first.steps, corrected.learner.steps) == (3, 9)


@pytest.mark.parametrize("percentile", [0.8, 1.0])
def test_the_matrix_comes_from_the_anchors_of_the_first_network(method: Callable, percentile: float) -> None:
    corrected = method(percentile=percentile)
    corrected.train_epoch(0)
    assert vars(corrected.beliefs()) == vars(type(corrected.beliefs())())  # nothing yet
    probabilities = logits_of(corrected, corrected.first).softmax(-1)
    corrected.train_epoch(1)
    assert torch.equal(corrected.beliefs().transition, transition.from_anchors(probabilities, percentile))


def test_beliefs_follow_from_bayes_rule(method: Callable) -> None:
    corrected = method(given=PAIR.tolist())
    corrected.train_epoch(0)
    p, given = logits_of(corrected, corrected.learner).softmax(-1), corrected.task.labels[corrected.task.labelled]
    own, former = p.gather(-1, given[:, None])[:, 0], p.gather(-1, (given - 1)[:, None] % 10)[:, 0]
    beliefs = corrected.beliefs()
    assert_close(beliefs.clean, 0.6 * own / (0.6 * own + 0.4 * former))
    assert_close(beliefs.labels.gather(-1, (given - 1)[:, None] % 10)[:, 0], 1 - beliefs.clean)
    assert_close(beliefs.transition, PAIR.float())


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_objective_is_the_corrected_loss(method: Callable, direction: str) -> None:
    corrected = method(given=PAIR.tolist(), direction=direction)
    logits, labels = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)), torch.arange(6)
    loss = corrected.objective(lambda images: logits, (None, labels), loss=corrected.loss())
    if direction == "forward":
        expected = -(logits.softmax(-1) @ PAIR.float()).gather(-1, labels[:, None]).log().mean()
    else:
        expected = (-logits.log_softmax(-1) @ PAIR.inverse().float().T).gather(-1, labels[:, None]).mean()
    assert_close(loss, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_with_the_identity_it_is_supervised_training(tiny: Callable, direction: str) -> None:
    optimizer = {"nesterov": False, "weight_decay": 1e-4, "learning_rate": 0.03, "schedule": "constant"}
    same = {f"method.optimizer.{name}": value for name, value in optimizer.items()}
    corrected = {**same, "method.given": IDENTITY, "method.direction": direction}
    supervised = [row.metrics["train", "loss"] for row in run(tiny("supervised", same))]
    assert [row.metrics["train", "loss"] for row in run(tiny("loss_correction", corrected))] == pytest.approx(
        supervised, rel=1e-4
    )


def test_the_first_phase_is_supervised_training(method: Callable) -> None:
    corrected = method()
    assert corrected.loss() is losses.cross_entropy
    corrected.train_epoch(0)
    assert corrected.loss() is losses.cross_entropy
    corrected.train_epoch(1)
    assert corrected.loss() is not losses.cross_entropy


# ----------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "given",
    [
        [],
        [[0.5, 0.4], [0, 1]],  # does not sum to 1
        [[1.5, -0.5], [0, 1]],
        [[1.0, 0.0]],  # not square
        [[1.0, 0.0], [1.0]],
        [[], []],
    ],
)
def test_what_is_no_transition_matrix_is_refused(tiny: Callable, given: list[list[float]]) -> None:
    with pytest.raises(ValueError, match=r"^method.given: the given matrix must be square[^\n]+\.$"):
        tiny("loss_correction", {"method.given": given})


def test_a_matrix_of_other_classes_is_refused(method: Callable) -> None:
    with pytest.raises(DataError, match=r"^The given matrix is of 2 classes, but the data set has 10: [^\n]+\.$"):
        method(given=torch.eye(2).tolist())


def test_one_epoch_is_refused_where_two_phases_need_it(method: Callable) -> None:
    with pytest.raises(ValueError, match=r"^Training in two phases needs two epochs or more, not 1: [^\n]+\.$"):
        method(epochs=1)
    method(epochs=1, given=IDENTITY).train_epoch(0)

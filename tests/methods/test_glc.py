"""Gold loss correction: its two phases, what it takes from the probe, and which loss meets which image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lnl.data import DataError
from lnl.functional import losses, transition


@pytest.fixture
def method(tiny: Callable, build: Callable) -> Callable[..., Any]:
    def make(**changes: Any) -> Any:
        return build(tiny("glc", changes)).method

    return make


def trained_on(method: Any, epoch: int) -> set[int]:
    """Indices of the images of an epoch."""
    seen: list[int] = []
    view, task = type(method.task).view, method.task

    def watched(self: Any, index: torch.Tensor, name: str, generator: torch.Generator) -> torch.Tensor:
        if name == "weak":
            seen.extend(index.tolist())
        return view(self, index, name, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(task), "view", watched)
        method.train_epoch(epoch)
    return set(seen)


def test_the_probe_is_for_the_matrix_first_and_for_training_then(method: Callable) -> None:
    corrected = method(steps=12)
    silver, gold = set(corrected.task.labelled.tolist()), set(corrected.task.probe.tolist())
    assert trained_on(corrected, 0) == silver
    images = corrected.task.view(corrected.task.probe, "none", corrected.streams["none"])
    probabilities = corrected.first.logits(images).softmax(-1)
    assert torch.equal(corrected.predict(images), probabilities)
    assert trained_on(corrected, 1) == silver | gold
    labels = corrected.task.labels[corrected.task.probe]
    expected = torch.stack([probabilities[labels == k].mean(0) for k in range(10)])
    assert_close(corrected.beliefs().transition, expected)
    assert torch.equal(corrected.predict(images), corrected.learner.logits(images).softmax(-1))


def test_the_second_network_starts_anew_from_the_first_ones_weights(method: Callable) -> None:
    corrected, untouched = method(), method()
    corrected.train_epoch(0)
    for one, other, trained in zip(
        corrected.learner.parameters, untouched.first.parameters, corrected.first.parameters, strict=True
    ):
        assert torch.equal(one, other) and not torch.equal(one, trained)


def test_an_epoch_passes_over_all_images_of_its_phase(method: Callable) -> None:
    """50 silver images in batches of 16 are 4 steps, 20 gold ones with them 5; given steps are taken as they are."""
    corrected = method(steps=None, unlabelled_ratio=1)
    silver, gold = len(corrected.task.labelled), len(corrected.task.probe)
    assert (silver, gold) == (50, 20)
    for epoch in range(2):
        corrected.train_epoch(epoch)
    assert (corrected.first.done, corrected.learner.done) == (4, 5) == (corrected.first.steps, corrected.learner.steps)
    assert method(steps=3).learner.steps == 3


def test_objective_known_answers(method: Callable) -> None:
    """Two silver images and a gold one: (0.943913 + 1.841503 + 0.551445) / 3; before Ĉ is known all are plain."""
    logits = torch.tensor([[1.0, 0, -1], [0, 2, 0], [0, 0, 1]])
    batch = (None, torch.tensor([1, 2, 2]), torch.tensor([False, False, True]))
    corrected = method()
    plain = corrected.objective(lambda images: logits, batch)
    assert_close(plain, losses.cross_entropy(logits, batch[1]).mean())
    corrected.matrix = torch.tensor([[0.6, 0.25, 0.15], [0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
    assert corrected.objective(lambda images: logits, batch).item() == pytest.approx(1.112287, abs=2e-6)


def test_only_the_probe_is_gold(method: Callable) -> None:
    corrected = method()
    assert torch.equal(corrected.gold.nonzero()[:, 0], corrected.task.probe)


def test_beliefs_follow_from_bayes_rule(method: Callable) -> None:
    corrected = method()
    corrected.train_epoch(0)
    assert corrected.beliefs().transition is None
    corrected.train_epoch(1)
    index, beliefs = corrected.task.labelled, corrected.beliefs()
    given = corrected.task.labels[index]
    logits = corrected.learner.logits(corrected.task.view(index, "none", corrected.streams["none"]))
    joint = logits.softmax(-1) * beliefs.transition[:, given].T
    assert_close(beliefs.labels, joint / joint.sum(-1, keepdim=True))
    assert_close(beliefs.clean, beliefs.labels[torch.arange(len(index)), given])
    assert_close(transition.posterior(logits, given, beliefs.transition), beliefs.labels)


@pytest.mark.parametrize("probe", [0, 7])
def test_a_probe_without_some_class_is_refused(method: Callable, probe: int) -> None:
    with pytest.raises(DataError, match=r"^GLC learns from its probe[^\n]+ask for a probe of at least 10 images\.$"):
        method(probe=probe)

"""MentorNet: mentors in closed form and learned, the moving percentile, the phases of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from lnl.data import DataError
from lnl.methods import mentornet
from lnl.methods.mentornet import Config, Method, MovingPercentile

LOSSES = torch.tensor([0.2, 0.5, 1, 2, 4])


def close(found: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), atol=1e-5, rtol=1e-5)


def test_self_paced() -> None:
    close(mentornet.self_paced(LOSSES - 1), [1, 1, 1, 0, 0])
    close(mentornet.self_paced(torch.tensor([0.1, 0.2, 0.5, 1, 3]) - 0.45), [1, 1, 0, 0, 0])


def test_linear() -> None:
    close(mentornet.linear(LOSSES - 1, 1), [1, 1, 1, 0, 0])
    close(mentornet.linear(LOSSES - 1, 2), [1, 1, 1, 0.5, 0])


def test_focal() -> None:
    close(mentornet.focal(LOSSES, 2), [0.032859, 0.154818, 0.399576, 0.747645, 0.963704])


def test_moving_percentile() -> None:
    percentile = MovingPercentile(0.7, 0.5)
    assert [float(percentile(LOSSES)) for _ in range(3)] == pytest.approx([1.0, 1.5, 1.75])  # of 2, the nearest rank
    other = MovingPercentile(0.7, 0.5)
    other.load_state_dict(percentile.state_dict())
    assert other(LOSSES) == percentile(LOSSES) == 1.875


def test_mentors_change_in_the_course_of_training(tiny: Callable, build: Callable) -> None:
    """With l = 1 and d = .4.  Predefined, by the official definition: 1 to epoch 18 of 100, .6 from epoch 90 on."""
    losses, difference = torch.tensor([1.0]), torch.tensor([0.4])
    for mentor, weights in (
        ("predefined", [0, 0, 0, 0, 0.6]),
        ("self_paced", [0, 0, 0, 0, 0]),
        ("linear", [0.6, 0.6, 0.6, 0.6, 0.6]),
        ("focal", [1 - np.exp(-1)] * 5),
    ):
        for burn_in, first in (({"method.burn_in": 0.0}, weights[:2]), ({}, [1, 1])):
            method = build(tiny("mentornet", {"method.mentor": mentor, **burn_in})).method
            found = [method.mentor(epoch / 100)(losses, difference) for epoch in (0, 18, 19, 89, 90)]
            close(torch.cat(found), [*first, *weights[2:]])


def test_the_loss_is_not_divided_by_the_weights() -> None:
    logits = torch.tensor([[2.0, 0, 1], [0, 1, 3], [1, 0, 0]])
    labels, weights = torch.tensor([0, 1, 2]), torch.tensor([1, 0.5, 0])
    likelihoods = (np.exp(logits.numpy()) / np.exp(logits.numpy()).sum(-1, keepdims=True))[range(3), labels]
    expected = (weights.numpy() * -np.log(likelihoods)).sum() / 3
    assert Method.objective(lambda images: images, (logits, labels, weights)) == pytest.approx(expected)


def test_an_image_without_weight_does_not_train() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    batch = logits, torch.tensor([0, 1, 2]), torch.tensor([1.0, 0, 1])
    (gradient,) = torch.autograd.grad(Method.objective(lambda images: images, batch), logits)
    assert (gradient[1] == 0).all() and (gradient[[0, 2]] != 0).any(-1).all()


@pytest.mark.parametrize(("rate", "left"), [(0.0, 20), (0.05, 19), (0.5, 10), (0.9, 2), (1.0, 0)])
def test_dropped_images_are_random_and_of_a_fixed_number(rate: float, left: int) -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = (mentornet.drop(torch.full((20,), 0.7), rate, generator) for _ in range(2))
    for kept in (first, second):
        assert (kept == 0.7).sum() == left and (kept == 0).sum() == 20 - left
    assert left in (0, 20) or not torch.equal(first, second)


def test_phases_of_dropout(tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    rates, drop = [], mentornet.drop
    monkeypatch.setattr(mentornet, "drop", lambda *given: (rates.append(given[1]), drop(*given))[1])
    method = build(tiny("mentornet", {"epochs": 100, "steps": 1})).method
    for epoch in (0, 16, 17, 94, 95, 99):
        method.train_epoch(epoch)
    assert rates == [0.5, 0.5, 0.05, 0.05, 0.05, 0.05]


def test_phases_change_within_an_epoch(tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten steps: two with weights of 1 and half the images, then it is the percentile's turn."""
    weights, rates, drop = [], [], mentornet.drop
    monkeypatch.setattr(
        mentornet, "drop", lambda *given: (weights.append(given[0]), rates.append(given[1]), drop(*given))[-1]
    )
    build(tiny("mentornet", {"epochs": 1, "steps": 10, "method.linear_from": 0.95})).method.train_epoch(0)
    assert rates == [0.5] * 2 + [0.05] * 8
    assert [bool((step == 1).all()) for step in weights] == [True] * 2 + [False] * 8


def test_labels_of_no_likelihood_have_a_finite_loss(tiny: Callable, build: Callable) -> None:
    """A gap of 200 between two logits: the softmax is 0, its logarithm would stay in the percentile for good."""
    method = build(tiny("mentornet", {"method.batch_size": 50, "steps": 1})).method
    task = method.task
    method.learner.batch_logits = lambda images: torch.tensor([200.0] + [0.0] * 9).expand(len(images), -1)
    method.train_epoch(0)
    found = method.losses.of(task.labelled)
    assert torch.equal(found[found.isfinite()] == 200, task.labels[task.labelled][found.isfinite()] != 0)
    assert found.isfinite().sum() == 50 and not found.isinf().any()
    assert method.threshold.value == 100


def test_a_learned_mentor_tells_losses_apart() -> None:
    random = np.random.default_rng(0)
    right, wrong = (torch.from_numpy(random.gamma(4, mean / 4, 200)).float() for mean in (0.3, 3.0))
    mentor = mentornet.data_driven(right, wrong, torch.tensor(1.0))
    weights = mentor(LOSSES, LOSSES - 1)
    assert (weights.diff() < 0).all() and weights[0] > 0.9 and weights[-1] < 0.1
    both = torch.cat([right, wrong])
    decided = mentor(both, both - 1) > 0.5
    best = max(((both <= cut) == (torch.arange(400) < 200)).double().mean() for cut in both)
    assert (decided == (torch.arange(400) < 200)).double().mean() > best - 0.02


def test_weights_are_one_during_the_burn_in(tiny: Callable, build: Callable) -> None:
    method = build(tiny("mentornet", {"method.burn_in": 0.5})).method
    method.train_epoch(0)
    weights = method.beliefs().clean
    assert (weights[weights.isfinite()] == 1).all()
    method.train_epoch(1)
    assert (method.beliefs().clean == 0).any()


def test_selected_are_those_with_half_a_weight(tiny: Callable, build: Callable) -> None:
    built = build(tiny("mentornet", {"method.mentor": "linear", "method.percentile": 0.3, "epochs": 4}))
    for epoch in range(4):
        built.method.train_epoch(epoch)
    beliefs = built.method.beliefs()
    known = beliefs.clean.isfinite()
    assert torch.equal(beliefs.selected[known] == 1, beliefs.clean[known] >= 0.5)
    assert 0 < beliefs.selected[known].mean() < 1 and beliefs.clean.shape == (50,)
    assert torch.equal(beliefs.selected.isnan(), ~known)


def test_only_a_learned_mentor_keeps_the_probe_apart(tiny: Callable, build: Callable) -> None:
    for mentor, trained in (("self_paced", True), ("data_driven", False)):
        built = build(tiny("mentornet", {"method.mentor": mentor, "steps": 10}))
        built.method.train_epoch(0)
        assert len(built.task.probe) == 20
        assert built.method.losses.of(built.task.probe).isfinite().all() == trained
        assert built.method.losses.of(built.task.labelled).isfinite().all()
        assert built.method.beliefs().loss.shape == (50,)


def test_a_learned_mentor_without_a_probe_is_refused(tiny: Callable, build: Callable) -> None:
    built = build(tiny("mentornet"))
    bare = replace(built.task, probe=built.task.probe[:0])
    Method(Config(), bare, *network_and_streams(built))
    with pytest.raises(DataError, match=r"^A data-driven MentorNet learns from trusted images: ask for a probe\.$"):
        Method(Config(mentor="data_driven"), bare, *network_and_streams(built))


def network_and_streams(built):
    from lnl.training.learner import NetworkBuilder
    from lnl.training.streams import Streams

    streams = Streams(0)
    return NetworkBuilder("small_convnet", (1, 8, 8), torch.device("cpu"), "float32", streams), streams


def test_a_learned_mentor_sees_as_many_wrong_labels_as_right_ones(
    tiny: Callable, build: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right ones are the probe's, each beside one wrong label of the same image, whatever the noise."""
    method = build(tiny("mentornet", {"method.mentor": "data_driven", "method.augmentation": "none"})).method
    method.train_epoch(0)
    seen = []
    monkeypatch.setattr(mentornet, "data_driven", lambda *losses: seen.append(losses))
    for _ in range(30):
        method.fit()
    task = method.task
    logits = method.learner.logits(task.view(task.probe, "none", torch.Generator())).log_softmax(-1)
    true = torch.nn.functional.one_hot(task.labels[task.probe], 10).bool()
    drawn = torch.stack([wrong for _, wrong, _ in seen])  # (30, 20)
    for right, _, threshold in seen:
        torch.testing.assert_close(right, -logits[true])
        assert threshold == method.threshold.value > 0
    equal = (drawn.unsqueeze(-1) + logits).abs() < 1e-5
    assert equal.any(-1).all() and not (equal & true)[..., :].any()
    assert (equal.any(0).sum(-1) > 5).all()  # drawn anew, from all the other classes

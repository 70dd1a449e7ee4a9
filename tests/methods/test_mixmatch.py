"""The MixMatch component: guesses, mixing, loss, ramp and who moves BatchNorm's statistics."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lnl import networks
from lnl.networks import Network
from lnl.training.mixmatch_update import MixedBatch, MixMatchSettings, mixmatch_batch, mixmatch_logits, mixmatch_loss
from lnl.training.streams import Streams
from lnl.training.task import Record

B, CLASSES = 10, 10
MIXES = ["all", "labelled", "unlabelled", "separate", "none"]
Draw = Callable[..., tuple[MixedBatch, Any]]


@pytest.fixture
def draw(tiny: Callable, build: Callable) -> Draw:
    """`draw(views=3, mix="none")`: the first images mixed by a fresh method, and that method."""

    def make(progress: float = 1.0, **settings: Any) -> tuple[MixedBatch, Any]:
        method = build(tiny("mixmatch")).method
        return mixed(method, progress, **settings), method

    return make


def mixed(method: Any, progress: float = 1.0, **settings: Any) -> MixedBatch:
    task, settings = method.task, MixMatchSettings(**settings)
    weight = settings.weight(progress, 2**20)
    return mixmatch_batch(settings, task, method.learner, Streams(0), task.labelled[:B], task.unlabelled[:B], weight)


def given_labels(method: Any) -> Tensor:
    return method.task.labels[method.task.labelled[:B]]


def plain_network() -> Network:
    """A network without BatchNorm, in which an image does not feel the others of its batch."""
    torch.manual_seed(0)
    return Network(nn.Flatten(), {"classifier": nn.Linear(64, CLASSES)})


# ---------------------------------------------------------------------------------------------------------------- loss


@pytest.mark.parametrize("batch_norm", ["first", "mixmatch", "all"])
@pytest.mark.parametrize(("weight", "expected"), [(0.0, 0.760645), (75.0, 1.506470)])
def test_loss_known_answer(weight: float, expected: float, batch_norm: str) -> None:
    """Two labelled rows and two views of two unlabelled ones; L_X 0.760645, L_U 0.009944."""
    logits = [[2.0, 0, -1], [0, 1, 0], [1, 1, 0], [0, 0, 2], [3, 0, 0], [0, 0, 0]]
    soft = [[0.7, 0.3, 0], [0, 0.8, 0.2], [0.5, 0.5, 0], [0, 0.1, 0.9], [1, 0, 0], [0.2, 0.3, 0.5]]
    batch = MixedBatch(torch.tensor(logits), torch.tensor(soft), labelled=2, weight=weight)
    network = Network(nn.Identity(), {"classifier": nn.Identity()})
    assert mixmatch_loss(network, batch, batch_norm).item() == pytest.approx(expected, abs=1e-5)


def test_without_unlabelled_loss_and_mixing_it_is_supervised_learning(draw: Draw) -> None:
    batch, method = draw(lambda_u=0.0, mix="none")
    network = method.learner.network.eval()  # else the unlabelled images take part in the batch's statistics
    loss = mixmatch_loss(network, batch, "mixmatch")
    expected = functional.cross_entropy(network(batch.images[:B]), given_labels(method))
    assert_close(loss, expected)
    gradients, wanted = (torch.autograd.grad(value, network.parameters()) for value in (loss, expected))
    for gradient, one in zip(gradients, wanted, strict=True):
        assert_close(gradient, one, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.0), (1024, 4.6875), (8192, 37.5), (16_384, 75.0), (524_288, 75.0)]
)
def test_ramp_known_answers(draw: Draw, step: int, expected: float) -> None:
    """The official warm-up: 2^14 steps."""
    assert draw(progress=step / 2**20)[0].weight == expected


def test_a_ramp_is_of_steps_or_of_a_share_of_training() -> None:
    """The official w = λ_u · clip(step / (warmup_kimg · 1024 / batch), 0, 1): of few steps a part of it."""
    assert [MixMatchSettings().weight(share, 1000) for share in (0.0, 0.5, 1.0)] == [0, 75 * 500 / 16_384, 75 / 16.384]
    half = MixMatchSettings(ramp=0.5)
    assert [half.weight(share, 1000) for share in (0.0, 0.25, 0.5, 1.0)] == [0, 37.5, 75, 75]
    assert MixMatchSettings(ramp=0.0).weight(0.0, 1000) == 75


# -------------------------------------------------------------------------------------------------------------- guess


def test_guesses_by_an_average_need_one() -> None:
    with pytest.raises(ValueError, match=r"set optimizer.average, such as 0\.999"):
        MixMatchSettings(guess_with_average=True, optimizer={"average": 0.0})


@pytest.mark.parametrize("views", [1, 2, 3])
def test_a_guess_is_the_sharpened_mean_over_views(draw: Draw, views: int) -> None:
    batch, method = draw(views=views, temperature=0.5, mix="none")
    assert batch.images.shape == (B + views * B, 1, 8, 8)
    network = method.learner.network.train()
    assert torch.equal(batch.targets[:B], functional.one_hot(given_labels(method), CLASSES).float())
    probabilities = network(batch.images[B:]).softmax(-1).detach().double().numpy()
    mean = probabilities.reshape(views, B, CLASSES).mean(0)
    sharpened = mean**2 / (mean**2).sum(-1, keepdims=True)
    np.testing.assert_allclose(batch.targets[B:].numpy(), np.tile(sharpened, (views, 1)), atol=1e-5)
    several = [batch.images[B + view * B : 2 * B + view * B] for view in range(views)]
    assert not any(torch.equal(several[0], other) for other in several[1:])  # every view is drawn anew


def test_guesses_carry_no_gradient_and_move_nothing(draw: Draw) -> None:
    method = draw()[1]
    untouched = copy.deepcopy(method.learner.network.state_dict())
    batch = mixed(method)
    assert not batch.targets.requires_grad and not batch.images.requires_grad
    after = method.learner.network.state_dict()
    assert all(torch.equal(after[name], untouched[name]) for name in untouched)
    assert all(tensor.grad is None for tensor in method.learner.parameters)


@pytest.mark.parametrize("name", ["mixmatch", "robmix"])
def test_beliefs_are_the_last_guesses(name: str, tiny: Callable, build: Callable) -> None:
    method = build(tiny(name, {"method.mix": "none"})).method
    task, record = method.task, Record(method.task, CLASSES)
    assert method.beliefs().pseudo_labels.isnan().all()
    settings = MixMatchSettings(mix="none")
    labelled, unlabelled = task.labelled[:B], task.unlabelled[:B]
    batch = mixmatch_batch(settings, task, method.learner, Streams(0), labelled, unlabelled, 1.0, record)
    assert torch.equal(record.of(unlabelled), batch.targets[B : 2 * B])
    method.train_epoch(0)
    believed = method.beliefs().pseudo_labels
    known = believed.isfinite().all(-1)
    assert known.sum() == 48  # three steps of 16
    assert_close(believed[known].sum(-1), torch.ones(48))


def test_guesses_by_the_average(draw: Draw) -> None:
    method = draw()[1]
    for _ in range(2):
        method.train_epoch(0)

    def guesses(averaged: bool) -> Tensor:
        batch = mixed(method, guess_with_average=averaged, mix="none", temperature=1.0, views=1)
        network = method.learner.average if averaged else method.learner.network
        with torch.no_grad(), networks.statistics_frozen(network.train()):
            assert_close(batch.targets[B:], network(batch.images[B:]).softmax(-1))
        return batch.targets[B:]

    assert not torch.equal(guesses(True), guesses(False))


# ------------------------------------------------------------------------------------------------------------- mixing


@pytest.mark.parametrize("mix", MIXES)
def test_who_is_mixed_with_whom(draw: Draw, mix: str) -> None:
    plain, batch = draw(mix="none")[0], draw(mix=mix)[0]
    still = (batch.images == plain.images).flatten(1).all(-1)
    labelled = torch.arange(3 * B) < B
    expected = {"labelled": ~labelled, "unlabelled": labelled, "none": torch.ones(3 * B, dtype=torch.bool)}
    if mix in expected:
        assert torch.equal(batch.targets[expected[mix]], plain.targets[expected[mix]])
        assert still[expected[mix]].all()
    mixed = ~expected.get(mix, torch.zeros(3 * B, dtype=torch.bool))
    assert not mixed.any() or still[mixed].double().mean() < 0.5  # a permutation leaves some at their own place
    # A label is one class, a guess all of them: labelled rows stay below three classes unless guesses come in.
    assert ((batch.targets[:B] > 0).sum(-1) > 2).any() == (mix == "all")
    assert_close(batch.targets.sum(-1), torch.ones(3 * B))


@pytest.mark.parametrize("mix", ["all", "separate"])
def test_a_mixed_row_stays_nearer_to_its_own(draw: Draw, mix: str) -> None:
    """Images and targets of a row share their coefficient, at least a half, and each row has its own."""
    own, mixed = (
        torch.cat([batch.images.flatten(1), batch.targets], -1) for batch in (draw(mix="none")[0], draw(mix=mix)[0])
    )
    difference = own[:, None] - own  # (row, possible partner, pixels and classes)
    share = ((mixed[:, None] - own) * difference).sum(-1) / difference.square().sum(-1)
    error = (share[..., None] * difference + own - mixed[:, None]).abs().amax(-1)
    error, partner = error.nan_to_num(torch.inf).min(-1)
    share = share.gather(-1, partner[:, None]).squeeze(-1)
    moved = (own != mixed).any(-1)
    assert moved.sum() > 2 * B
    assert error[moved].max() < 1e-5
    assert share[moved].min() >= 0.5 - 1e-5
    assert len(share[moved].unique()) == moved.sum()
    of_own_part = (partner < B) == (torch.arange(3 * B) < B)
    assert of_own_part[moved].all() == (mix == "separate")


# ---------------------------------------------------------------------------------------------------------- BatchNorm


@pytest.mark.parametrize("views", [1, 2, 3])
def test_interleaving_keeps_every_row_in_its_place(draw: Draw, views: int) -> None:
    batch, network = draw(views=views)[0], plain_network()
    assert_close(mixmatch_logits(network, batch, "first"), network(batch.images))


def test_only_the_first_interleaved_group_moves_the_statistics(draw: Draw) -> None:
    batch, method = draw()
    network = method.learner.network.train()
    expected = copy.deepcopy(network)
    # B = 10 is cut into 3, 3 and 4: the first group is made of one part each of labelled and of both views
    expected(torch.cat([batch.images[0:3], batch.images[13:16], batch.images[26:30]]))
    mixmatch_logits(network, batch, "first")
    for mine, wanted in zip(network.buffers(), expected.buffers(), strict=True):
        assert_close(mine, wanted)


@pytest.mark.parametrize("batch_norm", ["mixmatch", "all"])
def test_otherwise_all_mixed_images_move_them(draw: Draw, batch_norm: str) -> None:
    batch, method = draw()
    network = method.learner.network.train()
    expected = copy.deepcopy(network)
    expected(batch.images)
    mixmatch_logits(network, batch, batch_norm)
    for mine, wanted in zip(network.buffers(), expected.buffers(), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize(("batch_norm", "passes"), [("first", 0), ("mixmatch", 0), ("all", 1)])
def test_guessing_moves_them_only_where_every_pass_does(draw: Draw, batch_norm: str, passes: int) -> None:
    _, method = draw(batch_norm=batch_norm)
    counts = {int(count) for name, count in method.learner.network.named_buffers() if name.endswith("tracked")}
    assert counts == {passes}

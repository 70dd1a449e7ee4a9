"""FixMatch's update, and SelfMatch, which starts it from SimCLR's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.testing import assert_close

from lnl.functional.targets import pseudo_labels
from lnl.networks import Network
from lnl.training.fixmatch_update import (
    ConsistencyBatch,
    FixMatchSettings,
    confident_guesses,
    confident_share,
    fixmatch_batch,
    fixmatch_loss,
    unlabelled_pool,
)
from lnl.training.streams import Streams
from lnl.training.task import Record

WEAK = torch.tensor([[5.0, 0, 0], [1, 0.5, 0], [0, 4, 0]])
STRONG = torch.eye(3)
LABELLED, LABELS = torch.tensor([[2.0, 0, 0]]), torch.tensor([0])


def batch_of(labelled: Tensor, labels: Tensor, weak: Tensor, strong: Tensor) -> ConsistencyBatch:
    return ConsistencyBatch(torch.cat([labelled, weak, strong]), labels, torch.arange(len(weak)))


def loss_of(batch: ConsistencyBatch, **settings: Any) -> Tensor:
    """With the batch's images as their own logits."""
    return fixmatch_loss(FixMatchSettings(**settings), Network(nn.Identity(), {"classifier": nn.Identity()}), batch)


def method_of(build: Callable, tiny: Callable, name: str = "fixmatch", **settings: Any) -> Any:
    return build(tiny(name, {f"method.{field}": value for field, value in settings.items()})).method


# ---------------------------------------------------------------------------------------------------------------- loss


def test_pseudo_labels_known_answers() -> None:
    probabilities = WEAK.softmax(-1)
    assert_close(probabilities.amax(-1), torch.tensor([0.986703, 0.506480, 0.964663]), atol=1e-6, rtol=0)
    hard, kept = pseudo_labels(probabilities, 0.95)
    assert torch.equal(hard, functional.one_hot(torch.tensor([0, 0, 1]), 3).float())
    assert kept.tolist() == [1, 0, 1]
    assert pseudo_labels(probabilities, 0.0)[1].tolist() == [1, 1, 1]
    assert pseudo_labels(probabilities, 1.1)[1].tolist() == [0, 0, 0]
    assert_close(pseudo_labels(probabilities, 0.95, 1.0)[0], probabilities)
    squared = probabilities**2
    assert_close(pseudo_labels(probabilities, 0.95, 0.5)[0], squared / squared.sum(-1, keepdim=True))


@pytest.mark.parametrize(("threshold", "unlabelled"), [(0.95, 0.700963), (0.0, 1.218111)])
def test_loss_known_answers(threshold: float, unlabelled: float) -> None:
    """Divided by all unlabelled images: by the confident ones it would be 1.051445 at threshold 0.95."""
    batch = batch_of(LABELLED, LABELS, WEAK, STRONG)
    for weight in (0.0, 1.0, 2.0):
        expected = 0.239545 + weight * unlabelled
        assert loss_of(batch, threshold=threshold, lambda_u=weight).item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_loss_against_numpy(threshold: float, temperature: float) -> None:
    random = np.random.default_rng(0)
    labelled, weak, strong = random.normal(size=(4, 5)), 4 * random.normal(size=(12, 5)), random.normal(size=(12, 5))
    labels = random.integers(5, size=4)

    def log_softmax(logits: np.ndarray) -> np.ndarray:
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    supervised = -np.mean([log_softmax(logits)[label] for logits, label in zip(labelled, labels, strict=True)])
    total = 0.0
    for teacher, pupil in zip(np.exp(log_softmax(weak)), log_softmax(strong), strict=True):
        if teacher.max() >= threshold:
            powers = teacher ** (1 / temperature) if temperature else (teacher == teacher.max()).astype(float)
            total -= (powers / powers.sum()) @ pupil
    batch = batch_of(*(torch.tensor(value) for value in (labelled, labels, weak, strong)))
    actual = loss_of(batch, threshold=threshold, temperature=temperature, lambda_u=3.0)
    assert actual.item() == pytest.approx(supervised + 3 * total / 12, rel=1e-5)


def test_nothing_is_learned_through_the_weak_view() -> None:
    images = torch.cat([LABELLED, WEAK, STRONG]).requires_grad_()
    loss_of(ConsistencyBatch(images, LABELS, torch.arange(3)), threshold=0.5).backward()
    touched = (images.grad != 0).any(-1)  # one labelled image, three weak views, three strong ones
    assert touched.tolist() == [True, False, False, False, True, True, True]


def test_without_confident_guesses_it_is_supervised_learning(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    network = method.learner.network.eval()  # else the unlabelled images take part in the batch's statistics
    task, config = method.task, method.config.model_copy(update={"threshold": 1.01})
    batch = fixmatch_batch(config, task, Streams(0), task.labelled[:8], task.unlabelled[:24])
    loss = fixmatch_loss(config, network, batch)
    expected = functional.cross_entropy(network(batch.images[:8]), task.labels[task.labelled[:8]])
    gradients, wanted = (torch.autograd.grad(value, network.parameters()) for value in (loss, expected))
    assert_close(loss, expected)
    for gradient, one in zip(gradients, wanted, strict=True):
        assert_close(gradient, one, atol=1e-6, rtol=1e-4)


def test_half_precision_logits_count_in_float32() -> None:
    batch = batch_of(LABELLED, LABELS, WEAK, STRONG)
    half = ConsistencyBatch(batch.images.bfloat16(), batch.labels, batch.unlabelled)  # these logits are exact
    assert_close(loss_of(half, threshold=0.95), loss_of(batch, threshold=0.95), atol=0, rtol=0)


# --------------------------------------------------------------------------------------------------------------- batch


def test_a_batch_is_labelled_weak_and_strong_views(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    task, settings = method.task, FixMatchSettings(strong_view="weak")
    labelled, unlabelled = task.labelled[:4], task.unlabelled[:12]
    batch = fixmatch_batch(settings, task, Streams(0), labelled, unlabelled)
    assert batch.images.shape == (4 + 12 + 12, 1, 8, 8)
    assert torch.equal(batch.labels, task.labels[labelled])
    weak = task.view(torch.cat([labelled, unlabelled]), "weak", Streams(0)["augment"])
    assert torch.equal(batch.images[:16], weak)
    strong = fixmatch_batch(FixMatchSettings(), task, Streams(0), labelled, unlabelled).images[16:]
    assert torch.equal(strong, task.view(unlabelled, "strong", Streams(0)["augment/strong"]))
    assert not torch.equal(strong, batch.images[16:])


def test_labelled_images_are_among_the_unlabelled_ones_unless_left_out(build: Callable, tiny: Callable) -> None:
    task = build(tiny("fixmatch")).task
    assert set(unlabelled_pool(task, True).tolist()) == set(range(len(task.images)))
    assert torch.equal(unlabelled_pool(task, False), task.unlabelled)


def test_all_images_of_a_step_move_the_statistics_once(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    method.train_epoch(0)
    tracked = [int(b) for name, b in method.learner.network.named_buffers() if name.endswith("num_batches_tracked")]
    assert set(tracked) == {3}  # three steps


# ------------------------------------------------------------------------------------------------------------- beliefs


@pytest.mark.parametrize("name", ["fixmatch", "selfmatch", "pseudo_label"])
def test_beliefs_are_the_last_confident_guesses(name: str, build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, name)
    assert method.beliefs().pseudo_labels.shape == (len(method.task.unlabelled), 10)
    assert method.beliefs().pseudo_labels.isnan().all()  # no opinion yet
    for epoch in range(3):
        method.train_epoch(epoch)
    guesses = method.guesses.of(method.task.unlabelled)
    threshold = float(guesses.amax(-1).nanmedian())
    method.config = method.config.model_copy(update={"threshold": threshold})
    believed = method.beliefs().pseudo_labels
    seen = guesses.isfinite().all(-1)
    assert 0 < seen.sum() < len(seen)
    assert_close(guesses[seen].sum(-1), torch.ones(int(seen.sum())))
    kept = believed.isfinite().all(-1)
    assert torch.equal(kept, guesses.amax(-1) >= threshold)
    assert 0 < kept.sum() < seen.sum()
    assert torch.equal(believed[kept], guesses[kept])


def test_guesses_below_the_threshold_are_no_opinion() -> None:
    guesses = torch.tensor([[0.9, 0.1], [0.6, 0.4], [torch.nan, torch.nan]])
    assert_close(
        confident_guesses(guesses, 0.8), torch.tensor([[0.9, 0.1], [torch.nan] * 2, [torch.nan] * 2]), equal_nan=True
    )


def test_share_of_confident_guesses(build: Callable, tiny: Callable) -> None:
    nothing = [torch.nan, torch.nan]
    guesses = torch.tensor([[0.9, 0.1], [0.6, 0.4], nothing, [0.2, 0.8], nothing])
    assert confident_share(guesses, 0.8).item() == pytest.approx(2 / 3)
    assert confident_share(guesses[[2, 4]], 0.8) == 0
    for threshold, share in ((0.0, 1.0), (1.0, 0.0)):
        assert method_of(build, tiny, threshold=threshold).train_epoch(0)["confident"] == share


def test_guesses_are_noted_for_the_images_of_the_batch(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny)
    task, record = method.task, Record(method.task, 10)
    batch = fixmatch_batch(method.config, task, Streams(0), task.labelled[:4], task.unlabelled[:12])
    network = method.learner.network.eval()
    fixmatch_loss(method.config, network, batch, record)
    assert_close(record.of(task.unlabelled[:12]), network(batch.images[4:16]).softmax(-1).detach())
    assert record.of(task.unlabelled[12:]).isnan().all()


# ----------------------------------------------------------------------------------------------------------- selfmatch


def test_selfmatch_pretrains_without_labels(build: Callable, tiny: Callable) -> None:
    one, other = (method_of(build, tiny, "selfmatch") for _ in range(2))
    head = [one.learner.parameters[p].detach().clone() for p in one.learner.part("heads.classifier")]
    other.task.labels[other.task.labelled] = 0
    for method in (one, other):
        method.train_epoch(0)  # the epoch of pre-training
    for mine, theirs in zip(one.learner.parameters, other.learner.parameters, strict=True):
        assert torch.equal(mine, theirs)
    after = [one.learner.parameters[p] for p in one.learner.part("heads.classifier")]
    assert all(torch.equal(mine, before) for mine, before in zip(after, head, strict=True))
    assert one.guesses.values.isnan().all()


def test_selfmatch_then_trains_the_whole_network_but_the_projection_head(build: Callable, tiny: Callable) -> None:
    method = method_of(build, tiny, "selfmatch")
    method.train_epoch(0)
    learner = method.learner
    before = [tensor.detach().clone() for tensor in learner.parameters]
    method.train_epoch(1)
    still = {p for p, (mine, old) in enumerate(zip(learner.parameters, before, strict=True)) if torch.equal(mine, old)}
    assert still == set(learner.part("heads.projection"))


def test_selfmatch_needs_pretraining() -> None:
    from lnl.methods.selfmatch import Config

    with pytest.raises(ValidationError):
        Config(pretrain_epochs=0)

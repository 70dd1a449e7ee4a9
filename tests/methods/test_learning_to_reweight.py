"""L2R: its weights against their definition, the balanced probe, and the cases where nothing helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lnl import networks
from lnl.data import DataError
from lnl.functional import meta
from lnl.methods.learning_to_reweight import Config, Method
from lnl.trial.config import Trial

Make = Callable[..., Method]


@pytest.fixture(name="make")
def _make(tiny: Callable[..., Trial], build: Callable[[Trial], Any]) -> Make:
    def make(**changes: Any) -> Method:
        return build(tiny("learning_to_reweight", changes)).method

    return make


def batches(method: Method) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
    task = method.task
    index, probe = task.labelled[:12], task.probe
    generator = torch.Generator().manual_seed(0)
    return (
        task.view(index, "none", generator),
        task.labels[index],
        (task.view(probe, "none", generator), task.labels[probe]),
    )


def test_defaults_are_the_papers() -> None:
    optimizer = Config().optimizer
    assert (Config().batch_size, optimizer.kind, optimizer.momentum, optimizer.nesterov) == (100, "sgd", 0.9, False)
    assert (optimizer.learning_rate, optimizer.weight_decay) == (0.1, 2e-4)
    rates = [optimizer.learning_rate * optimizer.scale(step / 60_000) for step in (0, 39_999, 40_000, 49_999, 50_000)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001])


@pytest.mark.parametrize("decay", [False, True])
def test_weights_are_inner_products_of_gradients(make: Make, decay: bool) -> None:
    """max(<∇l_i, ∇L_p>, 0) over its sum, every gradient taken by itself (in the batch, for BatchNorm)."""
    method = make(**{"method.meta_weight_decay": decay, "method.optimizer.weight_decay": 0.05})
    method.train_epoch(0)
    images, labels, (probe, probe_labels) = batches(method)
    network, parameters = method.learner.network, method.learner.parameters
    network.train()
    with networks.statistics_frozen(network):
        v = list(torch.autograd.grad(cross_entropy(network(probe), probe_labels), parameters))
        if decay:
            v = [g + 0.05 * tensor if tensor.ndim > 1 else g for g, tensor in zip(v, parameters, strict=True)]
        each = cross_entropy(network(images), labels, reduction="none")
        inner = []
        for loss in each:
            own = torch.autograd.grad(loss, parameters, retain_graph=True)
            inner.append(sum((a * b).sum() for a, b in zip(own, v, strict=True)))
    expected = torch.stack(inner).clamp(min=0)
    assert 0 < (expected > 0).sum() < 12
    assert_close(
        method.reweight(images, labels, (probe, probe_labels)), expected / expected.sum(), rtol=1e-3, atol=1e-5
    )


def test_every_rate_gives_the_same_weights(make: Make) -> None:
    method = make()
    method.train_epoch(0)
    images, labels, probe = batches(method)
    expected = method.reweight(images, labels, probe)
    for rate in (0.1, 1.0):
        (gradient,) = method.learner.virtual(
            lambda logits, weights: (weights * cross_entropy(logits, labels, reduction="none")).sum(),
            [torch.zeros(12)],
            images,
            method.probe_loss,
            probe,
            rate=rate,
        )
        assert_close(meta.sample_weights(gradient), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("mode", get_args(meta.MetaGradient))
def test_modes_agree(make: Make, mode: str) -> None:
    expected = make().reweight(*batches(make()))
    method = make(**{"method.meta_gradient": mode})
    assert_close(method.reweight(*batches(method)), expected, rtol=0.05, atol=2e-3 if mode[0] == "f" else 1e-5)


def test_where_no_example_helps_only_weight_decay_acts(make: Make) -> None:
    method = make(**{"method.optimizer.weight_decay": 0.01})
    images, labels, _ = batches(method)
    before = [tensor.detach().clone() for tensor in method.learner.parameters]
    loss = method.learner.step(method.objective, (images, labels, torch.zeros(12)))
    assert loss == 0
    for tensor, old in zip(method.learner.parameters, before, strict=True):
        assert_close(tensor.detach(), (1 - 0.1 * 0.01) * old if old.ndim > 1 else old)


def test_beliefs_are_the_last_weights_and_unseen_images_have_none(make: Make) -> None:
    method = make(steps=2)  # 32 of 50 images
    assert method.beliefs().clean.isnan().all()
    method.train_epoch(0)
    beliefs = method.beliefs()
    seen = ~beliefs.clean.isnan()
    assert seen.sum() == 32 and torch.equal(beliefs.selected.isnan(), ~seen)
    assert torch.equal(beliefs.selected[seen], (beliefs.clean[seen] > 0).float())
    assert beliefs.clean[seen].sum() == pytest.approx(2, abs=1e-5)  # every batch's weights sum to 1


@pytest.mark.slow
def test_right_labels_weigh_more(tiny: Callable[..., Trial], build: Callable[[Trial], Any]) -> None:
    trial = tiny(
        "learning_to_reweight", {"labels": 500, "probe": 100, "epochs": 4, "steps": 16, "method.batch_size": 32}
    )
    built = build(trial)
    for epoch in range(4):
        built.method.train_epoch(epoch)
    weights, labelled = built.method.beliefs().clean, built.task.labelled
    right = built.task.labels[labelled] == built.truth.labels[labelled]
    assert weights[right].mean() > 2 * weights[~right].mean()


def test_without_a_probe_there_is_a_sentence(make: Make) -> None:
    with pytest.raises(DataError, match=r"^learning_to_reweight learns from trusted images: give the trial a probe"):
        make(probe=0)

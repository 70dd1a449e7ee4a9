"""CleanNet: the loss of its small network against numpy, its weights, and what it tells of wrong labels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lnl import Noise, Trial
from lnl.data import Unfit
from lnl.methods.clean_net import Method, ReferenceEncoder, cosine_loss, heads, small_objective
from lnl.networks import Network
from lnl.trial.run import Execution, assemble

CPU = Execution(device="cpu")
BASE = Trial(
    method="clean_net",
    dataset="digits",
    network="small_convnet",
    labels=200,
    probe=40,
    noise=Noise("symmetric", 0.3),
    epochs=4,
    steps=20,
)


def test_known_losses() -> None:
    cosines, right = torch.tensor([0.8, 0.3, -0.2]), torch.tensor([1.0, 0.0, 0.0])
    assert_close(cosine_loss(cosines, right), torch.tensor([0.2, 1.0, 0.0]))


def layer(x: np.ndarray, linear: torch.nn.Module) -> np.ndarray:
    weight, bias = (tensor.detach().double().numpy() for tensor in (linear.weight, linear.bias))  # type: ignore[union-attr]
    return np.tanh(x @ weight.T + bias)


def test_the_small_network_and_its_loss_are_those_of_the_paper() -> None:
    torch.manual_seed(0)
    network = Network(torch.nn.Identity(), {name: head(6) for name, head in heads().items()}).double()
    features, references = torch.rand(5, 6).double(), torch.rand(5, 3, 6).double()
    right = torch.tensor([1.0, 0.0, 1.0]).double()

    x, sets = features.numpy(), references.numpy()
    query, decoder, encoder = (network.heads[name] for name in ("query", "decoder", "references"))
    assert isinstance(encoder, ReferenceEncoder)
    coded = layer(layer(x, query[0]), query[2])
    decoded = layer(layer(coded, decoder[0]), decoder[2])
    each = layer(layer(sets, encoder.each[0]), encoder.each[2])
    scores = layer(each, encoder.key[0]) @ encoder.context.detach().numpy()
    attention = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    whole = layer((attention[..., None] * each).sum(1), encoder.all[0])
    cosine = (coded * whole).sum(1) / np.linalg.norm(coded, axis=1) / np.linalg.norm(whole, axis=1)
    total = 0.0
    for i in range(5):
        verdict = right.numpy()[i] if i < 3 else float(cosine[i] >= 0.1)
        alike = verdict * (1 - cosine[i]) + 5 * (1 - verdict) * max(0.0, cosine[i] - 0.1)
        total += (1.0 if i < 3 else 0.1) * alike + 0.1 * ((decoded[i] - x[i]) ** 2).sum()
    assert_close(float(small_objective(network, (features, references, right)).detach()), total / 5)


@pytest.mark.parametrize(("weighting", "expected"), [("soft", [0.8, 0.3, 0.0, 1.0]), ("hard", [1.0, 1.0, 0.0, 1.0])])
def test_weights(weighting: str, expected: list[float]) -> None:
    method, _, _ = assemble(BASE.override({"method.weighting": weighting}), CPU)
    assert isinstance(method, Method)
    index = method.pool[:4]
    method.cosines.note(index[:3], torch.tensor([0.8, 0.3, -0.2]))
    assert_close(method.weights(index), torch.tensor(expected))


@pytest.mark.slow
def test_wrong_labels_weigh_less_where_features_tell_the_classes() -> None:
    method, task, truth = assemble(BASE.override({"method.fit_epochs": 20, "method.references": 4}), CPU)
    assert isinstance(method, Method)
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(len(task.images), 96)
    known = functional.one_hot(truth.labels.clamp(min=0), 96).float()
    features[:] = 3 * known + 0.1 * torch.rand(features.shape, generator=generator)
    labels, labelled, probe = task.labels, task.labelled, task.probe
    method.task = SimpleNamespace(  # type: ignore[assignment]
        labels=labels, labelled=labelled, probe=probe, classes=10, over=lambda index, call: features[index]
    )
    method.fit()
    right = labels[labelled] == truth.labels[labelled]
    weights = method.weights(labelled)
    assert weights[right].mean() > weights[~right].mean() + 0.5
    beliefs = method.beliefs()
    assert beliefs.selected is not None and (beliefs.selected.bool() == right).float().mean() > 0.9


def test_it_needs_trusted_images() -> None:
    with pytest.raises(Unfit, match="CleanNet learns from trusted images"):
        assemble(BASE.override({"probe": 0}), CPU)

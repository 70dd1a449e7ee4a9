"""Class probabilities from frozen features: fitted to the given labels, once for each state of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.graph import neighbour_votes
from lnl.training.images import PART
from lnl.training.readout import Readout, ReadoutSettings, linear_probe


@pytest.fixture
def method(tiny: Callable, build: Callable) -> Any:
    method = build(tiny("simclr")).method
    method.train_epoch(0)
    return method


def bank(method: Any) -> tuple[Tensor, Tensor]:
    task = method.task
    return method.features(task.view(task.labelled, "none", torch.Generator())), task.labels[task.labelled]


def queries() -> Tensor:
    return torch.randn(7, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_a_linear_classifier_on_the_given_labels(method: Any) -> None:
    features, labels = bank(method)
    expected = linear_probe(features, labels, 10)(method.features(queries()))
    assert_close(Readout(ReadoutSettings(), method.task, method.learner).predict(queries()), expected)
    assert (labels != labels.sort().values).any()


@pytest.mark.parametrize(("asked", "found"), [(5, 5), (500, 50)])
def test_votes_of_as_many_neighbours_as_there_are(method: Any, asked: int, found: int) -> None:
    features, labels = bank(method)
    settings = ReadoutSettings(evaluation="neighbours", neighbours=asked, neighbour_temperature=0.2)
    expected = neighbour_votes(features, labels, method.features(queries()), found, 0.2, 10)
    assert_close(Readout(settings, method.task, method.learner).predict(queries()), expected)


def test_it_is_fitted_once_until_the_weights_change(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    features = method.learner.features
    monkeypatch.setattr(method.learner, "features", lambda images: seen.append(len(images)) or features(images))
    readout = Readout(ReadoutSettings(), method.task, method.learner)
    assert len(method.task.labelled) == 50 <= PART
    before = readout.predict(queries())
    assert torch.equal(readout.predict(queries()), before)
    assert seen == [50, 7, 7]
    method.train_epoch(1)
    readout.forget()
    assert not torch.equal(readout.predict(queries()), before)
    assert seen == [50, 7, 7, 50, 7]

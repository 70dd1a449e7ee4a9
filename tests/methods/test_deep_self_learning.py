"""Deep self-learning: prototypes by density and distinctness, and the labels that follow from them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from lnl import Noise, Trial
from lnl.methods.deep_self_learning import Method, density, distinctness, prototypes
from lnl.trial.run import Execution, assemble

SIMILAR = torch.tensor([[1.0, 0.9, 0.8, 0.1], [0.9, 1.0, 0.7, 0.2], [0.8, 0.7, 1.0, 0.3], [0.1, 0.2, 0.3, 1.0]])


def test_known_densities_and_distinctness() -> None:
    densities = density(SIMILAR, torch.tensor(0.5))
    assert densities.tolist() == [2, 2, 2, -2]
    assert_close(distinctness(SIMILAR, densities), torch.tensor([0.1, 0.2, 0.3, 0.3]))


def by_the_paper(similarities: np.ndarray, cut: float, distinct: float, count: int) -> list[int]:
    """Equations 3 and 4 as they are written, image by image."""
    n = len(similarities)
    threshold = np.sort(similarities, axis=None)[int(cut * n * n)]
    rho = [sum(np.sign(similarities[i, j] - threshold) for j in range(n)) for i in range(n)]
    eta = []
    for i in range(n):
        denser = [j for j in range(n) if rho[j] > rho[i]]
        eta.append(max(similarities[i, j] for j in denser) if denser else similarities[i].min())
    fits = sorted((i for i in range(n) if eta[i] < distinct), key=lambda i: -rho[i])
    return fits[:count] or [int(np.argmax(rho))]


@pytest.mark.parametrize(("cut", "distinct", "count"), [(0.4, 0.95, 4), (0.6, 0.8, 8), (0.2, 0.5, 1), (0.4, -1.0, 3)])
def test_prototypes_are_those_of_the_papers_equations(cut: float, distinct: float, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    features = functional.normalize(torch.randn(30, 5, generator=generator).double() + 1, dim=-1)
    similarities = features @ features.T
    found = prototypes(similarities, cut, distinct, count)
    assert found.tolist() == by_the_paper(similarities.numpy(), cut, distinct, count)


def test_the_loss_is_the_papers_mixture_of_two_cross_entropies() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 4, generator=generator)
    given, corrected = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([0, 1, 3, 3, 1, 2])
    target = torch.lerp(functional.one_hot(given, 4).float(), functional.one_hot(corrected, 4).float(), 0.3)
    expected = 0.7 * functional.cross_entropy(logits, given) + 0.3 * functional.cross_entropy(logits, corrected)
    assert_close(Method.objective(lambda images: images, (logits, target)), expected)  # type: ignore[arg-type]


def test_wrong_labels_are_corrected_where_features_tell_the_classes() -> None:
    trial = Trial(
        method="deep_self_learning",
        dataset="digits",
        network="small_convnet",
        labels=200,
        noise=Noise("symmetric", 0.3),
        epochs=4,
        steps=2,
    )
    method, task, truth = assemble(trial.override({"method.candidates": 15}), Execution(device="cpu"))
    true = truth.labels[task.labelled]
    generator = torch.Generator().manual_seed(0)
    features = torch.zeros(len(task.images), 12)
    features[task.labelled] = functional.one_hot(true, 12) + 0.1 * torch.randn(200, 12, generator=generator)
    assert isinstance(method, Method)
    method.task = SimpleNamespace(  # type: ignore[assignment]
        labels=task.labels, labelled=task.labelled, classes=10, over=lambda index, call: features[index]
    )
    wrong = task.labels[task.labelled] != true
    corrected = method.correct()
    assert wrong.sum() == 60 and (corrected == true).float().mean() > 0.95
    method.corrected.note(task.labelled, corrected)
    beliefs = method.beliefs()
    assert beliefs.selected is not None and beliefs.labels is not None
    assert torch.equal(beliefs.selected == 1, corrected == task.labels[task.labelled])
    assert_close(beliefs.labels.sum(-1), torch.ones(200))
    first = (corrected != task.labels[task.labelled]).nonzero()[0, 0]
    assert beliefs.labels[first, corrected[first]] == 0.5 == beliefs.labels[first, task.labels[task.labelled][first]]


def test_given_labels_alone_count_before_the_first_correction() -> None:
    base = Trial(
        method="deep_self_learning", dataset="digits", network="small_convnet", labels=60, epochs=4, steps=1
    ).override({"method.correct_from": 0.5, "method.batch_size": 16})
    method, task, _ = assemble(base, Execution(device="cpu"))
    assert isinstance(method, Method)
    for epoch, known in enumerate((False, False, True, True)):
        method.train_epoch(epoch)
        assert bool(method.corrected.of(task.labelled).isfinite().all()) == known

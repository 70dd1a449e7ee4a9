"""Division by features or several signals: FINE, agreement of neighbours, mixtures by class and in two dimensions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from torch import Generator, Tensor
from torch.nn.functional import normalize
from torch.testing import assert_close

from lnl.functional import graph, mixtures, selection

ROWS = torch.tensor([[1.0, 0], [0.95, 0.05], [0.9, 0.2], [0, 1], [0.1, 0.9], [0.2, 0.95]])
LABELS = torch.tensor([0, 0, 1, 1, 1, 0])


def random(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def close(actual: Tensor, expected: list[float]) -> None:
    assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ features


def test_fine_scores_known_answer() -> None:
    features = torch.tensor([[1.0, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]])
    scores = selection.fine_scores(features, torch.zeros(4, dtype=torch.long), 1)
    close(scores, [0.985328, 0.998149, 0.997303, 0.170672])


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_fine_scores_against_numpy(seed: int) -> None:
    features = torch.randn(30, 4, generator=random(seed)) + 2  # the first eigenvalue stands out, as after a ReLU
    labels = torch.randint(3, (30,), generator=random(seed + 1))
    scores = selection.fine_scores(features, labels, 4)  # nobody has the last label
    for one in range(3):
        mine = features[labels == one].double().numpy()
        leading = np.linalg.svd(mine)[2][0]
        expected = np.abs(mine @ leading) / np.linalg.norm(mine, axis=1)
        np.testing.assert_allclose(scores[labels == one], expected, atol=1e-9)
    assert_close(selection.fine_scores(-3 * features, labels, 4), scores)
    assert ((scores >= 0) & (scores <= 1 + 1e-12)).all()


@pytest.mark.parametrize("wide", [False, True])
def test_fine_scores_against_an_eigendecomposition(wide: bool) -> None:
    """Features that are not negative, as those of networks, with fewer images a class than dimensions or more."""
    images, width = (60, 96) if wide else (400, 24)
    labels = torch.arange(images) % 5
    features = (
        torch.randn(images, width, generator=random()) + torch.randn(5, width, generator=random(1))[labels]
    ).relu()
    scores = selection.fine_scores(features, labels, 5)
    for one in range(5):
        mine = features[labels == one].double()
        leading = torch.linalg.eigh(mine.mT @ mine).eigenvectors[:, -1]
        assert_close(scores[labels == one], (normalize(mine, dim=-1) @ leading).abs(), atol=1e-9, rtol=0)


def test_fine_scores_of_features_that_add_up_to_nothing() -> None:
    features = torch.tensor([[2.0, -2], [-1, 1], [1, 1]])
    close(selection.fine_scores(features, torch.zeros(3, dtype=torch.long), 1), [1, 1, 0])


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (float("inf"), [0.5, 0.5, 0, 0.5, 0.5, 0]),
        (0.1, [0.555843, 0.530907, 0, 0.538260, 0.496422, 0]),
    ],
)
def test_neighbour_agreement_known_answer(temperature: float, expected: list[float]) -> None:
    cosines, neighbours = graph.nearest(ROWS, 2)
    close(selection.neighbour_agreement(LABELS, cosines, neighbours, temperature), expected)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31), temperature=st.sampled_from([0.01, 0.1, 1.0]))
def test_neighbour_agreement_against_numpy(seed: int, temperature: float) -> None:
    features = normalize(torch.randn(12, 3, generator=random(seed)), dim=-1)
    labels = torch.randint(2, (12,), generator=random(seed + 1))
    agreement = selection.neighbour_agreement(labels, *graph.nearest(features, 4), temperature)
    for place in range(12):
        similar = (features @ features[place]).double().numpy()
        similar[place] = -np.inf
        nearest = np.argsort(-similar)[:4]
        weights = np.exp((similar[nearest] - 1) / temperature)
        expected = weights[labels.numpy()[nearest] == int(labels[place])].sum() / weights.sum()
        assert float(agreement[place]) == pytest.approx(expected, abs=1e-3 if temperature == 0.01 else 1e-5)


# ------------------------------------------------------------------------------------------------------------ mixtures


def two_classes() -> tuple[Tensor, Tensor, Tensor]:
    """Losses of 400 images, who is clean, labels: right ones of class 1 lose as much as wrong ones of class 0."""
    labels, clean = torch.arange(400) % 2, torch.arange(400) % 4 < 2
    means = torch.tensor([[0.4, 0.1], [0.9, 0.4]])
    return means[labels, clean.long()] + 0.03 * torch.randn(400, generator=random()), clean, labels


def test_each_class_has_its_own_mixture() -> None:
    losses, clean, labels = two_classes()
    by_class = mixtures.mixture_by_class(losses, labels, 2, random())
    assert torch.equal(by_class > 0.5, clean)
    of_all = mixtures.gaussian_mixture(losses, random()).clean
    assert ((of_all > 0.5) != clean).double().mean() > 0.2
    both = mixtures.mixture_by_class(torch.stack([losses, losses.flip(0)]), labels, 2, random())
    assert_close(both[0], by_class)


def test_rare_classes_are_judged_by_the_mixture_of_all() -> None:
    losses, _, labels = two_classes()
    labels = torch.where(torch.arange(400) < 36, labels, 0)  # class 1 is left with 18 images
    of_all = mixtures.gaussian_mixture(losses, random(), monotone=True).clean
    assert torch.equal(mixtures.mixture_by_class(losses, labels, 2, random(), least=401), of_all)
    mixed = mixtures.mixture_by_class(losses, labels, 2, random())
    assert torch.equal(mixed[labels == 1], of_all[labels == 1])
    assert not torch.equal(mixed[labels == 0], of_all[labels == 0])


def correlated() -> tuple[Tensor, Tensor]:
    """Two signals (2, 600) that overlap one by one, not together."""
    clean = torch.arange(600) < 400
    shared = 0.15 * torch.randn(600, generator=random())
    signals = torch.stack([shared, -shared]) + 0.04 * torch.randn(2, 600, generator=random(1))
    return signals + torch.where(clean, 0.35, 0.6), clean


def test_two_signals_tell_what_neither_tells_alone() -> None:
    signals, clean = correlated()
    one, other = (roc_auc_score(clean, mixtures.gaussian_mixture(row, random()).clean) for row in signals)
    both = mixtures.joint_mixture(signals, random()).clean
    assert max(one, other) < 0.92 < 0.99 < roc_auc_score(clean, both)
    assert ((both > 0.5) == clean).double().mean() > 0.97


def test_joint_mixture_answers_as_scikit_learn() -> None:
    signals, _ = correlated()
    generator, again = random(3), random(3)
    clean, components = mixtures.joint_mixture(torch.stack([signals, 1 - signals]), generator)
    seed = int(torch.randint(2**31, (), generator=again))
    for row, found, fitted in zip((signals, 1 - signals), clean, components, strict=True):
        model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed).fit(
            row.mT.double().numpy()
        )
        low = int(model.means_.sum(1).argmin())
        np.testing.assert_allclose(found, model.predict_proba(row.mT.double().numpy())[:, low], atol=1e-6)
        expected = [(model.weights_[c], model.means_[c, 0], model.covariances_[c, 0, 0] ** 0.5) for c in (low, 1 - low)]
        np.testing.assert_allclose(fitted, expected, atol=1e-6)


def test_joint_mixture_of_one_signal_is_the_usual_one() -> None:
    losses = two_classes()[0]
    joint, usual = mixtures.joint_mixture(losses[None], random()), mixtures.gaussian_mixture(losses, random())
    assert_close(joint.clean, usual.clean, atol=1e-5, rtol=0)
    assert_close(joint.components, usual.components, atol=1e-5, rtol=0)


def test_equal_signals_make_nobody_suspicious() -> None:
    equal = torch.full((2, 50), 0.5)
    assert torch.equal(mixtures.joint_mixture(equal, random()).clean, torch.ones(50))
    equal[1, :10] = 0.9  # one of them speaks
    assert mixtures.joint_mixture(equal, random()).clean[:10].max() < 0.5


def test_separation_is_ashmans() -> None:
    components = torch.tensor([[[0.6, 0.029313, 0.001061**0.5], [0.4, 0.811558, 0.020228**0.5]]]).double()
    expected = 2**0.5 * (0.811558 - 0.029313) / (0.001061 + 0.020228) ** 0.5
    close(mixtures.separation(components), [expected])
    close(mixtures.separation(components.flip(-2)), [expected])


# ----------------------------------------------------------------------------------------------------------- threshold


def test_a_threshold_within_reach_is_kept() -> None:
    clean = torch.tensor([[0.1, 0.9, 0.4], [0.2, 0.3, 1.0]])
    close(mixtures.reachable(0.5, clean), [[0.5], [0.5]])


@pytest.mark.parametrize(("threshold", "chosen"), [(0.0, [False, True, True]), (1.0, [False, False, True])])
def test_neither_part_is_empty(threshold: float, chosen: list[bool]) -> None:
    clean = torch.tensor([0.3, 0.4, 0.8])
    assert (clean > mixtures.reachable(threshold, clean)).tolist() == chosen


def test_equal_probabilities_are_above_every_threshold() -> None:
    for value in (0.0, 0.5, 1.0):
        clean = torch.full((3,), value)
        assert (clean > mixtures.reachable(0.5, clean)).all()

"""Transition matrices: written down, estimated from anchors or a trusted set, and corrected for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lnl.functional import noise, transition
from lnl.functional.losses import cross_entropy
from lnl.functional.targets import one_hot
from lnl.functional.transition import backward_correction, forward_correction, from_anchors, from_trusted, posterior

LOGITS = torch.tensor([2.0, 1, 0])
T = torch.tensor([[0.8, 0.2, 0], [0.1, 0.9, 0], [0, 0.3, 0.7]])
POSTERIORS = torch.tensor(
    [[0.9, 0.08, 0.02], [0.7, 0.25, 0.05], [0.1, 0.85, 0.05], [0.2, 0.6, 0.2], [0.05, 0.25, 0.7], [0, 0.4, 0.6]]
)
seeds = st.integers(0, 2**32 - 1)


def close(actual: Tensor, expected: list) -> None:
    assert_close(actual.float(), torch.tensor(expected), atol=2e-6, rtol=0)


def random_matrix(random: np.random.Generator, classes: int) -> np.ndarray:
    """Rows sum to 1, and the diagonal dominates: it can be inverted."""
    rows = random.random((classes, classes))
    return 0.4 * rows / rows.sum(1, keepdims=True) + 0.6 * np.eye(classes)


# --------------------------------------------------------------------------------------------------------- written down


def test_the_noisy_posterior_is_p_times_t() -> None:
    noisy = torch.exp(-forward_correction(LOGITS.expand(3, 3), torch.arange(3), T))
    close(noisy, [0.556666, 0.380313, 0.063021])


@pytest.mark.parametrize(("rate", "wrong"), [(0.2, 0.18), (0.5, 0.45), (0.8, 0.72), (0.9, 0.81)])
def test_symmetric_noise_that_includes_the_true_class(rate: float, wrong: float) -> None:
    matrix = transition.matrix("symmetric", rate, 10, include_true=True)
    assert_close(1 - matrix.diagonal(), torch.full((10,), wrong, dtype=torch.float64))
    assert_close(matrix, transition.matrix("symmetric", wrong, 10))


def test_inverse_and_condition_of_known_matrices() -> None:
    half = transition.matrix("symmetric", 0.5, 10)
    inverse = transition.inverse(half)
    assert_close(inverse, 2.25 * torch.eye(10, dtype=torch.float64) - 0.125)
    assert torch.linalg.cond(half).item() == pytest.approx(2.25)
    assert torch.linalg.cond(transition.matrix("pair", 0.45, 10)).item() == pytest.approx(10.0)
    assert torch.linalg.cond(T).item() == pytest.approx(1.763150, abs=1e-5)


def test_asymmetric_noise_moves_the_prior_of_cifar10() -> None:
    matrix = transition.matrix("asymmetric", 0.4, 10, noise.CIFAR10_MAP)
    close(matrix.mean(dim=0), [0.14, 0.14, 0.06, 0.10, 0.06, 0.10, 0.10, 0.14, 0.10, 0.06])
    assert 1 - matrix.diagonal().mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("kind", "include_true"), [("symmetric", False), ("symmetric", True), ("pair", False), ("asymmetric", False)]
)
def test_it_is_the_noise_that_is_drawn(kind: str, include_true: bool) -> None:
    labels = torch.arange(10).repeat(2000)
    settings = {"include_true": include_true, "mapping": noise.CIFAR10_MAP}
    drawn = noise.corrupt(labels, kind, 0.4, 10, torch.Generator().manual_seed(0), **settings)
    matrix = transition.matrix(kind, 0.4, 10, noise.CIFAR10_MAP, include_true)
    assert_close(matrix.sum(1), torch.ones(10, dtype=torch.float64))
    assert (drawn.transition - matrix).abs().max() < 0.04  # four deviations of 2,000 draws


def test_noise_without_a_matrix_is_refused() -> None:
    for kind in ("instance", "human", "asymmetric"):
        with pytest.raises(ValueError, match=f"^Noise '{kind}' has no matrix.*\\.$"):
            transition.matrix(kind, 0.4, 10)
    with pytest.raises(ValueError, match=r"^include_true belongs to symmetric noise.*'pair'\.$"):
        transition.matrix("pair", 0.4, 10, include_true=True)


# ------------------------------------------------------------------------------------------------------------ estimates


def test_anchors_known_answers() -> None:
    assert_close(from_anchors(POSTERIORS), POSTERIORS[[0, 2, 4]])
    # Filtering inside the table of predictions, class after class, would make the last row [0.5, 0, 0.5].
    before = POSTERIORS.clone()
    assert_close(from_anchors(POSTERIORS, 0.8), torch.tensor([[0.2, 0.6, 0.2], [0, 0.4, 0.6], [0.2, 0.6, 0.2]]))
    assert torch.equal(POSTERIORS, before)


@given(seed=seeds, count=st.integers(1, 200), percentile=st.sampled_from([0.5, 0.9, 0.97, 1.0]))
def test_anchors_against_numpy(seed: int, count: int, percentile: float) -> None:
    table = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=count).astype(np.float32)
    expected = []
    for i in range(4):
        column = table[:, i].copy()
        if percentile < 1:
            column[column >= np.percentile(column, 100 * percentile, method="higher")] = 0
        expected.append(table[column.argmax()])
    np.testing.assert_array_equal(from_anchors(torch.tensor(table), percentile).numpy(), np.stack(expected))


def test_anchors_recover_the_matrix_of_the_noise() -> None:
    """With a clean posterior that is certain of some images of every class."""
    clean = torch.cat([torch.eye(3), torch.softmax(torch.randn(50, 3, generator=torch.Generator().manual_seed(0)), -1)])
    assert_close(from_anchors(clean @ T), T)


GOLD = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0, 0.4, 0.6]])
GOLD_LABELS = torch.tensor([0, 0, 1, 2, 2])


def test_trusted_means_known_answers() -> None:
    close(from_trusted(GOLD, GOLD_LABELS, 3), [[0.6, 0.25, 0.15], [0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
    true, given = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 0, 1, 1, 0])
    third = 1 / 3
    close(from_trusted(one_hot(given, 2), true, 2), [[2 * third, third], [third, 2 * third]])
    assert_close(from_trusted(one_hot(given, 3), true, 3)[2], torch.tensor([0.0, 0, 1]))  # no image of class 2


# ----------------------------------------------------------------------------------------------------------- correction


def test_forward_known_answers() -> None:
    close(forward_correction(LOGITS.expand(3, 3), torch.arange(3), T), [0.585791, 0.966761, 2.764281])
    logits = LOGITS.clone().requires_grad_()
    forward_correction(logits, torch.tensor(1), T).backward()
    close(logits.grad, [0.315402, -0.334415, 0.019012])


def test_backward_known_answers() -> None:
    inverse = transition.inverse(T)
    close(inverse, [[1.285714, -0.285714, 0], [-0.142857, 1.142857, 0], [0.061224, -0.489796, 1.428571]])
    corrected = backward_correction(LOGITS.expand(3, 3), torch.arange(3), inverse)
    close(corrected, [0.121892, 1.550463, 2.774953])
    close(T @ corrected, [0.407606, 1.407606, 2.407606])  # its mean over given labels is the loss of the true one


def test_gold_loss_correction_known_answers() -> None:
    matrix = from_trusted(GOLD, GOLD_LABELS, 3)
    logits = torch.tensor([[1.0, 0, -1], [0, 2, 0]], requires_grad=True)
    labels = torch.tensor([1, 2])
    silver = forward_correction(logits, labels, matrix)
    close(silver.detach(), [0.943913, 1.841503])
    close(torch.exp(-silver.detach()), [0.389102, 0.158579])
    close(forward_correction(logits.detach(), labels, matrix.mT), [1.304493, 1.169086])  # the wrong way round
    gold = cross_entropy(torch.tensor([0.0, 0, 1]), torch.tensor(2))
    assert ((silver.sum() + gold) / 3).item() == pytest.approx(1.112287, abs=2e-6)
    silver.sum().backward()
    close(logits.grad, [[0.2378205, -0.2584370, 0.0206165], [0.0057618, 0.2907117, -0.2964736]])


@given(seed=seeds, shape=st.sampled_from([(5,), (4, 3), (2, 3, 7)]), size=st.sampled_from([1.0, 10.0]))
def test_corrections_against_numpy(seed: int, shape: tuple[int, ...], size: float) -> None:
    random = np.random.default_rng(seed)
    classes = shape[-1]
    logits, labels = size * random.normal(size=shape), random.integers(classes, size=shape[:-1])
    matrix = random_matrix(random, classes)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    p = powers / powers.sum(-1, keepdims=True)
    noisy = np.take_along_axis(p @ matrix, labels[..., None], -1)
    corrected = -np.log(np.maximum(p, 1e-7)) @ np.linalg.inv(matrix).T
    arguments = torch.tensor(logits), torch.tensor(labels), torch.tensor(matrix)

    def same(actual: Tensor, expected: np.ndarray) -> None:
        assert actual.dtype == torch.float32 and actual.shape == expected.shape
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=1e-4)

    same(forward_correction(*arguments), -np.log(noisy)[..., 0])
    same(posterior(*arguments), p * np.moveaxis(matrix[:, labels], 0, -1) / noisy)
    inverse = transition.inverse(arguments[2]).float()
    same(
        backward_correction(arguments[0], arguments[1], inverse),
        np.take_along_axis(corrected, labels[..., None], -1)[..., 0],
    )


def test_without_noise_nothing_is_corrected() -> None:
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(8) % 5
    assert_close(forward_correction(logits, labels, torch.eye(5)), cross_entropy(logits, labels))
    assert_close(backward_correction(logits, labels, torch.eye(5)), cross_entropy(logits, labels))
    assert_close(posterior(logits, labels, torch.eye(5)), one_hot(labels, 5))


def test_the_forward_loss_is_least_at_the_clean_posterior() -> None:
    """And cross-entropy on the same given labels is least at the noisy one."""
    clean = torch.tensor([0.7, 0.2, 0.1])
    for loss, minimiser in ((lambda z, n: forward_correction(z, n, T), clean), (cross_entropy, clean @ T)):
        logits = minimiser.log().requires_grad_()
        (loss(logits.expand(3, 3), torch.arange(3)) @ (clean @ T)).backward()
        assert_close(logits.grad, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_impossible_labels_and_huge_logits_stay_finite(precision: torch.dtype) -> None:
    logits = torch.tensor([[200.0, 0, 0], [-200, 0, 0], [0, 0, 0]], dtype=precision, requires_grad=True)
    for loss, matrix in ((forward_correction, T), (backward_correction, transition.inverse(T))):
        for label in range(3):
            values = loss(logits, torch.full((3,), label), matrix)  # label 2 is impossible for classes 0 and 1
            assert values.dtype == torch.float32 and values.isfinite().all()
            (gradient,) = torch.autograd.grad(values.sum(), logits)
            assert gradient.isfinite().all()


def test_the_backward_loss_has_a_lower_bound() -> None:
    inverse = transition.inverse(T)
    certain = [
        backward_correction(torch.tensor([size, 0.0, 0.0]), torch.tensor(0), inverse).item() for size in (20, 100)
    ]
    assert certain == pytest.approx([inverse[0, 1].item() * -np.log(1e-7)] * 2, rel=1e-4)


def test_two_classes_with_one_anchor_have_a_pseudo_inverse() -> None:
    singular = torch.tensor([[0.5, 0.5, 0], [0.5, 0.5, 0], [0, 0.2, 0.8]])
    inverse = transition.inverse(singular)
    assert inverse.dtype == torch.float32 and inverse.abs().max() < 10
    assert_close(singular @ inverse @ singular, singular)

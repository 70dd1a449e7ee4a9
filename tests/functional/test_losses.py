import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from lnl.functional.losses import (
    cross_entropy,
    kl_divergence,
    nt_xent,
    soft_cross_entropy,
    squared_error,
    uniform_prior,
)

LABELLED = torch.tensor([[2.0, 0, -1], [0, 1, 0]]), torch.tensor([[0.7, 0.3, 0], [0, 0.8, 0.2]])
UNLABELLED = (
    torch.tensor([[1.0, 1, 0], [0, 0, 2], [3, 0, 0], [0, 0, 0]]),
    torch.tensor([[0.5, 0.5, 0], [0, 0.1, 0.9], [1, 0, 0], [0.2, 0.3, 0.5]]),
)
VIEWS = torch.tensor([[1.0, 0], [0, 1]]), torch.tensor([[0.8, 0.6], [-0.6, 0.8]])
seeds = st.integers(0, 2**32 - 1)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def test_cross_entropy_known_answers() -> None:
    logits = torch.tensor([2.0, 1, 0]).expand(3, 3)
    assert_close(cross_entropy(logits, torch.arange(3)), torch.tensor([0.407606, 1.407606, 2.407606]))
    assert cross_entropy(torch.zeros(10), torch.tensor(3)).item() == pytest.approx(2.302585)
    assert cross_entropy(torch.zeros(100), torch.tensor(3)).item() == pytest.approx(4.605170)
    assert cross_entropy(torch.tensor([2.0, 0, 0]), torch.tensor(0)).item() == pytest.approx(0.239545, abs=1e-6)


def test_cross_entropy_gradient_is_probability_minus_label() -> None:
    logits = torch.tensor([[2.0, 1, 0], [-1, 3, 0.5]], requires_grad=True)
    cross_entropy(logits, torch.tensor([2, 1])).sum().backward()
    assert_close(logits.grad, logits.softmax(-1).detach() - torch.tensor([[0.0, 0, 1], [0, 1, 0]]))


def test_mixmatch_known_answers() -> None:
    labelled, unlabelled = soft_cross_entropy(*LABELLED).mean(), squared_error(*UNLABELLED).mean()
    assert labelled.item() == pytest.approx(0.760645, abs=1e-6)
    assert unlabelled.item() == pytest.approx(0.009944, abs=1e-6)
    assert (labelled + 75 * unlabelled).item() == pytest.approx(1.506470, abs=1e-5)


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [([1 / 3, 1 / 3, 1 / 3], 0), ([0.7, 0.2, 0.1], 0.324287), ([0.98, 0.01, 0.01], 1.978235)],
)
def test_uniform_prior_known_answers(probabilities: list[float], expected: float) -> None:
    """KL(uniform || p); the other direction would give .296794 for the second."""
    assert uniform_prior(torch.tensor([probabilities]).log()).item() == pytest.approx(expected, abs=1e-6)


def test_uniform_prior_is_of_the_mean_over_the_batch() -> None:
    logits = torch.tensor([[1.0, 0, -1], [0, 2, 0], [0, 0, 0], [3, 0, 0]])
    assert uniform_prior(logits).item() == pytest.approx(0.123989, abs=1e-6)
    assert uniform_prior(logits[:2]).item() == pytest.approx(0.212794, abs=1e-6)
    average = softmax(np.stack([logits.numpy(), -logits.numpy()])).mean(1)
    expected = (np.log(1 / 3 / average) / 3).sum(-1)
    assert_close(uniform_prior(torch.stack([logits, -logits])).numpy(), expected.astype(np.float32))


def test_uniform_prior_of_a_class_that_nobody_gets_is_finite() -> None:
    assert uniform_prior(torch.tensor([[300.0, 0, 0], [300, 0, 0]])).item() == pytest.approx(200 - math.log(3))


@given(seed=seeds, shape=st.sampled_from([(5,), (4, 3), (2, 3, 7)]), size=st.sampled_from([1.0, 30.0, 1000.0]))
def test_losses_of_logits_against_numpy(seed: int, shape: tuple[int, ...], size: float) -> None:
    random = np.random.default_rng(seed)
    logits = (size * random.normal(size=shape)).astype(np.float32).astype(np.float64)
    targets = softmax(random.normal(size=shape))
    labels = random.integers(shape[-1], size=shape[:-1])
    logarithms = logits - logits.max(-1, keepdims=True)
    logarithms = logarithms - np.log(np.exp(logarithms).sum(-1, keepdims=True))

    def close(actual: Tensor, expected: np.ndarray) -> None:
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-5, atol=1e-5)

    given_logits, given_targets = torch.tensor(logits), torch.tensor(targets, dtype=torch.float32)
    picked = np.take_along_axis(logarithms, labels[..., None], -1)[..., 0]
    close(cross_entropy(given_logits, torch.tensor(labels)), -picked)
    close(soft_cross_entropy(given_logits, given_targets), -(targets * logarithms).sum(-1))
    close(squared_error(given_logits, given_targets), ((softmax(logits) - targets) ** 2).mean(-1))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_evaluated_in_float32(precision: torch.dtype) -> None:
    logits, targets = UNLABELLED[0].to(precision), UNLABELLED[1]
    for loss in (soft_cross_entropy, squared_error):
        assert_close(loss(logits, targets), loss(UNLABELLED[0], targets), atol=0, rtol=0)  # these logits are exact
    labels = targets.argmax(-1)
    assert_close(cross_entropy(logits, labels), cross_entropy(UNLABELLED[0], labels), atol=0, rtol=0)


def test_nt_xent_known_answers() -> None:
    per_anchor = nt_xent(*VIEWS, 0.5)
    assert_close(per_anchor, torch.tensor([0.233258, 0.627123, 0.627123, 0.233258]), atol=1e-6, rtol=0)
    assert per_anchor.mean().item() == pytest.approx(0.430190, abs=1e-6)
    assert nt_xent(*VIEWS, 1.0).mean().item() == pytest.approx(0.673577, abs=1e-6)
    assert nt_xent(*VIEWS, 0.1).mean().item() == pytest.approx(0.063780, abs=1e-6)
    assert_close(nt_xent(torch.ones(4, 3), torch.ones(4, 3), 0.5), torch.full((8,), math.log(7)))
    assert_close(nt_xent(VIEWS[0][:1], VIEWS[1][:1], 0.5), torch.zeros(2))  # one image has no negatives


def nt_xent_by_loops(first: np.ndarray, second: np.ndarray, temperature: float) -> list[float]:
    views = np.concatenate([first, second])
    views = views / np.linalg.norm(views, axis=1, keepdims=True)
    losses = []
    for i, view in enumerate(views):
        other = (i + len(first)) % len(views)
        total = sum(np.exp(view @ views[j] / temperature) for j in range(len(views)) if j != i)
        losses.append(-np.log(np.exp(view @ views[other] / temperature) / total))
    return losses


@given(seed=seeds, count=st.integers(1, 6), temperature=st.sampled_from([0.07, 0.5, 2.0]))
def test_nt_xent_against_numpy(seed: int, count: int, temperature: float) -> None:
    first, second = np.random.default_rng(seed).normal(size=(2, count, 5))
    expected = nt_xent_by_loops(first, second, temperature)
    actual = nt_xent(torch.tensor(first), torch.tensor(second), temperature)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-4, atol=2e-5)


@given(seed=seeds, factor=st.floats(1e-3, 1e3))
def test_nt_xent_ignores_length_and_order_of_views(seed: int, factor: float) -> None:
    random = torch.Generator().manual_seed(seed)
    first, second = torch.randn(2, 5, 4, generator=random)
    losses = nt_xent(first, second, 0.5)
    assert_close(nt_xent(factor * first, second, 0.5), losses, atol=1e-5, rtol=1e-5)
    assert_close(nt_xent(second, first, 0.5), losses.roll(5), atol=1e-5, rtol=1e-5)


def test_nt_xent_takes_leading_axes() -> None:
    first, second = torch.randn(2, 3, 2, 6, 4, generator=torch.Generator().manual_seed(0))
    stacked = nt_xent(first, second, 0.5)
    assert stacked.shape == (3, 2, 12)
    assert_close(stacked[1, 1], nt_xent(first[1, 1], second[1, 1], 0.5))


def test_nt_xent_is_float32_under_autocast() -> None:
    first, second = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        assert (first @ second.T).dtype == torch.bfloat16
        assert_close(nt_xent(first, second, 0.1), nt_xent_outside(first, second), atol=0, rtol=0)
    half = nt_xent(first.half(), second.half(), 0.01)  # a mask of -1e9 or exp(1/T) would overflow float16
    assert half.dtype == torch.float32
    assert half.isfinite().all()


def nt_xent_outside(first: Tensor, second: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return nt_xent(first, second, 0.1)


def test_nt_xent_gradient_is_finite() -> None:
    first, second = torch.zeros(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
    nt_xent(first, second, 0.1).mean().backward()
    assert first.grad is not None and first.grad.isfinite().all()
    assert second.grad is not None and second.grad.isfinite().all()


def test_nt_xent_does_not_push_apart_views_of_one_image() -> None:
    first, second = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(0))
    distinct = nt_xent(first, second, 0.5, torch.tensor([7, 3, 5]))
    assert_close(distinct, nt_xent(first, second, 0.5))
    # Images 0 and 2 are one: what is left of each of their anchors is the batch without the other.
    repeated = nt_xent(first, second, 0.5, torch.tensor([4, 1, 4]))
    without_2 = nt_xent(first[:2], second[:2], 0.5)
    assert_close(repeated[[0, 3]], without_2[[0, 2]])
    assert_close(repeated[[1, 4]], distinct[[1, 4]])  # image 1 has both as negatives
    assert_close(nt_xent(first, second, 0.5, torch.zeros(3)), torch.zeros(6))


def test_kl_divergence_against_numpy() -> None:
    first, second = (logits.double().numpy() for logits in VIEWS)
    p, q = softmax(first), softmax(second)
    assert_close(kl_divergence(*VIEWS), torch.tensor((p * np.log(p / q)).sum(-1)).float())
    assert kl_divergence(VIEWS[0], VIEWS[0] + 3).abs().max() < 1e-6
    extreme = torch.tensor([[200.0, -200]])
    assert kl_divergence(extreme, -extreme).item() == pytest.approx(400)

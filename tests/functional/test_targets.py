import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Generator
from torch.testing import assert_close

from lnl.functional.targets import mixup, mixup_coefficients, one_hot, sharpen

seeds = st.integers(0, 2**32 - 1)


def random(seed: int) -> Generator:
    return Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (0.5, [0.657895, 0.236842, 0.105263]),
        (1.0, [0.5, 0.3, 0.2]),
        (0.25, [0.865651, 0.112188, 0.022161]),
        (0.1, [0.993886, 0.006010, 0.000104]),
    ],
)
def test_sharpen_known_answers(temperature: float, expected: list[float]) -> None:
    assert_close(sharpen(torch.tensor([0.5, 0.3, 0.2]), temperature), torch.tensor(expected), atol=1e-6, rtol=0)


@given(seed=seeds, temperature=st.floats(0.1, 3))
def test_sharpen_against_numpy(seed: int, temperature: float) -> None:
    probabilities = np.random.default_rng(seed).dirichlet(np.ones(5), size=(2, 3))
    powers = probabilities ** (1 / temperature)
    expected = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(sharpen(torch.tensor(probabilities), temperature).numpy(), expected, atol=1e-9)
    np.testing.assert_allclose(sharpen(torch.tensor(probabilities), 1.0).numpy(), probabilities, atol=1e-9)


def test_sharpen_keeps_zeros_and_does_not_underflow() -> None:
    assert_close(sharpen(torch.tensor([0.75, 0.25, 0.0]), 0.5), torch.tensor([0.9, 0.1, 0.0]))
    nearly_uniform = torch.full((100,), 0.0099)
    nearly_uniform[7] = 0.0199
    assert_close(sharpen(nearly_uniform, 0.01), torch.eye(100)[7])  # 0.0199^100 is 0 in float32


def test_one_hot() -> None:
    assert_close(
        one_hot(torch.tensor([[2, 0], [1, 1]]), 3), torch.tensor([[[0.0, 0, 1], [1, 0, 0]], [[0, 1, 0], [0, 1, 0]]])
    )
    with pytest.raises(RuntimeError):
        one_hot(torch.tensor([-1]), 3)  # an unknown label is no target


@pytest.mark.parametrize(("alpha", "mean"), [(0.75, 0.7782), (0.5, 0.8184)])
def test_mean_of_mixup_coefficients(alpha: float, mean: float) -> None:
    coefficients = mixup_coefficients(alpha, 400_000, random(0))
    assert coefficients.mean().item() == pytest.approx(mean, abs=1e-3)  # four standard errors


@pytest.mark.parametrize("alpha", [0.01, 0.1, 4.0])
def test_mean_of_mixup_coefficients_in_closed_form(alpha: float) -> None:
    expected = scipy.stats.beta(alpha + 1, alpha).sf(0.5)  # since l is symmetric, E[max(l, 1 - l)] = 2 E[l; l > 1/2]
    assert mixup_coefficients(alpha, 400_000, random(0)).mean().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("alpha", [0.75, 4.0])
def test_mixup_coefficients_are_folded_beta(alpha: float) -> None:
    beta = scipy.stats.beta(alpha, alpha)
    coefficients = mixup_coefficients(alpha, 20_000, random(1))
    assert coefficients.dtype == torch.float32
    assert scipy.stats.kstest(coefficients.numpy(), lambda x: beta.cdf(x) - beta.cdf(1 - x)).pvalue > 0.001


@given(seed=seeds, alpha=st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 100.0]))
def test_mixup_coefficients_stay_in_range(seed: int, alpha: float) -> None:
    coefficients = mixup_coefficients(alpha, 64, random(seed))
    assert coefficients.shape == (64,)
    assert ((coefficients >= 0.5) & (coefficients <= 1)).all()  # false for NaN, which a small alpha invites
    assert torch.equal(coefficients, mixup_coefficients(alpha, 64, random(seed)))


def test_mixup_coefficients_are_drawn_from_their_generator() -> None:
    generator, before = random(0), torch.random.get_rng_state()
    first, second = mixup_coefficients(0.75, 64, generator), mixup_coefficients(0.75, 64, generator)
    assert not torch.equal(first, second)
    assert len(first.unique()) == 64
    assert torch.equal(torch.random.get_rng_state(), before)


def test_mixup_known_answer() -> None:
    inputs = torch.tensor([[0.0, 10], [4, 2]])
    mixed, targets = mixup(inputs, torch.eye(2), torch.tensor([1, 0]), torch.tensor([0.7, 1.0]))
    assert_close(mixed, torch.tensor([[1.2, 7.6], [4, 2]]))
    assert_close(targets, torch.tensor([[0.7, 0.3], [0, 1]]))


@given(seed=seeds)
def test_mixup_against_numpy(seed: int) -> None:
    generator = random(seed)
    inputs, targets = torch.randn(5, 2, 3, 3, generator=generator), torch.rand(5, 4, generator=generator)
    permutation, coefficients = torch.randperm(5, generator=generator), torch.rand(5, generator=generator)
    mixed = mixup(inputs, targets, permutation, coefficients)
    for row, (other, share) in enumerate(zip(permutation.tolist(), coefficients.tolist(), strict=True)):
        for values, actual in zip((inputs.numpy(), targets.numpy()), mixed, strict=True):
            expected = share * values[row] + (1 - share) * values[other]
            np.testing.assert_allclose(actual[row].numpy(), expected, atol=1e-6)


@given(seed=seeds)
def test_mixup_with_coefficient_one_is_identity(seed: int) -> None:
    generator = random(seed)
    inputs, targets = 1e3 * torch.randn(5, 2, 3, generator=generator), torch.rand(5, 4, generator=generator)
    mixed_inputs, mixed_targets = mixup(inputs, targets, torch.randperm(5, generator=generator), torch.ones(5))
    assert torch.equal(mixed_inputs, inputs)
    assert torch.equal(mixed_targets, targets)


def test_one_coefficient_for_the_whole_batch() -> None:
    inputs, targets, order = torch.arange(6.0).reshape(3, 2), torch.eye(3), torch.tensor([1, 2, 0])
    common = mixup(inputs, targets, order, torch.tensor([0.6]))
    assert_close(common, mixup(inputs, targets, order, torch.full((3,), 0.6)))

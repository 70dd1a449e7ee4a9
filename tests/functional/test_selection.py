"""Known answers are of the fact sheet of the project: mixtures, DivideMix (D) and Arazo et al."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats

from lnl.functional import mixtures, selection

D1 = torch.tensor([0.05, 0.10, 0.02, 0.20, 3.0, 2.5, 4.0, 0.30, 3.5, 0.15])
D2B = torch.tensor([0, 2, 3, 5, 8, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 70, 80, 90, 100]) / 100
BETAS = torch.tensor([2, 4, 5, 6, 8, 10, 12, 15, 20, 55, 65, 70, 75, 80, 85, 90]).double() / 100


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(found: torch.Tensor, expected: list, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        found.double(), torch.tensor(expected, dtype=torch.float64), atol=tolerance, rtol=tolerance
    )


def two_kinds(count: int = 400) -> torch.Tensor:
    """Losses of right labels, then of wrong ones."""
    random = np.random.default_rng(1)
    return torch.from_numpy(np.concatenate([3 * random.beta(4, 20, count), 3 * random.beta(10, 5, count)])).float()


MIXTURES = [lambda losses: mixtures.gaussian_mixture(losses, stream()), mixtures.beta_mixture]


# ----------------------------------------------------------------------------------------------------------- normalise


def test_losses_are_normalised_by_network() -> None:  # D1
    expected = [0.007538, 0.020101, 0, 0.045226, 0.748744, 0.623116, 1, 0.070352, 0.874372, 0.032663]
    close(mixtures.normalise(D1), expected)
    close(mixtures.normalise(torch.stack([D1, 5 * D1 + 1])), [expected, expected])


def test_equal_losses_are_normalised_to_zero() -> None:
    assert torch.equal(mixtures.normalise(torch.full((2, 3), 7.0)), torch.zeros(2, 3))


# --------------------------------------------------------------------------------------------------- Gaussian mixtures


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_gaussian_mixture_splits_two_groups(seed: int) -> None:  # D2
    clean, components = mixtures.gaussian_mixture(mixtures.normalise(D1), stream(seed))
    close(components[:, 0], [0.6, 0.4])
    close(components[:, 1], [0.029313, 0.811558])
    close(components[:, 2].square(), [0.001061, 0.020228], 1e-6)
    assert (clean > 0.5).nonzero().flatten().tolist() == [0, 1, 2, 3, 7, 9]


def test_gaussian_mixture_of_overlapping_groups() -> None:  # D2b
    clean, components = mixtures.gaussian_mixture(D2B, stream())
    close(components[:, 0], [0.632358, 0.367642])
    close(components[:, 1], [0.183291, 0.695226])
    close(components[:, 2].square(), [0.024872, 0.039349])
    close(clean[[11, 12, 13, 15]], [0.718116, 0.526442, 0.318564, 0.068894])
    assert ((clean > 0.5).sum(), (clean > 0.6).sum()) == (13, 12)


SHAPES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "two groups": lambda random, n: np.where(
        random.random(n) < 0.5, random.normal(0.2, 0.1, n), random.normal(1, 0.2, n)
    ),
    "one tail": lambda random, n: random.exponential(1, n),
    "no group": lambda random, n: random.random(n),
    "two long tails": lambda random, n: random.standard_t(2, n),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_two_gaussians_are_those_of_scikit_learn(shape: str) -> None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    random = np.random.default_rng(0)
    for count in (2, 3, 5, 17, 100, 1000, 3000):
        rows = [SHAPES[shape](random, count) for _ in range(4)]
        seed = int(random.integers(2**31))
        found = mixtures.fit_gaussians(torch.from_numpy(np.stack(rows)), seed).numpy()
        for row, components in zip(rows, found, strict=True):  # each of which stops when it has converged
            model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=seed)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                model.fit(row[:, None])
            expected = np.stack([model.weights_, model.means_[:, 0], np.sqrt(model.covariances_[:, 0, 0])], -1)
            np.testing.assert_allclose(components, expected[expected[:, 1].argsort()], atol=1e-9, rtol=1e-9)


def test_probabilities_are_those_of_scikit_learn() -> None:
    from sklearn.mixture import GaussianMixture

    losses = two_kinds()
    model = GaussianMixture(2, max_iter=10, tol=1e-2, reg_covar=5e-4, random_state=0).fit(losses[:, None].numpy())
    expected = model.predict_proba(losses[:, None].numpy())[:, model.means_.argmin()]
    np.testing.assert_allclose(mixtures.gaussian_mixture(losses, stream()).clean, expected, atol=1e-5)


def test_networks_have_mixtures_of_their_own() -> None:
    losses = torch.stack([two_kinds(), two_kinds().flip(0) * 3])
    clean, components = mixtures.gaussian_mixture(losses, stream())
    assert clean.shape == losses.shape and components.shape == (2, 2, 3)
    assert ((clean[1] > 0.5) == (clean[0].flip(0) > 0.5)).all()
    torch.testing.assert_close(components[1, :, 1:], 3 * components[0, :, 1:], atol=0, rtol=0.02)


def test_gaussian_posterior() -> None:  # D3
    components = torch.tensor([[0.6, 0.1, 0.1], [0.4, 0.6, 0.2]])
    found = mixtures.gaussian_posterior(torch.tensor([0, 0.1, 0.2, 0.3, 0.5, 1]), components)
    close(found, [0.993932, 0.985566, 0.930772, 0.555671, 0.001139, 0], 1e-6)


def test_the_wider_component_wins_the_tail_unless_held() -> None:  # D4
    components = torch.tensor([[0.5, 0.2, 0.3], [0.5, 0.25, 0.05]], dtype=torch.float64)
    losses = torch.tensor([0, 0.05, 0.3, 0.6, 1], dtype=torch.float64)
    close(mixtures.gaussian_posterior(losses, components), [0.999972, 0.997724, 0.206310, 1, 1], 1e-6)
    held = mixtures.gaussian_posterior(losses, components, monotone=True)
    close(held[:2], [0.999972, 0.997724], 1e-6)
    grid = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    lowest = mixtures.gaussian_posterior(grid, components).min()
    torch.testing.assert_close(held[2:], lowest.expand(3), atol=1e-8, rtol=0)


@pytest.mark.parametrize("deviations", [(0.3, 0.05), (0.05, 0.3), (0.1, 0.1)])
def test_a_held_posterior_never_rises_and_is_the_same_between_the_means(deviations: tuple[float, float]) -> None:
    components = torch.tensor([[0.7, 0.3, deviations[0]], [0.3, 0.5, deviations[1]]], dtype=torch.float64)
    grid = torch.linspace(-2, 3, 1001, dtype=torch.float64)
    held = mixtures.gaussian_posterior(grid, components, monotone=True)
    plain = mixtures.gaussian_posterior(grid, components)
    assert (held.diff() <= 1e-12).all()
    between = (grid >= 0.3) & (grid <= 0.5)
    torch.testing.assert_close(held[between], plain[between])
    assert deviations[0] == deviations[1] or (plain.diff() > 1e-3).any()


def test_a_held_mixture_never_rises() -> None:
    random = np.random.default_rng(0)
    losses = (
        torch.from_numpy(np.concatenate([random.normal(0.3, 0.3, 500), random.normal(0.5, 0.02, 300)])).sort().values
    )
    plain = mixtures.gaussian_mixture(losses, stream()).clean
    held = mixtures.gaussian_mixture(losses, stream(), monotone=True).clean
    assert (plain.diff() > 0).any() and (held.diff() <= 0).all()


# ------------------------------------------------------------------------------------------------------- beta mixtures


def test_beta_moments() -> None:
    values = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    counts = torch.tensor([[1, 1, 1, 1], [4, 3, 2, 1]], dtype=torch.float64)
    a, b = mixtures.beta_moments(values, counts)
    close(a, [3.5, 3.0])
    close(b, [10.5, 12.0])


@pytest.mark.parametrize(
    ("iterations", "a", "b"),
    [(10, [1.630051, 10.844922], [15.542981, 3.716266]), (1, [0.333730, 1.878284], [1.358147, 0.912670])],
)
def test_betas_by_expectation_maximisation(iterations: int, a: list[float], b: list[float]) -> None:
    found = mixtures.fit_betas(BETAS, torch.ones_like(BETAS), iterations)
    close(found[1], a)
    close(found[2], b)
    if iterations == 10:
        close(found[0], [0.567093, 0.432907])
        noisy = mixtures.beta_posteriors(torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64), *found)[1]
        close(noisy, [0.000097, 0.634465, 0.999886], 1e-6)


def test_the_first_posterior_equals_the_value() -> None:
    start = [torch.tensor(pair, dtype=torch.float64) for pair in ([0.5, 0.5], [1, 2], [2, 1])]
    torch.testing.assert_close(mixtures.beta_posteriors(BETAS, *start)[1], BETAS)


def test_a_value_that_counts_nothing_is_not_there() -> None:
    counts = torch.ones(len(BETAS) + 1, dtype=torch.float64)
    counts[-1] = 0
    more = torch.cat([BETAS, torch.tensor([0.5], dtype=torch.float64)])
    for found, expected in zip(mixtures.fit_betas(more, counts), mixtures.fit_betas(BETAS, counts[:-1]), strict=True):
        torch.testing.assert_close(found, expected)


def test_beta_mixture_against_numpy() -> None:
    """The same in a few other words, one loss after the other."""
    losses = two_kinds().double().numpy()
    low, high = np.percentile(losses, [5, 95])
    scaled = np.clip((losses - low - 1e-5) / (high - low - 1e-5 + 1e-6), 1e-3, 1 - 1e-3)
    inner = scaled[(losses >= low) & (losses <= high)]
    shapes, weights = [(1, 2), (2, 1)], [0.5, 0.5]
    for _ in range(10):
        densities = np.stack([w * stats.beta.pdf(inner, *shape) for w, shape in zip(weights, shapes, strict=True)])
        shares, shapes = densities / densities.sum(0), []
        for share in shares:
            mean = np.average(inner, weights=share)
            variance = np.average((inner - mean) ** 2, weights=share)
            a = mean * (mean * (1 - mean) / variance - 1)
            shapes.append((a, a * (1 - mean) / mean))
        weights = shares.mean(1)
    grid = np.linspace(1e-12, 1 - 1e-12, 100)
    densities = np.stack([w * stats.beta.pdf(grid, *shape) for w, shape in zip(weights, shapes, strict=True)])
    table = densities[1] / densities.sum(0)
    table[table.argmax() :] = table.max()
    expected = 1 - np.clip([table[int(100 * value)] for value in scaled], 1e-4, 1 - 1e-4)
    clean, components = mixtures.beta_mixture(torch.from_numpy(losses))
    np.testing.assert_allclose(clean, expected, atol=1e-6)
    np.testing.assert_allclose(components[:, 0], weights, atol=1e-6)
    np.testing.assert_allclose(
        components[:, 1], [low + 1e-5 + (high - low) * stats.beta.mean(*shape) for shape in shapes], atol=2e-5
    )
    np.testing.assert_allclose(components[:, 2], [(high - low) * stats.beta.std(*shape) for shape in shapes], atol=2e-5)
    assert clean[:400].mean() > 0.9 and clean[400:].mean() < 0.3


def test_beta_mixture_by_network_and_limits() -> None:
    clean, components = mixtures.beta_mixture(torch.stack([two_kinds(), two_kinds().flip(0)]))
    assert components.shape == (2, 2, 3)
    torch.testing.assert_close(clean[1], clean[0].flip(0))
    torch.testing.assert_close(components[1], components[0])
    close(clean.aminmax().min, 1e-4, 1e-7)
    close(clean.aminmax().max, 1 - 1e-4, 1e-7)


def test_the_largest_losses_stay_wrong() -> None:
    """Most right labels have been learned by heart: their component has a pole at either end, the right one too."""
    random = np.random.default_rng(1)
    losses = torch.from_numpy(np.concatenate([random.gamma(1, 0.1, 400), random.normal(2, 0.4, 400)])).sort().values
    low, high = losses.quantile(torch.tensor([0.05, 0.95]).double())
    scaled = ((losses - low) / (high - low)).clamp(1e-3, 1 - 1e-3)
    inner = (losses >= low) & (losses <= high)
    noisy = mixtures.beta_posteriors(scaled, *mixtures.fit_betas(scaled, inner.double()))[1]
    assert noisy[-1] < noisy.max() - 0.3
    clean = mixtures.beta_mixture(losses).clean
    assert (clean.diff() <= 0).all()
    assert clean[-1] == pytest.approx(1 - float(noisy.max()), abs=0.01)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("mixture", MIXTURES)
def test_equal_losses_make_nobody_suspicious(mixture: Callable) -> None:
    clean, components = mixture(torch.stack([torch.full((800,), 0.3), two_kinds()]))
    assert torch.equal(clean[0], torch.ones(800))
    assert components.isfinite().all()
    assert clean[1].min() < 0.01  # the other network keeps its own


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_losses_that_are_no_numbers_are_refused(mixture: Callable, bad: float) -> None:
    with pytest.raises(FloatingPointError, match=r"^a mixture needs finite losses, but some are not$"):
        mixture(torch.tensor([0.1, 0.2, bad, 0.4]))


def test_one_outlier_among_equal_losses() -> None:
    """To the beta mixture, which leaves out the largest twentieth, they are equal."""
    losses = torch.zeros(100)
    losses[7] = 5.0
    assert torch.equal((mixtures.gaussian_mixture(losses, stream()).clean < 0.5).nonzero().flatten(), torch.tensor([7]))
    clean, components = mixtures.beta_mixture(losses)
    assert torch.equal(clean, torch.ones(100)) and components.isfinite().all()


@pytest.mark.parametrize("mean", [-16, -14, -13, -12, -11, -10, -8, -6])
@pytest.mark.parametrize("seed", [0, 6, 9])
def test_labels_known_by_heart_are_not_all_distrusted(mean: float, seed: int) -> None:
    """Losses of a network that knows nearly all labels, the logarithms normal, and 3 % outliers."""
    random = np.random.default_rng(seed)
    losses = np.exp(random.normal(mean, 1, 600))
    losses[:18] = random.uniform(3, 8, 18)
    clean = mixtures.beta_mixture(torch.from_numpy(losses).float()).clean
    assert (clean[18:] > 0.5).double().mean() > 0.6
    if mean <= -14:
        assert torch.equal(clean, torch.ones(600))


def test_losses_that_differ_by_nothing_that_counts_are_equal() -> None:
    losses = torch.linspace(0, 1, 200).double()
    assert mixtures.beta_mixture(losses).clean.min() < 0.5
    assert torch.equal(mixtures.beta_mixture(1e-5 * losses).clean, torch.ones(200))


@pytest.mark.parametrize("share", [0.9, 0.94, 0.95])
def test_equal_losses_and_a_few_others_between_the_percentiles(share: float) -> None:
    """What decides between components that are the same must not be rounding."""
    losses = torch.zeros(100)
    losses[round(100 * share) :] = 0.2
    clean = mixtures.beta_mixture(losses).clean
    assert (clean[: round(100 * share)] > 0.5).all()


def test_components_in_the_units_of_normalised_losses() -> None:
    losses = torch.stack([two_kinds(), 5 * two_kinds() + 1])
    _, components = mixtures.gaussian_mixture(losses, stream())
    _, expected = mixtures.gaussian_mixture(mixtures.normalise(losses), stream())
    found = mixtures.normalised_components(components, losses)
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)
    equal = mixtures.normalised_components(components[0], torch.full((3,), 7.0))
    assert equal.isfinite().all() and torch.equal(equal[:, 2], components[0, :, 2])


# ------------------------------------------------------------------------------------------------------------ smallest


def test_smallest() -> None:
    first, second = [0.1, 2, 0.5, 0.3, 1.5, 0.05], [1, 0.2, 0.6, 0.1, 2.5, 0.3]
    kept = selection.smallest(torch.tensor([first, second]), 0.5)
    assert [set(row.tolist()) for row in kept] == [{0, 3, 5}, {1, 3, 5}]


@pytest.mark.parametrize(("count", "rate", "kept"), [(10, 1 - 0.9, 1), (128, 1 - 0.9, 13), (10, 0.01, 1), (6, 0.8, 5)])
def test_how_many_are_kept(count: int, rate: float, kept: int) -> None:
    """Cut off, (1 - .9) · 10 would be 0 and (1 - .9) · 128 would be 12."""
    assert selection.smallest(torch.rand(3, count), rate).shape == (3, kept)

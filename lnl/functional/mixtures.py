"""Mixtures of two components fitted to the losses, or other signals, of all images.

Everything works on the last axis, the images; leading axes are networks.  Mixtures are fitted once an epoch, in
float64.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

if TYPE_CHECKING:  # imported where it is used: that takes a second
    from sklearn.mixture import GaussianMixture


# DivideMix's settings of scikit-learn's `GaussianMixture`, and those that its k-means has by itself.
GAUSSIAN_STEPS, GAUSSIAN_TOLERANCE, VARIANCE_ADDED = 10, 1e-2, 5e-4
MEANS_STEPS, MEANS_TOLERANCE = 300, 1e-4


class Mixture(NamedTuple):
    """A mixture of two components fitted to losses (..., N)."""

    clean: Tensor  # (..., N) probability of the component with the lower mean
    components: Tensor  # (..., 2, 3) weight, mean and standard deviation in units of the losses; the lower mean first


def normalise(losses: Tensor) -> Tensor:
    """(l - min) / (max - min), as DivideMix does per network and epoch; 0 where all are equal.  (..., N)."""
    lowest, highest = losses.aminmax(dim=-1, keepdim=True)
    return (losses - lowest) / torch.where(highest > lowest, highest - lowest, 1.0)


def normalised_components(components: Tensor, losses: Tensor) -> Tensor:
    """Components (..., 2, 3) of a mixture of losses (..., N) in the units of `normalise(losses)`."""
    weight, mean, deviation = components.unbind(-1)
    lowest, highest = losses.aminmax(dim=-1, keepdim=True)
    width = torch.where(highest > lowest, highest - lowest, 1.0)
    return torch.stack([weight, (mean - lowest) / width, deviation / width], -1)


def gaussian_mixture(losses: Tensor, generator: Generator, monotone: bool = False) -> Mixture:
    """Two Gaussians with DivideMix's settings, seeded from `generator`.  Losses (..., N), N >= 2.

    `monotone`: see `gaussian_posterior`.  Equal losses make no label suspicious: all are clean with probability 1.
    Raises ValueError for losses that are not finite.
    """
    values = _finite(losses)
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    fitted = fit_gaussians(values, seed)
    return _clean_where_equal(values, gaussian_posterior(values, fitted, monotone), fitted)


def fit_gaussians(values: Tensor, seed: int) -> Tensor:
    """Expectation maximisation from the two means of `two_means`, as scikit-learn's `GaussianMixture` does it.

    Values (..., N) float64 -> weight, mean and standard deviation of two Gaussians (..., 2, 3), the lower mean first.
    All rows are fitted at once, on their device: scikit-learn has one row at a time, on the CPU, and takes two seconds
    to be imported.  Rows that have converged stay as they are.
    """
    likely = torch.nn.functional.one_hot(two_means(values, seed).long(), 2).mT.double()  # (..., 2, N)
    components = _maximised(values, likely)
    bound = values.new_full(values.shape[:-1], -math.inf)
    going = torch.ones_like(bound, dtype=torch.bool)
    for _ in range(GAUSSIAN_STEPS):
        weight, mean, deviation = components.unsqueeze(-1).unbind(-2)
        distances = (values.unsqueeze(-2) - mean) / deviation
        log_joint = weight.log() - deviation.log() - distances.square() / 2 - math.log(2 * math.pi) / 2
        log_density = log_joint.logsumexp(-2)
        moved = _maximised(values, (log_joint - log_density.unsqueeze(-2)).exp())
        components = torch.where(going[..., None, None], moved, components)
        rose = log_density.mean(-1)
        going &= ~((rose - bound).abs() < GAUSSIAN_TOLERANCE)
        bound = rose
        if not going.any():
            break
    order = components[..., 1].argsort(dim=-1, stable=True)
    return components.gather(-2, order.unsqueeze(-1).expand_as(components))


def _maximised(values: Tensor, likely: Tensor) -> Tensor:
    """Weights, means and deviations (..., 2, 3) of values (..., N) that belong to two Gaussians by (..., 2, N)."""
    counts = likely.sum(-1) + 10 * torch.finfo(torch.float64).eps
    mean = (likely * values.unsqueeze(-2)).sum(-1) / counts
    variance = (likely * (values.unsqueeze(-2) - mean.unsqueeze(-1)).square()).sum(-1) / counts + VARIANCE_ADDED
    return torch.stack([counts / counts.sum(-1, keepdim=True), mean, variance.sqrt()], -1)


def two_means(values: Tensor, seed: int) -> Tensor:
    """Which of two clusters each value is in, by k-means from scikit-learn's start, k-means++ seeded with `seed`.

    (..., N) float64 -> (..., N) bool.
    """
    random, images = np.random.RandomState(seed), values.shape[-1]
    first = int(random.choice(images, p=np.full(images, 1 / images)))
    centred = values - values.mean(-1, keepdim=True)
    start = centred[..., first, None]
    squares = (centred - start).square()
    totals = squares.cumsum(-1)
    asked = torch.tensor(random.uniform(size=2), dtype=values.dtype, device=values.device) * totals[..., -1:]
    tried = centred.gather(-1, torch.searchsorted(totals, asked).clamp(max=images - 1))  # (..., 2)
    costs = squares.unsqueeze(-2).minimum((centred.unsqueeze(-2) - tried.unsqueeze(-1)).square()).sum(-1)
    means = torch.cat([start, tried.gather(-1, costs.argmin(-1, keepdim=True))], -1)
    tolerance = MEANS_TOLERANCE * values.var(-1, correction=0)
    second, before = _nearer_to_second(centred, means), torch.zeros_like(values, dtype=torch.bool)
    going = torch.ones_like(tolerance, dtype=torch.bool)
    for step in range(MEANS_STEPS):
        share = torch.stack([~second, second], -2).double()
        moved = (share * centred.unsqueeze(-2)).sum(-1) / share.sum(-1).clamp(min=1)
        shift = (moved - means).square().sum(-1)
        means = torch.where(going.unsqueeze(-1), moved, means)
        is_same = (second == before).all(-1) & (step > 0)
        going &= ~(is_same | (shift <= tolerance))
        before, second = second, _nearer_to_second(centred, means)
        if not going.any():
            break
    return second


def _nearer_to_second(values: Tensor, means: Tensor) -> Tensor:
    return (values - means[..., 1:]).abs() < (values - means[..., :1]).abs()


def gaussian_posterior(losses: Tensor, components: Tensor, monotone: bool = False) -> Tensor:
    """Probability of the first of two Gaussians.  Losses (..., N), components (..., 2, 3) -> (..., N).

    The wider Gaussian wins both tails: the largest losses are clean to a wide first component, the smallest wrong to a
    wide second one.  `monotone` holds the probability from its turning point on, so that it never rises with the loss.
    """
    weight, mean, deviation = components.unsqueeze(-1).unbind(-2)  # (..., 2, 1) each
    if monotone:  # the log odds are a parabola in the loss with its extremum beyond both means
        precision = deviation.square().reciprocal()
        first, second = precision.unbind(-2)
        extremum = (precision * mean * precision.new_tensor([[1.0], [-1.0]])).sum(-2) / (first - second)
        losses = torch.where(first < second, losses.minimum(extremum), losses)
        losses = torch.where(first > second, losses.maximum(extremum), losses)
    distances = (losses.unsqueeze(-2) - mean) / deviation
    return torch.softmax(weight.log() - deviation.log() - distances.square() / 2, -2).select(-2, 0)


def beta_mixture(losses: Tensor) -> Mixture:
    """Two beta distributions, Arazo et al. 2019, sec. 3.1, with the code's guards.  Losses (..., N).

    Fitted to the losses between the 5th and the 95th percentile, mapped to [0, 1] by these and kept within [0.001,
    0.999] (the code sets those outside (0, 1) to these ends and leaves the others).  The posterior of the
    noisy component is read from a table of 100 bins that is held after its maximum, so that the largest losses cannot
    become clean again; it is kept within [1e-4, 1 - 1e-4].  Where the components' means are within 1e-5, all are clean
    with probability 1.  The losses are cross-entropies as they are: all guards are in their units.  Raises ValueError
    for losses that are not finite.
    """
    values = _finite(losses)
    edges = torch.tensor([0.05, 0.95], dtype=values.dtype, device=values.device)
    lowest, highest = values.quantile(edges, -1, keepdim=True)
    kept = (values >= lowest) & (values <= highest)
    start, width = lowest + 1e-5, (highest - lowest - 1e-5 + 1e-6).clamp(min=1e-6)
    scaled = ((values - start) / width).clamp(1e-3, 1 - 1e-3)
    weight, a, b = fit_betas(scaled, kept.double())
    mean = a / (a + b)
    deviation = (mean * (1 - mean) / (a + b + 1)).sqrt()
    order = mean.argsort(dim=-1, stable=True)
    weight, mean, deviation, a, b = (part.gather(-1, order) for part in (weight, mean, deviation, a, b))
    grid = torch.linspace(1e-12, 1 - 1e-12, 100, dtype=values.dtype, device=values.device)
    table = beta_posteriors(grid.expand(*values.shape[:-1], 100), weight, a, b).select(-2, 1)
    peak, peak_index = table.max(-1, keepdim=True)
    table = torch.where(torch.arange(100, device=values.device) >= peak_index, peak, table)
    noisy = table.gather(-1, (scaled * 100).long()).clamp(1e-4, 1 - 1e-4)
    components = torch.stack([weight, start + width * mean, width * deviation], -1)
    apart = width * mean.diff(dim=-1) > 1e-5
    return Mixture(torch.where(apart, 1 - noisy, 1.0).float(), components.float())


def fit_betas(values: Tensor, counts: Tensor, iterations: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Expectation maximisation from (a, b) = (1, 2) and (2, 1), half each, by weighted moments.

    Values in (0, 1) and how often each counts, (..., N) -> weights, a and b (..., 2).
    """
    weight, a, b = (values.new_tensor(start).expand(*values.shape[:-1], 2) for start in ([0.5, 0.5], [1, 2], [2, 1]))
    for _ in range(iterations):
        responsible = beta_posteriors(values, weight, a, b) * counts.unsqueeze(-2)  # (..., 2, N)
        a, b = beta_moments(values.unsqueeze(-2), responsible)
        weight = responsible.sum(-1) / counts.sum(-1, keepdim=True)
    return weight, a, b


def beta_posteriors(values: Tensor, weight: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Probability of each beta component.  Values (..., N), parameters (..., C) -> (..., C, N)."""
    weight, a, b, values = weight.unsqueeze(-1), a.unsqueeze(-1), b.unsqueeze(-1), values.unsqueeze(-2)
    constant = weight.log() + (a + b).lgamma() - a.lgamma() - b.lgamma()
    return torch.softmax(constant + (a - 1) * values.log() + (b - 1) * (-values).log1p(), -2)


def beta_moments(values: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """a = m (m (1 - m) / s² - 1) and b = a (1 - m) / m by weighted mean m and variance s².  (..., N) -> (...) twice."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1e-12)
    mean = (share * values).sum(-1).clamp(1e-6, 1 - 1e-6)
    variance = (share * (values - mean.unsqueeze(-1)).square()).sum(-1).clamp(min=1e-8)
    a = (mean * (mean * (1 - mean) / variance - 1)).clamp(min=1e-3)  # a component without members stays a beta
    return a, a * (1 - mean) / mean


def _two_gaussians(rows: Tensor, seed: int) -> GaussianMixture:
    """A mixture of two Gaussians fitted to N points of S signals, (N, S), with the settings of DivideMix's code."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    model = GaussianMixture(
        2, max_iter=GAUSSIAN_STEPS, tol=GAUSSIAN_TOLERANCE, reg_covar=VARIANCE_ADDED, random_state=seed
    )
    with warnings.catch_warnings():  # ten iterations are DivideMix's own choice; equal losses are dealt with apart
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(rows.numpy())


def _finite(losses: Tensor) -> Tensor:
    """The losses in float64, without gradient.  Raises FloatingPointError where they are not finite."""
    values = losses.detach().double()
    if not values.isfinite().all():
        raise FloatingPointError("a mixture needs finite losses, but some are not")
    return values


def _clean_where_equal(losses: Tensor, clean: Tensor, components: Tensor) -> Mixture:
    """The mixture, with all images of a network clean where all its losses are equal."""
    lowest, highest = losses.aminmax(dim=-1, keepdim=True)
    return Mixture(torch.where(highest > lowest, clean, 1.0).float(), components.float())


def mixture_by_class(losses: Tensor, labels: Tensor, classes: int, generator: Generator, least: int = 20) -> Tensor:
    """Clean probability by a `gaussian_mixture` of each label's normalised losses, (..., N) and (N,) -> (..., N).

    Labels with fewer than `least` images, too few for five parameters, take the mixture of all images.
    """
    clean = gaussian_mixture(losses, generator, monotone=True).clean
    for k in range(classes):
        members = labels == k
        if members.sum() >= least:
            clean[..., members] = gaussian_mixture(normalise(losses[..., members]), generator, monotone=True).clean
    return clean


def joint_mixture(signals: Tensor, generator: Generator) -> Mixture:
    """Two Gaussians of S signals at once, full covariance, clean where their means add up to less.

    Settings as in `gaussian_mixture`.  (..., S, N) -> probabilities (..., N), components of the first signal alone.
    """
    values = _finite(signals)
    batch, (count, images) = values.shape[:-2], values.shape[-2:]
    seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
    clean, components = torch.empty(*batch, images), torch.empty(*batch, 2, 3)
    for row, probabilities, fitted in zip(
        values.cpu().reshape(-1, count, images), clean.view(-1, images), components.view(-1, 2, 3), strict=True
    ):
        model = _two_gaussians(row.mT, seed)
        means = torch.from_numpy(model.means_)
        order = means.sum(-1).argsort()
        probabilities.copy_(torch.from_numpy(model.predict_proba(row.mT.numpy()))[:, order[0]])
        deviations = torch.from_numpy(model.covariances_)[:, 0, 0].sqrt()
        fitted.copy_(torch.stack([torch.from_numpy(model.weights_), means[:, 0], deviations], -1)[order])
    lowest, highest = values.aminmax(dim=-1)
    differs = (highest > lowest).any(-1, keepdim=True)
    return Mixture(torch.where(differs, clean.to(signals.device), 1.0), components.to(signals.device))


def separation(components: Tensor) -> Tensor:
    """Ashman's D, the distance of two means in root-mean-square deviations: above 2 there are two modes.

    Components (..., 2, 3) as in `Mixture` -> (...).
    """
    mean, deviation = components[..., 1], components[..., 2]
    return (mean[..., 1] - mean[..., 0]).abs() / deviation.square().mean(-1).sqrt()


def reachable(threshold: float, clean: Tensor) -> Tensor:
    """The threshold within 1e-5 of the range of (..., N), so that neither part is empty (C2D) -> (..., 1).

    Where all probabilities are equal it lies below them.
    """
    lowest, highest = clean.aminmax(dim=-1, keepdim=True)
    return torch.full_like(lowest, threshold).maximum(lowest + 1e-5).minimum(highest - 1e-5)

"""From predictions and labels to targets: sharpening, one-hot, mixup, and DivideMix's co-refinement and co-guessing."""

from __future__ import annotations

import torch
from torch import Generator, Tensor
from torch.nn import functional


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """p_k^(1/T) / Σ_j p_j^(1/T), MixMatch eq. 7: T = 1 changes nothing, T near 0 is one-hot.  (..., K) -> (..., K)."""
    return torch.softmax(probabilities.log() / temperature, -1)  # in logarithms: powers would underflow at a small T


def one_hot(labels: Tensor, classes: int) -> Tensor:
    """Labels (...) from 0 to K - 1 -> float32 (..., K)."""
    return functional.one_hot(labels, classes).float()


def pseudo_labels(probabilities: Tensor, threshold: float, temperature: float = 0.0) -> tuple[Tensor, Tensor]:
    """Guesses as targets, and 1 for those that reach the threshold, else 0 (FixMatch, Sohn et al. 2020, eq. 4).

    Temperature 0: one-hot; else sharpened.  Probabilities (..., K) -> targets (..., K), weights (...), both float32.
    """
    best, labels = probabilities.max(-1)
    sharp = sharpen(probabilities, temperature) if temperature else one_hot(labels, probabilities.shape[-1])
    return sharp, (best >= threshold).float()


def mixup_coefficients(alpha: float, count: int, generator: Generator) -> Tensor:
    """max(l, 1 - l) with l from Beta(alpha, alpha), alpha > 0, MixMatch eq. 8-9: (count,) float32 in [0.5, 1].

    Drawn as a ratio of gamma variates, on the generator's device.  These are kept as logarithms, by
    Gamma(alpha) = Gamma(alpha + 1) U^(1/alpha): for a small alpha both would underflow to zero, and l would be 0/0.
    """
    shape = torch.full((2, count), alpha + 1.0, dtype=torch.float64, device=generator.device)
    uniform = torch.rand(2, count, dtype=torch.float64, device=generator.device, generator=generator)
    first, second = torch._standard_gamma(shape, generator).log() + uniform.log() / alpha
    return torch.sigmoid((first - second).abs()).float()


def mixup(inputs: Tensor, targets: Tensor, permutation: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """l x_i + (1 - l) x_j for inputs and targets, where j = permutation[i], MixMatch eq. 10-11.

    Inputs (B, ...), targets (B, K), permutation (B,), coefficients (B,), or (1,) for one common l -> the mixed two.
    """

    def mix(values: Tensor) -> Tensor:
        weights = coefficients.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))
        return torch.lerp(values[permutation], values, weights)  # exact at l = 1

    return mix(inputs), mix(targets)


def co_refine(given: Tensor, clean: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """DivideMix's co-refinement: the given label as far as it is clean, else the prediction, sharpened (eqs. 3 and 4).

    One-hot labels (B, K), probabilities (B,), the own network's predictions of each view (M, B, K) -> (B, K).
    """
    return sharpen(torch.lerp(predictions.mean(0), given, clean.unsqueeze(-1)), temperature)


def co_guess(predictions: Tensor, temperature: float) -> Tensor:
    """DivideMix's co-guessing: the mean over networks and views, sharpened.  Predictions (2M, B, K) -> (B, K)."""
    return sharpen(predictions.mean(0), temperature)

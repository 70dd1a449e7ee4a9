"""Views of vectors: standardised by feature, then with Gaussian noise, then with features set to their mean (dropout).

They stand where images have augmentations (`lnl.functional.augment`), but show no new side of a thing: they only say
that a class does not hang on a single feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor


@dataclass(frozen=True, eq=False)
class Perturbation:
    """`perturbation(vectors, generator)`: (B, D) float32 -> (B, D) float32, standardised and perturbed per vector.

    `mean` and `std` (D,) live on the device of the vectors and of the generator.  Without dropout and noise nothing is
    drawn.  The same state of the generator gives the same output.
    """

    mean: Tensor
    std: Tensor
    dropout: float = 0.0  # share of the features that become 0, their mean; the others grow by 1 / (1 - dropout)
    noise: float = 0.0  # standard deviation of what is added to each standardised feature

    def __call__(self, vectors: Tensor, generator: Generator) -> Tensor:
        if vectors.ndim != 2 or vectors.shape[1:] != self.mean.shape:
            raise ValueError(
                f"this view was made for vectors (batch, {len(self.mean)}), not {tuple(vectors.shape)}: make one for "
                "these."
            )
        standardised = (vectors - self.mean) / self.std
        if self.noise:
            normal = torch.randn(vectors.shape, generator=generator, device=vectors.device)
            standardised += self.noise * normal
        if self.dropout:
            kept = torch.rand(vectors.shape, generator=generator, device=vectors.device) >= self.dropout
            standardised *= kept / (1 - self.dropout)
        return standardised

"""Gradients between a head and its backbone, and between two losses.

`scale`, `clip` and `noise` stand at a boundary: they return the features unchanged and change the gradient that passes
back through them.  The others work on lists with one gradient per parameter, where None means that the loss does not
reach the parameter.  It counts as zero, but stays None where both are: optimizers skip None and decay weights on zero.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.linalg import vector_norm
from torch.nn.utils import get_total_norm

Gradients = Sequence[Tensor | None]


class _Boundary(torch.autograd.Function):
    @staticmethod
    def forward(features: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
        return features.view_as(features)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # apart, as torch.func requires
        ctx.change = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.change(gradient), None


def scale(features: Tensor, coefficient: float) -> Tensor:
    """Multiply the gradient g by a coefficient; -1 reverses it (Ganin & Lempitsky 2015), 0 stops it."""
    return _Boundary.apply(features, lambda g: coefficient * g)


def clip(features: Tensor, max_norm: float) -> Tensor:
    """Rescale the gradient g of the whole batch to the norm max_norm (> 0) where it is longer."""
    return _Boundary.apply(features, lambda g: g * (max_norm / vector_norm(g).clamp_min(max_norm)))


def noise(features: Tensor, relative_std: float, generator: Generator) -> Tensor:
    """Add to the gradient g Gaussian noise of about relative_std times its norm: per element N(0, s |g| / √d).

    |g| and the number of elements d are those of the whole batch; the generator is on the features' device.
    """

    def change(g: Tensor) -> Tensor:
        normal = torch.randn(g.shape, generator=generator, dtype=g.dtype, device=g.device)
        return g + normal * (relative_std * vector_norm(g) / g.numel() ** 0.5)

    return _Boundary.apply(features, change)


def add(first: Gradients, second: Gradients) -> list[Tensor | None]:
    """Sum, parameter by parameter."""
    return [h if g is None else g if h is None else g + h for g, h in zip(first, second, strict=True)]


def norm(gradients: Gradients) -> Tensor:
    """Euclidean norm of all gradients as one vector -> (); 0, on the CPU, if all are None."""
    return get_total_norm([gradient for gradient in gradients if gradient is not None])


def cosine(first: Gradients, second: Gradients) -> Tensor:
    """Cosine of the angle between two gradients as vectors -> (); NaN if one of them is zero."""
    return _dot(first, second) / (norm(first) * norm(second))


def pcgrad(first: Gradients, second: Gradients, symmetric: bool) -> list[Tensor | None]:
    """Sum of two gradients g and h, freed from what conflicts between them (Yu et al. 2020, algorithm 1).

    If g·h < 0, g loses its projection on h, g - (g·h / |h|²) h, and, if symmetric, h its projection on the original g.
    """
    product = _dot(first, second)

    def lengthened(gradients: Gradients) -> list[Tensor | None]:  # by what the other's projection adds to the sum
        share = torch.where(product < 0, product / norm(gradients).square(), 0.0)  # 0, not 0/0, for a zero gradient
        return [None if gradient is None else (1 - share) * gradient for gradient in gradients]

    return add(lengthened(first) if symmetric else first, lengthened(second))


def _dot(first: Gradients, second: Gradients) -> Tensor:
    products = [(a * b).sum() for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    return torch.stack(products).sum() if products else torch.zeros(())


def gradnorm_objective(weights: Tensor, gradient_norms: Tensor, loss_ratios: Tensor, alpha: float) -> Tensor:
    """Σ_i |G_i - mean(G) r_i^alpha|, G_i = w_i |g_i|, r_i = ratio_i / mean(ratio) (Chen et al. 2018, eq. 2) -> ().

    Weights w, norms |g| of the unweighted gradients on the shared layer and ratios L_i / L_i(0) are all (tasks,).
    The target mean(G) r^alpha counts as a constant.
    """
    norms = weights * gradient_norms
    targets = norms.mean() * (loss_ratios / loss_ratios.mean()) ** alpha
    return (norms - targets.detach()).abs().sum()


class GradNorm:
    """Weights of losses, learned so that their gradients stay balanced (Chen et al. 2018); their sum is `tasks`.

    `alpha` is the pull towards the task that lags behind; 0 only equalises the norms.
    """

    def __init__(
        self, alpha: float, tasks: int = 2, learning_rate: float = 0.025, device: torch.device | str = "cpu"
    ) -> None:
        self.alpha = alpha
        self.learning_rate = learning_rate
        self.weights = torch.ones(tasks, device=device)
        self.initial_losses = torch.full((tasks,), torch.nan, device=device)  # NaN: not seen yet

    def update(self, losses: Tensor, gradient_norms: Tensor) -> Tensor:
        """One SGD step on the objective: losses and norms of the unweighted gradients (tasks,) -> weights (tasks,).

        The step is taken on log w, which keeps weights positive, and norms are relative to their mean, which makes it
        independent of the scale of the losses.  At w = 1 it is the paper's step up to that scale.
        """
        losses, gradient_norms = losses.detach().float(), gradient_norms.detach().float()
        self.initial_losses = torch.where(self.initial_losses.isnan(), losses, self.initial_losses)
        relative_norms = gradient_norms / gradient_norms.mean().clamp_min(torch.finfo(torch.float32).tiny)
        with torch.enable_grad():
            logarithms = self.weights.log().requires_grad_()
            objective = gradnorm_objective(logarithms.exp(), relative_norms, losses / self.initial_losses, self.alpha)
            (gradient,) = torch.autograd.grad(objective, logarithms)
        step = logarithms.detach() - self.learning_rate * gradient
        self.weights = len(step) * torch.softmax(step, -1)  # the paper's renormalisation
        return self.weights

    def state_dict(self) -> dict[str, Tensor]:
        return {"weights": self.weights, "initial_losses": self.initial_losses}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.weights = state["weights"].to(self.weights.device)
        self.initial_losses = state["initial_losses"].to(self.weights.device)

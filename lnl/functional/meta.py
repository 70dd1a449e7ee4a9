"""Meta-learning with a trusted probe set: the gradient through a virtual step, and the weights and labels it asks for.

Ren et al. 2018 (L2R, arXiv:1803.09050) and Zhang et al. 2020 (IEG, arXiv:1910.00701).  Data coefficients c (weights of
examples, shares of their given labels) enter one virtual step of SGD, θ̂(c) = θ - α (∇_θ L(z(θ), c) + …), and the
probe's loss L_p(θ̂(c)) is differentiated by c.  A second-order graph is not needed: with v = ∇L_p(θ̂) and dz, the
derivative of the logits z(θ + t v) by t at 0,

    dL_p/dc = -α ∂/∂c <∂L(z, c)/∂z, dz>,

so that for cross-entropies of z with weights w_i and targets q_i = λ_i y_i + (1 - λ_i) g_i, where p_i = softmax(z_i),
dL_p/dw_i = -α (p_i - q_i)·dz_i and dL_p/dλ_i = -α w_i (g_i - y_i)·dz_i.  This holds with BatchNorm's batch statistics,
because z_i is the i-th row of the whole batch's pass.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

Classifier = Callable[[Tensor], Tensor]  # images (B, C, H, W) -> logits (B, K), by whatever weights

# exact: through the virtual step's own graph (the oracle).  jvp: the identity above, the same to rounding.
# finite_difference: the identity, dz by one more pass at θ + ε v (an error of the order of ε; works on every network).
MetaGradient = Literal["exact", "jvp", "finite_difference"]

DISTANCE = 1e-3  # |ε v| of the finite difference: below it rounding, above it curvature is felt


def gradients(
    logits: Callable[[Sequence[Tensor]], Tensor],
    loss: Callable[..., Tensor],
    coefficients: Sequence[Tensor],
    probe: Callable[[Sequence[Tensor]], Tensor],
    weights: Sequence[Tensor],
    *,
    rate: float | None,
    drift: Sequence[Tensor] | None = None,
    mode: MetaGradient = "jvp",
) -> list[Tensor]:
    """d probe(θ̂(c)) / dc for θ̂(c) = θ - rate · (∇_θ loss(logits(θ), c) + drift): one tensor per coefficient tensor.

    `logits`: weights -> (B, K).  `loss`: (logits, *coefficients) -> scalar.  `probe`: weights -> scalar.  `drift`: what
    else moves the virtual step (momentum, weight decay), like the weights.  `rate` None: no step, θ̂ = θ, which is exact
    where the loss has no gradient (L2R: weights of 0); any rate would scale the result alone and is taken as 1.
    """
    with torch.enable_grad():
        coefficients = [tensor.detach().requires_grad_() for tensor in coefficients]
        weights = [tensor.detach().requires_grad_() for tensor in weights]
        if mode == "exact":
            value = loss(logits(weights), *coefficients)
            steps = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
            if rate is None:
                ahead = _ahead(weights, [step - step.detach() for step in steps], None, 1.0)
            else:
                ahead = _ahead(weights, steps, drift, rate)
            return list(torch.autograd.grad(probe(ahead), coefficients))
        outputs, ahead = None, weights
        if rate is not None:
            outputs = logits(weights)
            steps = torch.autograd.grad(loss(outputs, *coefficients), weights, materialize_grads=True)
            ahead = [tensor.detach().requires_grad_() for tensor in _ahead(weights, steps, drift, rate)]
        direction = torch.autograd.grad(probe(ahead), ahead, materialize_grads=True)
        push = _dual if mode == "jvp" else _difference
        outputs, tangent = push(logits, weights, direction, outputs)
        outputs = outputs.detach().requires_grad_()
        (slope,) = torch.autograd.grad(loss(outputs, *coefficients), outputs, create_graph=True)
        change = -(1.0 if rate is None else rate) * (slope * tangent).sum()
        return list(torch.autograd.grad(change, coefficients))


def _ahead(
    weights: Sequence[Tensor], steps: Sequence[Tensor], drift: Sequence[Tensor] | None, rate: float
) -> list[Tensor]:
    """The weights after a step of SGD: θ - rate · (step + drift), tensor by tensor."""
    start = list(weights) if drift is None else [w - rate * d for w, d in zip(weights, drift, strict=True)]
    return [w - rate * step for w, step in zip(start, steps, strict=True)]


def _dual(
    logits: Callable[[Sequence[Tensor]], Tensor],
    weights: Sequence[Tensor],
    direction: Sequence[Tensor],
    outputs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Logits and their derivative along `direction`, by forward-mode differentiation."""
    with torch.no_grad(), forward_ad.dual_level():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit.script`", FutureWarning)  # torch's own, at its first dual
            pairs = [forward_ad.make_dual(w, v) for w, v in zip(weights, direction, strict=True)]
        result = forward_ad.unpack_dual(logits(pairs))
    return result.primal, result.tangent


@torch.no_grad()
def _difference(
    logits: Callable[[Sequence[Tensor]], Tensor],
    weights: Sequence[Tensor],
    direction: Sequence[Tensor],
    outputs: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """As `_dual`, by a one-sided difference; reuses `outputs`, the logits at `weights`, where they are given."""
    outputs = logits(weights) if outputs is None else outputs
    length = torch.stack([v.norm() for v in direction]).norm()
    step = DISTANCE / length.clamp(min=torch.finfo(length.dtype).tiny ** 0.5)
    moved = [w + step * v for w, v in zip(weights, direction, strict=True)]
    return outputs, (logits(moved) - outputs) / step * (length > 0)  # else rounding would pass for a direction


def sample_weights(gradient: Tensor, normaliser: float = 0.0) -> Tensor:
    """max(-dL_p/dw, 0), divided by its sum (L2R eqs. 8 and 9): (..., B) -> (..., B).

    All zero stays all zero.  `normaliser` is added to the sum: 1e-5 in IEG's code, where the weights sum to less than 1
    once the probe's gradient has become small.
    """
    useful = (-gradient).clamp(min=0)
    total = useful.sum(-1, keepdim=True)
    return useful / (total + normaliser + (total == 0))


def label_coefficients(gradient: Tensor) -> Tensor:
    """[sign(-dL_p/dλ)]_+ of IEG: 1 where the probe asks for more of the given label, else 0.  (..., B) -> (..., B)."""
    return (gradient < 0).to(gradient.dtype)

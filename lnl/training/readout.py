"""Readout of frozen features: class probabilities fitted to the given labels, right or wrong.

By multinomial logistic regression (`linear_probe`) or by votes of nearest neighbours (`lnl.functional.graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, linear

from lnl.functional import graph
from lnl.settings import Settings
from lnl.training.learner import Learner
from lnl.training.optimizers import eager
from lnl.training.task import Task


class ReadoutSettings(Settings):
    """Fields of every method that learns features without labels."""

    evaluation: Literal["linear", "neighbours"] = "linear"
    """logistic regression | votes of nearest neighbours"""
    neighbours: Annotated[int, Field(ge=1)] = 20
    """k, neighbours only; at most the number of labelled images is used"""
    neighbour_temperature: Annotated[float, Field(gt=0)] = 0.07
    """of the votes exp(cosine / temperature)"""


class Readout:
    """Predicts classes from a learner's backbone; fitted to the labelled images at the first call after `forget`."""

    def __init__(self, settings: ReadoutSettings, task: Task, learner: Learner) -> None:
        self.settings, self.task, self.learner = settings, task, learner
        self.fitted: Callable[[Tensor], Tensor] | None = None

    def forget(self) -> None:
        """Fit again at the next call, because the backbone's weights have changed."""
        self.fitted = None

    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities: (B, C, H, W) -> (B, K)."""
        if self.fitted is None:
            self.fitted = self._fit()
        return self.fitted(self.learner.features(images))

    def _fit(self) -> Callable[[Tensor], Tensor]:
        task, settings = self.task, self.settings
        bank, labels = task.over(task.labelled, self.learner.features), task.labels[task.labelled]
        if settings.evaluation == "linear":
            return linear_probe(bank, labels, task.classes)
        k, temperature = min(settings.neighbours, len(labels)), settings.neighbour_temperature
        return lambda queries: graph.neighbour_votes(bank, labels, queries, k, temperature, task.classes)


def linear_probe(features: Tensor, labels: Tensor, classes: int) -> Callable[[Tensor], Tensor]:
    """Multinomial logistic regression on frozen features: a function features -> class probabilities (…, K).

    The problem of scikit-learn's LogisticRegression with C = 1, on standardised features, solved on their own device:
    the sum of the cross-entropies and half the squared length of the weights, with free intercepts.  A class without an
    example gets 0.  Raises ValueError for fewer than two classes, FloatingPointError for features that are not finite.
    """
    present, given = labels.to(features.device).unique(return_inverse=True)
    if len(present) < 2:
        raise ValueError("A linear probe needs labelled images of at least two classes.")
    if not features.isfinite().all():
        raise FloatingPointError("a linear probe needs finite features, but some are not")
    bank = features.detach().double()
    mean, deviation = bank.mean(0), bank.std(0, correction=0)
    deviation[bank.amin(0) == bank.amax(0)] = 1.0  # a constant feature stays unscaled, so that no weight reaches it
    bank = (bank - mean) / deviation
    weights, intercepts = bank.new_zeros(len(present), bank.shape[1]), bank.new_zeros(len(present))
    optimizer = eager(torch.optim.LBFGS)(
        [weights.requires_grad_(), intercepts.requires_grad_()],
        max_iter=1000,
        tolerance_grad=1e-6,  # of the mean over images: on digits probabilities are within 1e-3
        tolerance_change=1e-12,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    # Of two classes scikit-learn penalises w₁ - w₀ = w alone: |w|² / 2 = |w₀|² + |w₁|² where w₁ = -w₀.
    strength = 1.0 if len(present) == 2 else 0.5

    @torch.enable_grad()
    def objective() -> Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(linear(bank, weights, intercepts), given) + strength / len(bank) * weights.square().sum()
        loss.backward()
        return loss

    optimizer.step(objective)

    @torch.no_grad()
    def probabilities(queries: Tensor) -> Tensor:
        of_present = linear((queries.double() - mean) / deviation, weights, intercepts).softmax(-1)
        result = torch.zeros(len(queries), classes, device=features.device)
        result[:, present] = of_present.float()
        return result

    return probabilities

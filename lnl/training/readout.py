"""Readout of frozen features: class probabilities fitted to the given labels, right or wrong.

By multinomial logistic regression (`linear_probe`) or by votes of nearest neighbours (`lnl.functional.graph`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import graph
from lnl.settings import Settings
from lnl.training.learner import Learner
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

    By scikit-learn's LogisticRegression with C = 1, on standardised features and on the CPU, where its solver needs a
    fraction of the time that one on an accelerator takes.  A class without an example gets 0.  Raises ValueError for
    fewer than two classes, FloatingPointError for features that are not finite.
    """
    from sklearn.linear_model import LogisticRegression  # plans need no scikit-learn, which takes a second
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    bank, given = features.detach().double().cpu().numpy(), labels.cpu().numpy()
    if len(present := np.unique(given)) < 2:
        raise ValueError("A linear probe needs labelled images of at least two classes.")
    if not np.isfinite(bank).all():
        raise FloatingPointError("a linear probe needs finite features, but some are not")
    regression = LogisticRegression(tol=1e-7, max_iter=1000)  # probabilities within 1e-3 on digits
    fitted = make_pipeline(StandardScaler(), regression).fit(bank, given)

    def probabilities(queries: Tensor) -> Tensor:
        of_present = fitted.predict_proba(queries.detach().double().cpu().numpy())
        result = torch.zeros(len(queries), classes, device=queries.device)
        result[:, present] = torch.from_numpy(of_present).to(result)
        return result

    return probabilities

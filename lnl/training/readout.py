"""What frozen features are worth: class probabilities fitted to the given labels, right or wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from lnl.functional import graph
from lnl.settings import Settings
from lnl.training.learner import Learner, linear_probe
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
    """Reads classes from a learner's backbone; fitted to the labelled images when first asked after `forget`."""

    def __init__(self, settings: ReadoutSettings, task: Task, learner: Learner) -> None:
        self.settings, self.task, self.learner = settings, task, learner
        self.fitted: Callable[[Tensor], Tensor] | None = None

    def forget(self) -> None:
        """The weights have changed."""
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

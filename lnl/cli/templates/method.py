"""my_method: part of each given label is shared out among all classes (label smoothing), in case it is wrong.

The first sentence stands in `lnl methods my_method.py`; say here what differs from a paper or from its official code.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Task

USES = ("labels",)  # what it learns from: labels, unlabelled, probe, two networks


class Config(Settings):
    """Its parameters: each has a default and, below it, its meaning; each must change training."""

    batch_size: Annotated[int, Field(ge=2)] = 64
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.1
    """share of each label that all classes divide"""
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.03, weight_decay=5e-4, schedule="cosine")


SEARCH: dict[str, Space] = {"method.smoothing": Uniform(0.0, 0.9)}  # what `lnl search` may try


class Method:
    """How it trains, and what it predicts: `train_epoch`, `predict` and `features` are asked of it."""

    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        # What changes while it trains lies in attributes that checkpoints keep, such as a Learner.
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """One epoch, counted from 0; returns what is worth a curve, `loss` among it."""
        batch_losses = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, "weak", self.streams["augment"])  # chance comes from named streams alone
            labels = targets.one_hot(self.task.labels[index], self.task.classes)  # as given: some are wrong
            batch_losses.append(self.learner.step(self.objective, (images, labels)))
        return {"loss": torch.stack(batch_losses).mean()}

    def objective(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The loss of a batch, of which the learner takes the gradient."""
        images, labels = batch
        smooth = (1 - self.config.smoothing) * labels + self.config.smoothing / self.task.classes
        return losses.soft_cross_entropy(network(images), smooth).mean()

    def predict(self, images: Tensor) -> Tensor:
        """Class probabilities: (B, C, H, W) -> (B, K)."""
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Features of the backbone: (B, C, H, W) -> (B, D)."""
        return self.learner.features(images)

"""Generalised cross-entropy (Zhang & Sabuncu 2018, arXiv:1805.07836): a loss between cross-entropy and absolute error.

Images that the network finds unlikely pull less, by p_y^q.  `truncated` is the paper's second loss: images with
p_y <= k do not pull at all.  Its objective is Σ_i w_i (L_q(i) - L_q(k)) with w_i = [p_y > k] set once in a while
(Algorithm 1); it is negative by construction.  There is no official code; defaults are the paper's for CIFAR-10.

The paper prunes with the best model so far by noisy validation accuracy.  A method sees no validation set: pruned with
the current weights, averaged where the optimizer averages, on images without augmentation.  In a short run with many
classes few images may ever reach k, and then nothing is learned after pruning.  The paper prunes from 80 of 150 epochs
on CIFAR-100, where the learning rate falls first too.  Shifts pad with black, as in the re-implementation by others;
weight decay on kernels only (there: on all weights).
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task
from lnl.training.views import WeakView

USES = ("labels",)


class Config(Settings):
    name: Literal["gce"] = "gce"
    batch_size: Annotated[int, Field(ge=2)] = 128
    q: Annotated[float, Field(gt=0, le=1)] = 0.7
    """of L_q: near 0 cross-entropy, 1 absolute error"""
    truncated: bool = False
    """whether images with p_y <= k are left out"""
    k: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """truncated only"""
    prune_from: Annotated[float, Field(ge=0, lt=1)] = 1 / 3
    """truncated only: share of training before the first pruning"""
    prune_every: Annotated[int, Field(ge=1)] = 10
    """truncated only: epochs from one pruning to the next"""
    weak: WeakView = WeakView(padding="zeros")
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.01, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3)
    )


TRUNCATED = {"method.truncated": (True,)}

SEARCH: dict[str, Space] = {
    "method.q": Uniform(0.1, 1.0),
    "method.truncated": Choice((False, True)),
    "method.k": Uniform(0.1, 0.9, when=TRUNCATED),
    "method.prune_from": Uniform(0.1, 0.7, when=TRUNCATED),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        self.kept = Record(task)  # w
        self.kept.note(task.labelled, torch.ones_like(task.labelled))

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        task, config = self.task, self.config
        since = epoch - math.ceil(config.prune_from * task.epochs)
        if config.truncated and since >= 0 and since % config.prune_every == 0:
            self.kept.note(task.labelled, self._likelihood() > config.k)
        total = []
        for index in task.order(task.labelled, config.batch_size, self.steps, self.streams["order"]):
            images = task.view(index, "weak", self.streams["augment"])
            total.append(self.learner.step(self.objective, (images, task.labels[index], self.kept.of(index))))
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, kept = batch
        loss = losses.generalised_cross_entropy(network(images), labels, self.config.q)
        return (kept * (loss - self.limit)).mean()

    @property
    def limit(self) -> float:
        """L_q(k) = (1 - k^q) / q, of the images left out."""
        return (1 - self.config.k**self.config.q) / self.config.q if self.config.truncated else 0.0

    def beliefs(self) -> Beliefs:
        """`clean`: p_y^q, how much an image pulls as compared with cross-entropy; `loss`: q L_q, from 0 to 1."""
        pull = self._likelihood() ** self.config.q
        selected = self.kept.of(self.task.labelled) if self.config.truncated else None
        return Beliefs(loss=1 - pull, clean=pull, selected=selected)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def _likelihood(self) -> Tensor:
        """p_y of the labelled images without augmentation: (L,)."""
        index = self.task.labelled
        return self.task.over(index, self.predict).gather(-1, self.task.labels[index, None]).squeeze(-1)

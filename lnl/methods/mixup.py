"""Mixup (Zhang et al. 2018, arXiv:1710.09412): cross-entropy on mixed pairs of images and of their given labels.

Nothing here knows of wrong labels, but mixed ones are harder to memorise: the strongest simple baseline.  Unlabelled
images are not used.  Defaults are the official code's for CIFAR-10, but weight decay on kernels only (official: on all
weights); for wrong labels the paper prefers an alpha of 8 to 32.

The coefficient l is drawn as max(l, 1 - l).  Cross-entropy of mixed labels takes both images of a pair alike, so that
this swaps names within pairs only; with one l for a batch the inverse permutation, as likely as the permutation, gives
the very same batch back.  With one l per image each image leads exactly one pair, instead of one on average.
"""

from __future__ import annotations

from typing import Annotated, Literal

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
from lnl.training.views import WeakView

USES = ("labels",)


class Config(Settings):
    name: Literal["mixup"] = "mixup"
    batch_size: Annotated[int, Field(ge=2)] = 128
    alpha: Annotated[float, Field(gt=0)] = 1.0
    """of l from Beta(alpha, alpha): near 0 hardly mixed, large: halves"""
    coefficient: Literal["batch", "image"] = "batch"
    """one l for a batch, as in the official code, or for each image"""
    weak: WeakView = WeakView(padding="zeros")
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.1, weight_decay=1e-4, schedule="step")


SEARCH: dict[str, Space] = {
    "method.alpha": Uniform(0.1, 32.0, log=True),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        total = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            total.append(self.learner.step(self.objective, self.mixed(index)))
        return {"loss": torch.stack(total).mean()}

    def mixed(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Every image of a batch (B,) with a random other: (B, C, H, W) and soft labels (B, K)."""
        generator = self.streams["mixup"]
        images = self.task.view(index, "weak", self.streams["augment"])
        labels = targets.one_hot(self.task.labels[index], self.task.classes)
        count = len(index) if self.config.coefficient == "image" else 1
        coefficients = targets.mixup_coefficients(self.config.alpha, count, generator)
        permutation = torch.randperm(len(index), generator=generator, device=generator.device)
        return targets.mixup(images, labels, permutation, coefficients)

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.soft_cross_entropy(network(images), labels).mean()

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

"""Cross-entropy on the given labels, right or wrong: the baseline that every method must beat.

Unlabelled images are not used.  Default: SGD with Nesterov momentum and a cosine schedule, as the WRN-28 baselines of
the semi-supervised literature (Sohn et al. 2020, arXiv:2001.07685, Table 4).
"""

from __future__ import annotations

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
from lnl.training.task import Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels",)


class Config(Settings):
    name: Literal["supervised"] = "supervised"
    batch_size: Annotated[int, Field(ge=2)] = 64
    augmentation: View = "weak"
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.03, nesterov=True, weight_decay=5e-4, schedule="cosine"
    )


SEARCH: dict[str, Space] = {
    "method.augmentation": Choice(("weak", "contrastive", "strong", "autoaugment")),
    "method.optimizer.learning_rate": Uniform(1e-4, 0.3, log=True),
    "method.optimizer.weight_decay": Uniform(1e-5, 0.1, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        total = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, self.config.augmentation, self.streams["augment"])
            total.append(self.learner.step(self.objective, (images, self.task.labels[index])))
        return {"loss": torch.stack(total).mean()}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

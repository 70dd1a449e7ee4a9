"""SimCLR (Chen et al. 2020, arXiv:2002.05709): features from two augmented views of every image, labels ignored.

Evaluated as `lnl.training.readout` says, on features before the projection head.  Colours are jittered as in the
official code, at half strength and without blur up to 32 pixels, fully and with blur above (`contrastive.jitter`).

Departures: SGD with momentum and a cosine schedule instead of LARS, which torch does not have and small batches do not
need; no warm-up of the learning rate (the paper: 10 of 1,000 epochs, `optimizer.warm_up=0.01`); the projection head has
the paper's two layers, without BatchNorm (code: three, with it); hue is turned in YIQ (code: in HSV).
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses
from lnl.networks import Network, heads
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.readout import Readout, ReadoutSettings
from lnl.training.streams import Streams
from lnl.training.task import Task, only_images
from lnl.training.views import ContrastiveView

USES = ("unlabelled",)


class Config(ReadoutSettings):
    name: Literal["simclr"] = "simclr"
    batch_size: Annotated[int, Field(ge=2)] = 256
    """images a step: twice as many views"""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """of NT-Xent, eq. 1; the CIFAR-10 recipe's"""
    hidden: Annotated[int, Field(ge=1)] = 128
    """of the projection head"""
    projection: Annotated[int, Field(ge=1)] = 128
    """its output"""
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.06, weight_decay=5e-4, schedule="cosine")


SEARCH: dict[str, Space] = {
    "method.temperature": Uniform(0.05, 1.0, log=True),
    "method.optimizer.learning_rate": Uniform(0.01, 1.0, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        only_images(task, "SimCLR learns from augmented images")
        self.config, self.task, self.streams = config, task, streams
        self.pool = torch.cat([task.labelled, task.unlabelled])
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner(
            network,
            config.optimizer,
            self.steps * task.epochs,
            {"projection": partial(heads.projection, hidden=config.hidden, out=config.projection)},
        )
        self.readout = Readout(config, task, self.learner)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        total = []
        for index in self.task.order(self.pool, self.config.batch_size, self.steps, self.streams["order"]):
            views = self.task.view(index.repeat(2), "contrastive", self.streams["augment/contrastive"])
            total.append(self.learner.step(self.objective, (views, index)))
        self.readout.forget()
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        views, index = batch
        first, second = network(views, head="projection").chunk(2)
        return losses.nt_xent(first, second, self.config.temperature, index).mean()

    def predict(self, images: Tensor) -> Tensor:
        return self.readout.predict(images)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

"""Barlow Twins (Zbontar et al. 2021, arXiv:2103.03230): features of two views agree, and repeat nothing.

Labels are ignored, and evaluated as `lnl.training.readout` says.  As in the official code, the two views are two
forward passes, each with its own batch statistics.  Departures: Adam and a cosine schedule instead of LARS (with SGD,
whose steps grow with the loss, no rate suits few and many dimensions); batches and projector for CIFAR-10 (official,
for ImageNet: 2,048 images, 8,192 dimensions); no warm-up of the learning rate (official: 10 of 1,000 epochs,
`optimizer.warm_up=0.01`); both views are drawn from SimCLR's augmentation (official: `views="unlike"`) with its jitter
at half strength, as official but for saturation (0.4, official 0.2) and hue, which is turned in YIQ (official: in HSV).
Seed document 002 has the official views and no projector: `views="unlike"`, `projector_layers=0`.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses
from lnl.networks import Network, heads
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.readout import Readout, ReadoutSettings
from lnl.training.streams import Streams
from lnl.training.task import Pair, Task, only_images
from lnl.training.views import ContrastiveView

USES = ("unlabelled",)


class Config(ReadoutSettings):
    name: Literal["barlow_twins"] = "barlow_twins"
    batch_size: Annotated[int, Field(ge=2)] = 256
    """images a step: twice as many views"""
    views: Pair = "alike"
    """alike: both SimCLR's | unlike, as in the official code: one is blurred, the other now and then solarised"""
    lambda_redundancy: Annotated[float, Field(ge=0)] = 0.0051
    """of the correlations between dimensions, eq. 1"""
    projector_layers: Annotated[int, Field(ge=0)] = 3
    """0: the loss is on the features themselves"""
    projector_width: Annotated[int, Field(ge=1)] = 2048
    """hidden and output dimensions, with layers only"""
    contrastive: ContrastiveView = ContrastiveView(jitter=0.5)
    optimizer: Optimizer = Optimizer(kind="adam", learning_rate=1e-3, weight_decay=1e-6, schedule="cosine")


SEARCH: dict[str, Space] = {
    "method.lambda_redundancy": Uniform(5e-4, 0.05, log=True),
    "method.projector_layers": Integer(0, 3),
    "method.optimizer.learning_rate": Uniform(1e-4, 1e-2, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        only_images(task, "Barlow Twins learns from augmented images")
        self.config, self.task, self.streams = config, task, streams
        self.pool = torch.cat([task.labelled, task.unlabelled])
        self.steps = task.steps_per_epoch(config.batch_size)
        width = config.projector_width
        projector = partial(heads.mlp, hidden=width, out=width, layers=config.projector_layers)
        self.learner = Learner(network, config.optimizer, self.steps * task.epochs, {"projection": projector})
        self.readout = Readout(config, task, self.learner)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        total = []
        for index in self.task.order(self.pool, self.config.batch_size, self.steps, self.streams["order"]):
            views = self.task.pair(index, self.config.views, self.streams["augment/contrastive"])
            total.append(self.learner.step(self.objective, views))
        self.readout.forget()
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, views: Tensor) -> Tensor:
        first, second = (network(view, head="projection") for view in views.chunk(2))
        return losses.barlow_twins(first, second, self.config.lambda_redundancy)

    def predict(self, images: Tensor) -> Tensor:
        return self.readout.predict(images)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

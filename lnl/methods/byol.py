"""BYOL (Grill et al. 2020, arXiv:2006.07733): predict a slowly moving copy's projection of another view.

Labels are ignored, and evaluated as `lnl.training.readout` says.  The loss is seed document 003's eq. 1, from -1 to 1;
the paper's is 4 + 4 times that.  The target normalises by its own batch statistics, as in the official code, so that
its running statistics do not matter.  Departures: SGD with momentum and a cosine schedule instead of LARS; no warm-up
of the learning rate (the paper: 10 of 1,000 epochs, `optimizer.warm_up=0.01`); both views are drawn from SimCLR's
augmentation (the paper: `views="unlike"`) with its jitter at half strength, as official but for saturation (0.4,
official 0.2) and hue, which is turned in YIQ (official: in HSV).
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lnl.functional import losses, schedules
from lnl.networks import Network, heads
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.readout import Readout, ReadoutSettings
from lnl.training.streams import Streams
from lnl.training.task import Pair, Task, only_images
from lnl.training.views import ContrastiveView

USES = ("unlabelled",)


class Config(ReadoutSettings):
    name: Literal["byol"] = "byol"
    batch_size: Annotated[int, Field(ge=2)] = 256
    """images a step: twice as many views"""
    views: Pair = "alike"
    """alike: both SimCLR's | unlike, as in the official code: one is blurred, the other now and then solarised"""
    target_decay: Annotated[float, Field(ge=0, le=1)] = 0.99
    """tau of the target network at the start; it rises to 1 by a cosine.  The CIFAR-10 recipes'; 0.996 on ImageNet."""
    hidden: Annotated[int, Field(ge=1)] = 4096
    """of projector and predictor"""
    projection: Annotated[int, Field(ge=1)] = 256
    """their output"""
    contrastive: ContrastiveView = ContrastiveView(jitter=0.5)
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.06, weight_decay=5e-4, schedule="cosine")


SEARCH: dict[str, Space] = {
    "method.target_decay": Uniform(0.9, 0.9999),
    "method.optimizer.learning_rate": Uniform(0.01, 1.0, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        only_images(task, "BYOL learns from augmented images")
        self.config, self.task, self.streams = config, task, streams
        self.pool = torch.cat([task.labelled, task.unlabelled])
        self.steps = task.steps_per_epoch(config.batch_size)
        hidden, out = config.hidden, config.projection
        self.learner = Learner(
            network,
            config.optimizer,
            self.steps * task.epochs,
            {
                "projection": partial(heads.mlp, hidden=hidden, out=out),
                "predictor": partial(predictor, projection=out, hidden=hidden),
            },
        )
        self.target = copy.deepcopy(self.learner.network).requires_grad_(False)  # its predictor is not used
        self.readout = Readout(config, task, self.learner)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        total = []
        for index in self.task.order(self.pool, self.config.batch_size, self.steps, self.streams["order"]):
            views = self.task.pair(index, self.config.views, self.streams["augment/contrastive"])
            decay = schedules.target_decay(self.learner.done / self.learner.steps, self.config.target_decay)
            total.append(self.learner.step(self.objective, views))
            torch._foreach_lerp_(
                list(self.target.parameters()), [tensor.detach() for tensor in self.learner.parameters], 1 - decay
            )
        self.readout.forget()
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, views: Tensor) -> Tensor:
        self.target.train()
        with torch.no_grad():
            projected = [self.target(view, head="projection") for view in views.chunk(2)]
        predicted = [network.heads["predictor"](network(view, head="projection")) for view in views.chunk(2)]
        first = losses.negative_cosine(projected[0], predicted[1])
        second = losses.negative_cosine(projected[1], predicted[0])
        return (first + second).mean() / 2

    def predict(self, images: Tensor) -> Tensor:
        return self.readout.predict(images)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)


def predictor(width: int, projection: int, hidden: int) -> nn.Sequential:
    """BYOL's predictor, a head that sees projections and not features: (B, projection) -> (B, projection)."""
    return heads.mlp(projection, hidden, projection)

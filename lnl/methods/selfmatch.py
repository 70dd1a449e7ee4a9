"""SelfMatch (Kim et al. 2021, arXiv:2101.06480): SimCLR on all images, then FixMatch on the whole network.

Stage 1 takes `pretrain_epochs` besides the trial's epochs; a step of it sees B + µB images, as many as one of stage 2
(512, the batch of SimCLR's CIFAR-10 recipe).  Losses are those of `lnl.functional.losses.nt_xent` and
`lnl.training.fixmatch_update`.  Ours, because the paper's settings could not be had: one optimizer, FixMatch's, with
one schedule over both stages, and the projection head of `simclr`.  RandAugment is that of FixMatch's code.  As in
`simclr`, hue is turned in YIQ.
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
from lnl.training.fixmatch_update import (
    FIXMATCH_SEARCH,
    ConsistencyBatch,
    FixMatchSettings,
    confident_guesses,
    confident_share,
    fixmatch_batch,
    fixmatch_loss,
    unlabelled_pool,
)
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task

USES = ("labels", "unlabelled")


class Config(FixMatchSettings):
    name: Literal["selfmatch"] = "selfmatch"
    pretrain_epochs: Annotated[int, Field(ge=1)] = 20
    """of SimCLR, before and besides the trial's epochs; 20 of 1,024 steps are some 200 passes over CIFAR-10"""
    contrastive_temperature: Annotated[float, Field(gt=0)] = 0.5
    """of NT-Xent"""
    hidden: Annotated[int, Field(ge=1)] = 128
    """of the projection head"""
    projection: Annotated[int, Field(ge=1)] = 128
    """its output"""
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.03, nesterov=True, weight_decay=5e-4, schedule="fixmatch", average=0.999
    )


SEARCH: dict[str, Space] = {**FIXMATCH_SEARCH, "method.contrastive_temperature": Uniform(0.05, 1.0, log=True)}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.pool = unlabelled_pool(task, config.include_labelled)
        self.everything = unlabelled_pool(task, include_labelled=True)
        self.guesses = Record(task, task.classes)
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner(
            network,
            config.optimizer,
            self.steps * (config.pretrain_epochs + task.epochs),
            {
                "classifier": partial(heads.linear, classes=task.classes),
                "projection": partial(heads.projection, hidden=config.hidden, out=config.projection),
            },
        )

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        if epoch < self.config.pretrain_epochs:
            return {"loss": torch.stack(self.contrastive_epoch()).mean()}
        loss = torch.stack(self.fixmatch_epoch()).mean()
        return {"loss": loss, "confident": confident_share(self.guesses.of(self.pool), self.config.threshold)}

    def contrastive_epoch(self) -> list[Tensor]:
        size = (1 + self.config.mu) * self.config.batch_size
        total = []
        for index in self.task.order(self.everything, size, self.steps, self.streams["order/contrastive"]):
            views = self.task.view(index.repeat(2), "contrastive", self.streams["augment/contrastive"])
            total.append(self.learner.step(self.contrastive, (views, index)))
        return total

    def fixmatch_epoch(self) -> list[Tensor]:
        config, task, streams = self.config, self.task, self.streams
        labelled = task.order(task.labelled, config.batch_size, self.steps, streams["order"])
        unlabelled = task.order(self.pool, config.mu * config.batch_size, self.steps, streams["order/unlabelled"])
        total = []
        for labelled_index, unlabelled_index in zip(labelled, unlabelled, strict=True):
            batch = fixmatch_batch(config, task, streams, labelled_index, unlabelled_index)
            total.append(self.learner.step(self.fixmatch, batch))
        return total

    def contrastive(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        views, index = batch
        first, second = network(views, head="projection").chunk(2)
        return losses.nt_xent(first, second, self.config.contrastive_temperature, index).mean()

    def fixmatch(self, network: Network, batch: ConsistencyBatch) -> Tensor:
        return fixmatch_loss(self.config, network, batch, self.guesses)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return Beliefs(pseudo_labels=confident_guesses(self.guesses.of(self.task.unlabelled), self.config.threshold))

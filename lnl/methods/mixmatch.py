"""MixMatch (Berthelot et al. 2019, arXiv:1905.02249): guess, sharpen and mix unlabelled images with labelled ones.

The update itself is `lnl.training.mixmatch_update`; its docstring says what is followed from the paper and what from
the official code.  Weight decay 0.02 on kernels, multiplied by the learning rate, as official: decoupled, hence
AdamW.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lnl.networks import Network
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder
from lnl.training.mixmatch_update import MIXMATCH_SEARCH, MixedBatch, MixMatchSettings, mixmatch_batch, mixmatch_loss
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, to_draw_from

USES = ("labels", "unlabelled")


class Config(MixMatchSettings):
    name: Literal["mixmatch"] = "mixmatch"


SEARCH: dict[str, Space] = {**MIXMATCH_SEARCH, "method.optimizer.learning_rate": Uniform(2e-4, 2e-2, log=True)}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        to_draw_from(task.unlabelled)
        self.guesses = Record(task, task.classes)
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        task, streams, size = self.task, self.streams, self.config.batch_size
        labelled = task.order(task.labelled, size, self.steps, streams["order"])
        unlabelled = task.order(task.unlabelled, size, self.steps, streams["order/unlabelled"])
        total = []
        for step in range(self.steps):
            progress = (epoch + step / self.steps) / task.epochs
            weight = self.config.weight(progress, self.learner.steps)
            batch = mixmatch_batch(
                self.config, task, self.learner, streams, labelled[step], unlabelled[step], weight, self.guesses
            )
            total.append(self.learner.step(self.objective, batch))
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, batch: MixedBatch) -> Tensor:
        return mixmatch_loss(network, batch, self.config.batch_norm)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return Beliefs(pseudo_labels=self.guesses.of(self.task.unlabelled))

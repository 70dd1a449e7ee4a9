"""FixMatch (Sohn et al. 2020, arXiv:2001.07685): a confident guess on a weak view is the target of a strong view.

The update itself is `lnl.training.fixmatch_update`; its docstring says what is followed from the paper and what from
the official code.  Strong views are RandAugment's with cutout (the paper's RA variant; CTAugment is not built), by
default with the operations, ranges and probabilities of the official code, whose numbers the paper prints; the text
lists other ranges, and no probability (`strong.rand_augment`).  Seed document 002 trains it without a threshold and
with Adam: `threshold=0`, `optimizer.kind="adam"`.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lnl.networks import Network
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
    name: Literal["fixmatch"] = "fixmatch"
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.03, nesterov=True, weight_decay=5e-4, schedule="fixmatch", average=0.999
    )


SEARCH = FIXMATCH_SEARCH


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.pool = unlabelled_pool(task, config.include_labelled)
        self.guesses = Record(task, task.classes)
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        labelled = task.order(task.labelled, config.batch_size, self.steps, streams["order"])
        unlabelled = task.order(self.pool, config.mu * config.batch_size, self.steps, streams["order/unlabelled"])
        total = []
        for labelled_index, unlabelled_index in zip(labelled, unlabelled, strict=True):
            batch = fixmatch_batch(config, task, streams, labelled_index, unlabelled_index)
            total.append(self.learner.step(self.objective, batch))
        confident = confident_share(self.guesses.of(self.pool), config.threshold)
        return {"loss": torch.stack(total).mean(), "confident": confident}

    def objective(self, network: Network, batch: ConsistencyBatch) -> Tensor:
        return fixmatch_loss(self.config, network, batch, self.guesses)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return Beliefs(pseudo_labels=confident_guesses(self.guesses.of(self.task.unlabelled), self.config.threshold))

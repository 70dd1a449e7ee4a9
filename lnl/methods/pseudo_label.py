"""Pseudo-Label (Lee 2013): a network's own confident guesses on unlabelled images are labels like the given ones.

As in FixMatch's official code, whose baseline it is: the guess and the prediction that learns from it are one forward
pass; only the labelled pass moves BatchNorm's running statistics.  The loss is averaged over all unlabelled images of
the batch, confident or not, as that code says of itself.  What it computes is another thing: it multiplies the losses
(B) by a column of masks (B, 1), so that the mean over (B, B) is the mean loss of all images times the share of
confident ones.  That is not followed, nor is its label smoothing.  A probability of exactly the threshold counts as
confident here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl import networks
from lnl.functional import losses, schedules, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Space, Uniform
from lnl.training.fixmatch_update import confident_guesses, confident_share, unlabelled_pool
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task
from lnl.training.views import WeakView

USES = ("labels", "unlabelled")


class Config(Settings):
    name: Literal["pseudo_label"] = "pseudo_label"
    batch_size: Annotated[int, Field(ge=2)] = 64
    """labelled images a step, and as many unlabelled ones"""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95
    """least probability of a guess that becomes a label"""
    lambda_u: Annotated[float, Field(ge=0)] = 1.0
    """weight of the pseudo-labels' loss (official: 2 for SVHN)"""
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.4
    """share of training over which lambda_u rises from 0"""
    include_labelled: bool = True
    """labelled images are among the unlabelled ones, too"""
    weak: WeakView = WeakView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.03, nesterov=True, weight_decay=5e-4, schedule="fixmatch", average=0.999
    )


SEARCH: dict[str, Space] = {
    "method.threshold": Uniform(0.0, 0.99),
    "method.lambda_u": Uniform(0.1, 10.0, log=True),
    "method.ramp": Uniform(0.0, 1.0),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


@dataclass(frozen=True)
class PseudoLabelBatch:
    """Weak views of labelled and of unlabelled images, and the weight of the pseudo-labels of the latter."""

    labelled: Tensor  # (B, C, H, W)
    labels: Tensor  # (B,)
    unlabelled: Tensor  # (B, C, H, W)
    index: Tensor  # (B,) of the unlabelled
    weight: float  # lambda_u now


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
        unlabelled = task.order(self.pool, config.batch_size, self.steps, streams["order/unlabelled"])
        total = []
        for step, (labelled_index, unlabelled_index) in enumerate(zip(labelled, unlabelled, strict=True)):
            progress = (epoch + step / self.steps) / task.epochs
            batch = PseudoLabelBatch(
                labelled=task.view(labelled_index, "weak", streams["augment"]),
                labels=task.labels[labelled_index],
                unlabelled=task.view(unlabelled_index, "weak", streams["augment/unlabelled"]),
                index=unlabelled_index,
                weight=config.lambda_u * schedules.linear_ramp(progress, config.ramp),
            )
            total.append(self.learner.step(self.objective, batch))
        confident = confident_share(self.guesses.of(self.pool), config.threshold)
        return {"loss": torch.stack(total).mean(), "confident": confident}

    def objective(self, network: Network, batch: PseudoLabelBatch) -> Tensor:
        supervised = losses.cross_entropy(network(batch.labelled), batch.labels).mean()
        with networks.statistics_frozen(network):
            logits = network(batch.unlabelled)
        guesses = torch.softmax(logits.detach(), -1, dtype=torch.float32)
        self.guesses.note(batch.index, guesses)
        labels, confident = targets.pseudo_labels(guesses, self.config.threshold)
        return supervised + batch.weight * (confident * losses.soft_cross_entropy(logits, labels)).mean()

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return Beliefs(pseudo_labels=confident_guesses(self.guesses.of(self.task.unlabelled), self.config.threshold))

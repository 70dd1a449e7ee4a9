"""Learning to reweight examples (L2R, Ren et al. 2018, arXiv:1803.09050): weights that help a small trusted set.

Each step asks, for every example, whether descending its loss would lower the probe's loss, and trains on those that
would, in proportion (Algorithm 1).  The paper's virtual step starts from weights of zero, so that it does not move: the
probe's gradient is taken at the current weights and its rate has no effect (the official code does the same).
Schedule of the paper's WRN-28-10: a tenth at 40 and 50 of 60 thousand steps.  Ours: probe batches are class-balanced
(the official ones are random, and a worse signal for the same size).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.data import Unfit
from lnl.functional import losses, meta
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, balanced_order
from lnl.training.views import WeakView

USES = ("labels", "probe")


class Config(Settings):
    name: Literal["learning_to_reweight"] = "learning_to_reweight"
    batch_size: Annotated[int, Field(ge=2)] = 100
    probe_batch_size: Annotated[int, Field(ge=1)] = 100
    """trusted images a step"""
    meta_gradient: meta.MetaGradient = "jvp"
    """how it is computed: see `lnl.functional.meta`"""
    meta_weight_decay: bool = False
    """the probe's loss has the optimizer's weight decay in it (official code)"""
    weak: WeakView = WeakView(shift=1 / 16, padding="zeros")
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=2e-4, schedule="step", milestones=(2 / 3, 5 / 6)
    )


SEARCH: dict[str, Space] = {
    "probe": Integer(10, 1000, log=True),
    "method.probe_batch_size": Integer(10, 200, log=True),
    "method.optimizer.learning_rate": Uniform(0.01, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        if not len(task.probe):
            raise Unfit("learning_to_reweight learns from trusted images: give the trial a probe, such as probe=100.")
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.weights = Record(task)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        noisy = task.order(task.labelled, config.batch_size, self.steps, streams["order"])
        trusted = balanced_order(
            task.probe, task.labels[task.probe], config.probe_batch_size, self.steps, streams["order/probe"]
        )
        total, used = [], []
        for index, probe in zip(noisy, trusted, strict=True):
            images, labels = task.view(index, "weak", streams["augment"]), task.labels[index]
            probe_batch = task.view(probe, "weak", streams["augment/probe"]), task.labels[probe]
            weights = self.reweight(images, labels, probe_batch)
            self.weights.note(index, weights)
            total.append(self.learner.step(self.objective, (images, labels, weights)))
            used.append((weights > 0).float().mean())
        return {"loss": torch.stack(total).mean(), "share_weighted": torch.stack(used).mean()}

    def reweight(self, images: Tensor, labels: Tensor, probe_batch: tuple[Tensor, Tensor]) -> Tensor:
        """Algorithm 1, lines 4 to 10: (B, C, H, W), (B,) -> weights (B,) that sum to 1, or all are 0."""
        (gradient,) = self.learner.virtual(
            lambda logits, weights: (weights * losses.cross_entropy(logits, labels)).sum(),
            [torch.zeros(len(labels), device=labels.device)],
            images,
            self.probe_loss,
            probe_batch,
            rate=None,
            weight_decay=self.config.optimizer.weight_decay if self.config.meta_weight_decay else 0.0,
            mode=self.config.meta_gradient,
        )
        return meta.sample_weights(gradient)

    @staticmethod
    def probe_loss(network: meta.Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    @staticmethod
    def objective(network: meta.Classifier, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, weights = batch
        return (weights * losses.cross_entropy(network(images), labels)).sum()

    def beliefs(self) -> Beliefs:
        weights = self.weights.of(self.task.labelled)
        return Beliefs(clean=weights, selected=torch.where(weights.isnan(), weights, (weights > 0).float()))

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

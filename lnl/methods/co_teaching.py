"""Co-teaching (Han et al. 2018, arXiv:1804.06872): two networks, each trained on what the other finds easy.

Per batch each network ranks its own cross-entropies and hands the indices of the R(t) smallest to the other one, which
is updated on them (Algorithm 1).  Epochs count from 1, so that the first one already forgets τ/T_k.  The official code
differs in its schedule (field `schedule`) and divides the mean over the kept images by their number once more, which
only Adam forgives: not followed.  Both networks see the same augmented batch, under BatchNorm's statistics of all of
it, as official.

Departures: the paper sets τ to the true noise rate, which no method may know here, so it is a fixed guess that a study
may set; Adam's first momentum stays where the official code lets it fall to 0.1 at epoch 80; images are augmented as
for every other method here, where the paper augments nothing; the ranking is a pass of its own; the number of kept
images is rounded (code: cut off).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses, selection
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels", "two networks")


class Config(Settings):
    name: Literal["co_teaching"] = "co_teaching"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    """the paper: none"""
    forget_rate: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """τ: share of a batch left out in the end.  The paper sets it to the true noise rate, which no method may know
    here: 0.2 is a guess (that of CIFAR-10N's re-run); set it to the share of wrong labels that you expect."""
    ramp: Annotated[int, Field(ge=1)] = 10
    """T_k, epochs until τ is reached (exponent 1)"""
    exponent: Annotated[float, Field(gt=0)] = 1.0
    """c, of the epoch (paper) or of τ (code)"""
    schedule: Literal["paper", "code"] = "paper"
    """τ min(t^c / T_k, 1), or from 0 to τ^c in T_k epochs and then τ"""
    prediction: Literal["first", "ensemble"] = "first"
    """network; the ensemble averages both probabilities"""
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(kind="adam", learning_rate=1e-3, schedule="linear", milestones=(0.4,))


SEARCH: dict[str, Space] = {
    "method.forget_rate": Uniform(0.05, 0.6),
    "method.ramp": Integer(1, 30),
    "method.exponent": Choice((0.5, 1.0, 2.0)),
    "method.optimizer.learning_rate": Uniform(1e-4, 0.1, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        steps = self.steps * task.epochs
        self.first = Learner.classifier(network, config.optimizer, steps, task.classes)
        self.second = Learner.classifier(network, config.optimizer, steps, task.classes, replica="second/")
        self.losses, self.selected = Record(task, 2), Record(task, 2)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        keep = keep_rate(self.config, epoch + 1)
        total = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, self.config.augmentation, self.streams["augment"])
            labels = self.task.labels[index]
            ranked = torch.stack(
                [losses.cross_entropy(learner.batch_logits(images), labels) for learner in (self.first, self.second)]
            )
            easy_to_first, easy_to_second = selection.smallest(ranked, keep)
            total.append(self.first.step(self.objective, (images, labels, easy_to_second)))
            total.append(self.second.step(self.objective, (images, labels, easy_to_first)))
            kept = torch.stack([easy_to_second, easy_to_first])
            self.losses.note(index, ranked.mT)
            self.selected.note(index, torch.zeros_like(ranked).scatter(-1, kept, 1.0).mT)
        return {"loss": torch.stack(total).mean()}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, kept = batch
        return losses.cross_entropy(network(images), labels)[kept].mean()

    def predict(self, images: Tensor) -> Tensor:
        first = self.first.logits(images).softmax(dim=-1)
        if self.config.prediction == "first":
            return first
        return (first + self.second.logits(images).softmax(dim=-1)) / 2

    def features(self, images: Tensor) -> Tensor:
        return self.first.features(images)

    def beliefs(self) -> Beliefs:
        labelled = self.task.labelled
        return Beliefs(loss=self.losses.of(labelled).mT, selected=self.selected.of(labelled).mT)


def keep_rate(config: Config, epoch: int) -> float:
    """R(t): share of a batch to train on in epoch t, counted from 1."""
    rate, ramp, exponent = config.forget_rate, config.ramp, config.exponent
    if config.schedule == "paper":
        return 1 - rate * min(epoch**exponent / ramp, 1.0)
    return 1 - (rate**exponent * epoch / max(ramp - 1, 1) if epoch < ramp else rate)

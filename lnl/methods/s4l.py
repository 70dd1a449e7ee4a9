"""S4L (Zhai et al. 2019, arXiv:1905.03670): classification with a self-supervised task on all images beside it.

Pretext task rotation: every image enters in all four orientations, and a second linear head tells them apart.
Exemplar: every image enters in several heavy augmentations, whose embeddings must lie nearer to each other than to
those of other images.  Followed from the official code (google-research/s4l): labels count for all copies of a
labelled image; the triplet loss is taken on the labelled and the unlabelled half of a batch apart, and averaged.

Departures: SimCLR's views instead of inception crops with HSV noise, shifts and mirroring instead of inception crops
before a rotation; no warm-up of the learning rate.  Rotation teaches little where orientation means nothing, and
contradicts itself where a turned image is another class: on digits 6 and 9.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import normalize

from lnl.functional import losses
from lnl.networks import Network, heads
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Task, only_images
from lnl.training.views import ContrastiveView, WeakView

USES = ("labels", "unlabelled")
ORIENTATIONS = 4


class Config(Settings):
    """Defaults are those of S4L-Rotation on ImageNet."""

    name: Literal["s4l"] = "s4l"
    batch_size: Annotated[int, Field(ge=2)] = 256
    """labelled images a step, and as many unlabelled ones"""
    pretext: Literal["rotation", "exemplar"] = "rotation"
    mode: Literal["joint", "pretrain"] = "joint"
    """L_sup + w L_self | L_self in pre-training only, then L_sup"""
    pretrain_epochs: Annotated[int, Field(ge=0)] = 0
    """of L_self alone, before and besides the trial's epochs"""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """w, joint only"""
    exemplars: Annotated[int, Field(ge=2)] = 8
    """views of every image, exemplar only"""
    embedding: Annotated[int, Field(ge=1)] = 1000
    """dimensions in which distances count, exemplar only"""
    evaluation: Literal["upright", "all_orientations"] = "upright"
    """one prediction | mean of the logits of four"""
    weak: WeakView = WeakView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.03, weight_decay=1e-3, schedule="step", milestones=(0.7, 0.8, 0.9), factor=0.1
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.mode == "pretrain" and not self.pretrain_epochs:
            raise ValueError("mode pretrain needs pretrain_epochs")
        if self.evaluation == "all_orientations" and (self.pretext, self.mode) != ("rotation", "joint"):
            raise ValueError("evaluation all_orientations needs pretext rotation in mode joint, which trains on them")
        return self


SEARCH: dict[str, Space] = {
    "method.pretext": Choice(("rotation", "exemplar"), when={"method.evaluation": ("upright",)}),
    "method.weight": Uniform(0.1, 10.0, log=True, when={"method.mode": ("joint",)}),
    "method.exemplars": Integer(2, 8, when={"method.pretext": ("exemplar",)}),
    "method.optimizer.learning_rate": Uniform(3e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        if config.pretext == "rotation":
            only_images(task, "S4L's pretext task rotation turns images")
        self.config, self.task, self.streams = config, task, streams
        self.everything = torch.cat([task.labelled, task.unlabelled])
        self.steps = task.steps_per_epoch(config.batch_size)
        outputs = ORIENTATIONS if config.pretext == "rotation" else config.embedding
        self.learner = Learner(
            network,
            config.optimizer,
            self.steps * (config.pretrain_epochs + task.epochs),
            {
                "classifier": partial(heads.linear, classes=task.classes),
                "pretext": partial(heads.linear, classes=outputs),
            },
        )

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams, learner = self.config, self.task, self.streams, self.learner
        size = config.batch_size
        total = []
        if epoch < config.pretrain_epochs:
            for index in task.order(self.everything, 2 * size, self.steps, streams["order/pretraining"]):
                total.append(learner.step(self.self_supervised, (self.copies(index), index)))
        elif config.mode == "pretrain":
            for index in task.order(task.labelled, size, self.steps, streams["order"]):
                images = task.view(index, "weak", streams["augment"])
                total.append(learner.step(self.supervised, (images, task.labels[index])))
        else:
            labelled = task.order(task.labelled, size, self.steps, streams["order"])
            unlabelled = task.order(task.unlabelled, size, self.steps, streams["order/unlabelled"])
            for index in torch.cat([labelled, unlabelled], dim=1):
                total.append(learner.step(self.joint, (self.copies(index), index)))
        return {"loss": torch.stack(total).mean()}

    def copies(self, index: Tensor) -> Tensor:
        """Four orientations, or the exemplars, of the images (N,): (copies · N, C, H, W), first copies first."""
        if self.config.pretext == "rotation":
            return orientations(self.task.view(index, "weak", self.streams["augment"]))
        return self.task.view(index.repeat(self.config.exemplars), "contrastive", self.streams["augment/contrastive"])

    @staticmethod
    def supervised(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    def self_supervised(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, index = batch
        return self.pretext(network(images, head="pretext"), index)

    def joint(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, index = batch
        features = network.features(images)
        labels = self.task.labels[index[: self.config.batch_size]]
        of_labelled = features.unflatten(0, (-1, len(index)))[:, : len(labels)].flatten(0, 1)
        logits = network.heads["classifier"](of_labelled)
        supervised = losses.cross_entropy(logits, labels.repeat(len(images) // len(index))).mean()
        return supervised + self.config.weight * self.pretext(network.heads["pretext"](features), index)

    def pretext(self, outputs: Tensor, index: Tensor) -> Tensor:
        """L_self on the pretext head's outputs (copies · 2B, D) for the images (2B,)."""
        if self.config.pretext == "rotation":
            turns = torch.arange(ORIENTATIONS, device=index.device).repeat_interleave(len(index))
            return losses.cross_entropy(outputs, turns).mean()
        halves = normalize(outputs.float(), dim=-1).unflatten(0, (-1, 2, len(index) // 2)).unbind(1)
        names = index.expand(self.config.exemplars, -1).unflatten(1, (2, -1)).unbind(1)
        triplets = [
            losses.batch_hard_triplet(embeddings.flatten(0, 1), images.flatten())
            for embeddings, images in zip(halves, names, strict=True)
        ]
        return torch.cat(triplets).mean()

    def predict(self, images: Tensor) -> Tensor:
        if self.config.evaluation == "upright":
            return self.learner.logits(images).softmax(dim=-1)
        return self.learner.logits(orientations(images)).unflatten(0, (ORIENTATIONS, -1)).mean(0).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)


def orientations(images: Tensor) -> Tensor:
    """Counter-clockwise by 0, 90, 180 and 270 degrees: (B, C, H, H) -> (4 B, C, H, H), the upright ones first."""
    return torch.cat([images.rot90(turns, (-2, -1)) for turns in range(ORIENTATIONS)])

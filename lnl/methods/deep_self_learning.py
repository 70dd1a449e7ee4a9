"""Deep self-learning (Han et al. 2019, arXiv:1908.02160): labels corrected by several prototypes of each class (SMP).

After some epochs on the given labels y, each epoch begins by giving every image a second label ŷ: the class to whose
prototypes its features are nearest, by mean cosine similarity.  The network then descends
(1 - α) CE(y) + α CE(ŷ).  It needs no trusted images.

Prototypes of a class are chosen among some of its images by their similarities S:
  density          ρ_i = Σ_j sign(S_ij - S_c)
  distinctness     η_i = max S_ij over the images j that are denser; of the densest, min_j S_ij
those of the highest ρ with η below `distinct`.  S_c is the value below which a share `cut` of S lies: the paper's
"ranked top 40 % in an ascending order" can be read as 0.6, too.

Ours: where fewer images are distinct enough, a class has fewer prototypes, and where none is, the densest one; how
long the given labels count alone (`correct_from`); weight decay on kernels only.  There is no official code.  The
optimizer's defaults are those of Food-101N, 30 epochs from pre-trained weights, as recalled from the paper.  An
independent re-implementation has the same batch size, weight decay, candidates and prototypes, and trains on Clothing1M
for 15 epochs from a learning rate of 0.002.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from lnl.functional import losses, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels",)


class Config(Settings):
    name: Literal["deep_self_learning"] = "deep_self_learning"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """α: weight of the corrected label"""
    correct_from: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """share of training on the given labels alone"""
    candidates: Annotated[int, Field(ge=2)] = 1280
    """images of a class, at random, among which its prototypes are"""
    cut: Annotated[float, Field(ge=0, lt=1)] = 0.4
    """share of similarities below S_c"""
    distinct: Annotated[float, Field(gt=0)] = 0.95
    """η of a prototype is below it"""
    prototypes: Annotated[int, Field(ge=1)] = 8
    """of a class"""
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.01, weight_decay=5e-3, schedule="step", milestones=(1 / 3, 2 / 3)
    )


SEARCH: dict[str, Space] = {
    "method.alpha": Uniform(0.1, 0.9),
    "method.correct_from": Uniform(0.05, 0.6),
    "method.cut": Uniform(0.2, 0.8),
    "method.prototypes": Integer(1, 16),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        self.corrected = Record(task)  # ŷ, NaN before the first correction

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task = self.config, self.task
        alpha = 0.0
        if epoch >= max(1, math.ceil(config.correct_from * task.epochs)):
            self.corrected.note(task.labelled, self.correct())
            alpha = config.alpha
        total = []
        for index in task.order(task.labelled, config.batch_size, self.steps, self.streams["order"]):
            images, labels = task.view(index, config.augmentation, self.streams["augment"]), task.labels[index]
            target = targets.one_hot(labels, task.classes)
            if alpha:
                target = torch.lerp(target, targets.one_hot(self.corrected.of(index).long(), task.classes), alpha)
            total.append(self.learner.step(self.objective, (images, target)))
        return {"loss": torch.stack(total).mean()}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """Cross-entropy to (1 - α) y + α ŷ, which is the paper's mixture of two."""
        images, target = batch
        return losses.soft_cross_entropy(network(images), target).mean()

    def correct(self) -> Tensor:
        """ŷ of the labelled images (L,)."""
        task, config = self.task, self.config
        features = functional.normalize(task.over(task.labelled, self.learner.features), dim=-1)
        labels = task.labels[task.labelled]
        scores = features.new_full((len(features), task.classes), -math.inf)
        for label in labels.unique():
            own = features[labels == label]
            drawn = torch.randperm(len(own), generator=self.streams["prototypes"], device=own.device)
            own = own[drawn[: config.candidates]]
            chosen = prototypes(own @ own.T, config.cut, config.distinct, config.prototypes)
            scores[:, label] = features @ own[chosen].mean(0)  # mean of the cosines
        return scores.argmax(-1)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        """Labels are (1 - α) y + α ŷ; those that the prototypes confirm are selected."""
        task = self.task
        corrected, given = self.corrected.of(task.labelled), task.labels[task.labelled]
        if corrected.isnan().any():  # none is corrected yet
            return Beliefs()
        proposed = targets.one_hot(corrected.long(), task.classes)
        refined = torch.lerp(targets.one_hot(given, task.classes), proposed, self.config.alpha)
        return Beliefs(selected=(corrected == given).float(), labels=refined)


def density(similarities: Tensor, cut: Tensor) -> Tensor:
    """ρ (n,) of images with similarities (n, n) by S_c, `cut` ()."""
    return torch.sign(similarities - cut).sum(-1)


def distinctness(similarities: Tensor, densities: Tensor) -> Tensor:
    """η (n,) of images with similarities (n, n) and ρ (n,)."""
    denser = densities > densities[:, None]
    highest = similarities.masked_fill(~denser, -math.inf).amax(-1)
    return torch.where(denser.any(-1), highest, similarities.amin(-1))


def prototypes(similarities: Tensor, cut: float, distinct: float, count: int) -> Tensor:
    """At most `count` images (p,) of n by their similarities (n, n): the densest that are distinct from denser ones."""
    flat = similarities.flatten().sort().values
    densities = density(similarities, flat[int(cut * len(flat))])
    fits = distinctness(similarities, densities) < distinct
    ranked = densities.masked_fill(~fits, -math.inf) if fits.any() else densities
    order = ranked.argsort(descending=True, stable=True)
    return order[: min(count, max(1, int(fits.sum())))]

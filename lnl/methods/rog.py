"""RoG (Lee et al. 2019, arXiv:1901.11300): a robust generative classifier on features learned from noisy labels.

The network is trained by cross-entropy on the given labels.  Its features of all labelled images, without augmentation,
are then taken for Gaussian with a mean per class and one covariance for all, both estimated robustly by the minimum
covariance determinant: only the share of each class that lies nearest by Mahalanobis distance counts.  Prediction is by
Bayes' rule (linear discriminant analysis).  The head is refitted after every epoch and never trains the network.

Followed from the code: one concentration step; a pseudo-inverse; a uniform prior.  Departures: the first estimate takes
all images of a class, where the code takes a random 70 % (the same on average, and without chance; the code's division
inside the class loop, which leaves the last class's covariance, is a mistake); only the features before the classifier
are used, where the paper averages the heads of several late layers, weighed on a validation set; weight decay on
kernels only (official: on all weights).
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl.functional import losses, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels",)


class Config(Settings):
    name: Literal["rog"] = "rog"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    train: bool = True
    """False: the generative classifier on the backbone as the trial's init_from or weights give it"""
    head: Literal["generative", "softmax"] = "generative"
    """what predicts; softmax: the trained network itself"""
    support: Annotated[float, Field(gt=0, le=1)] = 0.7
    """share of each class that the estimates rest on"""
    concentration_steps: Annotated[int, Field(ge=0)] = 1
    """of the minimum covariance determinant; 0: all images count"""
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.0
    """s of (1 - s) Σ + s (tr Σ / D) I; 0: pseudo-inverse"""
    prior: Literal["uniform", "given"] = "uniform"
    """of the classes; given: their share of the given labels"""
    weak: WeakView = WeakView(padding="zeros")
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=5e-4, schedule="step", milestones=(1 / 3, 2 / 3)
    )

    @model_validator(mode="after")
    def _something_is_trained(self) -> Config:
        if not self.train and self.head == "softmax":
            raise ValueError("head softmax would not be trained: set train, or choose head generative")
        return self


GENERATIVE = {"method.head": ("generative",)}

SEARCH: dict[str, Space] = {
    "method.concentration_steps": Integer(0, 5, when=GENERATIVE),
    "method.support": Uniform(0.3, 1.0, when=GENERATIVE | {"method.concentration_steps": (1, 2, 3, 4, 5)}),
    "method.shrinkage": Uniform(0.0, 0.9, when=GENERATIVE),
    "method.optimizer.learning_rate": Uniform(0.005, 0.3, log=True, when={"method.train": (True,)}),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        self.fitted: tuple[Discriminant, Beliefs] | None = None

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        if not self.config.train:
            index = self.task.labelled
            likelihood = self.task.over(index, self.predict).gather(-1, self.task.labels[index, None])
            return {"loss": 1 - likelihood.mean()}  # how improbable the given labels are
        total = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, self.config.augmentation, self.streams["augment"])
            total.append(self.learner.step(self.objective, (images, self.task.labels[index])))
        self.fitted = None
        return {"loss": torch.stack(total).mean()}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    def predict(self, images: Tensor) -> Tensor:
        if self.config.head == "softmax":
            return self.learner.logits(images).softmax(dim=-1)
        return self._fit()[0].probabilities(self.features(images))

    def _fit(self) -> tuple[Discriminant, Beliefs]:
        """The generative head on the network as it is now; once an epoch."""
        if self.fitted is None:
            task, config = self.task, self.config
            bank, labels = task.over(task.labelled, self.features), task.labels[task.labelled]
            kept = torch.ones_like(labels, dtype=torch.float64)
            for _ in range(config.concentration_steps):
                distances = mahalanobis(bank, labels, *gaussians(bank, labels, kept, task.classes, config.shrinkage))
                kept = nearest(distances, labels, config.support, task.classes)
            means, precision = gaussians(bank, labels, kept, task.classes, config.shrinkage)
            counts = torch.bincount(labels, minlength=task.classes).double()
            head = discriminant(means, precision, counts if config.prior == "given" else (counts > 0).double())
            clean = head.probabilities(bank).gather(-1, labels[:, None]).squeeze(-1)
            self.fitted = head, Beliefs(clean=clean, selected=kept.float())
        return self.fitted

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return self._fit()[1]


# ----------------------------------------------------------------------------------------------- robust discriminant


class Discriminant(NamedTuple):
    """Linear in the features: weights (K, D) and biases (K,), float64."""

    weights: Tensor
    biases: Tensor

    def probabilities(self, features: Tensor) -> Tensor:
        """(..., D) -> posterior (..., K)."""
        return (features.double() @ self.weights.mT + self.biases).softmax(-1).float()


def discriminant(means: Tensor, precision: Tensor, counts: Tensor) -> Discriminant:
    """W = μ Σ⁻¹ and b_k = -½ μ_k' Σ⁻¹ μ_k + log π_k, the prior π in proportion to `counts` (K,)."""
    weights = means @ precision
    return Discriminant(weights, (counts / counts.sum()).log() - (weights * means).sum(-1) / 2)


def gaussians(
    features: Tensor, labels: Tensor, weights: Tensor, classes: int, shrinkage: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted mean of each class and the inverse of their common covariance, in float64.

    Features (N, D), labels (N,), weights (N,) -> (K, D), (D, D).  The mean of a class without weight is 0.
    """
    features = features.double()
    members = targets.one_hot(labels, classes).double() * weights.unsqueeze(-1)
    means = members.mT @ features / members.sum(0).clamp(min=1e-12).unsqueeze(-1)
    centred = features - means[labels]
    covariance = (centred * weights.unsqueeze(-1)).mT @ centred / weights.sum()
    identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
    covariance = (1 - shrinkage) * covariance + shrinkage * covariance.trace() / len(covariance) * identity
    return means, torch.linalg.pinv(covariance, hermitian=True)


def mahalanobis(features: Tensor, labels: Tensor, means: Tensor, precision: Tensor) -> Tensor:
    """Squared distance of each image to the mean of its class.  (N, D), (N,), (K, D), (D, D) -> (N,)."""
    centred = features.double() - means[labels]
    return (centred @ precision * centred).sum(-1)


def nearest(distances: Tensor, labels: Tensor, share: float, classes: int) -> Tensor:
    """1 for the round(share · n) nearest of each class of n images, at least one; else 0.  (N,), (N,) -> (N,)."""
    kept = torch.zeros_like(distances)
    for k in range(classes):
        members = (labels == k).nonzero().squeeze(-1)
        order = distances[members].argsort()
        kept[members[order[: max(1, round(share * len(members)))]]] = 1.0
    return kept

"""CleanNet (Lee et al. 2018, arXiv:1711.07131): images count by how well they fit what their class looks like.

After a classifier has been trained on all labels, a second, small network sees its features: a query encoder those of
an image, a reference encoder, by attention, those of the cluster centres of each class.  It learns on trusted images
that the two are alike where the label is right (cosine 1) and not where it is wrong (at most a margin), on all others
the same with its own verdict as the label, and to decode the query.  Then each image weighs max(0, cosine) in the
classifier's cross-entropy, or 0 or 1 by a threshold, and the two train in turn.

Layers, losses and their weights, the clustering and the small network's optimizer are those of the authors' code.
Ours: trusted images have right labels only, so half of those in a batch are shown with a random wrong class; how long
each of the two trains at a time, which the code leaves to its user, and the classifier's optimizer; features below 0,
which a ResNet has none of, count as 0 before the logarithm; clustering starts once and not ten times; the classifier
trains on the trusted images, too, with weights of the same kind; weight decay on kernels only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Annotated, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from lnl.data import Unfit
from lnl.functional import losses, schedules
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Head, Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, View, order
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels", "probe")

# Of the authors' code.
MARGIN = 0.1  # of the cosine of wrong labels, and the least one of what is taken for right
NEGATIVE_WEIGHT, RECONSTRUCTION_WEIGHT, UNVERIFIED_WEIGHT = 5.0, 0.1, 0.1
VERIFIED, UNVERIFIED = 32, 32  # images of a batch
SMALL_NETWORK = Optimizer(
    kind="sgd", learning_rate=0.01, momentum=0.9, weight_decay=1e-4, schedule="step", milestones=(0.5,)
)


class Config(Settings):
    name: Literal["clean_net"] = "clean_net"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    weigh_from: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """share of training in which all images weigh 1"""
    fit_every: Annotated[int, Field(ge=1)] = 10
    """epochs from one training of the small network to the next"""
    fit_epochs: Annotated[int, Field(ge=1)] = 5
    """its length each time, in epochs of the classifier's steps"""
    references: Annotated[int, Field(ge=1)] = 32
    """cluster centres of a class"""
    weighting: Literal["soft", "hard"] = "soft"
    """max(0, cosine), or 1 from `threshold` on and else 0"""
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.1
    """hard only: of the cosine; code: 0.1 or 0.2"""
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.01, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3)
    )


SEARCH: dict[str, Space] = {
    "method.weigh_from": Uniform(0.1, 0.6),
    "method.fit_epochs": Integer(1, 20, log=True),
    "method.references": Integer(4, 64, log=True),
    "method.weighting": Choice(("soft", "hard")),
    "method.threshold": Uniform(0.0, 0.6, when={"method.weighting": ("hard",)}),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        if not len(task.probe):
            raise Unfit("CleanNet learns from trusted images: give the trial a probe, such as probe=100.")
        self.config, self.task, self.streams = config, task, streams
        self.pool = torch.cat([task.labelled, task.probe])
        self.steps = task.steps_per_epoch(config.batch_size)
        first = schedules.first_phase(config.weigh_from, task.epochs)
        self.fits = range(first, task.epochs, config.fit_every)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        width = cast(int, self.learner.network.backbone.width)
        of_features = replace(network, name="linear", shape=(width,), weights=None, resize=None, initial=None)
        steps = self.steps * config.fit_epochs * len(self.fits)
        self.small = Learner(of_features, SMALL_NETWORK, steps, heads(), replica="clean_net/")
        self.cosines = Record(task)  # of each image and its class, NaN before the first fit

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task = self.config, self.task
        scalars = {"loss_clean_net": self.fit()} if epoch in self.fits else {}
        total = []
        for index in task.order(self.pool, config.batch_size, self.steps, self.streams["order"]):
            images = task.view(index, config.augmentation, self.streams["augment"])
            batch = images, task.labels[index], self.weights(index)
            total.append(self.learner.step(self.objective, batch))
        return {"loss": torch.stack(total).mean(), **scalars}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, weights = batch
        return (weights * losses.cross_entropy(network(images), labels)).mean()

    def weights(self, index: Tensor) -> Tensor:
        """Of the images at `index` (B,): 1 before the first fit."""
        cosines = self.cosines.of(index)
        weights = (
            cosines.clamp(min=0) if self.config.weighting == "soft" else (cosines >= self.config.threshold).float()
        )
        return torch.where(cosines.isnan(), 1.0, weights)

    def fit(self) -> Tensor:
        """Train the small network on the classifier's features, and note the cosines; returns its mean loss."""
        task, generator = self.task, self.streams["clean_net"]
        features = task.over(self.pool, self.learner.features).clamp(min=0).log1p()
        labels = task.labels[self.pool]
        references = self.references(features, labels)
        trusted = torch.arange(len(task.labelled), len(self.pool), device=labels.device)
        steps = self.steps * self.config.fit_epochs
        verified = order(trusted, VERIFIED, steps, generator)
        others = order(torch.arange(len(self.pool), device=labels.device), UNVERIFIED, steps, generator)
        right = (torch.arange(VERIFIED, device=labels.device) % 2).float()  # every other one has its own class
        total = []
        for known, unknown in zip(verified, others, strict=True):
            away = torch.randint(1, task.classes, known.shape, generator=generator, device=labels.device)
            classes = torch.where(right == 1, labels[known], (labels[known] + away) % task.classes)
            queries, shown = torch.cat([known, unknown]), torch.cat([classes, labels[unknown]])
            batch = features[queries], references[shown], right
            total.append(self.small.step(small_objective, batch))
        self.cosines.note(self.pool, self.compared(features, references, labels))
        return torch.stack(total).mean()

    def references(self, features: Tensor, labels: Tensor) -> Tensor:
        """Cluster centres of the features (N, D) of each class (K, R, D), repeated where it has fewer images."""
        from sklearn.cluster import KMeans  # plans need no scikit-learn, which takes a second

        seed = int(torch.randint(2**31, (), generator=self.streams["clean_net"], device=features.device))
        centres = features.new_zeros(self.task.classes, self.config.references, features.shape[-1])
        for label in labels.unique():
            own = features[labels == label].cpu().numpy()
            clusters = KMeans(min(self.config.references, len(own)), n_init=1, random_state=seed).fit(own)
            found = torch.from_numpy(clusters.cluster_centers_).to(centres)
            centres[label] = found[torch.arange(self.config.references, device=found.device) % len(found)]
        return centres

    @torch.no_grad()
    def compared(self, features: Tensor, references: Tensor, labels: Tensor) -> Tensor:
        """Cosine of each image's query (N, D) and its class's references, of (K, R, D): (N,)."""
        network = self.small.network.eval()
        sets = network.heads["references"](references)
        return functional.cosine_similarity(network.heads["query"](features), sets[labels], dim=-1)

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        """The weights, and as selected what the cosine's threshold takes for right."""
        cosines = self.cosines.of(self.task.labelled)
        if cosines.isnan().any():
            return Beliefs()
        selected = (cosines >= self.config.threshold).float()
        return Beliefs(clean=self.weights(self.task.labelled).clamp(max=1), selected=selected)


# ------------------------------------------------------------------------------------------------- the small network


def heads() -> Mapping[str, Head]:
    """Query encoder, its decoder and the encoder of references, on features of a width."""
    return {
        "query": lambda width: _layers(width, 256, 128),
        "decoder": lambda width: _layers(128, 256, width),
        "references": ReferenceEncoder,
    }


def _layers(*widths: int) -> nn.Sequential:
    """Linear layers, each with tanh behind it."""
    return nn.Sequential(
        *(layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.Tanh()))
    )


class ReferenceEncoder(nn.Module):
    """Sets of features (…, R, D), by attention to a learned context -> (…, 128)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.each, self.key = _layers(width, 512, 256), _layers(256, 256)
        self.context = nn.Parameter(nn.init.uniform_(torch.empty(256), -((6 / 512) ** 0.5), (6 / 512) ** 0.5))
        self.all = _layers(256, 128)

    def forward(self, references: Tensor) -> Tensor:
        each = self.each(references)
        attention = (self.key(each) @ self.context).softmax(dim=-1)
        encoded: Tensor = self.all((attention[..., None] * each).sum(-2))
        return encoded


def cosine_loss(cosines: Tensor, right: Tensor) -> Tensor:
    """1 - cosine of right labels, and 5 times what wrong ones have above the margin: (B,), (B,) -> (B,)."""
    return right * (1 - cosines) + NEGATIVE_WEIGHT * (1 - right) * (cosines - MARGIN).clamp(min=0)


def small_objective(network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Features (V + U, D), references of their classes (V + U, R, D), and whether the first V labels are right (V,)."""
    features, references, right = batch
    query = network.heads["query"](features)
    cosines = functional.cosine_similarity(query, network.heads["references"](references), dim=-1)
    known, unknown = cosines.split([len(right), len(cosines) - len(right)])
    own_verdict = (unknown >= MARGIN).float()
    supervised = torch.cat([cosine_loss(known, right), UNVERIFIED_WEIGHT * cosine_loss(unknown, own_verdict)])
    reconstruction = (network.heads["decoder"](query) - features).square().sum(-1)
    return (supervised + RECONSTRUCTION_WEIGHT * reconstruction).mean()

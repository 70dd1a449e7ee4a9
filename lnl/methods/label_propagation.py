"""Label propagation (Bai et al. 2021, arXiv:2111.10932, eq. 2 and 3): labels spread over a graph of nearest neighbours.

Nothing is trained.  The graph joins all labelled and unlabelled images by the features of the trial's network as it
starts, so that what they are worth is decided by `init_from` or `weights`.  An epoch is one iteration, and the curve
over epochs is the paper's fig. 3; its t = 20 is `epochs=20`.  New images are labelled by a vote of their neighbours'
soft labels (sec. 3.2).  Without `unlabelled`, fig. 1's ablation, the images to predict join the graph of the labelled
ones: a prediction depends on the images beside it, and is that after all iterations of the trial.

In a prediction for a training image its own label votes, too, and most strongly.  In mode `neighbours`, and clamped
`hard`, this is the given label: accuracy on the given labels and memorisation are near 1 by construction.

Finding wrong labels (`clean`) is defined here, not in the paper, which has the soft labels S Y of eq. 3 only.  In them
an image's own label comes back through its neighbours from the second iteration on.  `clean` asks what other labels
say, and takes out exactly what has come back (`lnl.functional.graph.returns`); soft labels stay those of the paper.

`clamp`: eq. 3 resets verified labels after each iteration, and where labels are wrong (fig. 2 and 3) none is verified:
the default is `off`.  With few labels among many images, `hard` or `soft` keeps them from draining away.
Corrections to eq. 2: `lnl.functional.graph`.  Departure from the paper: an image without a labelled neighbour casts
no vote.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import one_hot

from lnl.functional import graph
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task

USES = ("labels", "unlabelled")


class Config(Settings):
    name: Literal["label_propagation"] = "label_propagation"
    mode: Literal["propagation", "neighbours"] = "propagation"
    """neighbours: a vote of the given labels alone (fig. 2)"""
    unlabelled: bool = True
    """unlabelled images are in the graph; False: labelled images and those to predict alone (fig. 1's ablation)"""
    k: Annotated[int, Field(ge=1)] = 10
    """neighbours of an image; CIFAR-100: 15; where there are fewer images, all"""
    temperature: Annotated[float, Field(gt=0)] = 0.01
    """T of eq. 2, against the spread of the cosines; CIFAR-100: 0.02"""
    iterations: Annotated[int, Field(ge=1)] = 1
    """of eq. 3 an epoch"""
    clamp: Literal["off", "soft", "hard"] = "off"
    """of given labels after an iteration: none, a share of them, all"""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """soft only: share of what the neighbours say (Zhou et al. 2003)"""
    normalisation: graph.Normalisation = "symmetric"
    """D^-1/2 W D^-1/2; random_walk: D^-1 W"""
    symmetrise: graph.Symmetrise = "none"
    """of W: mean or maximum of both directions, mutual edges alone"""
    self_loops: bool = False
    """an image is its own neighbour: a negative control"""

    @model_validator(mode="after")
    def _neighbours_do_not_spread(self) -> Config:
        if self.mode == "neighbours" and (self.clamp, self.iterations, self.unlabelled) != ("off", 1, True):
            raise ValueError(
                "mode 'neighbours' spreads no labels: leave clamp, iterations and unlabelled at their defaults."
            )
        return self


SPREADING = {"method.mode": ("propagation",)}

SEARCH: dict[str, Space] = {
    "method.k": Integer(5, 50, log=True),
    "method.temperature": Uniform(0.005, 0.5, log=True),
    "method.iterations": Integer(1, 10, when=SPREADING),
    "method.clamp": Choice(("off", "soft", "hard"), when=SPREADING),
    "method.alpha": Uniform(0.1, 0.99, when=SPREADING | {"method.clamp": ("soft",)}),
    "method.symmetrise": Choice(("none", "mean", "max", "mutual"), when=SPREADING),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task = config, task
        self.learner = Learner(network, Optimizer(), 0, {})  # takes no step
        spreads = config.mode == "propagation"
        self.everyone = spreads and config.unlabelled  # is in the graph
        self.nodes = torch.cat([task.labelled, task.unlabelled]) if self.everyone else task.labelled
        self.bank = task.over(self.nodes, self.features)
        self.matrix = self.joined(self.bank)
        given = task.labels[self.nodes]
        has_label = (given >= 0).float()[:, None]
        self.start = one_hot(given.clamp(min=0), task.classes) * has_label
        self.kept = {
            "off": torch.zeros_like(has_label),
            "soft": torch.full_like(has_label, 1 - config.alpha),
            "hard": has_label,
        }[config.clamp if spreads else "hard"]
        self.scores = Record(task, task.classes)  # Y of eq. 3
        self.scores.note(self.nodes, self.start)
        self.others = Record(task, task.classes)  # S Y of eq. 3 without the image's own label
        labelled = torch.arange(len(task.labelled), device=given.device)  # they are the first nodes
        iterations = task.epochs * config.iterations if spreads else 1  # neighbours: the same in every epoch
        self.returns = graph.returns(self.matrix, self.kept, labelled, iterations)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        """`loss`: one minus the mean probability of the given labels by the labels of other images.

        `coverage`: share of the images that a label has reached; until then all classes are equally likely.
        """
        labelled, iterations = self.task.labelled, self.config.iterations
        scores = self.scores.of(self.nodes)
        for _ in range(iterations):
            spread, scores = graph.propagate(self.matrix, scores, self.start, self.kept)
        self.scores.note(self.nodes, scores)
        returned = self.returns[min((epoch + 1) * iterations, len(self.returns)) - 1]
        own = self.start[: len(labelled)]
        self.others.note(labelled, graph.without_own(spread[: len(labelled)], own, returned))
        reached = self.scores.of(self.nodes).sum(-1) > 0
        likelihood = self._given_likelihood().nan_to_num(1 / self.task.classes)
        return {"loss": 1 - likelihood.mean(), "coverage": reached.float().mean()}

    def beliefs(self) -> Beliefs:
        """`clean`: probability of the given label by the labels of other images, its own taken out."""
        labels = graph.soft_labels(self.scores.of(self.task.labelled))
        if not self.everyone:
            return Beliefs(clean=self._given_likelihood(), labels=labels)
        pseudo_labels = graph.soft_labels(self.scores.of(self.task.unlabelled))
        return Beliefs(clean=self._given_likelihood(), labels=labels, pseudo_labels=pseudo_labels)

    def predict(self, images: Tensor) -> Tensor:
        """Uniform where no neighbour has a label, or no label arrives."""
        if not self.config.unlabelled:
            return self._beside_labelled(self.features(images))
        labels = graph.soft_labels(self.scores.of(self.nodes)).nan_to_num(0)
        k, temperature = min(self.config.k, len(self.bank)), self.config.temperature
        votes = graph.neighbour_votes(self.bank, labels, self.features(images), k, temperature, self.task.classes)
        return graph.soft_labels(votes).nan_to_num(1 / self.task.classes)

    def _beside_labelled(self, features: Tensor) -> Tensor:
        """Labels that spread from the labelled images to these, (B, D) -> (B, K), over a graph of the two."""
        matrix = self.joined(torch.cat([self.bank, features]))
        start = torch.cat([self.start, features.new_zeros(len(features), self.task.classes)])
        share = 1 - self.config.alpha if self.config.clamp == "soft" else 0.0
        kept = torch.cat([self.kept, features.new_full((len(features), 1), share)])
        scores = start
        for _ in range(self.task.epochs * self.config.iterations):
            _, scores = graph.propagate(matrix, scores, start, kept)
        return graph.soft_labels(scores[len(self.bank) :]).nan_to_num(1 / self.task.classes)

    def joined(self, bank: Tensor) -> Tensor:
        """The graph of features (N, D), S of eq. 3: (N, N) sparse."""
        config = self.config
        k = min(config.k, len(bank) - (not config.self_loops))
        edges = graph.symmetrised(graph.adjacency(bank, k, config.temperature, config.self_loops), config.symmetrise)
        return graph.normalised(edges, config.normalisation).float()

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def _given_likelihood(self) -> Tensor:
        """Probability of each given label by the labels of others: (L,), NaN where none of them has arrived."""
        index = self.task.labelled
        return graph.soft_labels(self.others.of(index)).gather(-1, self.task.labels[index, None]).squeeze(-1)

"""Division of a task's labels into clean and wrong ones, once an epoch, by each of one or two networks.

DivideMix (Li, Socher & Hoi 2020, arXiv:2002.07394) tells wrong labels by their losses.  Here also: by the labels of
neighbours in feature space, by FINE (Kim et al. 2021, arXiv:2102.11628), or by two of these signals together.  Signals
are brought to [0, 1], a mixture of two components is fitted to them, and a label counts as clean where the probability
of the component with the lower signals is above a threshold.

Departures: a clean probability never rises with the signal, so that a wide first Gaussian does not win the largest
losses; losses are averaged over epochs where their first mixture overlaps (the official code: by the true noise rate);
FINE's mixtures have the settings of DivideMix's (its code: a tolerance of 1e-6 and a threshold of 0.6), and a label
needs 20 images for a mixture of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl.functional import graph, losses, mixtures, selection
from lnl.settings import Settings
from lnl.training.learner import Learner
from lnl.training.state import State
from lnl.training.streams import Streams
from lnl.training.task import Record, Task


class DivisionSettings(Settings):
    """Fields of a method that divides its labels; the defaults are DivideMix's for CIFAR-10."""

    split_source: Literal["loss", "neighbours", "fine", "product", "both"] = "loss"
    """What tells a wrong label: its loss | its neighbours' labels | FINE | loss and neighbours, by the product of their
    probabilities | or by one mixture in two dimensions."""
    embedding: Literal["current", "initial"] = "current"
    """not loss: features of the network now, or before training"""
    neighbours: Annotated[int, Field(ge=1)] = 100
    """neighbours, product, both only: of an image, at most all others"""
    neighbour_temperature: Annotated[float, Field(gt=0)] = 0.1
    """the same only: of their weights e^(cosine/temperature)"""
    average_losses: Literal["auto", "always", "never"] = "auto"
    """over epochs; the paper: at 90 % noise only"""
    history: Annotated[int, Field(ge=1)] = 5
    """auto and always only: epochs that are averaged"""
    separation: Annotated[float, Field(ge=0)] = 2.0
    """auto: averaged if the first Gaussians are closer (Ashman's D)"""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """clean: probability above it; the paper: 0.6 at 90 % noise"""
    loss_view: Literal["none", "weak", "strong", "autoaugment"] = "none"
    """for the losses that tell wrong labels"""

    @model_validator(mode="after")
    def _initial_features_are_used(self) -> DivisionSettings:
        if self.embedding == "initial" and self.split_source == "loss":
            raise ValueError("embedding initial needs a split_source that looks at features, such as neighbours")
        return self


@dataclass(frozen=True)
class Division:
    """What each network thinks of the labels in one epoch."""

    loss: Tensor  # (networks, L) the first signal, from 0 to 1
    mixture: Tensor  # (networks, 2, 3) fitted to it, see `mixtures.Mixture`
    clean: Tensor  # (networks, L) probability that the label is right
    selected: Tensor  # (networks, L) bool: it is above the threshold
    threshold: Tensor  # (networks,)
    averaged: Tensor  # () bool: whether the signals are means over epochs

    def scalars(self) -> dict[str, Tensor]:
        """Numbers for the curves: agreement of the networks, labels taken for clean and threshold of each."""
        agreement = (self.selected[0] == self.selected[-1]).float().mean()
        scalars = {"averaged": self.averaged.float(), "agreement": agreement}
        for name, values in (("labelled", self.selected.sum(-1)), ("threshold", self.threshold)):
            scalars |= {f"{name}_{which}": value for which, value in zip(("first", "second"), values, strict=False)}
        return scalars


class Divider:
    """Divides the labels of a task by the networks of one or two learners.

    Its state, kept in checkpoints, are the signals of past epochs, those of the initial features, and the decision
    whether signals are averaged.
    """

    def __init__(self, settings: DivisionSettings, task: Task, learners: Sequence[Learner], streams: Streams) -> None:
        self.settings, self.task, self.learners, self.streams = settings, task, learners, streams
        signals = 2 if settings.split_source in ("product", "both") else 1
        self.history = Record(task, len(learners), signals, settings.history)
        self.initial = Record(task, len(learners))
        self.averaging = Record(task)

    def divide(self) -> Division:
        """The division by each network as it is now, without training it."""
        settings, task, generator = self.settings, self.task, self.streams["mixture"]
        now = torch.stack([self.signals(net) for net in range(len(self.learners))])
        averages = self.averages(now)
        signals = torch.where(averages, self.averaged(now), now)
        if settings.split_source == "both":
            clean, mixture = mixtures.joint_mixture(signals, generator)
        else:
            probabilities, components = mixtures.gaussian_mixture(signals, generator, monotone=True)
            clean, mixture = probabilities.prod(-2), components[:, 0]
        if settings.split_source == "fine":
            clean = mixtures.mixture_by_class(signals[:, 0], task.labels[task.labelled], task.classes, generator)
        threshold = mixtures.reachable(settings.threshold, clean)
        return Division(signals[:, 0], mixture, clean, clean > threshold, threshold.squeeze(-1), averages)

    def keep_initial_features(self) -> None:
        """Before training: with `embedding` initial, keep the signals of the features as they are now."""
        if self.settings.embedding == "initial":
            signals = [self._by_features(net) for net in range(len(self.learners))]
            self.initial.note(self.task.labelled, torch.stack(signals, -1))

    def signals(self, net: int) -> Tensor:
        """What speaks against each given label in the eyes of network `net`, from 0 to 1: (signals, L)."""
        settings, task = self.settings, self.task
        signals = []
        if settings.split_source in ("loss", "product", "both"):
            logits = self._over_labelled(net, self.learners[net].logits)
            signals.append(losses.cross_entropy(logits, task.labels[task.labelled]))
        if settings.split_source != "loss":
            initial = settings.embedding == "initial"
            signals.append(self.initial.of(task.labelled)[:, net] if initial else self._by_features(net))
        return mixtures.normalise(torch.stack(signals))

    def _by_features(self, net: int) -> Tensor:
        """How badly the given labels fit the network's features: (L,)."""
        settings, task = self.settings, self.task
        features, labels = self._over_labelled(net, self.learners[net].features), task.labels[task.labelled]
        if settings.split_source == "fine":
            return 1 - selection.fine_scores(features, labels, task.classes).float()
        cosines, neighbours = graph.nearest(features, min(settings.neighbours, len(labels) - 1))
        return 1 - selection.neighbour_agreement(labels, cosines, neighbours, settings.neighbour_temperature)

    def _over_labelled(self, net: int, call: Callable[[Tensor], Tensor]) -> Tensor:
        """`call` on all labelled images in the view `loss_view`: (L, …)."""
        generator = self.streams.of_network("augment/loss", net)
        return self.task.over(self.task.labelled, call, self.settings.loss_view, generator)

    def averages(self, now: Tensor) -> Tensor:
        """Whether signals (networks, signals, L) are averaged over epochs, () bool, decided at the first division.

        Where even the first mixture has two modes, the losses of one epoch are enough.  Later mixtures prove nothing: a
        network that has learned a division finds it again.
        """
        settings, index = self.settings, self.task.labelled
        if settings.average_losses != "auto":
            return torch.tensor(settings.average_losses == "always", device=now.device)
        if self.averaging.of(index).isnan().any():
            mixture = mixtures.gaussian_mixture(now[:, 0], self.streams["mixture"])
            overlaps = mixtures.separation(mixture.components).mean() < settings.separation
            self.averaging.note(index, overlaps.expand(len(index)))
        return self.averaging.of(index).bool().all()

    def averaged(self, now: Tensor) -> Tensor:
        """Keep these signals (networks, signals, L) and return their mean over the last `history` epochs."""
        kept = torch.cat([self.history.of(self.task.labelled)[..., 1:], now.movedim(-1, 0).unsqueeze(-1)], -1)
        self.history.note(self.task.labelled, kept)
        return kept.nanmean(-1).movedim(0, -1)

    def state_dict(self) -> dict[str, State]:
        return {name: record.state_dict() for name, record in self._records().items()}

    def load_state_dict(self, state: Mapping[str, State]) -> None:
        for name, record in self._records().items():
            record.load_state_dict(state[name])

    def _records(self) -> dict[str, Record]:
        return {"history": self.history, "initial": self.initial, "averaging": self.averaging}

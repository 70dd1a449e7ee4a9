"""DivideMix (Li, Socher & Hoi 2020, arXiv:2002.07394): two networks divide the labels for each other, then MixMatch.

After a warm-up on all labels, each epoch both networks model their losses by two Gaussians before either is updated.
Images that one network takes for clean are the labelled ones of the other, the rest lose their label (co-divide); given
labels are refined by the own prediction (co-refinement), missing ones guessed by both networks (co-guessing).

Where paper and official code differ, or the paper is silent: a mixing coefficient per batch, as in the code (`mixup`);
L_U averages over classes (code; the paper's squared norm is lambda_u times the number of classes); 64 + 64 images a
step (code; the paper says 128); losses are taken without augmentation (`loss_view`; the augmentation paper says weak);
the learning network guesses by the statistics of its batch and moves the running ones (`guess_statistics`).
The code chooses loss averaging, threshold, confidence penalty and lambda_u by the true noise rate and kind.  Here they
are plain fields, and losses are averaged where their first mixture overlaps (`average_losses`).

Also here: the augmentation strategies of Nishi et al. 2021 (arXiv:2103.02130) as four views; division by features,
namely neighbours' labels or FINE (Kim et al. 2021, arXiv:2102.11628); a short warm-up from a trained backbone (C2D,
Zheltonozhskii et al. 2022, arXiv:2103.13646, where the guard against empty parts is from, too), or of the head alone.
Without co-division and co-guessing and with the first network alone at test, only that one is trained (Table 5).

Departures: weight decay on kernels only; a clean probability never rises with the loss, so that a wide first Gaussian
does not win the largest losses; the learning rate goes by epochs and the share of the present one, as their lengths
differ.  Where there are unlabelled images, which are not used, no epoch has fewer steps than these would fill, so that
methods with and without them train for as long.  FINE's mixtures have the settings of DivideMix's (its code: a
tolerance of 1e-6 and a threshold of 0.6), and a label needs 20 images for one of its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Generator, Tensor

from lnl.functional import graph, losses, mixtures, schedules, selection, targets
from lnl.networks import Network, heads
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, order

USES = ("labels", "two networks")

View = Literal["none", "weak", "strong", "autoaugment"]


class Config(Settings):
    """Defaults are the official code's for CIFAR-10."""

    name: Literal["dividemix"] = "dividemix"
    batch_size: Annotated[int, Field(ge=2)] = 64
    """labelled images a step, and as many unlabelled; twice in warm-up"""

    warm_up: Annotated[int, Field(ge=0)] = 10
    """first epochs, on all labels; the paper: 10, CIFAR-100: 30"""
    warm_up_updates: Literal["all", "head"] = "all"
    """head: a trained backbone is only probed, so cannot memorise"""
    confidence_penalty: Annotated[float, Field(ge=0)] = 0.0
    """weight of Σ p log p in warm-up; the paper: 1 if asymmetric"""

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
    co_divide: bool = True
    """learn from the other network's division, not from the own"""

    refine: bool = True
    """mix the labels of clean images with predictions, eq. 3"""
    co_guess: bool = True
    """the labels of the others by both networks, not by the own alone"""
    guess_statistics: Literal["moving", "batch", "running"] = "moving"
    """BatchNorm of the network that learns, as it guesses: by the batch, moving the running statistics | by the batch |
    by the running ones (inference mode, as networks with other layers of chance need it)."""
    views: Annotated[int, Field(ge=1)] = 2
    """M, per image"""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """T of sharpening both, eq. 4"""
    mixup: Literal["batch", "image", "none"] = "batch"
    """who shares a mixing coefficient"""
    alpha: Annotated[float, Field(gt=0)] = 4.0
    """mixup batch and image only: of Beta(alpha, alpha)"""
    lambda_u: Annotated[float, Field(ge=0)] = 25.0
    """of L_U; the paper: 0 with few or asymmetric wrong labels, to 150"""
    ramp: Annotated[int, Field(ge=0)] = 16
    """epochs over which lambda_u rises from 0, after warm-up"""
    prior: bool = True
    """the penalty of uneven predictions, eq. 11"""
    ensemble: Literal["logits", "probabilities", "first"] = "logits"
    """averaged at test; or the first network"""

    warm_up_view: View = "weak"
    """of images in warm-up"""
    loss_view: View = "none"
    """for the losses that tell wrong labels"""
    guess_view: View = "weak"
    """X of AugDesc-XY: for guesses (analysis)"""
    train_view: View = "weak"
    """Y of AugDesc-XY: for learning (descent)"""
    separate_views: bool = False
    """whether X and Y are drawn apart where they are equal.  Not drawn apart, they are the same images: Runtime-X, and
    DivideMix itself with X = weak.  Different ones are drawn apart in any case."""
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4, schedule="step", milestones=(0.5,)
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.embedding == "initial" and self.split_source == "loss":
            raise ValueError("embedding initial needs a split_source that looks at features, such as neighbours")
        if self.warm_up_updates == "head" and not self.warm_up:
            raise ValueError("warm_up_updates head needs a warm-up: let warm_up be one epoch or more")
        return self


BY_NEIGHBOURS = {"method.split_source": ("neighbours", "product", "both")}

SEARCH: dict[str, Space] = {
    "method.lambda_u": Choice((0.0, 25.0, 50.0, 150.0)),  # the paper's
    "method.threshold": Uniform(0.05, 0.95),
    "method.temperature": Uniform(0.1, 1.0),
    "method.alpha": Uniform(0.2, 8.0, log=True, when={"method.mixup": ("batch", "image")}),
    "method.warm_up": Integer(1, 30),
    "method.confidence_penalty": Uniform(0.0, 1.0),
    "method.neighbours": Integer(10, 200, log=True, when=BY_NEIGHBOURS),
    "method.neighbour_temperature": Uniform(0.02, 0.5, log=True, when=BY_NEIGHBOURS),
    "method.optimizer.learning_rate": Uniform(1e-4, 0.2, log=True),
}


@dataclass(frozen=True)
class Division:
    """What each network thinks of the labels, before anybody learns from it."""

    loss: Tensor  # (networks, L) what is modelled, from 0 to 1
    mixture: Tensor  # (networks, 2, 3) of it, see `selection.Mixture`
    clean: Tensor  # (networks, L) probability that the label is right
    selected: Tensor  # (networks, L) bool: it is above the threshold
    threshold: Tensor  # (networks,)
    averaged: Tensor  # () bool: over epochs

    def scalars(self) -> dict[str, Tensor]:
        agreement = (self.selected[0] == self.selected[-1]).float().mean()
        found = {"averaged": self.averaged.float(), "agreement": agreement}
        for name, values in (("labelled", self.selected.sum(-1)), ("threshold", self.threshold)):
            found |= {f"{name}_{which}": value for which, value in zip(("first", "second"), values, strict=False)}
        return found


@dataclass(frozen=True)
class MixedBatch:
    """Mixed images (2·M·B, C, H, W) and soft targets (2·M·B, K): the labelled half first."""

    images: Tensor
    targets: Tensor
    weight: float  # lambda_u now


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        if config.warm_up >= task.epochs:
            raise ValueError(
                f"A warm-up of {config.warm_up} epochs leaves none of {task.epochs} for DivideMix: "
                "raise the trial's epochs or lower warm_up."
            )
        alone = not config.co_divide and not config.co_guess and config.ensemble == "first"

        def learner(replica: str) -> Learner:
            classifier = {"classifier": partial(heads.linear, classes=task.classes)}
            return Learner(network, config.optimizer, 0, classifier, replica=replica)  # see `_keep_pace` for its length

        self.first, self.second = learner(""), None if alone else learner("second/")
        self.learners = [one for one in (self.first, self.second) if one]
        networks = len(self.learners)
        signals = 2 if config.split_source in ("product", "both") else 1
        self.history = Record(task, networks, signals, config.history)
        self.initial = Record(task, networks)
        self.averaging = Record(task)
        self.refined = Record(task, networks, task.classes)
        self.division: Division | None = None  # made anew in every epoch after warm-up

    # ----------------------------------------------------------------------------------------------------- one epoch

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        networks = range(len(self.learners))
        if epoch == 0 and self.config.embedding == "initial":
            self.initial.note(self.task.labelled, torch.stack([self._by_features(net) for net in networks], -1))
        if epoch < self.config.warm_up:
            return {"loss": torch.stack([self._warm_up(net, epoch) for net in networks]).mean()}
        self.division = made = self.divide()  # by both networks, before either learns
        judges = reversed(networks) if self.config.co_divide else networks
        learnt = [
            self._learn(net, epoch, made.clean[by], made.selected[by]) for net, by in zip(networks, judges, strict=True)
        ]
        return {"loss": torch.stack(learnt).mean(), **made.scalars()}

    def _warm_up(self, net: int, epoch: int) -> Tensor:
        config, task, learner = self.config, self.task, self.learners[net]
        size = 2 * config.batch_size
        steps = task.steps_per_epoch(size)
        total = []
        for step, index in enumerate(order(task.labelled, size, steps, self._stream("order", net))):
            self._keep_pace(learner, epoch + step / steps)
            images = task.view(index, config.warm_up_view, self._stream("augment", net))
            total.append(learner.step(self.warm_up_objective, (images, task.labels[index])))
        return torch.stack(total).mean()

    def _learn(self, net: int, epoch: int, clean: Tensor, selected: Tensor) -> Tensor:
        """One network's epoch on a division: probabilities (L,) and what is taken for clean (L,) bool."""
        config, learner = self.config, self.learners[net]
        labelled, unlabelled = _places(selected), _places(~selected)
        images = max(2 * len(labelled), len(self.task.unlabelled))  # a step has as many without label as with one
        steps = self.task.steps or math.ceil(images / (2 * config.batch_size))
        labelled = order(labelled, config.batch_size, steps, self._stream("order", net))
        unlabelled = order(unlabelled, config.batch_size, steps, self._stream("order/unlabelled", net))
        total = []
        for step in range(steps):
            self._keep_pace(learner, epoch + step / steps)
            weight = self.weight(epoch + step / steps)
            batch = self.mixed_batch(net, labelled[step], unlabelled[step], clean[labelled[step]], weight)
            total.append(learner.step(self.objective, batch))
        return torch.stack(total).mean()

    def weight(self, epoch: float) -> float:
        """lambda_u at a point of training."""
        since = max(0.0, epoch - self.config.warm_up)
        return self.config.lambda_u * schedules.linear_ramp(since, self.config.ramp)

    def _keep_pace(self, learner: Learner, epoch: float) -> None:
        """Set the learning rate of a point of training: the learner counts steps, but here epochs differ in theirs."""
        optimizer = self.config.optimizer
        rate = optimizer.learning_rate * optimizer.scale(epoch / self.task.epochs)
        learner.settings = optimizer.model_copy(update={"schedule": "constant", "learning_rate": rate})

    def _stream(self, name: str, net: int) -> Generator:
        return self.streams[name if net == 0 else f"second/{name}"]

    # ------------------------------------------------------------------------------------------------------ division

    def divide(self) -> Division:
        """By every network: whose label is right, as far as its mixture tells."""
        config, task, generator = self.config, self.task, self.streams["mixture"]
        now = torch.stack([self._signals(net) for net in range(len(self.learners))])
        averages = self.averages(now)
        signals = torch.where(averages, self.averaged(now), now)
        if config.split_source == "both":
            clean, mixture = mixtures.joint_mixture(signals, generator)
        else:
            each, components = mixtures.gaussian_mixture(signals, generator, monotone=True)
            clean, mixture = each.prod(-2), components[:, 0]
        if config.split_source == "fine":
            clean = mixtures.mixture_by_class(signals[:, 0], task.labels[task.labelled], task.classes, generator)
        threshold = mixtures.reachable(config.threshold, clean)
        return Division(signals[:, 0], mixture, clean, clean > threshold, threshold.squeeze(-1), averages)

    def _signals(self, net: int) -> Tensor:
        """What speaks against each given label, from 0 to 1: (signals, L)."""
        config, task = self.config, self.task
        signals = []
        if config.split_source in ("loss", "product", "both"):
            logits = self._seen(net, self.learners[net].logits)
            signals.append(losses.cross_entropy(logits, task.labels[task.labelled]))
        if config.split_source != "loss":
            initial = config.embedding == "initial"
            signals.append(self.initial.of(task.labelled)[:, net] if initial else self._by_features(net))
        return mixtures.normalise(torch.stack(signals))

    def _by_features(self, net: int) -> Tensor:
        """How badly the given labels fit the network's features: (L,)."""
        config, task = self.config, self.task
        features, labels = self._seen(net, self.learners[net].features), task.labels[task.labelled]
        if config.split_source == "fine":
            return 1 - selection.fine_scores(features, labels, task.classes).float()
        cosines, neighbours = graph.nearest(features, min(config.neighbours, len(labels) - 1))
        return 1 - selection.neighbour_agreement(labels, cosines, neighbours, config.neighbour_temperature)

    def _seen(self, net: int, look: Callable[[Tensor], Tensor]) -> Tensor:
        """All labelled images, as `loss_view` shows them: (L, …)."""
        return self.task.over(self.task.labelled, look, self.config.loss_view, self._stream("augment/loss", net))

    def averages(self, now: Tensor) -> Tensor:
        """Whether signals (networks, signals, L) are averaged over epochs, () bool, decided at the first division.

        Where even the first mixture has two modes, the losses of one epoch tell enough.  Later mixtures prove nothing:
        a network that has learned a division finds it again.
        """
        config, index = self.config, self.task.labelled
        if config.average_losses != "auto":
            return torch.tensor(config.average_losses == "always", device=now.device)
        if self.averaging.of(index).isnan().any():
            mixture = mixtures.gaussian_mixture(now[:, 0], self.streams["mixture"])
            overlaps = mixtures.separation(mixture.components).mean() < config.separation
            self.averaging.note(index, overlaps.expand(len(index)))
        return self.averaging.of(index).bool().all()

    def averaged(self, now: Tensor) -> Tensor:
        """Keep these signals (networks, signals, L) and return their mean over the last `history` epochs."""
        kept = torch.cat([self.history.of(self.task.labelled)[..., 1:], now.movedim(-1, 0).unsqueeze(-1)], -1)
        self.history.note(self.task.labelled, kept)
        return kept.nanmean(-1).movedim(0, -1)

    # ------------------------------------------------------------------------------------------------------ learning

    def mixed_batch(self, net: int, labelled: Tensor, unlabelled: Tensor, clean: Tensor, weight: float) -> MixedBatch:
        """Refine, guess, sharpen and mix (Algorithm 1), for places among the labelled images (B,)."""
        config, task, views = self.config, self.task, self.config.views
        labelled, unlabelled = task.labelled[labelled], task.labelled[unlabelled]
        index = torch.cat([labelled.repeat(views), unlabelled.repeat(views)])
        images = task.view(index, config.guess_view, self._stream("augment", net))
        own = self._guess(self.learners[net], images, len(labelled)).view(2, views, len(labelled), -1)
        guesses = own[1]
        if config.co_guess:
            others = [self.learners[1 - net].logits(images[len(index) // 2 :]).softmax(-1).view_as(guesses)]
            guesses = torch.cat([guesses, *others])
        given = targets.one_hot(task.labels[labelled], task.classes)
        refined = co_refine(given, clean, own[0], config.temperature) if config.refine else given
        guessed = co_guess(guesses, config.temperature)
        self.refined.values[labelled, net], self.refined.values[unlabelled, net] = refined, guessed

        if config.separate_views or config.train_view != config.guess_view:
            images = task.view(index, config.train_view, self._stream("augment/descent", net))
        soft = torch.cat([refined.repeat(views, 1), guessed.repeat(views, 1)])
        if config.mixup != "none":
            generator = self._stream("mixup", net)
            count = 1 if config.mixup == "batch" else len(index)
            coefficients = targets.mixup_coefficients(config.alpha, count, generator)
            permutation = torch.randperm(len(index), generator=generator, device=generator.device)
            images, soft = targets.mixup(images, soft, permutation, coefficients)
        return MixedBatch(images, soft, weight)

    def _guess(self, learner: Learner, images: Tensor, count: int) -> Tensor:
        if self.config.guess_statistics == "running":
            return learner.logits(images).softmax(-1)
        moves = self.config.guess_statistics == "moving"
        return torch.cat([learner.guess(view, update_statistics=moves) for view in images.split(count)])

    def warm_up_objective(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        if self.config.warm_up_updates == "head":
            network.backbone.eval()  # its BatchNorm statistics stay, too
            with torch.no_grad():
                features = network.features(images)
            logits = network.heads["classifier"](features)
        else:
            logits = network(images)
        penalty = losses.negative_entropy(logits).mean()
        return losses.cross_entropy(logits, labels).mean() + self.config.confidence_penalty * penalty

    def objective(self, network: Network, batch: MixedBatch) -> Tensor:
        """L_X + lambda_u L_U + L_reg, eqs. 9 to 12."""
        logits, half = network(batch.images), len(batch.images) // 2
        labelled = losses.soft_cross_entropy(logits[:half], batch.targets[:half]).mean()
        unlabelled = losses.squared_error(logits[half:], batch.targets[half:]).mean()
        prior = losses.uniform_prior(logits) if self.config.prior else 0.0
        return labelled + batch.weight * unlabelled + prior

    # ---------------------------------------------------------------------------------------------------- prediction

    def predict(self, images: Tensor) -> Tensor:
        learners = self.learners[:1] if self.config.ensemble == "first" else self.learners
        logits = torch.stack([learner.logits(images) for learner in learners])
        if self.config.ensemble == "probabilities":
            return logits.softmax(-1).mean(0)
        return logits.mean(0).softmax(-1)  # the class of the code's sum

    def features(self, images: Tensor) -> Tensor:
        return self.first.features(images)

    def beliefs(self) -> Beliefs:
        made = self.division
        if made is None:
            return Beliefs()
        labels = self.refined.of(self.task.labelled).movedim(1, 0)
        return Beliefs(
            loss=made.loss, clean=made.clean, selected=made.selected.float(), labels=labels, mixture=made.mixture
        )


def co_refine(given: Tensor, clean: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """The given label as far as it is clean, else the prediction, sharpened (eqs. 3 and 4).

    One-hot labels (B, K), probabilities (B,), the own network's predictions of each view (M, B, K) -> (B, K).
    """
    return targets.sharpen(torch.lerp(predictions.mean(0), given, clean.unsqueeze(-1)), temperature)


def co_guess(predictions: Tensor, temperature: float) -> Tensor:
    """The mean over networks and views, sharpened.  Predictions (2M, B, K) -> (B, K)."""
    return targets.sharpen(predictions.mean(0), temperature)


def _places(chosen: Tensor) -> Tensor:
    """Where (L,) is true, or all where it never is: equal probabilities speak for and against everybody."""
    return (chosen if chosen.any() else ~chosen).nonzero().squeeze(-1)

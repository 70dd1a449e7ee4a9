"""DivideMix (Li, Socher & Hoi 2020, arXiv:2002.07394): two networks divide the labels for each other, then MixMatch.

After a warm-up on all labels, each epoch both networks model their losses by two Gaussians before either is updated.
Images that one network takes for clean are the labelled ones of the other, the rest lose their label (co-divide); given
labels are refined by the own prediction (co-refinement), missing ones guessed by both networks (co-guessing).

Where paper and official code differ, or the paper is silent: a mixing coefficient per batch, as in the code (`mixup`);
L_U averages over classes (code; the paper's squared norm is lambda_u times the number of classes); 64 + 64 images a
step (code; the paper says 128); losses are taken without augmentation (`loss_view`; the augmentation paper says weak);
the learning network guesses by the statistics of its batch and moves the running ones (`guess_statistics`).
The code chooses loss averaging, threshold, confidence penalty and lambda_u by the true noise rate and kind.  Here they
are plain fields.  How labels are divided says `lnl.training.division`.

Also here: the augmentation strategies of Nishi et al. 2021 (arXiv:2103.02130) as four views; a short warm-up from a
trained backbone (C2D, Zheltonozhskii et al. 2022, arXiv:2103.13646, where the guard against empty parts is from, too),
or of the head alone.  Without co-division and co-guessing and with the first network alone at test, only that one is
trained (Table 5).

Departures: weight decay on kernels only; the learning rate goes by epochs and the share of the present one, as their
lengths differ; an epoch has ⌈n/B⌉ steps, of which the ramp of lambda_u counts the share (code: ⌊n/B⌋ + 1); of a step's
forward passes those of the labelled views come first (code: of the unlabelled ones), which the moving statistics alone
feel.  Where there are unlabelled images, which are not used, no epoch has fewer steps than these would fill,
so that methods with and without them train for as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl.functional import losses, schedules, selection, targets
from lnl.networks import Network
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.division import Divider, Division, DivisionSettings
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task
from lnl.training.views import StrongView, WeakView

USES = ("labels", "two networks")

View = Literal["none", "weak", "strong", "autoaugment"]


class Config(DivisionSettings):
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

    co_divide: bool = True
    """learn from the other network's division, not from the own"""

    refine: bool = True
    """mix the labels of clean images with predictions, eq. 3"""
    co_guess: bool = True
    """the labels of the others by both networks, not by the own alone"""
    guess_statistics: Literal["moving", "batch", "running"] = "moving"
    """BatchNorm of the network that learns, as it guesses: by the batch, moving the running statistics | by the batch |
    by the running ones (inference mode, which networks with dropout need)."""
    views: Annotated[int, Field(ge=1)] = 2
    """M, per image"""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """T of sharpening both, eq. 4"""
    mixup: Literal["batch", "image", "none"] = "batch"
    """which images share a mixing coefficient"""
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
    guess_view: View = "weak"
    """X of AugDesc-XY: for guesses (analysis)"""
    train_view: View = "weak"
    """Y of AugDesc-XY: for learning (descent)"""
    separate_views: bool = False
    """whether X and Y are drawn apart where they are equal.  Not drawn apart, they are the same images: Runtime-X, and
    DivideMix itself with X = weak.  Different ones are drawn apart in any case."""
    weak: WeakView = WeakView(padding="zeros")
    strong: StrongView = StrongView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.02, momentum=0.9, weight_decay=5e-4, schedule="step", milestones=(0.5,)
    )

    @model_validator(mode="after")
    def _head_is_trained(self) -> Config:
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
class DivideMixBatch:
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

        # Of no length: see `_set_learning_rate`.
        self.first = Learner.classifier(network, config.optimizer, 0, task.classes)
        self.second = None if alone else Learner.classifier(network, config.optimizer, 0, task.classes, "second/")
        self.learners = [learner for learner in (self.first, self.second) if learner]
        self.divider = Divider(config, task, self.learners, streams)
        self.refined = Record(task, len(self.learners), task.classes)
        self.division: Division | None = None  # of the present epoch, after warm-up

    # ----------------------------------------------------------------------------------------------------- one epoch

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        networks = range(len(self.learners))
        if epoch == 0:
            self.divider.keep_initial_features()
        if epoch < self.config.warm_up:
            return {"loss": torch.stack([self._warm_up(net, epoch) for net in networks]).mean()}
        self.division = division = self.divider.divide()  # by both networks, before either learns
        judges = reversed(networks) if self.config.co_divide else networks
        losses_of_networks = [
            self._learn(net, epoch, division.clean[judge], division.selected[judge])
            for net, judge in zip(networks, judges, strict=True)
        ]
        return {"loss": torch.stack(losses_of_networks).mean(), **division.scalars()}

    def _warm_up(self, net: int, epoch: int) -> Tensor:
        config, task, learner = self.config, self.task, self.learners[net]
        size = 2 * config.batch_size
        steps = task.steps_per_epoch(size)
        total = []
        for step, index in enumerate(task.order(task.labelled, size, steps, self.streams.of_network("order", net))):
            self._set_learning_rate(learner, epoch + step / steps)
            images = task.view(index, config.warm_up_view, self.streams.of_network("augment", net))
            total.append(learner.step(self.warm_up_objective, (images, task.labels[index])))
        return torch.stack(total).mean()

    def _learn(self, net: int, epoch: int, clean: Tensor, selected: Tensor) -> Tensor:
        """One network's epoch on a division: probabilities (L,) and what is taken for clean (L,) bool."""
        config, learner = self.config, self.learners[net]
        labelled, unlabelled = selection.indices_or_all(selected), selection.indices_or_all(~selected)
        images = max(2 * len(labelled), len(self.task.unlabelled))  # a step has as many without label as with one
        steps = self.task.steps or math.ceil(images / (2 * config.batch_size))
        labelled = self.task.order(labelled, config.batch_size, steps, self.streams.of_network("order", net))
        unlabelled = self.task.order(
            unlabelled, config.batch_size, steps, self.streams.of_network("order/unlabelled", net)
        )
        total = []
        for step in range(steps):
            self._set_learning_rate(learner, epoch + step / steps)
            weight = self.weight(epoch + step / steps)
            batch = self.mixed_batch(net, labelled[step], unlabelled[step], clean[labelled[step]], weight)
            total.append(learner.step(self.objective, batch))
        return torch.stack(total).mean()

    def weight(self, epoch: float) -> float:
        """lambda_u at a point of training."""
        since = max(0.0, epoch - self.config.warm_up)
        return self.config.lambda_u * schedules.linear_ramp(since, self.config.ramp)

    def _set_learning_rate(self, learner: Learner, epoch: float) -> None:
        """Set the rate that the schedule gives here: learners count steps, but these epochs differ in length."""
        optimizer = self.config.optimizer
        rate = optimizer.learning_rate * optimizer.scale(epoch / self.task.epochs)
        learner.settings = optimizer.model_copy(update={"schedule": "constant", "learning_rate": rate})

    # ------------------------------------------------------------------------------------------------------ learning

    def mixed_batch(
        self, net: int, labelled: Tensor, unlabelled: Tensor, clean: Tensor, weight: float
    ) -> DivideMixBatch:
        """Refine, guess, sharpen and mix (Algorithm 1).  Positions (B,) each among `task.labelled`, `clean` (B,)."""
        config, task, views = self.config, self.task, self.config.views
        labelled, unlabelled = task.labelled[labelled], task.labelled[unlabelled]
        index = torch.cat([labelled.repeat(views), unlabelled.repeat(views)])
        images = task.view(index, config.guess_view, self.streams.of_network("augment", net))
        own = self._guess(self.learners[net], images, len(labelled)).view(2, views, len(labelled), -1)
        guesses = own[1]
        if config.co_guess:
            by_other = [self.learners[1 - net].logits(images[len(index) // 2 :]).softmax(-1).view_as(guesses)]
            guesses = torch.cat([guesses, *by_other])
        given = targets.one_hot(task.labels[labelled], task.classes)
        refined = targets.co_refine(given, clean, own[0], config.temperature) if config.refine else given
        guessed = targets.co_guess(guesses, config.temperature)
        self.refined.values[labelled, net], self.refined.values[unlabelled, net] = refined, guessed

        if config.separate_views or config.train_view != config.guess_view:
            images = task.view(index, config.train_view, self.streams.of_network("augment/descent", net))
        soft = torch.cat([refined.repeat(views, 1), guessed.repeat(views, 1)])
        if config.mixup != "none":
            generator = self.streams.of_network("mixup", net)
            count = 1 if config.mixup == "batch" else len(index)
            coefficients = targets.mixup_coefficients(config.alpha, count, generator)
            permutation = torch.randperm(len(index), generator=generator, device=generator.device)
            images, soft = targets.mixup(images, soft, permutation, coefficients)
        return DivideMixBatch(images, soft, weight)

    def _guess(self, learner: Learner, images: Tensor, count: int) -> Tensor:
        """Class probabilities of the learning network, in forward passes of `count` images: (N, C, H, W) -> (N, K)."""
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

    def objective(self, network: Network, batch: DivideMixBatch) -> Tensor:
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
        division = self.division
        if division is None:
            return Beliefs()
        labels = self.refined.of(self.task.labelled).movedim(1, 0)
        return Beliefs(
            loss=division.loss,
            clean=division.clean,
            selected=division.selected.float(),
            labels=labels,
            mixture=division.mixture,
        )

"""IEG, "Distilling effective supervision from severe label noise" (Zhang et al. 2020, arXiv:1910.00701).

A step of its Algorithm 1: pseudo-labels from K views; weights of examples and coefficients of their labels by one
gradient of a trusted probe's loss through a virtual step; MixUp of probe and training images; a consistency loss.

Followed from the paper where the official code (google-research/ieg) differs, with the code's choice as a field:
`loss_average`, `logit_norm`, `normaliser`, `mixup`, `meta_weight_decay`.  The other way round: the paper splits a batch
by a threshold whose value it does not give and which the code does not have, so `threshold` is off by default.  From
the code, where the paper is silent: the momentum and constants of the virtual step, probe images drawn with replacement
for MixUp, one BatchNorm batch per view and one for all mixed images, of which the weak view's alone moves the running
statistics (`batch_norm`), hyper-parameters and schedule (first of the cosine cycles 500 of 200,000 steps).  Ours: no
gradient flows through a pseudo-label anywhere (the code lets it in the virtual step, where the closed form would miss
it); the strong view starts from the image and not from its weak view, shifts by 2 of 32 pixels (code: by 2 and then by
4), and AutoAugment comes without cutout (`strong` has it); a probe image is seen through a weak view; weight decay on
kernels only (the code's WRN decays all weights).  The default weight decay is the code's for its WRN; that of its light
ResNet29 is 2e-4, which `paper_tables` and `probe_size` set.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl import networks
from lnl.data import Unfit
from lnl.functional import losses, meta, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, balanced_order
from lnl.training.views import StrongView, WeakView

USES = ("labels", "probe")


class Config(Settings):
    name: Literal["ieg"] = "ieg"
    batch_size: Annotated[int, Field(ge=2)] = 100
    probe_batch_size: Annotated[int, Field(ge=1)] = 100
    """trusted images a step, for the meta step"""

    views: Annotated[int, Field(ge=1)] = 2
    """K: a pseudo-label is the sharpened mean prediction of one weak and K - 1 strong views"""
    strong_view: Literal["autoaugment", "strong", "weak"] = "autoaugment"
    """of the K - 1 others; strong: RandAugment"""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """τ of sharpening"""
    logit_norm: bool = False
    """logits of pseudo-labels and of mixed images are divided by their root mean square"""

    # The meta step: one virtual step from weights 1/B and label coefficients `initial_coefficient`.
    meta_gradient: meta.MetaGradient = "jvp"
    """how it is computed: see `lnl.functional.meta`"""
    meta_rate: Annotated[float, Field(gt=0)] = 0.1
    """α of the virtual step, not scheduled"""
    meta_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """share of sgd's momentum buffer in the virtual step"""
    meta_weight_decay: bool = False
    """the optimizer's weight decay in both losses of the meta step (code)"""
    initial_coefficient: Annotated[float, Field(ge=0, le=1)] = 0.9
    """λ0 of the target λ y + (1 - λ) g"""
    normaliser: Annotated[float, Field(ge=0)] = 0.0
    """added to the sum that divides the weights; code: 1e-5"""
    threshold: Annotated[float, Field(gt=0)] | None = None
    """T in units of 1/B: lighter images are mixed up with g, others with y and without their strong views"""

    # L = L_w + L_λ + L_β^p + p L_β^u + k L_KL, each with its switch.
    use_weights: bool = True
    """L_w: weighted cross-entropy to λ0 y + (1 - λ0) g"""
    use_coefficients: bool = True
    """L_λ: cross-entropy to y or g, whichever the coefficient chooses"""
    use_probe: bool = True
    """L_β^p: mixed images that are mainly a probe image"""
    mixed_weight: Annotated[float, Field(ge=0)] = 5.0
    """p, of L_β^u: mixed images that are mainly a training image; 0: none"""
    consistency_weight: Annotated[float, Field(ge=0)] = 20.0
    """k, of L_KL = KL(weak view || strong view); 0: none"""
    loss_average: Literal["paper", "code"] = "paper"
    """code: (L_w + L_λ) / 2"""
    batch_norm: Literal["weak", "all"] = "weak"
    """what moves running statistics: the weak view's forward pass (code) | strong and mixed images', too"""
    mixup: Literal["beta", "code", "none"] = "beta"
    """law of l: Beta(α, α) | the code's max(m, 1 - m), m = U^(1/α)/2"""
    alpha: Annotated[float, Field(gt=0)] = 0.5
    """of MixUp"""
    weak: WeakView = WeakView(shift=1 / 16, padding="zeros")
    strong: StrongView = StrongView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=5e-4, schedule="restarts", first_cycle=1 / 400, average=0.999
    )

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.views == 1 and self.consistency_weight:
            raise ValueError("one view is consistent with nothing: set consistency_weight to 0, or views to 2 or more")
        if self.meta_momentum and not (self.optimizer.kind == "sgd" and self.optimizer.momentum):
            raise ValueError(
                "meta_momentum goes on with sgd's momentum: give the optimizer one, or set meta_momentum to 0"
            )
        return self


SEARCH: dict[str, Space] = {
    "probe": Integer(10, 1000, log=True),  # M: 10 to 1,000 in the paper
    "method.threshold": Choice((None, 0.25, 0.5, 1.0, 2.0)),
    "method.mixed_weight": Uniform(0.0, 10.0),
    "method.consistency_weight": Uniform(0.0, 50.0),
    "method.temperature": Uniform(0.1, 1.0),
    "method.views": Integer(2, 4),
    "method.alpha": Uniform(0.1, 2.0, log=True, when={"method.mixup": ("beta", "code")}),
    "method.use_coefficients": Choice((True, False)),
    "method.initial_coefficient": Uniform(0.5, 1.0),
    "method.logit_norm": Choice((False, True)),
    "method.optimizer.learning_rate": Uniform(0.01, 0.3, log=True),
}


@dataclass(frozen=True)
class IegBatch:
    """What one step learns from: B training images, and B + K·B mixed ones, the mainly trusted ones first."""

    views: list[Tensor]  # K times (B, C, H, W), the weak view first
    given: Tensor  # (B, classes) one-hot
    guess: Tensor  # (B, classes)
    weights: Tensor  # (B,)
    coefficients: Tensor  # (B,) 0 or 1
    mixed: Tensor  # (B + K·B, C, H, W)
    mixed_targets: Tensor  # (B + K·B, classes)
    counted: Tensor  # (K·B,) 0 or 1: whether a mixed training image counts


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        if not len(task.probe):
            raise Unfit("ieg learns from trusted images: give the trial a probe, such as probe=100.")
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.weights, self.coefficients, self.guesses = Record(task), Record(task), Record(task, task.classes)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        training = task.order(task.labelled, config.batch_size, self.steps, streams["order"])
        probe = balanced_order(
            task.probe, task.labels[task.probe], config.probe_batch_size, self.steps, streams["order/probe"]
        )
        rows = []
        for index, trusted in zip(training, probe, strict=True):
            batch = self.batch(index, trusted)
            loss = self.learner.step(self.objective, batch)
            rows.append(torch.stack([loss, (batch.weights > 0).float().mean(), batch.coefficients.mean()]))
        return dict(zip(("loss", "share_weighted", "coefficient"), torch.stack(rows).mean(0), strict=True))

    def batch(self, index: Tensor, trusted: Tensor) -> IegBatch:
        """Lines 1 to 5 of Algorithm 1 for training images (B,) and probe images (P,)."""
        config, task, streams = self.config, self.task, self.streams
        views = [task.view(index, "weak", streams["augment"])]
        views += [task.view(index, config.strong_view, streams["augment/strong"]) for _ in range(config.views - 1)]
        probe = task.view(trusted, "weak", streams["augment/probe"])
        probe_labels = task.labels[trusted]
        given = targets.one_hot(task.labels[index], task.classes)
        guess = pseudo_labels(
            torch.stack([self.learner.batch_logits(view) for view in views]), config.temperature, config.logit_norm
        )
        weights, coefficients = self.data_coefficients(views[0], given, guess, (probe, probe_labels))
        for record, values in ((self.weights, weights), (self.coefficients, coefficients), (self.guesses, guess)):
            record.note(index, values)

        # Split, with sizes that never change: where the given label is believed, the weak view stands in for each
        # strong one, and only the weak view itself counts.
        doubted = torch.ones_like(weights, dtype=torch.bool)
        if config.threshold is not None:
            doubted = weights < config.threshold / len(index)
        replaced = [torch.where(doubted.view(-1, *[1] * (view.ndim - 1)), view, views[0]) for view in views[1:]]
        counted = torch.cat([torch.ones_like(weights), *[doubted.float()] * len(replaced)])
        soft = torch.where(doubted[:, None], guess, given).repeat(config.views, 1)

        again = torch.randint(len(trusted), (len(index),), generator=streams["probe"], device=trusted.device)
        joint = torch.cat([probe[again], views[0], *replaced])
        joint_targets = torch.cat([targets.one_hot(probe_labels[again], task.classes), soft])
        partners = torch.randperm(len(joint), generator=streams["mixup"], device=joint.device)
        mixed, mixed_targets = targets.mixup(joint, joint_targets, partners, self._shares(len(joint)))
        return IegBatch(views, given, guess, weights, coefficients, mixed, mixed_targets, counted)

    def data_coefficients(
        self, images: Tensor, given: Tensor, guess: Tensor, probe_batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The meta step: weights w* and label coefficients λ* (B,) of weak views (B, C, H, W)."""
        config = self.config
        start = torch.full((len(images),), 1 / len(images), device=images.device)
        label_start = torch.full_like(start, config.initial_coefficient)
        if not (config.use_weights or config.use_coefficients or config.threshold is not None):
            return start, label_start  # which are not used

        def loss(logits: Tensor, weights: Tensor, coefficients: Tensor) -> Tensor:
            return (weights * losses.soft_cross_entropy(logits, blend(given, guess, coefficients))).sum()

        by_weight, by_coefficient = self.learner.virtual(
            loss,
            [start, label_start],
            images,
            self.probe_loss,
            probe_batch,
            rate=config.meta_rate,
            momentum=config.meta_momentum,
            weight_decay=config.optimizer.weight_decay if config.meta_weight_decay else 0.0,
            mode=config.meta_gradient,
        )
        return meta.sample_weights(by_weight, config.normaliser), meta.label_coefficients(by_coefficient)

    @staticmethod
    def probe_loss(network: meta.Classifier, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return losses.cross_entropy(network(images), labels).mean()

    def objective(self, network: Network, batch: IegBatch) -> Tensor:
        """Line 6 of Algorithm 1."""
        config = self.config
        weak = network(batch.views[0])
        joined = config.use_probe or config.mixed_weight
        with nullcontext() if config.batch_norm == "all" else networks.statistics_frozen(network):
            strong = [network(view) for view in batch.views[1:]]
            mixed_logits = network(batch.mixed).float() if joined else None
        start = torch.full_like(batch.weights, config.initial_coefficient)
        weighted = batch.weights * losses.soft_cross_entropy(weak, blend(batch.given, batch.guess, start))
        relabelled = losses.soft_cross_entropy(weak, blend(batch.given, batch.guess, batch.coefficients))
        probe = mixed = consistency = torch.zeros((), device=weak.device)
        if mixed_logits is not None:
            size = len(batch.given)
            groups = mixed_logits.split(size)
            logits = torch.cat([logit_norm(group) for group in groups] if config.logit_norm else groups)
            each = losses.soft_cross_entropy(logits, batch.mixed_targets)
            probe, mixed = each[:size].mean(), (batch.counted * each[size:]).sum() / batch.counted.sum()
        if config.consistency_weight:
            consistency = torch.stack([losses.kl_divergence(weak.detach(), logits) for logits in strong]).mean()
        return total_loss(config, weighted.sum(), relabelled.mean(), probe, mixed, consistency)

    def _shares(self, count: int) -> Tensor:
        """MixUp's l, at least 1/2: (count,)."""
        config, generator = self.config, self.streams["mixup"]
        if config.mixup == "beta":
            return targets.mixup_coefficients(config.alpha, count, generator)
        if config.mixup == "none":
            return torch.ones(count, device=generator.device)
        return approximate_share(torch.rand(count, generator=generator, device=generator.device), config.alpha)

    def beliefs(self) -> Beliefs:
        task = self.task
        weights, coefficients = self.weights.of(task.labelled), self.coefficients.of(task.labelled)
        given = targets.one_hot(task.labels[task.labelled], task.classes)
        return Beliefs(
            clean=weights,
            selected=torch.where(weights.isnan(), weights, (weights > 0).float()),
            coefficient=coefficients,
            labels=blend(given, self.guesses.of(task.labelled), coefficients),
        )

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)


def pseudo_labels(logits: Tensor, temperature: float, normalised: bool) -> Tensor:
    """g: the mean prediction of K views, sharpened.  Logits (K, B, classes) -> (B, classes)."""
    logits = torch.stack([logit_norm(view) for view in logits]) if normalised else logits.float()
    return targets.sharpen(logits.softmax(-1).mean(0), temperature)


def blend(given: Tensor, guess: Tensor, coefficients: Tensor) -> Tensor:
    """λ y + (1 - λ) g.  (B, classes), (B, classes), (B,) -> (B, classes)."""
    return torch.lerp(guess, given, coefficients.unsqueeze(-1))


def logit_norm(logits: Tensor) -> Tensor:
    """Divided by the root mean square of the whole batch, which caps confidence.  (B, classes) -> (B, classes)."""
    logits = logits.float()
    return logits / (logits.square().mean() + 1e-8).sqrt()


def approximate_share(uniform: Tensor, alpha: float) -> Tensor:
    """max(m, 1 - m), m = U^(1/alpha) / 2: the code's stand-in for a folded Beta(alpha, alpha).  (N,) -> (N,)."""
    share = uniform ** (1 / alpha) / 2
    return torch.maximum(share, 1 - share)


def total_loss(
    config: Config, weighted: Tensor, relabelled: Tensor, probe: Tensor, mixed: Tensor, consistency: Tensor
) -> Tensor:
    """L_w + L_λ + L_β^p + p L_β^u + k L_KL, or with the first two averaged as in the official code."""
    supervised = config.use_weights * weighted + config.use_coefficients * relabelled
    if config.loss_average == "code":
        supervised = supervised / 2
    return supervised + config.use_probe * probe + config.mixed_weight * mixed + config.consistency_weight * consistency

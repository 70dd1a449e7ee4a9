"""RobMix: MixMatch and SimCLR on one backbone with two heads, L = L1 + λ·L2 (seed document 000, Algorithm 2).

L1 is NT-Xent on two strong views of a batch (labels ignored, so free of label noise), L2 the MixMatch loss.  The
document leaves much open.  Decided here:

- λ multiplies the semi-supervised loss, as written.  A step draws B labelled and B unlabelled images for both losses.
  The curves `train/loss_contrastive` and `train/loss_mixmatch` are L1 and L2 without weights, `train/loss` is their
  weighted sum.
- Every topology makes the same number of MixMatch steps; contrastive epochs of pre-training come on top.
- "No gradient update in the self-supervised branch" (4.2) is `head_update`.  "Modify the gradient" (4.3) is
  `head_gradient`, at the boundary between backbone and projection head.  "Update the optimizers" (4.4) is
  `optimizers`, `updated` and `sync`.
- Only labels of D_L are noisy.  Unlabelled images exclude labelled ones.

The two losses' gradients are taken apart.  Their graphs share parameters only, so this costs no second backward pass;
it gives norm and cosine on the backbone for nothing, and makes every gradient and optimizer arm a rule on two lists.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl import networks
from lnl.functional import gradients, losses
from lnl.networks import Network, heads
from lnl.space import Space, Uniform
from lnl.training.learner import Gradients, Learner, NetworkBuilder
from lnl.training.mixmatch_update import MIXMATCH_SEARCH, MixedBatch, MixMatchSettings, mixmatch_batch, mixmatch_loss
from lnl.training.readout import Readout, ReadoutSettings
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, to_draw_from
from lnl.training.views import ContrastiveView

PER_MODULE = {"backbone": ["backbone"], "projection": ["heads.projection"], "classifier": ["heads.classifier"]}
TWO_OWNER = {"contrastive": ["backbone", "heads.projection"], "mixmatch": ["backbone", "heads.classifier"]}

USES = ("labels", "unlabelled")


class Config(MixMatchSettings):
    """Defaults are MixMatch's and SimCLR's for CIFAR-10; λ = 1 because the document names none."""

    name: Literal["robmix"] = "robmix"
    topology: Literal[
        "joint_two_head", "alternating_epoch", "pretrain_then_ssl", "mixmatch_only", "simclr_then_linear"
    ] = "joint_two_head"
    """joint_two_head: both losses each step.  alternating_epoch: each epoch one pass of L1 steps, then one of L2 steps
    (the original one-network RobMix).  pretrain_then_ssl: `pretrain_epochs` of L1, then L2.  mixmatch_only and
    simclr_then_linear: one loss alone, the latter with a linear probe on the given labels."""
    lambda_mixmatch: Annotated[float, Field(ge=0)] = 1.0
    """λ of L1 + λ·L2"""
    contrastive_temperature: Annotated[float, Field(gt=0)] = 0.5
    """of NT-Xent"""
    contrastive_data: Literal["union", "unlabelled"] = "union"
    """views of labelled and unlabelled images, or of the latter"""
    hidden: Annotated[int, Field(ge=1)] = 128
    """of the projection head, which has no BatchNorm"""
    projection: Annotated[int, Field(ge=1)] = 128
    """its output"""
    pretrain_epochs: Annotated[int, Field(ge=0)] = 0
    """of L1 alone, before and besides the trial's epochs"""
    contrastive: ContrastiveView = ContrastiveView()

    head_update: Literal["train", "frozen", "frozen_after", "frozen_pretrained"] = "train"
    """Weights of the projection head: trained | never | until `head_frozen_from` of training | in pre-training only."""
    head_frozen_from: Annotated[float, Field(ge=0, le=1)] = 0.5
    """frozen_after only: share of training"""

    head_gradient: Literal[
        "flow", "stop", "scale", "reverse", "clip", "noise", "pcgrad", "pcgrad_asymmetric", "gradnorm", "scale_head"
    ] = "flow"
    """What L1 sends into the backbone: its gradient | nothing | times ±`gradient_scale` | cut to norm `gradient_clip` |
    with Gaussian noise of `gradient_noise` times its norm.  Or a rule for both losses there: PCGrad (Yu et al. 2020) on
    both gradients or on L1's alone; GradNorm (Chen et al. 2018).  scale_head scales the head's own gradient instead."""
    gradient_scale: Annotated[float, Field(gt=0)] = 1.0
    """scale, reverse, scale_head only: the factor"""
    gradient_clip: Annotated[float, Field(gt=0)] = 1.0
    """clip only: the largest norm"""
    gradient_noise: Annotated[float, Field(gt=0)] = 1.0
    """noise only: its size, times the gradient's norm"""
    gradnorm_alpha: Annotated[float, Field(ge=0)] = 1.5
    """gradnorm only: pull towards the loss that lags behind"""

    optimizers: Literal["single", "per_module", "two_owner"] = "single"
    """One optimizer | one per module (the same training, bit for bit, while all step) | two that both own the backbone:
    one steps on L1's gradient, the other on λ·L2's."""
    updated: Literal["both", "classifier", "projection"] = "both"
    """the head whose optimizer steps"""
    sync: Literal["together", "alternate"] = "together"
    """two_owner only: both gradients taken at the same weights | the second after the first's step"""

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        joint = self.topology == "joint_two_head"
        single_loss = self.topology in ("mixmatch_only", "simclr_then_linear")
        on_both = self.head_gradient in ("pcgrad", "pcgrad_asymmetric", "gradnorm")
        two_owner = self.optimizers == "two_owner"
        rules = {
            "topology pretrain_then_ssl needs pretrain_epochs": (
                self.topology == "pretrain_then_ssl" and not self.pretrain_epochs
            ),
            "head_update frozen_pretrained needs pretrain_epochs": (
                self.head_update == "frozen_pretrained" and not self.pretrain_epochs
            ),
            f"topology {self.topology} has one loss and takes no pretrain_epochs": single_loss and self.pretrain_epochs,
            f"head_gradient {self.head_gradient} needs topology joint_two_head": on_both and not joint,
            f"head_gradient {self.head_gradient} joins what optimizers two_owner keeps apart": on_both and two_owner,
            "head_gradient scale_head does nothing under Adam: choose optimizer.kind sgd": (
                self.head_gradient == "scale_head" and self.optimizer.kind != "sgd"
            ),
            "optimizers two_owner needs topology joint_two_head": two_owner and not joint,
            "updated classifier leaves pre-training nothing to step: choose another optimizers or updated": (
                two_owner and self.updated == "classifier" and self.pretrain_epochs
            ),
            "sync alternate needs optimizers two_owner": self.sync == "alternate" and not two_owner,
            "updated needs optimizers per_module or two_owner": self.updated != "both" and self.optimizers == "single",
        }
        for sentence, broken in rules.items():
            if broken:
                raise ValueError(sentence)
        return self


# Where a field matters.  Two owners' Adams, and that of a loss alone, undo a factor of the loss.
BOTH_LOSSES = {"method.topology": ("joint_two_head", "alternating_epoch", "pretrain_then_ssl")}
WITH_MIXMATCH = {"method.topology": (*BOTH_LOSSES["method.topology"], "mixmatch_only")}
WITH_CONTRASTIVE = {"method.topology": (*BOTH_LOSSES["method.topology"], "simclr_then_linear")}
ONE_OPTIMIZER = {"method.optimizers": ("single", "per_module")}
UNSTOPPED = {  # else L1 teaches its own head alone
    "method.head_gradient": (
        "flow",
        "scale",
        "reverse",
        "clip",
        "noise",
        "pcgrad",
        "pcgrad_asymmetric",
        "gradnorm",
        "scale_head",
    )
}

SEARCH: dict[str, Space] = {
    "method.lambda_mixmatch": Uniform(0.1, 10.0, log=True, when=BOTH_LOSSES | ONE_OPTIMIZER | UNSTOPPED),
    "method.contrastive_temperature": Uniform(0.05, 1.0, log=True, when=WITH_CONTRASTIVE | UNSTOPPED),
    "method.gradient_scale": Uniform(
        0.05,
        10.0,
        log=True,
        when=BOTH_LOSSES | ONE_OPTIMIZER | {"method.head_gradient": ("scale", "reverse", "scale_head")},
    ),
    "method.gradient_clip": Uniform(0.01, 10.0, log=True, when=WITH_CONTRASTIVE | {"method.head_gradient": ("clip",)}),
    "method.gradient_noise": Uniform(0.1, 10.0, log=True, when=WITH_CONTRASTIVE | {"method.head_gradient": ("noise",)}),
    "method.gradnorm_alpha": Uniform(0.0, 3.0, when={"method.head_gradient": ("gradnorm",)}),
    "method.head_frozen_from": Uniform(
        0.1,
        0.9,
        when={
            "method.topology": ("joint_two_head", "alternating_epoch", "simclr_then_linear"),
            "method.head_update": ("frozen_after",),
        }
        | UNSTOPPED,
    ),
    "method.optimizer.learning_rate": Uniform(2e-4, 2e-2, log=True),
    **{key: replace(space, when=WITH_MIXMATCH | dict(space.when)) for key, space in MIXMATCH_SEARCH.items()},
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        to_draw_from(task.unlabelled)
        self.guesses = Record(task, task.classes)
        self.steps = task.steps_per_epoch(config.batch_size)
        passes = 2 if config.topology == "alternating_epoch" else 1
        self.learner = Learner(
            network,
            config.optimizer,
            self.steps * (passes * task.epochs + config.pretrain_epochs),
            {
                "classifier": partial(heads.linear, classes=task.classes),
                "projection": partial(heads.projection, hidden=config.hidden, out=config.projection),
            },
            owners={"single": None, "per_module": PER_MODULE, "two_owner": TWO_OWNER}[config.optimizers],
        )
        self.readout = Readout(ReadoutSettings(), task, self.learner)
        self.backbone, self.head = self.learner.part("backbone"), self.learner.part("heads.projection")
        self.last_kernel = self._last_kernel()
        self.balance = (
            gradients.GradNorm(config.gradnorm_alpha, device=network.device)
            if config.head_gradient == "gradnorm"
            else None
        )

    def _last_kernel(self) -> int:
        """The backbone's last convolution or, where it has none, its last linear layer, by which GradNorm balances."""
        axes = {position: self.learner.parameters[position].ndim for position in self.backbone}
        if not axes:
            raise ValueError(
                "RobMix joins two losses' gradients on a backbone, and this one has no weights: choose mlp."
            )
        return max(position for position in axes if axes[position] == (4 if 4 in axes.values() else 2))

    # --------------------------------------------------------------------------------------------------- one epoch

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        labelled = task.order(task.labelled, config.batch_size, self.steps, streams["order"])
        unlabelled = task.order(task.unlabelled, config.batch_size, self.steps, streams["order/unlabelled"])
        self.readout.forget()
        pretraining = epoch < config.pretrain_epochs
        start = epoch - config.pretrain_epochs

        if pretraining or config.topology == "simclr_then_linear":
            scalars = [self.contrastive_step(labelled[i], unlabelled[i], epoch) for i in range(self.steps)]
        elif config.topology == "alternating_epoch":
            first = [self.contrastive_step(labelled[i], unlabelled[i], epoch) for i in range(self.steps)]
            second = [
                self.mixmatch_step(labelled[i], unlabelled[i], (start + i / self.steps) / task.epochs)
                for i in range(self.steps)
            ]
            scalars = [
                {**contrastive, **mixmatch, "loss": contrastive["loss"] + mixmatch["loss"]}
                for contrastive, mixmatch in zip(first, second, strict=True)
            ]
        else:
            step = self.joint_step if config.topology == "joint_two_head" else self.mixmatch_step
            scalars = [
                step(labelled[i], unlabelled[i], (start + i / self.steps) / task.epochs) for i in range(self.steps)
            ]
        return {name: torch.stack([row[name] for row in scalars]).mean() for name in scalars[0]}

    def contrastive_step(self, labelled: Tensor, unlabelled: Tensor, epoch: int) -> dict[str, Tensor]:
        loss, first = self.learner.gradients(self.contrastive, self._contrastive_views(labelled, unlabelled))
        share = (epoch - self.config.pretrain_epochs) / self.task.epochs
        self._update(self._own_head(first, share))
        return {"loss": loss, "loss_contrastive": loss}

    def mixmatch_step(self, labelled: Tensor, unlabelled: Tensor, progress: float) -> dict[str, Tensor]:
        loss, second = self._mixmatch_gradients(labelled, unlabelled, progress)
        self._update(second)
        return {"loss": self.config.lambda_mixmatch * loss, "loss_mixmatch": loss}

    def joint_step(self, labelled: Tensor, unlabelled: Tensor, progress: float) -> dict[str, Tensor]:
        config = self.config
        loss_first, first = self.learner.gradients(self.contrastive, self._contrastive_views(labelled, unlabelled))
        first = self._own_head(first, progress)
        if config.sync == "alternate" and config.updated != "classifier":
            self.learner.apply(first, "contrastive")
        loss_second, second = self._mixmatch_gradients(labelled, unlabelled, progress)
        weighted = config.lambda_mixmatch * loss_second
        scalars = {
            "loss": loss_first + weighted,
            "loss_contrastive": loss_first,
            "loss_mixmatch": loss_second,
            **self._compare([first[p] for p in self.backbone], [second[p] for p in self.backbone]),
        }
        if config.optimizers != "two_owner":
            self._update(self._combined(first, second, torch.stack([loss_first, weighted])))
            return scalars
        if config.sync == "together" and config.updated != "classifier":
            self.learner.apply(first, "contrastive")
        if config.updated != "projection":
            self.learner.apply(second, "mixmatch")
        self.learner.advance()
        return scalars

    # -------------------------------------------------------------------------------------------------- objectives

    def contrastive(self, network: Network, batch: tuple[Tensor, Tensor]) -> Tensor:
        """L1: NT-Xent of two views (2B, C, H, W), first views first, of the images (B,)."""
        views, index = batch
        moves = self.config.batch_norm == "all" or self.config.topology == "simclr_then_linear"
        with nullcontext() if moves else networks.statistics_frozen(network):
            features = self._boundary(network.features(views))
        first, second = network.heads["projection"](features).chunk(2)
        return losses.nt_xent(first, second, self.config.contrastive_temperature, index).mean()

    def mixmatch(self, network: Network, batch: MixedBatch) -> Tensor:
        """L2."""
        return mixmatch_loss(network, batch, self.config.batch_norm)

    def _boundary(self, features: Tensor) -> Tensor:
        """Identity forward; changes the gradient that L1 sends into the backbone."""
        config = self.config
        match config.head_gradient:
            case "stop":
                return features.detach()
            case "scale":
                return gradients.scale(features, config.gradient_scale)
            case "reverse":
                return gradients.scale(features, -config.gradient_scale)
            case "clip":
                return gradients.clip(features, config.gradient_clip)
            case "noise":
                return gradients.noise(features, config.gradient_noise, self.streams["gradient"])
        return features

    # --------------------------------------------------------------------------------------------------- gradients

    def _mixmatch_gradients(self, labelled: Tensor, unlabelled: Tensor, progress: float) -> tuple[Tensor, Gradients]:
        """L2, and the gradients of λ·L2."""
        loss, second = self.learner.gradients(self.mixmatch, self._mixed(labelled, unlabelled, progress))
        return loss, [_times(gradient, self.config.lambda_mixmatch, frozen=False) for gradient in second]

    def _own_head(self, first: Gradients, share: float) -> Gradients:
        """L1's gradients with the projection head's own entries dropped where it is frozen, or scaled."""
        config = self.config
        frozen = {
            "train": False,
            "frozen": True,
            "frozen_after": share >= config.head_frozen_from,
            "frozen_pretrained": share >= 0,
        }[config.head_update]
        factor = config.gradient_scale if config.head_gradient == "scale_head" else 1.0
        if not frozen and factor == 1.0:
            return first
        return [_times(g, factor, frozen) if p in self.head else g for p, g in enumerate(first)]

    def _combined(self, first: Gradients, second: Gradients, values: Tensor) -> Gradients:
        """Both losses' gradients as one: their sum, on the backbone by the rule that `head_gradient` names."""
        on_backbone = [first[p] for p in self.backbone], [second[p] for p in self.backbone]
        if self.balance is not None:
            last = self.last_kernel
            norms = torch.stack([gradients.norm([first[last]]), gradients.norm([second[last]])])
            weights = self.balance.update(values, norms)
            first = [None if g is None else weights[0] * g for g in first]
            second = [None if g is None else weights[1] * g for g in second]
        together = gradients.add(first, second)
        if self.config.head_gradient in ("pcgrad", "pcgrad_asymmetric"):
            projected = gradients.pcgrad(*on_backbone, symmetric=self.config.head_gradient == "pcgrad")
            for position, gradient in zip(self.backbone, projected, strict=True):
                together[position] = gradient
        return together

    def _update(self, together: Gradients) -> None:
        """Step the optimizers that `updated` names (a single one, or one per module) and count the step."""
        if self.config.optimizers == "per_module":
            stepped = {
                "both": list(PER_MODULE),
                "classifier": ["backbone", "classifier"],
                "projection": ["backbone", "projection"],
            }
            for owner in stepped[self.config.updated]:
                self.learner.apply(together, owner)
        else:  # with two owners this is pre-training: L1's owner steps
            self.learner.apply(together, "contrastive" if self.config.optimizers == "two_owner" else None)
        self.learner.advance()

    @staticmethod
    def _compare(first: Gradients, second: Gradients) -> dict[str, Tensor]:
        """Norms and cosine of the two losses' gradients on the backbone, for the curves."""
        return {
            "gradient_norm_contrastive": gradients.norm(first),
            "gradient_norm_mixmatch": gradients.norm(second),
            "gradient_cosine": gradients.cosine(first, second),
        }

    # ------------------------------------------------------------------------------------------------------ batches

    def _contrastive_views(self, labelled: Tensor, unlabelled: Tensor) -> tuple[Tensor, Tensor]:
        index = torch.cat([labelled, unlabelled]) if self.config.contrastive_data == "union" else unlabelled
        return self.task.view(index.repeat(2), "contrastive", self.streams["augment/contrastive"]), index

    def _mixed(self, labelled: Tensor, unlabelled: Tensor, progress: float) -> MixedBatch:
        weight = self.config.weight(progress, self.steps * self.task.epochs)
        return mixmatch_batch(
            self.config, self.task, self.learner, self.streams, labelled, unlabelled, weight, self.guesses
        )

    # --------------------------------------------------------------------------------------------------- prediction

    def predict(self, images: Tensor) -> Tensor:
        if self.config.topology == "simclr_then_linear":
            return self.readout.predict(images)
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        return Beliefs(pseudo_labels=self.guesses.of(self.task.unlabelled))


def _times(gradient: Tensor | None, factor: float, frozen: bool) -> Tensor | None:
    """The gradient times a factor, or None where it is None or its parameter is frozen."""
    return None if frozen or gradient is None else factor * gradient

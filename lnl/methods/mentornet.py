"""MentorNet (Jiang et al. 2018, arXiv:1712.05055): a mentor weighs each image of a batch by its loss, a student learns.

The student minimises the mean of v_i l_i over the batch, not divided by the sum of v.  The mentor sees the loss l and
d = l - λ, with λ a moving percentile of the losses:
  predefined    MentorNet-PD: self-paced until `linear_from`, then linear
  self_paced    v = 1 where d <= 0
  linear        v = 1 - d/γ, clipped to [0, 1] (SPCL)
  focal         v = (1 - e^-l)^γ: for hard images, the paper's baseline of the opposite advice
  data_driven   MentorNet-DD: learned from trusted images (the probe)
Followed from the official code and its commands: weights of 1 at first (burn-in: of the predefined mentor in 19 of 100
epochs, which its definition says itself, of a data-driven one in 17, of others none), and random images of each batch
dropped, half of it at first and then 5 %.  A third phase, which drops 90 or 100 % in the last 5 % of training, stands
in the code's defaults and in the data-driven commands, but is not reached: the predefined mentor's commands leave it
out, and the data-driven one's epoch stands still after the burn-in.

Data-driven: the paper's mentor learns from images whose given and true label are both known.  A probe has right labels
only, so a copy of it gets random wrong ones: half of the mentor's examples are wrong, whatever the noise, by symmetric
noise, and the student has memorised none of them.  The mentor is a logistic regression on (l, d), refitted before each
epoch.  The paper refits twice; its other two features are constant when the mentor is used (label 0, epoch frozen), and
its authors say that the architecture matters little.  Under asymmetric noise, whose wrong labels are near misses unlike
those it has met, expect less of it than of a percentile.

All other mentors need no trusted images: their students train on the probe with its right labels like on any image.
Departures: weight decay is not scaled by the mean weight; the losses that the mentor sees are a pass of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor, nn

from lnl.data import Unfit
from lnl.functional import losses
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels", "probe")
Mentor = Callable[[Tensor, Tensor], Tensor]  # losses and their differences to the percentile (B,) -> weights (B,)
Share = Annotated[float, Field(ge=0, le=1)]


class Config(Settings):
    name: Literal["mentornet"] = "mentornet"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    mentor: Literal["predefined", "self_paced", "linear", "focal", "data_driven"] = "predefined"
    percentile: Share = 0.75
    """not focal: of a batch's losses, a share; paper's intent: to 40 % noise 0.75, at 80 % 0.5"""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """not focal: of the percentile's moving average λ, per step"""
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """γ of linear, focal, and predefined's last part"""
    burn_in: Share = 0.19
    """share of training with weights 1; published: predefined 0.19, data_driven 0.17, others 0"""
    linear_from: Share = 0.9
    """predefined only: share of training from which it is linear"""
    dropout: tuple[Share, Share] = (0.5, 0.05)
    """share of a batch left out at random, at first and later"""
    dropout_until: Share = 0.17
    """share of training at which the first phase of dropout ends"""
    weak: WeakView = WeakView(shift=1 / 16, padding="zeros")
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=2e-4, schedule="step", milestones=(0.5, 0.64, 0.77)
    )


# Which mentor is a question for arms: not all can be had without a probe.
SEARCH: dict[str, Space] = {
    "method.percentile": Uniform(
        0.3, 0.95, when={"method.mentor": ("predefined", "self_paced", "linear", "data_driven")}
    ),
    "method.gamma": Uniform(0.1, 10.0, log=True, when={"method.mentor": ("predefined", "linear", "focal")}),
    "method.linear_from": Uniform(0.5, 1.0, when={"method.mentor": ("predefined",)}),
    "method.burn_in": Uniform(0.0, 0.5),
    "method.optimizer.learning_rate": Uniform(0.005, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        if config.mentor == "data_driven" and not len(task.probe):
            raise Unfit("A data-driven MentorNet learns from trusted images: ask for a probe.")
        self.labelled = task.labelled
        if config.mentor != "data_driven":
            self.task = task = replace(task, labelled=torch.cat([task.labelled, task.probe]), probe=task.probe[:0])
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        self.threshold = MovingPercentile(config.percentile, config.decay).to(task.images.device)
        self.losses, self.weights = Record(task), Record(task)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        learned = self.fit() if config.mentor == "data_driven" else None
        total = []
        for step, index in enumerate(task.order(task.labelled, config.batch_size, self.steps, streams["order"])):
            progress = (epoch + step / self.steps) / task.epochs
            images, labels = task.view(index, config.augmentation, streams["augment"]), task.labels[index]
            loss = losses.cross_entropy(self.learner.batch_logits(images), labels)
            weights = self.mentor(progress, learned)(loss, loss - self.threshold(loss))
            rate = config.dropout[progress >= config.dropout_until]
            self.losses.note(index, loss)
            self.weights.note(index, weights)
            batch = images, labels, drop(weights, rate, streams["dropout"])
            total.append(self.learner.step(self.objective, batch))
        return {"loss": torch.stack(total).mean()}

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, weights = batch
        return (weights * losses.cross_entropy(network(images), labels)).mean()

    def mentor(self, progress: float, learned: Mentor | None = None) -> Mentor:
        """The mentor of the step at `progress` in [0, 1]; `learned`: this epoch's data-driven mentor."""
        config = self.config
        if progress < config.burn_in:
            return lambda losses, _: torch.ones_like(losses)
        if learned is not None:
            return learned
        if config.mentor == "focal":
            return lambda losses, _: focal(losses, config.gamma)
        if config.mentor == "linear" or (config.mentor == "predefined" and progress >= config.linear_from):
            return lambda _, difference: linear(difference, config.gamma)
        return lambda _, difference: self_paced(difference)

    def fit(self) -> Mentor:
        """A data-driven mentor: learned from the probe with its right labels and with random wrong ones."""
        task, generator = self.task, self.streams["mentor"]
        right = task.labels[task.probe]
        offset = torch.randint(1, task.classes, right.shape, generator=generator, device=right.device)
        logits = task.over(task.probe, self.learner.logits, self.config.augmentation, generator)
        wrong = (right + offset) % task.classes
        return data_driven(
            losses.cross_entropy(logits, right), losses.cross_entropy(logits, wrong), self.threshold.value
        )

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        weights = self.weights.of(self.labelled)
        selected = torch.where(weights.isnan(), weights, (weights >= 0.5).float())
        return Beliefs(loss=self.losses.of(self.labelled), clean=weights, selected=selected)


# ------------------------------------------------------------------------------------------------------------- mentors


def self_paced(difference: Tensor) -> Tensor:
    """1 where the loss is at most λ, else 0 (Kumar et al. 2010).  (...) -> (...)."""
    return (difference <= 0).float()


def linear(difference: Tensor, gamma: float) -> Tensor:
    """1 - d/γ clipped to [0, 1] (SPCL, Jiang et al. 2015).  (...) -> (...)."""
    return (1 - difference / gamma).clamp(0, 1)


def focal(losses: Tensor, gamma: float) -> Tensor:
    """(1 - e^-l)^γ (Lin et al. 2017).  (...) -> (...)."""
    return (-torch.expm1(-losses)) ** gamma


def data_driven(right: Tensor, wrong: Tensor, threshold: Tensor) -> Mentor:
    """Logistic regression on (l, l - λ): P(label is right), from losses of right and of wrong labels (P,), (P,)."""
    from sklearn.linear_model import LogisticRegression

    loss = torch.cat([right, wrong])
    is_right = torch.cat([torch.ones_like(right), torch.zeros_like(wrong)])
    model = LogisticRegression().fit(torch.stack([loss, loss - threshold], -1).cpu().numpy(), is_right.cpu().numpy())
    of_loss, of_difference, constant = loss.new_tensor([*model.coef_[0], model.intercept_[0]])
    return lambda losses, difference: torch.sigmoid(of_loss * losses + of_difference * difference + constant)


class MovingPercentile(nn.Module):
    """λ: the moving average, from 0, of a percentile of each batch's losses, by nearest rank; kept in checkpoints."""

    def __init__(self, share: float, decay: float) -> None:
        super().__init__()
        self.share, self.decay = share, decay
        self.value: Tensor
        self.register_buffer("value", torch.zeros(()))

    def forward(self, losses: Tensor) -> Tensor:
        """Losses of a batch (B,) -> λ with this batch."""
        now = losses.quantile(self.share, interpolation="nearest")
        self.value = self.decay * self.value + (1 - self.decay) * now
        return self.value


def drop(weights: Tensor, rate: float, generator: Generator) -> Tensor:
    """Set round(rate · B) random weights of (B,) to zero."""
    ranks = torch.rand(weights.shape, generator=generator, device=weights.device).argsort()
    return weights.index_fill(0, ranks[: round(rate * len(weights))], 0.0)

"""Dynamic bootstrapping (Arazo et al. 2019, arXiv:1904.11238): trust a label as far as a beta mixture of losses does.

Plain mixup at first.  Then, each epoch, two beta distributions are fitted to the losses of all labelled images
(`selection.beta_mixture`), and the target of image i is (1 - w_i) y_i + w_i z_i with w_i the probability of the
high-loss component and z_i the network's own guess, hard (M-DYR-H) or soft (M-DYR-S), under mixup and with the prior
term R.  `dynamic_mixup` is MD-DYR-SH: images are mixed in proportion to 1 - w, targets half and half, and the guess is
sharpened from soft to hard.  The paper has the temperature fall until training ends; the code reaches the lowest one at
epoch 199 of 300 and stays there, which is followed (`hardest_from`).

The official code looks w up anew for every batch, by the losses of that moment; here, as in the paper's text, it is
the mixture's own posterior, once an epoch.  Followed from the code: losses on augmented images, guesses under
BatchNorm's batch statistics on images that are not mixed, so that these move its running statistics, too.

Departures: one lambda a batch is drawn above 1/2, the same law when partners are drawn at random; dynamic mixup starts
together with bootstrapping, not 5 of 300 epochs before; weight decay on kernels only (official: on all weights).
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses, mixtures, schedules, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Record, Task, View
from lnl.training.views import ContrastiveView, StrongView, WeakView

USES = ("labels",)
HARDEST = 0.001  # the last temperature, dynamic_mixup only


class Config(Settings):
    name: Literal["dynamic_bootstrapping"] = "dynamic_bootstrapping"
    batch_size: Annotated[int, Field(ge=2)] = 128
    augmentation: View = "weak"
    loss_augmentation: View = "weak"
    """for the losses of the mixture"""
    guess: Literal["hard", "soft", "dynamic_mixup"] = "hard"
    """M-DYR-H, M-DYR-S, MD-DYR-SH"""
    bootstrap_from: Annotated[float, Field(ge=0, le=1)] = 0.35
    """share of training with plain mixup: 105 of 300 epochs"""
    hardest_from: Annotated[float, Field(ge=0, le=1)] = 2 / 3
    """dynamic_mixup only: share of training at which the temperature has fallen from 1 to 0.001"""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """of Beta(alpha, alpha); dynamic_mixup: before bootstrapping only"""
    prior_weight: Annotated[float, Field(ge=0)] = 1.0
    """of R, while bootstrapping"""
    weak: WeakView = WeakView(padding="zeros")
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 5 / 6)
    )


SEARCH: dict[str, Space] = {
    "method.guess": Choice(("hard", "soft", "dynamic_mixup")),
    "method.bootstrap_from": Uniform(0.1, 0.6),
    "method.alpha": Uniform(0.5, 64.0, log=True),
    "method.prior_weight": Uniform(0.0, 2.0),
    "method.optimizer.learning_rate": Uniform(0.005, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.learner = Learner.classifier(network, config.optimizer, self.steps * task.epochs, task.classes)
        self.losses, self.clean = Record(task), Record(task)
        self.mixture: Tensor | None = None

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        config, task, streams = self.config, self.task, self.streams
        progress = epoch / task.epochs
        bootstrapping = progress >= config.bootstrap_from
        self.fit()  # before bootstrapping too, for the diagnosis, as in the official code
        total = []
        for index in task.order(task.labelled, config.batch_size, self.steps, streams["order"]):
            images = task.view(index, config.augmentation, streams["augment"])
            soft = targets.one_hot(task.labels[index], task.classes)
            partner = torch.randperm(len(index), generator=streams["mixup"], device=index.device)
            coefficients = targets.mixup_coefficients(config.alpha, 1, streams["mixup"])
            if bootstrapping:
                clean = self.clean.of(index)
                soft = bootstrapped(soft, self.guess(images, progress), clean)
            if bootstrapping and config.guess == "dynamic_mixup":
                images, _ = targets.mixup(images, soft, partner, clean / (clean + clean[partner]))
                soft = (soft + soft[partner]) / 2
            else:
                images, soft = targets.mixup(images, soft, partner, coefficients)
            batch = images, soft, config.prior_weight if bootstrapping else 0.0
            total.append(self.learner.step(self.objective, batch))
        return {"loss": torch.stack(total).mean()}

    def fit(self) -> None:
        """The beta mixture of all losses under the network as it is now."""
        task, view = self.task, self.config.loss_augmentation
        logits = task.over(task.labelled, self.learner.logits, view, self.streams["augment/losses"])
        loss = losses.cross_entropy(logits, task.labels[task.labelled])
        clean, mixture = mixtures.beta_mixture(loss)
        self.mixture = mixtures.normalised_components(mixture, loss)
        self.losses.note(task.labelled, mixtures.normalise(loss))
        self.clean.note(task.labelled, clean)

    def guess(self, images: Tensor, progress: float) -> Tensor:
        """The network's own guess z, hard or soft as `guess` says: (B, C, H, W) -> (B, K)."""
        probabilities = self.learner.guess(images, update_statistics=True)
        if self.config.guess == "hard":
            return targets.one_hot(probabilities.argmax(-1), self.task.classes)
        if self.config.guess == "soft":
            return probabilities
        start = self.config.bootstrap_from
        fallen = schedules.linear_ramp(progress - start, self.config.hardest_from - start)
        return targets.sharpen(probabilities, 1 + (HARDEST - 1) * fallen)

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor, float]) -> Tensor:
        images, soft, prior_weight = batch
        logits = network(images)
        loss = losses.soft_cross_entropy(logits, soft).mean()
        return loss + prior_weight * losses.uniform_prior(logits) if prior_weight else loss

    def predict(self, images: Tensor) -> Tensor:
        return self.learner.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.learner.features(images)

    def beliefs(self) -> Beliefs:
        labelled = self.task.labelled
        return Beliefs(loss=self.losses.of(labelled), clean=self.clean.of(labelled), mixture=self.mixture)


def bootstrapped(given: Tensor, guess: Tensor, clean: Tensor) -> Tensor:
    """(1 - w) y + w z, with 1 - w = `clean` (..., B); labels and guesses (..., B, K) -> (..., B, K)."""
    return torch.lerp(guess, given, clean.unsqueeze(-1))

"""Loss correction (Patrini et al. 2017, arXiv:1609.03683): learn the true labels through the matrix of the noise.

Training has two phases.  A first network learns the given labels by cross-entropy; its predictions for one anchor image
per class are the rows of T̂.  A second one is trained from scratch, from the same initial weights, on the corrected
loss.  With a `given` matrix, an oracle, there is one phase.

The paper trains both phases in full; here they share the trial's epochs, so that methods cost the same: give twice the
epochs for the paper's protocol.  Each phase goes through the optimizer's whole schedule.  T̂ comes from the last weights
of the first phase (averaged where the optimizer averages) on images without augmentation; the official code takes those
with the best noisy validation loss.  `lnl.functional.transition` says what else is not followed: its filter.  The
backward loss grows with T̂⁻¹, without end for a first network that has learned so little that its anchors all look
alike.

Images are shifted by up to an eighth with reflection (official code: a tenth, repeating the border).
Defaults are the paper's for CIFAR-10 with a ResNet; on CIFAR-100 it takes percentile 1 and a weight decay of 1e-3.
Unlabelled images are not used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from lnl.data import Unfit
from lnl.functional import losses, schedules, transition
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Choice, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Task
from lnl.training.views import WeakView

USES = ("labels",)

Matrix = tuple[tuple[float, ...], ...]
Loss = Callable[[Tensor, Tensor], Tensor]


class Config(Settings):
    name: Literal["loss_correction"] = "loss_correction"
    batch_size: Annotated[int, Field(ge=2)] = 128
    direction: Literal["forward", "backward"] = "forward"
    """-log (p T)_n (theorem 2), or (T⁻¹ ℓ)_n (theorem 1)"""
    given: Matrix | None = None
    """T where it is known, such as `lnl.functional.transition.matrix(…).tolist()`; None: estimated"""
    estimation: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """not beside given: the first phase's share of the epochs"""
    percentile: Annotated[float, Field(gt=0, le=1)] = 0.97
    """not beside given: of p_i; beyond are outliers, no anchors"""
    weak: WeakView = WeakView()
    optimizer: Optimizer = Optimizer(
        kind="sgd", learning_rate=0.1, weight_decay=1e-4, schedule="step", milestones=(1 / 3, 2 / 3)
    )

    @field_validator("given")
    @classmethod
    def _rows_are_distributions(cls, given: Matrix | None) -> Matrix | None:
        if given is not None and not (
            len(given) > 1
            and all(len(row) == len(given) and min(row) >= 0 and abs(sum(row) - 1) < 1e-6 for row in given)
        ):
            raise ValueError("the given matrix must be square, its rows probabilities that sum to 1")
        return given


ESTIMATED = {"method.given": (None,)}

SEARCH: dict[str, Space] = {
    "method.direction": Choice(("forward", "backward")),
    "method.percentile": Uniform(0.8, 1.0, when=ESTIMATED),
    "method.estimation": Uniform(0.1, 0.9, when=ESTIMATED),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        self.steps = task.steps_per_epoch(config.batch_size)
        self.first_epochs = 0 if config.given else schedules.first_phase(config.estimation, task.epochs)

        def learner(epochs: int) -> Learner:
            return Learner.classifier(network, config.optimizer, self.steps * epochs, task.classes)

        self.learner = learner(task.epochs - self.first_epochs)
        self.first = learner(self.first_epochs) if self.first_epochs else None
        self.matrix: Tensor | None = None  # from the second phase on
        if config.given:
            if len(config.given) != task.classes:
                raise Unfit(
                    f"The given matrix is of {len(config.given)} classes, but the data set has {task.classes}: "
                    "give one of that size."
                )
            self.matrix = torch.tensor(config.given, device=network.device)

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        learner = self.first if self.first and epoch < self.first_epochs else self.learner
        if self.matrix is None and self.first and learner is not self.first:  # once, and again where a run is resumed
            self.matrix = transition.from_anchors(
                self.task.over(self.task.labelled, self.first.logits).softmax(-1), self.config.percentile
            )
        objective = partial(self.objective, loss=self.loss())
        total = []
        for index in self.task.order(self.task.labelled, self.config.batch_size, self.steps, self.streams["order"]):
            images = self.task.view(index, "weak", self.streams["augment"])
            total.append(learner.step(objective, (images, self.task.labels[index])))
        return {"loss": torch.stack(total).mean()}

    def loss(self) -> Loss:
        """Of this phase: logits (B, K), given labels (B,) -> (B,)."""
        if self.matrix is None:
            return losses.cross_entropy
        if self.config.direction == "forward":
            return partial(transition.forward_correction, matrix=self.matrix)
        return partial(transition.backward_correction, inverse=transition.inverse(self.matrix))

    @staticmethod
    def objective(network: Network, batch: tuple[Tensor, Tensor], loss: Loss) -> Tensor:
        images, labels = batch
        return loss(network(images), labels).mean()

    @property
    def current(self) -> Learner:
        """The second network from its first step on."""
        return self.learner if self.learner.done or self.first is None else self.first

    def beliefs(self) -> Beliefs:
        """In the second phase: T̂, and by Bayes' rule with it the true labels."""
        if self.matrix is None:
            return Beliefs()
        given = self.task.labels[self.task.labelled]
        labels = transition.posterior(self.task.over(self.task.labelled, self.learner.logits), given, self.matrix)
        return Beliefs(clean=labels.gather(-1, given[:, None]).squeeze(-1), labels=labels, transition=self.matrix)

    def predict(self, images: Tensor) -> Tensor:
        return self.current.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.current.features(images)

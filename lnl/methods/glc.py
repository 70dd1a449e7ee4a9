"""Gold loss correction (GLC, Hendrycks et al. 2018, arXiv:1802.05300): the matrix of the noise from a trusted probe.

Training has two phases.  A first network learns the given ("silver") labels by cross-entropy; row i of Ĉ is its mean
prediction for the probe's ("gold") images of class i.  A second one is trained from scratch, from the same initial
weights, on both: silver images by the corrected loss -log (p Ĉ)_n, gold ones by cross-entropy, batches mixed.

The paper trains both phases in full, 75 epochs each; here they share the trial's epochs, so that methods cost the same:
give 150 for the paper's protocol.  Departures from the official code: gold and silver images of a batch are one forward
pass (it makes two, each with its own BatchNorm statistics); the cosine schedule ends at 0 (it stops just above); no
dropout; weight decay on kernels only (official: on all weights).  Labelled images are silver; unlabelled ones are not
used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.data import Unfit
from lnl.functional import losses, schedules, transition
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, NetworkBuilder, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Beliefs, Task
from lnl.training.views import WeakView

USES = ("labels", "probe")


class Config(Settings):
    name: Literal["glc"] = "glc"
    batch_size: Annotated[int, Field(ge=2)] = 128
    estimation: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The first phase's share of the epochs.  The longer, the surer its network, and the nearer Ĉ's rows to one
    class."""
    weak: WeakView = WeakView(padding="zeros")
    optimizer: Optimizer = Optimizer(kind="sgd", learning_rate=0.1, nesterov=True, weight_decay=5e-4, schedule="cosine")


SEARCH: dict[str, Space] = {
    "probe": Integer(10, 1000, log=True),  # at least one image of each class
    "method.estimation": Uniform(0.1, 0.9),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


class Method:
    def __init__(self, config: Config, task: Task, network: NetworkBuilder, streams: Streams) -> None:
        self.config, self.task, self.streams = config, task, streams
        counts = torch.bincount(task.labels[task.probe], minlength=task.classes)
        if not counts.all():
            raise Unfit(
                f"GLC learns from its probe how each class is mislabelled, but class {int(counts.argmin())} is not in "
                f"it: ask for a probe of at least {task.classes} images."
            )
        everything = replace(task, labelled=torch.cat([task.labelled, task.probe]))
        self.steps = task.steps_per_epoch(config.batch_size), everything.steps_per_epoch(config.batch_size)
        self.first_epochs = schedules.first_phase(config.estimation, task.epochs)

        def learner(steps: int) -> Learner:
            return Learner.classifier(network, config.optimizer, steps, task.classes)

        self.first = learner(self.steps[0] * self.first_epochs)
        self.learner = learner(self.steps[1] * (task.epochs - self.first_epochs))
        self.matrix: Tensor | None = None  # from the second phase on
        self.gold = torch.zeros(len(task.images), dtype=torch.bool, device=task.images.device)
        self.gold[task.probe] = True

    def train_epoch(self, epoch: int) -> dict[str, Tensor]:
        task = self.task
        learner, pool, steps = self.first, task.labelled, self.steps[0]
        if epoch >= self.first_epochs:
            learner, pool, steps = self.learner, torch.cat([task.labelled, task.probe]), self.steps[1]
            if self.matrix is None:  # once, and again where a run is resumed
                gold = task.over(task.probe, self.first.logits).softmax(dim=-1)
                self.matrix = transition.from_trusted(gold, task.labels[task.probe], task.classes)
        total = []
        for index in task.order(pool, self.config.batch_size, steps, self.streams["order"]):
            images = task.view(index, "weak", self.streams["augment"])
            total.append(learner.step(self.objective, (images, task.labels[index], self.gold[index])))
        return {"loss": torch.stack(total).mean()}

    def objective(self, network: Network, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        images, labels, gold = batch
        logits = network(images)
        loss = losses.cross_entropy(logits, labels)
        if self.matrix is not None:
            loss = torch.where(gold, loss, transition.forward_correction(logits, labels, self.matrix))
        return loss.mean()

    @property
    def current(self) -> Learner:
        """The second network from its first step on."""
        return self.learner if self.learner.done else self.first

    def beliefs(self) -> Beliefs:
        """In the second phase: Ĉ, and by Bayes' rule with it the true labels."""
        if self.matrix is None:
            return Beliefs()
        given = self.task.labels[self.task.labelled]
        labels = transition.posterior(self.task.over(self.task.labelled, self.learner.logits), given, self.matrix)
        return Beliefs(clean=labels.gather(-1, given[:, None]).squeeze(-1), labels=labels, transition=self.matrix)

    def predict(self, images: Tensor) -> Tensor:
        return self.current.logits(images).softmax(dim=-1)

    def features(self, images: Tensor) -> Tensor:
        return self.current.features(images)

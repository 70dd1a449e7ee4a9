"""The MixMatch update as a component: settings, batch and objective, used by every method with a MixMatch part.

Berthelot et al. 2019 (arXiv:1905.02249), Algorithm 1; constants from the official code (google-research/mixmatch).
Followed from the official code where the paper is silent: one mixing coefficient per example; guesses by the current
weights under BatchNorm's batch statistics; only the first interleaved batch moves the running statistics; L_U averages
over classes too.  Ours: the K guesses are one forward pass (the official code makes K), and both parts of a batch are
drawn from shuffled passes, so that fewer labels than a batch still fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from lnl import networks
from lnl.functional import losses, schedules, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.learner import Learner, Optimizer
from lnl.training.streams import Streams
from lnl.training.task import Record, Task
from lnl.training.views import WeakView


class MixMatchSettings(Settings):
    """Fields of every method with a MixMatch part; `lambda_u` and `alpha` are the paper's for CIFAR-10."""

    batch_size: Annotated[int, Field(ge=2)] = 64
    """labelled images a step, and as many unlabelled ones"""
    views: Annotated[int, Field(ge=1)] = 2
    """K: augmentations averaged for a guess"""
    temperature: Annotated[float, Field(gt=0)] = 0.5
    """T of sharpening, eq. 7"""
    alpha: Annotated[float, Field(gt=0)] = 0.75
    """of Beta(alpha, alpha), eq. 8"""
    lambda_u: Annotated[float, Field(ge=0)] = 75.0
    """weight of L_U, eq. 5"""
    ramp: Annotated[float, Field(ge=0)] = 16_384.0
    """steps over which lambda_u rises from 0; below 1 a share of training, for one of far fewer steps"""
    mix: Literal["all", "labelled", "unlabelled", "separate", "none"] = "all"
    """which images are mixed; the paper's Table 4"""
    guess_with_average: bool = False
    """guess by the averaged weights; the paper's Table 4"""
    batch_norm: Literal["first", "mixmatch", "all"] = "first"
    """what moves running statistics: first interleaved batch | all mixed images | every pass"""
    weak: WeakView = WeakView()

    optimizer: Optimizer = Optimizer(kind="adamw", learning_rate=0.002, weight_decay=0.02, average=0.999)

    @model_validator(mode="after")
    def _has_an_average(self) -> Self:
        if self.guess_with_average and not self.optimizer.average:
            raise ValueError("guess_with_average needs averaged weights: set optimizer.average, such as 0.999.")
        return self

    def weight(self, progress: float, steps: int) -> float:
        """The weight of L_U at `progress` in [0, 1] of a training of so many steps."""
        ramp = self.ramp if self.ramp >= 1 else self.ramp * steps
        return self.lambda_u * schedules.linear_ramp(progress * steps, ramp)


# The paper's lambda_u are 50 to 250, by data set.
MIXMATCH_SEARCH: dict[str, Space] = {
    "method.lambda_u": Uniform(1.0, 250.0, log=True),
    "method.temperature": Uniform(0.1, 1.0),
    "method.alpha": Uniform(0.1, 2.0, log=True, when={"method.mix": ("all", "labelled", "unlabelled", "separate")}),
    "method.views": Integer(1, 4),
}


@dataclass(frozen=True)
class MixedBatch:
    """Mixed images (B + K·B, C, H, W) and soft targets (B + K·B, classes): the labelled rows first."""

    images: Tensor
    targets: Tensor
    labelled: int
    weight: float  # of L_U


def mixmatch_batch(
    settings: MixMatchSettings,
    task: Task,
    learner: Learner,
    streams: Streams,
    labelled: Tensor,
    unlabelled: Tensor,
    weight: float,
    guesses: Record | None = None,
) -> MixedBatch:
    """Guess, sharpen and mix (Algorithm 1, lines 2 to 13) for indices (B,), (B,).

    `weight`: of L_U now, see `MixMatchSettings.weight`.  `guesses` records the sharpened guesses of the unlabelled
    images.
    """
    count, views = len(labelled), settings.views
    index = torch.cat([labelled, unlabelled.repeat(views)])
    images = task.view(index, "weak", streams["augment"])
    probabilities = learner.guess(
        images[count:], averaged=settings.guess_with_average, update_statistics=settings.batch_norm == "all"
    )
    guess = targets.sharpen(probabilities.view(views, count, -1).mean(dim=0), settings.temperature)
    if guesses is not None:
        guesses.note(unlabelled, guess)
    soft = torch.cat([targets.one_hot(task.labels[labelled], task.classes), guess.repeat(views, 1)])
    total = len(index)
    coefficients = targets.mixup_coefficients(settings.alpha, total, streams["mixup"])
    permutation = _partners(settings.mix, count, total, streams["mixup"])
    if settings.mix in ("labelled", "unlabelled", "none"):
        has_label = torch.arange(total, device=index.device) < count
        unmixed = {"labelled": ~has_label, "unlabelled": has_label, "none": torch.ones_like(has_label)}[settings.mix]
        coefficients = torch.where(unmixed, 1.0, coefficients)
    images, soft = targets.mixup(images, soft, permutation, coefficients)
    return MixedBatch(images, soft, count, weight)


def _partners(mix: str, count: int, total: int, generator: torch.Generator) -> Tensor:
    """A random partner of each image, (total,): of all images, or of its own part, labelled or unlabelled."""
    if mix == "all":
        return torch.randperm(total, generator=generator, device=generator.device)
    own = torch.randperm(count, generator=generator, device=generator.device)
    other = torch.randperm(total - count, generator=generator, device=generator.device)
    return torch.cat([own, other + count])


def mixmatch_logits(network: Network, batch: MixedBatch, batch_norm: str) -> Tensor:
    """(B + K·B, classes).  With `first`, interleaved: each group has images of all, the first moves statistics."""
    if batch_norm != "first":
        return network(batch.images)
    groups = networks.interleave(list(batch.images.split(batch.labelled)))
    return torch.cat(networks.interleave(_logits_by_group(network, groups)))


def _logits_by_group(network: Network, groups: Sequence[Tensor]) -> list[Tensor]:
    """Logits of each group in a forward pass of its own, of which the first alone moves BatchNorm's statistics."""
    results = [network(groups[0])]
    with networks.statistics_frozen(network):
        results += [network(group) for group in groups[1:]]
    return results


def mixmatch_loss(network: Network, batch: MixedBatch, batch_norm: str) -> Tensor:
    """L_X + lambda_u · L_U (eqs. 3 to 5): cross-entropy on the labelled rows, squared error on the others."""
    logits = mixmatch_logits(network, batch, batch_norm)
    labelled = losses.soft_cross_entropy(logits[: batch.labelled], batch.targets[: batch.labelled]).mean()
    unlabelled = losses.squared_error(logits[batch.labelled :], batch.targets[batch.labelled :]).mean()
    return labelled + batch.weight * unlabelled

"""The FixMatch update as a component: settings, batch and objective, used by every method with a FixMatch part.

Sohn et al. 2020 (arXiv:2001.07685), Algorithm 1; constants from the official code (google-research/fixmatch).
Followed from the official code where the paper is silent: labelled, weak and strong images are one batch, so that
BatchNorm normalises them together and its running statistics see all of them; L_U is divided by all unlabelled images
of the batch, taught or not; the unlabelled images include the labelled ones, which would never be seen strongly
augmented otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from lnl.functional import losses, targets
from lnl.networks import Network
from lnl.settings import Settings
from lnl.space import Integer, Space, Uniform
from lnl.training.streams import Streams
from lnl.training.task import Record, Task, to_draw_from
from lnl.training.views import ContrastiveView, StrongView, WeakView


class FixMatchSettings(Settings):
    """Fields of every method with a FixMatch part; the defaults are the paper's for CIFAR-10."""

    batch_size: Annotated[int, Field(ge=2)] = 64
    """B: labelled images a step"""
    mu: Annotated[int, Field(ge=1)] = 7
    """unlabelled images a step, per labelled one"""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.95
    """tau: probability that makes a guess a target; 0: all are"""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """of sharpening a guess to a target; 0: one-hot, 1: as it is"""
    weak_view: Literal["weak", "contrastive", "blurred"] = "weak"
    """the view of labelled images, and of unlabelled ones when they are guessed"""
    strong_view: Literal["weak", "contrastive", "solarised", "strong"] = "strong"
    """the view that learns what the weak one guesses"""
    lambda_u: Annotated[float, Field(ge=0)] = 1.0
    """weight of L_U, eq. 4"""
    include_labelled: bool = True
    """labelled images are among the unlabelled ones, too"""
    weak: WeakView = WeakView()
    strong: StrongView = StrongView()
    contrastive: ContrastiveView = ContrastiveView()


FIXMATCH_SEARCH: dict[str, Space] = {
    "method.threshold": Uniform(0.0, 0.99),
    "method.temperature": Uniform(0.0, 1.0),
    "method.mu": Integer(1, 8, log=True),
    "method.lambda_u": Uniform(0.1, 10.0, log=True),
    "method.optimizer.learning_rate": Uniform(1e-3, 0.3, log=True),
}


@dataclass(frozen=True)
class ConsistencyBatch:
    """Images (B + 2 µB, C, H, W): labelled, weak and strong views; labels (B,); indices of the unlabelled (µB,)."""

    images: Tensor
    labels: Tensor
    unlabelled: Tensor


def unlabelled_pool(task: Task, include_labelled: bool) -> Tensor:
    """Indices of the images that count as unlabelled.  Raises `DataError` where there are none."""
    return to_draw_from(torch.cat([task.labelled, task.unlabelled]) if include_labelled else task.unlabelled)


def fixmatch_batch(
    settings: FixMatchSettings, task: Task, streams: Streams, labelled: Tensor, unlabelled: Tensor
) -> ConsistencyBatch:
    """Weak views of labelled (B,) and unlabelled (µB,) images, strong views of the latter."""
    weak = task.view(torch.cat([labelled, unlabelled]), settings.weak_view, streams["augment"])
    strong = task.view(unlabelled, settings.strong_view, streams["augment/strong"])
    return ConsistencyBatch(torch.cat([weak, strong]), task.labels[labelled], unlabelled)


def fixmatch_loss(
    settings: FixMatchSettings, network: Network, batch: ConsistencyBatch, guesses: Record | None = None
) -> Tensor:
    """L_S + lambda_u · L_U (eqs. 3 and 4).  `guesses` notes the probabilities (µB, K) on the weak views."""
    labels, guessed = len(batch.labels), len(batch.unlabelled)
    labelled, weak, strong = network(batch.images).split([labels, guessed, guessed])
    probabilities = torch.softmax(weak.detach(), -1, dtype=torch.float32)
    if guesses is not None:
        guesses.note(batch.unlabelled, probabilities)
    soft, confident = targets.pseudo_labels(probabilities, settings.threshold, settings.temperature)
    supervised = losses.cross_entropy(labelled, batch.labels).mean()
    return supervised + settings.lambda_u * (confident * losses.soft_cross_entropy(strong, soft)).mean()


def confident_guesses(guesses: Tensor, threshold: float) -> Tensor:
    """Guesses (..., K), NaN where the largest probability is below the threshold, so that they are no targets."""
    return torch.where(guesses.amax(-1, keepdim=True) >= threshold, guesses, torch.nan)


def confident_share(guesses: Tensor, threshold: float) -> Tensor:
    """Share of the guesses (N, K) that reach the threshold; NaN, of images not guessed yet, does not count."""
    best = guesses.amax(-1)
    return (best >= threshold).sum() / best.isfinite().sum().clamp(min=1)

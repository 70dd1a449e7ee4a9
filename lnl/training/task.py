"""What a method may see (`Task`), what only evaluation may see (`Truth`), and the order in which batches are drawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from lnl.data import Unfit
from lnl.declaring import declared
from lnl.functional.noise import ANNOTATED
from lnl.system.timing import phase
from lnl.training.images import Images, expect, parts_of

LabelsDrawn = Literal["balanced", "random"]
View = Literal["none", "weak", "contrastive", "blurred", "solarised", "strong", "autoaugment"]
VIEWS: tuple[View, ...] = get_args(View)
Pair = Literal["alike", "unlike"]  # two views of an image: both `contrastive`, or one `blurred`, the other `solarised`
Transform = Callable[[Tensor, torch.Generator], Tensor]  # images as they are stored -> views, see `lnl.training.views`


@declared
@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Noise:
    """How the given labels differ from the true ones.  `lnl.functional.noise` defines each kind.

    Semantic noise (Lee et al. 2019, RoG): the labels that a network gives which was trained on a few clean ones.
    """

    kind: Literal[
        "none", "symmetric", "asymmetric", "asymmetric_block", "pair", "instance", "human", "given", "semantic"
    ] = "none"
    """which wrong label an image gets; `human` is another name of `given`, the labels that people gave"""
    rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    """share of the labels that are drawn anew; kinds none, human, given and semantic take none"""
    exact: bool = True
    """exactly round(rate · N) labels are drawn, stratified by class; otherwise each with probability `rate`"""
    include_true: bool = False
    """symmetric only: the true class may be drawn again (the DivideMix convention: the real rate is rate·(K-1)/K)"""
    column: str | None = None
    """human and given only: which of the labels that people gave (CIFAR-10N: aggre, random1, random2, random3, worse;
    CIFAR-100N: fine); it may be left out of `given` where the data set has one column"""
    teacher: dict[str, Any] | None = None
    """semantic only: the fields in which the trial of the network that labels differs from the one that learns from
    it.  By default it is the same data set, network and length with `supervised`; its number of labels must be given,
    such as {"labels": 2500}: they are among the training images, whose labels it mostly reproduces."""

    def __post_init__(self) -> None:
        if self.kind in ("none", *ANNOTATED) and self.rate:
            raise ValueError(
                f"noise.rate is {self.rate}, but kind '{self.kind}' takes no rate: leave it at 0 or choose another kind"
            )
        if self.include_true and self.kind != "symmetric":
            raise ValueError(f"noise.include_true belongs to kind 'symmetric': leave it out with '{self.kind}'")
        if self.column is None if self.kind == "human" else self.column is not None and self.kind != "given":
            raise ValueError(
                "noise.column names the human labels (such as 'worse'): give it with kind 'human', or with 'given', "
                "and only then"
            )
        if self.column == "":
            raise ValueError("noise.column is empty: leave it out, or name a column of given labels")
        if (self.teacher is None) == (self.kind == "semantic") or (self.teacher and "labels" not in self.teacher):
            raise ValueError(
                "noise.teacher says how the labels' network is trained, such as {'labels': 2500}: "
                "give it with kind 'semantic' and only then"
            )

    @property
    def given_column(self) -> str | None:
        """The column of given labels that is asked for, "" for the only one; None where none is."""
        return self.column or "" if self.kind in ("human", "given") else None


@declared
@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Validation:
    """Images kept apart to choose an epoch: how many, cut from which split, with which labels."""

    images: Annotated[int, Field(ge=0)] = 0
    """how many, all classes together"""
    source: Literal["train", "test"] = "train"
    """the split from which they are cut"""
    labels: Literal["clean", "noisy"] = "clean"
    """whether they have their right labels, or wrong ones as often as the training images"""

    def __post_init__(self) -> None:
        if self.labels == "noisy" and not self.images:
            raise ValueError("validation.labels 'noisy' needs validation.images")


@declared
@settings(frozen=True, config=ConfigDict(extra="forbid"))
class VectorViews:
    """Views of vectors: features that are dropped, and Gaussian noise in standard deviations of a feature.

    The view `none` has neither.
    """

    weak_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """share of the features that the view `weak` sets to their mean"""
    strong_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """the same of all stronger views"""
    weak_noise: Annotated[float, Field(ge=0)] = 0.0
    """standard deviation of the noise of the view `weak`"""
    strong_noise: Annotated[float, Field(ge=0)] = 0.0
    """the same of all stronger views"""


@dataclass(frozen=True)
class Task:
    """All that a method may see of a trial's data.  Tensors live on the training device.

    The images may be vectors: (N, D) float32 instead of (N, C, H, W) uint8, and their views (B, D) float32.  Images
    that do not fit into memory come to the device when they are taken, see `lnl.training.images`.
    """

    images: Images  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64: the given label, -1 for unlabelled images
    labelled: Tensor  # (L,) indices into images
    unlabelled: Tensor  # (U,)
    probe: Tensor  # (P,): labelled images whose label is trusted
    classes: int
    epochs: int
    steps: int | None  # optimizer steps per epoch; None: one pass over the larger part
    views: Mapping[View, Transform]

    def pair(self, index: Tensor, kind: Pair, generator: torch.Generator) -> Tensor:
        """Two views of the images at these indices (B,): (2B, C, H, W), first views first."""
        if kind == "alike":
            return self.view(index.repeat(2), "contrastive", generator)
        return torch.cat([self.view(index, name, generator) for name in ("blurred", "solarised")])

    def view(self, index: Tensor, name: View, generator: torch.Generator) -> Tensor:
        """Augmented, normalised images: (B,) -> (B, C, H, W) float32."""
        with phase("views"):
            return self.views[name](self.images[index], generator)

    def over(
        self,
        index: Tensor,
        call: Callable[[Tensor], Tensor],
        view: View = "none",
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """`call` on views of many images, in parts: (N,) -> (N, …).  The view `none` draws nothing, others need one."""
        generator = generator or torch.Generator(index.device)
        parts = index.split(parts_of(self.images))
        expect(self.images, parts)
        return torch.cat([call(self.view(part, view, generator)) for part in parts])

    def order(self, pool: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
        """The batches (steps, batch_size) of the function `order`, which will be taken one after the other."""
        batches = order(pool, batch_size, steps, generator)
        expect(self.images, batches)
        return batches

    def steps_per_epoch(self, batch_size: int) -> int:
        """The trial's `steps`, or those of one pass over the labelled or unlabelled images, whichever are more."""
        return self.steps or math.ceil(max(len(self.labelled), len(self.unlabelled)) / batch_size)


class Record:
    """The last value noted for each image of a task, NaN until the first.  Checkpoints keep it."""

    def __init__(self, task: Task, *shape: int) -> None:
        self.values = torch.full((len(task.images), *shape), torch.nan, device=task.images.device)

    def note(self, index: Tensor, values: Tensor) -> None:
        """Record values (B, *shape) of the images at `index` (B,); of an image that occurs twice one value is kept."""
        self.values[index] = values.detach().to(self.values.dtype)

    def of(self, index: Tensor) -> Tensor:
        """The last values of the images at `index`: (B,) -> (B, *shape)."""
        return self.values[index]

    def state_dict(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.values.copy_(state["values"])


@dataclass(frozen=True)
class Beliefs:
    """What a method has come to think of the training labels, for evaluation to compare with the truth.

    Each part is optional.  (..., L): over `Task.labelled` in its order, leading axes are networks; NaN: no opinion.
    """

    loss: Tensor | None = None  # (..., L) of the given label, as the method models it
    clean: Tensor | None = None  # (..., L) probability, or weight, that the given label is right
    wrong: Tensor | None = None  # (..., L) probability that it is wrong, where `clean` only puts labels in order
    selected: Tensor | None = None  # (..., L) 1: trained on as right, 0: not
    coefficient: Tensor | None = None  # (..., L) in [0, 1]: how much of the target is the given label
    labels: Tensor | None = None  # (..., L, K) refined labels
    pseudo_labels: Tensor | None = None  # (..., U, K) over Task.unlabelled
    transition: Tensor | None = None  # (K, K) estimated P(given | true)
    mixture: Tensor | None = (
        None  # (..., 2, 3) weight, mean, standard deviation of each component, in units of `loss`; low losses first
    )


@dataclass(frozen=True)
class Origin:
    """Where images stand in their data set."""

    index: np.ndarray  # (N,) among its training images, or its test images
    files: Sequence[str] | None = None  # (N,) their names; None where the data set has none

    def at(self, positions: np.ndarray) -> Origin:
        """Of the images at these positions (n,)."""
        return Origin(self.index[positions], self.files and [self.files[position] for position in positions])


@dataclass(frozen=True)
class Truth:
    """For evaluation only, never passed to a method.  Images are normalised float32 when they are taken."""

    labels: Tensor  # (N,) true labels of Task.images, -1 where they are unknown
    test_images: Images
    test_labels: Tensor
    validation_images: Images
    validation_labels: Tensor
    facts: Mapping[str, object]  # realised rate, transition matrix, hashes
    images: Origin  # of Task.images, among the training images
    tested: Origin  # of test_images


def only_images(task: Task, lesson: str) -> None:
    """Raise `Unfit` where the task holds vectors, from which a method cannot learn its `lesson`, half a sentence.

    Methods that make sense on images only call it in their constructor.
    """
    if task.images.ndim == 2:
        raise Unfit(f"{lesson}, and a data set of vectors has no images: choose another method or data set.")


def to_draw_from(pool: Tensor) -> Tensor:
    """The pool (P,) itself.  Raises `DataError` where it is empty; methods call it in their constructor."""
    if not len(pool):
        raise Unfit("The method draws from unlabelled images, but this trial leaves none: ask for fewer labels.")
    return pool


def order(pool: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Indices of `steps` batches: shuffled passes over the pool, one after the other, the last cut short.

    (P,) -> (steps, batch_size).  A pool smaller than a batch repeats within it: 40 labels can fill batches of 64.
    Raises `DataError` for an empty pool.
    """
    passes = math.ceil(steps * batch_size / len(to_draw_from(pool)))
    keys = torch.rand(passes, len(pool), generator=generator, device=pool.device)
    return pool[keys.argsort(dim=-1)].flatten()[: steps * batch_size].view(steps, batch_size)


def balanced_order(pool: Tensor, labels: Tensor, batch_size: int, steps: int, generator: torch.Generator) -> Tensor:
    """Indices of `steps` batches that take the classes of `pool` in turn, each in shuffled passes over its images.

    Pool (P,), its labels (P,) -> (steps, batch_size).  Every batch has each class equally often, or once more: exactly
    equally often where the number of classes divides `batch_size`.
    """
    classes = labels.unique()
    turns = math.ceil(steps * batch_size / max(len(classes), 1))
    columns = [order(pool[labels == label], 1, turns, generator) for label in classes]
    return torch.cat(columns, dim=-1).flatten()[: steps * batch_size].view(steps, batch_size)

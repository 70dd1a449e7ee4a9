"""What a learner may see (`Task`), what only evaluation may see (`Truth`), and the draw that makes both (`prepare`).

Splits are nested and paired: every image has one rank within its class, drawn from the stream `split`; validation,
probe and labelled images are consecutive ranks, so that 250 labels are among the 1,000 of the same replicate, and the
unlabelled images of ratio 1:1 are among those of 1:5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import numpy as np
import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass as settings
from torch import Tensor

from lnl import data as sources
from lnl.declaring import declared
from lnl.functional import augment, noise
from lnl.training.streams import Streams, digest

PART = 1024  # images at a time, where many are looked at without training
View = Literal["none", "weak", "contrastive", "strong", "autoaugment"]
VIEWS = get_args(View)


@declared
@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Noise:
    """How the given labels differ from the true ones.  `lnl.functional.noise` defines each kind.

    Semantic noise (Lee et al. 2019, RoG): the labels that a network gives which was trained on a few clean ones.
    `teacher` holds the fields in which that network's trial differs from the trial that learns from its labels.
    By default it is the same data set, network and length with `supervised`; its number of labels must be given, such
    as {"labels": 2500}: they are among the training images, whose labels it mostly reproduces.

    `exact`: exactly round(rate · N) labels are drawn, stratified by class; otherwise each with probability `rate`.
    `include_true`: symmetric noise may redraw the true class (the DivideMix convention: the real rate is
    rate·(K-1)/K).
    `column`: which human labels (CIFAR-10N: aggre, random1, random2, random3, worse; CIFAR-100N: fine).
    """

    kind: Literal["none", "symmetric", "asymmetric", "asymmetric_block", "pair", "instance", "human", "semantic"] = (
        "none"
    )
    rate: Annotated[float, Field(ge=0, le=1)] = 0.0
    exact: bool = True
    include_true: bool = False
    column: str | None = None
    teacher: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.kind in ("none", "human", "semantic") and self.rate:
            raise ValueError(
                f"noise.rate is {self.rate}, but kind '{self.kind}' takes no rate: leave it at 0 or choose another kind"
            )
        if self.include_true and self.kind != "symmetric":
            raise ValueError(f"noise.include_true belongs to kind 'symmetric': leave it out with '{self.kind}'")
        if (self.column is None) == (self.kind == "human"):
            raise ValueError(
                "noise.column names the human labels (such as 'worse'): give it with kind 'human' and only then"
            )
        if (self.teacher is None) == (self.kind == "semantic") or (self.teacher and "labels" not in self.teacher):
            raise ValueError(
                "noise.teacher says how the labels' network is trained, such as {'labels': 2500}: "
                "give it with kind 'semantic' and only then"
            )


@declared
@settings(frozen=True, config=ConfigDict(extra="forbid"))
class Validation:
    """Images kept apart to choose an epoch: how many, cut from which split, with which labels."""

    images: Annotated[int, Field(ge=0)] = 0
    source: Literal["train", "test"] = "train"
    labels: Literal["clean", "noisy"] = "clean"

    def __post_init__(self) -> None:
        if self.labels == "noisy" and not self.images:
            raise ValueError("validation.labels 'noisy' needs validation.images")


@dataclass(frozen=True)
class Task:
    """All that a method may see.  Tensors live on the training device."""

    images: Tensor  # (N, C, H, W) uint8
    labels: Tensor  # (N,) int64: the given label, -1 for unlabelled images
    labelled: Tensor  # (L,) indices into images
    unlabelled: Tensor  # (U,)
    probe: Tensor  # (P,): labelled images whose label is trusted
    classes: int
    epochs: int
    steps: int | None  # optimizer steps per epoch; None: one pass over the larger part
    views: Mapping[str, augment.Augmentation]

    def view(self, index: Tensor, name: View, generator: torch.Generator) -> Tensor:
        """Augmented, normalised images: (B,) -> (B, C, H, W) float32."""
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
        return torch.cat([call(self.view(part, view, generator)) for part in index.split(PART)])

    def steps_per_epoch(self, batch_size: int) -> int:
        return self.steps or math.ceil(max(len(self.labelled), len(self.unlabelled)) / batch_size)


class Record:
    """The last value noted for each image of a task, NaN until the first.  Checkpoints keep it."""

    def __init__(self, task: Task, *shape: int) -> None:
        self.values = torch.full((len(task.images), *shape), torch.nan, device=task.images.device)

    def note(self, index: Tensor, values: Tensor) -> None:
        """Replace the values (B, *shape) of the images at `index` (B,); of an image that comes twice one is kept."""
        self.values[index] = values.detach().to(self.values.dtype)

    def of(self, index: Tensor) -> Tensor:
        """(B,) -> (B, *shape)."""
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
    selected: Tensor | None = None  # (..., L) 1: trained on as right, 0: not
    coefficient: Tensor | None = None  # (..., L) in [0, 1]: how much of the target is the given label
    labels: Tensor | None = None  # (..., L, K) refined labels
    pseudo_labels: Tensor | None = None  # (..., U, K) over Task.unlabelled
    transition: Tensor | None = None  # (K, K) estimated P(given | true)
    mixture: Tensor | None = (
        None  # (..., 2, 3) weight, mean, standard deviation of each component, in units of `loss`; low losses first
    )


@dataclass(frozen=True)
class Truth:
    """For evaluation only, never passed to a method.  Images are normalised float32 on the training device."""

    labels: Tensor  # (N,) true labels of Task.images, -1 where nobody knows
    test_images: Tensor
    test_labels: Tensor
    validation_images: Tensor
    validation_labels: Tensor
    facts: Mapping[str, object]  # realised rate, transition matrix, hashes


@dataclass(frozen=True)
class Split:
    """Indices into a data set's training images (validation: into `validation_source`)."""

    labelled: np.ndarray
    unlabelled: np.ndarray
    probe: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def split(
    data: sources.Dataset,
    streams: Streams,
    *,
    labels: int | None,
    unlabelled_ratio: float | None,
    probe: int,
    validation: Validation,
) -> Split:
    """Class-balanced nested split.  Raises `DataError` where the data set has too few images."""
    classes = len(data.class_names)
    given = torch.from_numpy(np.asarray(data.train_labels, dtype=np.int64))
    order = _interleaved(given, classes, streams["split"])  # one class after the other, unknown labels last
    known = int((given >= 0).sum())
    test = np.arange(len(data.test_labels))
    from_train = validation.images if validation.source == "train" else 0
    wanted = from_train + probe + (labels or classes)
    if wanted > known:
        raise sources.Unfit(
            f"{data.name} has {known} training images with labels, but {wanted} are asked for "
            f"(validation {from_train}, probe {probe}, labels {labels or 'at least one a class'}): ask for fewer."
        )
    if labels is not None and labels < classes:
        raise sources.Unfit(
            f"labels={labels} leaves some of {data.name}'s {classes} classes without any: ask for at least {classes}."
        )
    held, first = from_train, from_train + probe
    last = known if labels is None else first + labels
    counts = torch.bincount(given[order[first:last]], minlength=classes)
    if not counts.all():
        raise sources.Unfit(
            f"No labelled image is left of class {int(counts.argmin())} of {data.name}, which has "
            f"{int((given == counts.argmin()).sum())}: ask for a smaller validation or probe set."
        )
    rest = order[last:]
    if unlabelled_ratio is not None:
        count = round(unlabelled_ratio * (last - first))
        if not 0 < count <= len(rest):
            raise sources.Unfit(
                f"unlabelled_ratio={unlabelled_ratio:g} with {last - first} labels asks for {count} unlabelled images, "
                f"but {data.name} has {len(rest)} left: change the ratio or the labels."
            )
        shuffled = rest[torch.randperm(len(rest), generator=streams["split/unlabelled"])]
        rest = shuffled[:count]
    validation_index = order[:held].numpy()
    if validation.source == "test" and validation.images:
        if validation.images >= len(test):
            raise sources.Unfit(
                f"validation.images={validation.images} takes all {len(test)} test images: ask for fewer."
            )
        ranked = _interleaved(
            torch.from_numpy(np.asarray(data.test_labels, dtype=np.int64)), classes, streams["split/test"]
        ).numpy()
        validation_index, test = ranked[: validation.images], np.sort(ranked[validation.images :])
    return Split(
        labelled=order[first:last].numpy(),
        unlabelled=rest.numpy(),
        probe=order[held:first].numpy(),
        validation=validation_index,
        test=test,
    )


def _interleaved(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """All indices, shuffled, then one of each class in turn; images without label last.  (N,) -> (N,)."""
    shuffled = torch.randperm(len(labels), generator=generator)
    mine = labels[shuffled]
    rank = torch.zeros_like(mine)
    for k in range(classes):
        rank[mine == k] = torch.arange(int((mine == k).sum()))
    rank[mine < 0] = len(labels)
    return shuffled[torch.argsort(rank * classes + mine.clamp(min=0), stable=True)]


def prepare(
    dataset: str,
    streams: Streams,
    device: torch.device,
    root: Path | None,
    *,
    labels: int | None,
    unlabelled_ratio: float | None,
    probe: int,
    validation: Validation,
    noise_settings: Noise,
    epochs: int,
    steps: int | None,
    taught: np.ndarray | None = None,
    probe_apart: bool = True,
) -> tuple[Task, Truth]:
    """Data, split and noise of one trial.  The same settings and replicate always give the same task.

    `taught`: semantic labels of all training images.  Without `probe_apart` the probe joins the labelled images with
    its right labels, so that methods which use no probe have the same information.
    `streams` must live on the CPU, so that every device draws the same splits and labels.
    """
    data = sources.load(dataset, root)
    parts = split(data, streams, labels=labels, unlabelled_ratio=unlabelled_ratio, probe=probe, validation=validation)
    classes = len(data.class_names)
    annotated = sources.human_labels(data, noise_settings.column, root) if noise_settings.column else taught

    def given(index: np.ndarray, stream: str, split_images: np.ndarray, split_labels: np.ndarray) -> noise.Corrupted:
        return noise.corrupt(
            torch.from_numpy(np.asarray(split_labels[index], dtype=np.int64)),
            noise_settings.kind,
            noise_settings.rate,
            classes,
            streams[stream],
            exact=noise_settings.exact,
            include_true=noise_settings.include_true,
            images=torch.from_numpy(np.ascontiguousarray(split_images[index]))
            if noise_settings.kind == "instance"
            else None,
            mapping=noise.asymmetric_map(data.name, classes) if noise_settings.kind == "asymmetric" else None,
            annotated=torch.from_numpy(annotated[index]) if annotated is not None else None,
        )

    corrupted = given(parts.labelled, "noise", data.train_images, data.train_labels)
    # A split goes through the classes in turn: left in that order, an image's position would tell its class.
    used = np.concatenate([parts.labelled, parts.unlabelled, parts.probe])
    layout = torch.randperm(len(used), generator=streams["split/layout"])
    used = used[layout.numpy()]
    sizes = [len(parts.labelled), len(parts.unlabelled), len(parts.probe)]
    labelled, unlabelled, probe_index = layout.argsort().split(sizes)
    true = torch.from_numpy(np.asarray(data.train_labels[used], dtype=np.int64))
    seen = torch.full_like(true, -1)
    seen[labelled] = corrupted.labels
    seen[probe_index] = true[probe_index]
    if not probe_apart:
        labelled, probe_index = torch.cat([labelled, probe_index]), probe_index[:0]
    size, channels = data.train_images.shape[-1], data.train_images.shape[1]
    views = {
        name: augment.pipeline(name, size=size, channels=channels, flip=data.flip, mean=data.mean, std=data.std)
        for name in VIEWS
    }
    task = Task(
        images=torch.from_numpy(np.ascontiguousarray(data.train_images[used])).to(device),
        labels=seen.to(device),
        labelled=labelled.sort().values.to(device),
        unlabelled=unlabelled.sort().values.to(device),
        probe=probe_index.sort().values.to(device),
        classes=classes,
        epochs=epochs,
        steps=steps,
        views=views,
    )
    held_images, held_labels = (
        (data.train_images, data.train_labels) if validation.source == "train" else (data.test_images, data.test_labels)
    )
    validation_labels = torch.from_numpy(np.asarray(held_labels[parts.validation], dtype=np.int64))
    if validation.labels == "noisy" and len(parts.validation):
        if annotated is not None and validation.source == "test":
            raise sources.Unfit(
                f"{noise_settings.kind.capitalize()} labels exist for training images only: "
                "take noisy validation images from 'train'."
            )
        validation_labels = given(parts.validation, "noise/validation", held_images, held_labels).labels

    def normalised(images: np.ndarray) -> Tensor:
        return views["none"](torch.from_numpy(np.ascontiguousarray(images)).to(device), streams["none"])

    truth = Truth(
        labels=true.to(device),
        test_images=normalised(data.test_images[parts.test]),
        test_labels=torch.from_numpy(np.asarray(data.test_labels[parts.test], dtype=np.int64)).to(device),
        validation_images=normalised(held_images[parts.validation]),
        validation_labels=validation_labels.to(device),
        facts={
            "noise_realised": corrupted.rate,
            "transition": corrupted.transition.tolist(),
            "classes": classes,
            "labels": len(parts.labelled),
            "unlabelled": len(parts.unlabelled),
            "data_hash": data.checksum,
            "noise_hash": corrupted.hash,
            "split_hash": digest(*map(torch.from_numpy, (parts.labelled, parts.probe, parts.validation))),
            "unlabelled_hash": digest(torch.from_numpy(parts.unlabelled)),
        },
    )
    return task, truth


def to_draw_from(pool: Tensor) -> Tensor:
    """The pool (P,).  Raises `DataError` where it is empty: a method asks when it is made, before any step."""
    if not len(pool):
        raise sources.Unfit(
            "The method draws from unlabelled images, but this trial leaves none: ask for fewer labels."
        )
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
    """Indices of `steps` batches that take the classes of `pool` in turn, each by shuffled passes over its images.

    Pool (P,), its labels (P,) -> (steps, batch_size).  Every batch has each class equally often, or once more: exactly
    equally often where the number of classes divides `batch_size`.
    """
    classes = labels.unique()
    turns = math.ceil(steps * batch_size / max(len(classes), 1))
    columns = [order(pool[labels == one], 1, turns, generator) for one in classes]
    return torch.cat(columns, dim=-1).flatten()[: steps * batch_size].view(steps, batch_size)

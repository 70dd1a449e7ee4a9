"""The draw of one trial: split, noise and views of a data set -> what the method sees and what only evaluation sees.

Splits are nested and paired: every image has one rank within its class, drawn from the stream `split`; validation,
probe and labelled images are consecutive ranks, so that 250 labels are among the 1,000 of the same replicate, and the
unlabelled images of ratio 1:1 are among those of 1:5.  Labels that are drawn at random are the first of one random
order of what validation and probe leave, and so nested, too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lnl import data as datasets
from lnl.data.dataset import Stored
from lnl.functional import noise
from lnl.training import views
from lnl.training.images import Images, Viewed, fits, held
from lnl.training.streams import Streams, digest
from lnl.training.task import LabelsDrawn, Noise, Origin, Task, Truth, Validation
from lnl.training.views import ViewSettings


@dataclass(frozen=True)
class SplitIndices:
    """Indices of the images of each part of a split."""

    labelled: np.ndarray  # (L,) of training images
    unlabelled: np.ndarray  # (U,) of training images
    probe: np.ndarray  # (P,) of training images
    validation: np.ndarray  # (V,) of the training or test images, whichever `Validation.source` names
    test: np.ndarray  # (T,) of test images


def split(
    data: datasets.Dataset,
    streams: Streams,
    *,
    labels: int | None,
    unlabelled_ratio: float | None,
    probe: int,
    validation: Validation,
    labels_drawn: LabelsDrawn = "balanced",
    given: np.ndarray | None = None,
) -> SplitIndices:
    """A class-balanced, nested split.  Raises `DataError` where the data set has too few images.

    `labels_drawn`: random labels are as frequent as their classes, and a few of them may miss some classes.

    `given`: the labels (N,) that people gave, where these are what is trained on; else it is the true labels and their
    noise.  An image that has none of them is unlabelled.  Classes are the true ones, given ones where they are unknown.
    """
    classes = len(data.class_names)
    true = torch.from_numpy(np.asarray(data.train_labels, dtype=np.int64))
    to_train_on = true if given is None else torch.from_numpy(np.asarray(given, dtype=np.int64))
    trusted, labelled = true >= 0, to_train_on >= 0
    by_class = torch.where(trusted, true, to_train_on)
    from_train = validation.images if validation.source == "train" else 0
    clean = probe + (from_train if validation.labels == "clean" else 0)
    _check_trusted(data, int(trusted.sum()), clean, given is not None)
    order = _interleaved(by_class, classes, streams["split"])  # images without label last
    held_out = order[(trusted if validation.labels == "clean" else labelled)[order]][:from_train]
    rest = _without(order, held_out)
    probed = rest[trusted[rest]][:probe]
    rest = _without(rest, probed)
    everyone = classes  # the fewest labels: one of every class
    if labels_drawn == "random":
        rest, everyone = rest[torch.randperm(len(rest), generator=streams["split/labels"])], 1
    chosen = rest[labelled[rest]][:labels]
    if len(held_out) < from_train or len(probed) < probe or len(chosen) < (labels or everyone):
        raise datasets.Unfit(
            f"{data.name} has {int((trusted | labelled).sum())} training images with labels, but "
            f"{from_train + probe + (labels or everyone)} are asked for "
            f"(validation {from_train}, probe {probe}, labels {labels or 'at least one a class'}): ask for fewer."
        )
    if labels is not None and labels < everyone:
        raise datasets.Unfit(
            f"labels={labels} leaves some of {data.name}'s {classes} classes without any: ask for at least {classes}, "
            "or draw them with labels_drawn='random'."
        )
    counts = torch.bincount(by_class[chosen], minlength=classes)
    if int((counts > 0).sum()) < everyone:
        raise datasets.Unfit(
            f"No labelled image is left of class {int(counts.argmin())} of {data.name}, which has "
            f"{int((by_class[labelled] == counts.argmin()).sum())}: ask for a smaller validation or probe set."
        )
    unlabelled = _without(rest, chosen)
    if unlabelled_ratio is not None:
        unlabelled = _unlabelled_by_ratio(data.name, unlabelled, unlabelled_ratio, len(chosen), streams)
    of_validation, test = held_out.numpy(), np.arange(len(data.test_labels))
    if validation.source == "test" and validation.images:
        of_validation, test = _validation_from_test(data, validation.images, streams)
    return SplitIndices(
        labelled=chosen.numpy(),
        unlabelled=unlabelled.numpy(),
        probe=probed.numpy(),
        validation=of_validation,
        test=test,
    )


def _check_trusted(data: datasets.Dataset, trusted: int, clean: int, given: bool) -> None:
    """Raise `Unfit` where the true labels of training images are asked for, but not known of enough of them."""
    if data.truth_known:
        return
    if not trusted and not given:
        raise datasets.Unfit(
            f"The true labels of {data.name} are not known: train on the given ones with noise.kind 'given', or name "
            "images with true labels."
        )
    if clean > trusted:
        raise datasets.Unfit(
            f"Validation and probe ask for {clean} training images with true labels, but {data.name} has {trusted}: "
            "validate on given labels (validation.labels 'noisy') or on test images (validation.source 'test'), or "
            "name images with true labels."
        )


def _without(order: Tensor, taken: Tensor) -> Tensor:
    """The indices of `order` that are not among those `taken`, in their order."""
    return order[~torch.isin(order, taken)]


def _unlabelled_by_ratio(name: str, remaining: Tensor, ratio: float, labels: int, streams: Streams) -> Tensor:
    """round(ratio · labels) random ones of the images that remain (R,).  Raises `DataError` where there are fewer."""
    count = round(ratio * labels)
    if not 0 < count <= len(remaining):
        raise datasets.Unfit(
            f"unlabelled_ratio={ratio:g} with {labels} labels asks for {count} unlabelled images, "
            f"but {name} has {len(remaining)} left: change the ratio or the labels."
        )
    return remaining[torch.randperm(len(remaining), generator=streams["split/unlabelled"])][:count]


def _validation_from_test(data: datasets.Dataset, images: int, streams: Streams) -> tuple[np.ndarray, np.ndarray]:
    """Class-balanced validation indices (images,) and the remaining test indices, both into the test images."""
    if images >= len(data.test_labels):
        raise datasets.Unfit(
            f"validation.images={images} takes all {len(data.test_labels)} test images: ask for fewer."
        )
    labels = torch.from_numpy(np.asarray(data.test_labels, dtype=np.int64))
    ranked = _interleaved(labels, len(data.class_names), streams["split/test"]).numpy()
    return ranked[:images], np.sort(ranked[images:])


def _interleaved(labels: Tensor, classes: int, generator: torch.Generator) -> Tensor:
    """All indices, shuffled, then one of each class in turn; images without label last.  (N,) -> (N,)."""
    shuffled = torch.randperm(len(labels), generator=generator)
    labels = labels[shuffled]
    rank = torch.zeros_like(labels)
    for k in range(classes):
        rank[labels == k] = torch.arange(int((labels == k).sum()))
    rank[labels < 0] = len(labels)
    return shuffled[torch.argsort(rank * classes + labels.clamp(min=0), stable=True)]


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
    labels_drawn: LabelsDrawn = "balanced",
    semantic_labels: np.ndarray | None = None,
    probe_apart: bool = True,
    view_settings: ViewSettings | None = None,
    workers: int = 0,
) -> tuple[Task, Truth]:
    """Data, split and noise of one trial.  The same settings and replicate always give the same task.

    `semantic_labels`: those of a teacher, for all training images (N,).  Without `probe_apart` the probe joins the
    labelled images with its true labels, so that methods which use no probe have the same information.  `streams` must
    live on the CPU, so that every device draws the same splits and labels.  `workers`: see `lnl.training.images.held`.
    """
    data = datasets.load(dataset, root)
    column = noise_settings.given_column
    given_by_people = None if column is None else datasets.given_labels(data, column, root)
    parts = split(
        data,
        streams,
        labels=labels,
        unlabelled_ratio=unlabelled_ratio,
        probe=probe,
        validation=validation,
        labels_drawn=labels_drawn,
        given=given_by_people,
    )
    annotated = semantic_labels if given_by_people is None else given_by_people
    corrupted = _corrupted(
        data, noise_settings, annotated, parts.labelled, data.train_images, data.train_labels, streams["noise"]
    )
    transforms = views.of(data, view_settings or ViewSettings(), device)
    # A split goes through the classes in turn: left in that order, an image's position would tell its class.
    used = np.concatenate([parts.labelled, parts.unlabelled, parts.probe])
    layout = torch.randperm(len(used), generator=streams["split/layout"])
    used = used[layout.numpy()]
    sizes = [len(parts.labelled), len(parts.unlabelled), len(parts.probe)]
    labelled, unlabelled, probe_index = layout.argsort().split(sizes)
    true = torch.from_numpy(np.asarray(data.train_labels[used], dtype=np.int64))
    given = torch.full_like(true, -1)
    given[labelled] = corrupted.labels
    given[probe_index] = true[probe_index]
    if not probe_apart:
        labelled, probe_index = torch.cat([labelled, probe_index]), probe_index[:0]
    task = Task(
        images=held(data.train_images, used, device, workers),
        labels=given.to(device),
        labelled=labelled.sort().values.to(device),
        unlabelled=unlabelled.sort().values.to(device),
        probe=probe_index.sort().values.to(device),
        classes=len(data.class_names),
        epochs=epochs,
        steps=steps,
        views=transforms,
    )
    held_out_images, held_out_labels = _held_out(data, parts, validation, noise_settings, annotated, streams)

    def view(images: Tensor) -> Tensor:
        return transforms["none"](images, streams["none"])

    def normalised(stored: Stored, index: np.ndarray) -> Images:
        images = held(stored, index, device, workers)
        if isinstance(images, Tensor) and fits(4 * images.numel(), device):  # bytes of float32
            return view(images)
        return Viewed(images, view)

    truth = Truth(
        labels=true.to(device),
        test_images=normalised(data.test_images, parts.test),
        test_labels=torch.from_numpy(np.asarray(data.test_labels[parts.test], dtype=np.int64)).to(device),
        validation_images=normalised(held_out_images, parts.validation),
        validation_labels=held_out_labels.to(device),
        facts={
            "noise_realised": corrupted.rate,
            "transition": None if corrupted.transition is None else corrupted.transition.tolist(),
            "classes": len(data.class_names),
            "class_names": json.dumps(data.class_names, ensure_ascii=False),
            "labels": len(parts.labelled),
            "unlabelled": len(parts.unlabelled),
            "data_hash": data.checksum,
            "noise_hash": corrupted.hash,
            "split_hash": digest(*map(torch.from_numpy, (parts.labelled, parts.probe, parts.validation))),
            "unlabelled_hash": digest(torch.from_numpy(parts.unlabelled)),
        },
        images=Origin(np.arange(len(data.train_labels)), data.train_files).at(used),
        tested=Origin(np.arange(len(data.test_labels)), data.test_files).at(parts.test),
    )
    return task, truth


def _corrupted(
    data: datasets.Dataset,
    settings: Noise,
    annotated: np.ndarray | None,
    index: np.ndarray,
    images: Stored,
    labels: np.ndarray,
    generator: torch.Generator,
) -> noise.Corrupted:
    """The given labels of the images at `index` (n,) into `images` and `labels`, which are of one split of the data."""
    classes = len(data.class_names)
    if settings.kind == "instance" and not isinstance(images, np.ndarray):
        raise datasets.Unfit(
            f"Instance-dependent noise looks at all images of {data.name} at once, and these are read on demand: "
            "choose another kind of noise, or have them read into the cache."
        )
    return noise.corrupt(
        torch.from_numpy(np.asarray(labels[index], dtype=np.int64)),
        settings.kind,
        settings.rate,
        classes,
        generator,
        exact=settings.exact,
        include_true=settings.include_true,
        images=torch.from_numpy(np.ascontiguousarray(images[index])) if settings.kind == "instance" else None,
        mapping=noise.asymmetric_map(data.name, classes) if settings.kind == "asymmetric" else None,
        annotated=torch.from_numpy(annotated[index]) if annotated is not None else None,
    )


def _held_out(
    data: datasets.Dataset,
    parts: SplitIndices,
    validation: Validation,
    noise_settings: Noise,
    annotated: np.ndarray | None,
    streams: Streams,
) -> tuple[Stored, Tensor]:
    """The images among which the validation set is, and its labels (V,), clean or noisy as its settings say."""
    from_train = validation.source == "train"
    images, labels = (data.train_images, data.train_labels) if from_train else (data.test_images, data.test_labels)
    index = parts.validation
    if validation.labels == "clean" or not len(index):
        return images, torch.from_numpy(np.asarray(labels[index], dtype=np.int64))
    if annotated is not None and not from_train:
        raise datasets.Unfit(
            f"{noise_settings.kind.capitalize()} labels exist for training images only: "
            "take noisy validation images from 'train'."
        )
    generator = streams["noise/validation"]
    return images, _corrupted(data, noise_settings, annotated, index, images, labels, generator).labels

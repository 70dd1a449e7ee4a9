"""Validate trials before anything is trained: do they fit their data, their network and their method?

Whether a configuration suits its method is checked by constructing the method on a stand-in: a task of a few blank
images with the real classes, epochs and image sizes, and a network of a few weights.  That takes milliseconds each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lnl import data, methods, networks
from lnl.functional import noise
from lnl.study.plan import Planned
from lnl.training import draw, task, views
from lnl.training.learner import Head, NetworkBuilder
from lnl.training.streams import Streams
from lnl.trial.config import Trial

GENERATED_NOISE = ("symmetric", "asymmetric", "asymmetric_block", "pair")  # kinds of noise that need nothing but labels
WIDTH = 4  # of the stand-in's features


def check(todo: Iterable[Planned], root: Path | None, *, read: bool) -> None:
    """Raise `DataError` with one sentence that names the arm where a trial cannot be trained as configured.

    `read`: load the data (fetch them if needed) and the trained weights of networks.  Otherwise nothing is fetched or
    prepared, and what needs data that are not available is not checked.
    """
    checks = _Checks(root, read)
    for planned in todo:
        try:
            checks.of(planned.trial)
        except data.Unfit as error:
            raise data.Unfit(f"{_place(planned)}: {error}") from None
        except data.DataError:
            raise
        except ValueError as error:
            raise data.Unfit(f"{_place(planned)}: {error}") from None


def _place(planned: Planned) -> str:
    return f"Arm '{planned.arm}'" + (f" at {planned.setting}" if planned.setting != "{}" else "")


class _Checks:
    """Each check is made once: replicates, and most arms, share their data, split and network."""

    def __init__(self, root: Path | None, read: bool) -> None:
        self.root, self.read = root, read
        self.datasets: dict[str, data.Dataset | None] = {}
        self.splits: dict[object, draw.SplitIndices] = {}
        self.given: dict[tuple[str, str], np.ndarray | None] = {}
        self.asked: set[object] = set()

    def of(self, trial: Trial) -> None:
        if trial.dataset not in self.datasets:
            self.datasets[trial.dataset] = self._dataset(trial.dataset)
        if (dataset := self.datasets[trial.dataset]) is None:
            return
        if self._new("network", trial.dataset, trial.network, trial.weights, trial.resize):
            self._network(trial, dataset)
        column = trial.noise.given_column
        given = None if column is None else self._given(dataset, column)
        labels = (trial.labels, trial.labels_drawn, trial.unlabelled_ratio)
        key = (trial.dataset, labels, trial.probe, trial.validation, column)
        if key not in self.splits:
            self.splits[key] = draw.split(
                dataset,
                Streams(0),
                labels=trial.labels,
                labels_drawn=trial.labels_drawn,
                unlabelled_ratio=trial.unlabelled_ratio,
                probe=trial.probe,
                validation=trial.validation,
                given=given,
            )
        if self._new("noise", trial.dataset, repr(trial.noise)):
            self._noise(trial, dataset)
        of_method = (trial.epochs, trial.steps, trial.method_name, repr(trial.method))
        if self._new("method", key, trial.network, repr(trial.view_settings), *of_method):
            _construct(trial, dataset, self.splits[key], dataset.train_labels if given is None else given)

    def _given(self, dataset: data.Dataset, column: str) -> np.ndarray | None:
        """The labels that people gave; None where they lie in a file that is not to be read yet."""
        if (dataset.name, column) not in self.given:
            is_here = data.given_column(dataset, column) in dataset.given
            labels = data.given_labels(dataset, column, self.root) if is_here or self.read else None
            self.given[dataset.name, column] = labels
        return self.given[dataset.name, column]

    def _dataset(self, name: str) -> data.Dataset | None:
        if self.read:
            return data.load(name, self.root, verify=True)  # a run is worth reading its images through once
        return data.outline(name, self.root)

    def _new(self, *question: object) -> bool:
        new = question not in self.asked
        self.asked.add(question)
        return new

    def _network(self, trial: Trial, dataset: data.Dataset) -> None:
        weights = trial.weights if self.read else None
        with torch.device("meta") if weights is None else nullcontext():
            networks.backbone(trial.network, dataset.shape, weights, trial.resize)

    def _noise(self, trial: Trial, dataset: data.Dataset) -> None:
        asked, classes = trial.noise, len(dataset.class_names)
        if asked.kind in GENERATED_NOISE:
            mapping = noise.asymmetric_map(dataset.name, classes) if asked.kind == "asymmetric" else None
            noise.corrupt(torch.arange(classes), asked.kind, asked.rate, classes, Streams(0)["noise"], mapping=mapping)


# --------------------------------------------------------------------------------------------------------- stand-ins


class _Backbone(nn.Module):
    """A few weights in place of a network: (B, C, H, W) -> (B, WIDTH)."""

    width = WIDTH

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, WIDTH, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.convolution(images.mean((-2, -1), keepdim=True))
        return features.flatten(1)


@dataclass(frozen=True)
class _Builder(NetworkBuilder):
    def build(self, heads: Mapping[str, Head], replica: str = "") -> networks.Network:
        return networks.Network(_Backbone(self.shape[0]), {name: head(WIDTH) for name, head in heads.items()})


def _construct(trial: Trial, dataset: data.Dataset, split: draw.SplitIndices, given: np.ndarray) -> None:
    """Construct the trial's method as `lnl.trial.run.assemble` does, on a stand-in.

    `given`: the labels to train on (N,), -1 where there is none.
    """
    module, device = methods.load(trial.method_name), torch.device("cpu")
    labelled, probe = _one_of_each(split.labelled, given), _one_of_each(split.probe, dataset.train_labels)
    if "probe" not in module.USES:
        labelled, probe = np.concatenate([labelled, probe]), probe[:0]
    parts = [labelled, split.unlabelled[:2], probe]
    seen_labels = np.where(given < 0, dataset.train_labels, given)
    seen_labels[split.probe] = dataset.train_labels[split.probe]
    labels = torch.from_numpy(np.asarray(seen_labels[np.concatenate(parts)], dtype=np.int64))
    places = torch.arange(len(labels)).split([len(part) for part in parts])
    labels[places[1]] = -1
    seen = task.Task(
        images=torch.from_numpy(np.zeros((len(labels), *dataset.shape), dataset.train_images.dtype)),
        labels=labels,
        labelled=places[0],
        unlabelled=places[1],
        probe=places[2],
        classes=len(dataset.class_names),
        epochs=trial.epochs,
        steps=trial.steps,
        views=views.of(dataset, trial.view_settings, device),
    )
    stand_ins = (_Builder,) if len(dataset.shape) == 3 else ()  # networks of vectors are made as quickly
    for builder in (*stand_ins, NetworkBuilder):  # what it refuses of the stand-in is asked again of the real network
        try:
            of_trial = (trial.network, dataset.shape, device, "float32")  # no other is looked into before training
            network = builder(*of_trial, Streams(0), resize=trial.resize, trains=False)
            module.Method(trial.method, seen, network, Streams(0))
            return
        except data.Unfit:
            raise
        except ValueError:
            if builder is NetworkBuilder:
                raise
        except Exception:  # a few blank images may be too little for it, and the real ones not: that is no refusal
            return


def _one_of_each(index: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The first image of each class that is among them."""
    return index[np.sort(np.unique(labels[index], return_index=True)[1])]

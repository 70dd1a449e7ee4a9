"""What is asked of a detector of wrong labels, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lnl.data.dataset import DataError
from lnl.labelling.blocks import blocks

FIRST = (100, 500, 1000)  # of the most suspect labels: among so many it is told how many errors to expect
Tell = Callable[[int, int], None]  # called with the steps that are done, and with all of them


@dataclass(frozen=True, eq=False)
class Labels:
    """What is to be judged."""

    features: np.ndarray  # (N, D) float32, perhaps memory-mapped
    given: np.ndarray  # (N,) int64 in 0 … classes - 1; -1: the image has no given label
    classes: int


@dataclass(frozen=True)
class Share:
    """An estimated share of wrong labels among the given ones, with its range."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What a detector says of each image."""

    score: np.ndarray  # (N,) float64, the larger the more suspect; -inf where no label is judged (see `judged`)
    probability: np.ndarray  # (N,) float64, of an error, calibrated where the detector can; NaN where none is judged
    proposed: np.ndarray  # (N,) int64, the most likely class: of the others, where a given label is judged
    flagged: np.ndarray  # (N,) bool, those that the detector holds to be wrong
    class_probabilities: np.ndarray  # (N, classes) float, without the use of the image's own label
    wrong: Share


class Detector(Protocol):
    """Finds wrong labels.  The same labels and seed always give the same answer."""

    def __call__(self, labels: Labels, seed: int, tell: Tell) -> Suspicion: ...


def judged(labels: Labels) -> np.ndarray:
    """Whether an image's given label can be judged: (N,) bool.  It is there, and another image has the same."""
    has_label = labels.given >= 0
    counts = np.bincount(labels.given[has_label], minlength=labels.classes)
    return has_label & (counts[labels.given] > 1)


def check(labels: Labels, at_least: int) -> None:
    """Raises `DataError` where labels cannot be judged; `at_least` so many of them are needed."""
    features, given = labels.features, labels.given
    if features.ndim != 2 or len(features) != len(given) or not features.shape[1]:
        raise DataError(
            f"Features {features.shape} and given labels {given.shape} do not match: there must be one vector and one "
            "label, perhaps -1, for each image."
        )
    if outside := int(((given < -1) | (given >= labels.classes)).sum()):
        raise DataError(
            f"{outside} given labels are outside 0 to {labels.classes - 1}: correct them, or have -1 for no label."
        )
    for rows in blocks(*features.shape):
        if not (finite := np.isfinite(features[rows]).all(1)).all():
            raise DataError(
                f"The features of image {rows.start + int(finite.argmin())} are no finite numbers: make them anew or "
                "leave the image out."
            )
    usable = given[judged(labels)]
    if len(classes := np.unique(usable)) < 2:
        of_which = f"class {classes[0]} alone has" if len(classes) else "no class has"
        raise DataError(f"Wrong labels are found by comparing classes, but {of_which} two given labels or more.")
    if len(usable) < at_least:
        raise DataError(
            f"Only {len(usable)} given labels can be judged, which is too few: {at_least} or more are needed."
        )

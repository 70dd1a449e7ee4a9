"""What is asked of a detector of wrong labels, and what it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

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

    score: np.ndarray  # (N,) float64, the larger the more suspect; -inf where there is no given label
    probability: np.ndarray  # (N,) float64, of an error, calibrated where the detector can; NaN without a given label
    proposed: np.ndarray  # (N,) int64, the most likely class: of the others, where the image has a given label
    flagged: np.ndarray  # (N,) bool, those that the detector holds to be wrong
    class_probabilities: np.ndarray  # (N, classes) float, without the use of the image's own label
    wrong: Share


class Detector(Protocol):
    """Finds wrong labels.  The same labels and seed always give the same answer."""

    def __call__(self, labels: Labels, seed: int, tell: Tell) -> Suspicion: ...

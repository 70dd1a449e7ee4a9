"""Labels for all images from a few: they spread over the graph of nearest neighbours (Bai et al. 2021, eq. 2 and 3).

The graph is built once; after a further label the whole is propagated anew, which takes a fraction of a second for
50,000 images.  Given labels are trusted and stay (the hard clamp of eq. 3).  Three things are ours.  The temperature of
eq. 2 belongs to features: unless it is given, it is chosen so that on average seven tenths of the k neighbours count
(the exponential of the entropy of an image's weights).  Two images are joined where either is a neighbour of the other,
so that a label reaches more images.  And an image that no label has reached has no class, nor has one whose class is
less probable than a confidence that is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lnl.data.dataset import DataError
from lnl.functional import graph, neighbours
from lnl.labelling.problem import Tell

NEIGHBOURS, ITERATIONS = 10, 20  # k and t of the document
COUNTED = 0.7  # share of the k neighbours that count, on average
COLDEST, HOTTEST = 1e-4, 10.0  # temperatures among which it is chosen


@dataclass(frozen=True, eq=False)
class Graph:
    """Images joined to their nearest neighbours."""

    matrix: Tensor  # (N, N) S of eq. 3, in compressed rows
    index: np.ndarray  # (N, k) int64 neighbours, the nearest first
    cosines: np.ndarray  # (N, k) float32
    temperature: float
    recall: float | None  # share of the nearest neighbours that the search has found, of a sample; None: all

    @classmethod
    def of(
        cls, features: np.ndarray, tell: Tell, *, k: int = NEIGHBOURS, temperature: float | None = None, seed: int = 0
    ) -> Graph:
        """The graph of features (N, D) float32, perhaps memory-mapped; k where there are so many others, else all.

        `seed` counts where neighbours are sought approximately, see `lnl.functional.neighbours`.  Raises `DataError`
        for fewer than two images, values that are not finite, and k below 1.
        """
        if k < 1:
            raise DataError(f"The graph of neighbours is asked for with k = {k}: ask for at least one neighbour.")
        try:
            found = neighbours.find(features, k, seed, tell)
        except ValueError as error:
            raise DataError(str(error)) from None
        if temperature is None:
            temperature = chosen_temperature(found.cosines)
        joined = graph.symmetrised(graph.joined(found.cosines, found.index, temperature), "max")
        matrix = graph.normalised(joined, "symmetric").float()
        return cls(matrix, found.index.numpy(), found.cosines.numpy(), temperature, found.recall)


@dataclass(frozen=True, eq=False)
class Proposal:
    """Labels for all images."""

    probabilities: np.ndarray  # (N, classes) float32; NaN where no label has arrived
    label: np.ndarray  # (N,) int64, the most probable class; -1 where there is none, or too little confidence in it
    coverage: float  # share of the images without a given label that have one now


def effective_neighbours(cosines: Tensor, temperature: float) -> float:
    """The mean exponential of the entropy of an image's weights: 1 where one neighbour outweighs all, k where all are
    equal.  Cosines (N, k) -> a number in [1, k]."""
    weights = torch.softmax(cosines.double() / temperature, -1)
    return float(torch.special.entr(weights).sum(-1).exp().mean())


def chosen_temperature(cosines: Tensor, share: float = COUNTED) -> float:
    """The temperature at which `share` of the k neighbours count, by bisection of its logarithm; cosines (N, k).

    Where all neighbours are equally near any does, and it is the lowest.
    """
    low, high = np.log(COLDEST), np.log(HOTTEST)
    sample = cosines[:: max(1, len(cosines) // 10_000)]
    for _ in range(30):
        middle = (low + high) / 2
        enough = effective_neighbours(sample, float(np.exp(middle))) >= share * cosines.shape[1]
        low, high = (low, middle) if enough else (middle, high)
    return float(np.exp(high))


def propagated(
    joined: Graph, given: np.ndarray, classes: int, *, iterations: int = ITERATIONS, confidence: float = 0.0
) -> Proposal:
    """Labels for all images from the given ones (N,), -1: none.

    An image has the label -1 where no given label has reached it, or its most probable class is less probable than
    `confidence`.  Given labels stay.  Raises `DataError` for labels outside of the classes, and without any label.
    """
    labelled = torch.from_numpy(checked(given, len(joined.index), classes))
    kept = (labelled >= 0).float()[:, None]
    start = torch.zeros(len(labelled), classes)
    known = labelled >= 0
    start[known, labelled[known]] = 1
    scores = start
    for _ in range(iterations):
        _, scores = graph.propagate(joined.matrix, scores, start, kept)
    probabilities = graph.soft_labels(scores)
    best, label = probabilities.max(-1)
    label[~(best >= confidence)] = -1  # NaN is not
    label[known] = labelled[known]
    unknown = int((~known).sum())
    coverage = float((label[~known] >= 0).sum()) / unknown if unknown else 1.0
    return Proposal(probabilities.numpy(), label.numpy(), coverage)


def checked(given: np.ndarray, images: int, classes: int, at_least: int = 1) -> np.ndarray:
    """The given labels (N,) as int64.  Raises `DataError` where they do not fit the images or the classes, or are fewer
    than `at_least`."""
    labels = np.asarray(given).astype(np.int64)
    if labels.shape != (images,):
        raise DataError(f"There are {images} images, but {len(labels)} given labels: give one an image, -1 for none.")
    if labels.max(initial=-1) >= classes or labels.min(initial=0) < -1:
        wrong = labels[(labels >= classes) | (labels < -1)][0]
        raise DataError(f"The label {wrong} is none of the {classes} classes: labels are 0 to {classes - 1}, -1: none.")
    if (labels >= 0).sum() < at_least:
        raise DataError("No image has a label, so that there is nothing to spread: label some first.")
    return labels

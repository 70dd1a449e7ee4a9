"""Class probabilities from the soft targets of an image's neighbours."""

from __future__ import annotations

import numpy as np
import torch

from lnl.functional import graph
from lnl.functional.neighbours import shared

NEIGHBOURS = 50
REFERENCES = 10_000  # images among which neighbours are sought, at most: so time grows linearly with the images
QUERIES = 2**16  # images whose neighbours are sought at a time
WIDTH = 0.1  # of cosines: a neighbour's weight falls by e with each


def nearest_references(features: np.ndarray, references: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and indices of each image's k nearest among the references, itself left out, the nearest first.

    Features (N, d), references (R,) indices of images -> (N, k) float32, (N, k) int32.
    """
    own = torch.full((len(features),), -1)
    own[references] = torch.arange(len(references))
    bank, ids = shared(features[references]), references.astype(np.int32)
    cosines = np.empty((len(features), k), dtype=np.float32)
    neighbours = np.empty((len(features), k), dtype=np.int32)
    for first in range(0, len(features), QUERIES):  # all at once would take three times the memory
        part = slice(first, first + QUERIES)
        of_part, index = graph.nearest_to(bank, shared(features[part]), k, own[part])
        cosines[part], neighbours[part] = of_part.numpy(), ids[index.numpy()]
    return cosines, neighbours


def neighbour_average(cosines: np.ndarray, neighbours: np.ndarray, targets: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """log of the weighted mean of the neighbours' targets, with half an observation of the mean target.

    Cosines and neighbours (N, k), targets (N, K), their mean (K,) -> (N, K) float32.
    """
    weights = np.exp((cosines - cosines[:, :1]) / WIDTH)
    total = np.tile(0.5 * mean.astype(np.float32), (len(cosines), 1))
    for place in range(cosines.shape[1]):  # (N, k, K) at once would take 50 times the memory
        total += weights[:, place, None] * targets[neighbours[:, place]]
    return np.log(total / (weights.sum(1, keepdims=True) + 0.5) + 1e-12)

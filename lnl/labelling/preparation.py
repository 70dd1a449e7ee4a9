"""Features as a probe likes them: standardised, their principal components, with a total variance of 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
from scipy.linalg import eigh

from lnl.labelling.blocks import blocks

COMPONENTS = 256
WIDEST = 4096  # features; wider ones are projected first, as a covariance of theirs would not fit into memory
PROJECTED = 2048

Transform = Callable[[np.ndarray], np.ndarray]


def signed_root(features: np.ndarray) -> np.ndarray:
    """sign(x) sqrt|x|, which shortens the long tails of features behind a ReLU."""
    return np.sign(features) * np.sqrt(np.abs(features))


TRANSFORMS: Mapping[str, Transform] = {"as they are": lambda features: features, "signed root": signed_root}


def principal_components(features: np.ndarray, transform: Transform, seed: int = 0) -> np.ndarray:
    """At most 256 principal components of the standardised, transformed features, divided by one number.

    (N, D), perhaps memory-mapped -> (N, d) float32, of mean 0, whose variances sum to 1, so that one grid of penalties
    fits all features.  They are read block by block.  Constant features count for nothing.  More than 4,096 features
    are first projected on 2,048 random directions, which keep distances (Johnson and Lindenstrauss 1984).
    """
    project = _projection(features.shape[1], seed)

    def read() -> Iterator[tuple[slice, np.ndarray]]:
        for rows in blocks(*features.shape):
            yield rows, transform(project(np.asarray(features[rows], dtype=np.float32)))

    mean, deviation = _moments(read())
    width = len(mean)
    covariance = np.zeros((width, width))
    for _, block in read():
        standardised = (block - mean) / deviation
        covariance += standardised.T @ standardised
    covariance /= len(features)
    most = min(COMPONENTS, width)
    variances, directions = eigh(covariance, subset_by_index=[width - most, width - 1], overwrite_a=True)
    directions = (directions / np.sqrt(max(variances.sum(), np.finfo(float).tiny))).astype(np.float32)[:, ::-1]
    prepared = np.empty((len(features), most), dtype=np.float32)
    for rows, block in read():
        np.matmul((block - mean) / deviation, directions, out=prepared[rows])
    return prepared


def _projection(width: int, seed: int) -> Transform:
    if width <= WIDEST:
        return lambda features: features
    from sklearn.random_projection import SparseRandomProjection

    projection = SparseRandomProjection(PROJECTED, dense_output=True, random_state=seed)
    projection.fit(np.zeros((1, width), dtype=np.float32))
    return lambda features: np.asarray(projection.transform(features), dtype=np.float32)


def _moments(blocks_of_features: Iterator[tuple[slice, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each feature, float32; the deviation of a constant one is infinite."""
    count, mean, squares = 0, np.zeros(1), np.zeros(1)  # Chan et al. 1983: moments of blocks are joined
    for _, block in blocks_of_features:
        size, of_block = len(block), block.mean(0, dtype=np.float64)
        between = of_block - mean
        squares = squares + ((block - of_block) ** 2).sum(0) + between**2 * count * size / (count + size)
        mean = mean + between * size / (count + size)
        count += size
    deviation = np.sqrt(squares / count)
    deviation[deviation <= 1e-6 * np.maximum(1e-6, np.abs(mean))] = np.inf
    return mean.astype(np.float32), deviation.astype(np.float32)

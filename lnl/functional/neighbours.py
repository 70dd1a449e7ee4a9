"""The nearest neighbours of very many features: exact up to a size, beyond it by faiss, and with what recall."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from lnl.functional import graph

EXACT_UP_TO = 200_000  # images: beyond, exact search on a few processors takes hours
SAMPLE = 1000  # images whose exact neighbours the approximate ones are compared with
LISTS_LOOKED_AT = 32  # of the √N lists into which an image's neighbours may fall
CANDIDATES = 3  # for each neighbour, by compressed features; their cosines are then exact
ROWS = 4096  # features that are in memory at a time


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Each image's k nearest others, the nearest first."""

    cosines: Tensor  # (N, k) float32
    index: Tensor  # (N, k) int64
    recall: float | None = None  # share of the nearest that was found, of a sample; None: all, by exact search


def find(
    features: np.ndarray, k: int, seed: int = 0, tell: graph.Tell | None = None, exact_up_to: int = EXACT_UP_TO
) -> Neighbours:
    """Features (N, D) float32, perhaps memory-mapped -> the k nearest others of each by cosine, or all there are.

    Beyond `exact_up_to` images they come from an index of faiss (IVF with 8-bit features: D bytes an image in memory)
    and are ranked by their exact cosines.  `tell` hears how many images are done.  Raises ValueError for fewer than
    two images, for values that are not finite, and where faiss is needed and is not installed.
    """
    if len(features) < 2:
        raise ValueError(f"Neighbours need at least 2 images, and there are {len(features)}: give more.")
    k, bank = min(k, len(features) - 1), shared(features)
    for start in range(0, len(bank), ROWS):
        wrong = ~bank[start : start + ROWS].isfinite().all(-1)
        if wrong.any():
            image = start + int(wrong.nonzero()[0])
            raise ValueError(f"The features of image {image} are not finite: leave it out, or embed it anew.")
    if len(features) <= exact_up_to:
        return Neighbours(*graph.nearest(bank, k, tell=tell))
    cosines, index = _approximate(bank, k, seed, tell)
    sample = torch.from_numpy(np.sort(np.random.default_rng(seed).choice(len(bank), min(SAMPLE, len(bank)), False)))
    exact = _exact(bank, sample, k)[1]
    found = (exact[:, :, None] == index[sample][:, None]).any(-1).float().mean()
    return Neighbours(cosines, index, float(found))


def _approximate(bank: Tensor, k: int, seed: int, tell: graph.Tell | None) -> tuple[Tensor, Tensor]:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            f"The neighbours of {len(bank):,} images need faiss: pip install 'lnl[label]', or take fewer images."
        ) from error
    lists = math.isqrt(len(bank))
    quantizer, width = faiss.IndexFlatIP(bank.shape[1]), bank.shape[1]
    index = faiss.IndexIVFScalarQuantizer(
        quantizer, width, lists, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT
    )
    index.nprobe, index.cp.seed = min(LISTS_LOOKED_AT, lists), seed + 1
    some = np.sort(np.random.default_rng(seed).choice(len(bank), min(64 * lists, len(bank)), False))
    index.train(_unit(bank[torch.from_numpy(some)]).numpy())
    for start in range(0, len(bank), ROWS):
        index.add(_unit(bank[start : start + ROWS]).numpy())
    cosines, neighbours = [], []
    for start in range(0, len(bank), ROWS):
        queries = _unit(bank[start : start + ROWS])
        rows = torch.arange(start, start + len(queries))
        candidates = torch.from_numpy(index.search(queries.numpy(), min(CANDIDATES * k + 1, len(bank)))[1])
        absent = (candidates < 0) | (candidates == rows[:, None])  # itself, and places that faiss could not fill
        values = torch.stack(
            [torch.einsum("qd,qd->q", queries, _unit(bank[column.clamp(min=0)])) for column in candidates.unbind(1)],
            1,
        ).masked_fill(absent, -torch.inf)
        best, place = values.topk(k)
        found = candidates.gather(1, place)
        few = best.isinf().any(1).nonzero().squeeze(1)
        if len(few):
            best[few], found[few] = _exact(bank, rows[few], k)
        cosines.append(best)
        neighbours.append(found)
        if tell is not None:
            tell(start + len(queries), len(bank))
    return torch.cat(cosines), torch.cat(neighbours)


def _exact(bank: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Exact neighbours of some rows (n,) of the bank, themselves not among them: cosines and indices (n, k)."""
    return graph.nearest_to(bank, bank[rows], k, own=rows)


def _unit(features: Tensor) -> Tensor:
    return normalize(features.float(), dim=-1)


def shared(features: np.ndarray) -> Tensor:
    """The same memory as a tensor; torch warns of what is read-only, and nothing here writes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(np.asarray(features))

"""Neighbours in feature space: votes, and labels that spread over the graph of nearest neighbours.

Bai et al. 2021, "Self-supervised semi-supervised learning for data labeling and quality evaluation"
(arXiv:2111.10932), eq. 2 and 3, with two corrections.  Its eq. 2 weighs by exp(l / T) where l is the *negative* cosine
of eq. 1, so that the least similar neighbour would count most; here the weight is exp((cosine - 1) / T).  No image is
a neighbour of itself: at a small T it would outvote all others, and nothing would be corrected.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CHUNK = 512  # queries at a time: with a bank of 100,000 their similarities take 200 MB

Symmetrise = Literal["none", "mean", "max", "mutual"]
Normalisation = Literal["symmetric", "random_walk"]


def neighbour_votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Class probabilities by a vote of the k nearest, each weighing exp((cosine - 1) / T) (Wu et al. 2018, sec. 3.4).

    Bank (N, D), its labels (N,) or soft labels (N, K), queries (Q, D) -> (Q, K).  Features are normalised here.
    A query that is itself in the bank votes for itself.  Raises ValueError for k > N.
    """
    if k > len(bank):
        raise ValueError(f"k = {k} neighbours are more than the {len(bank)} features in the bank: choose a smaller k.")
    targets = labels.float() if labels.ndim == 2 else one_hot(labels, classes).float()
    with torch.autocast(bank.device.type, enabled=False):  # autocast would multiply in half precision
        bank, queries = normalize(bank.float(), dim=-1), normalize(queries.float(), dim=-1)
        votes = []
        for chunk in queries.split(CHUNK):
            cosines, neighbours = (chunk @ bank.T).topk(k)
            weights = torch.softmax(cosines / temperature, -1)  # the same weights, without underflow at a small T
            votes.append(torch.einsum("qk,qkc->qc", weights, targets[neighbours]))
    return torch.cat(votes)


def nearest(features: Tensor, k: int, self_loops: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and indices of each row's k nearest others (with `self_loops` itself among them), the nearest first.

    (N, D) -> (N, k), (N, k).  Raises ValueError where there are fewer than k.
    """
    most = len(features) - (not self_loops)
    if k > most:
        raise ValueError(f"k = {k} neighbours are more than the {most} that each image has: choose a smaller k.")
    cosines, neighbours = [], []
    with torch.autocast(features.device.type, enabled=False):
        bank = normalize(features.float(), dim=-1)
        for rows in torch.arange(len(bank), device=bank.device).split(CHUNK):
            similarity = bank[rows] @ bank.T
            if not self_loops:  # by index: among duplicates an image need not be its own first neighbour
                similarity.scatter_(1, rows[:, None], -torch.inf)
            values, index = similarity.topk(k)
            cosines.append(values)
            neighbours.append(index)
    return torch.cat(cosines), torch.cat(neighbours)


def adjacency(features: Tensor, k: int, temperature: float, self_loops: bool = False) -> Tensor:
    """W_ij = exp((cosine_ij - 1) / T) where j is among the k nearest of i, else 0 (eq. 2).

    (N, D) -> (N, N), sparse and float64: in float32 the weights would vanish at T = 0.01 from a cosine of 0.12 down.
    """
    cosines, neighbours = nearest(features, k, self_loops)
    rows = torch.arange(len(features), device=features.device).repeat_interleave(k)
    weights = ((cosines.double() - 1) / temperature).exp().flatten()
    return _sparse(torch.stack([rows, neighbours.flatten()]), weights, len(features))


def symmetrised(adjacency: Tensor, how: Symmetrise) -> Tensor:
    """Two directed edges become one: their mean or maximum (an absent one weighs 0), or only mutual ones stay.

    (N, N) sparse -> (N, N) sparse.
    """
    if how == "none":
        return adjacency
    nodes = len(adjacency)
    rows, columns = adjacency.indices()
    both = torch.cat([rows * nodes + columns, columns * nodes + rows])
    edges, edge_of, count = both.unique(return_inverse=True, return_counts=True)
    weights = adjacency.values().repeat(2)
    reduce = {"mean": "sum", "max": "amax", "mutual": "amin"}[how]
    joined = torch.zeros_like(edges, dtype=weights.dtype).scatter_reduce(
        0, edge_of, weights, reduce, include_self=False
    )
    if how == "mean":
        joined = joined / 2
    if how == "mutual":
        edges, joined = edges[count == 2], joined[count == 2]
    return _sparse(torch.stack([edges // nodes, edges % nodes]), joined, nodes)


def normalised(adjacency: Tensor, how: Normalisation) -> Tensor:
    """D^-1/2 W D^-1/2 (`symmetric`, the paper's) or D^-1 W (`random_walk`), where D = diag(W 1).

    (N, N) sparse -> (N, N) sparse.  Both have the largest eigenvalue 1, though W is directed.
    """
    rows, columns = adjacency.indices()
    degree = torch.sparse.mm(adjacency, adjacency.values().new_ones(len(adjacency), 1)).squeeze(1)
    degree = degree.clamp(min=torch.finfo(degree.dtype).tiny)  # a row whose weights all vanish stays 0
    if how == "random_walk":
        weights = adjacency.values() / degree[rows]
    else:
        weights = adjacency.values() * degree[rows].rsqrt() * degree[columns].rsqrt()
    return _sparse(adjacency.indices(), weights, len(adjacency))


def propagate(matrix: Tensor, scores: Tensor, start: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration: what each row's neighbours say, S Y, and of it and `start` the new scores (eq. 3).

    Matrix S (N, N) sparse, scores Y and start (N, K), kept (N, 1): the share of `start` in the new scores -> both
    (N, K).  Kept is 1 where labels are trusted (a hard clamp), 1 - alpha everywhere (Zhou et al. 2003), or 0.
    """
    spread = torch.sparse.mm(matrix, scores)
    return spread, torch.lerp(spread, start, kept)


def soft_labels(scores: Tensor) -> Tensor:
    """Scores divided by their sum, which is not 1 in general; NaN where no label has arrived: that is not class 0.

    (..., K) -> (..., K)
    """
    return scores / scores.sum(-1, keepdim=True)


def _sparse(indices: Tensor, values: Tensor, nodes: int) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, (nodes, nodes), check_invariants=False).coalesce()

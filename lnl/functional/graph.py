"""Neighbours in feature space: votes, and labels that spread over the graph of nearest neighbours.

Bai et al. 2021, "Self-supervised semi-supervised learning for data labeling and quality evaluation"
(arXiv:2111.10932), eq. 2 and 3, with two corrections.  Its eq. 2 weighs by exp(l / T) where l is the *negative* cosine
of eq. 1, so that the least similar neighbour would count most; here the weight is exp((cosine - 1) / T).  No image is
a neighbour of itself: at a small T it would outvote all others, and nothing would be corrected.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

QUERIES = 512  # rows of similarities at a time
BLOCK_BYTES = 128 * 2**20  # of the similarities that are there at a time
COPY_BYTES = 2**30  # features up to this size are normalised at once, in a copy; larger ones block by block
GROUP = 64  # similarities of which at first only the largest is looked at
COLUMNS = {"cpu": 16, "cuda": 512}  # labels that `returns` follows at a time: on a CPU their scores stay in its cache
ROUNDING = 1e-5  # a difference below this share of what it is taken from is none

Symmetrise = Literal["none", "mean", "max", "mutual"]
Normalisation = Literal["symmetric", "random_walk"]
Tell = Callable[[int, int], None]  # called with the steps that are done, and with all of them


def neighbour_votes(bank: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    """Class probabilities by a vote of the k nearest, each weighing exp((cosine - 1) / T) (Wu et al. 2018, sec. 3.4).

    Bank (N, D), its labels (N,) or soft labels (N, K), queries (Q, D) -> (Q, K).  Features are normalised here.
    A query that is itself in the bank votes for itself.  Raises ValueError for k > N.
    """
    if k > len(bank):
        raise ValueError(f"k = {k} neighbours are more than the {len(bank)} features in the bank: choose a smaller k.")
    targets = labels.float() if labels.ndim == 2 else one_hot(labels, classes).float()
    votes = []
    with torch.autocast(bank.device.type, enabled=False):  # autocast would multiply in half precision
        for cosines, neighbours in _searched(bank, queries, k):
            weights = torch.softmax(cosines / temperature, -1)  # the same weights, without underflow at a small T
            votes.append(torch.einsum("qk,qkc->qc", weights, targets[neighbours]))
    return torch.cat(votes) if votes else targets.new_zeros(0, targets.shape[1])


def nearest(features: Tensor, k: int, self_loops: bool = False, tell: Tell | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and indices of each row's k nearest others (with `self_loops` itself among them), the nearest first.

    (N, D) -> (N, k), (N, k).  Exact.  Beside the features there are a block of similarities of `BLOCK_BYTES` and, where
    the features have at most `COPY_BYTES`, a copy of them: larger ones may be memory-mapped.  `tell` hears how many
    rows are done.  Raises ValueError where there are fewer than k.
    """
    most = len(features) - (not self_loops)
    if k > most:
        raise ValueError(f"k = {k} neighbours are more than the {most} that each image has: choose a smaller k.")
    own = None if self_loops else torch.arange(len(features), device=features.device)
    cosines, neighbours, done = [], [], 0
    with torch.autocast(features.device.type, enabled=False):
        for values, index in _searched(features, features, k, own):
            cosines.append(values)
            neighbours.append(index)
            done += len(values)
            if tell is not None:
                tell(done, len(features))
    return torch.cat(cosines), torch.cat(neighbours)


def nearest_to(bank: Tensor, queries: Tensor, k: int, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines and indices of each query's k nearest in the bank: (N, D), (Q, D) -> (Q, k), (Q, k).

    `own` (Q,): where each query stands in the bank itself, as which it is not its own neighbour; -1: nowhere.
    """
    with torch.autocast(bank.device.type, enabled=False):
        found = list(_searched(bank, queries, k, own))
    return torch.cat([cosines for cosines, _ in found]), torch.cat([index for _, index in found])


def _searched(bank: Tensor, queries: Tensor, k: int, own: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Cosines and indices of the k nearest in the bank (N, D), some of the queries (Q, D) at a time: (q, k), (q, k).

    `own`: see `nearest_to`.  By index: among duplicates an image need not be its own first neighbour.
    """
    copied = 4 * bank.numel() <= COPY_BYTES
    rows = QUERIES if copied else 4 * QUERIES  # what is not copied is normalised anew for each of these
    if copied:
        bank = normalize(bank.float(), dim=-1)
    width = min(len(bank), BLOCK_BYTES // (4 * rows))
    # used again and again: fresh memory costs as much as the product
    space = bank.new_empty(min(rows, len(queries)) * width, dtype=torch.float32)
    for first in range(0, len(queries), rows):
        part = normalize(queries[first : first + rows].float(), dim=-1)
        cosines = part.new_empty(len(part), 0)
        neighbours = torch.empty(len(part), 0, dtype=torch.int64, device=bank.device)
        for start in range(0, len(bank), width):
            block = bank[start : start + width]
            if not copied:
                block = normalize(block.float(), dim=-1)
            similarity = space[: len(part) * len(block)].view(len(part), len(block))
            torch.mm(part, block.T, out=similarity)
            if own is not None:
                column = own[first : first + rows] - start
                row = ((column >= 0) & (column < len(block))).nonzero().squeeze(1)
                similarity[row, column[row]] = -torch.inf
            values, index = _largest(similarity, min(k, len(block)))
            cosines, neighbours = torch.cat([cosines, values], 1), torch.cat([neighbours, index + start], 1)
            cosines, order = cosines.topk(min(k, cosines.shape[1]))
            neighbours = neighbours.gather(1, order)
        yield cosines, neighbours


def _largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`values.topk(k)` of rows (Q, N), faster: the k largest lie in the k groups whose largest values are largest."""
    rows, columns = values.shape
    groups = columns // GROUP
    if groups <= 2 * k:
        return values.topk(k)
    best = values[:, : groups * GROUP].view(rows, groups, GROUP).amax(-1).topk(k).indices
    member = torch.arange(GROUP, device=values.device)
    ungrouped = torch.arange(groups * GROUP, columns, device=values.device).expand(rows, -1)
    candidates = torch.cat([(best[..., None] * GROUP + member).flatten(1), ungrouped], 1)
    largest, position = values.gather(1, candidates).topk(k)
    return largest, candidates.gather(1, position)


def adjacency(features: Tensor, k: int, temperature: float, self_loops: bool = False) -> Tensor:
    """W_ij = exp((cosine_ij - 1) / T) where j is among the k nearest of i, else 0 (eq. 2).

    (N, D) -> (N, N), sparse and float64: in float32 the weights would vanish at T = 0.01 from a cosine of 0.12 down.
    """
    return joined(*nearest(features, k, self_loops), temperature)


def joined(cosines: Tensor, neighbours: Tensor, temperature: float) -> Tensor:
    """The same of neighbours that are known: cosines and indices (N, k) -> (N, N) sparse and float64."""
    nodes, k = neighbours.shape
    rows = torch.arange(nodes, device=neighbours.device).repeat_interleave(k)
    weights = ((cosines.double() - 1) / temperature).exp().flatten()
    return _sparse(torch.stack([rows, neighbours.flatten()]), weights, nodes)


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
    one = torch.zeros_like(edges, dtype=weights.dtype).scatter_reduce(0, edge_of, weights, reduce, include_self=False)
    if how == "mean":
        one = one / 2
    if how == "mutual":
        edges, one = edges[count == 2], one[count == 2]
    return _sparse(torch.stack([edges // nodes, edges % nodes]), one, nodes)


def normalised(adjacency: Tensor, how: Normalisation) -> Tensor:
    """D^-1/2 W D^-1/2 (`symmetric`, the paper's) or D^-1 W (`random_walk`), where D = diag(W 1).

    (N, N) sparse -> (N, N) sparse, in compressed rows (CSR), in which products are several times as fast.  Both have
    the largest eigenvalue 1, though W is directed.
    """
    rows, columns = adjacency.indices()
    weights = adjacency.values()
    degree = weights.new_zeros(len(adjacency)).index_add_(0, rows, weights)
    degree = degree.clamp(min=torch.finfo(degree.dtype).tiny)  # a row whose weights all vanish stays 0
    if how == "random_walk":
        weights = weights / degree[rows]
    else:
        weights = weights * degree[rows].rsqrt() * degree[columns].rsqrt()
    starts = torch.searchsorted(rows.contiguous(), torch.arange(len(adjacency) + 1, device=rows.device))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
        return torch.sparse_csr_tensor(starts, columns, weights, tuple(adjacency.shape), check_invariants=False)


def propagate(matrix: Tensor, scores: Tensor, start: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """One iteration: what each row's neighbours say, S Y, and of it and `start` the new scores (eq. 3).

    Matrix S (N, N) sparse, scores Y and start (N, K), kept (N, 1): the share of `start` in the new scores -> both
    (N, K).  Kept is 1 where labels are trusted (a hard clamp), 1 - alpha everywhere (Zhou et al. 2003), or 0.
    """
    spread = torch.sparse.mm(matrix, scores)
    return spread, torch.lerp(spread, start, kept)


def returns(matrix: Tensor, kept: Tensor, nodes: Tensor, iterations: int) -> Tensor:
    """How much of a node's own start comes back to it: what of its S Y after t = 1 … `iterations` is its own label's.

    Matrix S (N, N) in compressed rows, kept (N, 1) as for `propagate`, nodes (n,) -> (iterations, n).  The first row
    is the diagonal of S, which is 0 without self-loops; without a clamp row t is the diagonal of S^t, the probability
    that a random walk of t steps over the graph ends where it began.  Scores are linear in the start, so that S Y less
    this share of the start is exactly what S Y were without the node's own label: see `without_own`.

    Two iterations take a pass over the edges.  For more, each label is followed by itself: n · edges · iterations
    products, for all labels of 50,000 images and 20 iterations about what their exact neighbours take.
    """
    starts, columns, weights = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    rows = torch.arange(len(matrix), device=columns.device).repeat_interleave(starts.diff())
    found = weights.new_zeros(iterations, len(nodes))
    edges, reverse = rows * len(matrix) + columns, columns * len(matrix) + rows
    place = torch.searchsorted(edges, reverse).clamp(max=len(edges) - 1)
    back = torch.where(edges[place] == reverse, weights[place], 0) * (1 - kept[columns, 0])
    own = weights.new_zeros(len(matrix)).index_add_(0, rows, weights * (rows == columns))
    twice = weights.new_zeros(len(matrix)).index_add_(0, rows, weights * back) + own * kept[:, 0]
    found[:1], found[1:2] = own[nodes], twice[nodes]
    if iterations <= 2:
        return found
    width = COLUMNS.get(matrix.device.type, COLUMNS["cpu"])
    for first in range(0, len(nodes), width):
        part = nodes[first : first + width]
        column = torch.arange(len(part), device=part.device)
        start = weights.new_zeros(len(matrix), len(part))
        start[part, column] = 1
        scores = start
        for iteration in range(iterations):
            spread, scores = propagate(matrix, scores, start, kept)
            found[iteration, first : first + len(part)] = spread[part, column]
    return found


def without_own(spread: Tensor, start: Tensor, returned: Tensor) -> Tensor:
    """What the neighbours say, less what of it is the node's own label come back: S Y (n, K), its start (n, K) and the
    share of it that has returned (n,), see `returns` -> (n, K).

    A difference that rounding could have made is 0: only the own label has reached the node, and nobody else's.
    """
    others = spread - returned[:, None] * start
    return torch.where(others > ROUNDING * spread, others, 0)


def soft_labels(scores: Tensor) -> Tensor:
    """Scores divided by their sum, which is not 1 in general; NaN where no label has arrived: that is not class 0.

    (..., K) -> (..., K)
    """
    return scores / scores.sum(-1, keepdim=True)


def _sparse(indices: Tensor, values: Tensor, nodes: int) -> Tensor:
    return torch.sparse_coo_tensor(indices, values, (nodes, nodes), check_invariants=False).coalesce()

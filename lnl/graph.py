"""Neighbours in feature space."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

CHUNK = 512  # queries at a time: with a bank of 100,000 their similarities take 200 MB


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

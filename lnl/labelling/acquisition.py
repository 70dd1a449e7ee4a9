"""Which images to label next, what that would have brought where all labels are known, and when to stop.

Each sampler takes images that have no label yet, and says which by the labels that have spread so far
(`lnl.labelling.propagation`).  With few labels random images are hard to beat (Bengar et al. 2021, and the document of
Bai et al. 2021 takes them); typical ones are what Hacohen et al. (2022, "Active learning on a budget") take there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from sklearn.cluster import MiniBatchKMeans

from lnl.data.dataset import DataError
from lnl.labelling.problem import Tell
from lnl.labelling.propagation import Graph, Proposal, checked, propagated

MOST_CLUSTERS, SAMPLE = 500, 20_000  # of `typical`: clusters (Hacohen et al.), and images that they are found with
AGREEMENT, ROUNDS = 0.99, 3  # of `enough`


@dataclass(frozen=True, eq=False)
class Situation:
    """What is known when images are chosen."""

    features: np.ndarray  # (N, D) float32, perhaps memory-mapped
    given: np.ndarray  # (N,) int64, -1: no label yet
    pool: np.ndarray  # (n,) the images that may be chosen
    probabilities: np.ndarray  # (N, classes), NaN where no label has arrived
    typicality: np.ndarray  # (N,), see `typicality`


Sampler = Callable[[Situation, int, np.random.Generator], np.ndarray]  # so many of the pool, or all of it -> (n,)


def next_to_label(
    sampler: str, features: np.ndarray, joined: Graph, given: np.ndarray, classes: int, count: int, seed: int
) -> np.ndarray:
    """The images (n,) to label next by the sampler's name, the first ones first; fewer where fewer are left.

    Without any label yet, those that need one choose at random.  Raises `DataError` for a sampler that there is not, a
    count below 1, labels that do not fit, and where all images are labelled.
    """
    if sampler not in SAMPLERS:
        raise DataError(f"There is no sampler '{sampler}': choose one of {', '.join(SAMPLERS)}.")
    if count < 1:
        raise DataError(f"{count} images are asked for: ask for at least one.")
    labels = checked(given, len(features), classes, at_least=0)
    if (labels >= 0).all():
        raise DataError("All images have a label, so that there is none to label next.")
    situation = _situation(features, joined, labels, classes, np.flatnonzero(labels < 0))
    return SAMPLERS[sampler](situation, count, np.random.default_rng(seed))


def typicality(cosines: np.ndarray) -> np.ndarray:
    """One over the mean distance to the neighbours (Hacohen et al. 2022, eq. 1): cosines (N, k) -> (N,).

    The distance is that of normalised features, √(2 - 2 cosine).
    """
    distance = np.sqrt(np.clip(2 - 2 * cosines.astype(np.float64), 0, None)).mean(1)
    return 1 / np.maximum(distance, 1e-12)


def at_random(situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """Any: what every other sampler is to be compared with."""
    return generator.permutation(situation.pool)[:count]


def class_stratified(situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """One of each class in turn, at random within a class: that which is most probable so far, or none yet."""
    pool = generator.permutation(situation.pool)
    probabilities = situation.probabilities[pool]
    group = np.where(np.isnan(probabilities).any(1), -1, np.nan_to_num(probabilities).argmax(1))
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], group[order])
    turn = np.empty(len(pool), dtype=np.int64)
    turn[order] = np.arange(len(pool)) - starts
    return pool[np.lexsort((generator.random(len(pool)), turn))][:count]


def smallest_margin(situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """Those whose two most probable classes are the closest; what no label has reached comes first."""
    two = -np.partition(-_known(situation.probabilities), 1, axis=1)[:, :2]
    return _smallest(two[:, 0] - two[:, 1], situation, count, generator)


def largest_entropy(situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """Those whose classes are the least certain; what no label has reached comes first."""
    probabilities = _known(situation.probabilities)
    entropy = -(probabilities * np.log(np.maximum(probabilities, 1e-30))).sum(1)
    return _smallest(-entropy, situation, count, generator)


def typical(situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """The most typical image of each of the largest clusters without a label (TypiClust, Hacohen et al. 2022).

    There are as many clusters as labels will be, at most 500, by k-means on up to 20,000 images.  When all clusters
    have a label, those with the fewest for their size are next.
    """
    features, given, pool = situation.features, situation.given, situation.pool
    clusters = min(int((given >= 0).sum()) + count, MOST_CLUSTERS, len(given))
    cluster = _clustered(features, clusters, generator)
    size = np.bincount(cluster, minlength=clusters)
    labels = np.bincount(cluster[given >= 0], minlength=clusters)
    order = pool[np.lexsort((-situation.typicality[pool], cluster[pool]))]  # by cluster, the most typical first
    place = np.searchsorted(cluster[order], np.arange(clusters + 1))
    place, end = place[:-1].copy(), place[1:]
    chosen = np.empty(min(count, len(pool)), dtype=np.int64)
    for position in range(len(chosen)):
        share = np.where(place < end, labels / np.maximum(size, 1), np.inf)
        best = np.lexsort((-size, share))[0]
        chosen[position] = order[place[best]]
        place[best] += 1
        labels[best] += 1
    return chosen


SAMPLERS: Mapping[str, Sampler] = {
    "random": at_random,
    "class-stratified": class_stratified,
    "margin": smallest_margin,
    "entropy": largest_entropy,
    "typicality": typical,
}
"""By name; `random` is the default."""


def simulated(
    features: np.ndarray,
    joined: Graph,
    true: np.ndarray,
    classes: int,
    *,
    budgets: Sequence[int],
    repeats: int,
    seed: int,
    tell: Tell,
    samplers: Sequence[str] = tuple(SAMPLERS),
) -> pd.DataFrame:
    """What each sampler would have brought, where all labels are known: true labels (N,), -1: not known, never asked.

    Budgets are numbers of labels, rising; each sampler starts from none and is asked for those that are missing to the
    next.  A row for each sampler, repeat and budget: `sampler`, `repeat`, `labels`, `accuracy` (of the images that are
    not labelled yet; one that no label has reached is wrong), `coverage` (share that a label has reached), `classes`
    (with a label), `agreement` (with the round before, see `agreement`; NaN in the first).  Repeats differ in the
    random images only, and are the same for all samplers.  Raises `DataError` for budgets that do not rise, or leave
    no image to judge.
    """
    true = checked(true, len(features), classes)
    known = np.flatnonzero(true >= 0)
    if not len(budgets) or any(one >= other for one, other in pairwise((0, *budgets))):
        raise DataError(f"The numbers of labels {list(budgets)} do not rise from 1 or more: name them in rising order.")
    if budgets[-1] >= len(known):
        raise DataError(f"{budgets[-1]} of {len(known)} known labels leave none to judge: ask for fewer.")
    rows: list[dict[str, object]] = []
    for repeat in range(repeats):
        for name in samplers:
            given, before = np.full(len(true), -1), None
            generator = np.random.default_rng((seed, repeat))
            for budget in budgets:
                situation = _situation(features, joined, given, classes, known[given[known] < 0])
                asked = SAMPLERS[name](situation, budget - len(known) + len(situation.pool), generator)
                given[asked] = true[asked]
                now = propagated(joined, given, classes)
                rows.append({"sampler": name, "repeat": repeat, "labels": budget, **_judged(now, before, given, true)})
                before = now
            tell(repeat * len(samplers) + samplers.index(name) + 1, repeats * len(samplers))
    return pd.DataFrame(rows)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa of two sets of labels (N,), where -1 is a label as any: 1 where they are the same."""
    same = float(np.mean(one == other))
    classes = int(max(one.max(), other.max())) + 2
    counts = [np.bincount(labels + 1, minlength=classes) / len(labels) for labels in (one, other)]
    chance = float(counts[0] @ counts[1])
    return 1.0 if chance == 1 else (same - chance) / (1 - chance)


def enough(rounds: Sequence[np.ndarray]) -> bool:
    """Whether further labels change little, so that labelling may stop: the labels (N,) of all rounds so far, by which
    agreement over the last three steps from round to round is 0.99 on average.

    The rule of Bloodgood and Vijay-Shanker (2009, "A method for stopping active learning based on stabilizing
    predictions"), with their threshold and window; it says that labels have settled, not that they are right, and it
    counts rounds, so that rounds should not be smaller than some per cent of the labels.
    """
    if len(rounds) <= ROUNDS:
        return False
    last = rounds[-ROUNDS - 1 :]
    return float(np.mean([agreement(one, other) for one, other in pairwise(last)])) >= AGREEMENT


def _situation(features: np.ndarray, joined: Graph, given: np.ndarray, classes: int, pool: np.ndarray) -> Situation:
    if (given >= 0).any():
        probabilities = propagated(joined, given, classes).probabilities
    else:
        probabilities = np.full((len(given), classes), np.nan, dtype=np.float32)
    return Situation(features, given, pool, probabilities, typicality(joined.cosines))


def _judged(now: Proposal, before: Proposal | None, given: np.ndarray, true: np.ndarray) -> dict[str, float]:
    judged = (given < 0) & (true >= 0)
    return {
        "accuracy": float(np.mean(now.label[judged] == true[judged])),
        "coverage": now.coverage,
        "classes": len(np.unique(given[given >= 0])),
        "agreement": np.nan if before is None else agreement(before.label, now.label),
    }


def _known(probabilities: np.ndarray) -> np.ndarray:
    """All classes are equally probable where no label has arrived."""
    return np.where(np.isnan(probabilities), 1 / probabilities.shape[1], probabilities)


def _smallest(values: np.ndarray, situation: Situation, count: int, generator: np.random.Generator) -> np.ndarray:
    """The images without label of the smallest values (N,), equal ones at random."""
    pool = generator.permutation(situation.pool)
    return pool[np.argsort(values[pool], kind="stable")][:count]


def _clustered(features: np.ndarray, clusters: int, generator: np.random.Generator) -> np.ndarray:
    """The cluster of each image by its normalised features: (N, D) -> (N,)."""

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)

    some = np.sort(generator.permutation(len(features))[:SAMPLE])
    seed = int(generator.integers(2**31))
    model = MiniBatchKMeans(clusters, batch_size=2048, n_init=1, max_iter=20, random_state=seed)
    model.fit(unit(np.asarray(features[some], dtype=np.float32)))
    parts = range(0, len(features), SAMPLE)
    return np.concatenate([model.predict(unit(np.asarray(features[i : i + SAMPLE], np.float32))) for i in parts])

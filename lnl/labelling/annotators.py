"""Several annotators of the same images: how far they agree, one label made of theirs, and who confuses what.

Labels of A annotators are (N, A) int64, -1 where an annotator has not labelled an image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lnl.data.dataset import DataError

ROUNDS = 100  # of expectation maximisation, at most
CONVERGED = 1e-4  # the largest change of a probability at which it ends
LEAST = 1e-6  # no class is less probable for CROWDLAB, which takes logarithms
TRUST = 1.0  # labels, as if seen, of each annotator and class that are right: of few labels nothing is concluded


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree where an image has two labels or more."""

    images: int  # that have
    share: float  # of pairs of labels of one image that are equal
    alpha: float  # Krippendorff's, of nominal data: 1 perfect, 0 as by chance; NaN where all labels are one class


@dataclass(frozen=True, eq=False)
class Consensus:
    """One label for each image, and what each annotator makes of each class."""

    labels: np.ndarray  # (N,) int64, -1 where an image has no label
    probabilities: np.ndarray  # (N, K) of the classes; NaN where an image has no label
    confusion: np.ndarray  # (A, K, K): of images of a class (row), the share that an annotator calls each (column)


def agreement(votes: np.ndarray) -> Agreement:
    """Agreement of annotators: votes (N, A).

    Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": labels may be missing, and chance is what the same
    labels would give in random pairs.
    """
    counts = _counts(votes)  # (N, K)
    counts = counts[counts.sum(1) >= 2]
    if not len(counts):
        return Agreement(0, np.nan, np.nan)
    labels = counts.sum(1, keepdims=True)
    pairs = counts * (counts - 1)
    observed = (pairs / (labels - 1)).sum() / counts.sum()
    of_class, total = counts.sum(0), counts.sum()
    by_chance = (of_class * (of_class - 1)).sum() / (total * (total - 1))
    alpha = 1 - (1 - observed) / (1 - by_chance) if by_chance < 1 else np.nan
    return Agreement(len(counts), float(pairs.sum() / (labels * (labels - 1)).sum()), float(alpha))


def _counts(votes: np.ndarray) -> np.ndarray:
    """How many annotators give each image each class: (N, A) -> (N, K) float64."""
    counts = np.zeros((len(votes), int(votes.max(initial=0)) + 1))
    for column in votes.T:
        rows = np.flatnonzero(column >= 0)
        counts[rows, column[rows]] += 1
    return counts


def dawid_skene(votes: np.ndarray, classes: int) -> Consensus:
    """The classes of images and the errors of annotators that together explain the labels best: votes (N, A).

    Expectation maximisation from the shares of votes (Dawid and Skene 1979, "Maximum likelihood estimation of observer
    error-rates using the EM algorithm").  Each annotator is taken to be right `TRUST` times in each class beforehand,
    so that one with few labels neither counts for nothing nor for everything.
    """
    seen = (votes >= 0).any(1)
    labels = votes[seen]
    given = [np.flatnonzero(column >= 0) for column in labels.T]
    counts = np.zeros((len(labels), classes))
    for column, rows in zip(labels.T, given, strict=True):
        counts[rows, column[rows]] += 1
    beliefs = counts / counts.sum(1, keepdims=True)
    confusion = np.empty((votes.shape[1], classes, classes))
    for _ in range(ROUNDS):
        before = beliefs
        for annotator, (column, rows) in enumerate(zip(labels.T, given, strict=True)):
            by_label = np.zeros((classes, classes))
            np.add.at(by_label, column[rows], beliefs[rows])
            confusion[annotator] = by_label.T + TRUST * np.eye(classes) + TRUST / classes
        confusion /= confusion.sum(-1, keepdims=True)
        logs = np.broadcast_to(np.log(beliefs.mean(0) + 1e-12), counts.shape).copy()
        for annotator, (column, rows) in enumerate(zip(labels.T, given, strict=True)):
            logs[rows] += np.log(confusion[annotator])[:, column[rows]].T
        beliefs = np.exp(logs - logs.max(1, keepdims=True))
        beliefs /= beliefs.sum(1, keepdims=True)
        if np.abs(beliefs - before).max(initial=0) < CONVERGED:
            break
    consensus = np.full(len(votes), -1)
    consensus[seen] = beliefs.argmax(1)
    probabilities = np.full((len(votes), classes), np.nan)
    probabilities[seen] = beliefs
    return Consensus(consensus, probabilities, confusion)


def crowdlab(votes: np.ndarray, class_probabilities: np.ndarray) -> np.ndarray:
    """One label for each image from those of its annotators and from a classifier: (N, A), (N, K) -> (N,) int64.

    CROWDLAB (Goh, Tkachenko and Mueller 2022, arXiv:2210.06812) weighs annotators by how often they agree with each
    other, and the classifier by how often it agrees with the majority.  Its probabilities must be out of sample.  -1
    where an image has no label; where no image has two labels, each has its own.  Raises `DataError` where cleanlab is
    not installed, whose implementation this is.
    """
    try:
        from cleanlab.multiannotator import get_label_quality_multiannotator
    except ImportError as error:
        raise DataError("The consensus crowdlab needs its library: pip install 'lnl[label]'.") from error

    labelled = votes >= 0
    seen, working = labelled.any(1), labelled.any(0)
    if labelled.sum(1).max(initial=0) < 2:
        return votes.max(1, initial=-1)
    of_seen = np.where(labelled, votes, np.nan)[np.ix_(seen, working)]
    p = np.clip(class_probabilities[seen].astype(np.float64), LEAST, None)
    found = get_label_quality_multiannotator(
        of_seen,
        p / p.sum(1, keepdims=True),
        return_detailed_quality=False,
        return_annotator_stats=False,
        verbose=False,
    )
    consensus = np.full(len(votes), -1)
    consensus[seen] = found["label_quality"]["consensus_label"]
    return consensus


def confusions(votes: np.ndarray, consensus: np.ndarray, classes: int) -> np.ndarray:
    """How often each annotator calls images of each class what: (N, A), (N,) -> (A, K, K) int64, rows by consensus."""
    counts = np.zeros((votes.shape[1], classes, classes), np.int64)
    for annotator, column in enumerate(votes.T):
        rows = np.flatnonzero((column >= 0) & (consensus >= 0))
        np.add.at(counts[annotator], (consensus[rows], column[rows]), 1)
    return counts

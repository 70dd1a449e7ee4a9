"""The detectors of wrong labels by name: the probe, and what others use, to compare it with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from lnl.data.dataset import DataError
from lnl.functional import graph
from lnl.labelling import logistic, soft_targets, transition
from lnl.labelling.folds import FOLDS, stratified
from lnl.labelling.preparation import TRANSFORMS, principal_components
from lnl.labelling.probe import probe
from lnl.labelling.problem import Detector, Labels, Share, Suspicion, Tell, check, judged

GRAPH_NEIGHBOURS, TEMPERATURE, ITERATIONS = 10, 0.01, 20  # of label propagation, the paper's for CIFAR-10
MOST_REFERENCES = 50_000  # images among which `neighbours` are sought


@dataclass(frozen=True)
class Checked:
    """A detector with its input checked, and reduced to the classes and the given labels that can be judged.

    Raises `DataError` for labels that it cannot judge; see `judged` for the single label of a class.
    """

    detector: Detector

    def __call__(self, labels: Labels, seed: int, tell: Tell) -> Suspicion:
        check(labels, at_least=2 * FOLDS)
        usable = judged(labels)
        present, place = np.unique(labels.given[usable], return_inverse=True)
        given = np.full(len(labels.given), -1)
        given[usable] = place
        found = self.detector(Labels(labels.features, given, len(present)), seed, tell)
        class_probabilities = np.zeros((len(given), labels.classes), dtype=found.class_probabilities.dtype)
        class_probabilities[:, present] = found.class_probabilities
        return replace(found, proposed=present[found.proposed], class_probabilities=class_probabilities)


def neighbours(labels: Labels, seed: int, tell: Tell) -> Suspicion:
    """Votes of the 50 nearest labelled images by cosine, nearer ones weighing more.

    Flagged is a label that the vote does not have first; beyond 50,000 labelled images, so many random ones vote.
    """
    labelled = np.flatnonzero(labels.given >= 0)
    generator = np.random.default_rng(seed)
    references = np.sort(generator.permutation(labelled)[:MOST_REFERENCES])
    k = min(soft_targets.NEIGHBOURS, len(references) - 1)
    cosines, index = soft_targets.nearest_references(labels.features, references, k)
    targets = _one_hot(labels)
    log_p = soft_targets.neighbour_average(cosines, index, targets, targets[labelled].mean(0))
    tell(1, 1)
    return by_probabilities(log_p, labels, log_p[labelled].argmax(1) != labels.given[labelled])


def propagation(labels: Labels, seed: int, tell: Tell) -> Suspicion:
    """Label propagation as Bai et al. 2021 (arXiv:2111.10932) define it, but for the image's own label (see `graph`).

    20 iterations of eq. 3 over the graph of eq. 2 with k = 10 and T = 0.01, no label held fixed.  What comes back of an
    image's own label does not count: with it, the more iterations the more each label would confirm itself.  Flagged
    is a label that the others' do not have first.
    """
    features = torch.from_numpy(np.array(labels.features, dtype=np.float32))
    k = min(GRAPH_NEIGHBOURS, len(features) - 1)
    matrix = graph.normalised(graph.adjacency(features, k, TEMPERATURE), "symmetric")
    tell(1, 3)
    start = torch.from_numpy(_one_hot(labels)).to(matrix.dtype)
    scores, kept = start, start.new_zeros(len(start), 1)
    for _ in range(ITERATIONS):
        spread, scores = graph.propagate(matrix, scores, start, kept)
    tell(2, 3)
    labelled = np.flatnonzero(labels.given >= 0)
    nodes = torch.from_numpy(labelled)
    spread[nodes] = graph.without_own(spread[nodes], start[nodes], graph.returns(matrix, kept, nodes, ITERATIONS)[-1])
    p = graph.soft_labels(spread).nan_to_num(1 / labels.classes).clamp(min=transition.RARE)
    log_p = p.log().numpy()
    tell(3, 3)
    return by_probabilities(log_p, labels, log_p[labelled].argmax(1) != labels.given[labelled])


def cleanlab(labels: Labels, seed: int, tell: Tell) -> Suspicion:
    """cleanlab's self-confidence, label issues and joint, on a logistic regression out of fold.

    The regression is that of `probe` on the given labels, so that only what follows differs.  Raises `DataError` where
    cleanlab is not installed.
    """
    try:
        from cleanlab.count import estimate_joint
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise DataError("The detector cleanlab needs its library: pip install 'lnl[label]'.") from error

    features = principal_components(labels.features, TRANSFORMS["as they are"], seed)
    tell(1, 3)
    fold_of = stratified(labels.given, np.random.default_rng(seed))
    log_p = logistic.walk(features, _one_hot(labels), fold_of)[2]
    tell(2, 3)
    labelled = np.flatnonzero(labels.given >= 0)
    given, p = labels.given[labelled], np.exp(log_p[labelled])
    issues = find_label_issues(given, p, n_jobs=1)
    found = by_probabilities(log_p, labels, issues, 1 - get_label_quality_scores(given, p))
    share = 1 - float(np.trace(estimate_joint(given, p)))
    tell(3, 3)
    return replace(found, wrong=Share(share, min(found.wrong.low, share), max(found.wrong.high, share)))


def by_probabilities(
    log_p: np.ndarray, labels: Labels, flagged: np.ndarray, score: np.ndarray | None = None
) -> Suspicion:
    """What class probabilities alone say: a label is suspect by what is missing of its probability to 1.

    log p (N, K) that do not use an image's own label; of the (L,) images with a label whether they are flagged, and
    their score, if it is another.  The share of wrong labels is that of the flagged.
    """
    labelled = np.flatnonzero(labels.given >= 0)
    given, p = labels.given[labelled], np.exp(log_p)
    missing = 1 - p[labelled, given].astype(np.float64)
    scores, probability = np.full(len(p), -np.inf), np.full(len(p), np.nan)
    scores[labelled] = missing if score is None else score
    probability[labelled] = missing
    others = p.copy()
    others[labelled, given] = -1
    flags = np.zeros(len(p), dtype=bool)
    flags[labelled] = flagged
    low = transition.Maximisation(log_p[labelled], given, np.random.default_rng(0)).fit()[1]
    high, value = transition.confident_share(log_p[labelled], given), float(np.mean(flagged))
    share = Share(value, min(value, low), max(value, high))
    return Suspicion(scores, probability, others.argmax(1), flags, p, share)


def _one_hot(labels: Labels) -> np.ndarray:
    """(N, K) float32, rows of zeros for images without a label."""
    labelled = np.flatnonzero(labels.given >= 0)
    targets = np.zeros((len(labels.given), labels.classes), dtype=np.float32)
    targets[labelled, labels.given[labelled]] = 1
    return targets


DETECTORS: Mapping[str, Detector] = {
    "probe": Checked(probe),
    "neighbours": Checked(neighbours),
    "propagation": Checked(propagation),
    "cleanlab": Checked(cleanlab),
}
"""By name; `probe` is the default."""

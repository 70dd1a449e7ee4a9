"""The default detector of wrong labels: a linear probe, out of fold, on targets that are cleaned in rounds.

1. Linear discriminant analysis and logistic regression on the given labels, out of fold.
2. Logistic regression without the labels that confident learning doubts (Northcutt et al. 2021, arXiv:1911.00068).
3. and 4. Logistic regression on soft targets, the posterior of the true class given image and label by an estimated
   transition matrix, mixed with the mean target of each image's neighbours.

The same folds serve all rounds.  A label's score is the posterior that it is wrong, by a transition matrix that
expectation maximisation finds on the last round's probabilities.  Its probability of an error is that of the confident
transition on the round's probabilities as they are, which holds for the most suspect labels; the share of wrong labels
is that of the probabilities sharpened until the given labels are likeliest, which holds for all labels together.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from lnl.labelling import discriminant, logistic, soft_targets, transition
from lnl.labelling.calibration import most_suspect
from lnl.labelling.folds import stratified
from lnl.labelling.preparation import TRANSFORMS, principal_components
from lnl.labelling.problem import Labels, Share, Suspicion, Tell

STEPS = 8  # that `tell` hears of
REGRESSION, NEIGHBOURS = 0.7, 0.3  # weights of both log p in the soft rounds


def probe(labels: Labels, seed: int, tell: Tell) -> Suspicion:
    """Judge the given labels by the four rounds of the module."""
    generator = np.random.default_rng(seed)
    fold_of = stratified(labels.given, generator)
    done = _Steps(tell)
    features, discriminated = _prepared(labels, fold_of, generator, seed, done)
    rounds = _rounds(features, discriminated, labels, fold_of, generator, done)
    suspicion = _judged(rounds, labels, generator)
    done.next()
    return suspicion


@dataclass
class _Steps:
    tell: Tell
    done: int = 0

    def next(self) -> None:
        self.done += 1
        self.tell(self.done, STEPS)


@dataclass(frozen=True, eq=False)
class _Rounds:
    first: np.ndarray  # log p (N, K) of round 1
    last: np.ndarray  # of round 4


def _prepared(
    labels: Labels, fold_of: np.ndarray, generator: np.random.Generator, seed: int, done: _Steps
) -> tuple[np.ndarray, np.ndarray]:
    """Components (N, d) of the features under that transform whose analysis makes the given labels likelier, and its
    log p (N, K)."""
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for transform in TRANSFORMS.values():
        features = principal_components(labels.features, transform, seed)
        logits = discriminant.out_of_fold(features, labels.given, fold_of, labels.classes)
        log_p, loss = discriminant.calibrated(logits, labels.given, generator)
        if best is None or loss < best[0]:
            best = loss, features, log_p
        done.next()
    assert best is not None
    return best[1:]


def _rounds(
    features: np.ndarray,
    discriminated: np.ndarray,
    labels: Labels,
    fold_of: np.ndarray,
    generator: np.random.Generator,
    done: _Steps,
) -> _Rounds:
    labelled = np.flatnonzero(labels.given >= 0)
    given = labels.given[labelled]
    targets = np.zeros((len(features), labels.classes), dtype=np.float32)
    targets[labelled, given] = 1

    place, weights, log_p = logistic.walk(features, targets, fold_of)
    first = log_softmax((log_p + discriminated) / 2, axis=1)
    done.next()

    confident = transition.confident_class(first[labelled], given)
    targets[labelled[(confident >= 0) & (confident != given)]] = 0
    weights = logistic.fit(features, targets, fold_of, logistic.PENALTIES[place], weights)
    log_p = logistic.out_of_fold(features, weights, fold_of)
    done.next()

    references = generator.permutation(labelled)[: soft_targets.REFERENCES]
    k = min(soft_targets.NEIGHBOURS, len(references) - 1)
    cosines, neighbours = soft_targets.nearest_references(features, np.sort(references), k)
    done.next()
    for soft_round in (3, 4):
        q = transition.posterior(log_p[labelled], given, transition.confident_transition(log_p[labelled], given))
        targets[labelled] = q
        if soft_round == 3:
            place, weights, log_p = logistic.walk(features, targets, fold_of, max(0, place - 1), weights)
        else:
            weights = logistic.fit(features, targets, fold_of, logistic.PENALTIES[place], weights)
            log_p = logistic.out_of_fold(features, weights, fold_of)
        around = soft_targets.neighbour_average(cosines, neighbours, targets, q.mean(0))
        log_p = log_softmax(REGRESSION * log_p + NEIGHBOURS * around, axis=1)
        done.next()
    return _Rounds(first, log_p)


def _judged(rounds: _Rounds, labels: Labels, generator: np.random.Generator) -> Suspicion:
    from sklearn.isotonic import IsotonicRegression

    labelled = np.flatnonzero(labels.given >= 0)
    given = labels.given[labelled]
    log_p = rounds.last[labelled]
    own = np.arange(len(labelled)), given

    matrix = transition.confident_transition(log_p, given)
    by_joint = transition.posterior(log_p, given, matrix)
    likeliest = transition.likeliest_sharpness(log_p, given, matrix)
    value = transition.wrong_share(transition.posterior(log_p, given, matrix, likeliest), given)
    maximisation = transition.Maximisation(log_p, given, generator)
    sharpness = maximisation.sharpness_for(transition.wrong_share(by_joint, given))
    q = transition.posterior(log_p, given, maximisation.fit(sharpness)[0], sharpness)
    low = transition.Maximisation(rounds.first[labelled], given, generator).fit()[1]
    high = transition.confident_share(log_p, given)

    suspect = 1 - q[own]
    isotonic = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
    score, probability = np.full(len(labels.given), -np.inf), np.full(len(labels.given), np.nan)
    score[labelled] = suspect
    probability[labelled] = isotonic.fit_transform(suspect, 1 - by_joint[own])
    proposed = rounds.last.argmax(1)
    q[own] = -1
    proposed[labelled] = q.argmax(1)
    # Where both bounds agree there is still the chance of which labels are wrong: 95 % of a binomial share.
    chance = 1.96 * float(np.sqrt(value * (1 - value) / len(given)))
    wrong = Share(value, max(0.0, min(value, low) - chance), min(1.0, max(value, high) + chance))
    return Suspicion(score, probability, proposed, most_suspect(score, value), np.exp(rounds.last), wrong)

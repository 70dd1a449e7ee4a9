"""Several annotators: agreement and consensus with known answers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from statsmodels.stats.inter_rater import fleiss_kappa

from lnl.labelling import annotators
from lnl.labelling.annotators import agreement, confusions, dawid_skene

Crowdlab = Callable[[np.ndarray, np.ndarray], np.ndarray]


def test_alpha_is_that_of_krippendorffs_own_example() -> None:
    """Krippendorff 2011, section C: four observers, twelve units, alpha = .743 for nominal data."""
    observers = ("123321412...", "123322412 5.3".replace(" ", ""), ".3332342251.", "12332441251.")
    votes = np.array([[-1 if label == "." else int(label) - 1 for label in row] for row in observers]).T
    measured = agreement(votes)
    assert measured.images == 11 and measured.alpha == pytest.approx(0.743, abs=5e-4)


def test_agreement_is_fleiss_where_all_label_all() -> None:
    """Without missing labels alpha is Fleiss' kappa but for its correction of chance: (1 - kappa)(1 - 1 / n)."""
    votes = np.random.default_rng(0).integers(0, 3, (50, 4))
    votes[:, 1] = votes[:, 0]
    counts = np.stack([(votes == label).sum(1) for label in range(3)], 1)
    expected = 1 - (1 - fleiss_kappa(counts)) * (1 - 1 / votes.size)
    measured = agreement(votes)
    assert measured.alpha == pytest.approx(expected)
    equal = np.mean([votes[:, a] == votes[:, b] for a in range(4) for b in range(4) if a != b])
    assert measured.share == pytest.approx(equal)


def test_agreement_without_pairs_or_without_choice() -> None:
    alone = agreement(np.array([[0, -1], [-1, 1]]))
    assert alone.images == 0 and np.isnan(alone.share) and np.isnan(alone.alpha)
    same = agreement(np.zeros((5, 3), np.int64))
    assert same.share == 1 and np.isnan(same.alpha)


@pytest.fixture
def crowdlab() -> Crowdlab:
    pytest.importorskip("cleanlab")
    return annotators.crowdlab


@pytest.fixture(scope="module")
def crowd() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True classes (N,), annotators' confusions (A, K, K), and their votes (N, A), of which a third is missing.

    Two annotators are good, one calls most dogs (1) cats (0), and two guess.
    """
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3, 3000)
    good, guess = 0.8 * np.eye(3) + 0.2 / 3, np.full((3, 3), 1 / 3)
    biased = np.array([[0.95, 0.03, 0.02], [0.7, 0.28, 0.02], [0.02, 0.03, 0.95]])
    confusion = np.stack([good, good, biased, guess, guess])
    draws = generator.random((len(truth), 5, 1))
    votes = (confusion[:, truth].transpose(1, 0, 2).cumsum(-1) < draws).sum(-1)
    votes[generator.random(votes.shape) < 1 / 3] = -1
    return truth, confusion, votes


def test_dawid_and_skene_find_the_annotators_confusions(crowd: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    truth, confusion, votes = crowd
    made = dawid_skene(votes, 3)
    assert np.abs(made.confusion - confusion).max() < 0.09
    seen = made.labels >= 0
    assert np.array_equal(seen, (votes >= 0).any(1)) and np.isnan(made.probabilities[~seen]).all()
    np.testing.assert_allclose(made.probabilities[seen].sum(1), 1)
    counts = np.stack([(votes == label).sum(1) for label in range(3)], 1)
    majority = (counts + np.random.default_rng(0).random(counts.shape) / 10).argmax(1)
    right, by_majority = (made.labels == truth)[seen].mean(), (majority == truth)[seen].mean()
    assert right > by_majority + 0.05
    called = made.probabilities[seen].max(1) > 0.95
    assert (made.labels == truth)[seen][called].mean() > 0.95, "who is sure is right"


def test_dawid_and_skene_by_hand() -> None:
    """One round by hand: one image, two annotators who disagree, and two images on which they agree."""
    made = dawid_skene(np.array([[0, 0], [1, 1], [0, 0]]), 2)
    assert list(made.labels) == [0, 1, 0]
    expected = np.array([[2 + 1.5, 0.5], [0.5, 1 + 1.5]])
    np.testing.assert_allclose(made.confusion[0], expected / expected.sum(1, keepdims=True), atol=0.05)


def test_one_annotator_is_believed() -> None:
    labels = np.array([0, 1, 2, 1, -1])
    assert np.array_equal(dawid_skene(labels[:, None], 3).labels, labels)


def probabilities(truth: np.ndarray, sure: float) -> np.ndarray:
    """Of a classifier that gives its likeliest class so much, and is right as often as it says: (N,) -> (N, 3)."""
    generator = np.random.default_rng(2)
    right = generator.random(len(truth)) < sure
    guessed = np.where(right, truth, (truth + generator.integers(1, 3, len(truth))) % 3)
    return np.where(np.arange(3) == guessed[:, None], sure, (1 - sure) / 2)


def test_crowdlab_is_right_more_often_than_who_does_not_ask_the_classifier(
    crowdlab: Crowdlab, crowd: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> None:
    truth, _, votes = crowd
    seen = (votes >= 0).any(1)
    made = crowdlab(votes, probabilities(truth, 0.9))
    assert np.array_equal(made >= 0, seen) and made.dtype == np.int64
    alone = (dawid_skene(votes, 3).labels == truth)[seen].mean()
    assert (made == truth)[seen].mean() > alone + 0.02
    nothing = crowdlab(votes, np.full((len(votes), 3), 1 / 3))
    assert (nothing == truth)[seen].mean() < (made == truth)[seen].mean() - 0.02, "the classifier counts"


def test_crowdlab_lets_the_classifier_decide_between_annotators_who_differ(crowdlab: Crowdlab) -> None:
    votes = np.array([[0, 0, -1], [1, 1, -1], [0, 0, -1], [1, 1, -1], [0, 1, -1], [1, 0, -1], [-1, -1, -1]])
    sure = np.array([0.95, 0.05, 0.95, 0.05, 0.1, 0.1, 0.5])
    assert crowdlab(votes, np.stack([sure, 1 - sure], 1)).tolist() == [0, 1, 0, 1, 1, 1, -1]


def test_crowdlab_of_annotators_without_an_image_in_common_leaves_each_its_label(crowdlab: Crowdlab) -> None:
    votes = np.array([[0, -1], [-1, 1], [-1, -1]])
    assert crowdlab(votes, np.full((3, 2), 0.5)).tolist() == [0, 1, -1]


def test_crowdlab_bears_probabilities_of_zero_and_classes_that_nobody_gave(crowdlab: Crowdlab) -> None:
    votes = np.array([[0, 0], [1, 1], [0, 1], [1, 1]])
    p = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]])
    assert crowdlab(votes, p).tolist() == [0, 1, 1, 1]


def test_confusions_are_counts() -> None:
    votes, consensus = np.array([[0, 1], [1, 1], [-1, 0], [1, 0]]), np.array([0, 1, 0, -1])
    assert confusions(votes, consensus, 2).tolist() == [[[1, 0], [0, 1]], [[1, 1], [0, 1]]]

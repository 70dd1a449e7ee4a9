"""Reviews move probabilities towards what was found, and the share of wrong labels with its interval."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from lnl.labelling import calibration
from lnl.labelling.calibration import after_reviews, expected_errors, most_suspect, recalibration
from lnl.labelling.problem import Share, Suspicion


def suspicion(probability: np.ndarray) -> Suspicion:
    """Of one class more than there are labels, ranked by their probability."""
    judged = np.isfinite(probability)
    score = np.where(judged, probability, -np.inf)
    rest = np.zeros(len(score), np.int64)
    return Suspicion(score, probability, rest, rest > 0, np.ones((len(score), 1)), Share(0.4, 0.3, 0.5))


def test_without_reviews_nothing_changes() -> None:
    fitted = recalibration(np.empty(0), np.empty(0, bool))
    assert (fitted.shift, fitted.log_slope) == (0, 0)
    np.testing.assert_allclose(fitted.covariance, [[1.5**2, 0], [0, 0.5**2]])
    np.testing.assert_allclose(fitted(np.array([0.2, 0.7])), [0.2, 0.7])
    before = suspicion(np.array([0.2, 0.7]))
    assert after_reviews(before, np.empty(0, np.int64), np.empty(0, bool)) is before


def test_many_reviews_find_the_recalibration() -> None:
    generator = np.random.default_rng(0)
    probability = generator.uniform(0.02, 0.98, 20_000)
    wrong = generator.random(20_000) < expit(-1 + 0.6 * logit(probability))
    fitted = recalibration(probability, wrong)
    assert abs(fitted.shift + 1) < 0.05 and abs(np.exp(fitted.log_slope) - 0.6) < 0.05
    assert np.sqrt(fitted.covariance[0][0]) < 0.05


def test_one_review_by_hand() -> None:
    """At P = 1/2 the slope plays no part: the maximum solves sigmoid(a) = -a / 1.5²."""
    fitted = recalibration(np.array([0.5]), np.array([False]))
    assert fitted.log_slope == 0
    np.testing.assert_allclose(expit(fitted.shift), -fitted.shift / 1.5**2, rtol=1e-4)


def test_reviewed_labels_count_as_they_were_found_and_flags_follow_the_share() -> None:
    before = suspicion(np.array([0.9, 0.5, 0.5, np.nan]))
    after = after_reviews(before, np.array([1, 2]), np.array([True, True]))
    expected = recalibration(np.array([0.5, 0.5]), np.array([True, True]))(np.array([0.9]))[0]
    np.testing.assert_allclose(after.wrong.value, (2 + expected) / 3)
    assert after.flagged.sum() == 3 and not after.flagged[3]
    assert np.isnan(after.probability[3]) and (after.score == before.score).all()


def test_the_interval_covers_the_share_of_a_misplaced_detector() -> None:
    """P is .38 where .12 are wrong, as weak features make it; 40 labels drawn at random are reviewed."""
    covered = 0
    for seed in range(20):
        generator = np.random.default_rng(seed)
        probability = expit(generator.normal(-0.5, 1, 2_000))
        wrong = generator.random(2_000) < expit(logit(probability) - 2)
        chosen = generator.permutation(2_000)[:40]
        share = after_reviews(suspicion(probability), chosen, wrong[chosen]).wrong
        covered += share.low <= wrong.mean() <= share.high
        assert abs(share.value - wrong.mean()) < 0.15 < abs(probability.mean() - wrong.mean())
    assert covered >= 17


def test_expected_errors_are_the_probabilities_of_the_first() -> None:
    score = np.array([0.1, 0.9, -np.inf, 0.5])
    probability = np.array([0.05, 0.8, np.nan, 0.6])
    assert expected_errors(score, probability, 2) == pytest.approx(1.4)
    assert expected_errors(score, probability, 10) == pytest.approx(1.45)
    assert most_suspect(score, 1 / 3).tolist() == [False, True, False, False]


def test_certain_probabilities_can_be_mended() -> None:
    fitted = calibration.recalibration(np.ones(30), np.zeros(30, bool))
    assert fitted(np.array([1.0]))[0] < 0.2

"""Confident learning by hand and by cleanlab, Bayes' rule, and expectation maximisation on labels of a known noise."""

from __future__ import annotations

import numpy as np
import pytest

from lnl.labelling import transition

P = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9], [0.45, 0.55], [0.5, 0.5]])
GIVEN = np.array([0, 0, 0, 1, 1, 1])


def test_confident_learning_by_hand() -> None:
    threshold = transition.thresholds(P, GIVEN)
    np.testing.assert_allclose(threshold, [(0.9 + 0.6 + 0.2) / 3, (0.9 + 0.55 + 0.5) / 3])  # 0.567 and 0.65
    confident = transition.confident_class(np.log(P), GIVEN)
    assert confident.tolist() == [0, 0, 1, 1, -1, -1]
    joint = transition.joint(confident, GIVEN, 2)
    np.testing.assert_allclose(joint, [[2, 0], [1, 3]])  # of three labels 1, one is confident: it stands for all
    np.testing.assert_allclose(transition.confident_transition(np.log(P), GIVEN), [[1, 0], [0.25, 0.75]])
    np.testing.assert_allclose(transition.confident_share(np.log(P), GIVEN), 1 / 6)


def test_the_joint_is_cleanlabs() -> None:
    count = pytest.importorskip("cleanlab.count")
    generator = np.random.default_rng(0)
    p = generator.dirichlet(np.ones(4), 500)
    given = generator.integers(0, 4, 500)
    joint = transition.joint(transition.confident_class(np.log(p), given), given, 4)
    np.testing.assert_allclose(joint / joint.sum(), count.estimate_joint(given, p).T, atol=1e-9)


def test_classes_without_a_confident_image_keep_their_labels() -> None:
    joint = transition.joint(np.array([0, 0, -1]), np.array([0, 0, 1]), 3)
    np.testing.assert_allclose(joint, [[2, 0, 0], [0, 1, 0], [0, 0, 0]])


def test_the_posterior_is_bayes_rule() -> None:
    matrix = np.array([[0.8, 0.2], [0.3, 0.7]])
    p = np.array([[0.6, 0.4]])
    np.testing.assert_allclose(
        transition.posterior(np.log(p), np.array([1]), matrix), [[0.12 / 0.4, 0.28 / 0.4]], rtol=1e-6
    )
    squared = np.array([[0.36 * 0.2, 0.16 * 0.7]])
    np.testing.assert_allclose(
        transition.posterior(np.log(p), np.array([1]), matrix, sharpness=2), squared / squared.sum(), rtol=1e-6
    )
    assert transition.wrong_share(np.array([[0.25, 0.75]]), np.array([1])) == 0.25


def noisy(images: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """log p, labels, true classes, and the T by which the labels were drawn."""
    generator = np.random.default_rng(0)
    matrix = np.array([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.25, 0.05, 0.7]])
    p = generator.dirichlet([0.3] * 3, images)
    true = (p.cumsum(1) < generator.random((images, 1))).sum(1).clip(max=2)
    given = (matrix[true].cumsum(1) < generator.random((images, 1))).sum(1).clip(max=2)
    return np.log(p.clip(1e-9)), given, true, matrix


def test_maximisation_finds_the_transition_of_calibrated_probabilities() -> None:
    log_p, given, true, matrix = noisy(20_000)
    found, share = transition.Maximisation(log_p, given, np.random.default_rng(0)).fit()
    np.testing.assert_allclose(found, matrix, atol=0.04)
    assert abs(share - (given != true).mean()) < 0.015


def test_probabilities_that_were_flattened_are_sharpened_again() -> None:
    log_p, given, true, matrix = noisy(20_000)
    for sharpness in (0.5, 1.0, 2.0):
        found = transition.likeliest_sharpness(log_p / sharpness, given, matrix)
        assert abs(found / sharpness - 1) < 0.08
    q = transition.posterior(log_p / 2, given, matrix, transition.likeliest_sharpness(log_p / 2, given, matrix))
    assert abs(transition.wrong_share(q, given) - (given != true).mean()) < 0.015


def test_maximisation_on_a_sample_is_near_that_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    log_p, given, _, _ = noisy(20_000)
    whole = transition.Maximisation(log_p, given, np.random.default_rng(0)).fit()[0]
    monkeypatch.setattr(transition, "FITTED_ON", 10_000)
    np.testing.assert_allclose(
        transition.Maximisation(log_p, given, np.random.default_rng(0)).fit()[0], whole, atol=0.03
    )


def test_the_sharpness_is_that_at_which_the_asked_share_is_wrong() -> None:
    log_p, given, _, _ = noisy(3_000)
    maximisation = transition.Maximisation(log_p, given, np.random.default_rng(0))
    for sharpness in (0.6, 2.0):
        share = maximisation.fit(sharpness)[1]
        assert abs(maximisation.fit(maximisation.sharpness_for(share))[1] - share) < 0.002

"""Known answers of scikit-learn's linear discriminant analysis, fold by fold."""

from __future__ import annotations

import numpy as np
from scipy.special import log_softmax
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from lnl.labelling import discriminant
from lnl.labelling.folds import FOLDS, stratified


def test_each_fold_has_the_analysis_of_the_others_images() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 300)
    features = (generator.normal(size=(3, 5))[labels] + generator.normal(size=(300, 5))).astype(np.float32)
    fold_of = stratified(labels, generator)
    logits = discriminant.out_of_fold(features, labels, fold_of, 3)
    for fold in range(FOLDS):
        others = fold_of != fold
        wanted = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1).fit(features[others], labels[others])
        np.testing.assert_allclose(
            log_softmax(logits[~others], axis=1), wanted.predict_log_proba(features[~others]), atol=1e-3
        )


def test_images_without_a_label_change_nothing_for_the_others() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 200)
    features = generator.normal(size=(200, 4)).astype(np.float32)
    fold_of = stratified(labels, generator)
    alone = discriminant.out_of_fold(features, labels, fold_of, 3)
    more = discriminant.out_of_fold(
        np.vstack([features, features[:20] + 5]), np.append(labels, [-1] * 20), np.append(fold_of, [-1] * 20), 3
    )
    np.testing.assert_allclose(more[:200], alone, atol=1e-4)
    assert np.isfinite(more[200:]).all()


def test_calibration_finds_the_temperature_and_the_biases() -> None:
    generator = np.random.default_rng(0)
    right = generator.normal(size=(20_000, 3)) * 2
    labels = (np.exp(log_softmax(right, axis=1)).cumsum(1) < generator.random((20_000, 1))).sum(1).clip(max=2)
    log_p, loss = discriminant.calibrated(3 * right + [1, 0, -2], labels, generator)
    assert np.abs(np.exp(log_p) - np.exp(log_softmax(right, axis=1))).max() < 0.03
    likelihood = log_softmax(right, axis=1)[np.arange(20_000), labels].mean()
    assert abs(loss + likelihood) < 0.001

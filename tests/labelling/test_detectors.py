"""What every detector promises, on blobs with wrong labels, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from lnl.data.dataset import DataError
from lnl.labelling.detectors import DETECTORS
from lnl.labelling.problem import Labels

CLASSES, IMAGES = 4, 600


def blobs(rate: float, seed: int = 0) -> tuple[Labels, np.ndarray]:
    """Four blobs whose labels are wrong at this rate, as the next class; their true classes."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, CLASSES, IMAGES)
    features = 4 * np.eye(CLASSES, 8)[true] + generator.normal(size=(IMAGES, 8))
    given = np.where(generator.random(IMAGES) < rate, (true + 1) % CLASSES, true)
    return Labels(features.astype(np.float32), given, CLASSES), true


def quiet(done: int, of: int) -> None:
    """Tell nobody."""


@pytest.fixture(params=DETECTORS)
def detector(request: pytest.FixtureRequest):
    if request.param == "cleanlab":
        pytest.importorskip("cleanlab")
    return DETECTORS[request.param]


def test_it_finds_the_wrong_labels_and_proposes_the_right_ones(detector) -> None:
    labels, true = blobs(0.3)
    wrong = labels.given != true
    found = detector(labels, 0, quiet)
    assert roc_auc_score(wrong, found.score) > 0.94
    assert wrong[found.flagged].mean() > 0.7 and found.flagged[wrong].mean() > 0.7
    assert (found.proposed[wrong] == true[wrong]).mean() > 0.9
    assert (found.proposed != labels.given).all()
    np.testing.assert_allclose(found.class_probabilities.sum(1), 1, atol=1e-4)
    assert ((found.probability >= 0) & (found.probability <= 1)).all()
    assert found.wrong.low <= found.wrong.value <= found.wrong.high and abs(found.wrong.value - wrong.mean()) < 0.06


def test_the_same_seed_gives_the_same_answer_and_progress_ends(detector) -> None:
    labels, _ = blobs(0.2)
    told: list[tuple[int, int]] = []
    first, again = (detector(labels, 3, lambda done, of: told.append((done, of))) for _ in range(2))
    assert (first.score == again.score).all() and first.wrong == again.wrong
    assert told[-1][0] == told[-1][1] and told == sorted(told[: len(told) // 2]) * 2


def test_the_range_of_a_few_labels_is_no_narrower_than_chance() -> None:
    for rate in (0.1, 0.3):
        labels, true = blobs(rate)
        few = Labels(labels.features[:72], labels.given[:72], labels.classes)
        share = DETECTORS["probe"](few, 0, quiet).wrong
        assert share.high - share.low > 2 * 1.9 * np.sqrt(share.value * (1 - share.value) / 72)
        assert share.low <= (few.given != true[:72]).mean() <= share.high


def test_images_without_a_label_get_a_class_but_no_score(detector) -> None:
    labels, true = blobs(0.2)
    unlabelled = np.arange(IMAGES) % 3 == 0
    found = detector(replace(labels, given=np.where(unlabelled, -1, labels.given)), 0, quiet)
    assert (np.isneginf(found.score) == unlabelled).all() and (np.isnan(found.probability) == unlabelled).all()
    assert not found.flagged[unlabelled].any()
    assert (found.proposed[unlabelled] == true[unlabelled]).mean() > 0.85
    assert (found.class_probabilities[unlabelled].argmax(1) == found.proposed[unlabelled]).all()


def test_classes_without_labels_are_never_proposed_and_a_single_label_is_not_judged(detector) -> None:
    labels, _ = blobs(0.2)
    given = labels.given * 2  # classes 0, 2, 4, 6 of 8
    given[5] = 7
    found = detector(Labels(labels.features, given, 8), 0, quiet)
    assert found.class_probabilities.shape == (IMAGES, 8)
    assert (found.class_probabilities[:, 1::2] == 0).all() and (found.proposed % 2 == 0).all()
    assert np.isneginf(found.score[5]) and np.isfinite(np.delete(found.score, 5)).all()


def test_features_may_be_memory_mapped(detector, tmp_path: Path) -> None:
    labels, _ = blobs(0.2)
    np.save(tmp_path / "features.npy", labels.features)
    mapped = replace(labels, features=np.load(tmp_path / "features.npy", mmap_mode="r"))
    assert (detector(mapped, 0, quiet).score == detector(labels, 0, quiet).score).all()


def test_few_images_and_duplicates_are_judged(detector) -> None:
    labels = Labels(np.repeat(np.eye(2, 3, dtype=np.float32), 6, axis=0), np.repeat([0, 1], 6), 2)
    found = detector(labels, 0, quiet)
    assert np.isfinite(found.score).all() and not found.flagged.any()


def test_right_labels_are_hardly_flagged() -> None:
    labels, _ = blobs(0.0)
    clear = replace(labels, features=labels.features + 9 * np.eye(CLASSES, 8, dtype=np.float32)[labels.given])
    assert DETECTORS["probe"](clear, 0, quiet).flagged.mean() <= 0.01


def test_what_cannot_be_judged_is_refused_in_one_sentence(detector) -> None:
    labels, _ = blobs(0.2)
    broken = labels.features.copy()
    broken[17, 3] = np.nan
    few = np.full(IMAGES, -1)
    few[:4] = [0, 0, 1, 1]
    single = np.full(IMAGES, -1)
    single[:3] = [0, 1, 2]
    for bad, sentence in (
        (replace(labels, features=broken), "image 17 are no finite numbers"),
        (replace(labels, given=np.zeros(IMAGES, np.int64)), "class 0 alone has two given labels or more"),
        (replace(labels, given=single), "no class has two given labels or more"),
        (replace(labels, given=few), "Only 4 given labels can be judged"),
        (replace(labels, classes=3), r"given labels are outside 0 to 2: correct them"),
        (replace(labels, given=labels.given[:-1]), "do not match"),
    ):
        with pytest.raises(DataError, match=sentence):
            detector(bad, 0, quiet)


def test_cleanlab_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cleanlab.count", None)
    with pytest.raises(DataError, match=r"pip install 'lnl\[label\]'"):
        DETECTORS["cleanlab"](blobs(0.2)[0], 0, quiet)

"""Labels for all from a few: against dense matrices, and what bad input, unreached images and little confidence get."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from lnl.data.dataset import DataError
from lnl.labelling.propagation import Graph, chosen_temperature, effective_neighbours, propagated


def quiet(done: int, of: int) -> None:
    pass


@pytest.fixture(scope="module")
def digits() -> tuple[Graph, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    return Graph.of((pixels - pixels.mean(0)).astype(np.float32), quiet), labels


def few(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    given = np.full(len(labels), -1)
    some = np.random.default_rng(seed).permutation(len(labels))[:count]
    given[some] = labels[some]
    return given


def test_equations_2_and_3_by_dense_matrices() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 4)).astype(np.float32)
    given = np.where(np.arange(40) < 6, np.arange(40) % 3, -1)
    built = Graph.of(features, quiet, k=4, temperature=0.3)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosines = unit @ unit.T
    weights = np.zeros((40, 40))
    for image, row in enumerate(cosines):
        nearest = [other for other in np.argsort(-row) if other != image][:4]
        weights[image, nearest] = np.exp((row[nearest] - 1) / 0.3)
    weights = np.maximum(weights, weights.T)
    degree = weights.sum(1)
    matrix = weights / np.sqrt(np.outer(degree, degree))
    start = np.eye(3)[given] * (given >= 0)[:, None]
    scores = start
    for _ in range(5):
        scores = np.where((given >= 0)[:, None], start, matrix @ scores)
    found = propagated(built, given, 3, iterations=5)
    np.testing.assert_allclose(found.probabilities, scores / scores.sum(1, keepdims=True), atol=1e-5)
    assert found.label.tolist() == scores.argmax(1).tolist() and found.coverage == 1


def test_few_labels_name_most_digits(digits: tuple[Graph, np.ndarray]) -> None:
    built, labels = digits
    accuracy = {count: np.mean(propagated(built, few(labels, count), 10).label == labels) for count in (10, 50, 200)}
    assert accuracy[10] < accuracy[50] and accuracy[50] > 0.9 and accuracy[200] > 0.97


def test_the_temperature_lets_seven_tenths_of_the_neighbours_count(digits: tuple[Graph, np.ndarray]) -> None:
    cosines = torch.from_numpy(digits[0].cosines)
    assert effective_neighbours(cosines, digits[0].temperature) == pytest.approx(7, abs=0.05)
    assert [round(effective_neighbours(cosines, one), 1) for one in (0.01, 0.1, 0.2)] == [2.2, 9.2, 9.8]
    assert chosen_temperature(torch.ones(5, 3)) == pytest.approx(1e-4)  # neighbours that are equally near


def test_an_image_that_no_label_reaches_has_no_class() -> None:
    features = np.array([[1, 0], [1, 0.01], [1, 0.02], [-1, 0], [-1, 0.01], [-1, 0.02]], dtype=np.float32)
    built = Graph.of(features, quiet, k=2)
    found = propagated(built, np.array([1, -1, -1, -1, -1, -1]), 2)
    assert found.label.tolist() == [1, 1, 1, -1, -1, -1] and found.coverage == pytest.approx(2 / 5)
    assert np.isnan(found.probabilities[3:]).all() and (found.probabilities[:3] == [0, 1]).all()


def test_it_abstains_below_a_confidence_and_is_right_more_often_then(digits: tuple[Graph, np.ndarray]) -> None:
    built, labels = digits
    given = few(labels, 30)
    everything, sure = propagated(built, given, 10), propagated(built, given, 10, confidence=0.9)
    told = (sure.label >= 0) & (given < 0)
    assert 0.2 < sure.coverage < everything.coverage
    assert (sure.label[told] == everything.label[told]).all()
    assert np.mean(sure.label[told] == labels[told]) > np.mean(everything.label == labels)
    assert (sure.probabilities.max(1)[told] >= 0.9).all()
    known = given >= 0
    assert (sure.label[known] == given[known]).all()


def test_a_further_label_is_as_if_it_had_been_there_from_the_start(digits: tuple[Graph, np.ndarray]) -> None:
    built, labels = digits
    before, after = few(labels, 20), few(labels, 21)
    propagated(built, before, 10)
    fresh = Graph.of((load_digits().data - load_digits().data.mean(0)).astype(np.float32), quiet)
    assert np.array_equal(
        propagated(built, after, 10).probabilities, propagated(fresh, after, 10).probabilities, equal_nan=True
    )


def test_fewer_images_than_neighbours_and_duplicates_and_one_class() -> None:
    built = Graph.of(np.ones((4, 3), dtype=np.float32), quiet, k=10)
    assert built.index.shape == (4, 3)
    assert propagated(built, np.array([0, -1, -1, -1]), 1).label.tolist() == [0, 0, 0, 0]


def test_bad_input_is_refused_in_a_sentence() -> None:
    features = np.ones((4, 3), dtype=np.float32)
    built = Graph.of(features, quiet)
    for given, said in (
        (np.array([0, 3, -1, -1]), "The label 3 is none of the 3 classes: labels are 0 to 2, -1: none."),
        (np.array([0, -2, -1, -1]), "The label -2 is none of the 3 classes"),
        (np.full(4, -1), "No image has a label, so that there is nothing to spread: label some first."),
        (np.zeros(5), "There are 4 images, but 5 given labels: give one an image, -1 for none."),
    ):
        with pytest.raises(DataError, match=said):
            propagated(built, given, 3)
    with pytest.raises(DataError, match="Neighbours need at least 2 images, and there are 1"):
        Graph.of(features[:1], quiet)
    features[2, 1] = np.nan
    with pytest.raises(DataError, match="The features of image 2 are not finite: leave it out, or embed it anew"):
        Graph.of(features, quiet)
    with pytest.raises(DataError, match="asked for with k = 0: ask for at least one neighbour"):
        Graph.of(features, quiet, k=0)

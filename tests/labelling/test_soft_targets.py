"""Neighbours against all cosines, and their average by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lnl.functional import graph
from lnl.labelling import soft_targets


def test_neighbours_are_the_nearest_references_but_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "QUERIES", 7)
    monkeypatch.setattr(soft_targets, "QUERIES", 16)
    features = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    features[3] = features[2]  # a duplicate is a neighbour
    references = np.arange(0, 40, 2)
    cosines, neighbours = soft_targets.nearest_references(features, references, 4)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarity = unit @ unit.T
    np.fill_diagonal(similarity, -np.inf)
    similarity[:, 1::2] = -np.inf
    np.testing.assert_array_equal(neighbours, np.argsort(-similarity, axis=1)[:, :4])
    np.testing.assert_allclose(cosines, -np.sort(-similarity, axis=1)[:, :4], atol=1e-6)
    assert neighbours[3, 0] == 2


def test_the_average_weighs_by_the_distance_to_the_nearest_with_half_a_mean_target() -> None:
    targets = np.array([[1.0, 0.0], [0.0, 1.0], [0.2, 0.8]], np.float32)
    cosines = np.array([[0.9, 0.8]], np.float32)
    found = soft_targets.neighbour_average(cosines, np.array([[1, 2]]), targets, np.array([0.4, 0.6]))
    weights = np.array([1, np.exp(-1)])
    wanted = (weights @ targets[[1, 2]] + 0.5 * np.array([0.4, 0.6])) / (weights.sum() + 0.5)
    np.testing.assert_allclose(np.exp(found[0]), wanted, rtol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-5)

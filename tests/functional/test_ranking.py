"""How well scores rank: by hand, and as scikit-learn has it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from lnl.functional import ranking


def test_by_hand() -> None:
    scores, positive = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([True, False, True, False])
    assert ranking.roc_area(scores, positive) == 0.75
    assert ranking.average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)
    assert (
        ranking.roc_area(torch.zeros(4), positive) == 0.5 and ranking.average_precision(torch.zeros(4), positive) == 0.5
    )


@pytest.mark.parametrize("levels", [None, 20, 2])
@pytest.mark.parametrize("count", [2, 7, 100, 5000])
def test_as_scikit_learn_has_it(count: int, levels: int | None) -> None:
    random = np.random.default_rng(count)
    for _ in range(10):
        positive = random.random(count) < 0.3
        positive[:2] = [True, False]
        scores = (random.normal(positive, 1.0) if levels is None else random.integers(levels, size=count)).astype(
            np.float32
        )
        found = torch.from_numpy(scores), torch.from_numpy(positive)
        assert ranking.roc_area(*found) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
        assert ranking.average_precision(*found) == pytest.approx(average_precision_score(positive, scores), abs=1e-12)


def test_scores_that_are_not_finite_do_not_count() -> None:
    scores = torch.tensor([0.9, math.nan, 0.8, math.inf, 0.1])
    positive = torch.tensor([True, False, False, False, True])
    assert ranking.roc_area(scores, positive) == 0.5
    assert ranking.average_precision(scores, positive) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize("positive", [torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)])
def test_of_one_kind_alone_nothing_is_known(positive: torch.Tensor) -> None:
    scores = torch.tensor([1.0, 2.0, 3.0])
    assert math.isnan(ranking.roc_area(scores, positive)) and math.isnan(ranking.average_precision(scores, positive))
    assert math.isnan(ranking.roc_area(scores[:0], positive[:0]))

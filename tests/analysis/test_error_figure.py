"""The figure of errors expected and found: known answers from arrays by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from analysis.figures.base import Look
from analysis.figures.errors import FEWEST, FIRST, RELIABILITY, error_reliability, first_frame, reliability_frame

LOOKS = {"probe": Look("#000000"), "cleanlab": Look("#0072B2")}


def bins(labels: dict[int, tuple[int, int, float]]) -> np.ndarray:
    """Bin -> labels, wrong ones, mean probability."""
    array = np.zeros((3, 15), np.float32)
    array[2] = np.nan
    for place, values in labels.items():
        array[:, place] = values
    return array


@pytest.fixture
def arrays() -> pd.DataFrame:
    rows = [
        ("probe", 0, RELIABILITY, bins({0: (900, 20, 0.02), 14: (100, 98, 0.97), 7: (5, 2, 0.5)})),
        ("probe", 1, RELIABILITY, bins({0: (700, 10, 0.01), 14: (300, 280, 0.95)})),
        ("cleanlab", 0, RELIABILITY, bins({3: (1000, 100, 0.22)})),
        ("probe", 0, FIRST, np.array([[100, 500], [95.0, 300.0], [98, 310]])),
        ("probe", 1, FIRST, np.array([[100, 500], [97.0, 340.0], [96, 290]])),
        ("cleanlab", 0, FIRST, np.array([[100], [80.0], [60]])),
    ]
    return pd.DataFrame(rows, columns=["arm", "replicate", "name", "array"])


def test_bins_of_all_replicates_are_added(arrays: pd.DataFrame) -> None:
    frame = reliability_frame(arrays).set_index("arm")
    probe = frame.loc["probe"]
    assert probe["labels"].tolist() == [1600, 400] and FEWEST > 5, "a bin of five labels says little"
    np.testing.assert_allclose(probe["expected"], [(18 + 7) / 1600, (97 + 285) / 400], rtol=1e-6)
    np.testing.assert_allclose(probe["found"], [30 / 1600, 378 / 400])
    assert frame.loc["cleanlab", "found"] == pytest.approx(0.1)


def test_the_most_suspect_are_means_over_replicates(arrays: pd.DataFrame) -> None:
    frame = first_frame(arrays).set_index(["arm", "first"])
    assert frame["n"].tolist() == [2, 2, 1]
    np.testing.assert_allclose(frame.loc[("probe", 100), ["expected", "found"]].astype(float), [0.96, 0.97])
    np.testing.assert_allclose(frame.loc[("probe", 500), ["expected", "found"]].astype(float), [0.64, 0.6])


def test_the_figure_draws_both(arrays: pd.DataFrame) -> None:
    plot = error_reliability(arrays, LOOKS)
    left, right = plot.figure.axes
    assert [len(one.get_offsets()) for one in left.collections] == [2, 1]
    assert [text.get_text() for text in right.get_xticklabels()] == ["first 100", "first 500"]
    rings = [line for line in right.lines if line.get_markerfacecolor() == "white"]
    np.testing.assert_allclose(rings[0].get_ydata(), [96, 64])
    assert plot.drawn["part"].tolist() == ["bins"] * 3 + ["first"] * 3
    assert "n = 1 to 2 replicates" in plot.caption


def test_few_labels_have_bins_alone(arrays: pd.DataFrame) -> None:
    assert len(error_reliability(arrays[arrays["name"] == RELIABILITY], LOOKS).figure.axes) == 1

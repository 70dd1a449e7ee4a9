"""Neighbours beyond the size of exact search: found by faiss, ranked exactly, and their recall is true."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lnl.functional import graph, neighbours


def clusters(images: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (
        3 * random.normal(size=(20, 16))[random.integers(20, size=images)] + random.normal(size=(images, 16))
    ).astype(np.float32)


def test_approximate_neighbours_have_exact_cosines_and_a_true_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(3000)
    exact = neighbours.find(features, 8)
    assert exact.recall is None and torch.equal(exact.index, graph.nearest(torch.from_numpy(features), 8)[1])
    monkeypatch.setattr(neighbours, "LISTS_LOOKED_AT", 3)
    heard: list[int] = []
    found = neighbours.find(features, 8, exact_up_to=1000, tell=lambda done, of: heard.append(done))
    right = (exact.index[:, :, None] == found.index[:, None]).any(-1).float().mean().item()
    assert 0.5 < right < 1 and found.recall == pytest.approx(right, abs=0.03)
    unit = torch.nn.functional.normalize(torch.from_numpy(features), dim=-1)
    torch.testing.assert_close(found.cosines, torch.einsum("nd,nkd->nk", unit, unit[found.index]))
    assert (found.cosines[:, 1:] <= found.cosines[:, :-1]).all() and heard[-1] == 3000
    assert not (found.index == torch.arange(3000)[:, None]).any()
    again = neighbours.find(features, 8, exact_up_to=1000)
    assert torch.equal(again.index, found.index) and again.recall == found.recall
    monkeypatch.setattr(neighbours, "LISTS_LOOKED_AT", 60)
    assert neighbours.find(features, 8, exact_up_to=1000).recall > 0.99  # type: ignore[operator]


def test_lists_that_hold_too_few_are_filled_up_by_exact_search(monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(400)
    features[:3] = 100 * np.eye(16, dtype=np.float32)[:3]  # alone in their lists
    monkeypatch.setattr(neighbours, "LISTS_LOOKED_AT", 1)
    found = neighbours.find(features, 30, exact_up_to=100)
    assert found.cosines.isfinite().all() and (found.index >= 0).all()
    assert not (found.index == torch.arange(400)[:, None]).any()


def test_features_of_a_file_are_read_where_they_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = clusters(500)
    np.save(tmp_path / "features.npy", features)
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    for bytes_copied in (0, 10**9):
        monkeypatch.setattr(graph, "COPY_BYTES", bytes_copied)
        found = neighbours.find(mapped, 5)
        assert torch.equal(found.index, neighbours.find(features, 5).index)
    assert torch.equal(
        neighbours.find(mapped, 5, exact_up_to=10).index, neighbours.find(features, 5, exact_up_to=10).index
    )


def test_without_faiss_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(
        ValueError, match=r"The neighbours of 300 images need faiss: pip install 'lnl\[label\]', or take"
    ):
        neighbours.find(clusters(300), 5, exact_up_to=100)

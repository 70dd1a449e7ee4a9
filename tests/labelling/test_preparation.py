"""Known answers of scikit-learn's PCA, and the same numbers however the images are cut into blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from lnl.labelling import blocks, preparation
from lnl.labelling.preparation import TRANSFORMS, principal_components, signed_root


def features(images: int = 300, width: int = 12) -> np.ndarray:
    generator = np.random.default_rng(0)
    mixed = generator.normal(size=(images, width)) @ generator.normal(size=(width, width)) + 3
    return mixed.astype(np.float32)


def test_components_are_those_of_a_pca_of_standardised_features_with_a_total_variance_of_1(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preparation, "COMPONENTS", 5)
    given = features()
    found = principal_components(given, TRANSFORMS["as they are"])
    standardised = (given - given.mean(0)) / given.std(0)
    wanted = PCA(5).fit_transform(standardised)
    wanted /= np.sqrt(wanted.var(0).sum())
    np.testing.assert_allclose(np.abs(found), np.abs(wanted), atol=1e-4)
    np.testing.assert_allclose(found.var(0).sum(), 1, rtol=1e-4)


def test_a_memory_map_read_in_blocks_gives_the_same_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = features()
    whole = principal_components(given, signed_root)
    np.save(tmp_path / "features.npy", given)
    monkeypatch.setattr(blocks, "NUMBERS", 12 * 7)
    found = principal_components(np.load(tmp_path / "features.npy", mmap_mode="r"), signed_root)
    np.testing.assert_allclose(np.abs(found), np.abs(whole), atol=1e-4)


def test_constant_features_count_for_nothing() -> None:
    given = features()
    constant = np.hstack([given, np.full((len(given), 2), 7.3, np.float32)])
    found, wanted = (principal_components(array, TRANSFORMS["as they are"]) for array in (constant, given))
    np.testing.assert_allclose(np.abs(found[:, :12]), np.abs(wanted), atol=1e-4)
    np.testing.assert_allclose(found[:, 12:], 0, atol=1e-6)


def test_wide_features_are_projected_to_distances_like_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "WIDEST", 100)
    monkeypatch.setattr(preparation, "PROJECTED", 300)
    monkeypatch.setattr(preparation, "COMPONENTS", 300)
    given = np.random.default_rng(0).normal(size=(40, 1000)).astype(np.float32)
    given[:20] += 1
    found = principal_components(given, TRANSFORMS["as they are"])
    assert found.shape == (40, 300)
    centres = found[:20].mean(0) - found[20:].mean(0)
    assert ((found @ centres > 0) == (np.arange(40) < 20)).all()


def test_the_signed_root_keeps_the_sign() -> None:
    np.testing.assert_allclose(signed_root(np.array([-4.0, 0.0, 9.0])), [-2, 0, 3])

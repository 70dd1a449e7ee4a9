"""Which to label next: what each sampler prefers, by hand; the simulation of the loop on digits; and when to stop."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from lnl.data.dataset import DataError
from lnl.labelling.acquisition import SAMPLERS, Situation, agreement, enough, next_to_label, simulated, typicality
from lnl.labelling.propagation import Graph


def quiet(done: int, of: int) -> None:
    pass


def situation(probabilities: list[list[float]], **changes: np.ndarray) -> Situation:
    images = len(probabilities)
    known = {
        "features": np.eye(images, dtype=np.float32),
        "given": np.full(images, -1),
        "pool": np.arange(images),
        "probabilities": np.array(probabilities),
        "typicality": np.ones(images),
    }
    return Situation(**(known | changes))


def asked(sampler: str, now: Situation, count: int, seed: int = 0) -> list[int]:
    return SAMPLERS[sampler](now, count, np.random.default_rng(seed)).tolist()


NOTHING = [np.nan, np.nan, np.nan]


def test_margin_and_entropy_by_hand() -> None:
    # margins .5, .05, .2; entropies 1.04, .86, 1.09 of at most 1.10; the last is unreached
    now = situation([[0.6, 0.1, 0.3], [0.5, 0.45, 0.05], [0.46, 0.26, 0.28], NOTHING, [1, 0, 0]])
    assert asked("margin", now, 4) == [3, 1, 2, 0]
    assert asked("entropy", now, 4) == [3, 2, 0, 1]
    assert asked("margin", situation([[0.5, 0.45, 0.05], NOTHING], pool=np.array([0])), 5) == [0]


def test_class_stratified_takes_the_classes_in_turn() -> None:
    of_class = [0] * 6 + [1] * 2 + [2]
    now = situation([[0.9 if k == one else 0.05 for k in range(3)] for one in of_class] + [NOTHING])
    for seed in range(5):
        first = asked("class-stratified", now, 4, seed)
        assert sorted(([*of_class, -1])[image] for image in first) == [-1, 0, 1, 2]
        assert sorted(([*of_class, -1])[image] for image in asked("class-stratified", now, 6, seed)) == [
            -1,
            0,
            0,
            1,
            1,
            2,
        ]


def test_random_is_random_within_the_pool() -> None:
    now = situation([NOTHING] * 6, pool=np.array([1, 3, 4]))
    first = [asked("random", now, 1, seed)[0] for seed in range(60)]
    assert set(first) == {1, 3, 4} and sorted(asked("random", now, 9)) == [1, 3, 4]


def test_typicality_by_hand() -> None:
    # distances √(2 - 2c): 1 and √2, then 0 and 1
    assert typicality(np.array([[0.5, 0.0], [1.0, 0.5]])) == pytest.approx([2 / (1 + np.sqrt(2)), 2])


def test_the_typical_images_are_those_of_the_largest_clusters_without_a_label() -> None:
    centres = np.eye(3, 6)
    cluster = np.repeat([0, 1, 2], [20, 10, 5])
    features = (centres[cluster] + 0.01 * np.random.default_rng(0).normal(size=(35, 6))).astype(np.float32)
    weight = np.arange(35.0)
    given = np.full(35, -1)
    now = situation([NOTHING] * 35, features=features, given=given, typicality=weight)
    assert sorted(asked("typicality", now, 3)) == [19, 29, 34], "the most typical of each"
    given[[0, 1]] = 0
    now = situation([NOTHING] * 35, features=features, given=given, typicality=weight, pool=np.arange(2, 35))
    assert asked("typicality", now, 1) == [29], "the largest of those without"


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, Graph, np.ndarray]:
    pixels, labels = load_digits(return_X_y=True)
    features = (pixels - pixels.mean(0)).astype(np.float32)
    return features, Graph.of(features, quiet), labels


def test_the_loop_simulated_on_digits(digits: tuple[np.ndarray, Graph, np.ndarray]) -> None:
    features, built, labels = digits
    steps: list[tuple[int, int]] = []
    rows = simulated(
        features, built, labels, 10, budgets=[10, 20, 50], repeats=2, seed=0, tell=lambda *one: steps.append(one)
    )
    assert len(rows) == 5 * 2 * 3 and steps[-1] == (10, 10)
    mean = rows.groupby(["sampler", "labels"])["accuracy"].mean().unstack()
    assert (mean[10] < mean[20]).all() and (mean[20] < mean[50]).all()
    assert (mean[50].drop("entropy") > 0.9).all() and mean.loc["entropy", 50] < 0.8, "what is odd is uncertain, too"
    assert mean.loc["typicality", 10] > mean.loc["random", 10] + 0.1, "few labels: typical images are worth more"
    again = simulated(features, built, labels, 10, budgets=[10, 20], repeats=1, seed=0, tell=quiet, samplers=["margin"])
    assert again["accuracy"].tolist() == rows.query("sampler == 'margin' and repeat == 0")["accuracy"].tolist()[:2]


def test_what_has_no_known_label_is_never_asked(digits: tuple[np.ndarray, Graph, np.ndarray]) -> None:
    features, built, labels = digits
    some = np.where(np.arange(len(labels)) % 50 == 0, labels, -1)  # 36
    rows = simulated(features, built, some, 10, budgets=[5, 35], repeats=1, seed=1, tell=quiet)
    assert rows["labels"].tolist() == [5, 35] * 5 and set(rows.query("labels == 35")["accuracy"]) <= {0.0, 1.0}


def test_next_to_label(digits: tuple[np.ndarray, Graph, np.ndarray]) -> None:
    features, built, labels = digits
    given = np.where(np.arange(len(labels)) < 20, labels, -1)
    for sampler in SAMPLERS:
        for known in (given, np.full(len(labels), -1)):  # and before there is any label
            chosen = next_to_label(sampler, features, built, known, 10, 7, seed=0)
            assert len(set(chosen.tolist())) == 7 and (known[chosen] == -1).all()
            assert chosen.tolist() == next_to_label(sampler, features, built, known, 10, 7, seed=0).tolist()
    nearly = np.where(np.arange(len(labels)) == 5, -1, labels)
    assert next_to_label("typicality", features, built, nearly, 10, 7, seed=0).tolist() == [5]
    for sampler, known, count, said in (
        ("best", given, 5, "There is no sampler 'best': choose one of random, class-stratified, margin, entropy, typ"),
        ("random", given, 0, "0 images are asked for: ask for at least one."),
        ("random", labels, 5, "All images have a label, so that there is none to label next."),
    ):
        with pytest.raises(DataError, match=said):
            next_to_label(sampler, features, built, known, 10, count, seed=0)


def test_impossible_budgets_are_refused(digits: tuple[np.ndarray, Graph, np.ndarray]) -> None:
    features, built, labels = digits
    for budgets, said in (
        ([20, 10], r"\[20, 10\] do not rise from 1 or more"),
        ([], r"\[\] do not rise"),
        ([0, 5], r"\[0, 5\] do not rise"),
        ([10, 1797], "1797 of 1797 known labels leave none to judge: ask for fewer."),
    ):
        with pytest.raises(DataError, match=said):
            simulated(features, built, labels, 10, budgets=budgets, repeats=1, seed=0, tell=quiet)


def test_agreement_by_hand() -> None:
    one, other = np.array([0, 0, 1, 1, -1]), np.array([0, 1, 1, 1, -1])
    chance = 0.4 * 0.2 + 0.4 * 0.6 + 0.2 * 0.2
    assert agreement(one, other) == pytest.approx((0.8 - chance) / (1 - chance))
    assert agreement(one, one) == 1 and agreement(np.zeros(3, int), np.zeros(3, int)) == 1
    assert agreement(np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])) == pytest.approx(0)


def test_labels_that_have_settled_are_enough() -> None:
    random = np.random.default_rng(0)
    settled = random.integers(10, size=1000)
    moved = np.where(np.arange(1000) < 30, (settled + 1) % 10, settled)
    assert enough([moved, settled, settled, settled, settled])
    assert not enough([settled, settled, settled]), "three rounds are two steps"
    assert not enough([settled, settled, moved, settled])

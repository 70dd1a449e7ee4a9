"""Labels that people gave beside the true ones, or in place of them: read, checked, drawn and evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lnl import Noise, Trial, Validation, data, run
from lnl.data import DataError, Unfit
from lnl.study.checks import check
from lnl.study.plan import Planned
from lnl.trial.provenance import Current

TRUE = np.arange(60) % 3
WRONG = np.where(np.arange(60) % 10 < 3, (TRUE + 1) % 3, TRUE)  # 30 %
SOME = np.where(np.arange(60) % 4 == 0, -1, TRUE)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def write(root: Path, **changes: object) -> str:
    arrays = {
        "x_train": images(60),
        "y_train": TRUE,
        "x_test": images(12, seed=1),
        "y_test": np.arange(12) % 3,
        "flip": False,
    }
    np.savez(root / "mine.npz", **{key: value for key, value in (arrays | changes).items() if value is not None})
    return "npz:mine.npz"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LNL_DATA", str(tmp_path))
    return tmp_path


def trial(dataset: str = "npz:mine.npz", **changes: object) -> Trial:
    settings = {"method": "supervised", "network": "small_convnet", "epochs": 1, "steps": 1} | changes
    return Trial(dataset=dataset, **settings)


def refused(action: Callable[[], object], *words: str) -> None:
    with pytest.raises(DataError) as error:
        action()
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ": " in text and ". " not in text, text
    for word in words:
        assert word in text, text


# ---- .npz


def test_columns_of_an_npz_lie_beside_the_true_labels(root: Path) -> None:
    write(root, y_train_given=WRONG, y_train_given_anna=SOME.astype(np.int8), x_unlabelled=images(5, seed=2))
    mine = data.load("npz:mine.npz")
    assert mine.truth_known and mine.train_labels.tolist() == [*TRUE, *[-1] * 5]
    assert {name: labels.tolist() for name, labels in mine.given.items()} == {
        "given": [*WRONG, *[-1] * 5],
        "anna": [*SOME, *[-1] * 5],
    }
    assert data.given_labels(mine, "anna").dtype == np.int64


def test_a_column_is_part_of_its_own_trials_only(root: Path) -> None:
    write(root, y_train_given_anna=SOME, y_train_given_ben=WRONG)
    trials = [trial(), *(trial(noise=Noise("given", column=name)) for name in ("anna", "ben"))]
    before = [Current().sources(of_trial) for of_trial in trials]
    assert len({sources.data_hash for sources in before}) == 1, "the same images and true labels"
    assert len({sources.sources_hash for sources in before}) == 3
    write(root, y_train_given_anna=SOME, y_train_given_ben=TRUE)
    after = [Current().sources(of_trial) for of_trial in trials]
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, True, False]


def test_a_trial_is_trained_on_given_labels_and_judged_by_true_ones(root: Path) -> None:
    write(root, y_train_given=WRONG)
    (row,) = run(trial(noise=Noise("given")))
    assert row.facts["noise_realised"] == pytest.approx(0.3) and row.facts["labels"] == 60
    assert ("oracle", "accuracy") in row.metrics and ("oracle", "memorised") in row.metrics
    named, human = (next(run(trial(noise=Noise(kind, column="given")))) for kind in ("given", "human"))
    assert named.facts == human.facts == row.facts and named.metrics == human.metrics == row.metrics


def test_images_without_a_given_label_are_unlabelled(root: Path) -> None:
    write(root, y_train_given=SOME)
    row = next(run(trial(noise=Noise("given"), validation=Validation(9), probe=6)))
    assert row.facts["labels"] + row.facts["unlabelled"] == 45
    everything = next(run(trial(noise=Noise("given"))))
    assert (everything.facts["labels"], everything.facts["unlabelled"]) == (45, 15)
    assert everything.facts["noise_realised"] == 0


# ---- the truth is not known


def test_without_true_labels_there_is_nothing_of_the_oracle(root: Path) -> None:
    write(root, y_train=None, y_train_given=WRONG)
    methods: list[dict[str, object]] = [
        {"method": "supervised"},
        {"method": {"name": "dividemix", "warm_up": 1}, "epochs": 2},
        {"method": "loss_correction", "epochs": 2},
    ]
    for changes in methods:
        for row in run(trial(noise=Noise("given"), validation=Validation(9, labels="noisy"), **changes)):
            assert row.facts["noise_realised"] is None and row.facts["transition"] is None
            assert not [name for name in (*row.metrics, *row.arrays) if name[0] == "oracle"]
            assert ("test", "accuracy") in row.metrics and ("validation", "accuracy") in row.metrics


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ["not known", "noise.kind 'given'"]),
        ({"noise": Noise("symmetric", 0.2)}, ["not known", "noise.kind 'given'"]),
        ({"noise": Noise("given"), "probe": 6}, ["6 training images with true labels", "has 0"]),
        ({"noise": Noise("given"), "validation": Validation(6)}, ["validation.labels 'noisy'"]),
        ({"noise": Noise("given", column="anna")}, ["no given labels 'anna'", "given"]),
    ],
)
def test_what_needs_true_labels_is_refused_before_training(root: Path, changes: dict, words: list[str]) -> None:
    write(root, y_train=None, y_train_given=WRONG)
    refused(lambda: list(run(trial(**changes))), *words)
    with pytest.raises(Unfit, match="Arm 'plain'"):
        check([Planned(trial(**changes), "plain", "{}")], None, read=True)


def test_clean_images_serve_validation_and_probe(root: Path) -> None:
    clean = np.arange(24) % 3
    write(root, y_train=None, y_train_given=WRONG, x_clean=images(24, seed=3), y_clean=clean)
    row = next(run(trial(noise=Noise("given"), validation=Validation(9), probe=6, method="learning_to_reweight")))
    assert row.facts["labels"] == 60 and row.facts["unlabelled"] == 9, "what is left of the clean ones"
    assert row.facts["noise_realised"] is None and not [name for name in row.metrics if name[0] == "oracle"]
    refused(lambda: list(run(trial(noise=Noise("given"), probe=30))), "ask for 30", "has 24")
    only_clean = next(run(trial(noise=Noise("symmetric", 0.5))))
    assert (only_clean.facts["labels"], only_clean.facts["unlabelled"]) == (24, 60)
    assert only_clean.facts["noise_realised"] == 0.5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"y_train": None}, ["lacks y_train", "y_train_given"]),
        ({"y_train_given": WRONG[:59]}, ["60 images", "y_train_given has 59 labels"]),
        ({"y_train_given": np.stack([WRONG, SOME], 1)}, ["y_train_given_NAME"]),
        ({"y_train_given": WRONG + 1}, ["'given'", "label 3", "0..2"]),
        ({"y_train_given_": WRONG}, ["called ''"]),
        ({"y_train_given": WRONG - 2}, ["from -2"]),
        ({"y_train_given": np.full(60, -1)}, ["no training image has a given label 'given'"]),
        ({"x_clean": images(3), "y_clean": np.arange(3)}, ["x_clean beside y_train"]),
        ({"y_train": None, "y_train_given": WRONG, "x_clean": images(3)}, ["x_clean but not the other"]),
        (
            {"y_train": None, "y_train_given": WRONG, "x_clean": images(3), "y_clean": np.arange(2)},
            ["3 images", "2 la"],
        ),
    ],
)
def test_npz_with_labels_that_do_not_fit(root: Path, changes: dict, words: list[str]) -> None:
    write(root, class_names=["a", "b", "c"], **changes)
    refused(lambda: data.load("npz:mine.npz"), *words)


def test_a_column_must_be_named_where_there_are_several(root: Path) -> None:
    write(root, y_train_given_anna=SOME, y_train_given_ben=WRONG)
    refused(lambda: data.given_labels(data.load("npz:mine.npz"), ""), "noise.column", "anna, ben")

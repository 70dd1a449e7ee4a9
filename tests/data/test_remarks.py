"""What is odd about images is counted and told when they are read, and stays with the cache and with the plan."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnl import Study, Trial, data
from lnl.cli.main import main
from lnl.data import dataset, progress
from lnl.study.plan import plan_row


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def write(root: Path, x_train: np.ndarray, x_test: np.ndarray, y_test: object = None) -> None:
    labels = np.arange(len(x_train)) % 3
    of_test = np.arange(len(x_test)) % 3 if y_test is None else y_test
    np.savez(root / "mine.npz", x_train=x_train, y_train=labels, x_test=x_test, y_test=of_test)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LNL_DATA", str(tmp_path))
    return tmp_path


def test_images_in_order_are_not_remarked_on(root: Path) -> None:
    write(root, images(1200), images(30, seed=1))
    assert data.load("npz:mine.npz").remarks == ()


def test_copies_and_images_of_both_splits_are_counted(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    train, test = images(1200), images(30, seed=1)
    train[600], train[1100], train[1101] = train[0], train[7], train[0]  # in chunks of 512; classes 0, 2 (of 1), 0
    test[3], test[5], test[6] = test[0], train[3], train[600]
    write(root, train, test)
    expected = (
        "3 of 1,200 training images are equal to an earlier one, 1 of them with another class "
        "(as number 0 and number 600).",
        "1 of 30 test images is equal to an earlier one (as number 0 and number 3).",
        "2 of 30 test images are among the training images as well, which flatters accuracy (as number 5 is number 3).",
    )
    assert 1100 % 3 != 7 % 3 and 600 % 3 == 0 == 1101 % 3
    assert data.load("npz:mine.npz").remarks == expected
    assert all(sentence in caplog.text for sentence in expected)
    caplog.clear()
    assert data.load("npz:mine.npz").remarks == expected and not caplog.records, "told once, kept in the cache"


def test_values_and_classes_that_are_missing(root: Path) -> None:
    train = (images(60) > 127).astype(np.uint8)
    train[5] = 0
    write(root, train, images(8, seed=1), y_test=[0] * 8)
    assert data.load("npz:mine.npz").remarks == (
        "No test image is of 2 classes: 1, 2.",
        "No pixel of the training images is above 1 of 255: were they scaled?",
        "1 of 60 training images is of one value only.",
    )


def test_sizes_modes_and_rows_of_a_folder(root: Path) -> None:
    for number in range(12):
        split, name = "train" if number < 8 else "test", "ab"[number % 2]
        path = root / "pets" / split / name / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.random.default_rng(number).integers(0, 256, (20 + number, 30), dtype=np.uint8))
        (grey if number < 5 else grey.convert("RGB")).save(path)
    (root / "pets" / "labels.csv").write_text("file,label\ntrain/a/0.png,b\ntrain/b/1.png,b\n", encoding="utf-8")
    assert data.load("folder:pets?size=24").remarks == (
        "Images are of 12 sizes, from 30 × 20 to 30 × 31 pixels: all were brought to 24 × 24.",
        "4 of 12 images were smaller than that and are enlarged.",
        "5 of 12 images are grey, the others in colour: all are read as RGB.",
        "6 of 8 training images have no row in labels.csv.",
    )


def test_a_plan_records_the_remarks_of_its_data(root: Path) -> None:
    train = images(60)
    train[1] = train[0]
    write(root, train, images(6, seed=1))
    base = Trial(method="supervised", dataset="npz:mine.npz", network="small_convnet", epochs=1, steps=1)
    study = Study(name="own", question="?", base=base, arms={"plain": {}, "gce": {"method": "gce"}})
    remarks = json.loads(plan_row(study.plan(), None)["data_remarks"])
    assert remarks == {"npz:mine.npz": list(data.load("npz:mine.npz").remarks)}
    assert "1 of 60 training images is equal to an earlier one" in remarks["npz:mine.npz"][0]


def test_doctor_tells_the_remarks_on_data_sets_of_the_cache(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = images(60)
    train[1] = train[0]
    write(root, train, images(6, seed=1))
    (remark,) = data.load("npz:mine.npz").remarks
    data.load("digits")
    (root / "cache" / "damaged").mkdir()
    (root / "cache" / "damaged" / "dataset.json").write_text("[", encoding="utf-8")
    main(["doctor", "--storage", str(root / "results"), "--json"])
    assert json.loads(capsys.readouterr().out)["data"] == {"npz:mine.npz": [remark]}
    main(["doctor", "--storage", str(root / "results")])
    assert f"npz:mine.npz: {remark}" in capsys.readouterr().out.splitlines()
    (root / "mine.npz").unlink()
    main(["doctor", "--storage", str(root / "results"), "--json"])
    assert json.loads(capsys.readouterr().out)["data"] == {}, "its file is gone"


def test_a_long_reading_tells_how_far_it_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(root, images(60), images(6, seed=1))
    data.load("npz:mine.npz")
    assert capsys.readouterr().err == "", "it takes less than ten seconds"
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(dataset, "CHUNK", 20)
    write(root, images(60, seed=2), images(6, seed=1))
    assert data.load("npz:mine.npz").train_images.shape[0] == 60
    told = [line.rpartition(", ")[0] for line in capsys.readouterr().err.splitlines()]
    assert told == [f"npz:mine.npz: images of the train split that are read: {n} of 60" for n in (20, 40)]

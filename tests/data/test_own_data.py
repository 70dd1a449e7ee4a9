"""A data set as a function of the user's own: called where the cache lacks it, known by what it returns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lnl import Noise, Trial, data, run
from lnl.data import DataError, from_arrays
from lnl.system import user_code
from lnl.trial.provenance import Current

TEXT = """
import numpy as np
from lnl.data import from_arrays

FILES = ["shift.txt"]

def dataset():
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    shift = int(open("shift.txt").read())
    images = generator.integers(0, 200, (72, 8, 8), dtype=np.uint8) + np.uint8(shift)
    return from_arrays(
        x_train=images[:60], y_train=labels, x_test=images[60:], y_test=labels[:12],
        given={"anna": np.roll(labels, 1)}, class_names=["a", "b", "c"],
    )

def broken():
    return 1 / 0

def other():
    return 7

def wrong():
    return from_arrays(x_train=np.zeros((4, 8, 8)), y_train=[0, 1, 0, 1], x_test=np.zeros((4, 8, 8)), y_test=[0, 1])
"""


@pytest.fixture
def folder(own_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LNL_DATA", str(own_folder / "data"))
    (own_folder / "my_images.py").write_text(TEXT, encoding="utf-8")
    (own_folder / "shift.txt").write_text("0", encoding="utf-8")
    return own_folder


def trial(dataset: str = "my_images.py", **changes: object) -> Trial:
    settings = {"method": "supervised", "network": "small_convnet", "epochs": 1, "steps": 1} | changes
    return Trial(dataset=dataset, **settings)


def refused(name: str, *words: str) -> None:
    with pytest.raises(DataError) as error:
        data.load(name)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ": " in text, text
    for word in words:
        assert word in text, text


def test_a_function_is_a_data_set(folder: Path) -> None:
    ours = data.load("my_images.py")
    assert ours.class_names == ("a", "b", "c") and ours.train_images.shape == (60, 1, 8, 8)
    assert ours.given["anna"].tolist() == np.roll(np.arange(60) % 3, 1).tolist()
    row = next(run(trial("my_images.py:dataset", noise=Noise("given"))))
    assert row.facts["noise_realised"] == 1 and row.facts["data_hash"] == ours.checksum


def test_it_is_known_by_what_it_returns(folder: Path) -> None:
    before, trained = data.load("my_images.py"), Current().sources(trial())
    made = user_code.load("my_images.py:dataset")()
    assert (made.checksum, made.mean, made.std) == (before.checksum, before.mean, before.std), "as the cache has it"
    (folder / "shift.txt").write_text("1", encoding="utf-8")
    after = Current().sources(trial())
    assert after.code_hash == trained.code_hash and after.data_hash != trained.data_hash
    assert data.load("my_images.py").train_images[0, 0, 0, 0] == before.train_images[0, 0, 0, 0] + 1
    (folder / "shift.txt").unlink()
    refused("my_images.py", "shift.txt", "cannot be read")


def test_what_is_no_data_set_is_refused(folder: Path) -> None:
    refused("my_images.py:broken", "my_images.py:broken makes no data set", "ZeroDivisionError")
    refused("my_images.py:other", "must return a Dataset", "int")
    refused("my_images.py:wrong", "my_images.py:wrong: from_arrays(…): x_train is float64(4, 8, 8)")
    refused("my_images.py:none", "no 'none'")
    with pytest.raises(ValueError, match=r"no_such\.py"):
        trial("no_such.py")
    (folder / "nothing_in_it.py").write_text("x = 1", encoding="utf-8")
    refused("nothing_in_it.py", "no function 'dataset'")


def test_arrays_of_an_unknown_truth() -> None:
    images, labels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8), np.arange(30) % 3
    ours = from_arrays(
        x_train=images[:20],
        given={"given": labels[:20]},
        x_test=images[20:],
        y_test=labels[20:],
        x_clean=images[:3],
        y_clean=labels[:3],
        flip=False,
    )
    assert not ours.truth_known and not ours.flip and list(ours.given) == ["given"]
    assert ours.train_labels.tolist() == [*[-1] * 20, 0, 1, 2]

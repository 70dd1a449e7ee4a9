"""WebVision and Food-101N: small folders of the published layout, read on demand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnl import Noise, Trial, data, run
from lnl.data import DataError
from lnl.data.files import ImageFiles
from lnl.trial.run import Execution


def picture(path: Path, label: int, side: int = 16) -> None:
    """A plain image, whose red tells its class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (side + 4, side), (4 * label, 100, 50)).save(path)


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


@pytest.fixture
def webvision(tmp_path: Path) -> Path:
    """52 classes: of each two images of Google, one of Flickr, one to test on, and ImageNet's."""
    folder, info = tmp_path / "webvision", tmp_path / "webvision" / "info"
    synsets = [f"n{label:08d}" for label in range(52)]
    lines(info / "synsets.txt", *(f"{synset} crane, a bird" for synset in synsets))
    for search, count in (("google", 2), ("flickr", 1)):
        names = [(f"{search}/q{label:04d}/{n}.jpg", label) for label in range(52) for n in range(count)]
        for name, label in names:
            picture(folder / name, label)
        lines(info / f"train_filelist_{search}.txt", *(f"{name} {label}" for name, label in names))
    for label, synset in enumerate(synsets):
        picture(folder / "val_images_256" / f"val{label:06d}.jpg", label)
        picture(tmp_path / "imagenet" / "val" / synset / "a.JPEG", label)
        if label < 2:
            for number in range(12):
                picture(tmp_path / "imagenet" / "train" / synset / f"{number:02d}.JPEG", label)
    lines(info / "val_filelist.txt", *(f"val{label:06d}.jpg {label}" for label in range(52)))
    return tmp_path


def seen(dataset: data.Dataset, index: list[int]) -> list[int]:
    """The classes of training images by their colour."""
    red = dataset.train_images[np.array(index)][:, 0].mean((1, 2))
    return np.rint(red / 4).astype(int).tolist()


def test_webvision_mini_is_the_first_fifty_classes_of_google(webvision: Path) -> None:
    mini = data.load("webvision_mini?size=8", webvision)
    assert isinstance(mini.train_images, ImageFiles) and mini.shape == (3, 8, 8)
    assert len(mini.class_names) == 50 and mini.class_names[1] == "crane n00000001"
    web = mini.given["web"]
    assert web[:100].tolist() == [label for label in range(50) for _ in range(2)] and (web[100:] == -1).all()
    assert (mini.train_labels[:100] == -1).all() and not mini.truth_known
    assert mini.train_labels[100:].tolist() == [0] * 10 + [1] * 10, "ten trusted images a class, where there are some"
    assert mini.train_files is not None and mini.train_files[3] == "webvision/google/q0001/1.jpg"
    assert mini.train_files[100] == "imagenet/train/n00000000/00.JPEG"
    assert seen(mini, [0, 3, 99, 100, 119]) == [0, 1, 49, 0, 1]
    assert mini.test_labels.tolist() == list(range(50)) and mini.mean == (0.485, 0.456, 0.406)


def test_webvision_has_both_searches_and_another_test_set_on_request(webvision: Path) -> None:
    full = data.load("webvision?size=8&test=imagenet", webvision)
    assert len(full.class_names) == 52 and (full.given["web"] >= 0).sum() == 3 * 52
    assert seen(full, [104, 155]) == [0, 51] and full.test_files is not None
    assert full.test_files[2] == "imagenet/val/n00000002/a.JPEG" and full.test_labels[2] == 2


def test_webvision_is_trained_on_with_its_trusted_images(webvision: Path) -> None:
    trial = Trial(
        method="ieg",
        dataset="webvision_mini?size=8",
        network="small_convnet",
        noise=Noise("given"),
        probe=20,
        epochs=1,
        steps=2,
    )
    trial = trial.override({"method.batch_size": 4, "method.probe_batch_size": 4})
    (row,) = run(trial, Execution(device="cpu", data=webvision))
    assert row.facts["labels"] == 100 and row.facts["classes"] == 50
    assert 0 <= row.metrics["test", "accuracy"] <= row.metrics["test", "top5_accuracy"] <= 1


@pytest.fixture
def food(tmp_path: Path) -> Path:
    release, old = tmp_path / "Food-101N_release", tmp_path / "food-101"
    classes = ["apple_pie", "baklava", "waffles"]
    lines(release / "meta" / "classes.txt", "class_name", *classes)
    names = [f"{name}/{number}.jpg" for name in classes for number in range(3)]
    lines(release / "meta" / "imagelist.tsv", "class_name/key", *names)
    lines(
        release / "meta" / "verified_train.tsv",
        "class_name/key\tverification_label",
        f"{names[1]}\t1",
        f"{names[4]}\t0",
    )
    lines(old / "meta" / "test.txt", *(f"{name}/1" for name in classes))
    for label, name in enumerate(classes):
        picture(old / "images" / name / "1.jpg", label)
        for number in range(3):
            picture(release / "images" / name / f"{number}.jpg", label)
    return tmp_path


def test_food101n_knows_the_truth_where_people_found_the_label_right(food: Path) -> None:
    dishes = data.load("food101n?size=8", food)
    assert dishes.class_names == ("apple_pie", "baklava", "waffles")
    assert dishes.given["web"].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dishes.train_labels.tolist() == [-1, 0, -1, -1, -1, -1, -1, -1, -1]
    assert dishes.test_labels.tolist() == [0, 1, 2] and seen(dishes, [0, 4, 8]) == [0, 1, 2]
    assert dishes.train_files is not None and dishes.train_files[4] == "images/baklava/1.jpg"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("webvision_mini?side=8", r"'side=8' is not an option of it: write for example \?size=299\."),
        ("webvision?size=4", "'size=4' is not an option"),
        ("webvision", "there is no 'webvision' in"),
        ("food101n", "there is no 'Food-101N_release' in"),
    ],
)
def test_what_cannot_be_is_said(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        data.load(name, tmp_path)


def test_lists_that_are_damaged_are_named(webvision: Path, food: Path) -> None:
    lines(webvision / "webvision" / "info" / "val_filelist.txt", "val000000.jpg 0", "val000001.jpg")
    with pytest.raises(DataError, match=r"val_filelist\.txt, line 2: 'val000001\.jpg' is not a file and its class"):
        data.load("webvision_mini?size=8", webvision)
    (webvision / "webvision" / "info" / "train_filelist_google.txt").unlink()
    with pytest.raises(DataError, match=r"train_filelist_google\.txt cannot be read"):
        data.load("webvision_mini?size=8", webvision)
    lines(food / "food-101" / "meta" / "test.txt", "pizza/1")
    with pytest.raises(DataError, match=r"test\.txt names the class 'pizza', which classes\.txt does not have"):
        data.load("food101n?size=8", food)


def test_options_belong_to_data_sets_that_have_some() -> None:
    assert data.is_known("webvision?size=299") and data.is_known("folder:x?size=8") and data.is_known("digits")
    assert not data.is_known("digits?size=8") and not data.is_known("digits:8") and not data.is_known("npz")

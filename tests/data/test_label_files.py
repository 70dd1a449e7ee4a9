"""A table of labels beside a folder of real image files: read as people write it, refused in one sentence each."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lnl import Noise, Trial, data, run
from lnl.data import DataError
from lnl.data import files as reader

CLASSES = ("Ameise", "Bär", "Käfer")
ALL = [f"{split}/{name}/bild {i}.png" for split in ("train", "test") for name in CLASSES for i in range(10)]
TRAIN = ALL[:30]


def draw(path: Path, number: int) -> None:
    """A picture of its own size, mode and colours."""
    generator = np.random.default_rng(number)
    mode = ("RGB", "L", "RGBA", "P", "CMYK")[number % 5]
    pixels = generator.integers(0, 256, (12 + number % 7, 14 + number % 3, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, "tiff")


def wrong_labels() -> list[str]:
    """Of the training images in order: three of ten have the next class."""
    return [CLASSES[(i // 10 + (i % 10 < 3)) % 3] for i in range(30)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LNL_DATA", str(tmp_path))
    for number, name in enumerate(ALL):
        draw(tmp_path / "pets" / name, number)
    return tmp_path / "pets"


def flat(folder: Path) -> None:
    """The images of train without their folders: 0.png … 29.png."""
    for number, name in enumerate(TRAIN):
        (folder / name).rename(folder / "train" / f"{number}.png")
    for name in CLASSES:
        (folder / "train" / name).rmdir()


def table(folder: Path, **columns: object) -> Path:
    path = folder / "labels.csv"
    pd.DataFrame({"file": TRAIN, "label": wrong_labels()} | columns).to_csv(path, index=False)
    return path


def refused(name: str, *words: str) -> None:
    with pytest.raises(DataError) as error:
        data.load(name)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ": " in text and ". " not in text, text
    for word in words:
        assert word in text, text


def trial(dataset: str, **changes: object) -> Trial:
    settings = {"method": "supervised", "network": "small_convnet", "epochs": 1, "steps": 1} | changes
    return Trial(dataset=dataset, **settings)


def test_a_table_of_given_labels_beside_true_folders(folder: Path) -> None:
    table(folder)
    pets = data.load("folder:pets?size=8")
    assert pets.class_names == CLASSES and pets.truth_known
    assert pets.train_files == tuple(TRAIN) and pets.test_files == tuple(ALL[30:])
    assert [pets.class_names[label] for label in pets.given["label"]] == wrong_labels()
    assert pets.train_labels.tolist() == [i // 10 for i in range(30)]
    row = next(run(trial("folder:pets?size=8", noise=Noise("given"))))
    assert row.facts["noise_realised"] == pytest.approx(0.3)


@pytest.mark.parametrize("kind", ["semicolon", "tab", "parquet", "bom and backslashes", "decomposed"])
def test_tables_as_people_have_them(folder: Path, kind: str) -> None:
    """From other programs, other systems, and in the other way to write an umlaut."""
    path = table(folder, label_2=["", *wrong_labels()[1:]], note="x")
    frame = pd.read_csv(path, keep_default_na=False)
    if kind == "parquet":
        path.unlink()
        frame.replace("", None).to_parquet(folder / "labels.parquet")
    elif kind == "bom and backslashes":
        frame["file"] = ".\\" + frame["file"].str.replace("/", "\\")
        frame.to_csv(path, index=False, encoding="utf-8-sig", lineterminator="\r\n")
    elif kind == "decomposed":
        path.write_text(unicodedata.normalize("NFD", path.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        frame.to_csv(path, index=False, sep=";" if kind == "semicolon" else "\t")
    pets = data.load("folder:pets?size=8")
    assert [pets.class_names[label] for label in pets.given["label"]] == wrong_labels()
    assert pets.given["label_2"].tolist() == [-1, *pets.given["label"][1:]]


def test_new_labels_are_read_without_decoding_the_images_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, decoded, decode = table(folder), [], reader.read_square

    def counted(path: Path, size: int, mode: str) -> np.ndarray:
        decoded.append(path)
        return decode(path, size, mode)

    monkeypatch.setattr(reader, "read_square", counted)
    before = data.load("folder:pets?size=8")
    images = np.array(before.train_images), np.array(before.test_images)
    assert len(decoded) == len(ALL)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:-1], f"{TRAIN[-1]},{CLASSES[0]}\n"]), encoding="utf-8")
    after = data.load("folder:pets?size=8")
    assert len(decoded) == len(ALL) and (after.given["label"][-1], before.given["label"][-1]) == (0, 2)
    assert np.array_equal(after.train_images, images[0]) and np.array_equal(after.test_images, images[1])
    assert (after.checksum, after.remarks) == (before.checksum, before.remarks)

    cached = next(folder.parent.glob("cache/*/test_images.npy"))
    damaged = bytearray(cached.read_bytes())
    damaged[-1] ^= 1
    cached.write_bytes(damaged)
    path.write_text("".join(lines), encoding="utf-8")
    assert np.array_equal(data.load("folder:pets?size=8").test_images, images[1])
    assert len(decoded) == 2 * len(ALL), "images of a damaged cache are decoded again"

    draw(folder / TRAIN[3], 99)
    assert not np.array_equal(data.load("folder:pets?size=8").train_images[3], images[0][3])
    assert len(decoded) == 3 * len(ALL), "an image has changed"


def test_without_folders_the_table_alone_says_what_is_known(folder: Path) -> None:
    flat(folder)
    clean = [CLASSES[i // 10] if i % 2 else "" for i in range(30)]
    pd.DataFrame({"file": [f"train/{i}.png" for i in range(30)], "label": wrong_labels()}).to_csv(
        folder / "labels.csv", index=False
    )
    unknown = data.load("folder:pets?size=8")
    assert not unknown.truth_known and (unknown.train_labels == -1).all() and unknown.class_names == CLASSES
    row = next(run(trial("folder:pets?size=8", noise=Noise("given"))))
    assert row.facts["noise_realised"] is None and row.facts["labels"] == 30
    pd.DataFrame({"file": [f"train/{i}.png" for i in range(30)], "label": wrong_labels(), "clean": clean}).to_csv(
        folder / "labels.csv", index=False
    )
    partly = data.load("folder:pets?size=8")
    names = [pets_class for pets_class in np.array([*CLASSES, ""])[partly.train_labels]]
    order = sorted(range(30), key=lambda i: f"{i}.png")
    assert names == [clean[i] for i in order] and not partly.truth_known
    row = next(run(trial("folder:pets?size=8", noise=Noise("given"), probe=6, method="glc", epochs=2)))
    assert row.facts["labels"] == 24 and row.facts["noise_realised"] is None


def test_folders_may_be_what_people_gave_and_others_be_clean(folder: Path) -> None:
    for number, name in enumerate(CLASSES * 2):
        draw(folder / "clean" / name / f"{number}.tif", 100 + number)
    refused("folder:pets?size=8", "clean", "labels=given")
    pets = data.load("folder:pets?size=8&labels=given")
    assert pets.given["folder"].tolist() == [*(i // 10 for i in range(30)), *[-1] * 6]
    assert pets.train_labels.tolist() == [*[-1] * 30, 0, 0, 1, 1, 2, 2] and not pets.truth_known
    row = next(run(trial("folder:pets?size=8&labels=given", noise=Noise("given"), probe=6, method="glc", epochs=2)))
    assert (row.facts["labels"], row.facts["unlabelled"]) == (30, 0)


def test_another_label_is_another_column_of_the_same_images(folder: Path) -> None:
    path = table(folder)
    before = data.load("folder:pets?size=8")
    text = path.read_text(encoding="utf-8").replace(f"{TRAIN[0]},Bär", f"{TRAIN[0]},Käfer")
    path.write_text(text, encoding="utf-8")
    after = data.load("folder:pets?size=8")
    assert before.checksum == after.checksum and (before.given["label"][0], after.given["label"][0]) == (1, 2)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (
            {"file": ["train/Ameise/none.png", *TRAIN[1:]]},
            ["line 2", "no image 'train/Ameise/none.png'", "without one: 1)"],
        ),
        ({"file": [TRAIN[1], *TRAIN[1:]]}, ["line 3", TRAIN[1], "(line 2)", "a column"]),
        ({"label": ["Katze", *wrong_labels()[1:]]}, ["line 2", "'label' is 'Katze'", "Ameise, Bär, Käfer"]),
        ({"clean": "Bär"}, ["line 2", "'clean'", "labels=given"]),
        ({"label": None}, ["no training image has a given label 'label'"]),
    ],
)
def test_tables_that_do_not_fit_their_images(folder: Path, columns: dict, words: list[str]) -> None:
    table(folder, **columns)
    refused("folder:pets?size=8", *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,label\ntrain/x.png,B", ["columns name, label", "file,label"]),
        (b"file,kind\n", ["columns file, kind"]),
        (b"", ["(none)"]),
        (b"file,label,label\n", ["two columns 'label'"]),
        (b"file,label\na,b,c\n", ["line 2", "3 cells", "has 2"]),
        ("file,label\ntrain/x.png,Bär".encode("latin-1"), ["not UTF-8", "CSV UTF-8"]),
        (b'file,label\n"a,b\n', ["cannot be read as CSV"]),
    ],
)
def test_tables_that_cannot_be_read(folder: Path, content: bytes, words: list[str]) -> None:
    (folder / "labels.csv").write_bytes(content)
    refused("folder:pets?size=8", "labels.csv", *words)
    (folder / "labels.parquet").write_bytes(content)
    refused("folder:pets?size=8", "both labels.csv and labels.parquet")
    (folder / "labels.csv").unlink()
    refused("folder:pets?size=8", "cannot be read as parquet")


def test_layouts_that_leave_classes_open(folder: Path) -> None:
    (folder / "test" / CLASSES[0] / "bild 0.png").write_bytes(b"no image")
    refused("folder:pets?size=8", "bild 0.png cannot be used as an image")
    draw(folder / "test" / CLASSES[0] / "bild 0.png", 1)
    refused("folder:pets?size=8&label=given", "'label=given' is not an option")
    flat(folder)
    refused("folder:pets?size=8", "no folders of classes", "labels.csv")
    refused("folder:pets?size=8&labels=given", "no folders of classes")
    names = [f"train/{i}.png" for i in range(30)]
    table(folder, file=names)
    refused("folder:pets?size=8&labels=given", "leave it out")
    for name in CLASSES:
        for path in (folder / "test" / name).iterdir():
            path.rename(folder / "test" / f"{name} {path.name}")
        os.rmdir(folder / "test" / name)
    refused("folder:pets?size=8", "name no true class")
    table(folder, file=[*names[:29], "test/Bär bild 1.png"], clean=[""] * 29 + ["Bär"], label=["Bär"] * 30)
    refused("folder:pets?size=8", "has no class", "'clean'")

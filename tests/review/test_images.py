"""Images of a user and their labels, before anything is read: folders, tables, data sets, and what is refused."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lnl.data import DataError
from lnl.review.images import FOLDER, open_images
from lnl.review.labels import check, given_labels


def picture(path: Path, colour: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (12, 10), colour).save(path)


def test_folders_say_classes(photos: Callable[..., Path]) -> None:
    folder = photos()
    (folder / "notes.txt").write_text("no image", encoding="utf-8")
    (folder / ".hidden.png").write_bytes(b"")
    images = open_images(str(folder))
    assert len(images.files) == 25 and images.class_names == ("eins", "null", "zwölf")
    assert images.files == tuple(sorted(images.files)) and "eins/größe 0 3.png" in images.files
    assert images.remarks == ("Files that are passed over, being no images by their ending: 1.",)
    given = given_labels(images, None, None)
    assert list(given.columns) == [FOLDER]
    expected = [images.class_names.index(file.partition("/")[0]) for file in images.files]
    assert given.columns[FOLDER].tolist() == expected
    place = images.files.index("eins/größe 0 3.png")
    assert images.path(place) == folder / "eins/größe 0 3.png"
    with images.open(place) as shown:
        assert shown.size == (8, 8)
    later = images.at(np.array([3, 1]))
    assert later.files == (images.files[3], images.files[1]) and later.labels[FOLDER].tolist() == [
        expected[3],
        expected[1],
    ]


def test_a_loop_of_links_is_entered_once(tmp_path: Path) -> None:
    picture(tmp_path / "all" / "cat" / "1.png")
    (tmp_path / "all" / "cat" / "again").symlink_to(tmp_path / "all")
    picture(tmp_path / "elsewhere" / "2.png")
    (tmp_path / "all" / "dog").symlink_to(tmp_path / "elsewhere")
    assert open_images(str(tmp_path / "all")).files == ("cat/1.png", "dog/2.png")


def test_an_output_folder_among_the_images_is_passed_over(tmp_path: Path) -> None:
    picture(tmp_path / "cat" / "1.png")
    picture(tmp_path / "all-errors" / "images" / "0.png")
    assert len(open_images(str(tmp_path)).files) == 2
    (tmp_path / "all-errors" / "about.json").write_text("{}", encoding="utf-8")
    assert open_images(str(tmp_path)).files == ("cat/1.png",)


def test_a_table_says_labels(tmp_path: Path) -> None:
    """Of files in one folder, or in folders that are not called like its classes; in either writing of an umlaut."""
    for name in ("batch1/a.png", "batch1/ü.png", "batch2/c.png"):
        picture(tmp_path / "images" / name)
    table = tmp_path / "some.csv"
    umlaut = unicodedata.normalize("NFD", "batch1/ü.png")
    table.write_text(f"file,label\n{umlaut},dog\nbatch2/c.png,cat\n", encoding="utf-8")
    given = given_labels(open_images(str(tmp_path / "images")), table, None)
    assert given.class_names == ("cat", "dog") and given.columns["label"].tolist() == [-1, 1, 0]
    beside = tmp_path / "images" / "labels.csv"
    beside.write_text(table.read_text(encoding="utf-8"), encoding="utf-8")
    assert given_labels(open_images(str(tmp_path / "images")), None, None).columns["label"].tolist() == [-1, 1, 0]
    images = open_images(str(beside))
    assert images.files == ("batch1/ü.png", "batch2/c.png"), "a table may name the images itself"
    assert given_labels(images, None, None).columns["label"].tolist() == [1, 0]


def test_several_columns_are_several_annotators(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        picture(tmp_path / name)
    table = tmp_path / "said.csv"
    table.write_text("file;label_ann;label_bob;other\ncat/1.png;dog;;cat\ndog/2.png;dog;cat;cat\n", encoding="utf-8")
    images = open_images(str(tmp_path))
    assert {name: column.tolist() for name, column in given_labels(images, table, None).columns.items()} == {
        "label_ann": [1, 1],
        "label_bob": [-1, 0],
    }
    assert given_labels(images, table, "other").columns["other"].tolist() == [0, 0]
    assert [*given_labels(images, table, FOLDER).columns] == [FOLDER]
    with pytest.raises(DataError, match="has no column 'carl': choose label_ann or label_bob, or add it"):
        given_labels(images, table, "carl")


def test_a_data_set_has_columns_or_its_own_labels(tmp_path: Path) -> None:
    images, labels = np.zeros((6, 8, 8), np.uint8), np.array([0, 1, 0, 1, 1, 0])
    arrays = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "true.npz", **arrays)
    opened = open_images(str(tmp_path / "true.npz"), tmp_path)
    assert opened.files == ("0", "1", "2", "3", "4", "5") and opened.path(0) is None
    assert opened.open(0).size == (8, 8)
    assert given_labels(opened, None, None).columns["label"].tolist() == labels.tolist()
    with pytest.raises(DataError, match="has no labels 'ann': choose label"):
        given_labels(opened, None, "ann")
    np.savez(tmp_path / "given.npz", y_train_given_ann=1 - labels, y_train_given_bob=labels, **arrays)
    assert [*given_labels(open_images(f"npz:{tmp_path}/given.npz", tmp_path), None, None).columns] == ["ann", "bob"]
    table = tmp_path / "few.csv"
    table.write_text("file,label\n4,0\n2,1\n")
    assert given_labels(opened, table, None).columns["label"].tolist() == [-1, -1, 1, -1, 0, -1]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("file,label\ncat/9.png,cat\n", r"line 2: there is no image 'cat/9.png' in .* \(rows without one: 1\): write"),
        (
            "file,label\ncat/1.png,cat\ndog/2.png,mouse\n",
            "line 3: 'label' is 'mouse', which is none of the classes cat",
        ),
        ("file,label\ncat/1.png,\n", "gives no image a label: fill the column label"),
        ("file,label\ncat/1.png,cat\ncat/1.png,dog\n", "'cat/1.png' has a row before"),
        ("name,label\ncat/1.png,cat\n", "needs 'file' and 'label'"),
    ],
)
def test_tables_that_do_not_fit(table: str, sentence: str, tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/2.png"):
        picture(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        given_labels(open_images(str(tmp_path / "images")), tmp_path / "labels.csv", None)


def test_what_is_no_set_of_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no images, in it or below"):
        open_images(str(tmp_path))
    picture(tmp_path / "1.png")
    with pytest.raises(DataError, match="has no labels: put the images into folders of classes, or say them with"):
        given_labels(open_images(str(tmp_path)), None, None)
    (tmp_path / "all.csv").write_text("file,label\n1.png,cat\n2.png,dog\n")
    with pytest.raises(DataError, match=r"line 3: there is no file '2.png' \(rows without one: 1\)"):
        open_images(str(tmp_path / "all.csv"))
    with pytest.raises(DataError, match="There is no folder, table or data set 'nowhere': name one of yours"):
        open_images("nowhere")


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([-1, -1, -1], "no image has a label"),
        ([1, 1, -1], "every label is 'dog'"),
        ([0, 1, -1], "2 images have a label, but at least 3 are needed"),
    ],
)
def test_labels_that_nothing_can_be_found_in(labels: list[int], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        check("photos", ("cat", "dog"), np.array(labels), 3)
    check("photos", ("cat", "dog"), np.array([0, 1, 1]), 3)

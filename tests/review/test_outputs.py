"""The output folder: tables with evidence, what a folder says of itself, and folders that are refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from lnl.data import DataError
from lnl.functional.neighbours import find
from lnl.labelling.problem import Share, Suspicion
from lnl.review import outputs, tables
from lnl.review.crowd import crowd_of
from lnl.review.images import ImageSet
from lnl.review.items import Items, reopened
from lnl.review.outputs import About
from tests.review.test_exchange import ABOUT, AT

GIVEN = np.array([0, 1, -1, 1])


def items(tmp_path: Path) -> Items:
    images = ImageSet(str(tmp_path), ("a;b.png", "=2.png", "3.png", "ü.png"), "x")
    features = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    return Items(images, ("cat", "dog"), {"label": GIVEN}, features, "some.npy", (), ())


def nearest(read: Items) -> np.ndarray:
    return find(read.features, tables.NEIGHBOURS).index.numpy()


def suspicion() -> Suspicion:
    score = np.array([0.2, 0.9, -np.inf, 0.9])
    probability = np.array([0.1, 0.8, np.nan, 0.7])
    return Suspicion(
        score, probability, np.array([1, 0, 0, 0]), score > 0.5, np.full((4, 2), 0.5), Share(0.3, 0.2, 0.4)
    )


def cells(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [*csv.reader(file)]


def test_the_table_of_errors(tmp_path: Path) -> None:
    read = items(tmp_path)
    neighbours = nearest(read)
    assert neighbours.shape == (4, 3) and neighbours[:, 0].tolist() == [1, 0, 3, 2]
    table = tables.errors_table(read, GIVEN, suspicion(), neighbours)
    assert table.column_names == [
        "index", "file", "given", "proposed", "probability", "rank", "score", "flagged", "neighbours",
        "neighbour_labels",
    ]  # fmt: skip
    assert table["index"].to_pylist() == [1, 3, 0, 2], "of equal scores the first comes first, unlabelled ones last"
    assert table["rank"].to_pylist() == [1, 2, 3, None] and table["given"].to_pylist() == ["dog", "dog", "cat", None]
    assert table["probability"].to_pylist() == [0.8, 0.7, 0.1, None] and table["score"].to_pylist()[3] is None
    assert table["neighbours"].to_pylist()[1] == [2, 1, 0]
    assert table["neighbour_labels"].to_pylist()[1] == [None, "dog", "cat"]
    outputs.write_table(tmp_path, "errors", table)
    assert pyarrow.parquet.read_table(tmp_path / "errors.parquet").equals(table)
    lines = cells(tmp_path / "errors.csv")
    assert lines[2] == ["3", "ü.png", "dog", "cat", "0.7", "2", "0.9", "true", "2;1;0", ";dog;cat"]
    assert lines[3][:6] == ["0", "a;b.png", "cat", "dog", "0.1", "3"]
    assert lines[4][:8] == ["2", "3.png", "", "cat", "", "", "", "false"]
    again = pyarrow.csv.read_csv(tmp_path / "errors.csv")
    assert again["file"].to_pylist() == table["file"].to_pylist()


def test_the_tables_of_labels_and_of_what_is_next(tmp_path: Path) -> None:
    read, unreached = items(tmp_path), [np.nan, np.nan]
    probabilities = np.array([[1.0, 0.0], [0.4, 0.6], unreached, [0.1, 0.9]])
    neighbours = nearest(read)
    table = tables.labels_table(read, GIVEN, np.array([0, -1, -1, 1]), probabilities, neighbours)
    assert table["label"].to_pylist() == ["cat", None, None, "dog"]
    assert table["proposed"].to_pylist() == ["cat", "dog", None, "dog"], "an unreached image is of no class"
    assert table["probability"].to_pylist() == [1.0, 0.6, None, 0.9]
    assert table["probabilities"].to_pylist()[:2] == [[1.0, 0.0], [0.4, 0.6]]
    outputs.write_table(tmp_path, "propagate", table)
    assert cells(tmp_path / "labels.csv")[2][:6] == ["1", "=2.png", "dog", "", "dog", "0.6"]
    table = tables.next_table(read, GIVEN, GIVEN, np.array([2, 1]), probabilities, neighbours)
    assert table["file"].to_pylist() == ["3.png", "=2.png", "a;b.png", "ü.png"]
    assert table["rank"].to_pylist() == [1, 2, None, None]
    assert table["proposed"].to_pylist() == [None, "dog", "cat", "dog"]
    outputs.write_table(tmp_path, "next", table)
    assert [row[1] for row in cells(tmp_path / "next.csv")] == ["file", "3.png", "=2.png"]


def test_a_folder_says_what_it_is_of(tmp_path: Path) -> None:
    outputs.write_about(tmp_path, ABOUT)
    assert outputs.read_about(tmp_path) == ABOUT and ABOUT.wrong == Share(0.4, 0.3, 0.5)
    table = pa.table({"index": [0]})
    with pytest.raises(DataError, match=r"errors\.parquet cannot be read .* run `lnl label errors` again"):
        outputs.read_table(tmp_path)
    outputs.write_table(tmp_path, "errors", table)
    assert outputs.read_table(tmp_path)[1].equals(table)
    with pytest.raises(DataError, match=r"has no about\.json: name a folder that `lnl label errors`"):
        outputs.read_about(tmp_path / "other")
    (tmp_path / "about.json").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match=r"about\.json cannot be read"):
        outputs.read_about(tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    outputs.prepare(out, "errors", "photos")
    (out / "features.npy").write_bytes(b"")
    (out / ".pixels").mkdir()
    outputs.prepare(out, "errors", "photos")  # what an interrupted call has left
    (out / "thesis.tex").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"is not empty \(it has thesis\.tex\), and not made by `lnl label`"):
        outputs.prepare(out, "errors", "photos")
    outputs.write_about(out, ABOUT)
    outputs.prepare(out, "errors", "photos")
    for kind, images in (("next", "photos"), ("errors", "others")):
        with pytest.raises(DataError, match="is of `lnl label errors` on photos: name another folder with --out"):
            outputs.prepare(out, kind, images)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"cannot be made \(Not a directory\)"):
        outputs.prepare(out / "thesis.tex" / "below", "errors", "photos")


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs.os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(DataError, match="cannot be written: change its permissions, or name another folder"):
        outputs.prepare(tmp_path, "errors", "photos")


def test_images_are_opened_again_by_what_the_folder_says(tmp_path: Path) -> None:
    for name in ("1.png", "2.png", "3.png"):
        (tmp_path / name).write_bytes(b"")
    settings = {**ABOUT.model_dump(), "images": str(tmp_path), "unreadable": ("2.png",), "count": 2}
    assert reopened(About(**settings)).files == ("1.png", "3.png")
    (tmp_path / "3.png").unlink()
    with pytest.raises(DataError, match="has 1 images now, but had 2: run `lnl label errors` again"):
        reopened(About(**settings))


def test_annotators_are_told_of(tmp_path: Path) -> None:
    ann, bob, carl = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2, -1]), np.array([0, 0, 1, 2, 2, -1])
    crowd = crowd_of({"ann": ann, "bob": bob, "carl": carl}, ("cat", "dog", "emu"))
    assert crowd.given.tolist() == [0, 0, 1, 1, 2, 2]
    assert [(one.name, one.labels, one.agreement) for one in crowd.annotators] == [
        ("ann", 6, 1.0), ("bob", 5, 1.0), ("carl", 5, 0.8),
    ]  # fmt: skip
    confused = crowd.annotators[2].confused
    assert confused and (confused.of, confused.called, confused.times, confused.share) == ("dog", "emu", 1, 0.5)
    assert crowd.sentence().startswith("3 annotators: 5 images have two labels or more, 86.7% of the pairs are equal")
    outputs.write_csv(tmp_path / "annotators.csv", crowd.annotators_table())
    assert cells(tmp_path / "annotators.csv")[3] == ["carl", "5", "0.8", "dog", "emu", "1", "0.5"]
    rows = crowd.confusions_table().to_pylist()
    assert rows[-4] == {"annotator": "carl", "class": "dog", "called": "emu", "times": 1, "share": 0.5}
    assert AT.tzinfo is not None

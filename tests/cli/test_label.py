"""`lnl label`: the commands as a user calls them, on a folder of digits whose features are their pixels."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from lnl.cli.main import main
from lnl.review import decisions, outputs, server
from lnl.review.decisions import Decision
from lnl.review.images import open_images
from lnl.review.page import Review
from tests.review.photos import DAMAGED, write_photos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `photos/` of 72 digits, a quarter of them in a wrong folder, and their features."""
    monkeypatch.chdir(tmp_path)
    images = open_images(str(write_photos(tmp_path / "photos", 24, damaged=False)))
    pixels = [np.asarray(images.open(place), np.float32).ravel() for place in range(len(images.files))]
    np.save("pixels.npy", np.stack(pixels))
    return tmp_path


def run(*arguments: str) -> int:
    return main(["label", *arguments])


def find(*arguments: str) -> int:
    return run("errors", "photos", "--features", "pixels.npy", *arguments)


def is_wrong(file: str) -> bool:
    """Whether a digit of the fixture lies in the next class's folder."""
    return int(file.removesuffix(".png").rpartition(" ")[2]) % 4 == 3


def true_class(file: str) -> str:
    return ("null", "eins", "zwölf")[int(file.rpartition("/")[2].split(" ")[1])]


@pytest.mark.slow
def test_errors_are_found_reviewed_and_corrected(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find("--budget", "18") == 0
    told = capsys.readouterr().out
    assert "72 images, 72 with a label (folder), 3 classes.\nFeatures: pixels.npy.\n" in told
    assert "not yet checked against reviews." in told and "photos-errors/index.html" in told
    about, table = outputs.read_table(folder / "photos-errors")
    files = table["file"].to_pylist()
    assert sum(map(is_wrong, files[:18])) >= 17
    assert [row["rank"] for row in table.to_pylist()] == list(range(1, 73))
    assert about.wrong is not None and abs(about.wrong.value - 0.25) < 0.05
    assert sum(guess == true_class(file) for file, guess in zip(files, table["proposed"].to_pylist(), strict=True)) > 16
    for row, file in enumerate(files[:10]):
        label = true_class(file)
        given = table["given"][row].as_py()
        decision = Decision(
            index=table["index"][row].as_py(),
            file=file,
            given=given,
            action="keep" if label == given else "change",
            label=label,
            reviewer="ann",
            at=datetime.now(UTC),
        )
        decisions.append(folder / "photos-errors", decision)
    wrong = sum(map(is_wrong, files[:10]))
    assert find() == 0
    told = capsys.readouterr().out
    assert "calibrated on 10 reviews." in told
    assert f"Of 10 reviewed labels {wrong} were wrong; " in told
    assert outputs.read_about(folder / "photos-errors").checked is not None
    assert "probability of an error, before" in told
    assert run("apply", "photos-errors", "--to", "corrected.csv") == 0
    assert f"{wrong} labels changed and {10 - wrong} confirmed in review, of 72." in capsys.readouterr().out
    with open("corrected.csv", encoding="utf-8", newline="") as file:
        rows = [*csv.DictReader(file)]
    changed = [row for row in rows if row["label"] != row["given"]]
    assert len(changed) == wrong and all(row["changed_by"] == "ann" and row["at"] for row in changed)
    assert all(row["label"] == true_class(row["file"]) for row in changed)
    assert run("errors", "photos", "--labels", "corrected.csv", "--features", "pixels.npy", "--out", "again") == 0
    assert run("apply", "photos-errors", "--to", "more.parquet", "--accept-above", "0.5") == 0
    more = pyarrow.parquet.read_table("more.parquet").to_pylist()
    accepted = [row for row in more if row["changed_by"] == "probe"]
    assert accepted and all(row["reason"].startswith("probability of an error") for row in accepted)


@pytest.mark.slow
def test_the_way_to_another_tool_and_back(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find() == 0
    out = "photos-errors"
    assert run("export", out, "--format", "label-studio", "--first", "3", "--prefix", "/photos/") == 0
    assert "label-studio.xml, the labelling interface" in capsys.readouterr().out
    tasks = json.loads((folder / out / "label-studio.json").read_text(encoding="utf-8"))
    assert len(tasks) == 3 and tasks[0]["data"]["image"].startswith("/photos/")
    for task in tasks:
        value = {"choices": [task["predictions"][0]["result"][0]["value"]["choices"][0]]}
        task["annotations"] = [{"completed_by": 1, "result": [{"type": "choices", "value": value}]}]
    (folder / "done.json").write_text(json.dumps(tasks), encoding="utf-8")
    capsys.readouterr()
    assert run("import", out, "done.json") == 0
    assert capsys.readouterr().out == f"3 decisions added to {out}.\n"
    assert run("import", out, "done.json") == 0
    assert capsys.readouterr().out == f"0 decisions added to {out}; 3 were there already.\n"
    assert run("export", out, "--format", "csv", "--to", "plain.csv") == 0
    assert run("import", out, "plain.csv") == 0, "nobody has filled it in"
    assert run("export", out, "--format", "json") == 0 and (folder / out / "json.json").exists()
    assert len(decisions.read(folder / out).decisions) == 3


@pytest.mark.slow
def test_the_page_is_served_with_what_was_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find() == 0
    served: list[tuple[Review, Path, int, str]] = []
    monkeypatch.setattr(server, "serve", lambda *arguments: served.append(arguments))
    assert run("review", "photos-errors", "--reviewer", "ann", "--port", "8123") == 0
    ((review, out, port, reviewer),) = served
    assert (out, port, reviewer) == (Path("photos-errors"), 8123, "ann")
    table = outputs.read_table(folder / "photos-errors")[1]
    assert list(review.files) == table["file"].to_pylist() and review.neighbours.shape == (72, 5)
    assert review.images is not None
    for place in (0, 71):
        path = review.images.path(int(review.index[place]))
        assert path is not None and str(path.relative_to(folder / "photos")) == review.files[place]
    names = np.array(review.class_names)
    assert names[review.neighbour_labels[0]].tolist() == table["neighbour_labels"][0].as_py()
    assert any("not yet checked against reviews" in fact for fact in review.facts)


@pytest.mark.slow
def test_several_annotators(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [name for name in open_images("photos").files if name != DAMAGED]
    truth = [true_class(file) for file in files]
    rows = [
        (file, label, label, "zwölf" if label == "null" and number % 2 else label)
        for number, (file, label) in enumerate(zip(files, truth, strict=True))
    ]
    with open("said.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "label_ann", "label_bob", "label_carl"), *rows])
    assert find("--labels", "said.csv") == 0
    told = capsys.readouterr().out
    assert "3 annotators: 72 images have two labels or more" in told and "null called zwölf: 12 (50%)" in told
    with open("photos-errors/annotators.csv", encoding="utf-8", newline="") as file:
        assert [row["annotator"] for row in csv.DictReader(file)] == ["label_ann", "label_bob", "label_carl"]
    assert (folder / "photos-errors" / "confusions.csv").exists()
    about, table = outputs.read_table(folder / "photos-errors")
    assert about.consensus == "Dawid and Skene" and about.columns == ("label_ann", "label_bob", "label_carl")
    assert all(row["given"] == true_class(row["file"]) for row in table.to_pylist())
    assert find("--labels", "said.csv", "--consensus", "most") == 2
    assert "choose one of dawid_skene, crowdlab." in capsys.readouterr().err
    pytest.importorskip("cleanlab")
    assert find("--labels", "said.csv", "--consensus", "crowdlab") == 0
    assert "the consensus by CROWDLAB." in capsys.readouterr().out
    about, table = outputs.read_table(folder / "photos-errors")
    assert about.consensus == "CROWDLAB"
    assert all(row["given"] == true_class(row["file"]) for row in table.to_pylist())


def few(count: int) -> None:
    """Write `few.csv`, the right labels of some of the photos, of all classes."""
    files = [name for name in open_images("photos").files if name != DAMAGED]
    some = [*files[:: len(files) // count]][:count]
    with open("few.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *((name, true_class(name)) for name in some)])


@pytest.mark.slow
def test_labels_for_all_from_a_few(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few(9)
    flags = ("photos", "--labels", "few.csv", "--features", "pixels.npy")
    assert run("propagate", *flags) == 0
    told = capsys.readouterr().out
    assert "72 images, 9 with a label (label), 3 classes." in told and "Of the 63 others 100.0% have a label" in told
    about, table = outputs.read_table(folder / "photos-labels")
    rows = table.to_pylist()
    assert about.kind == "propagate" and [row["index"] for row in rows] == list(range(72))
    assert np.mean([row["label"] == true_class(row["file"]) for row in rows]) > 0.9
    assert all(row["label"] == row["given"] for row in rows if row["given"])
    assert run("propagate", *flags, "--confidence", "0.9") == 0
    sure = outputs.read_table(folder / "photos-labels")[1].to_pylist()
    without = [row for row in sure if row["label"] is None]
    assert without and all(row["probability"] < 0.9 and row["proposed"] for row in without)
    assert run("apply", "photos-labels", "--to", "a.csv") == 2
    assert "its labels.csv has the labels already" in capsys.readouterr().err


@pytest.mark.slow
def test_what_to_label_next_goes_by_what_was_decided(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Images that were decided are not asked for again, and after some rounds it is said whether labels settle."""
    few(6)
    flags = ("photos", "--labels", "few.csv", "--features", "pixels.npy", "-n", "4", "--sampler", "margin")
    out = folder / "photos-next"
    asked: set[str] = set()
    for number in range(5):
        assert run("next", *flags) == 0
        told = capsys.readouterr().out
        assert f"72 images, {6 + 4 * number} with a label" in told and "next.csv: 4 images." in told
        assert ("Over the last rounds the labels of all images" in told) == (number >= 3)
        with open(out / "next.csv", encoding="utf-8", newline="") as file:
            rows = [*csv.DictReader(file)]
        assert [row["rank"] for row in rows] == ["1", "2", "3", "4"]
        assert not asked & {row["file"] for row in rows}
        for row in rows:
            asked.add(row["file"])
            decisions.append(
                out,
                Decision(
                    index=int(row["index"]),
                    file=row["file"],
                    given=None,
                    action="change",
                    label=true_class(row["file"]),
                    reviewer="ann",
                    at=datetime.now(UTC),
                ),
            )
    assert run("export", "photos-next", "--format", "json", "--to", "next.json") == 0
    assert len(json.loads((folder / "next.json").read_text(encoding="utf-8"))) == 4, "those that are asked for, not all"
    assert run("apply", "photos-next", "--to", "more.csv") == 0
    with open("more.csv", encoding="utf-8", newline="") as file:
        labelled = {row["file"]: row["label"] for row in csv.DictReader(file) if row["label"]}
    assert len(labelled) == 26 and all(label == true_class(file) for file, label in labelled.items())
    assert run("propagate", "photos", "--labels", "more.csv", "--features", "pixels.npy") == 0
    assert "72 images, 26 with a label" in capsys.readouterr().out


@pytest.mark.slow
def test_features_of_an_earlier_job_serve_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though an image is damaged, of which they have no row."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos")
    assert run("errors", "photos", "--simclr-steps", "2") == 0
    few(6)
    features = "photos-errors/features.npy"
    assert run("propagate", "photos", "--labels", "few.csv", "--features", features) == 0
    told = capsys.readouterr().out
    assert f"Features: {features}." in told and told.count("1 of 25 images are left out") == 2
    (tmp_path / "photos" / "eins" / "more.png").write_bytes((tmp_path / "photos" / DAMAGED).read_bytes())
    assert run("propagate", "photos", "--labels", "few.csv", "--features", features) == 1
    assert "has 24 rows, but there are 26 images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--detector", "oracle"], 2, "There is no detector 'oracle': choose one of probe"),
        (["--budget", "0"], 2, "--budget is 0: give a whole number above zero."),
        (
            ["--network", "resnet18"],
            2,
            "Give --features of your own, a --network with its --weights, or a --trial",
        ),
        (["--simclr-steps", "0"], 2, "--simclr-steps is 0: give a whole number above zero."),
        (["--column", "label_ann"], 1, "has no labels 'label_ann': choose folder."),
        (["--labels", "few.txt"], 1, "few.txt is no table of labels: give a .csv or a .parquet file."),
        (["--labels", "none.csv"], 1, "none.csv cannot be read as CSV (No such file or directory)"),
        (["--out", "photos"], 1, "photos is not empty"),
        (["--features", "none.npy"], 1, "none.npy cannot be read"),
    ],
)
def test_errors_refuses(
    arguments: list[str], code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find(*arguments) == code
    error = capsys.readouterr().err
    assert sentence in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["errors", "nowhere"], 1, "There is no folder, table or data set 'nowhere'"),
        (["errors", "photos", "--features", "a.csv"], 1, "a.csv is no file of features: give a .npy array (N, D)"),
        (["errors", "photos", "--trial", "abc"], 2, "'abc' is no trial of a results folder: write RESULTS/ID"),
        (["errors", "photos", "--weights", "w.pt"], 2, "--weights w.pt belong to a network: name it with --network."),
        (["propagate", "photos", "--confidence", "2"], 2, "--confidence is 2: give a probability, from 0 to 1."),
        (["next", "photos", "-n", "0"], 2, "-n is 0: give a whole number above zero."),
        (["next", "photos", "--sampler", "oracle"], 2, "There is no sampler 'oracle': choose one of random"),
        (["next", "photos", "--features", "pixels.npy"], 1, "All images have a label, so that there is none to label"),
        (["apply", "photos", "--to", "a.csv"], 1, "photos has no about.json"),
        (["apply", "photos", "--to", "a.txt"], 2, "--to a.txt must end with .csv or .parquet."),
        (["apply", "photos", "--to", "a.csv", "--accept-above", "2"], 2, "--accept-above is 2: give a probability"),
        (["export", "photos", "--format", "csv", "--first", "0"], 2, "--first is 0: give a whole number above zero."),
        (["import", "photos", "a.csv"], 1, "photos has no about.json"),
        (["review", "photos"], 1, "photos has no about.json"),
    ],
)
def test_the_other_jobs_refuse(
    arguments: list[str], code: int, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == code
    assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_what_reviewers_differ_on_is_not_written(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert find() == 0
    (file, *_), (index, *_), (given, *_) = (
        outputs.read_table(folder / "photos-errors")[1][name].to_pylist() for name in ("file", "index", "given")
    )
    other = next(name for name in ("null", "eins") if name != given)
    for reviewer, label in (("ann", given), ("bob", other)):
        action = "keep" if label == given else "change"
        now = datetime.now(UTC)
        decisions.append(
            folder / "photos-errors",
            Decision(index=index, file=file, given=given, action=action, label=label, reviewer=reviewer, at=now),
        )
    assert run("apply", "photos-errors", "--to", "c.csv") == 1
    assert "Reviewers differ on 1 images" in capsys.readouterr().err and not (folder / "c.csv").exists()
    assert run("apply", "photos-errors", "--to", "c.csv", "--reviewer", "bob") == 0

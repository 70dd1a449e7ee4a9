"""Corrected labels, and the way to other tools and back."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.csv
import pytest

from lnl.data import DataError
from lnl.labelling.problem import Share
from lnl.review import outputs
from lnl.review.decisions import Decision
from lnl.review.exchange import (
    corrected,
    imported,
    label_studio_tasks,
    label_studio_view,
    not_yet_there,
    plain_json,
    plain_table,
    to_decide,
)
from lnl.review.outputs import About

AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
ODD = '=cmd <img onerror="x">.png'
ABOUT = About(
    kind="errors",
    images="photos",
    columns=("label",),
    class_names=("cat", "dog", "A & B"),
    judge="probe",
    features="some.npy",
    count=5,
    labelled=4,
    wrong=Share(0.4, 0.3, 0.5),
    made=AT,
    version="1",
)
TABLE = pa.table(
    {
        "index": [2, 0, 4, 1, 3],
        "file": ["cat/ü 3.png", "cat/1.png", ODD, "dog/2.png", "new.png"],
        "given": ["cat", "cat", "A & B", "dog", None],
        "proposed": ["dog", "dog", "cat", "cat", "cat"],
        "probability": [0.97, 0.6, 0.5, 0.1, None],
        "rank": [1, 2, 3, 4, None],
    }
)


def decided(
    file: str, label: str | None, reviewer: str = "ann", action: str | None = None, minute: int = 0
) -> Decision:
    row = TABLE["file"].to_pylist().index(file)
    given = TABLE["given"][row].as_py()
    action = action or ("skip" if label is None else "keep" if label == given else "change")
    return Decision.model_validate(
        {
            "index": TABLE["index"][row].as_py(),
            "file": file,
            "given": given,
            "action": action,
            "label": label,
            "reviewer": reviewer,
            "at": AT.replace(minute=minute),
        }
    )


# ----------------------------------------------------------------------------------------------------- corrected labels


def test_what_nobody_has_decided_stays_as_it_was() -> None:
    made = corrected(ABOUT, TABLE, [])
    rows = made.table.to_pylist()
    assert [row["file"] for row in rows] == ["cat/1.png", "dog/2.png", "cat/ü 3.png", "new.png", ODD]
    assert all(row["label"] == row["given"] and row["changed_by"] is None for row in rows)
    assert (made.changed, made.kept, made.accepted) == (0, 0, 0)


def test_every_change_says_who_when_and_why() -> None:
    made = corrected(
        ABOUT,
        TABLE,
        [
            decided("cat/ü 3.png", "dog"),
            decided("cat/1.png", "cat", "bob"),
            decided("dog/2.png", "cat"),
            decided("dog/2.png", None, action="undo", minute=1),
            decided(ODD, None),
            decided("new.png", "dog"),
        ],
    )
    rows = {row["file"]: row for row in made.table.to_pylist()}
    assert rows["cat/ü 3.png"] == {
        "file": "cat/ü 3.png",
        "label": "dog",
        "given": "cat",
        "changed_by": "ann",
        "at": "2026-11-30T12:00:00+00:00",
        "reason": "decided in review",
    }
    assert rows["cat/1.png"]["label"] == "cat" and rows["cat/1.png"]["changed_by"] is None
    assert rows["cat/1.png"]["reason"] == "confirmed in review by bob"
    assert rows["dog/2.png"]["label"] == "dog" and rows["dog/2.png"]["reason"] is None, "it was undone"
    assert rows[ODD]["label"] == "A & B" and rows["new.png"]["label"] == "dog"
    assert (made.changed, made.kept, made.accepted) == (2, 1, 0)


def test_a_stated_probability_changes_what_nobody_has_looked_at() -> None:
    decisions = [decided("cat/1.png", "cat"), decided(ODD, None)]
    made = corrected(ABOUT, TABLE, decisions, accept_above=0.5)
    rows = {row["file"]: row for row in made.table.to_pylist()}
    assert rows["cat/ü 3.png"]["label"] == "dog" and rows["cat/ü 3.png"]["changed_by"] == "probe"
    assert rows["cat/ü 3.png"]["reason"] == "probability of an error 0.9700, accepted from 0.5 on"
    assert rows["cat/1.png"]["label"] == "cat", "a reviewer has confirmed it"
    assert rows[ODD]["label"] == "A & B", "a reviewer has looked at it and not decided"
    assert rows["new.png"]["label"] is None and made.accepted == 1


def test_reviewers_who_differ() -> None:
    decisions = [decided("cat/1.png", "cat"), decided("cat/1.png", "dog", "bob")]
    with pytest.raises(DataError, match=r"differ on 1 images \(cat/1.png: cat \(ann\) and dog \(bob\)\): decide them"):
        corrected(ABOUT, TABLE, decisions)
    assert corrected(ABOUT, TABLE, decisions, reviewer="bob").changed == 1
    assert corrected(ABOUT, TABLE, decisions, reviewer="ann").kept == 1
    with pytest.raises(DataError, match="differ"):
        corrected(ABOUT, TABLE, decisions, reviewer="carl")
    agreed = [*decisions, decided("cat/1.png", "dog")]
    assert corrected(ABOUT, TABLE, agreed).changed == 1


# --------------------------------------------------------------------------------------------------------- Label Studio


def answered(tasks: list[dict], *choices: str | None, **annotation: object) -> list[dict]:
    """The tasks as Label Studio exports them after somebody has chosen."""
    made = []
    for number, (task, choice) in enumerate(zip(tasks, choices, strict=False), 1):
        value = {"choices": [choice]}
        result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": value}] if choice else []
        person = {"id": 7, "email": "ann@example.org"}
        fields = {"id": number, "result": result, "completed_by": person, "created_at": "2026-11-30T12:00:00.5Z"}
        made.append({"id": number, **task, "annotations": [{**fields, "was_cancelled": not choice, **annotation}]})
    return made


def test_the_way_to_label_studio_and_back(tmp_path: Path) -> None:
    tasks = json.loads(json.dumps(label_studio_tasks(ABOUT, TABLE, "/data/local-files/?d=photos/")))
    assert tasks[0]["data"]["image"] == "/data/local-files/?d=photos/cat/%C3%BC%203.png"
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["dog"]}
    assert tasks[2]["data"]["file"] == ODD
    (tmp_path / "done.json").write_text(json.dumps(answered(tasks, "dog", "cat", None)))
    decisions = imported(ABOUT, TABLE, tmp_path / "done.json", None)
    assert [(one.file, one.action, one.label) for one in decisions] == [
        ("cat/ü 3.png", "change", "dog"),
        ("cat/1.png", "keep", "cat"),
        (ODD, "skip", None),
    ]
    assert decisions[0].index == 2 and decisions[0].reviewer == "ann@example.org" and decisions[0].at.minute == 0
    assert imported(ABOUT, TABLE, tmp_path / "done.json", "bob")[0].reviewer == "bob"
    made = answered(tasks, "dog", completed_by=3)
    del made[0]["data"]["file"]  # as where only the address of the image came along
    (tmp_path / "ids.json").write_text(json.dumps(made), encoding="utf-8")
    (one,) = imported(ABOUT, TABLE, tmp_path / "ids.json", None)
    assert one.reviewer == "user 3" and one.file == "cat/ü 3.png"


def test_only_what_has_a_rank_is_asked() -> None:
    assert to_decide(TABLE)["file"].to_pylist() == TABLE["file"].to_pylist()[:4]
    unsure = TABLE.drop_columns("rank").set_column(3, "proposed", pa.nulls(5, pa.string()))
    assert to_decide(unsure).equals(unsure)
    assert all(task["predictions"] == [] for task in label_studio_tasks(ABOUT, unsure, ""))


def test_the_interface_of_label_studio_is_xml() -> None:
    view = ElementTree.fromstring(label_studio_view(ABOUT.class_names))
    assert [choice.get("value") for choice in view.iter("Choice")] == ["cat", "dog", "A & B"]
    assert {part.get("name") for part in view} >= {"image", "label"}


# ---------------------------------------------------------------------------------------------------------- plain files


def test_plain_files_are_filled_in_and_come_back(tmp_path: Path) -> None:
    outputs.write_csv(tmp_path / "plain.csv", plain_table(TABLE))
    text = (tmp_path / "plain.csv").read_text(encoding="utf-8")
    assert text.splitlines()[1] == '2,"cat/ü 3.png",,"cat","dog",0.97'
    assert imported(ABOUT, TABLE, tmp_path / "plain.csv", None) == [], "nobody has decided yet"
    filled = text.replace('ü 3.png",,', 'ü 3.png",dog,').replace('1.png",,', '1.png",cat,')
    (tmp_path / "plain.csv").write_text(filled, encoding="utf-8")
    decisions = imported(ABOUT, TABLE, tmp_path / "plain.csv", "ann")
    assert [(one.file, one.action, one.reviewer) for one in decisions] == [
        ("cat/ü 3.png", "change", "ann"),
        ("cat/1.png", "keep", "ann"),
    ]
    entries = plain_json(TABLE)
    assert entries[0]["label"] is None
    entries[0] |= {"label": "dog", "reviewer": "bob", "at": "2026-11-30T12:00:00+01:00"}
    (tmp_path / "plain.json").write_text(json.dumps(entries), encoding="utf-8")
    (one,) = imported(ABOUT, TABLE, tmp_path / "plain.json", None)
    assert (one.reviewer, one.at.hour) == ("bob", 12)


def test_the_review_pages_own_exports_are_read(tmp_path: Path) -> None:
    """Its .json and its .csv, in which a skipped image has no label."""
    decisions = [decided("cat/ü 3.png", "dog"), decided(ODD, None, "bob"), decided("new.png", "cat", minute=3)]
    entries = [decision.model_dump(mode="json") for decision in decisions]
    (tmp_path / "decisions.json").write_text(json.dumps(entries), encoding="utf-8")
    assert imported(ABOUT, TABLE, tmp_path / "decisions.json", None) == decisions
    with (tmp_path / "decisions.csv").open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(entries[0]))
        table.writeheader()
        table.writerows(entries)
    assert imported(ABOUT, TABLE, tmp_path / "decisions.csv", None) == decisions


def test_the_same_answers_are_not_added_twice() -> None:
    first = [decided("cat/1.png", "dog"), decided(ODD, None)]
    assert not_yet_there(first, []) == first and not_yet_there(first, first) == []
    later = decided("cat/1.png", "cat", minute=1)
    assert not_yet_there([later], first) == [later]
    assert not_yet_there([decided("cat/1.png", "dog", "bob")], first) == [decided("cat/1.png", "dog", "bob")]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.csv", "file,label\nother.png,cat\n", "a.csv, line 2: there is no image 'other.png' in photos"),
        ("a.csv", "file,label\ncat/1.png,mouse\n", "a.csv, line 2: 'mouse' is none of the classes cat, dog, A & B"),
        ("a.csv", "name,label\n", "has no column 'file': let its first line be file,label"),
        ("a.csv", "file,label,at\ncat/1.png,dog,yesterday\n", "a.csv, line 2: at: Input should be a valid datetime"),
        ("a.json", "{}", "is no list of objects, as Label Studio's 'JSON' export is"),
        ("a.json", "[", "a.json cannot be read"),
        ("a.json", '[{"label": "cat"}]', "entry 1: file: Field required"),
        ("a.json", '[{"data": {}, "annotations": []}]', "entry 1: data.image: Field required"),
        (
            "a.json",
            '[{"data": {"image": "cat/1.png"}, "annotations": [{"result": [{"value": {"choices": ["cat", "dog"]}}]}]}]',
            "entry 1: an annotation has the choices cat, dog: an image has one class",
        ),
        ("none.json", None, "none.json cannot be read"),
    ],
)
def test_files_that_are_no_decisions(name: str, content: str | None, sentence: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=sentence):
        imported(ABOUT, TABLE, tmp_path / name, None)

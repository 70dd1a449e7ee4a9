"""Decisions: nothing that was answered is lost, what is torn is told, and two reviewers are both kept."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat

import pytest
from pydantic import ValidationError

from lnl.review import decisions
from lnl.review.decisions import Decision
from lnl.storage.objects import StorageError
from tests.review.reviews import decision


def test_what_is_appended_is_read(tmp_path):
    made = [decision(), decision("b.png", "change", "dog"), decision("größe 1.png", "skip", None, "Grace Ö")]
    for each in made:
        decisions.append(tmp_path, each)
    reading = decisions.read(tmp_path)
    assert list(reading.decisions) == made and reading.problems == ()
    assert reading.end == (tmp_path / decisions.FILE_NAME).stat().st_size
    assert decisions.read(tmp_path, reading.end).decisions == ()
    decisions.append(tmp_path, made[0])
    assert decisions.read(tmp_path, reading.end).decisions == (made[0],)


def test_no_file_is_no_decision(tmp_path):
    assert decisions.read(tmp_path) == decisions.Reading((), 0, 0, ())


def test_a_line_is_plain_json_with_the_declared_fields(tmp_path):
    decisions.append(tmp_path, decision())
    assert (tmp_path / decisions.FILE_NAME).read_text(encoding="utf-8") == (
        '{"index":7,"file":"a.png","given":"cat","action":"keep","label":"cat","reviewer":"ada",'
        '"at":"2026-11-30T09:30:00Z"}\n'
    )


@pytest.mark.parametrize("kept", [1, 40, -2])
def test_a_torn_last_line_is_left_out_and_told_and_spoils_no_other(tmp_path, kept):
    """Whatever a killed process has written of its line, the decisions before and after it are there."""
    path = tmp_path / decisions.FILE_NAME
    decisions.append(tmp_path, decision("a.png"))
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + decision("torn.png").model_dump_json().encode()[:kept])
    torn = decisions.read(tmp_path)
    assert [each.file for each in torn.decisions] == ["a.png"] and torn.end == whole
    assert len(torn.problems) == 1 and "incomplete" in torn.problems[0] and str(path) in torn.problems[0]
    decisions.append(tmp_path, decision("b.png"))
    after = decisions.read(tmp_path)
    assert [each.file for each in after.decisions] == ["a.png", "b.png"] and len(after.problems) == 1
    assert [each.file for each in decisions.read(tmp_path, torn.end).decisions] == ["b.png"]


def test_a_last_line_that_lacks_only_its_end_counts(tmp_path):
    path = tmp_path / decisions.FILE_NAME
    path.write_text(decision("a.png").model_dump_json(), encoding="utf-8")
    reading = decisions.read(tmp_path)
    assert len(reading.decisions) == 1 and reading.problems == ()
    decisions.append(tmp_path, decision("b.png"))
    assert [each.file for each in decisions.read(tmp_path, reading.end).decisions] == ["b.png"]


@pytest.mark.parametrize(
    "line, told",
    [
        ('{"index": 1}', "Field required"),
        (decision().model_dump_json().replace("keep", "erase"), "action"),
        ("[]", "object"),
    ],
)
def test_a_line_that_is_no_decision_is_told(tmp_path, line, told):
    (tmp_path / decisions.FILE_NAME).write_text(f"{line}\n{decision().model_dump_json()}\n", encoding="utf-8")
    reading = decisions.read(tmp_path)
    assert len(reading.decisions) == 1 and len(reading.problems) == 1
    assert "no decision" in reading.problems[0] and told in reading.problems[0]


def test_another_file_than_before_is_read_from_its_start(tmp_path):
    for _ in range(3):
        decisions.append(tmp_path, decision())
    end = decisions.read(tmp_path).end
    (tmp_path / decisions.FILE_NAME).unlink()
    decisions.append(tmp_path, decision("new.png"))
    reading = decisions.read(tmp_path, end)
    assert reading.start == 0 and [each.file for each in reading.decisions] == ["new.png"]


def test_a_full_disk_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    decisions.append(tmp_path, decision("a.png"))
    path = tmp_path / decisions.FILE_NAME
    before, write = path.read_bytes(), os.write

    def fills_up(descriptor, content):
        if len(content) < 50:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content[:-20])  # the last bytes find no room

    monkeypatch.setattr(os, "write", fills_up)
    with pytest.raises(StorageError, match=r"No space left on device.*: free some space"):
        decisions.append(tmp_path, decision("b.png"))
    assert path.read_bytes() == before
    monkeypatch.undo()
    decisions.append(tmp_path, decision("b.png"))
    assert [each.file for each in decisions.read(tmp_path).decisions] == ["a.png", "b.png"]


def test_what_was_not_flushed_is_not_saved(tmp_path, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(StorageError, match="Input/output error"):
        decisions.append(tmp_path, decision())
    assert decisions.read(tmp_path).decisions == ()


def test_a_decision_is_flushed_before_it_is_answered(tmp_path, monkeypatch):
    flushed, fsync = [], os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (flushed.append(stat.S_IFMT(os.fstat(descriptor).st_mode)), fsync(descriptor))
    )
    decisions.append(tmp_path, decision())
    assert flushed == [stat.S_IFREG, stat.S_IFDIR]  # the line, and that there is such a file


@pytest.mark.parametrize("name", [decisions.FILE_NAME, decisions.LOCK_NAME])
def test_a_pipe_in_its_place_is_refused_at_once(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(StorageError, match=r"cannot be (written|read)"):
        decisions.append(tmp_path, decision())
        decisions.read(tmp_path)


def _append_many(folder, name, count):
    for number in range(count):
        decisions.append(folder, decision(f"{number}.png", by=name * 80))


def test_two_processes_append_to_one_file(tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_append_many, args=(tmp_path, name, 25)) for name in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
        assert worker.exitcode == 0
    reading = decisions.read(tmp_path)
    assert reading.problems == ()
    for name in "ab":
        assert [d.file for d in reading.decisions if d.reviewer == name * 80] == [f"{n}.png" for n in range(25)]


@pytest.mark.parametrize(
    "action, label",
    [("keep", "dog"), ("keep", None), ("change", "cat"), ("change", None), ("skip", "cat"), ("undo", "cat")],
)
def test_a_decision_that_contradicts_itself_is_refused(action, label):
    with pytest.raises(ValidationError):
        decision(action=action, label=label)


def test_an_image_without_a_label_cannot_keep_it():
    with pytest.raises(ValidationError, match="must be there"):
        Decision.model_validate({**decision().model_dump(), "given": None, "label": None})


def test_the_last_decision_of_each_reviewer_stands():
    made = [
        decision("a.png", "keep", "cat", "ada"),
        decision("a.png", "change", "dog", "grace"),
        decision("a.png", "change", "dog", "ada"),
        decision("b.png", "keep", "cat", "ada"),
        decision("b.png", "change", "owl", "grace"),
        decision("c.png", "skip", None, "ada"),
        decision("c.png", "keep", "cat", "grace"),
        decision("d.png", "keep", "cat", "ada"),
        decision("d.png", "undo", None, "ada"),
        decision("e.png", "skip", None, "ada"),
    ]
    standing = decisions.current(made)
    assert {file: each.label for file, each in standing.items()} == {
        "a.png": "dog", "b.png": None, "c.png": "cat", "e.png": None,
    }  # fmt: skip
    assert [file for file, each in standing.items() if each.is_conflict] == ["b.png"]
    assert [each.reviewer for each in standing["a.png"].decisions] == ["grace", "ada"]  # the latest last
    assert [each.label for each in standing["b.png"].decisions] == ["cat", "owl"]  # both are kept


def test_an_undo_is_only_of_ones_own():
    made = [decision(by="ada"), decision(by="grace", action="undo", label=None)]
    assert decisions.current(made)["a.png"].label == "cat"

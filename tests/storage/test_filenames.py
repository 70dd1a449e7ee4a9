"""One function gives every name that people chose its file name; nothing that a store says decides a path."""

import ast
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lnl.storage.filenames import DEVICES, LONGEST, file_name

NAMES = [
    "$\\nosuch{$",
    "<img onerror=…>",
    "a/b",
    "..",
    "x" * 285,
    "Größe 你好",
    "#",
    "%20",
    "con",
    "",
    " ",
    "a b",
    "Full",
]
NAMES += ["../../x", "/etc/x", "-rf", ".hidden", "a.", "nul.txt", "COM1", "a\x00b", "a\nb", "\ud800", "é" * 100]


@pytest.mark.parametrize("name", ["full", "frozen_head", "noise.rate-0.2", "labels=40", "2026-11-21", "a" * LONGEST])
def test_a_plain_name_stays_so_that_links_to_it_hold(name):
    assert file_name(name) == name


def assert_safe(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9_][a-z0-9_.,=-]*", name) and len(name.encode()) <= LONGEST
    assert not DEVICES.fullmatch(name) and not name.endswith((".", "-")) and name.lower() == name
    for ending in (".png", "-night", "-0123456789ab.parquet"):
        assert not DEVICES.fullmatch(name + ending) or "-" in ending


@pytest.mark.parametrize("name", NAMES)
def test_every_other_name_gets_a_safe_one(name):
    assert_safe(file_name(name))


@pytest.mark.slow
@given(st.lists(st.text(st.characters(codec=None)) | st.from_regex(r"[a-zA-Z]{1,3}-[0-9a-f]{8}"), unique=True))
def test_names_are_safe_and_unlike(names):
    """A lower-case alphabet: so they are unlike where upper and lower case are the same, too."""
    found = [file_name(name) for name in names]
    for name in found:
        assert_safe(name)
    assert len(set(found)) == len(found)


def test_a_name_cannot_pass_for_another_ones():
    assert file_name("Full") != file_name("full") and file_name(file_name("Full")) != file_name("Full")


def test_no_other_text_becomes_a_part_of_a_path():
    """Whatever a path is made from by `/ f"…{name}…"` is an id, a number, a table or a file name: see the list."""
    allowed = {
        *("trial", "attempt", "name", "stem", "kind", "number", "table"),
        *("attempt_name(trial, attempt)", "part_name('suggestions', search, number)", "part_name('events', at, kind)"),
        "part_name(table, *key)",
        *("at", "uuid.uuid4().hex[:12]", "uuid.uuid4().hex", "path.name", "os.getpid()", "uuid.uuid4().hex[:8]"),
    }
    strange = []
    root = Path(__file__).parents[2]
    for path in [
        *(root / "lnl/storage").glob("*.py"),
        *root.glob("analysis/report/*.py"),
        root / "lnl/execution/trackers.py",
    ]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.JoinedStr):
                parts = [ast.unparse(part.value) for part in node.right.values if isinstance(part, ast.FormattedValue)]
                strange += [f"{path.name}: {part}" for part in parts if part not in allowed]
    assert not strange

"""Results on disk: what is written whole is read back, what is damaged is named, one living process holds a trial."""

import contextlib
import errno
import io
import json
import math
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lnl.cli.main import main
from lnl.storage import footer, places
from lnl.storage import leases as storage_leases
from lnl.storage import schema as storage_schema
from lnl.storage import store as storage_store
from lnl.storage import tables as storage_tables
from lnl.storage.atomic import write_atomically
from lnl.storage.currency import latest
from lnl.storage.leases import claim, leases, tidy_leases
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import is_outcome, selection_rules
from lnl.storage.places import canonical
from lnl.storage.schema import EPOCHS, PARTITIONED, TABLES, TRIALS
from lnl.storage.store import Store
from lnl.storage.tables import write_rows

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results")


def row(trial="a", attempt=1, status="ok", failure_class=None, **fields):
    return {"trial": trial, "attempt": attempt, "status": status, "failure_class": failure_class, **fields}


def curve(*values, trial="a", attempt=1, split="test"):
    return [
        {"trial": trial, "attempt": attempt, "epoch": epoch, "split": split, "metric": "accuracy", "value": value}
        for epoch, value in enumerate(values, start=1)
    ]


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# ---------------------------------------------------------------------------------------------------------- writing


def test_a_row_is_written_under_the_whole_schema_with_null_where_nothing_is_known(store):
    started = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    store.write_attempt("noise", row(replicate=3, accuracy_last=0.5, started_at=started), curve(0.25, 0.5))

    stored = pq.read_table(store.attempt_path("trials", "noise", "a", 1), partitioning=None)
    assert stored.schema.equals(TRIALS)
    known = {"trial", "attempt", "status", "replicate", "accuracy_last", "started_at", "schema_version"}
    assert {name for name in stored.column_names if stored[name].null_count == 0} == known
    assert stored.to_pylist()[0]["started_at"] == started
    assert stored.to_pylist()[0]["schema_version"] == storage_schema.SCHEMA_VERSION
    epochs = pq.read_table(store.attempt_path("epochs", "noise", "a", 1), partitioning=None)
    assert epochs.schema.equals(EPOCHS) and epochs["value"].to_pylist() == [0.25, 0.5]


def test_a_column_that_the_schema_lacks_is_refused_and_nothing_is_written(store):
    with pytest.raises(KeyError, match="acuracy_last"):
        store.write_attempt("noise", row(acuracy_last=0.5), [])
    with pytest.raises((pa.ArrowInvalid, pa.ArrowTypeError)):
        store.write_attempt("noise", row(attempt="first"), [])
    assert not store.root.exists()


def test_an_attempt_is_never_overwritten(store):
    store.write_attempt("noise", row(status="ok"), curve(0.5))
    with pytest.raises(StorageError, match="a-1"):
        store.write_attempt("noise", row(status="failed", failure_class="oom"), curve(0.1))
    assert store.read("trials")[0]["status"].tolist() == ["ok"]
    assert store.read("epochs")[0]["value"].tolist() == [0.5]


def test_a_trial_row_that_exists_has_its_curve(store, monkeypatch):
    """The epochs are written first: where they fail there is no trial row either."""

    def full(path, write, **options):
        raise StorageError("full")

    monkeypatch.setattr(storage_tables, "write_atomically", full)
    with pytest.raises(StorageError):
        store.write_attempt("noise", row(), curve(0.5))
    monkeypatch.undo()
    order = []
    monkeypatch.setattr(storage_store, "write_rows", lambda path, schema, rows, **options: order.append(path.parts[-3]))
    store.write_attempt("noise", row(), curve(0.5))
    assert order == ["epochs", "trials"]


@pytest.mark.parametrize(
    "error", [ValueError("boom"), OSError(errno.EIO, "boom"), RuntimeError("boom"), KeyboardInterrupt()]
)
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    target = tmp_path / "deep" / "plan.json"
    write_atomically(target, lambda temporary: temporary.write_text("old", encoding="utf-8"))

    def fail(temporary):
        temporary.write_text("half", encoding="utf-8")
        raise error

    expected = StorageError if isinstance(error, OSError | RuntimeError) else type(error)
    with pytest.raises(expected):
        write_atomically(target, fail)
    assert target.read_text(encoding="utf-8") == "old" and files(tmp_path) == ["deep/plan.json"]


def test_while_it_is_written_a_file_has_a_hidden_name_that_readers_do_not_see(store):
    store.write_attempt("noise", row("a"), [])
    seen = {}

    def write(temporary):
        table = pa.Table.from_pylist([row("b")], schema=TRIALS)
        pq.write_table(table, temporary)
        seen["name"], seen["there"] = temporary.name, target.exists()
        seen["read"] = store.read("trials")
        seen["pandas"] = pd.read_parquet(store.root / "trials")["trial"].tolist()

    target = store.attempt_path("trials", "noise", "b", 1)
    write_atomically(target, write)
    assert seen["name"].startswith(".") and not seen["there"]
    assert seen["read"][0]["trial"].tolist() == ["a"] == seen["pandas"] and seen["read"][1] == {}
    assert store.read("trials")[0]["trial"].tolist() == ["a", "b"]


def test_a_folder_that_cannot_be_made_gives_one_sentence(tmp_path):
    (tmp_path / "results").write_text("a file where the folder should be", encoding="utf-8")
    store = Store(tmp_path / "results")
    with pytest.raises(StorageError, match=r"Cannot write .*results.*: check the folder's permissions"):
        store.write_attempt("noise", row(), [])
    with pytest.raises(StorageError, match=r"results.*: check the folder's permissions"):
        claim(store, "noise", "a")


@contextlib.contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_gives_one_sentence_and_loses_nothing(tmp_path):
    with small_disk(tmp_path / "disk", "128k") as disk:
        store = Store(disk / "results")
        written = []
        with pytest.raises(StorageError, match=r"^No space left to write .*: free some.*run again\.$") as error:
            for number in range(100):
                store.write_attempt("noise", row(f"t{number}"), curve(*[0.5] * 20, trial=f"t{number}"))
                written.append(f"t{number}")
        assert "\n" not in str(error.value)
        assert len(written) > 2
        trials, broken = store.read("trials")
        assert sorted(trials["trial"]) == sorted(written) and not broken
        assert set(store.read("epochs")[0]["trial"]) >= set(written)
        assert not [path for path in files(disk) if path.endswith(".tmp")]


def test_a_lease_on_a_full_disk_gives_the_sentence_too(tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        store = Store(disk / "results")
        store.root.mkdir()
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(b"x" * 2**20)
        with pytest.raises(StorageError, match=r"^No space left"):
            claim(store, "noise", "a")


def test_a_folder_has_one_name_whoever_asks_first(store):
    """Eight drivers on a new folder at once."""
    start, names = threading.Barrier(8), []

    def ask():
        start.wait()
        names.append(Store(store.root).identity())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(names) == 8 and set(names) == {store.identity()}
    store.check_identity(names[0])


def test_another_folder_is_told_from_this_one(store, tmp_path):
    here = store.identity()
    for elsewhere in (Store(tmp_path / "nowhere"), Store(tmp_path / "elsewhere")):
        if elsewhere.root.name == "elsewhere":
            elsewhere.identity()
        with pytest.raises(StorageError, match=rf"does not see the results folder {elsewhere.root}: give a --storage"):
            elsewhere.check_identity(here)
    assert not (tmp_path / "nowhere").exists()


text = st.text(st.characters(blacklist_categories=["Cs"]), max_size=20)
values = st.one_of(st.none(), st.floats(width=64))


@settings(max_examples=30)
@given(st.lists(st.tuples(text, values, st.none() | st.integers(-(2**31), 2**31 - 1)), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, rows):
    store = Store(tmp_path_factory.mktemp("round"))
    given_rows = [{"trial": t, "metric": t, "value": v, "epoch": e} for t, v, e in rows]
    write_rows(store.attempt_path("epochs", "s", "x", 1), EPOCHS, given_rows)
    found = pq.read_table(store.attempt_path("epochs", "s", "x", 1), partitioning=None).to_pylist()
    for mine, theirs in zip(given_rows, found, strict=True):
        assert {name: repr(theirs[name]) for name in mine} == {name: repr(value) for name, value in mine.items()}


def test_canonical_text_does_not_depend_on_the_order_of_keys():
    assert canonical({"b": [1, 2.5], "a": {"d": None, "c": "ü"}}) == '{"a":{"c":"ü","d":null},"b":[1,2.5]}'
    assert canonical({"a": {"c": "ü", "d": None}, "b": [1, 2.5]}) == canonical(
        {"b": [1, 2.5], "a": {"d": None, "c": "ü"}}
    )


# ---------------------------------------------------------------------------------------------------------- reading


def test_an_empty_store_reads_as_empty_tables_of_the_right_columns(store):
    for table, schema in TABLES.items():
        frame, broken = store.read(table)
        assert len(frame) == 0 and not broken
        assert list(frame.columns) == [*(["study"] if table in PARTITIONED else []), *schema.names]
    assert latest(store.read("trials")[0], {}).empty and len(store.plans()) == 0 and leases(store) == {}


@pytest.fixture
def joined(store, monkeypatch):
    """Seven trials, whose rows were read and are kept together; where their copy lies."""
    monkeypatch.setattr(storage_tables, "MANY", 5)
    for number in range(7):
        store.write_attempt("noise", row(f"t{number}", accuracy_last=number / 10), curve(0.5))
    path = store.root / "trials" / "study=noise" / storage_tables.JOINED
    assert not path.exists()
    store.read("trials", "noise")
    assert path.exists()
    return path


def same_with_and_without(store, joined, **wanted):
    """What is read through the copy, after a look that it is what the files say."""
    through, broken = store.read("trials", "noise", **wanted)
    plain, plain_broken = store.read("trials", "noise", check=True, **wanted)
    order = "trial" if "trial" in through else through.columns[0]
    pd.testing.assert_frame_equal(*(frame.sort_values(order, ignore_index=True) for frame in (through, plain)))
    assert broken == plain_broken
    return through


def test_rows_that_are_kept_together_are_those_of_the_files(store, joined):
    assert len(same_with_and_without(store, joined)) == 7
    narrowed = same_with_and_without(store, joined, columns=["trial", "study"], filters=[("accuracy_last", ">", 0.35)])
    assert sorted(narrowed["trial"]) == ["t4", "t5", "t6"] and set(narrowed["study"]) == {"noise"}
    assert len(pd.read_parquet(store.root / "trials")) == 7, "other readers do not see the copy"
    assert len(list(joined.parent.glob("*.parquet"))) == 7, "nor do those that take all *.parquet"


def test_new_changed_and_removed_files_are_told_from_their_copy(store, joined):
    path = store.attempt_path("trials", "noise", "t3", 1)
    path.unlink()
    write_rows(path, TRIALS, [row("t3", accuracy_last=0.99)])
    store.attempt_path("trials", "noise", "t5", 1).unlink()
    store.write_attempt("noise", row("new"), curve(0.5))
    read = same_with_and_without(store, joined).set_index("trial")["accuracy_last"]
    assert read["t3"] == 0.99 and "t5" not in read and "new" in read


def test_a_file_that_is_damaged_later_is_named_though_its_row_is_kept(store, joined):
    path = store.attempt_path("trials", "noise", "t3", 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert list(store.read("trials", "noise")[1]) == [path]
    assert len(same_with_and_without(store, joined)) == 6


@pytest.mark.parametrize("content", [b"", b"no parquet", None])
def test_a_damaged_or_foreign_copy_changes_nothing(store, joined, content):
    if content is None:
        write_rows(joined, TRIALS, [row("intruder")])
    else:
        joined.write_bytes(content)
    assert len(same_with_and_without(store, joined)) == 7
    assert pq.read_table(joined).num_rows == 7, "it is made again"


def test_where_no_copy_can_be_written_reading_works_as_well(store, joined):
    joined.unlink()
    joined.mkdir()
    assert len(same_with_and_without(store, joined)) == 7


def test_columns_filters_and_studies_narrow_what_is_read(store):
    for study in ("one", "two"):
        for trial in ("a", "b"):
            store.write_attempt(study, row(trial, replicate=ord(trial)), curve(0.1, 0.2, trial=trial))

    frame, _ = store.read("trials", "two", ["trial", "replicate"])
    assert list(frame.columns) == ["trial", "replicate"] and frame["replicate"].tolist() == [97, 98]
    frame, _ = store.read("trials", columns=["study", "trial"], filters=[("trial", "=", "b")])
    assert frame.to_numpy().tolist() == [["one", "b"], ["two", "b"]]
    frame, _ = store.read("epochs", "one", ["value"], [("trial", "=", "a"), ("epoch", ">", 1)])
    assert frame["value"].tolist() == [0.2]
    assert store.read("trials", columns=["study"])[0]["study"].tolist() == ["one", "one", "two", "two"]
    assert store.read("trials")[0].columns.tolist() == ["study", *TRIALS.names]
    with pytest.raises(KeyError, match="acuracy"):
        store.read("trials", columns=["acuracy"])


def test_only_the_wanted_columns_are_decoded(store):
    """A damaged page of another column does not matter."""
    store.write_attempt("noise", row(config="c" * 10_000, accuracy_last=0.5), [])
    path = store.attempt_path("trials", "noise", "a", 1)
    columns = pq.ParquetFile(path).metadata.row_group(0)
    place = next(columns.column(i) for i in range(columns.num_columns) if columns.column(i).path_in_schema == "config")
    content = bytearray(path.read_bytes())
    start = place.dictionary_page_offset or place.data_page_offset
    content[start : start + place.total_compressed_size] = bytes(place.total_compressed_size)
    path.write_bytes(content)
    frame, broken = store.read("trials", columns=["trial", "accuracy_last"])
    assert frame.to_numpy().tolist() == [["a", 0.5]] and not broken
    assert list(store.read("trials")[1]) == [path]


def test_damaged_parts_are_named_and_skipped(store):
    for trial in "abcd":
        store.write_attempt("noise", row(trial), [])
    truncated, empty, foreign = (store.attempt_path("trials", "noise", trial, 1) for trial in "abc")
    truncated.write_bytes(truncated.read_bytes()[:-20])
    empty.write_bytes(b"")
    pq.write_table(pa.table({"trial": ["c"], "attempt": ["one"]}), foreign)
    for arguments in ({}, {"columns": ["trial", "attempt"]}, {"filters": [("trial", "!=", "x")]}):
        frame, broken = store.read("trials", **arguments)
        assert frame["trial"].tolist() == ["d"] and list(broken) == [truncated, empty, foreign]


def test_a_part_cut_anywhere_is_named(store):
    store.write_attempt("noise", row("a"), [])
    store.write_attempt("noise", row("b"), [])
    path = store.attempt_path("trials", "noise", "b", 1)
    whole = path.read_bytes()
    for length in range(0, len(whole), 997):
        path.write_bytes(whole[:length])
        frame, broken = store.read("trials")
        assert frame["trial"].tolist() == ["a"] and list(broken) == [path], length


def test_a_flipped_byte_never_changes_a_value_and_never_hides_the_other_parts(store):
    store.write_attempt("noise", row("a", accuracy_last=0.5, config="x" * 300), [])
    store.write_attempt("noise", row("b", accuracy_last=0.5, config="y" * 300), [])
    path = store.attempt_path("trials", "noise", "b", 1)
    columns = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [columns.column(i) for i in range(columns.num_columns)]
    last = max(
        (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size for chunk in chunks
    )
    whole = path.read_bytes()
    for position in range(4, last, 41):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        frame, broken = store.read("trials")
        assert frame["trial"].tolist() in (["a"], ["a", "b"]), position
        assert (list(broken) == [path]) == (len(frame) == 1), position
        kept = frame.iloc[-1]
        assert (kept["accuracy_last"], kept["status"]) == (0.5, "ok"), position
        assert kept["config"] in ("x" * 300, "y" * 300), position


def test_a_file_from_before_a_column_existed_reads_as_null(store):
    store.write_attempt("noise", row("new", seconds=2.0), [])
    older = store.attempt_path("trials", "noise", "old", 1)
    pq.write_table(pa.table({"attempt": pa.array([1], pa.int64()), "trial": ["old"]}), older)
    frame, broken = store.read("trials")
    assert not broken and frame["trial"].tolist() == ["new", "old"]
    assert frame["seconds"].tolist()[0] == 2.0 and frame["seconds"].isna().tolist() == [False, True]
    assert frame["attempt"].tolist() == [1, 1]
    for wanted in (["trial"], ["trial", "status"]):
        frame, broken = store.read("trials", columns=wanted, filters=[("status", "=", "ok")])
        assert frame["trial"].tolist() == ["new"] and not broken


SCHEMA_1 = REPOSITORY / "tests" / "fixture" / "schema1"  # files of schema version 1, and their rows as text


@pytest.mark.parametrize("table", ["trials", "epochs"])
def test_files_of_schema_1_are_read_in_full(table):
    expected = json.loads((SCHEMA_1 / "rows.json").read_text(encoding="utf-8"))[table]
    frame, broken = Store(SCHEMA_1).read(table, "schema1")
    found = frame.assign(**{name: frame[name].map(datetime.isoformat) for name in frame if name.endswith("_at")})
    assert not broken and found[list(expected[0])].to_dict("records") == expected
    later = set(frame) - {"study", *expected[0]}  # columns that schema 1 did not have
    assert frame[list(later)].isna().all(axis=None)


def written_by_a_newer_version(store, trial, **columns):
    """A row with a column that today's schema lacks."""
    path = store.attempt_path("trials", "noise", trial, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"trial": [trial], "attempt": [1], "status": ["ok"], "schema_version": [storage_schema.SCHEMA_VERSION + 1]}
    pq.write_table(pa.table({**known, "carbon": [0.5], **columns}), path)
    return path


def test_files_of_a_newer_version_are_read_as_far_as_they_are_known_and_told(store):
    store.write_attempt("noise", row("a"), [])
    written_by_a_newer_version(store, "b")
    newer = storage_schema.SCHEMA_VERSION + 1
    told = rf"^Some files below .*study=noise were written by a newer.*is {newer}, .*update it\.$"
    with pytest.warns(UserWarning, match=told) as warned:
        frame, broken = store.read("trials", "noise")
    assert len(warned) == 1 and not broken
    assert frame[["trial", "status"]].to_numpy().tolist() == [["a", "ok"], ["b", "ok"]]
    with pytest.warns(UserWarning, match=told):  # whatever is asked for
        assert store.read("trials", "noise", ["trial"], [("trial", "=", "a")])[0]["trial"].tolist() == ["a"]
    changed = written_by_a_newer_version(store, "b", attempt=["first"])
    assert list(store.read("trials")[1]) == [changed]


@pytest.mark.parametrize("foreign", [{"x": [1]}, {"trial": pa.array([], pa.string())}, {"trial": ["a"], "atempt": [1]}])
def test_a_file_without_rows_of_its_table_is_named(store, foreign):
    """Of another kind, empty, or with a damaged name of a column, which no checksum guards."""
    store.write_attempt("noise", row("b"), [])
    path = store.attempt_path("trials", "noise", "a", 1)
    pq.write_table(pa.table(foreign), path)
    for columns in (None, ["trial", "attempt"], ["study", "attempt"]):
        frame, broken = store.read("trials", columns=columns)
        assert len(frame) == 1 and list(broken) == [path]


@pytest.mark.slow
def test_a_flipped_bit_in_the_description_of_the_columns_never_changes_a_value(store):
    store.write_attempt("noise", row("a", accuracy_last=0.5, host="laptop"), [])
    path = store.attempt_path("trials", "noise", "a", 1)
    whole, (before, _) = path.read_bytes(), store.read("trials")
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for position in range(start, len(whole) - 8, 7):
        flipped = whole[position] ^ (1 << position % 8)
        path.write_bytes(whole[:position] + bytes([flipped]) + whole[position + 1 :])
        assert list(store.read("trials")[1]) == [path], position
    for position in range(start - 8, start):  # in the checksum itself
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        frame, broken = store.read("trials")
        assert list(broken) == [path] or frame.equals(before)


def test_other_readers_read_files_with_a_checksum_of_the_footer(store):
    store.write_attempt("noise", row("a", accuracy_last=0.5), [])
    path = store.attempt_path("trials", "noise", "a", 1)
    assert footer.MARK in path.read_bytes()
    assert pd.read_parquet(path)["accuracy_last"].tolist() == [0.5]
    assert pq.read_metadata(path).num_rows == 1


def test_a_file_without_one_is_read_as_it_is():
    plain = io.BytesIO()
    pq.write_table(pa.table({"trial": ["a"]}), plain)
    content = plain.getvalue()
    assert footer.checked(content) == content and footer.checked(b"no parquet") == b"no parquet"
    assert footer.checked(footer.guarded(content)) != content
    with pytest.raises(pa.ArrowInvalid, match="description of its columns"):
        footer.checked(footer.guarded(content).replace(b"trial", b"train"))


def test_bad_files_among_many_are_named_in_order_and_hide_no_other(store):
    """In several groups, and so in several threads where there are cores."""
    names = [f"{number:04}" for number in range(2 * storage_tables.TOGETHER + 10)]
    for name in names:
        store.write_attempt("noise", row(name), [])
    paths = [store.attempt_path("trials", "noise", name, 1) for name in names]
    bad = [paths[3], *paths[storage_tables.TOGETHER : 2 * storage_tables.TOGETHER], paths[-1]]
    for path in bad:
        path.write_bytes(b"")
    frame, broken = store.read("trials")
    assert list(broken) == bad and len(frame) == len(paths) - len(bad)
    assert set(frame["study"]) == {"noise"}


def test_only_the_named_files_are_opened(store):
    for trial in "abc":
        store.write_attempt("noise", row(trial), curve(0.5, trial=trial))
    store.attempt_path("epochs", "noise", "c", 1).write_bytes(b"")
    assert store.read("epochs", "noise", files={"a-1", "b-1"})[1] == {}
    assert store.read("epochs", "noise", files={"b-1", "gone-1"})[0]["trial"].tolist() == ["b"]
    assert store.read("epochs", "noise", files=set())[0].empty
    assert list(store.read("epochs", "noise", files="c-*")[1]) == [store.attempt_path("epochs", "noise", "c", 1)]


# ------------------------------------------------------------------------------------------- copies and foreign parts


def foreign(store, table, name, from_table=None, trial="a"):
    """A file of this name among the parts of a table, with the rows of trial `trial`'s part."""
    source = store.attempt_path(from_table or table, "noise", trial, 1)
    path = source.parents[2] / table / "study=noise" / f"{name}.parquet"
    path.write_bytes(source.read_bytes())
    return path


@pytest.mark.parametrize("name", ["a-1 (conflicted copy)", "a-1 2", "a-2", "b-1", "copy-of-a-1", "a-01", "zz-1"])
@pytest.mark.parametrize("table", ["trials", "epochs"])
def test_a_part_whose_name_is_not_that_of_its_rows_is_left_out_and_told(store, table, name, capsys):
    store.write_attempt("noise", row("a", accuracy_last=0.5), curve(0.5, trial="a"))
    store.write_attempt("noise", row("c", accuracy_last=0.75), curve(0.75, trial="c"))
    before = store.read(table, "noise")[0]
    path = foreign(store, table, name)
    for wanted in ({}, {"check": True}, {"columns": ["study"]}, {"study": None}, {"files": "*-*"}):
        frame, left_out = store.read(table, **{"study": "noise", **wanted})
        assert len(frame) == len(before) and list(left_out) == [path]
    assert "name is not that of its rows" in left_out[path]
    assert store.next_attempt("noise", "a") == (3 if (table, name) == ("trials", "a-2") else 2)
    assert main(["doctor", "--storage", str(store.root)]) == 1
    assert f"left out {table}/study=noise/{name}.parquet (its name is not" in capsys.readouterr().out


def test_copies_of_plans_suggestions_and_events_are_left_out(store):
    plan = {"study": "noise", "preset": "base", "plan_hash": "0123456789ab", "plan": "{}"}
    store.write_plan(plan)
    store.write_plan({**plan, "study": "a-study", "preset": "a-preset"})
    store.write_event("noise", "run_started", "a", run="1")
    for number in range(2):
        store.write_suggestion("noise", {"search": "noise/a", "number": number, "state": "complete"})
    for table, count in (("studies", 2), ("events", 1), ("suggestions", 2)):
        assert store.read(table)[1] == {}
        paths = sorted((store.root / table).rglob("*.parquet"))
        copies = [
            paths[0].with_stem(f"{paths[0].stem}{ending}") for ending in (" (1)", ".sync-conflict-20261121", "-x")
        ]
        for copy in copies:
            copy.write_bytes(paths[0].read_bytes())
        frame, left_out = store.read(table)
        assert len(frame) == count and list(left_out) == sorted(copies)
    assert store.plans("noise")["preset"].tolist() == ["base"]


def test_a_part_replaced_by_one_of_another_trial_is_no_row_of_either(store):
    for trial in "ab":
        store.write_attempt("noise", row(trial), [])
    path = foreign(store, "trials", "b-1")
    frame, left_out = store.read("trials")
    assert frame["trial"].tolist() == ["a"] and list(left_out) == [path]


def test_rows_that_are_there_twice_count_once_and_are_told(store, capsys):
    """In a file of many attempts: those that have a part of their own, and those that are in it twice."""
    for trial in "ab":
        store.write_attempt("noise", row(trial, accuracy_last=0.5), curve(0.4, 0.5, trial=trial))
    many = store.root / "trials" / "study=noise" / "all.parquet"
    rows = [row("a", accuracy_last=0.9), row("a", 2, accuracy_last=0.9), row("c"), row("c")]
    storage_tables.write_rows(many, TRIALS, rows)
    epochs = store.root / "epochs" / "study=noise" / "all.parquet"
    curves = curve(0.9, 0.9, trial="a") + curve(0.9, trial="c") * 2
    storage_tables.write_rows(epochs, storage_schema.EPOCHS, curves)
    for wanted in ({}, {"check": True}, {"columns": ["trial", "accuracy_last"]}):
        frame, left_out = store.read("trials", "noise", **wanted)
        assert sorted(frame["trial"]) == ["a", "a", "b", "c"] and list(left_out) == [many]
        assert frame["accuracy_last"].sum() == 0.5 + 0.9 + 0.5
    frame, left_out = store.read("epochs", "noise")
    assert list(left_out) == [epochs] and frame.groupby("trial")["value"].agg(list).to_dict() == {
        "a": [0.4, 0.5],
        "b": [0.4, 0.5],
        "c": [0.9],
    }
    assert main(["doctor", "--storage", str(store.root)]) == 1
    said = capsys.readouterr().out
    assert (
        "left out trials/study=noise/all.parquet (2 of its rows; rows that are there twice count once): remove" in said
    )
    store.attempt_path("trials", "noise", "a", 1).write_bytes(b"")
    frame, left_out = store.read("trials", "noise")
    assert sorted(frame["trial"]) == ["a", "a", "b", "c"], "the copy counts where the part itself cannot be read"
    more = many.with_name("more.parquet")
    storage_tables.write_rows(more, TRIALS, [row("c"), row("d")])
    frame, left_out = store.read("trials", "noise")
    assert sorted(frame["trial"]) == ["a", "a", "b", "c", "d"] and more in left_out


def test_the_kept_rows_of_a_misnamed_part_do_not_count(store, joined):
    """A joined file of an earlier version holds the rows of every part that could be read."""
    path = store.root / "trials" / "study=noise" / storage_tables.JOINED
    rows = pq.read_table(path)
    copy = foreign(store, "trials", "t3-1 (conflicted copy)", trial="t3")
    about = copy.stat()
    one = rows.filter(pc.equal(rows["part"], "t3-1.parquet")).to_pylist()[0]
    again = {**one, "part": copy.name, "stamp": f"{about.st_size}-{about.st_mtime_ns}"}
    pq.write_table(pa.concat_tables([rows, pa.Table.from_pylist([again], schema=rows.schema)]), path)
    frame, left_out = store.read("trials", "noise")
    assert frame["trial"].is_unique and list(left_out) == [copy]


def test_a_folder_that_cannot_be_read_is_no_empty_table(store):
    store.write_attempt("noise", row("a"), [])
    folder = store.root / "trials" / "study=noise"
    folder.rename(store.root / "elsewhere")
    folder.symlink_to(folder.name)
    with pytest.raises(StorageError, match=r"study=noise cannot be read .*symbolic links"):
        store.read("trials", "noise")


def test_pandas_reads_the_folder_by_itself(store):
    """Two studies, columns that are null in one or in both, and a half-written file beside them."""
    store.write_attempt("one", row("a", accuracy_last=0.5, git_dirty=True), curve(0.5))
    store.write_attempt("two", row("b", status="failed", failure_class="oom", started_at=places.now()), [])
    (store.root / "trials" / "study=one" / ".b-1.parquet.1-2.tmp").write_bytes(b"half")
    frame = pd.read_parquet(store.root / "trials").sort_values("trial")
    assert frame["study"].tolist() == ["one", "two"] and frame["trial"].tolist() == ["a", "b"]
    assert frame["accuracy_last"].tolist()[0] == 0.5 and frame["accuracy_last"].isna().tolist() == [False, True]
    assert frame["started_at"].isna().tolist() == [True, False]
    assert frame["peak_memory_mb"].isna().all() and frame["peak_memory_mb"].dtype == float
    assert pd.read_parquet(store.root / "epochs")["value"].tolist() == [0.5]


def test_plans_come_back_oldest_first_and_events_are_never_lost(store):
    for plan, minute in (("old", 2), ("new", 1)):  # a clock was ahead: who came last is the newest
        at = datetime(2026, 1, 1, 0, minute, tzinfo=UTC)
        fields = {"study": "noise", "preset": "base", "plan_hash": plan, "plan": "{}", "submitted_at": at}
        store.write_plan(fields)
        store.write_plan(fields)  # the same plan again is the same file
    store.write_plan({"study": "other", "preset": "base", "plan_hash": "x", "plan": "{}", "submitted_at": at})
    assert store.plans("noise")["plan_hash"].tolist() == ["old", "new"]
    assert len(store.plans()) == 3
    for number in range(20):  # within one second
        store.write_event("noise", "retried", "a", number=number)
    events, _ = store.read("events")
    assert sorted(json.loads(payload)["number"] for payload in events["payload"]) == list(range(20))


# ------------------------------------------------------------------------------------------------- outcomes and rules


def attempts(*rows):
    return pd.DataFrame(list(rows), columns=["trial", "attempt", "status", "failure_class"])


@pytest.mark.parametrize(
    "history, expected",
    [
        ([(1, "ok", None)], 1),
        ([(1, "preempted", "preempted"), (2, "ok", None)], 2),
        ([(1, "failed", "oom"), (2, "ok", None)], 2),
        ([(1, "ok", None), (2, "failed", "code_error")], 1),  # a failed rerun of a stale trial loses nothing
        ([(1, "ok", None), (2, "ok", None)], 2),
        ([(1, "failed", "nan")], 1),
        ([(1, "failed", "nan"), (2, "failed", "oom")], 1),
        ([(1, "failed", "nan"), (2, "ok", None)], 2),
        ([(1, "ok", None), (2, "failed", "nan")], 2),
        ([(1, "failed", "oom"), (2, "failed", "timeout")], 2),
        ([(1, "failed", "oom"), (2, "preempted", "preempted")], 2),
        ([(10, "ok", None), (9, "ok", None)], 10),
    ],
)
def test_the_latest_attempt_is_the_newest_finished_one_else_the_newest(history, expected):
    for order in (history, history[::-1]):
        frame = attempts(*(("a", *entry) for entry in order), ("b", 1, "failed", "oom"))
        found = latest(frame, {}).set_index("trial")
        assert found.loc["a", "attempt"] == expected and found.loc["b", "attempt"] == 1 and len(found) == 2
        assert list(found.columns) == ["attempt", "status", "failure_class", "stale"]


def test_only_training_to_the_end_and_divergence_are_outcomes():
    frame = attempts(
        ("a", 1, "ok", None),
        ("b", 1, "failed", "nan"),
        *((name, 1, "failed", name) for name in ("oom", "timeout", "code_error", "data_error")),
        ("c", 1, "preempted", "preempted"),
    )
    assert frame["trial"][is_outcome(frame)].tolist() == ["a", "b"]


def test_latest_works_on_what_the_store_reads(store):
    store.write_attempt("noise", row("a", 1, "preempted", "preempted"), [])
    store.write_attempt("noise", row("a", 2), [])
    store.write_attempt("noise", row("b", 1), [])
    frame = latest(store.read("trials")[0], {})
    assert frame[["trial", "attempt"]].to_numpy().tolist() == [["a", 2], ["b", 1]]


nan = float("nan")


@pytest.mark.parametrize(
    "test, validation, last, last10, selected, epoch, best",
    [
        ([0.5], None, 0.5, 0.5, None, None, 0.5),
        ([0.2, 0.6, 0.4], None, 0.4, 0.4, None, None, 0.6),  # fewer than ten epochs: all of them
        ([0.2, 0.6, 0.4], [0.1, 0.3, 0.9], 0.4, 0.4, 0.4, 3, 0.6),
        ([0.2, 0.6, 0.4], [0.7, 0.7, 0.1], 0.4, 0.4, 0.2, 1, 0.6),  # a tie: the first epoch
        ([0.2, 0.6, 0.4], [nan, 0.3, 0.1], 0.4, 0.4, 0.6, 2, 0.6),
        ([0.2, 0.6, 0.4], [nan, nan, nan], 0.4, 0.4, None, None, 0.6),
        ([0.2, 0.6, 0.4], [], 0.4, 0.4, None, None, 0.6),  # no validation set
        ([0.2, 0.6, nan], [0.1, 0.2, 0.3], nan, nan, nan, 3, 0.6),
        ([nan, nan], None, nan, nan, None, None, nan),
        ([1.0, *[0.0] * 5, *[0.5] * 5], None, 0.5, 0.25, None, None, 1.0),  # eleven epochs: the first drops out
        ([i / 20 for i in range(20)], None, 0.95, 0.725, None, None, 0.95),
    ],
)
def test_selection_rules_on_curves_worked_out_by_hand(test, validation, last, last10, selected, epoch, best):
    assert selection_rules(test, validation) == {
        "accuracy_last": pytest.approx(last, nan_ok=True),
        "accuracy_last10": pytest.approx(last10, nan_ok=True),
        "accuracy_val_selected": None if selected is None else pytest.approx(selected, nan_ok=True),
        "epoch_val_selected": epoch,
        "accuracy_best_test": pytest.approx(best, nan_ok=True),
    }


def test_selection_rules_refuse_curves_of_different_lengths_and_know_nothing_of_no_curve():
    assert selection_rules([]) == {}
    with pytest.raises(ValueError, match=r"3.*2|2.*3"):
        selection_rules([0.1, 0.2, 0.3], [0.1, 0.2])


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=30))
def test_the_oracle_is_never_beaten(pairs):
    test, validation = zip(*pairs, strict=True)
    found = selection_rules(test, validation)
    picked = found["epoch_val_selected"] - 1
    assert validation[picked] == max(validation) and picked == validation.index(max(validation))
    assert found["accuracy_val_selected"] == test[picked] and found["accuracy_last"] == test[-1]
    assert found["accuracy_last10"] == pytest.approx(math.fsum(test[-10:]) / len(test[-10:]))
    assert found["accuracy_best_test"] == max(test)


# ----------------------------------------------------------------------------------------------------------- leases

HOLD = """
import sys
from pathlib import Path
from lnl.storage.leases import claim
from lnl.storage.store import Store
lease, _ = claim(Store(Path(sys.argv[1])), "noise", sys.argv[2], arm="full")
with lease:
    print("held", flush=True)
    sys.stdin.read()
"""
RACE = """
import json, sys, time
from pathlib import Path
from lnl.storage.leases import claim
from lnl.storage.store import Store
store, go = Store(Path(sys.argv[1])), Path(sys.argv[2])
print("ready", flush=True)
while not go.exists():
    time.sleep(0.001)
mine = [number for number in range(200) if claim(store, "noise", f"t{number}")[0] is not None]
print(json.dumps(mine), flush=True)
sys.stdin.read()  # a lease lives as long as its process
"""


@contextlib.contextmanager
def process(script, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", env=environment)
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdin.close()
        child.stdout.close()


def test_a_living_holder_keeps_others_out_and_a_killed_one_does_not(store):
    with process(HOLD, store.root, "a") as holder:
        assert holder.stdout.readline() == "held\n"
        lease, record = claim(store, "noise", "a")
        assert lease is None and record["pid"] == holder.pid and record["arm"] == "full"
        assert leases(store)["noise", "a"]["alive"] is True
        assert claim(store, "noise", "b")[0] is not None  # another trial is free

        holder.kill()  # SIGKILL; nobody has waited for it yet, so that the system still knows its number
        began = time.monotonic()
        while (found := claim(store, "noise", "a"))[0] is None and time.monotonic() - began < 5:
            time.sleep(0.01)
        assert found[0] is not None and found[1]["pid"] == holder.pid, "a killed process must not keep its lease"
        assert time.monotonic() - began < 2, "seen at once, not after the heartbeat's expiry"
        assert claim(store, "noise", "a")[1]["pid"] == os.getpid()  # now it is ours


def test_a_holder_that_ends_gives_its_lease_back(store):
    with process(HOLD, store.root, "a") as holder:
        holder.stdout.readline()
        assert holder.communicate("", timeout=10) and holder.returncode == 0
        assert leases(store) == {}
        lease, previous = claim(store, "noise", "a")
        assert lease is not None and previous is None


@pytest.mark.slow
def test_two_processes_that_race_share_the_trials_without_overlap(store, tmp_path):
    go = tmp_path / "go"
    with process(RACE, store.root, go) as one, process(RACE, store.root, go) as other:
        assert one.stdout.readline() == other.stdout.readline() == "ready\n"
        go.touch()
        claimed = [json.loads(child.stdout.readline()) for child in (one, other)]
        assert sorted(claimed[0] + claimed[1]) == list(range(200))
        assert all(claimed), "both came to the race"


def test_within_one_process_a_trial_is_claimed_once_and_released_at_the_end(store):
    lease, previous = claim(store, "noise", "a")
    assert previous is None
    with lease:
        assert claim(store, "noise", "a")[0] is None
    assert claim(store, "noise", "a")[0] is not None


def test_a_lease_of_another_host_lapses_with_its_heartbeat(store):
    lease, _ = claim(store, "noise", "a")
    record = {**json.loads(lease.path.read_text(encoding="utf-8")), "host": "elsewhere/0/", "pid": 1}
    lease.path.write_text(canonical(record), encoding="utf-8")
    recent, old = time.time() - storage_leases.EXPIRY_S + 20, time.time() - storage_leases.EXPIRY_S - 1
    os.utime(lease.path, (recent, recent))
    assert claim(store, "noise", "a") == (None, record) and leases(store)["noise", "a"]["alive"] is True
    os.utime(lease.path, (old, old))
    assert leases(store)["noise", "a"]["alive"] is False
    again, previous = claim(store, "noise", "a")
    assert again is not None and previous == record

    with lease:
        pass  # the first holder comes back late: it must not take the new holder's lease away
    assert claim(store, "noise", "a")[1]["token"] == again.token


def test_a_driver_takes_over_from_its_own_lost_worker_at_once(store):
    lost, _ = claim(store, "noise", "a", run="mine")
    assert claim(store, "noise", "a", run="another's")[0] is None and claim(store, "noise", "a")[0] is None
    again, previous = claim(store, "noise", "a", run="mine")
    assert again is not None and previous == lost.record
    assert not lost.renew() and lost.lost, "a worker that was only cut off drops its attempt"


def test_a_held_lease_beats(store, monkeypatch):
    monkeypatch.setattr(storage_leases, "HEARTBEAT_S", 0.01)
    lease, _ = claim(store, "noise", "a")
    os.utime(lease.path, (0, 0))
    with lease:
        began = time.monotonic()
        while lease.path.stat().st_mtime == 0 and time.monotonic() - began < 5:
            time.sleep(0.01)
        assert time.time() - lease.path.stat().st_mtime < 5


def test_a_number_that_another_process_got_meanwhile_is_no_holder(store):
    lease, _ = claim(store, "noise", "a")
    record = json.loads(lease.path.read_text(encoding="utf-8"))
    lease.path.write_text(canonical({**record, "born": record["born"] - 3600}), encoding="utf-8")
    assert leases(store)["noise", "a"]["alive"] is False
    assert claim(store, "noise", "a")[0] is not None


def test_a_damaged_lease_holds_nothing(store):
    lease, _ = claim(store, "noise", "a")
    for content in ("", '{"token": "ab', "[]"):
        lease.path.write_text(content, encoding="utf-8")
        assert leases(store) == {}
        assert claim(store, "noise", "a")[0] is not None


@pytest.mark.parametrize("links", [True, False])
def test_what_is_written_once_is_never_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    """Also where somebody else writes it after the look whether it is there."""
    if not links:

        def refuse(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", refuse)  # as some file systems do
    path = tmp_path / "row.parquet"
    write_atomically(path, lambda temporary: temporary.write_text("first", encoding="utf-8"), once=True)
    with pytest.raises(StorageError):
        write_atomically(path, lambda temporary: temporary.write_text("second", encoding="utf-8"), once=True)
    assert path.read_text(encoding="utf-8") == "first" and [one.name for one in tmp_path.iterdir()] == ["row.parquet"]
    write_atomically(path, lambda temporary: temporary.write_text("third", encoding="utf-8"))
    assert path.read_text(encoding="utf-8") == "third", "what may be replaced is"


def test_leftovers_of_a_finished_trial_go_and_those_of_others_stay(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for trial in ("finished", "unfinished"):
        lease, _ = claim(store, "noise", trial)
        assert lease is not None  # never entered, so never released: its holder ends without a word
        record = json.loads(store.lease_path("noise", trial).read_text(encoding="utf-8"))
        store.lease_path("noise", trial).write_text(json.dumps({**record, "pid": 2**22 + 1}), encoding="utf-8")
        store.checkpoint_path("noise", trial).parent.mkdir(parents=True, exist_ok=True)
        store.checkpoint_path("noise", trial).write_text("state", encoding="utf-8")
        store.request_prune("noise", trial)
    living, _ = claim(store, "noise", "living")
    assert living is not None
    tidy_leases(store, "noise", {"finished", "living"})
    assert sorted(leases(store)) == [("noise", "living"), ("noise", "unfinished")]
    assert (
        not store.checkpoint_path("noise", "finished").exists()
        and store.checkpoint_path("noise", "unfinished").exists()
    )
    assert not store.pop_prune_request("noise", "finished") and store.pop_prune_request("noise", "unfinished")

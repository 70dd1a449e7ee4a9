"""Results on object storage, against a real S3 server on this machine: moto, as a process of its own.

What pathlib's subset, the store and the leases promise is asked of a folder and of a bucket by the same assertions.
`LNL_S3_TRIALS=200` runs the test of two drivers at its full size; CI runs a small one.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lnl.cli.main import main
from lnl.storage import atomic, kept, objects, places, tables
from lnl.storage import leases as storage_leases
from lnl.storage.exchange import SharedFile
from lnl.storage.kept import Outputs
from lnl.storage.leases import Lease, claim, is_held, leases
from lnl.storage.objects import ObjectPath, StorageError
from lnl.storage.part_names import KEPT
from lnl.storage.places import Place, canonical, place
from lnl.storage.schema import PREDICTIONS
from lnl.storage.store import Store
from lnl.system import processes
from tests.storage.test_results import curve, row

REPOSITORY = Path(__file__).parents[2]
KEY, SECRET = "AKIALABORATORYKEY", "a secret of forty characters, never told"
TRIALS = int(os.environ.get("LNL_S3_TRIALS", 8))  # of the test with two drivers

# moto looks and writes in two steps: one request at a time, a conditional PUT is as atomic as S3's
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app), threaded=False)
"""
# The network between: may be cut by killing it, and loses the first answer, or all conditions, where it is asked to.
WIRE = """
import re, socket, sys, threading
near, far, loses = socket.create_server(("127.0.0.1", int(sys.argv[1]))), int(sys.argv[2]), sys.argv[3]
def pump(source, target):
    try:
        while data := source.recv(65536):
            if loses == "conditions":
                data = re.sub(rb"(?i)\\r\\nif-", b"\\r\\nno-", data)
            target.sendall(data)
    except OSError:
        pass
    try:
        target.shutdown(socket.SHUT_WR)  # a `close` would wait for the other direction, and the server with it
    except OSError:
        pass
while True:
    here, _ = near.accept()
    there = socket.create_connection(("127.0.0.1", far))
    threading.Thread(target=pump, args=(here, there), daemon=True).start()
    if loses == "an answer":
        loses = "nothing"
        there.recv(65536)  # it came: the request was carried out
        here.shutdown(socket.SHUT_RDWR)
        continue
    threading.Thread(target=pump, args=(there, here), daemon=True).start()
"""


def free_port() -> int:
    """Below those that the system gives to connections, which would take it while nobody listens."""
    while True:
        port = random.SystemRandom().randrange(12000, 30000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def process(script: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, encoding="utf-8", env=environment, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


@contextlib.contextmanager
def listening(script: str, port: int, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    with process(script, port, *arguments) as child:
        while not listens(port):
            assert child.poll() is None, "the server has ended"
            time.sleep(0.02)
        yield child


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[int, subprocess.Popen[str]]]:
    port = free_port()
    with listening(SERVER, port) as child:
        tell(port, "/lab", method="PUT")
        yield port, child


def tell(port: int, path: str, content: bytes = b"", method: str = "POST") -> None:
    headers = {"Content-Type": "text/plain"}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", content, headers, method=method)
    urllib.request.urlopen(asked, timeout=30).close()


@pytest.fixture
def bucket(server, monkeypatch, tmp_path) -> Iterator[ObjectPath]:
    """An empty prefix."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    reach(monkeypatch, server[0])
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield ObjectPath("lab", tmp_path.name)
    forget()


def reach(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    forget()


def forget() -> None:
    objects._client.cache_clear()
    objects._reached.clear()


@pytest.fixture(params=["folder", "bucket"])
def root(request, tmp_path) -> Place:
    """Where results may be."""
    if request.param == "bucket":
        return request.getfixturevalue("bucket")
    return tmp_path


@pytest.fixture
def store(root) -> Store:
    return Store(root / "results")


# ------------------------------------------------------------------------------------------------- pathlib's subset


def test_a_path_of_either_kind_does_the_same(root):
    (root / "a" / "study=x").mkdir(parents=True, exist_ok=True)
    (root / "b").mkdir()
    names = ["a/study=x/k-1.txt", "a/study=x/k-2.txt", "a/study=x/kk-1.txt", "a/study=x/.k-3.txt", "b/k-4.txt"]
    for name in names:
        (root / name).write_text(name, encoding="utf-8")
    folder, one = root / "a" / "study=x", root / names[0]

    assert [(root / name).read_text(encoding="utf-8") for name in names] == names
    assert one.read_bytes() == names[0].encode() and one.stat().st_size == len(names[0]) and one.exists()
    assert abs(one.stat().st_mtime - time.time()) < 60 and one.stat().st_mtime_ns // 10**9 == int(one.stat().st_mtime)

    def found(paths):
        return sorted(path.relative_to(root).as_posix() for path in paths)

    assert found(folder.glob("k-*.txt")) == names[:2] and found(folder.glob("k-1.txt")) == names[:1]
    assert found(folder.glob("*")) == sorted(names[:4]) and found(root.glob("*.txt")) == []
    assert found(root.rglob("k-*.txt")) == [*names[:2], names[4]] and found(root.rglob(".k*")) == [names[3]]
    assert found((root / "nowhere").rglob("*")) == [] and found((root / "a").glob("k-*")) == []
    assert [path.stat().st_size for path in sorted(folder.glob("k-*"))] == [len(name) for name in names[:2]]

    assert (one.name, one.stem, one.suffix) == ("k-1.txt", "k-1", ".txt")
    assert (
        one.parent == folder
        and one.parent.name == "study=x"
        and one.with_suffix(".labels.npy").name[3:] == ".labels.npy"
    )
    assert one.with_name("z").parent == folder and one.with_name("z").name == "z"
    assert one.is_relative_to(root) and not root.is_relative_to(one) and root / "a/study=x" == folder
    assert sorted([root / "b", root / "a"]) == [root / "a", root / "b"] and len({folder, root / "a" / "study=x"}) == 1
    with pytest.raises(ValueError):
        folder.relative_to(root / "b")
    again = pickle.loads(pickle.dumps(one))
    assert (
        again == one
        and hash(again) == hash(one)
        and str(again) == str(one)
        and again.read_text(encoding="utf-8") == names[0]
    )

    moved = one.replace(root / "b" / "moved.txt")
    assert moved.read_text(encoding="utf-8") == names[0] and not one.exists()
    moved.write_bytes(b"other")
    assert moved.read_text(encoding="utf-8") == "other"
    for act in (one.read_bytes, one.stat, one.unlink):
        with pytest.raises(FileNotFoundError):
            act()
    one.unlink(missing_ok=True)
    one.touch()
    assert one.exists() and one.read_bytes() == b""
    one.unlink()
    assert not one.exists()


def test_what_glob_found_needs_no_further_request(bucket, server, monkeypatch):
    for number in range(3):
        (bucket / f"k-{number}").write_text(str(number), encoding="utf-8")
    paths = list(bucket.glob("k-*"))
    assert [path.read_text(encoding="utf-8") for path in paths] == ["0", "1", "2"]
    reach(monkeypatch, free_port())  # nobody there
    assert [path.stat().st_size for path in paths] == [1, 1, 1] and all(path.exists() for path in paths)
    assert [path.read_text(encoding="utf-8") for path in paths] == ["0", "1", "2"], (
        "small ones stay in memory, by their tags"
    )
    reach(monkeypatch, server[0])
    (bucket / "k-1").write_text("new", encoding="utf-8")
    assert [path.read_text(encoding="utf-8") for path in bucket.glob("k-*")] == ["0", "new", "2"]


def test_a_large_object_goes_up_in_parts_and_comes_back_whole(bucket, tmp_path):
    content = os.urandom(12 * 2**20)
    atomic.write_atomically(bucket / "large.pt", lambda temporary: temporary.write_bytes(content))
    assert (bucket / "large.pt").read_bytes() == content
    assert not list(tmp_path.iterdir()), "nothing stays behind"


# ------------------------------------------------------------------------------------------------- the text of a place


def test_the_text_of_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert place("results") == tmp_path / "results" and place("~") == Path.home()
    for text in ("s3://lab/a/b", "s3://lab/a//b/", Path("s3://lab/a/b"), ObjectPath("lab", "a/b")):
        assert place(text) == ObjectPath("lab", "a/b") and str(place(text)) == "s3://lab/a/b"
    assert str(place("s3://lab")) == "s3://lab" and place("s3://lab") / "x" == ObjectPath("lab", "x")


@pytest.mark.parametrize(
    "text, words",
    [
        ("s3://key:hunter2@lab/results", "the endpoint and the keys belong in the environment of every node"),
        ("s3://lab/results?secret_key=hunter2", "the endpoint and the keys belong in the environment of every node"),
        ("s3://", "is not a bucket's name: give --storage s3://bucket/prefix"),
        ("s3://lab/../other", "has no '..'"),
        ("gs://hunter2/x", "A storage is a folder or s3://bucket/prefix, and no other address"),
    ],
)
def test_a_place_that_cannot_be_meant_gets_one_sentence_without_its_secrets(text, words, capsys):
    with pytest.raises(ValueError, match=words.replace(".", r"\.")) as error:
        place(text)
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--storage", text])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and words in said and "Traceback" not in said
    assert "hunter2" not in said + str(error.value)


# ------------------------------------------------------------------------------------------------------------ errors


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str) -> str:
    monkeypatch.setattr(objects, "FIRST_PATIENCE_S", 0.2)
    forget()
    assert main(["report", "quick", "--storage", text]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and SECRET not in said and KEY not in said and "Traceback" not in said
    return said


def test_what_cannot_be_reached_gets_one_sentence_without_secrets(bucket, server, monkeypatch, capsys):
    assert "There is no bucket s3://elsewhere at http" in refusal(monkeypatch, capsys, "s3://elsewhere/results")
    tell(server[0], "/moto-api/reset-auth", b"0")  # from now on moto asks who it is
    try:
        sentence = refusal(monkeypatch, capsys, str(bucket))
        with pytest.raises(StorageError, match="refuses these credentials"):
            (bucket / "x").write_text("1", encoding="utf-8")
    finally:
        tell(server[0], "/moto-api/reset-auth", b"inf")
    assert "refuses these credentials (InvalidAccessKeyId): set AWS_ACCESS_KEY_ID" in sentence
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    assert "does not answer (no answer): see that AWS_ENDPOINT_URL is right" in refusal(
        monkeypatch, capsys, str(bucket)
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{KEY}:{SECRET}@somewhere")
    assert "AWS_ENDPOINT_URL is not an address" in refusal(monkeypatch, capsys, str(bucket))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server[0]}")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    assert "The AWS_… variables of this machine cannot be used" in refusal(monkeypatch, capsys, str(bucket))
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", f"http://127.0.0.1:{free_port()}")  # a machine without a role
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "No credentials for s3://lab at http" in refusal(monkeypatch, capsys, str(bucket))


def test_a_storage_that_ignores_conditions_is_refused(bucket, server, monkeypatch):
    wire = free_port()
    Store(bucket / "before").identity()
    with listening(WIRE, wire, server[0], "conditions"):
        reach(monkeypatch, wire)
        with pytest.raises(StorageError, match=r"ignores the conditions of a PUT \(If-None-Match, If-Match\)"):
            Store(bucket / "after").identity()
    reach(monkeypatch, server[0])
    assert [path.name for path in bucket.rglob("*")] == [".identity"], "of the one before"


def test_a_search_on_object_storage_asks_for_a_database(bucket, tmp_path, capsys):
    from lnl.search.optuna_objects import open_storage

    with pytest.raises(ValueError, match=r"Optuna keeps no journal on object storage.*postgresql://user@host/name\.$"):
        open_storage(None, bucket)
    storage = open_storage(f"sqlite:///{tmp_path}/optuna.db", bucket)
    assert storage.get_all_studies() == [] and not list(bucket.rglob("*")), "the lock of its first use is given back"


# ------------------------------------------------------------------------------------------------------------- rows


def test_what_a_store_writes_it_reads_and_never_overwrites(store):
    identity = store.identity()
    assert identity == store.identity() and len(identity) == 32
    store.check_identity(identity)
    with pytest.raises(StorageError, match="does not see the results folder"):
        Store(store.root / "other").check_identity(identity)

    store.write_attempt("one", row("a", accuracy_last=0.5), curve(0.25, 0.5))
    store.write_attempt("two", row("b", status="failed", failure_class="oom"), [])
    before = store.attempt_path("epochs", "one", "a", 1).read_bytes()
    with pytest.raises(StorageError, match=r"a-1\.parquet is there already, and attempts are never overwritten"):
        store.write_attempt("one", row("a", accuracy_last=0.9), curve(0.9))
    assert store.attempt_path("epochs", "one", "a", 1).read_bytes() == before
    store.write_attempt("one", row("a", 2, accuracy_last=0.75), [])
    store.write_attempt("one", row("ab"), [])
    assert store.next_attempt("one", "a") == 3 and store.next_attempt("one", "c") == 1

    frame, broken = store.read("trials")
    assert not broken and frame.sort_values(["trial", "attempt"])["accuracy_last"].dropna().tolist() == [0.5, 0.75]
    assert frame["study"].tolist() == ["one", "one", "one", "two"]
    assert store.read("trials", "one", files="a-*")[0]["attempt"].tolist() == [1, 2]
    assert store.read("epochs", "one", files={"a-1"})[0]["value"].tolist() == [0.25, 0.5]
    plan = {"study": "one", "preset": "base", "plan_hash": "x", "plan": "{}", "submitted_at": places.now()}
    store.write_plan(plan)
    store.write_plan(plan)
    for number in range(3):
        store.write_event("one", "retried", "a", number=number)
    assert len(store.plans()) == 1 and len(store.read("events", files="*-retried-*")[0]) == 3
    assert not store.pop_prune_request("noise", "a")
    store.request_prune("noise", "a")
    assert store.pop_prune_request("noise", "a") and not store.pop_prune_request("noise", "a")


def test_damaged_and_truncated_files_are_named_and_hide_no_other(store, capsys):
    for trial in "abc":
        store.write_attempt("noise", row(trial), curve(0.5, trial=trial))
    paths = [store.attempt_path("trials", "noise", trial, 1) for trial in "ab"]
    paths[0].write_bytes(paths[0].read_bytes()[:-30])
    paths[1].write_bytes(b"")
    frame, broken = store.read("trials")
    assert frame["trial"].tolist() == ["c"] and list(broken) == paths
    assert main(["doctor", "--storage", str(store.root)]) == 1
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("left out trials/study=noise/a-1.parquet (")]
    assert line.endswith("): remove it, then run the study again.")
    assert ("free_gib" in said) == isinstance(store.root, Path)


def test_rows_are_read_together_and_a_changed_file_anew(store, monkeypatch):
    monkeypatch.setattr(tables, "MANY", 5)
    for number in range(8):
        store.write_attempt("noise", row(f"t{number}", accuracy_last=number / 8), [])
    first, _ = store.read("trials")
    assert (store.root / "trials" / "study=noise" / ".joined").exists()
    store.write_attempt("noise", row("t8", accuracy_last=1.0), [])
    gone = store.attempt_path("trials", "noise", "t0", 1)
    gone.unlink()
    second, broken = store.read("trials")
    assert first["trial"].tolist() == [f"t{number}" for number in range(8)] and not broken
    assert second["trial"].tolist() == [f"t{number}" for number in range(1, 9)]
    pd.testing.assert_frame_equal(second, store.read("trials", check=True)[0])


def test_what_trials_keep_is_written_and_read_and_damage_is_told(store):
    schema = pa.schema(
        [field for field in PREDICTIONS if field.name not in ("trial", "attempt", "epoch", "schema_version")]
    )
    rows = [{"subset": "test", "index": place, "predicted": 1, "confidence": 0.5} for place in range(3)]
    outputs = Outputs(pa.Table.from_pylist(rows, schema=schema), weights={"part.weight": torch.arange(6.0).view(2, 3)})
    kept.write(store, "s3", "t", 1, 5, outputs)
    found, broken = store.read("predictions", "s3", files=["t-1"])
    assert not broken and found["index"].tolist() == [0, 1, 2] and set(found["epoch"]) == {5}
    path = store.kept_path("weights", "s3", "t", 1)
    assert kept.read_weights(path)["part.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    have = kept.attempts_with(store, "s3", KEPT)
    assert have == {"predictions": {"t-1"}, "beliefs": set(), "weights": {"t-1"}}
    assert kept.lacking("t-1", have) == ("beliefs",) and kept.lacks(store, "s3", "t", 2, ["weights"])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StorageError, match=r"t-1\.safetensors cannot be used"):
        kept.read_weights(path)


def test_of_two_writers_of_one_attempt_one_succeeds(bucket):
    stores, both = [Store(bucket), Store(bucket)], threading.Barrier(2)

    def write(number: int) -> int | None:
        both.wait()
        try:
            stores[number % 2].write_attempt("noise", row("a", accuracy_last=float(number % 2)), [])
        except StorageError:
            return None
        return number % 2

    for _ in range(10):
        with ThreadPoolExecutor(2) as pool:
            first = [one for one in pool.map(write, range(2)) if one is not None]
        assert len(first) == 1 and stores[0].read("trials")[0]["accuracy_last"].tolist() == first
        stores[0].attempt_path("trials", "noise", "a", 1).unlink()


def test_pandas_and_pyarrow_read_the_bucket_by_themselves(bucket, server):
    store = Store(bucket)
    store.write_attempt("one", row("a", accuracy_last=0.5), curve(0.5))
    store.write_attempt("two", row("b"), [])
    (bucket / "trials" / "study=one" / ".joined").write_bytes(b"not parquet")
    where = f"?endpoint_override=127.0.0.1:{server[0]}&scheme=http"
    frame = pd.read_parquet(f"{bucket}/trials{where}").sort_values("trial")
    assert frame["study"].tolist() == ["one", "two"] and frame["accuracy_last"].tolist()[0] == 0.5
    assert pq.read_table(f"{bucket}/epochs{where}")["value"].to_pylist() == [0.5]


# ----------------------------------------------------------------------------------------------------------- leases

CLAIMS = """
import json, random, sys
from lnl.storage.leases import claim
from lnl.storage.places import place
from lnl.storage.store import Store
store, order = Store(place(sys.argv[1])), random.sample(range(100), 100)
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps([number for number in order if claim(store, "noise", f"t{number}")[0] is not None]), flush=True)
sys.stdin.read()  # a lease lives as long as its process
"""
HOLDS = """
import sys
from lnl.storage.leases import claim
from lnl.storage.places import place
from lnl.storage.store import Store
with claim(Store(place(sys.argv[1])), "noise", "a", arm="full")[0]:
    print("held", flush=True)
    sys.stdin.readline()
"""
COUNTS = """
import sys
from lnl.storage.leases import locked
from lnl.storage.places import place
root = place(sys.argv[1])
for _ in range(15):
    with locked(root / "locks"):
        (root / "count").write_text(str(int((root / "count").read_text(encoding="utf-8")) + 1))
print("counted", flush=True)
"""


@pytest.mark.slow
def test_two_processes_that_race_share_the_claims_without_overlap(store):
    with process(CLAIMS, store.root) as one, process(CLAIMS, store.root) as other:
        assert one.stdout.readline() == other.stdout.readline() == "ready\n"
        for child in (one, other):
            child.stdin.write("\n")
            child.stdin.flush()
        claimed = [json.loads(child.stdout.readline()) for child in (one, other)]
        assert sorted(claimed[0] + claimed[1]) == list(range(100)), "each by exactly one"
        assert all(claimed), "both came to the race"
        assert len(leases(store)) == 100 and all(lease["alive"] for lease in leases(store).values())


def test_of_many_who_exchange_one_version_one_succeeds(bucket):
    tag = None
    for turn in range(10):
        with ThreadPoolExecutor(6) as pool:
            tags = list(pool.map(lambda number: (bucket / "x").exchange(f"{turn} {number}".encode(), tag), range(6)))  # noqa: B023
        (tag,) = [one for one in tags if one is not None]
        assert (bucket / "x").read().about.tag == tag
    assert (bucket / "gone").exchange(b"x", tag) is None and not (bucket / "gone").exists()


@pytest.mark.slow
def test_a_living_holder_keeps_others_out_and_a_killed_one_does_not(store):
    with process(HOLDS, store.root) as holder:
        assert holder.stdout.readline() == "held\n"
        lease, record = claim(store, "noise", "a")
        assert (
            lease is None and record["pid"] == holder.pid and record["arm"] == "full" and is_held(store, "noise", "a")
        )
        holder.kill()
        holder.wait()
        lease, record = claim(store, "noise", "a")
        assert lease is not None and record["pid"] == holder.pid and lease.previous_beat is not None
    with lease:
        assert claim(store, "noise", "a")[0] is None
    assert leases(store) == {} and not is_held(store, "noise", "a")
    with process(HOLDS, store.root) as holder:
        assert holder.stdout.readline() == "held\n" and holder.communicate("\n", timeout=30)
        assert holder.returncode == 0 and leases(store) == {}, "given back at the end"


@pytest.fixture
def elsewhere(store, monkeypatch) -> Lease:
    """A lease of trial `a` whose holder lives on another host, as far as this one can see."""
    monkeypatch.setattr(processes, "this_host", lambda: "elsewhere/0/")
    lease, _ = claim(store, "noise", "a")
    monkeypatch.setattr(processes, "this_host", lambda: "here/0/")
    return lease


def test_a_lease_of_another_host_lapses_with_its_heartbeat(store, elsewhere, monkeypatch):
    assert claim(store, "noise", "a")[0] is None and elsewhere.renew() and claim(store, "noise", "a")[0] is None
    monkeypatch.setattr(storage_leases, "EXPIRY_S", -60.0)  # whatever its heartbeat, it is too old
    assert leases(store)["noise", "a"]["alive"] is False
    usurper, previous = claim(store, "noise", "a")
    assert usurper is not None and previous["host"] == "elsewhere/0/"
    monkeypatch.undo()

    assert not elsewhere.renew() and elsewhere.lost, "it finds out at its next heartbeat"
    with elsewhere:
        pass  # and comes back late: it takes nothing away
    assert usurper.renew() and is_held(store, "noise", "a")
    with usurper:
        pass
    assert leases(store) == {}


def test_a_heartbeat_between_the_look_and_the_takeover_keeps_the_lease(store, elsewhere, monkeypatch):
    kind = type(elsewhere.file)
    exchange = kind.exchange

    def slowly(file: SharedFile, content: bytes, tag: str | None) -> str | None:
        if tag is not None and storage_leases.EXPIRY_S < 0:
            monkeypatch.setattr(storage_leases, "EXPIRY_S", 60.0)
            time.sleep(0.02)  # a file system's clock has steps
            assert elsewhere.renew()
        return exchange(file, content, tag)

    monkeypatch.setattr(storage_leases, "EXPIRY_S", -60.0)
    monkeypatch.setattr(kind, "exchange", slowly)
    assert claim(store, "noise", "a")[0] is None and elsewhere.renew()


def test_a_damaged_lease_holds_nothing(store):
    for content in ("", '{"token": "ab', "[]"):
        lease, _ = claim(store, "noise", "a")
        lease.path.write_text(content, encoding="utf-8")
        assert leases(store) == {} and not lease.renew()
        again, previous = claim(store, "noise", "a")
        assert again is not None and previous is None
        with again:
            pass


@pytest.mark.slow
def test_a_lock_lets_one_in_at_a_time(root):
    (root / "count").write_text("0", encoding="utf-8")
    with process(COUNTS, root) as one, process(COUNTS, root) as other:
        assert one.stdout.readline() == other.stdout.readline() == "counted\n"
    assert (root / "count").read_text(encoding="utf-8") == "30"


# ----------------------------------------------------------------------------------------------- a network that fails


@pytest.mark.parametrize("act", ["row", "lease", "heartbeat"])
def test_an_answer_that_is_lost_makes_no_second_row_and_no_lost_lease(bucket, server, monkeypatch, act):
    store, wire = Store(bucket), free_port()
    lease = claim(store, "noise", "b")[0]
    monkeypatch.setattr(objects, "FIRST_PATIENCE_S", 60.0)
    with process(WIRE, wire, server[0], "an answer"), monkeypatch.context() as patch:
        reach(patch, wire)
        if act == "row":
            patch.setattr(ObjectPath, "exists", lambda path: False)  # so that the answer that is lost is the row's
            store.write_attempt("noise", row("a", accuracy_last=0.5), [])
            assert store.read("trials")[0]["accuracy_last"].tolist() == [0.5]
        elif act == "lease":
            assert claim(store, "noise", "a")[0] is not None, "it is ours, though we did not hear so"
        else:
            assert lease.renew() and lease.renew()


@pytest.mark.slow
def test_an_outage_of_some_seconds_loses_no_row(bucket, server, monkeypatch):
    wire, store = free_port(), Store(bucket)
    reach(monkeypatch, wire)
    written: list[str] = []
    enough = threading.Event()

    def write() -> None:
        while not enough.is_set():
            trial = f"t{len(written):03}"
            store.write_attempt("noise", row(trial), curve(0.5, trial=trial))
            written.append(trial)

    def wait_until(count: int) -> None:
        while len(written) < count and not writer.done():
            time.sleep(0.001)

    with ThreadPoolExecutor(1) as pool:
        with listening(WIRE, wire, server[0], "nothing"):
            writer = pool.submit(write)
            wait_until(5)
        reached = len(written)  # the wire is cut here, in the middle of something
        time.sleep(1.5)
        assert len(written) <= reached + 1 and not writer.done()
        with listening(WIRE, wire, server[0], "nothing"):
            wait_until(reached + 5)
            enough.set()
            writer.result()
            trials, broken = store.read("trials")
            assert not broken and trials["trial"].tolist() == written
            assert sorted(store.read("epochs")[0]["trial"]) == written


def test_what_other_trials_start_from_is_kept_where_results_are(store, monkeypatch):
    from lnl.data import DataError
    from lnl.trial.config import parse
    from lnl.trial.provenance import Current
    from lnl.trial.run import Execution, run
    from lnl.trial.trained import save_trained

    small = {"dataset": "digits", "network": "small_convnet", "epochs": 1, "steps": 1, "method.batch_size": 16}
    semantic = {"kind": "semantic", "teacher": {"labels": 100}}
    trial = parse({"method": "supervised"}).override({**small, "noise": semantic})
    teacher, execution = trial.prerequisites["teacher"], Execution(trained=store.trained)
    current = Current()
    path = current.trained_path(store.trained, teacher)
    kept = path.with_suffix(".labels")
    with pytest.raises(DataError, match="it is not there"):
        next(run(trial, execution))
    *_, last = run(teacher)
    save_trained(store.trained, teacher, last.snapshot()["parts"], current)
    first = next(run(trial, execution)).facts
    content = kept.read_bytes()
    kept.write_bytes(content[:100])
    assert next(run(trial, execution)).facts["noise_hash"] == first["noise_hash"]
    assert kept.read_bytes() == content, "computed again"
    path.write_bytes(b"")
    with pytest.raises(DataError, match="it is damaged"):
        next(run(trial, execution))
    if isinstance(store.root, ObjectPath):  # no fault of the file
        monkeypatch.setattr(objects, "FIRST_PATIENCE_S", 0.1)
        reach(monkeypatch, free_port())
        with pytest.raises(StorageError, match="does not answer"):
            next(run(trial, execution))


# ---------------------------------------------------------------------------------------------------------- with Ray


def job_of(store: Store, epochs: int):  # type: ignore[no-untyped-def]
    from lnl.execution import job as execution_job
    from lnl.trial.config import Trial
    from lnl.trial.provenance import Current

    trial = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=epochs, steps=1)
    known = {
        **{"trial": trial.model_dump(mode="json"), "arm": "base", "setting": "{}", "study": "quick"},
        **{"store": store.identity(), "run": "this run", "sources": Current().sources(trial), "preset": "base"},
        **{"prerequisite": False, "embeddings": 0, "rerun_stale": False, "plan_hash": "", "selection": "last"},
    }
    return trial, execution_job.Job(**{**dict.fromkeys(execution_job.Job.__dataclass_fields__), **known})


def test_a_damaged_checkpoint_is_set_aside_and_one_of_a_finished_trial_goes(store):
    from lnl.execution import job as execution_job
    from lnl.execution import worker
    from lnl.storage import checkpoints

    trial, job = job_of(store, epochs=2)
    settings, path = (
        execution_job.RunSettings(storage=store.root, gpus_per_trial=0),
        store.checkpoint_path("quick", trial.id),
    )
    code, sources = job.sources.code_hash, str(job.sources.sources_hash)
    header = {"study": "quick", "trial": trial.id, "code": code, "device": "cpu", "data": sources}
    checkpoints.write(path, {"run": {}}, header)
    assert checkpoints.read(path, header) == {"run": {}} and checkpoints.header_of(path)["code"] == code
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"!" + content[-8:])
    assert not checkpoints.is_whole(store, "quick", trial.id, path, header) and not path.exists()
    path.write_bytes(content)  # whole, and without what a checkpoint has to hold
    assert checkpoints.is_whole(store, "quick", trial.id, path, header)
    said: list[dict] = []
    worker.execute(job, settings, said.append)
    assert said[-1]["outcome"] == "done" and not path.exists()
    assert len(list((store.root / "checkpoints").rglob("*.refused-*"))) == 2
    reasons = [json.loads(one)["reason"] for one in store.read("events")[0]["payload"]]
    assert sorted(["another digest" in one for one in reasons]) == [False, True]
    path.write_bytes(content)
    assert checkpoints.of_finished(store) == [("quick", trial.id)]
    checkpoints.tidy(store, "quick")
    assert not path.exists() and leases(store) == {}


@pytest.mark.slow
@pytest.mark.parametrize("epoch", [1, 3, None])
def test_a_holder_that_was_cut_off_drops_its_attempt_for_the_one_that_goes_on(store, epoch):
    """Its lease lapsed in the middle, or just before it would have written its row, or while it does."""
    from lnl.execution import job as execution_job
    from lnl.execution import worker

    trial, job = job_of(store, epochs=3)
    settings = execution_job.RunSettings(storage=store.root, gpus_per_trial=0, checkpoint_s=0)
    said: list[dict] = []

    def usurp() -> None:
        """As if another had found its lease lapsed."""
        path = store.lease_path("quick", trial.id)
        record = {**json.loads(path.read_text(encoding="utf-8")), "token": "another", "host": "elsewhere/0/"}
        path.write_text(canonical(record), encoding="utf-8")

    def cut_off(report: dict) -> None:
        said.append(report)
        if report.get("epoch") == epoch is not None:
            usurp()
            deadline = time.monotonic() + 60
            while epoch == 1 and not any(one.lost for one in living) and time.monotonic() < deadline:
                time.sleep(0.05)  # until its next heartbeat

    living: list[Lease] = []
    enter, write = Lease.__enter__, Store.write_attempt

    def late(here: Store, study: str, row: dict, *rest: object) -> None:
        usurp()
        write(here, study, {"trial": trial.id, "attempt": 1, "status": "preempted", "failure_class": "preempted"}, [])
        write(here, study, row, *rest)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage_leases, "HEARTBEAT_S", 0.1)
        patch.setattr(Lease, "__enter__", lambda lease: (living.append(lease), enter(lease))[1])
        if epoch is None:
            patch.setattr(Store, "write_attempt", late)
        worker.execute(job, settings, cut_off)
    assert said[-1] == {"outcome": "taken"} and [one.get("epoch") for one in said[:-1]] == [1, 2, 3][:epoch]
    assert len(store.read("trials")[0]) == (epoch is None) and is_held(store, "quick", trial.id), (
        "the other's lease stands"
    )
    with pytest.MonkeyPatch.context() as patch:  # the other is lost in turn: the next goes on from the checkpoint
        patch.setattr(storage_leases, "EXPIRY_S", -60.0)
        worker.execute(job, settings, said.append)
    rows = store.read("trials")[0].sort_values("attempt")
    assert rows["status"].tolist() == ["preempted"] * (1 + (epoch is None)) + ["ok"] and said[-1]["outcome"] == "done"
    assert store.read("epochs")[0].query("metric == 'accuracy' and split == 'test'")["epoch"].tolist() == [1, 2, 3]
    assert not leases(store) and not list((store.root / "checkpoints").rglob("*.*"))


@pytest.mark.long
def test_two_drivers_at_once_on_s3_lose_nothing_and_do_nothing_twice(bucket, server, tmp_path, capsys):
    """One on Ray, with one arm, and one with both, which comes while the server does not answer for a while."""
    from tests.execution.test_runner import TWO_ARMS, declare, environment, wait_for
    from tests.forked import WITHOUT_RAY, run_script

    study = declare(tmp_path, TWO_ARMS, replicates=TRIALS // 2, epochs=2, steps=1)
    store, limit = Store(bucket), 600 + 4 * TRIALS
    command = [sys.executable, str(study), "--storage", str(bucket), "--address", "local", "--cpus", "1"]
    command += ["--arms", "plain"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "start_new_session": True}
    driver, pool = subprocess.Popen(command, env=environment(), **pipes), ThreadPoolExecutor(1)
    try:
        wait_for(lambda: len(list((bucket / "trials" / "study=quick").glob("*-1.parquet"))) > 0, "a row", limit)
        server[1].send_signal(signal.SIGSTOP)
        without_ray = [WITHOUT_RAY, str(study), "--storage", str(bucket), "--no-report"]
        other = pool.submit(run_script, without_ray, environment(), tmp_path, limit)
        time.sleep(3)
        server[1].send_signal(signal.SIGCONT)
        said = [driver.communicate(timeout=limit)[0], (done := other.result()).stdout + done.stderr]
    finally:
        server[1].send_signal(signal.SIGCONT)
        driver.kill()
        pool.shutdown()
    assert [driver.returncode, done.returncode] == [0, 0], said

    rows, broken = store.read("trials", "quick", check=True)
    assert not broken and len(rows) == TRIALS == rows["trial"].nunique(), "each trial once"
    assert set(rows["status"]) == {"ok"} and set(rows["attempt"]) == {1}
    epochs, broken = store.read("epochs", "quick")
    points = epochs[(epochs["split"] == "test") & (epochs["metric"] == "accuracy")]
    assert not broken and points.groupby("trial")["epoch"].apply(list).tolist() == [[1, 2]] * TRIALS
    assert leases(store) == {} and not list((bucket / "checkpoints").rglob("*.*"))
    assert len(store.read("events", files="*-run_ended-*")[0]) == 1, "of the Ray"
    assert all(re.search("[1-9][0-9]* trials to run, ", text) for text in said), said

    page = bucket / "reports" / "quick-base" / "index.html"
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>") and f"Report: {page}" in said[0]
    capsys.readouterr()
    assert main(["status", str(study), "--storage", str(bucket)]) == 0
    assert f"{TRIALS} trials: {TRIALS} done" in capsys.readouterr().out
    main(["doctor", "--storage", str(bucket), "--json"])
    assert not [one for one in json.loads(capsys.readouterr().out)["problems"] if "lease" in one or "left out" in one]
    from analysis import load

    assert len(load(str(bucket), "quick").trials) == TRIALS
    everything = [path.read_bytes() for path in bucket.rglob("*")]
    assert len(everything) > 2 * TRIALS
    assert not any(secret.encode() in content for content in everything for secret in (KEY, SECRET))
    assert not any(secret in text for text in said for secret in (KEY, SECRET))


@pytest.mark.slow
def test_a_report_into_a_folder_leaves_the_bucket_as_it_is(bucket: ObjectPath, tmp_path: Path) -> None:
    from analysis.report.build import build
    from tests import simulated

    simulated.Simulation(bucket).submit(simulated.plan(1, panels=["frozen_head"]))  # type: ignore[arg-type]
    before = {path: path.stat() for path in bucket.rglob("*")}
    page = build(bucket, simulated.STUDY, output=tmp_path / "page")
    assert page == tmp_path / "page" / "index.html" and page.stat().st_size > 0
    assert {path: path.stat() for path in bucket.rglob("*")} == before
    assert f"lnl report {simulated.STUDY} --preset digits --selection last --storage {bucket}" in page.read_text(
        "utf-8"
    )
    stored = build(bucket, simulated.STUDY)
    again = build(bucket, simulated.STUDY)
    assert again == stored and stored.parent.parent == bucket / "reports"
    assert {path.name for path in stored.parent.glob("*")} == {path.name for path in page.parent.iterdir()}

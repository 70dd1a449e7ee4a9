"""A sweep: every file that somebody may have damaged, replaced or put there, given to the commands that read it.

Each is named in a sentence, or left out and counted; nothing waits for ever, nothing ends in a traceback.  `chmod` does
not keep root from reading, so an unreadable file is one that opens and whose first read fails (/proc/self/mem).
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import shutil
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

EARLIER = Path(__file__).parents[1] / "fixture" / "earlier"
PATIENCE_S = 60.0  # a reader that hangs never ends: no more than busy machines need
KINDS = ("missing", "empty", "truncated", "flipped", "foreign", "unreadable", "folder", "loop", "pipe")


def damage(path: Path, kind: str, mark: bytes) -> None:
    """`mark`: within what a flipped bit changes; else it is in the middle."""
    content = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif kind == "flipped":
        middle = content.index(mark) if mark else len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif kind == "foreign":
        path.write_bytes(b"%PDF-1.7\n\xff\xfe no file of this project \x00\x01" * 20)
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "pipe":
        os.mkfifo(path)


# ------------------------------------------------------------------------------------------------------ what reads what


class Case:
    """`make` writes the file that is damaged then; `use` reads it, prints what a user sees, and asserts the rest."""

    silent: tuple[str, ...] = ("missing",)  # damages that nobody can see, or that need no word
    mark = b""

    def make(self, folder: Path) -> Path:
        raise NotImplementedError

    def use(self, folder: Path, path: Path, kind: str) -> None:
        raise NotImplementedError


def lnl(*words: object) -> int:
    from lnl.cli.main import main

    return main([str(word) for word in words])


class Part(Case):
    """A part of a table of the store: doctor names it, and the other parts count."""

    def __init__(self, table: str) -> None:
        self.table = table

    def make(self, folder: Path) -> Path:
        from lnl.storage import schema, tables
        from lnl.storage import store as storage_store

        shutil.copytree(EARLIER / "store", folder / "store")
        store = storage_store.Store(folder / "store")
        store.write_event("earlier", "retried", "abc")
        store.write_suggestion("earlier", {"search": "earlier/gce", "number": 0, "state": "complete"})
        row = {"trial": "abc", "attempt": 1, "epoch": 1, "split": "test", "name": "x", "shape": [1], "values": [0.0]}
        tables.write_rows(store.attempt_path("arrays", "earlier", "abc", 1), schema.ARRAYS, [row])
        self.intact = store.read(self.table)[0].to_csv(index=False)
        return sorted((folder / "store" / self.table).rglob("*.parquet"))[0]

    def use(self, folder: Path, path: Path, kind: str) -> None:
        from lnl.storage.store import Store

        store = Store(folder / "store")
        rows, left_out = store.read(self.table)
        if kind == "flipped" and not left_out:  # in what no value depends on, such as statistics
            print(path)
            assert rows.to_csv(index=False) == self.intact
            return
        assert set(rows.to_csv(index=False).splitlines()) < set(self.intact.splitlines()), (
            "the other rows, as they were"
        )
        assert list(left_out) == ([] if kind == "missing" else [path])
        assert lnl("doctor", "--storage", store.root) == 1 or kind == "missing"
        if self.table == "trials":
            lnl("status", EARLIER / "study.py", "--storage", store.root)
            lnl("logs", "earlier", "--storage", store.root)
            trial = path.stem.rpartition("-")[0]
            assert store.next_attempt("earlier", trial) == (1 if kind == "missing" else 2)


class Joined(Case):
    """The copy of a folder's rows: never the record, so that without it everything is the same."""

    silent = KINDS

    def make(self, folder: Path) -> Path:
        from lnl.storage import store as storage_store
        from lnl.storage import tables

        shutil.copytree(EARLIER / "store", folder / "store")
        before, tables.MANY = tables.MANY, 0
        try:
            storage_store.Store(folder / "store").read("trials", "earlier")
        finally:
            tables.MANY = before
        return folder / "store" / "trials" / "study=earlier" / ".joined"

    def use(self, folder: Path, path: Path, kind: str) -> None:
        from lnl.storage.store import Store

        rows, left_out = Store(folder / "store").read("trials", "earlier")
        assert len(rows) == 10 and not left_out


class Log(Case):
    silent = ("missing", "truncated", "flipped", "foreign")  # it is text for people: what is there is shown

    def make(self, folder: Path) -> Path:
        from lnl.storage.store import Store

        shutil.copytree(EARLIER / "store", folder / "store")
        Store(folder / "store").write_log("earlier", "03b863a0ba79", 1, "a first line\n" * 10)
        return folder / "store" / "logs" / "study=earlier" / "03b863a0ba79-1.txt"

    def use(self, folder: Path, path: Path, kind: str) -> None:
        assert lnl("logs", "earlier", "--storage", folder / "store") == 0
        assert lnl("logs", "earlier", "03b863", "--storage", folder / "store") == 0
        lnl("doctor", "--storage", folder / "store")


class Executed(Case):
    """What a worker reads: a sentence in its last report, or trained without it."""

    changes: dict[str, Any] = {}  # noqa: RUF012

    def trial(self, folder: Path) -> Any:
        from tests.storage.test_logs import small

        return small(**self.changes)

    def use(self, folder: Path, path: Path, kind: str) -> None:
        from lnl.execution import job as execution_job
        from lnl.execution import worker
        from lnl.storage.store import Store
        from tests.storage.test_logs import job_of

        store, trial, said = Store(folder / "store"), self.trial(folder), []
        job = job_of(store, trial, **self.job(folder))
        settings = execution_job.RunSettings(storage=store.root, gpus_per_trial=0, data=folder / "data")
        worker.execute(job, settings, said.append)
        assert not store.read("trials")[1]
        self.judge(said[-1], kind)
        print(json.dumps(said[-1]))

    def job(self, folder: Path) -> dict[str, Any]:
        return {}

    def judge(self, last: dict[str, Any], kind: str) -> None:
        assert last["outcome"] == "failed" and last["failure"] == "data_error", last


class Lease(Executed):
    silent = KINDS  # a damaged lease holds nothing: the trial runs, and its lease is another file

    def make(self, folder: Path) -> Path:
        from lnl.storage.leases import claim
        from lnl.storage.store import Store

        lease, _ = claim(Store(folder / "store"), "quick", self.trial(folder).id)
        assert lease is not None
        return folder / "store" / "leases" / "study=quick" / f"{self.trial(folder).id}.json"

    def judge(self, last: dict[str, Any], kind: str) -> None:
        # one flipped bit may leave all of it readable; and what cannot be read now may be held
        expected = {"folder": "storage", "unreadable": "storage", "flipped": last["outcome"]}
        assert last["outcome"] == expected.get(kind, "done"), last


class LeaseOfAnother(Case):
    silent = ("missing", "flipped")

    def make(self, folder: Path) -> Path:
        from lnl.storage.leases import claim
        from lnl.storage.store import Store

        lease, _ = claim(Store(folder / "store"), "earlier", "0123456789ab")
        assert lease is not None
        return folder / "store" / "leases" / "study=earlier" / "0123456789ab.json"

    def use(self, folder: Path, path: Path, kind: str) -> None:
        lnl("doctor", "--storage", folder / "store")
        assert lnl("status", EARLIER / "study.py", "--storage", folder / "store") == 3


class Identity(Executed):
    silent = ("missing", "flipped")  # another name: the sentence says that this is not the driver's folder

    def make(self, folder: Path) -> Path:
        from lnl.storage.store import Store

        Store(folder / "store").identity()
        return folder / "store" / ".identity"

    def job(self, folder: Path) -> dict[str, Any]:
        return {"store": "0" * 32}

    def use(self, folder: Path, path: Path, kind: str) -> None:
        from lnl.execution import job as execution_job
        from lnl.execution import worker
        from lnl.storage.store import Store
        from tests.storage.test_logs import job_of

        other, said = Store(folder / "other"), []
        job = job_of(other, self.trial(folder))
        worker.execute(job, execution_job.RunSettings(storage=folder / "store", gpus_per_trial=0), said.append)
        assert said[-1]["outcome"] == "storage" and "/store" in said[-1]["message"]
        print(said[-1]["message"])
        lnl("doctor", "--storage", folder / "store")


class Checkpoint(Executed):
    silent = KINDS  # set aside with an event, see tests/storage/test_checkpoints.py; here: it does not stop the trial

    def make(self, folder: Path) -> Path:
        from lnl.storage import checkpoints
        from lnl.storage.store import Store
        from lnl.trial.provenance import Current
        from lnl.trial.run import Execution, run

        trial, store = self.trial(folder), Store(folder / "store")
        row = next(iter(run(trial, Execution(device="cpu"))))
        sources = Current().sources(trial)
        header = {"study": "quick", "trial": trial.id, "code": sources.code_hash, "device": "cpu"}
        header["data"] = str(sources.sources_hash)
        path = store.checkpoint_path("quick", trial.id)
        checkpoints.write(path, {"run": row.snapshot(), "history": [], "arrays": []}, header)
        store.identity()
        return Path(str(path))

    changes = {"epochs": 2}  # noqa: RUF012

    def judge(self, last: dict[str, Any], kind: str) -> None:
        assert last["outcome"] == "done", last


class Trained(Executed):
    changes = {"init_from": {"method": {"name": "simclr", "batch_size": 16}, "epochs": 1, "steps": 1}}  # noqa: RUF012
    silent = KINDS  # set aside with an event: tests/storage/test_checkpoints.py; the sentence says that it is not there

    def make(self, folder: Path) -> Path:
        from lnl.execution import job as execution_job
        from lnl.execution import worker
        from lnl.storage.store import Store
        from lnl.trial.provenance import Current
        from tests.storage.test_logs import job_of

        store, source = Store(folder / "store"), self.trial(folder).prerequisites["initialisation"]
        reports: list[dict[str, Any]] = []
        job = job_of(store, source, prerequisite=True)
        worker.execute(job, execution_job.RunSettings(storage=store.root, gpus_per_trial=0), reports.append)
        assert reports[-1]["outcome"] == "done"
        return Path(str(Current().trained_path(store.trained, source)))


def arrays(count: int = 60, size: int = 8, channels: int = 3, classes: int = 10) -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (count, size, size, channels), dtype=np.uint8)
    labels = np.arange(count) % classes
    return {"x_train": images, "y_train": labels, "x_test": images[:20], "y_test": labels[:20]}


class Npz(Executed):
    silent = ()

    def make(self, folder: Path) -> Path:
        (folder / "data").mkdir()
        np.savez(folder / "data" / "mine.npz", **arrays())
        return folder / "data" / "mine.npz"

    changes = {"dataset": "npz:mine.npz"}  # noqa: RUF012


class Cifar(Npz):
    """Beside the data set's name, where torchvision's download would be the other source."""

    silent = ("missing",)

    def make(self, folder: Path) -> Path:
        super().make(folder)
        return (folder / "data" / "mine.npz").rename(folder / "data" / "cifar10.npz")

    changes = {"dataset": "cifar10"}  # noqa: RUF012

    def use(self, folder: Path, path: Path, kind: str) -> None:
        if kind != "missing":  # it would be fetched
            super().use(folder, path, kind)


class Image(Executed):
    silent = ("missing", "flipped")  # another image, and so another data set

    def make(self, folder: Path) -> Path:
        from PIL import Image as Pictures

        for split in ("train", "test"):
            for name in "ab":
                (folder / "data" / "pets" / split / name).mkdir(parents=True)
                for number, picture in enumerate(arrays(30)["x_train"]):
                    Pictures.fromarray(picture).save(folder / "data" / "pets" / split / name / f"{number:02}.bmp")
        return folder / "data" / "pets" / "train" / "a" / "00.bmp"

    changes = {"dataset": "folder:pets"}  # noqa: RUF012

    def judge(self, last: dict[str, Any], kind: str) -> None:
        if kind not in self.silent:
            super().judge(last, kind)


class Human(Executed):
    def __init__(self, name: str) -> None:
        self.name, self.silent, self.mark = name, (), b"worse"

    changes = {"dataset": "cifar10", "noise": {"kind": "human", "column": "worse"}}  # noqa: RUF012

    def make(self, folder: Path) -> Path:
        import torch

        (folder / "data").mkdir()
        np.savez(folder / "data" / "cifar10.npz", **arrays(size=32))
        clean, path = arrays()["y_train"], folder / "data" / self.name
        if path.suffix == ".npz":
            np.savez(path, clean=clean, worse=clean)
        else:
            torch.save({"clean_label": clean, "worse_label": clean}, path)
        return path


class Weights(Executed):
    silent = ()

    def trial(self, folder: Path) -> Any:
        from tests.storage.test_logs import small

        return small(weights=str(folder / "weights.pt"))

    def make(self, folder: Path) -> Path:
        import torch

        from lnl import networks

        torch.save(networks.backbone("small_convnet", (1, 8, 8)).state_dict(), folder / "weights.pt")
        return folder / "weights.pt"


class Cache(Case):
    """What was prepared from a data set: where it is damaged, it is built anew, and that is told."""

    def __init__(self, name: str) -> None:
        self.name, self.silent = name, ()

    def load(self, folder: Path) -> Any:
        from lnl import data

        return data.load("npz:mine.npz", folder / "data", verify=True)

    def make(self, folder: Path) -> Path:
        (folder / "data").mkdir()
        np.savez(folder / "data" / "mine.npz", **arrays())
        self.load(folder)
        return next((folder / "data" / "cache").glob("npz-mine-*")) / self.name

    def use(self, folder: Path, path: Path, kind: str) -> None:
        if self.name == "dataset.json" and kind == "flipped":
            print(path)  # it may have been in a name of a class, which this file is the record of
            self.load(folder)
            return
        found = self.load(folder)
        assert np.array_equal(found.train_images, arrays()["x_train"].transpose(0, 3, 1, 2))
        assert np.array_equal(found.train_labels, arrays()["y_train"])
        print(path)


class Lock(Executed):
    """Of the leases, and of a data set's cache."""

    silent = ("missing", "empty", "truncated", "flipped", "foreign")  # nobody reads what is in it

    def __init__(self, name: str) -> None:
        self.name = name

    changes = {"dataset": "npz:mine.npz"}  # noqa: RUF012

    def make(self, folder: Path) -> Path:
        (folder / "data" / "cache").mkdir(parents=True)
        (folder / "store" / "leases" / "study=quick").mkdir(parents=True)
        np.savez(folder / "data" / "mine.npz", **arrays())
        key = "leases"
        if self.name == "data":
            from lnl.data import npz

            key = npz.source("npz:mine.npz", folder / "data").key
        of_leases = folder / "store" / "leases" / "study=quick" / ".lock"
        path = of_leases if key == "leases" else folder / "data" / "cache" / f".{key}.lock"
        path.write_bytes(b"x")
        return path

    def use(self, folder: Path, path: Path, kind: str) -> None:
        if kind == "unreadable":  # it can be locked, and nobody reads it
            print(path)
        super().use(folder, path, kind)

    def judge(self, last: dict[str, Any], kind: str) -> None:
        refused = kind in ("folder", "loop", "pipe")
        outcome = "storage" if self.name == "leases" else "failed"
        assert last["outcome"] == (outcome if refused else "done"), last
        if refused:
            assert self.name in last["message"] or "cache" in last["message"]


class StudyFile(Case):
    silent = ("truncated", "flipped")  # a comment

    def make(self, folder: Path) -> Path:
        text = (EARLIER / "study.py").read_text(encoding="utf-8")
        (folder / "mine.py").write_text(text + "#" * 2 * len(text), encoding="utf-8")
        return folder / "mine.py"

    def use(self, folder: Path, path: Path, kind: str) -> None:
        code = lnl("plan", path, "--storage", folder / "store")
        assert code == (0 if kind in self.silent else 2)


class Journal(Case):
    """Optuna's memory of a search."""

    silent = ("missing", "empty", "truncated", "flipped")  # Optuna reads whole lines, and rows are the record

    def open(self, folder: Path) -> Any:
        import optuna

        from lnl.search import optuna_objects

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with optuna_objects.storage_errors(optuna_objects.place_of(None, folder / "store")):
            storage = optuna_objects.open_storage(None, folder / "store")
            return optuna.create_study(storage=storage, study_name="a", load_if_exists=True)

    def make(self, folder: Path) -> Path:
        from lnl.search import optuna_objects

        self.open(folder).tell(self.open(folder).ask(), 1.0)
        return folder / "store" / optuna_objects.JOURNAL

    def use(self, folder: Path, path: Path, kind: str) -> None:
        from lnl.storage.objects import StorageError

        try:
            self.open(folder)
        except StorageError as error:
            print(error)


CASES: dict[str, Case] = {
    **{table: Part(table) for table in ("trials", "epochs", "arrays", "suggestions", "studies", "events")},
    "joined": Joined(),
    "log": Log(),
    "lease": Lease(),
    "lease of another": LeaseOfAnother(),
    "identity": Identity(),
    "checkpoint": Checkpoint(),
    "trained": Trained(),
    "npz": Npz(),
    "cifar10": Cifar(),
    "image": Image(),
    **{name: Human(name) for name in ("CIFAR-10_human.pt", "cifar10n.npz")},
    "weights": Weights(),
    **{name: Cache(name) for name in ("dataset.json", "train_images.npy", "train_labels.npy")},
    **{f"lock of {name}": Lock(name) for name in ("leases", "data")},
    "study file": StudyFile(),
    "journal": Journal(),
}


# ---------------------------------------------------------------------------------------------------------- the sweep


def serve(calls: Connection) -> None:
    """In a process of its own, which a hanging reader can be taken from: what each call has said, or its traceback."""
    import logging
    import warnings

    os.environ["RAY_AUTH_MODE"] = "token"
    while call := calls.recv():
        case, kind, folder = call
        said = io.StringIO()
        handler = logging.StreamHandler(said)
        logging.getLogger().addHandler(handler)
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("always")
            try:
                path = CASES[case].make(folder)
                damage(path, kind, CASES[case].mark)
                said.seek(0)
                said.truncate()
                CASES[case].use(folder, path, kind)
                failed = None
            except BaseException:
                failed = traceback.format_exc()
        logging.getLogger().removeHandler(handler)
        calls.send((failed, said.getvalue(), None if failed else path.name))


@pytest.fixture(scope="module")
def ask() -> Iterator[Callable[..., tuple[str | None, str, str]]]:
    context = multiprocessing.get_context("spawn")
    running: list[tuple[Any, Connection]] = []

    def start() -> None:
        here, there = context.Pipe()
        process = context.Process(target=serve, args=(there,), daemon=True)
        process.start()
        running[:] = [(process, here)]

    def call(*words: object) -> tuple[str | None, str, str]:
        if not running:
            start()
        process, here = running[0]
        here.send(words)
        if not here.poll(PATIENCE_S):
            process.kill()
            running.clear()
            pytest.fail(f"{words[:2]}: no answer within {PATIENCE_S:.0f} s")
        answer: tuple[str | None, str, str] = here.recv()
        return answer

    yield call
    for process, here in running:
        here.send(None)
        process.join()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", CASES)
def test_a_damaged_file_is_named_or_left_out(
    case: str, kind: str, ask: Callable[..., tuple[str | None, str, str]], tmp_path: Path
) -> None:
    failed, said, name = ask(case, kind, tmp_path)
    assert failed is None, f"{failed}\n{said}"
    assert "Traceback" not in said, said
    assert kind in CASES[case].silent or name in said, (name, said)

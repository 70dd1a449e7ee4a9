"""Files that training goes on from: whatever is wrong with one is found, it is set aside and told, never used."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lnl import Study, Trial
from lnl.cli.doctor import examine
from lnl.execution import job as execution_job
from lnl.execution import worker
from lnl.execution.attempt import until_checkpoint
from lnl.execution.queue import is_ready, trials_to_run
from lnl.storage import checkpoints
from lnl.storage.checkpoints import Refused
from lnl.storage.leases import claim, leases
from lnl.storage.store import Store
from lnl.study.status import reconcile
from lnl.trial.config import parse
from lnl.trial.provenance import Current
from lnl.trial.run import Execution, assemble, run
from lnl.trial.trained import is_trained

SMALL = {"dataset": "digits", "network": "small_convnet", "labels": 50, "epochs": 3, "steps": 1}
TRIAL = parse({"method": "supervised"}).override(SMALL)
TRANSFER = TRIAL.override({"init_from": {"method": "simclr", "epochs": 1}})
NETWORKS_DIFFER = TRIAL.override({"network": "preact_resnet18"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def job_of(store: Store, trial: Trial = TRIAL, **fields: Any) -> execution_job.Job:
    known = {
        **{"trial": trial.model_dump(mode="json"), "arm": "base", "setting": "{}", "study": "first", "preset": "base"},
        **{"store": store.identity(), "run": "a run", "sources": Current().sources(trial), "plan_hash": "plan"},
        **{"prerequisite": False, "embeddings": 0, "rerun_stale": False, "selection": "last"},
    }
    return execution_job.Job(**{**dict.fromkeys(execution_job.Job.__dataclass_fields__), **known, **fields})


class Stopped(BaseException):
    """As a kill: no `except Exception` sees it."""


def execute(store: Store, job: execution_job.Job, stop_after: int | None = None) -> dict[str, Any]:
    """The last report of a worker, which is killed when it reports this epoch, after its checkpoint."""
    reports: list[dict[str, Any]] = []

    def report(told: dict[str, Any]) -> None:
        reports.append(told)
        if stop_after is not None and told.get("epoch") == stop_after:
            raise Stopped

    try:
        worker.execute(job, execution_job.RunSettings(storage=store.root, gpus_per_trial=0, checkpoint_s=0), report)
    except Stopped:
        pass
    return reports[-1]


def rows(store: Store, study: str = "first") -> pd.DataFrame:
    return store.read("trials", study)[0].sort_values("attempt", ignore_index=True)


def reasons(store: Store) -> list[str]:
    events, _ = store.read("events")
    return [json.loads(one)["reason"] for one in events.loc[events["kind"] == "checkpoint_refused", "payload"]]


def refused(store: Store) -> list[str]:
    return sorted(store.within(path) for path in store.root.rglob("*.refused-*"))


# ------------------------------------------------------------------------------------------------------------- bytes


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return bool(one == other)


STATE = {"weight": torch.arange(300.0), "history": [(1, 2, "test", "accuracy", 0.5, 0.1)], "done": 3}
HEADER = {"trial": "abc", "study": "first"}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("written") / "state.pt"
    checkpoints.write(path, STATE, HEADER)
    return path


def test_what_was_written_is_read_and_its_header_names_the_torch(written: Path) -> None:
    assert same(checkpoints.read(written, {**HEADER, "torch": torch.__version__}), STATE)
    assert checkpoints.header_of(written) == {**HEADER, "torch": torch.__version__}


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=400)
def test_no_flipped_bit_is_ever_loaded(written: Path, place: float, bit: int) -> None:
    content = bytearray(written.read_bytes())
    offset = int(place * len(content))
    content[offset] ^= 1 << bit
    flipped = written.with_name("flipped.pt")
    flipped.write_bytes(content)
    with pytest.raises(Refused):
        checkpoints.read(flipped, HEADER)


def test_every_bit_of_both_headers_counts(written: Path) -> None:
    content = written.read_bytes()
    ends = [at for at, byte in enumerate(content) if byte == ord("\n")][1]
    for offset in range(ends + 1):
        for bit in range(8):
            flipped = bytearray(content)
            flipped[offset] ^= 1 << bit
            (written.with_name("flipped.pt")).write_bytes(flipped)
            with pytest.raises(Refused):
                checkpoints.read(written.with_name("flipped.pt"), HEADER)


@given(length=st.floats(0, 1, exclude_max=True), more=st.binary(max_size=3))
@settings(max_examples=50)
def test_a_cut_or_longer_file_is_refused(written: Path, length: float, more: bytes) -> None:
    content = written.read_bytes()
    other = content[: int(length * len(content))] + more if more != b"\n" else content + more
    written.with_name("cut.pt").write_bytes(other)
    with pytest.raises(Refused):
        checkpoints.read(written.with_name("cut.pt"), HEADER)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.symlink_to(path)


def of_old_format(path: Path) -> None:
    torch.save({"trial": "abc", **STATE}, path)


def of_next_format(path: Path) -> None:
    checkpoints.write(path, STATE, HEADER)
    path.write_bytes(path.read_bytes().replace(b"lnl-state 1 ", b"lnl-state 2 ", 1))


def with_code(path: Path) -> None:
    checkpoints.write(path, {"state": Path("anything that is no plain data")}, HEADER)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (Path.touch, "damaged, or of a format of older versions"),
        (of_old_format, "damaged, or of a format of older versions"),
        (of_next_format, "its format is '2', and this version of lnl reads 1"),
        (with_code, "its content does not fit"),
        (Path.mkdir, "not a regular file"),
        (pipe, "not a regular file"),
        (loop, "it cannot be read"),
        (lambda path: checkpoints.write(path, STATE, {"trial": "abc", "study": "second"}), "its study is 'second'"),
    ],
)
def test_what_is_no_such_file_is_set_aside_and_told(store: Store, make: Callable[[Path], None], words: str) -> None:
    path = store.checkpoint_path("first", "abc")
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(Refused, match=words):
        checkpoints.read(path, HEADER)
    if make is with_code:
        return  # its bytes are whole
    assert not checkpoints.is_whole(store, "first", "abc", path, HEADER)
    assert len(refused(store)) == 1 and words in reasons(store)[0] and not os.path.lexists(path)


def test_a_lack_of_memory_refuses_nothing() -> None:
    for error in (MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: no")):
        with pytest.raises(type(error)), checkpoints.fitting():
            raise error
    with pytest.raises(Refused, match="KeyError"), checkpoints.fitting():
        raise KeyError("parts")


# ------------------------------------------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> float:
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    assert execute(store, job_of(store))["outcome"] == "done"
    return float(rows(store)["accuracy_last"][0])


def rewritten(change: Callable[[dict[str, Any]], Any], **header: str) -> Callable[[Path], None]:
    """A checkpoint whose digest is right and whose body, or header, is not."""

    def act(path: Path) -> None:
        known = checkpoints.header_of(path)
        state = checkpoints.read(path, {})
        change(state)
        checkpoints.write(path, state, {**known, **header})

    return act


def as_by_torch(version: str) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            state, header = checkpoints.read(path, {}), checkpoints.header_of(path)
            patch.setattr(torch, "__version__", version)
            checkpoints.write(path, state, header)

    return act


def of_another_network(path: Path) -> None:
    *_, row = run(NETWORKS_DIFFER.override({"epochs": 1}), Execution(device="cpu"))
    other = row.snapshot()["parts"]
    rewritten(lambda state: state["run"].update(parts=other))(path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


WRONG: dict[str, tuple[Callable[[Path], None], str]] = {
    "flipped": (flip, "another digest"),
    "old format": (lambda path: torch.save(checkpoints.read(path, {}), path), "format of older versions"),
    "no history": (rewritten(lambda state: state.pop("history")), "does not fit"),
    "empty history": (rewritten(lambda state: state["history"].clear()), "its history is not that of its 2 epochs"),
    "no parts": (rewritten(lambda state: state["run"].pop("parts")), "does not fit"),
    "no learner": (rewritten(lambda state: state["run"]["parts"].clear()), "does not fit"),
    "other shapes": (of_another_network, "does not fit"),
    "other data": (rewritten(lambda state: state["run"]["drawn"].update(data_hash="x")), "another data_hash"),
    "another code": (rewritten(lambda state: None, code="0" * 12), "its code is '000000000000'"),
    "another trial": (rewritten(lambda state: None, trial="0" * 12), "its trial is '000000000000'"),
    "another device": (rewritten(lambda state: None, device="cuda"), "its device is 'cuda', not 'cpu'"),
    "another study": (rewritten(lambda state: None, study="second"), "its study is 'second', not 'first'"),
    "another torch": (as_by_torch("2.0.0"), "its torch is '2.0.0'"),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_checkpoint_is_set_aside_and_the_trial_trains_anew(
    store: Store, undisturbed: float, wrong: str
) -> None:
    act, words = WRONG[wrong]
    execute(store, job_of(store), stop_after=2)
    path = store.checkpoint_path("first", TRIAL.id)
    assert checkpoints.read(path, {})["run"]["epoch"] == 2
    act(path)
    path.with_name(f".{path.name}.123-abc.tmp").touch()  # of a worker that was killed while it wrote
    assert execute(store, job_of(store, run="the next"))["outcome"] == "done"
    (reason,) = reasons(store)
    assert words in reason and len(refused(store)) == 1
    known = rows(store)
    assert known["status"].tolist()[-1] == "ok" and known["accuracy_last"].iloc[-1] == undisturbed
    assert known["epochs_done"].iloc[-1] == 3 and not path.exists() and not leases(store)
    assert [file.name for file in path.parent.iterdir()] == [Path(refused(store)[0]).name], (
        "no half-written file either"
    )


def test_a_right_checkpoint_is_gone_on_from(store: Store, undisturbed: float) -> None:
    execute(store, job_of(store), stop_after=2)
    epochs: list[Any] = []
    settings = execution_job.RunSettings(storage=store.root, gpus_per_trial=0, checkpoint_s=0)
    worker.execute(job_of(store, run="the next"), settings, lambda told: epochs.append(told.get("epoch")))
    assert epochs[0] == 3 and not reasons(store) and rows(store)["accuracy_last"].iloc[-1] == undisturbed


@pytest.mark.parametrize("code", [True, False])
def test_what_a_frozen_writer_leaves_of_a_finished_trial_is_named_and_goes(store: Store, code: bool) -> None:
    """It was stopped while it wrote, another finished the trial, and then it went on writing."""
    execute(store, job_of(store), stop_after=2)
    path = store.checkpoint_path("first", TRIAL.id)
    content = path.read_bytes()
    execute(store, job_of(store, run="another"))
    assert not path.exists()
    path.write_bytes(content)
    half = path.with_name(f".{path.name}.123-abc.tmp")
    half.write_bytes(content[:100])
    if not code:  # of edited code, which the trial is stale for: the next run goes on from it
        rewritten(lambda state: None, code="0" * 12)(path)
    problems = [line for line in examine(store)[1] if line.startswith("checkpoint")]
    words = f"checkpoint of the finished trial {TRIAL.id} of first: the next run of the study removes it."
    assert problems == [words] * code
    checkpoints.tidy(store, "second")
    assert path.exists(), "of another study"
    checkpoints.tidy(store, "first")
    assert path.exists() is half.exists() is not code and not leases(store)


# --------------------------------------------------------------------------------------- two studies, one trial


def test_studies_that_share_a_trial_share_neither_checkpoint_nor_lease_nor_lost_attempt(
    store: Store, undisturbed: float
) -> None:
    first, second = job_of(store), job_of(store, study="second", arm="other", run="another")
    execute(store, first, stop_after=2)
    lease, _ = claim(store, "first", TRIAL.id, run="a run", arm="base", preset="base", code_hash="f" * 12)
    assert lease is not None
    dead = {**json.loads(lease.path.read_text(encoding="utf-8")), "born": 0}
    lease.path.write_text(json.dumps(dead), encoding="utf-8")
    store.request_prune("first", TRIAL.id)

    assert execute(store, second)["outcome"] == "done"
    (row,) = rows(store, "second").to_dict("records")
    assert (row["attempt"], row["status"], row["arm"], row["epochs_done"]) == (1, "ok", "other", 3)
    assert row["accuracy_last"] == undisturbed and row["seconds"] > 0
    assert store.checkpoint_path("first", TRIAL.id).exists() and rows(store, "first").empty
    assert not reasons(store) and list(leases(store)) == [("first", TRIAL.id)] and leases(store, "second") == {}
    assert store.pop_prune_request("first", TRIAL.id), "a search of one study gives up no trial of another"

    relabelled = dataclasses.replace(first, arm="renamed", preset="wide", run="the next")
    epochs: list[Any] = []
    settings = execution_job.RunSettings(storage=store.root, gpus_per_trial=0, checkpoint_s=0)
    worker.execute(relabelled, settings, lambda told: epochs.append(told.get("epoch")))
    lost, ended = rows(store, "first").to_dict("records")
    assert epochs[0] == 3, "from its own checkpoint"
    assert (lost["status"], lost["arm"], lost["preset"], lost["code_hash"]) == ("preempted", "base", "base", "f" * 12)
    assert (ended["status"], ended["arm"], ended["preset"]) == ("ok", "renamed", "wide")
    assert ended["accuracy_last"] == undisturbed and not leases(store)


# ----------------------------------------------------------------------------------------------------- prerequisites

SOURCE = TRANSFER.prerequisites["initialisation"]


def source_job(store: Store, **fields: Any) -> execution_job.Job:
    return job_of(store, SOURCE, prerequisite=True, arm="initialisation: simclr", **fields)


def trained_of(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def act(path: Path) -> None:
        parts = checkpoints.read(path, {})
        change(parts)
        checkpoints.write(path, parts, checkpoints.header_of(path))

    return act


def renamed_from(path: Path) -> None:
    checkpoints.write(path, checkpoints.read(path, {}), {"file": "another.pt"})


SEEN_BY_DRIVER = {
    "flipped": (flip, "another digest"),
    "old format": (lambda path: torch.save(checkpoints.read(path, {}), path), "format of older versions"),
    "another's": (renamed_from, "its file is 'another.pt'"),
}
SEEN_BY_WORKER = {
    "no parts": (trained_of(dict.clear), "does not fit"),
    "fewer weights": (
        trained_of(lambda parts: parts["learner"]["network"].pop("backbone.layers.0.weight")),
        "does not fit",
    ),
    "other shapes": (
        trained_of(lambda parts: parts["learner"]["network"].update({"backbone.layers.0.weight": torch.zeros(1)})),
        "does not fit",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("wrong", [*SEEN_BY_DRIVER, *SEEN_BY_WORKER])
def test_a_wrong_prerequisite_is_never_used_and_is_trained_again(store: Store, wrong: str) -> None:
    arms = {"transfer": {"init_from": {"method": "simclr", "epochs": 1}}}
    study = Study(name="first", question="?", base=TRIAL, arms=arms, replicates=1)
    plan = study.plan()
    assert {planned.id for planned in plan.trials} == {TRANSFER.id, SOURCE.id}
    assert execute(store, source_job(store))["outcome"] == "done" and is_trained(store, "first", SOURCE, Current())
    path = Current().trained_path(store.trained, SOURCE)
    before = checkpoints.read(path, {})
    act, words = (SEEN_BY_DRIVER | SEEN_BY_WORKER)[wrong]
    act(path)

    trained = partial(is_trained, store, plan.study, current=Current())

    def next_ones() -> list[str]:
        waiting = trials_to_run(plan, reconcile(plan, store), {"missing", "failed"}, set(), trained)
        return [one.id for one in waiting if is_ready(one, {other.id for other in waiting}, trained)]

    if wrong in SEEN_BY_WORKER:
        assert next_ones() == [TRANSFER.id]
        last = execute(store, job_of(store, TRANSFER))
        assert (last["outcome"], last["failure"]) == ("failed", "data_error") and words in last["message"]
        assert rows(store).query("arm == 'base'")["failure_class"].tolist() == ["data_error"]
    assert next_ones() == [SOURCE.id], "found by the driver, and trained in the same run"
    assert not path.exists() and len(refused(store)) == 1 and words in reasons(store)[0]
    assert execute(store, source_job(store, run="the next"))["outcome"] == "done"
    assert same(checkpoints.read(path, {}), before)
    assert next_ones() == [TRANSFER.id] and execute(store, job_of(store, TRANSFER))["outcome"] == "done"
    assert len(reasons(store)) == 1
    named = [line for line in examine(store)[1] if "refused checkpoint" in line]
    assert named == [f"refused checkpoint {refused(store)[0]}: remove it once looked at."]


def test_a_worker_that_finds_a_prerequisite_damaged_says_so_in_a_row(store: Store) -> None:
    execute(store, source_job(store))
    flip(Current().trained_path(store.trained, SOURCE))  # after the driver's look
    last = execute(store, job_of(store, TRANSFER))
    assert (last["outcome"], last["failure"]) == ("failed", "data_error") and "is not there" in last["message"]
    assert len(refused(store)) == 1 and "another digest" in reasons(store)[0]


def test_a_flipped_bit_in_a_teachers_labels_moves_no_label(store: Store) -> None:
    taught = TRIAL.override({"noise": {"kind": "semantic", "teacher": {"labels": 20, "epochs": 2}}})
    teacher = taught.prerequisites["teacher"]
    execute(store, job_of(store, teacher, prerequisite=True, arm="teacher"))
    assert execute(store, job_of(store, taught))["outcome"] == "done"
    labels = Current().trained_path(store.trained, teacher).with_suffix(".labels")
    content = labels.read_bytes()
    facts = rows(store).query("arm == 'base'")["noise_hash"].tolist()
    flip(labels)
    assert execute(store, job_of(store, taught, study="second"))["outcome"] == "done"
    assert rows(store, "second")["noise_hash"].tolist() == facts and labels.read_bytes() == content
    assert len(refused(store)) == 1 and "another digest" in reasons(store)[0]
    known = checkpoints.read(labels, {})["labels"]
    checkpoints.write(labels, {"labels": known[:-1]}, {"file": labels.name})  # of another data set
    assert len(np.unique(assemble(taught, Execution(trained=store.trained))[1].labels.numpy())) > 1
    assert len(checkpoints.read(labels, {})["labels"]) == len(known)


def test_a_prerequisite_is_shared_by_the_studies_of_a_store(store: Store) -> None:
    execute(store, source_job(store))
    assert execute(store, job_of(store, TRANSFER, study="second"))["outcome"] == "done"
    assert is_trained(store, "second", SOURCE, Current()) and not reasons(store)


def test_doctor_names_damaged_files_that_nobody_has_used_yet(store: Store) -> None:
    execute(store, source_job(store))
    execute(store, job_of(store), stop_after=2)
    files = [Current().trained_path(store.trained, SOURCE), store.checkpoint_path("first", TRIAL.id)]
    assert not [line for line in examine(store)[1] if "damaged" in line]
    for path in files:
        flip(path)
    said = [line for line in examine(store)[1] if line.startswith("damaged")]
    assert len(said) == 2 and all(any(store.within(path) in line for line in said) for path in files)
    assert all(path.exists() for path in files), "doctor looks and does not touch"


def test_working_files_of_older_versions_are_named(store: Store) -> None:
    for name in ("checkpoints/abc.pt", "leases/abc.json", "trained/abc-1.labels.npy"):
        path = store.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    said = [line for line in examine(store)[1] if "of an older version" in line]
    assert len(said) == 3 and leases(store) == {} and checkpoints.of_finished(store) == []


def test_checkpoints_take_at_most_a_hundredth_of_the_time() -> None:
    assert until_checkpoint(10, cost=0.01) == 10, "as asked for"
    assert until_checkpoint(10, cost=2.0) == pytest.approx(200), "two seconds in two hundred"
    assert until_checkpoint(0, cost=2.0) == 0, "after every epoch"

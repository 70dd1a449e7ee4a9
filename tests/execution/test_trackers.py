"""TensorBoard, W&B and MLflow: real files, real clients, and real failures."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lnl.cli.progress import Display
from lnl.execution import trackers
from lnl.execution.job import Job
from lnl.storage.objects import ObjectPath
from lnl.training.task import Noise
from lnl.trial.config import Trial
from tests.forked import WITHOUT_RAY, run_script

ROOT = Path(__file__).parents[2]
NONE: dict[str, Any] = {"tensorboard": False, "wandb": None, "mlflow": None}


def job(**changes: Any) -> Job:
    trial = Trial(method="supervised", dataset="digits", noise=Noise("symmetric", 0.4), replicate=2)
    about = {"study": "quick", "preset": "digits", "arm": "full", "setting": "{}", "search": None, "suggestion": None}
    known = {**about, "trial": trial.model_dump(mode="json"), **changes}
    return Job(**{**dict.fromkeys(Job.__dataclass_fields__), **known})


class Quiet(Display):
    def __init__(self) -> None:
        super().__init__(quiet=True)

    def start(self) -> None: ...

    def epoch(self, trial: str, metrics: Any) -> None: ...

    def end(self, trial: str, outcome: Any) -> None: ...


def follow(root: Any, epochs: Iterator[int] | range, said: list[str], trial: str = "abc", **wished: Any) -> None:
    """A trial that reports these epochs, as Tune does: with its own bookkeeping."""
    with trackers.following(root, said.append, **{**NONE, **wished}) as track:
        display = track(Quiet())
        display.begin(trial, job())
        for epoch in epochs:
            metrics = {"test_accuracy": epoch / 10, "oracle_selection_auc": 0.5, "train_loss": float("nan")}
            display.epoch(
                trial, {"epoch": epoch, **metrics, "seconds": 1.0, "pid": 7, "time_total_s": 3.0, "config": {}}
            )
        display.end(trial, {"outcome": "done"})


def scalars(folder: Path) -> list[tuple[str, int, float]]:
    """What the event files of a folder hold, in order.  A record: its length, a checksum, itself, another."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack("<Q", content[at : at + 8])
            event = Event.FromString(content[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def shown(folder: Path) -> list[int]:
    """The epochs of a curve, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return [event.step for event in EventAccumulator(str(folder)).Reload().Scalars("test/accuracy")]


def test_a_run_is_named_by_arm_setting_and_replicate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-folder")
    run = trackers.as_run("abc", job(setting='{"labels":250,"noise.rate":0.4}'))
    assert run.group == "quick-digits" and run.name == "full/labels=250,noise.rate=0.4/2"
    assert run.config["noise.rate"] == 0.4 and run.config["method.name"] == "supervised"
    assert run.config["init_from"] is None and isinstance(run.config["replicate"], int)
    secret = job()
    secret.trial["dataset"] = "npz:/s3cr3t-folder/x.npz"
    assert trackers.as_run("abc", secret).config["dataset"] == "npz:/***/x.npz"
    suggested = trackers.as_run("abc", job(search="quick/digits/full_tpe/0", suggestion=3))
    assert suggested.name == "full/base/suggestion 3, 2"


def test_tensorboard_gets_curves_by_epoch_and_a_trial_that_goes_on(tmp_path: Path) -> None:
    said: list[str] = []
    follow(tmp_path, range(1, 4), said, tensorboard=True)
    follow(tmp_path, range(3, 5), said, tensorboard=True)  # from the checkpoint after epoch 2
    folder = tmp_path / "tensorboard" / "quick-digits" / "full" / "base" / "2"
    assert len(list(folder.iterdir())) == 2, "within one second, too"
    accuracies = [(step, round(value, 6)) for tag, step, value in scalars(folder) if tag == "test/accuracy"]
    assert accuracies == [(1, 0.1), (2, 0.2), (3, 0.3), (3, 0.3), (4, 0.4)]
    tags = {tag for tag, _, _ in scalars(folder)}
    assert tags == {"test/accuracy", "oracle/selection_auc", "train/loss", "config/text_summary"}
    assert not said
    assert shown(folder) == [1, 2, 3, 4], "the newer epoch 3"


def test_tensorboard_gets_no_epoch_twice_where_a_worker_was_lost(tmp_path: Path) -> None:
    said: list[str] = []
    follow(tmp_path, iter([1, 2, 3, 2, 3, 4]), said, tensorboard=True)
    assert not said and len(list((tmp_path / "tensorboard").rglob("*tfevents*"))) == 2
    assert shown(tmp_path / "tensorboard" / "quick-digits" / "full" / "base" / "2") == [1, 2, 3, 4]


def test_beside_object_storage_its_files_are_local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    follow(ObjectPath("bucket", "results"), range(1, 2), said, tensorboard=True)
    assert said == [f"TensorBoard's files are written below {tmp_path / 'tensorboard'}, not on object storage."]
    assert scalars(tmp_path / "tensorboard")


def test_a_tracker_that_fails_says_so_once_and_nothing_else_happens(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file where the folder would be", encoding="utf-8")
    said: list[str] = []
    follow(tmp_path, range(1, 20), said, tensorboard=True)
    assert len(said) == 1 and said[0].startswith("TensorBoard gets no more of this run (")
    assert said[0].endswith("; the study goes on.")


@pytest.mark.parametrize("module", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence(tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it could not be found
    with pytest.raises(ValueError, match=f"is not installed: pip install {module}"):
        follow(tmp_path, range(1), [], **{module: "x"})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what it imports
def test_mlflow_gets_a_run_per_trial_that_is_taken_up_again(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri, said = f"sqlite:///{tmp_path}/mlflow.db", []
    follow(tmp_path, range(1, 3), said, mlflow=uri)
    follow(tmp_path, range(3, 5), said, mlflow=uri)
    follow(tmp_path, range(1, 2), said, mlflow=uri, trial="other")
    assert not said
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("quick-digits")
    assert experiment is not None
    runs = {run.data.tags["lnl.trial"]: run for run in client.search_runs([experiment.experiment_id])}
    assert set(runs) == {"abc", "other"} and runs["abc"].info.run_name == "full/base/2"
    assert runs["abc"].info.status == "FINISHED" and runs["abc"].data.params["noise.rate"] == "0.4"
    history = client.get_metric_history(runs["abc"].info.run_id, "test/accuracy")
    assert sorted((one.step, one.value) for one in history) == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_its_server_is_one_sentence_without_the_password(tmp_path: Path) -> None:
    said: list[str] = []
    follow(tmp_path, range(1, 5), said, mlflow="http://me:hunter2@127.0.0.1:9")
    assert len(said) == 1 and said[0].startswith("MLflow gets no more of this run (") and "hunter2" not in said[0]


@pytest.mark.slow
def test_wandb_writes_offline_and_asks_for_a_key_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MY_TOKEN", "s3cr3t-value")
    monkeypatch.setattr(sys, "argv", ["study.py", "--optuna", "postgresql://me:hunter2@host/x"])
    follow(tmp_path, range(1, 4), said, wandb="try")
    assert not said
    content, deadline = b"", time.monotonic() + 60
    while b"test/accuracy" not in content and time.monotonic() < deadline:  # a process of its own writes it
        files = [path for path in (tmp_path / "wandb").rglob("*") if path.is_file()]
        content = b"".join(path.read_bytes() for path in files)
        time.sleep(0.1)
    assert any(path.suffix == ".wandb" for path in files) and b"test/accuracy" in content and b"full/base/2" in content
    assert b"hunter2" not in content and b"s3cr3t" not in content
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(ValueError, match="W&B knows no key"):
        follow(tmp_path, range(1), said, wandb="try")


STUDY = """
from lnl import Study, Trial
study = Study(
    name="quick", question="Do trackers follow?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=2).override(
        {"method.batch_size": 16}),
    arms={"plain": {}, "broken": {"method.batch_size": 10**12}}, replicates=1,
)
study.main()
"""


@pytest.mark.slow
def test_a_run_is_followed(tmp_path: Path) -> None:
    (tmp_path / "quick.py").write_text(STUDY, encoding="utf-8")
    flags = ["--storage", str(tmp_path / "results"), "--no-report", "--tensorboard", "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path[1:]]), "OMP_NUM_THREADS": "1"}
    done = run_script([WITHOUT_RAY, str(tmp_path / "quick.py"), *flags], environment)
    assert done.returncode == 3 and not done.stderr, done.stdout + done.stderr
    states = {row["arm"]: row for row in json.loads(done.stdout)["trials"]}
    assert states["broken"]["state"] == "failed" and states["plain"]["state"] == "done"
    folder = tmp_path / "results" / "tensorboard" / "quick-base"
    assert [path.name for path in folder.iterdir()] == ["plain"], "who reported no epoch has no curve"
    found = scalars(folder / "plain" / "base" / "0")
    accuracies = {step: value for tag, step, value in found if tag == "test/accuracy"}
    assert set(accuracies) == {1, 2} and accuracies[2] == pytest.approx(states["plain"]["accuracy"])


def test_no_name_leads_out_of_the_folder_of_the_event_files(tmp_path: Path) -> None:
    tracker = trackers.TensorBoard(tmp_path / "deep" / "tensorboard")
    for arm in ("..", "../../../x", "/x", "a" * 285, "con"):
        tracker.log(trackers.Run(arm, "../quick-digits", (arm, "..", "0"), {}), 1, {"test/accuracy": 0.5})
        tracker.end(arm, True)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 5 and all(path.is_relative_to(tmp_path / "deep" / "tensorboard") for path in files)
    assert len({path.parents[3] for path in files}) == 1 and len({path.parents[2] for path in files}) == 5

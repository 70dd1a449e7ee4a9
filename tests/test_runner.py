"""The runner with a real Ray on this machine: plans, failures, faults.  Workers are killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lnl.results import Store, latest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
STUDY = """
from lnl import Noise, Study, Trial
study = Study(
    name="quick", question="Does the runner lose anything?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, noise=Noise("symmetric",
    0.2),
               epochs={epochs}, steps={steps}).override({{"method.batch_size": 16}}),
    arms={arms}, replicates={replicates},
)
if __name__ == "__main__":
    study.main()
"""
TWO_ARMS = {"plain": {}, "mixed": {"method": "mixmatch", "method.batch_size": 16, "method.optimizer.average": 0.9}}


def declare(folder: Path, arms: dict = TWO_ARMS, replicates: int = 2, epochs: int = 3, steps: int = 3) -> Path:
    path = folder / "quick.py"
    path.write_text(STUDY.format(arms=arms, replicates=replicates, epochs=epochs, steps=steps))
    return path


def command(study: Path, storage: Path, *flags: str) -> list[str]:
    return [sys.executable, str(study), "--storage", str(storage), "--no-report", "--address", "local", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def execute(study: Path, storage: Path, *flags: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    arguments = command(study, storage, *flags)
    return subprocess.run(arguments, capture_output=True, text=True, timeout=240, env=environment(), cwd=cwd)


def launch(study: Path, storage: Path, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(study, storage, *flags),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
        start_new_session=True,
    )


def wait_for(condition, what: str, seconds: float = 90):  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds} s")


def results(storage: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What training produced: every column and row that may not depend on when, where and how often it was
    interrupted.
    """
    store = Store(storage)
    trials, broken = store.read("trials", "quick")
    epochs, broken_too = store.read("epochs", "quick")
    assert not broken and not broken_too
    final = latest(trials)
    epochs = epochs.merge(final[["trial", "attempt"]], on=["trial", "attempt"])
    measured = [
        *(
            "trial arm setting replicate method config noise_realised transition parameters data_hash noise_hash"
        ).split(),
        *(
            "split_hash init_hash status failure_class epochs_done accuracy_last accuracy_last10 accuracy_best_test"
        ).split(),
    ]
    return (
        final[measured].sort_values("trial", ignore_index=True),
        epochs[["trial", "epoch", "step", "split", "metric", "value"]].sort_values(
            ["trial", "epoch", "split", "metric"], ignore_index=True
        ),
    )


def assert_same_results(one: Path, other: Path) -> None:
    for mine, theirs in zip(results(one), results(other), strict=True):
        pd.testing.assert_frame_equal(
            mine, theirs, check_exact=True, check_dtype=False
        )  # a null among integers makes floats


def leased_process(storage: Path) -> int | None:
    """A worker that has trained long enough to have written a checkpoint."""
    for path in (storage / "checkpoints").glob("*.pt"):
        lease = storage / "leases" / f"{path.stem}.json"
        if lease.exists():
            return int(json.loads(lease.read_text())["pid"])
    return None


LONG = {"epochs": 40, "steps": 10}  # some seconds a trial: time to be killed in


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = execute(declare(folder, **LONG), folder / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results"


def test_only_what_is_missing_runs(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    first = execute(declare(tmp_path), storage)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 trials to run, 0 done before." in first.stdout and "4 trials: 4 done." in first.stdout

    again = execute(declare(tmp_path), storage, "--json")
    assert json.loads(again.stdout)["counts"] == {"done": 4, "stale": 0, "running": 0, "failed": 0, "missing": 0}

    wider = {**TWO_ARMS, "strong": {"method.augmentation": "strong"}}
    third = execute(declare(tmp_path, arms=wider, replicates=3), storage)
    assert "5 trials to run, 4 done before." in third.stdout
    rows = pd.read_parquet(storage / "trials")
    assert len(rows) == 9 and (rows["attempt"] == 1).all() and (rows["status"] == "ok").all()

    fewer = execute(declare(tmp_path, arms={"plain": {}}), storage, "--json")
    assert json.loads(fewer.stdout)["counts"]["done"] == 2
    assert len(pd.read_parquet(storage / "trials")) == 9, "arms that left the study keep their rows"
    assert not list((storage / "leases").glob("*.json")) and not list((storage / "checkpoints").glob("*"))


def test_a_method_that_diverges_is_an_outcome(tmp_path: Path) -> None:
    arms = {
        "diverges": {"method.optimizer.learning_rate": 1e30},
        "fine": {},
    }
    study, storage = declare(tmp_path, arms=arms, replicates=1), tmp_path / "results"
    first = execute(study, storage, "--arms", "diverges,fine")
    assert first.returncode == 0, first.stdout + first.stderr
    rows = pd.read_parquet(storage / "trials").set_index("arm")
    assert rows.loc["diverges", ["status", "failure_class"]].tolist() == ["failed", "nan"]
    assert "was no finite number in epoch" in rows.loc["diverges", "failure_message"]
    assert rows.loc["fine", "status"] == "ok"
    again = execute(study, storage, "--arms", "diverges,fine", "--json")
    assert json.loads(again.stdout)["counts"]["done"] == 2
    assert len(pd.read_parquet(storage / "trials")) == 2, "an outcome is not tried again"


def test_an_accident_is_a_row_and_is_tried_again(tmp_path: Path) -> None:
    study, storage = (
        declare(tmp_path, arms={"fine": {}, "broken": {"method": "mixmatch", "labels": 1437}}, replicates=1),
        tmp_path / "results",
    )
    first = execute(study, storage)
    assert first.returncode == 3, first.stdout + first.stderr
    assert "failed  broken" in first.stdout and "this trial leaves none" in first.stdout
    logs = list((storage / "logs" / "study=quick").iterdir())
    assert len(logs) == 1 and "Traceback" in logs[0].read_text(), "of the trial that failed, and of no other"
    shown = f"lnl logs quick {logs[0].stem.removesuffix('-1')} --storage {storage}"
    assert first.stdout.count(shown) == 2, "when it fails and at the end"
    second = execute(study, storage)
    assert second.returncode == 3
    rows = pd.read_parquet(storage / "trials")
    broken = rows[rows["arm"] == "broken"]
    assert broken["attempt"].tolist() == [1, 2] and (broken["failure_class"] == "data_error").all()
    assert len(rows[rows["arm"] == "fine"]) == 1


def test_a_killed_worker_loses_nothing(tmp_path: Path, undisturbed: Path) -> None:
    storage = tmp_path / "results"
    driver = launch(declare(tmp_path, **LONG), storage, "--checkpoint-seconds", "0")
    os.kill(wait_for(lambda: leased_process(storage), "a checkpoint"), signal.SIGKILL)
    output, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, output
    rows = pd.read_parquet(storage / "trials")
    lost = rows[rows["status"] == "preempted"]
    assert len(lost) == 1 and lost["failure_class"].tolist() == ["preempted"]
    assert (latest(rows)["status"] == "ok").all()
    assert_same_results(storage, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_stopped_driver_goes_on_at_the_next_run(tmp_path: Path, undisturbed: Path, number: signal.Signals) -> None:
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    driver = launch(study, storage, "--checkpoint-seconds", "0")
    wait_for(lambda: leased_process(storage), "a checkpoint")
    os.kill(driver.pid, number)
    output, _ = driver.communicate(timeout=60)
    if number == signal.SIGINT:
        assert driver.returncode == 3 and "run again to go on" in output
        assert "Traceback" not in output
    wait_for(lambda: not _alive_leases(storage), "the workers' end")
    before = len(list((storage / "checkpoints").glob("*.pt")))
    assert before >= 1, "running trials keep their checkpoints"
    done = execute(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(storage, undisturbed)


def _alive_leases(storage: Path) -> bool:
    from lnl.results import leases

    return any(lease["alive"] for lease in leases(Store(storage)).values())


def test_a_killed_ray_is_reported_and_the_next_run_goes_on(tmp_path: Path, undisturbed: Path) -> None:
    import psutil

    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    driver = launch(study, storage, "--checkpoint-seconds", "0")
    wait_for(lambda: leased_process(storage), "a checkpoint")
    for process in psutil.Process(driver.pid).children(recursive=True):
        if process.name() in ("gcs_server", "raylet"):
            process.kill()
    output, _ = driver.communicate(timeout=150)
    assert driver.returncode != 0, output
    wait_for(lambda: not _alive_leases(storage), "the workers' end")
    done = execute(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_results(storage, undisturbed)


def test_two_drivers_share_the_work(tmp_path: Path, undisturbed: Path) -> None:
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    drivers = [launch(study, storage) for _ in range(2)]
    for driver in drivers:
        output, _ = driver.communicate(timeout=240)
        assert driver.returncode == 0, output
    rows = pd.read_parquet(storage / "trials")
    assert len(rows) == 4 and (rows["attempt"] == 1).all(), "no trial was trained twice"
    assert_same_results(storage, undisturbed)


def test_a_damaged_checkpoint_is_set_aside(tmp_path: Path, undisturbed: Path) -> None:
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    driver = launch(study, storage, "--checkpoint-seconds", "0")
    wait_for(lambda: leased_process(storage), "a checkpoint")
    os.killpg(driver.pid, signal.SIGKILL)
    driver.communicate(timeout=60)
    wait_for(lambda: not _alive_leases(storage), "the workers' end")
    for checkpoint in (storage / "checkpoints").glob("*.pt"):
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = execute(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    events, _ = Store(storage).read("events")
    assert (events["kind"] == "checkpoint_refused").any()
    assert_same_results(storage, undisturbed)


def test_a_full_disk_stops_the_study_in_one_sentence(tmp_path: Path, undisturbed: Path) -> None:
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    storage.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(storage)], capture_output=True
    ).returncode:
        pytest.skip("mounting a small tmpfs is not permitted here")
    try:
        full = execute(study, storage, "--checkpoint-seconds", "0")
        assert full.returncode == 1, full.stdout + full.stderr
        assert "No space left to write" in full.stdout + full.stderr and "Traceback" not in full.stdout + full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", str(storage)], check=True)
        done = execute(study, storage)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same_results(storage, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)


@pytest.mark.parametrize(
    ("flags", "code", "sentence"),
    [
        (["--set", "noise.rat=0.2"], 2, "did you mean 'noise.rate'?"),
        (["--set", "noise.rate=1.5"], 2, "noise.rate: Input should be less than or equal to 1"),
        (["--set", "labels=5000"], 1, "digits has 1437 training images with labels, but 5000 are asked for"),
        (["--set", "dataset=npz:nowhere.npz"], 1, "nowhere.npz"),
        (["--set", "network=resnet"], 2, "there is no network 'resnet': choose one of small_convnet"),
        (["--set", "dataset=digit"], 2, "there is no data set 'digit': choose one of digits"),
        (["--arms", "plane"], 2, "The plan has no arm 'plane'"),
        (["--address", "127.0.0.1:1"], 1, "No Ray cluster answers at '127.0.0.1:1'"),
    ],
)
def test_a_mistake_gets_one_sentence(tmp_path: Path, flags: list[str], code: int, sentence: str) -> None:
    done = execute(declare(tmp_path), tmp_path / "results", *flags)
    assert done.returncode == code, done.stdout + done.stderr
    assert sentence in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list((tmp_path / "results").glob("trials/*"))


def test_relative_paths_mean_the_same_in_workers(tmp_path: Path) -> None:
    from lnl.data import load

    digits = load("digits")
    np.savez(
        tmp_path / "mine.npz",
        x_train=digits.train_images[:300, 0],
        y_train=digits.train_labels[:300],
        x_test=digits.test_images[:, 0],
        y_test=digits.test_labels,
        flip=False,
    )
    study = declare(tmp_path, arms={"plain": {"dataset": "npz:mine.npz"}}, replicates=1)
    done = execute(study, Path("results"), "--data", "cache", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(pd.read_parquet(tmp_path / "results" / "trials")) == 1
    assert (tmp_path / "cache").is_dir()


def test_the_lease_of_a_lost_host_is_waited_for(tmp_path: Path) -> None:
    """Ray restarts a lost node's trial before the lease of the node's worker has lapsed."""
    from lnl import results, runner
    from lnl.trial import Trial

    store = Store(tmp_path)
    trial = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1)
    job = runner.Job(
        trial=trial.model_dump(mode="json"),
        arm="base",
        setting="{}",
        prerequisite=False,
        search=None,
        suggestion=None,
        embeddings=0,
        store=store.identity(),
        run="this run",
        rerun_stale=False,
        study="quick",
        preset="base",
        plan_hash="",
        git_commit=None,
        git_dirty=None,
    )
    lease, _ = results.claim(store, trial.id, study="quick", run="this run")
    assert lease is not None
    record = {**json.loads(lease.path.read_text()), "host": "a machine that went away"}
    lease.path.write_text(json.dumps(record))
    long_ago = time.time() - results.EXPIRY_S + 2
    os.utime(lease.path, (long_ago, long_ago))

    reports: list[dict] = []
    runner.execute(job, runner.Settings(storage=tmp_path, gpus_per_trial=0), reports.append)
    assert reports[-1]["outcome"] == "done"
    rows, _ = store.read("trials", "quick")
    assert rows.sort_values("attempt")["status"].tolist() == ["preempted", "ok"]

    lease, _ = results.claim(store, trial.id, study="quick", run="another run")
    runner.execute(job, runner.Settings(storage=tmp_path, gpus_per_trial=0), reports.append)
    assert reports[-1]["outcome"] == "taken", "another driver's living worker is not waited for"

"""The runner with a real Ray on this machine: plans, failures, faults.  Workers are killed for real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from lnl.cli.main import study_main
from lnl.cli.studies import find_study
from lnl.data import load
from lnl.storage.currency import latest
from lnl.storage.leases import leases
from lnl.storage.store import Store
from tests.forked import WITHOUT_RAY, run_script

ROOT = Path(__file__).parents[2]
LONGEST_S = 600.0  # no test waits so long, unless something hangs
# Of a Ray of its own: a worker costs as much CPU as its Ray, more than all trials here.  A later `--cpus` counts.
ONE_WORKER = ("--cpus", "1")
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
    path.write_text(STUDY.format(arms=arms, replicates=replicates, epochs=epochs, steps=steps), encoding="utf-8")
    return path


def command(study: Path, storage: Path, *flags: str) -> list[str]:
    """With a Ray of its own."""
    return [sys.executable, str(study), "--storage", str(storage), "--no-report", "--address", "local", *flags]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def execute(
    study: Path, storage: Path, *flags: str, cwd: Path | None = None, workers: Sequence[str] = ONE_WORKER
) -> subprocess.CompletedProcess[str]:
    _, *arguments = command(study, storage, *workers, *flags)
    return run_script(arguments, environment(), cwd, LONGEST_S)


def execute_without_ray(
    study: Path, storage: Path, *flags: str, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    arguments = [WITHOUT_RAY, str(study), "--storage", str(storage), "--no-report", *flags]
    return run_script(arguments, environment(), cwd, LONGEST_S)


def launch(study: Path, storage: Path, *flags: str, ray: bool = True) -> subprocess.Popen[str]:
    python, script, *others = command(study, storage, *ONE_WORKER, *flags)
    return subprocess.Popen(
        [python, *([] if ray else [WITHOUT_RAY]), script, *others],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=environment(),
        start_new_session=True,
    )


def wait_for(condition, what: str, seconds: float = LONGEST_S):  # type: ignore[no-untyped-def]
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
    final = latest(trials, {})
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


def leased_process(storage: Path, since: float = 0.0) -> int | None:
    """A worker that has written a checkpoint since this time, and trains on."""
    for path in (storage / "checkpoints").rglob("*.pt"):
        lease = storage / "leases" / path.parent.name / f"{path.stem}.json"
        if lease.exists() and path.stat().st_mtime >= since:
            return int(json.loads(lease.read_text(encoding="utf-8"))["pid"])
    return None


LONG = {"epochs": 30, "steps": 10}  # some seconds a trial: time to be killed in


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    done = execute_without_ray(declare(folder, **LONG), folder / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results"


@pytest.mark.long
def test_only_what_is_missing_runs(tmp_path: Path) -> None:
    """A method that diverges is an outcome; an accident is a row, and is tried again; both beside others that end well.

    The folders are relative: in workers they mean the same.
    """
    digits = load("digits")
    images = {"x_train": digits.train_images[:300, 0], "x_test": digits.test_images[:, 0]}
    labels = {"y_train": digits.train_labels[:300], "y_test": digits.test_labels}
    np.savez(tmp_path / "mine.npz", **images, **labels, flip=False)
    arms = {
        **TWO_ARMS,
        "mine": {"dataset": "npz:mine.npz"},
        "diverges": {"method.optimizer.learning_rate": 1e30},
        "broken": {"method.batch_size": 10**12},
        "started": {"init_from": {"method": "simclr", "epochs": 1}},  # waits for that
    }
    whole = ("--arms", "plain,mixed,mine,diverges,started")
    storage = tmp_path / "kept"

    def again(study: Path, *flags: str, run: Callable = execute_without_ray) -> subprocess.CompletedProcess[str]:
        return run(study, Path("kept"), "--data", "cache", *flags, cwd=tmp_path)

    def counts(study: Path, *flags: str) -> dict[str, int]:
        done = again(study, *flags, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["counts"]  # type: ignore[no-any-return]

    first = again(declare(tmp_path, arms, replicates=1), "--keep", "predictions", run=execute)
    assert first.returncode == 3, first.stdout + first.stderr
    assert "7 trials to run, 0 done before." in first.stdout and "7 trials: 6 done, 1 failed" in first.stdout
    assert "failed  broken" in first.stdout and "Out of memory" in first.stdout
    rows = pd.read_parquet(storage / "trials").set_index("arm")
    logs = {path.stem: path.read_text(encoding="utf-8") for path in (storage / "logs" / "study=quick").iterdir()}
    failed = rows.loc[["broken", "diverges"], "trial"]
    kept = {path.stem for path in (storage / "predictions").rglob("*.parquet")}
    assert kept == {f"{trial}-1" for trial in rows.loc[rows["status"] == "ok", "trial"]}
    assert logs.keys() == {f"{trial}-1" for trial in failed} and all("Traceback" in text for text in logs.values())
    shown = f"lnl logs quick {failed['broken']} --storage {storage}"
    assert first.stdout.count(shown) == 2, "when it fails and at the end"
    assert rows.loc["diverges", ["status", "failure_class"]].tolist() == ["failed", "nan"]
    assert "was no finite number in epoch" in rows.loc["diverges", "failure_message"]
    assert rows.loc["diverges", "data_hash"] == rows.loc["plain", "data_hash"] and rows.loc["diverges", "classes"] == 10
    assert rows.loc["broken", ["status", "failure_class"]].tolist() == ["failed", "oom"]
    before = rows.loc["initialisation: simclr"]
    assert (rows.loc[["plain", "mixed", "mine", "started"], "status"] == "ok").all() and before["status"] == "ok"
    assert before["ended_at"] < rows.loc["started", "started_at"]
    assert (tmp_path / "cache").is_dir()
    assert counts(declare(tmp_path, arms, replicates=1), *whole) == {
        "done": 6, "stale": 0, "running": 0, "failed": 0, "missing": 0
    }  # fmt: skip

    wider = again(declare(tmp_path, {**arms, "strong": {"method.augmentation": "strong"}}))
    assert wider.returncode == 3 and "10 trials to run, 6 done before." in wider.stdout, wider.stdout + wider.stderr
    events, _ = Store(storage).read("events")
    (begun,) = events.loc[events["kind"] == "run_started", "payload"]
    assert json.loads(begun)["resources"]["CPU"] == 1, "as --cpus says"
    rows = pd.read_parquet(storage / "trials")
    broken = rows[rows["arm"] == "broken"].sort_values(["replicate", "attempt"])
    assert broken[["replicate", "attempt"]].values.tolist() == [[0, 1], [0, 2], [1, 1]]
    assert (broken["failure_class"] == "oom").all()
    others = rows[rows["arm"] != "broken"]
    assert len(others) == 2 * 7 and (others["attempt"] == 1).all()
    assert ((others["status"] == "ok") == (others["arm"] != "diverges")).all()

    assert counts(declare(tmp_path, {"plain": {}}))["done"] == 2
    assert len(pd.read_parquet(storage / "trials")) == len(rows), "arms that left the study keep their rows"
    assert not list((storage / "leases").rglob("*.json")) and not list((storage / "checkpoints").rglob("*.*"))


@pytest.mark.long
def test_a_study_stopped_in_every_way_ends_as_if_undisturbed(tmp_path: Path, undisturbed: Path) -> None:
    """Ctrl-C, then its Ray killed, then its driver killed and a checkpoint damaged; then it is left alone.

    A driver that is killed and leaves a Ray behind: tests/search/test_search_on_ray.py.
    """
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)

    def stopped(stop: Callable[[int], None], ray: bool = True) -> tuple[int, str]:
        """A run that this ends as soon as it has written a checkpoint: its exit code, and what it said.

        A worker that is not killed itself may finish its trial before it ends.
        """
        began, finished = time.time(), len(list((storage / "trials").rglob("*.parquet")))
        driver = launch(study, storage, "--checkpoint-seconds", "0", ray=ray)
        wait_for(lambda: leased_process(storage, began), "a checkpoint")
        stop(driver.pid)
        output, _ = driver.communicate(timeout=LONGEST_S)
        wait_for(lambda: not _alive_leases(storage), "the workers' end")
        kept = list((storage / "checkpoints").rglob("*.pt"))
        assert kept or len(list((storage / "trials").rglob("*.parquet"))) > finished, "nothing that was trained is lost"
        return driver.returncode, output

    def kill_ray(driver: int) -> None:
        for process in psutil.Process(driver).children(recursive=True):
            if process.name() in ("gcs_server", "raylet"):
                process.kill()

    code, output = stopped(lambda driver: os.kill(driver, signal.SIGINT))
    assert code == 3 and "run again to go on" in output and "Traceback" not in output, output
    code, output = stopped(kill_ray)
    assert code > 0, output
    code, output = stopped(lambda driver: os.kill(driver, signal.SIGKILL), ray=False)
    assert code == -signal.SIGKILL, output
    checkpoint = min((storage / "checkpoints").rglob("*.pt"))
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    done = execute_without_ray(study, storage)
    assert done.returncode == 0, done.stdout + done.stderr
    events, _ = Store(storage).read("events")
    assert events.loc[events["kind"] == "checkpoint_refused", "trial"].tolist() == [checkpoint.stem]
    assert_same_results(storage, undisturbed)


def _holds(process: int, storage: Path) -> bool:
    return any(lease["pid"] == process for lease in leases(Store(storage)).values())


def _alive_leases(storage: Path) -> bool:
    return any(lease["alive"] for lease in leases(Store(storage)).values())


@pytest.mark.long
def test_two_drivers_share_the_work_and_a_killed_worker_loses_nothing(tmp_path: Path, undisturbed: Path) -> None:
    """The second driver, which needs no Ray, joins when the first one's worker is killed."""
    storage, study = tmp_path / "results", declare(tmp_path, **LONG)
    drivers = [launch(study, storage, "--checkpoint-seconds", "0")]
    worker = wait_for(lambda: leased_process(storage), "a checkpoint")
    drivers.append(launch(study, storage, ray=False))
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: _holds(drivers[1].pid, storage), "a trial of the second driver")
    said = ""
    for driver in drivers:
        output, _ = driver.communicate(timeout=LONGEST_S)
        assert driver.returncode == 0, output
        said += output
    assert said.count("its worker died; it goes on from its last checkpoint.") == 1, said
    assert "Traceback" not in said and "raylet" not in said, "Ray's own words are no news"
    rows = pd.read_parquet(storage / "trials")
    lost = rows[rows["status"] == "preempted"]
    assert len(lost) == 1 and lost["failure_class"].tolist() == ["preempted"]
    assert len(rows) == 4 + 1 and (latest(rows, {})["status"] == "ok").all(), "no trial was trained twice"
    assert_same_results(storage, undisturbed)


@pytest.mark.long
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
        done = execute_without_ray(study, storage)
        assert done.returncode == 0, done.stdout + done.stderr
        assert_same_results(storage, undisturbed)
    finally:
        subprocess.run(["umount", "-l", str(storage)], check=True)


@pytest.mark.slow
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
    ],
)
def test_a_mistake_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, sentence: str
) -> None:
    study = find_study(str(declare(tmp_path)))
    assert study_main(study, ["--storage", str(tmp_path / "results"), "--address", "local", *flags]) == code
    error = capsys.readouterr().err
    assert sentence in error and len(error.strip().splitlines()) == 1, error
    assert not list((tmp_path / "results").glob("trials/*"))


@pytest.mark.slow
def test_a_cluster_that_does_not_answer_gets_one_sentence(tmp_path: Path) -> None:
    done = execute(declare(tmp_path), tmp_path / "results", "--address", "127.0.0.1:1", workers=())
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No Ray cluster answers at '127.0.0.1:1'" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


def test_the_lease_of_a_lost_host_is_waited_for(tmp_path: Path) -> None:
    """Ray restarts a lost node's trial before the lease of the node's worker has lapsed."""
    from lnl.execution import job as execution_job
    from lnl.execution import worker
    from lnl.storage import leases as storage_leases
    from lnl.trial.config import Trial
    from lnl.trial.provenance import Current

    store = Store(tmp_path)
    trial = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=1, steps=1)
    job = execution_job.Job(
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
        selection="last",
        git_commit=None,
        git_dirty=None,
        sources=Current().sources(trial),
    )
    lease, _ = storage_leases.claim(store, "quick", trial.id, run="this run")
    assert lease is not None
    record = {**json.loads(lease.path.read_text(encoding="utf-8")), "host": "a machine that went away"}
    lease.path.write_text(json.dumps(record), encoding="utf-8")
    long_ago = time.time() - storage_leases.EXPIRY_S + 2
    os.utime(lease.path, (long_ago, long_ago))

    reports: list[dict] = []
    worker.execute(job, execution_job.RunSettings(storage=tmp_path, gpus_per_trial=0), reports.append)
    assert reports[-1]["outcome"] == "done"
    rows, _ = store.read("trials", "quick")
    assert rows.sort_values("attempt")["status"].tolist() == ["preempted", "ok"]

    lease, _ = storage_leases.claim(store, "quick", trial.id, run="another run")
    worker.execute(job, execution_job.RunSettings(storage=tmp_path, gpus_per_trial=0), reports.append)
    assert reports[-1]["outcome"] == "taken", "another driver's living worker is not waited for"

"""Searches on a real Ray: against plain Optuna, killed in every way, with pruners, with several drivers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import FrozenTrial, TrialState

from lnl.results import Store, leases
from lnl.search import seed_of
from lnl.study import Cell
from lnl.trial import Trial
from tests import synthetic
from tests.searches import (
    assert_whole,
    ends,
    execute,
    kept,
    launch,
    meanwhile,
    only,
    rows,
    suggestions,
    told,
    validation_curves,
)
from tests.synthetic import accuracy, lab
from tests.test_runner import environment, leased_process, wait_for

pytestmark = pytest.mark.slow
BUDGET = 8
STUDY = """
from lnl import Search, Study, Trial, Uniform, Validation

study = Study(
    name="digits", question="Does a search lose anything?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs={epochs}, steps=10,
               validation=Validation(images=200)).override({{"method.batch_size": 16}}),
    replicates=1,
    search=Search(suggestions={suggestions}, pruner="{pruner}", space={{
        "method.optimizer.learning_rate": Uniform(1e-4, 0.3, log=True),
        "method.optimizer.weight_decay": Uniform(1e-5, 1e-2, log=True)}}),
)
if __name__ == "__main__":
    study.main()
"""


def declare(folder: Path, pruner: str = "none", suggestions: int = BUDGET, epochs: int = 20) -> Path:
    path = folder / "digits.py"
    path.write_text(STUDY.format(pruner=pruner, suggestions=suggestions, epochs=epochs))
    return path


# ------------------------------------------------------------------------------------------------ against plain Optuna


def test_tpe_finds_a_known_optimum_and_beats_random_search(tmp_path: Path) -> None:
    """Medians over 10 searches of 30 suggestions each, two at a time.

    Simulated with Optuna alone, 100 searches of each kind: medians of 10 come out the other way round in 0.15 % of
    draws (0.985 and 0.949), and that of TPE is below 0.96 in none of 20,000.
    """
    repeats = {f"repeat_{number}": {"method.repeat": number} for number in range(10)}
    there = lab(tmp_path, repeats, "suggestions=30, samplers=('tpe', 'random')")
    done = execute(there.study, tmp_path / "results", there.environment)
    assert done.returncode == 0, done.stdout + done.stderr
    found = suggestions(tmp_path / "results")
    assert len(found) == 10 * 2 * 30 and (found["state"] == "complete").all()
    found["accuracy"] = found["values"].map(lambda values: values[0])
    known = [accuracy(json.loads(params)) for params in found["params"]]
    assert found["accuracy"].tolist() == known, "the whole chain returns what the function says"
    best = found.groupby(["sampler", "arm"])["accuracy"].max().groupby("sampler").median()
    print(f"\nmedian of the best: tpe {best['tpe']:.4f}, random {best['random']:.4f}, the optimum is 1")
    assert best["tpe"] > best["random"]
    assert 1 - best["tpe"] < 0.04


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    there = lab(folder, {"plain": {}}, "suggestions=25, seed=3")
    one_cpu = {**there.environment, "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 1})}
    done = execute(there.study, folder / "results", one_cpu)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results"


def test_one_trial_at_a_time_is_plain_optuna(one_at_a_time: Path) -> None:
    found = suggestions(one_at_a_time)
    cell = Cell(found["search"][0], "plain", "{}", "tpe", Trial(method="supervised"), {})
    plain = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed_of(cell, 3)))
    plain.enqueue_trial({key: synthetic.START[key] for key in ("method.x", "method.rate", "method.kind")})

    def objective(trial: optuna.Trial) -> float:
        params: dict[str, Any] = {
            "method.x": trial.suggest_float("method.x", 0, 1),
            "method.rate": trial.suggest_float("method.rate", 1e-4, 1, log=True),
            "method.kind": trial.suggest_categorical("method.kind", ("plain", "curved")),
        }
        if params["method.kind"] == "curved":
            params["method.y"] = trial.suggest_float("method.y", 0, 1)
        return accuracy(params)

    plain.optimize(objective, n_trials=25)
    assert [json.loads(params) for params in found["params"]] == [trial.params for trial in plain.trials]
    assert [list(values) for values in found["values"]] == [trial.values for trial in plain.trials]
    assert_whole(one_at_a_time, 25, only(told(one_at_a_time)))


def test_optuna_dashboard_opens_the_journal(one_at_a_time: Path) -> None:
    program = Path(sys.executable).parent / "optuna-dashboard"
    if not program.exists():
        pytest.skip("optuna-dashboard is not installed")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    dashboard = subprocess.Popen(
        [program, str(one_at_a_time / "optuna.journal"), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answer() -> Any:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=10) as response:
                return json.load(response)
        except OSError:
            return None

    try:
        listed = wait_for(answer, "the dashboard's answer")
        (name,) = told(one_at_a_time)
        assert [study["study_name"] for study in listed["study_summaries"]] == [name]
        assert name.startswith("synthetic/base/plain_tpe/")
    finally:
        dashboard.terminate()
        dashboard.wait(30)


def test_a_lost_journal_is_made_again_from_the_rows(one_at_a_time: Path) -> None:
    before, trained = told(one_at_a_time), rows(one_at_a_time, "trials")
    (one_at_a_time / "optuna.journal").unlink()
    study = one_at_a_time.parent / "synthetic.py"
    home = {**environment(), "PYTHONPATH": str(study.parent), "LNL_DATA": str(study.parent / "data")}
    done = execute(study, one_at_a_time, home)
    assert done.returncode == 0, done.stdout + done.stderr
    after = told(one_at_a_time)
    assert _what_counts(after) == _what_counts(before)
    assert len(rows(one_at_a_time, "trials")) == len(trained), "nothing was trained again"


def _what_counts(studies: dict[str, list[FrozenTrial]]) -> dict[str, list[Any]]:
    return {
        name: [(one.number, one.state, one.params, one.distributions, one.values) for one in trials]
        for name, trials in studies.items()
    }


# --------------------------------------------------------------------------------------------------------------- kills


def in_the_middle(storage: Path, driver: subprocess.Popen[str]) -> int:
    """Wait until some suggestions are finished and one has a checkpoint; returns the process that trains it."""
    meanwhile(lambda: len(list(storage.glob("suggestions/*/*.parquet"))) >= 3, "three suggestions", driver)
    return int(meanwhile(lambda: leased_process(storage), "a checkpoint", driver))


def held_by(storage: Path, process: int) -> set[int]:
    """Numbers of the suggestions that a driver holds."""
    return {
        int(name.rpartition("-")[2])
        for name, lease in leases(Store(storage)).items()
        if name.startswith("search-") and lease["pid"] == process
    }


def quiet(storage: Path) -> bool:
    return not any(lease["alive"] for lease in leases(Store(storage)).values())


def test_a_killed_worker_loses_nothing(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    driver = launch(declare(tmp_path), storage, environment(), "--checkpoint-seconds", "0")
    worker = in_the_middle(storage, driver)
    before = only(told(storage))
    os.kill(worker, signal.SIGKILL)
    ends(driver)
    after = only(told(storage))
    assert kept(before, after)
    assert_whole(storage, BUDGET, after)
    trained = rows(storage, "trials")
    assert (trained["status"] == "preempted").sum() == 1 and len(trained) == BUDGET + 1 + 2


@pytest.mark.parametrize("victim", ["driver", "ray"])
def test_the_same_command_goes_on_after_a_kill(tmp_path: Path, victim: str) -> None:
    storage, study = tmp_path / "results", declare(tmp_path)
    driver = launch(study, storage, environment(), "--checkpoint-seconds", "0")
    in_the_middle(storage, driver)
    if victim == "driver":
        os.kill(driver.pid, signal.SIGKILL)
    else:
        for process in psutil.Process(driver.pid).children(recursive=True):
            if process.name() in ("gcs_server", "raylet"):
                process.kill()
    output, _ = driver.communicate(timeout=240)
    assert driver.returncode != 0, output
    wait_for(lambda: quiet(storage), "the workers' end")
    before = only(told(storage))
    assert any(one.state == TrialState.RUNNING for one in before), "it was in the middle"
    done = execute(study, storage, environment())
    assert done.returncode == 0, done.stdout + done.stderr
    after = only(told(storage))
    assert kept(before, after)
    assert_whole(storage, BUDGET, after)


# --------------------------------------------------------------------------------------------------------- two drivers


def test_two_drivers_share_a_search(tmp_path: Path) -> None:
    storage, study = tmp_path / "results", declare(tmp_path)
    drivers = [launch(study, storage, environment()) for _ in range(2)]
    meanwhile(lambda: all(held_by(storage, one.pid) for one in drivers), "both at work", *drivers)
    for driver in drivers:
        ends(driver)
    assert_whole(storage, BUDGET, only(told(storage)))


def test_a_driver_takes_over_from_another_that_is_killed(tmp_path: Path) -> None:
    storage, study = tmp_path / "results", declare(tmp_path, epochs=40)
    first, second = (launch(study, storage, environment(), "--checkpoint-seconds", "0") for _ in range(2))
    meanwhile(lambda: held_by(storage, first.pid) and held_by(storage, second.pid), "both at work", first, second)
    os.kill(first.pid, signal.SIGKILL)
    before, orphaned = only(told(storage)), held_by(storage, first.pid)
    ends(second)
    first.communicate(timeout=60)
    after = only(told(storage))
    assert kept(before, after) and orphaned <= {one.number for one in before}
    assert_whole(storage, BUDGET, after)


# -------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize("pruner", ["asha", "median"])
def test_bad_suggestions_are_given_up(tmp_path: Path, pruner: str) -> None:
    storage, epochs, budget = tmp_path / "results", 18, 14
    study = declare(tmp_path, pruner, budget, epochs)
    done = execute(study, storage, environment(), "--checkpoint-seconds", "0")
    assert done.returncode == 0, done.stdout + done.stderr
    trials, found = only(told(storage)), suggestions(storage)
    assert_whole(storage, budget, trials)
    pruned = [one for one in trials if one.state == TrialState.PRUNED]
    assert 0 < len(pruned) < budget - 1
    assert trials[0].state == TrialState.COMPLETE or pruner == "asha", "the median is known after five"
    trained, curves = rows(storage, "trials").set_index("trial"), validation_curves(storage)
    for one in pruned:
        row = found.loc[one.number]
        (trial,) = row["trials"]
        attempt = trained.loc[trial]
        assert attempt["status"] == "pruned" and np.isnan(attempt["accuracy_last"])
        curve = curves[trial, attempt["attempt"]]
        seen = {int(epoch): value for epoch, value in json.loads(row["curve"]).items()}
        assert one.intermediate_values == seen and row["epochs"] == max(seen) < epochs
        assert seen == dict(enumerate(curve[: max(seen)], start=1))
    plan = json.loads(rows(storage, "studies").sort_values("submitted_at")["plan"].iloc[-1])
    (cell,) = plan["search"]["cells"]
    best = max(one.value for one in trials if one.state == TrialState.COMPLETE and one.value is not None)
    assert cell["winner"]["values"] == [best] and trials[cell["winner"]["number"]].state == TrialState.COMPLETE
    again = execute(study, storage, environment())
    assert again.returncode == 0 and len(rows(storage, "trials")) == len(trained), "nothing is trained again"

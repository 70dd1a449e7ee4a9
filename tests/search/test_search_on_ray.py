"""Searches by real drivers, on a real Ray where that can matter: killed, with pruners, with several drivers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState

from lnl.storage.leases import leases
from lnl.storage.store import Store
from lnl.system import processes
from tests.execution.test_runner import LONGEST_S, environment, leased_process, wait_for
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
from tests.synthetic import lab

BUDGET = 6
MANY = 20
STUDY = """
from lnl import Search, Study, Trial, Uniform, Validation

study = Study(
    name="digits", question="Does a search lose anything?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs={epochs},
               steps={steps}, validation=Validation(images=200)).override({{"method.batch_size": 16}}),
    replicates=1,
    search=Search(suggestions={suggestions}, pruner="{pruner}", space={{
        "method.optimizer.learning_rate": Uniform(1e-4, 0.3, log=True),
        "method.optimizer.weight_decay": Uniform(1e-5, 1e-2, log=True)}}),
)
if __name__ == "__main__":
    study.main()
"""


def declare(folder: Path, pruner: str = "none", suggestions: int = BUDGET, epochs: int = 20, steps: int = 5) -> Path:
    path = folder / "digits.py"
    fields = {"pruner": pruner, "suggestions": suggestions, "epochs": epochs, "steps": steps}
    path.write_text(STUDY.format(**fields), encoding="utf-8")
    return path


# --------------------------------------------------------------------------------------------------------------- kills


def in_the_middle(storage: Path, driver: subprocess.Popen[str]) -> int:
    """Wait until some suggestions are finished and one has a checkpoint; returns the process that trains it."""
    meanwhile(lambda: len(list(storage.glob("suggestions/*/*.parquet"))) >= 3, "three suggestions", driver)
    return int(meanwhile(lambda: leased_process(storage), "a checkpoint", driver))


def held_by(storage: Path, process: int) -> set[int]:
    """Numbers of the suggestions that a driver holds."""
    return {
        int(name.rpartition("-")[2])
        for (_, name), lease in leases(Store(storage)).items()
        if name.startswith("search-") and lease["pid"] == process
    }


def folders_of(driver: int) -> list[Path]:
    """The scratch folders of a living driver, that of its Ray among them."""
    owners = Path(tempfile.gettempdir()).glob(f"{processes.PREFIX}*/{processes.OWNER}")
    return sorted(path.parent for path in owners if json.loads(path.read_text(encoding="utf-8"))["pid"] == driver)


def quiet(storage: Path) -> bool:
    return not any(lease["alive"] for lease in leases(Store(storage)).values())


@pytest.mark.long
def test_a_killed_worker_and_then_a_killed_driver_lose_nothing(tmp_path: Path) -> None:
    """The same command goes on.  A killed Ray ends the driver in order: tests/execution/test_runner.py."""
    storage, study = tmp_path / "results", declare(tmp_path)
    driver = launch(study, storage, environment(), "--checkpoint-seconds", "0")
    meanwhile(lambda: list(storage.glob("suggestions/*/*.parquet")), "a suggestion", driver)
    worker = meanwhile(lambda: leased_process(storage), "a checkpoint", driver)
    os.kill(worker, signal.SIGKILL)
    meanwhile(lambda: leased_process(storage) not in (None, worker), "another worker", driver)
    in_the_middle(storage, driver)
    folders = folders_of(driver.pid)
    assert [path.name.rpartition("-")[0] for path in folders] == ["lnl-code", "lnl-ray", "lnl-tune"]
    os.kill(driver.pid, signal.SIGKILL)
    output, _ = driver.communicate(timeout=LONGEST_S)
    assert driver.returncode != 0, output
    wait_for(lambda: quiet(storage), "the workers' end")
    before = only(told(storage))
    assert any(one.state == TrialState.RUNNING for one in before), "it was in the middle"
    done = execute(study, storage, environment(), ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not any(path.exists() for path in folders), "the next run has removed what the killed one left"
    after = only(told(storage))
    assert kept(before, after)
    assert_whole(storage, BUDGET, after)
    assert (rows(storage, "trials")["status"] == "preempted").sum() >= 1


# --------------------------------------------------------------------------------------------------------- two drivers


def two_at_work(folder: Path) -> list[subprocess.Popen[str]]:
    """Drivers of one search, each of which has a suggestion; a suggestion takes a second, most of it asleep."""
    there = lab(folder, {"plain": {}}, f"suggestions={MANY}")  # one driver may start long before the other
    flags = ("--set", "method.pause=1")
    drivers = [launch(there.study, folder / "results", there.environment, *flags, ray=False) for _ in range(2)]
    meanwhile(lambda: all(held_by(folder / "results", one.pid) for one in drivers), "both at work", *drivers)
    return drivers


@pytest.mark.slow
def test_two_drivers_share_a_search(tmp_path: Path) -> None:
    for driver in two_at_work(tmp_path):
        ends(driver)
    assert_whole(tmp_path / "results", MANY, only(told(tmp_path / "results")))


@pytest.mark.slow
def test_a_driver_takes_over_from_another_that_is_killed(tmp_path: Path) -> None:
    storage = tmp_path / "results"
    first, second = two_at_work(tmp_path)
    os.kill(first.pid, signal.SIGKILL)
    before, orphaned = only(told(storage)), held_by(storage, first.pid)
    ends(second)
    first.communicate(timeout=LONGEST_S)
    after = only(told(storage))
    assert kept(before, after) and orphaned <= {one.number for one in before}
    assert_whole(storage, MANY, after)


# -------------------------------------------------------------------------------------------------------------- pruning


@pytest.mark.parametrize(
    ("pruner", "ray"),
    [
        pytest.param("asha", True, marks=pytest.mark.long, id="asha"),  # which is Ray's
        pytest.param("median", False, marks=pytest.mark.slow, id="median"),
    ],
)
def test_bad_suggestions_are_given_up(tmp_path: Path, pruner: str, ray: bool) -> None:
    storage, epochs, budget = tmp_path / "results", 18, 14
    study = declare(tmp_path, pruner, budget, epochs, steps=10)
    done = execute(study, storage, environment(), "--checkpoint-seconds", "0", ray=ray)
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
    if pruner == "asha":  # what follows does not depend on the pruner
        again = execute(study, storage, environment(), ray=False)
        assert again.returncode == 0 and len(rows(storage, "trials")) == len(trained), "nothing is trained again"


def test_on_ray_a_worker_is_asked_to_end_a_trial_that_its_search_gives_up(tmp_path: Path) -> None:
    from lnl.execution.tune_adapter import _Pruning

    events = SimpleNamespace(stopped=None, guarded=lambda act, *arguments: act(*arguments))
    source = SimpleNamespace(pruner="median", epoch=lambda trial, metrics: metrics["epoch"] == 2)
    store = Store(tmp_path)
    scheduler = _Pruning(SimpleNamespace(), events, source, store, "digits")  # type: ignore[arg-type]
    for epoch, is_asked in ((1, False), (2, True)):
        assert scheduler.on_trial_result(None, "trial", {"reports": [{"epoch": epoch}]}) == "CONTINUE", (
            "Tune ends nothing"
        )
        assert store.pop_prune_request("digits", "trial") == is_asked

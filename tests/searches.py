"""What must hold of a search after whatever happened to it: Optuna's storage beside the stored rows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
from optuna.storages import JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from lnl.storage.store import Store
from tests.execution.test_runner import LONGEST_S, ONE_WORKER, wait_for
from tests.forked import WITHOUT_RAY, run_script


def arguments(study: Path, storage: Path, *flags: str, ray: bool) -> list[str]:
    """A study's command, with a Ray of its own or without any."""
    flags = ("--address", "local", *ONE_WORKER, *flags) if ray else flags
    script = [str(study)] if ray else [WITHOUT_RAY, str(study)]
    return [*script, "--storage", str(storage), "--no-report", *flags]


def launch(
    study: Path, storage: Path, environment: Mapping[str, str], *flags: str, ray: bool = True
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments(study, storage, *flags, ray=ray)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env=environment,
        cwd=study.parent,  # Ray's workers look there first for packages, then on PYTHONPATH
        start_new_session=True,
    )


def execute(
    study: Path, storage: Path, environment: Mapping[str, str], *flags: str, ray: bool = True
) -> subprocess.CompletedProcess[str]:
    return run_script(arguments(study, storage, *flags, ray=ray), environment, study.parent, LONGEST_S)


def meanwhile(condition: Callable[[], Any], what: str, *drivers: subprocess.Popen[str]) -> Any:
    """Wait for something that happens while these drivers run; returns it."""

    def look() -> Any:
        for driver in drivers:
            assert driver.poll() is None, driver.communicate()[0]
        return condition()

    return wait_for(look, what, LONGEST_S)


def ends(driver: subprocess.Popen[str], code: int = 0) -> str:
    """Wait for a driver; returns what it said."""
    output, _ = driver.communicate(timeout=LONGEST_S)
    assert driver.returncode == code, f"exit code {driver.returncode}\n{output}"
    return output


def told(storage: Path, url: str | None = None) -> dict[str, list[FrozenTrial]]:
    """Name of each study in Optuna's storage -> its trials, by number."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    backend: Any = RDBStorage(url) if url else JournalStorage(JournalFileBackend(str(storage / "optuna.journal")))
    try:
        return {
            name: optuna.load_study(study_name=name, storage=backend).get_trials()
            for name in optuna.get_all_study_names(backend)
        }
    finally:
        if url:
            backend.engine.dispose()


def only(studies: Mapping[str, list[FrozenTrial]]) -> list[FrozenTrial]:
    (trials,) = studies.values()
    return trials


def rows(storage: Path, table: str) -> pd.DataFrame:
    frame, broken = Store(storage).read(table)
    assert not broken
    return frame


def suggestions(storage: Path) -> pd.DataFrame:
    return rows(storage, "suggestions").sort_values(["search", "number"], ignore_index=True)


def kept(before: list[FrozenTrial], after: list[FrozenTrial]) -> bool:
    """Whether all that was asked for is still there, with the same values; one killed while asking has some of them."""
    return all(one.params.items() <= after[one.number].params.items() for one in before)


def assert_whole(storage: Path, budget: int, trials: list[FrozenTrial]) -> None:
    """One search that has spent its budget: nothing lost, nothing twice, Optuna and the rows of one mind."""
    ended = (TrialState.COMPLETE, TrialState.PRUNED)
    assert [one.state in ended for one in trials] == [True] * budget, [one.state for one in trials]
    mine = suggestions(storage)
    assert mine["number"].tolist() == [one.number for one in trials] == list(range(budget))
    asked = [json.loads(params) for params in mine["params"]]
    assert asked == [one.params for one in trials]
    assert len({json.dumps(params, sort_keys=True) for params in asked}) == budget, "no values twice"
    assert [state.upper() for state in mine["state"]] == [one.state.name for one in trials]

    trained, curves = rows(storage, "trials"), validation_curves(storage)
    whole = trained[trained["status"] == "ok"].set_index("trial")["attempt"]
    assert whole.index.is_unique, "a trial was trained twice to its end"
    for one, (_, row) in zip(trials, mine.iterrows(), strict=True):
        (trial,) = row["trials"]
        if one.state == TrialState.COMPLETE:
            assert one.values == list(row["values"]) == [curves[trial, whole[trial]][-1]]
    assert not list((storage / "leases").rglob("*.json")), "a lease was left behind"
    assert not list((storage / "leases").rglob("*.pruned")) and not list((storage / "checkpoints").rglob("*.*"))


def validation_curves(storage: Path) -> dict[tuple[str, int], list[float]]:
    """Trial, attempt -> validation accuracies in order of epochs."""
    epochs = rows(storage, "epochs")
    mine = epochs[(epochs["split"] == "validation") & (epochs["metric"] == "accuracy")]
    return mine.sort_values("epoch").groupby(["trial", "attempt"])["value"].apply(list).to_dict()

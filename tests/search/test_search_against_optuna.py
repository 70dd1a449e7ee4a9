"""Searches against plain Optuna: known optimum, same suggestions, storage that its own tools read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from lnl.search.optuna_objects import seed_of
from lnl.study.plan import Cell
from lnl.trial.config import Trial
from tests import synthetic
from tests.execution.test_runner import wait_for
from tests.searches import assert_whole, execute, only, rows, suggestions, told
from tests.synthetic import Lab, accuracy, lab

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


# Every suggestion is trained by a line of arithmetic; the rest is as on Ray, where two suggestions run at a time.
TWO_AT_A_TIME = """
from pathlib import Path
from lnl.search.searches import Searches
from lnl.storage.store import Store
from synthetic import study
from tests.search.test_search import train
from tests.synthetic import accuracy
plan, store, running = study.plan(), Store(Path("results")), []
searches = Searches(plan, store)
while True:
    while len(running) < 2 and (planned := searches.next(2)):
        running.append(planned)
    if not running:
        break
    ended = running.pop(0)
    fields = {f"method.{name}": value for name, value in ended.trial.method.model_dump().items()}
    train(store, plan, ended, accuracy(fields))
    searches.ended(ended.id, {"outcome": "done"})
assert searches.spent()
"""


def test_tpe_finds_a_known_optimum_and_beats_random_search(tmp_path: Path) -> None:
    """Medians over 10 searches of 30 suggestions each, two at a time.

    Simulated with Optuna alone, 100 searches of each kind: medians of 10 come out the other way round in 0.15 % of
    draws (0.985 and 0.949), and that of TPE is below 0.96 in none of 20,000.
    """
    repeats = {f"repeat_{number}": {"method.repeat": number} for number in range(10)}
    there = lab(tmp_path, repeats, "suggestions=30, samplers=('tpe', 'random')")
    paths = {"PYTHONPATH": os.pathsep.join([str(there.folder), str(ROOT)])}
    subprocess.run([sys.executable, "-c", TWO_AT_A_TIME], cwd=tmp_path, env=there.environment | paths, check=True)
    found = suggestions(tmp_path / "results")
    assert len(found) == 10 * 2 * 30 and (found["state"] == "complete").all()
    found["accuracy"] = found["values"].map(lambda values: values[0])
    known = [accuracy(json.loads(params)) for params in found["params"]]
    assert found["accuracy"].tolist() == known
    best = found.groupby(["sampler", "arm"])["accuracy"].max().groupby("sampler").median()
    print(f"\nmedian of the best: tpe {best['tpe']:.4f}, random {best['random']:.4f}, the optimum is 1")
    assert best["tpe"] > best["random"]
    assert 1 - best["tpe"] < 0.04


@pytest.fixture(scope="module")
def one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    there = lab(folder, {"plain": {}}, "suggestions=25, seed=3")
    done = execute(there.study, folder / "results", there.environment, ray=False)
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
    there = Lab(one_at_a_time.parent, one_at_a_time.parent / "synthetic.py")
    done = execute(there.study, one_at_a_time, there.environment, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = told(one_at_a_time)
    assert _what_counts(after) == _what_counts(before)
    assert len(rows(one_at_a_time, "trials")) == len(trained), "nothing was trained again"


def _what_counts(studies: dict[str, list[FrozenTrial]]) -> dict[str, list[Any]]:
    return {
        name: [(one.number, one.state, one.params, one.distributions, one.values) for one in trials]
        for name, trials in studies.items()
    }

"""A user's own `analysis`, a file or a folder beside a study, and ours: both work, in every way to run a command."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lnl.system import own_analysis
from tests import simulated

ROOT = Path(__file__).parents[2]
STUDY = """
from analysis import own_helper
from lnl import Contrast, Study, Trial
study = Study(
    name="robmix_ablation", question=own_helper(),
    base=Trial(method="supervised", dataset="digits", network="small_convnet", labels=50, epochs=2, steps=3),
    arms={"plain": {}, "strong": {"method.augmentation": "strong"}},
    contrasts=[Contrast(arm="strong", against="plain")], replicates=2,
)
if __name__ == "__main__":
    study.main()
"""
HELPER = 'def own_helper():\n    return "Is this the user\'s own helper?"\n'
LNL = "import sys; from lnl.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture(params=["analysis.py", "analysis/__init__.py"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A study beside the user's own module `analysis`, and a store of results of that study's name."""
    (tmp_path / "study.py").write_text(STUDY, encoding="utf-8")
    own = tmp_path / request.param
    own.parent.mkdir(exist_ok=True)
    own.write_text(HELPER, encoding="utf-8")
    simulated.Simulation(tmp_path / "results").submit(simulated.plan(1, panels=["frozen_head"]))
    return tmp_path


def run(folder: Path, *command: str, path: str = "") -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, str(ROOT)]))}
    ran = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode in (0, 3), ran.stderr
    return ran.stdout


@pytest.mark.slow
def test_a_study_beside_the_users_own_analysis_is_judged_by_ours(folder: Path) -> None:
    """What replicates can show comes of our `analysis`; the study's file has imported the user's own by then."""
    text = run(folder, "study.py", "--plan", "--storage", "results")
    assert "4 trials: 4 missing" in text and "2 replicates cannot give a verdict on 1 contrast" in text


@pytest.mark.slow
def test_commands_read_results_with_our_analysis(folder: Path) -> None:
    """Given a study's file, which imports the user's own, or a name with the user's folder first on the path."""
    status = run(folder, "-c", LNL, "status", "study.py", "--storage", "results")
    assert "no verdict strong against plain" in status
    report = run(folder, "-c", LNL, "report", "study.py", "--preset", "digits", "--storage", "results")
    named = run(folder, "-c", LNL, "report", "robmix_ablation", "--storage", "results", path=str(folder))
    assert report == named == "Report: results/reports/robmix_ablation-digits/index.html\n"


def test_users_modules_come_first_only_while_their_file_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import analysis as ours

    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    own_analysis.use_own_analysis()
    with own_analysis.users_modules_first():
        assert importlib.import_module("analysis").own_helper().startswith("Is this")
    assert importlib.import_module("analysis") is ours
    assert importlib.import_module("analysis.words").readable("our_words") == "our words"

"""A user's own method and network on a real Ray: they travel as text, and an edit makes their trials stale alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from tests.forked import run_script
from tests.methods.test_own_methods import HELPER, METHOD, NETWORK

ROOT = Path(__file__).parents[2]
STUDY = """
from lnl import Study, Trial
study = Study(
    name="own", question="Do a user's own parts reach the workers?",
    base=Trial(method="mine.py", dataset="digits", network="net.py:wide", labels=50, epochs=2, steps=3),
    arms={"mine": {}, "their_method": {"method": "gce"}, "their_network": {"network": "small_convnet"},
          "theirs": {"method": "gce", "network": "small_convnet"}},
    replicates=1,
)
if __name__ == "__main__":
    study.main()
"""


@pytest.mark.long
def test_a_users_own_parts_reach_the_workers(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "study", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    for name, text in (("mine", METHOD), ("helper", HELPER), ("net", NETWORK), ("study", STUDY)):
        (folder / f"{name}.py").write_text(text, encoding="utf-8")

    def run(*flags: str) -> str:
        flags = (str(folder / "study.py"), "--storage", str(tmp_path / "results"), "--address", "local", *flags)
        done = run_script(flags, {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, elsewhere, 600.0)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def stale() -> set[str]:
        trials = json.loads(run("--plan", "--json"))["trials"]
        return {trial["arm"] for trial in trials if trial["state"] == "stale"}

    assert "4 trials: 4 done." in run("--no-report", "--cpus", "1")
    rows = pd.read_parquet(tmp_path / "results" / "trials").set_index("arm")
    assert rows.loc["mine", ["method", "network", "status"]].tolist() == ["mine.py", "net.py:wide", "ok"]
    assert stale() == set()
    (folder / "helper.py").write_text(HELPER.replace("1 - share", "0.9 - share"), encoding="utf-8")
    assert stale() == {"mine", "their_network"}
    (folder / "net.py").write_text(NETWORK.replace("**2, 16)", "**2, 12)"), encoding="utf-8")
    assert stale() == {"mine", "their_method", "their_network"}

"""Importing sets no environment variable: only a run does, before it imports Ray."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lnl.execution import ray_environment

ROOT = Path(__file__).parents[2]
MODULES = sorted(path.stem for path in (ROOT / "lnl" / "execution").glob("*.py") if path.stem != "__init__")
CHANGES = """
import json, os
before = dict(os.environ)
{statements}
after = dict(os.environ)
names = before.keys() | after.keys()
print(json.dumps({{name: after.get(name) for name in names if before.get(name) != after.get(name)}}))
"""


def changes(statements: str) -> dict[str, str | None]:
    """What these statements change in the environment of a new process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TUNE_"))}
    done = subprocess.run(
        [sys.executable, "-c", CHANGES.format(statements=statements)],
        env={**kept, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    found: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
def test_importing_trainable_changes_no_variable() -> None:
    assert changes("from lnl import trainable; trainable") == {}


@pytest.mark.slow
def test_importing_the_package_changes_no_more_than_ray_does_itself() -> None:
    imports = "; ".join(f"import lnl.execution.{name}" for name in MODULES)
    assert "tune_adapter" in MODULES and changes(imports) == changes("import ray.tune")


def test_a_run_of_our_own_ray_gets_a_token_and_stays_on_loopback() -> None:
    local = changes("from lnl.execution import ray_environment; ray_environment.prepare('local')")
    assert local["RAY_AUTH_MODE"] == "token" and len(local["RAY_AUTH_TOKEN"] or "") == 64
    assert local["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0" and local["RAY_USAGE_STATS_ENABLED"] == "0"
    of_cluster = changes("from lnl.execution import ray_environment; ray_environment.prepare('10.0.0.1:6379')")
    assert "RAY_AUTH_TOKEN" not in of_cluster and of_cluster["RAY_USAGE_STATS_ENABLED"] == "0"


def test_what_a_user_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*ray_environment.FIXED, *ray_environment.DEFAULTS):
        monkeypatch.setenv(name, "mine")  # so that everything is undone
    ray_environment.prepare("10.0.0.1:6379")
    assert all(os.environ[name] == "mine" for name in ray_environment.DEFAULTS)
    assert {name: os.environ[name] for name in ray_environment.FIXED} == ray_environment.FIXED

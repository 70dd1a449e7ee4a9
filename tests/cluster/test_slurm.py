"""The SLURM scripts: their syntax, and the command, variables and refusals that they come to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

CLUSTER = Path(__file__).parents[2] / "cluster"
SCRIPTS = ("slurm.sbatch", "slurm_ray.sbatch")
SAY = """#!{python}
import json, os, sys
print(json.dumps({{"command": sys.argv, "environment": dict(os.environ)}}))
"""
HOSTNAME = '#!/bin/sh\n[ "$*" = "-I" ] && echo "10.0.0.3 192.168.0.3"\n'
SLURM = {"SLURM_CPUS_PER_TASK": "8", "SLURM_NNODES": "2"}

Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def submit(tmp_path: Path) -> Submit:
    """Run a script as SLURM does, on a machine whose `lnl` and `srun` say how they were called."""
    programs = tmp_path / "programs"
    programs.mkdir()
    texts = {name: SAY.format(python=sys.executable) for name in ("lnl", "srun")}
    for name, text in {**texts, "hostname": HOSTNAME}.items():
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)

    def run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{programs}{os.pathsep}/usr/bin{os.pathsep}/bin"
        environment = {"PATH": path, "SLURM_SUBMIT_DIR": str(tmp_path), **SLURM, **variables}
        command = ["bash", str(CLUSTER / script), *arguments]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60)

    return run


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize("script", SCRIPTS)
def test_it_is_valid_shell_and_asks_slurm_before_its_first_command(script: str) -> None:
    """What stands below the first command is a comment to SLURM."""
    subprocess.run(["bash", "-n", CLUSTER / script], check=True)
    before, _, after = (CLUSTER / script).read_text(encoding="utf-8").partition("set -euo pipefail\n")
    assert "#SBATCH" not in after
    for line in before.splitlines():
        assert not line.startswith("#SBATCH") or re.fullmatch(r"#SBATCH --[a-z-]+(=[\w.:%@-]+)?", line), line


@pytest.mark.parametrize("script", SCRIPTS)
def test_without_a_study_it_says_what_to_give(script: str, submit: Submit) -> None:
    done = submit(script)
    assert done.returncode == 2 and done.stderr == f"usage: sbatch cluster/{script} STUDY [flags of lnl run]\n"


def test_a_task_of_the_array_is_a_driver_with_a_ray_of_its_own(submit: Submit, tmp_path: Path) -> None:
    answer = said(submit("slurm.sbatch", "mine", "--arms", "two words", RAY_ADDRESS="node9:6379"))
    assert answer["command"][1:] == ["run", "mine", "--arms", "two words", "--cpus", "8", "--no-report"]
    assert answer["environment"]["RAY_ADDRESS"] == "local"
    assert answer["environment"]["LNL_STORAGE"] == str(tmp_path / "results")


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_storage_of_the_user_is_kept(script: str, submit: Submit) -> None:
    assert said(submit(script, "mine", LNL_STORAGE="s3://a/b"))["environment"]["LNL_STORAGE"] == "s3://a/b"


def test_a_job_of_several_nodes_is_one_cluster_with_a_token_of_its_own(submit: Submit) -> None:
    first, second = (said(submit("slurm_ray.sbatch", "mine", "--preset", "paper")) for _ in range(2))
    start = ["ray", "symmetric-run", "--address", "10.0.0.3:6379", "--min-nodes", "2", "--num-cpus", "8"]
    assert first["command"][1:] == [
        *start, "--", "lnl", "run", "mine", "--preset", "paper", "--address", "10.0.0.3:6379",
    ]  # fmt: skip
    tokens = {answer["environment"]["RAY_AUTH_TOKEN"] for answer in (first, second)}
    assert len(tokens) == 2 and all(re.fullmatch(r"[0-9a-f]{64}", token) for token in tokens)
    assert first["environment"]["RAY_AUTH_MODE"] == "token"


def test_ray_has_the_command_and_its_flags() -> None:
    from ray.scripts.symmetric_run import symmetric_run

    assert {"address", "min_nodes"} <= {parameter.name for parameter in symmetric_run.params}

"""What commands import: those that read results, and help, start without torch and Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FIXTURE = REPOSITORY / "tests" / "fixture" / "results"
# The last line of standard output: the exit code, then what was imported.
RUN = """
import sys
from lnl.cli.main import main
try:
    code = main(sys.argv[1:])
except SystemExit as end:
    code = end.code or 0
print()
print(code, *sorted({"torch", "ray", "optuna", "pandas", "pydantic"} & set(sys.modules)))
"""


def start(*arguments: str, folder: Path) -> tuple[int, set[str]]:
    """Exit code and heavy packages of `lnl ARGUMENTS` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "MPLBACKEND": "agg"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    code, *imported = done.stdout.splitlines()[-1].split()
    return int(code), set(imported)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the stored results of studies that were run."""
    return Path(shutil.copytree(FIXTURE, tmp_path_factory.mktemp("start") / "results"))


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["doctor", "--help"]])
def test_help_needs_no_heavy_package(arguments: list[str], tmp_path: Path) -> None:
    assert start(*arguments, folder=tmp_path) == (0, set())


@pytest.mark.parametrize(
    "command, exit_code",
    [
        (["logs", "robmix_ablation"], 0),
        (["ledger", "robmix_ablation"], 0),
        (["report", "robmix_ablation", "--output", "page"], 0),
        (["diff", "robmix_ablation", "--against", "noise_rates"], 0),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_reads_results_needs_neither_torch_nor_ray(
    command: list[str], exit_code: int, storage: Path, tmp_path: Path
) -> None:
    code, imported = start(*command, "--storage", str(storage), folder=tmp_path)
    assert code == exit_code
    assert "pandas" in imported and not imported & {"torch", "ray", "optuna"}


def test_planning_imports_torch_and_the_test_would_see_it(storage: Path, tmp_path: Path) -> None:
    """Configurations of methods are made of torch modules: `plan` and `status` compare with them, but need no Ray."""
    code, imported = start("status", "robmix_ablation", "--storage", str(storage), folder=tmp_path)
    assert code == 3 and "torch" in imported and not imported & {"ray", "optuna"}

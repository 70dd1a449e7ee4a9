"""What commands import: those that read results, and help, start without torch and Ray."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
FIXTURE = REPOSITORY / "tests" / "fixture"
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
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    code, *imported = done.stdout.splitlines()[-1].split()
    return int(code), set(imported)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of stored results: `results` has large studies, `earlier` a small one."""
    folder = tmp_path_factory.mktemp("start")
    shutil.copytree(FIXTURE / "results", folder / "results")
    shutil.copytree(FIXTURE / "earlier" / "store", folder / "earlier")
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["doctor", "--help"],
        ["label", "--help"],
        ["label", "errors", "-h"],
    ],
)
def test_help_needs_no_heavy_package(arguments: list[str], tmp_path: Path) -> None:
    assert start(*arguments, folder=tmp_path) == (0, set())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("store", "arguments"),
    [
        ("results", ["logs", "robmix_ablation"]),
        ("results", ["ledger", "robmix_ablation"]),
        ("earlier", ["report", "earlier", "--output", "page"]),
        ("results", ["diff", "robmix_ablation", "--against", "noise_rates"]),
    ],
    ids=["logs", "ledger", "report", "diff"],
)
def test_what_reads_results_needs_neither_torch_nor_ray(
    store: str, arguments: list[str], storage: Path, tmp_path: Path
) -> None:
    code, imported = start(*arguments, "--storage", str(storage / store), folder=tmp_path)
    assert code == 0 and "pandas" in imported and not imported & {"torch", "ray", "optuna"}


@pytest.mark.slow
def test_status_imports_torch_only_to_plan_anew(storage: Path, tmp_path: Path) -> None:
    """Configurations of methods are made of torch modules; a plan that nothing has changed is remembered."""
    status = ["status", "robmix_ablation", "--storage", str(storage / "results"), "--data", str(tmp_path / "data")]
    code, imported = start(*status, folder=tmp_path)
    assert code == 3 and "torch" in imported and not imported & {"ray", "optuna"}
    code, imported = start(*status, folder=tmp_path)
    assert code == 3 and "pandas" in imported and not imported & {"torch", "ray", "optuna"}


def test_methods_are_named_without_importing_one(tmp_path: Path) -> None:
    """As a shell asks for after each Tab."""
    code = "import sys; from lnl import methods; print(*methods.names(), *{'torch', 'ray'} & set(sys.modules))"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=tmp_path, env=environment, check=True)
    files = (REPOSITORY / "lnl" / "methods").glob("[!_]*.py")
    assert done.stdout.decode().split() == sorted(path.stem for path in files)

"""What who installs the wheel gets, in an empty folder and without the repository."""

from __future__ import annotations

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.test_docs import ALL_BLOCKS, RUN_FROM_A_WHEEL, Block
from tests.wheel import REPOSITORY, build_wheel, environment_beside_our_libraries

PIP = '#!/bin/sh\nexec "$(dirname "$0")/python" -m pip "$@"\n'
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_IGNORE_INSTALLED": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_the_wheel_has_all_that_a_user_needs_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = {
        str(path.relative_to(REPOSITORY))
        for folder in ("lnl", "analysis", "studies")
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in (".py", ".typed", ".toml", ".jinja", ".css", ".js")
    }
    assert names == sources


def commands(block: Block, python: Path) -> list[list[str]]:
    """What a block of the page runs: a script, or each line of a shell's commands."""
    if block.not_run is not None:
        return []
    if block.language == "python":
        return [[str(python), "-c", block.text]]
    return [["bash", "-c", command] for command in block.commands()] if block.language == "sh" else []


@pytest.mark.long
@pytest.mark.parametrize("page", RUN_FROM_A_WHEEL)
def test_the_page_runs_in_an_empty_folder(page: str, wheel: Path, tmp_path: Path) -> None:
    """Its libraries are those of this Python: `pip` has no network here.  On one CPU its Ray has one worker."""
    programs, _ = environment_beside_our_libraries(tmp_path / "environment")
    (programs / "pip").write_text(PIP, encoding="utf-8")
    (programs / "pip").chmod(0o755)
    folder = tmp_path / "empty"
    folder.mkdir()
    (folder / wheel.name).symlink_to(wheel)
    ours = ("LNL_", "RAY_", "PYTHON", "PYTEST")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)} | OFFLINE
    environment |= {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "LNL_DATA": str(tmp_path / "data")}
    environment["RAY_ADDRESS"] = "local"  # whatever cluster another test, or the developer, has here
    one_cpu = ["taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))]
    streams = {"capture_output": True, "encoding": "utf-8"}
    for block in ALL_BLOCKS[page]:
        for command in commands(block, programs / "python"):
            done = subprocess.run([*one_cpu, *command], cwd=folder, env=environment, timeout=600, **streams)
            assert done.returncode == 0, f"{block}: {command[-1]}\n{done.stdout}{done.stderr}"
    assert (folder / "results" / "reports" / "my_images-smoke" / "index.html").is_file()
    assert (folder / "studies" / "robmix_ablation.py").is_file()

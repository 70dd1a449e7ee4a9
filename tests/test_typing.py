"""What a type checker knows of a study outside this repository: with an editable install, and with a wheel."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import lnl
from tests.wheel import build_wheel, environment_beside_our_libraries

REPOSITORY = Path(__file__).parents[1]

WRONG = {
    'Study(nmae="x", question=3)': ['Unexpected keyword argument "nmae" for "Study"', '"question" to "Study" has'],
    'Trial(method="mixup", epocs=3)': ['Unexpected keyword argument "epocs" for "Trial"'],
    "Trial(method=3)": ['"method" to "Trial" has incompatible type "int"'],
    'Contrast("a", agianst="b")': ['Unexpected keyword argument "agianst" for "Contrast"'],
    'Contrast("a", against="b", direction="better")': ['"direction" to "Contrast" has incompatible type'],
    'Search(suggestion=3, arms="a")': ['Unexpected keyword argument "suggestion"', '"arms" to "Search" has'],
    'Uniform("0.1", 1.0)': ['Argument 1 to "Uniform" has incompatible type "str"'],
    "Preset(base=3)": ['"base" to "Preset" has incompatible type "int"'],
    'run("mixup")': ['Argument 1 to "run" has incompatible type "str"'],
    "trainable(3)": ['Argument 1 to "trainable" has incompatible type "int"'],
    "from lnl import Studdy": ['Module "lnl" has no attribute "Studdy"'],
    'load("results")': ['Missing positional argument "study" in call to "load"'],
}
IMPORTS = ["from analysis import load", f"from lnl import {', '.join(sorted(lnl.__all__))}"]
# Whose types do not matter here, and take a minute to read.
HEAVY = "torch torchvision numpy pandas scipy sklearn ray optuna sqlalchemy matplotlib pyarrow rich jinja2".split()


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one study that is right, and one file in which every line is wrong."""
    folder = tmp_path_factory.mktemp("outside")
    shutil.copy(REPOSITORY / "studies" / "robmix_ablation.py", folder / "right.py")
    (folder / "wrong.py").write_text("\n".join([*IMPORTS, *WRONG, ""]), encoding="utf-8")
    skipped = ",".join(f"{name}.*" for name in HEAVY)
    config = f"[mypy]\n[mypy-{skipped}]\nfollow_imports = skip\n"
    (folder / "mypy.ini").write_text(config, encoding="utf-8")
    return folder


def check(outside: Path, python: Path, cache: Path) -> None:
    """Runs mypy as a user of that Python would, without pydantic's plugin."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "MYPYPATH")}
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", cache, "--no-error-summary"]
    done = subprocess.run(
        [*command, "right.py", "wrong.py"], cwd=outside, env=clean, capture_output=True, encoding="utf-8", timeout=300
    )
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert done.returncode == 1, done.stdout + done.stderr
    assert not [line for line in errors if not line.startswith("wrong.py:")], "the right study is right"
    for number, (line, expected) in enumerate(WRONG.items(), len(IMPORTS) + 1):
        of_line = [error for error in errors if error.startswith(f"wrong.py:{number}:")]
        assert len(of_line) == len(expected), f"{line}: {of_line}"
        assert all(any(part in error for error in of_line) for part in expected), f"{line}: {of_line}"
    assert len(errors) == sum(map(len, WRONG.values())), errors


@pytest.mark.slow
def test_an_editable_install_is_typed(outside: Path, pytestconfig: pytest.Config) -> None:
    texts = [installed.read_text("direct_url.json") for installed in metadata.distributions(name="lnl")]
    sources = [json.loads(text) for text in texts if text]
    if not any(one["url"] == REPOSITORY.as_uri() and one["dir_info"].get("editable") for one in sources):
        pytest.skip("this Python has no editable install of this repository: `make` makes one")
    assert pytestconfig.cache is not None
    check(outside, Path(sys.executable), pytestconfig.cache.mkdir("mypy-editable"))


@pytest.mark.slow
def test_a_wheel_is_typed(outside: Path, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Installed beside the libraries of the running Python, in an environment that does not know the repository."""
    programs, site = environment_beside_our_libraries(tmp_path / "environment")
    with zipfile.ZipFile(build_wheel(tmp_path)) as archive:
        archive.extractall(site)
    assert pytestconfig.cache is not None
    check(outside, programs / "python", pytestconfig.cache.mkdir("mypy-wheel"))


def test_the_names_for_type_checkers_are_those_that_load() -> None:
    """`lnl/__init__.py` has them twice: imports that only type checkers follow, and the modules of the lazy loader."""
    imports = [line.split() for line in Path(lnl.__file__).read_text(encoding="utf-8").splitlines()]
    typed = {words[3]: words[1] for words in imports if words[:1] == ["from"] and words[1].startswith("lnl.")}
    assert typed == lnl._HOME
    for words in imports:
        if words[:1] == ["from"] and words[1].startswith("lnl."):
            assert words[2:] == ["import", words[3], "as", words[3]], "a redundant alias, which exports the name"

"""The wheel, and an environment that has it and does not know the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build_wheel(folder: Path) -> Path:
    """Build the wheel of a copy of the sources, as `pip wheel` does, and return its path."""
    source = folder / "source"
    for name in ("lnl", "analysis", "studies"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-c", BUILD, folder]
    done = subprocess.run(command, cwd=source, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def environment_beside_our_libraries(folder: Path) -> tuple[Path, Path]:
    """Make an environment with the libraries of the running Python, but not with `lnl`.

    Returns its folder of programs and that of its own libraries.
    """
    venv.create(folder, symlinks=os.name == "posix")
    base = {"base": str(folder), "platbase": str(folder)}
    programs, site = (Path(sysconfig.get_path(name, vars=base)) for name in ("scripts", "purelib"))
    (site / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    return programs, site

"""What a shell offers after Tab, asked as argcomplete's shell function asks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lnl import methods
from lnl.cli.studies import SHIPPED

pytest.importorskip("argcomplete", reason="a dependency of lnl that this environment does not have yet")
REPOSITORY = Path(__file__).parents[2]
COMMAND = "import sys; from lnl.cli.main import main; main(); print({'torch', 'ray'} & set(sys.modules))"


def completions(line: str, folder: Path) -> set[str]:
    answer = folder / "answer"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_IFS": "\n"}
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, **asked, "_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", COMMAND], cwd=folder, env=environment, check=True, timeout=60)
    return {word.strip() for word in answer.read_text(encoding="utf-8").splitlines()}


def test_commands_flags_studies_and_methods_are_completed(tmp_path: Path) -> None:
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "robust.py").touch()
    assert completions("lnl re", tmp_path) == {"report", "reference"}
    assert completions("lnl run robmix_ablation --pre", tmp_path) == {"--preset"}
    shipped = {path.stem for path in SHIPPED.glob("ro*.py")}
    assert completions("lnl status ro", tmp_path) == {"robust", *shipped}
    assert completions("lnl methods mix", tmp_path) == {name for name in methods.names() if name.startswith("mix")}

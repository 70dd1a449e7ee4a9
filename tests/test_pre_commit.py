"""Pre-commit's hooks are the linters of `make lint`, from the same environment."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]


def test_a_commit_is_checked_by_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint: .*\n((?:\t.*\n)+)", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert recipe is not None
    linters = [command.split() for command in re.split(r"&&|\n", recipe[1]) if command.strip()]
    made = [
        [program.replace("$(BIN)/", ".venv/bin/"), *(one for one in rest if one != ".")] for program, *rest in linters
    ]
    (local,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert local["repo"] == "local"
    assert [hook["entry"].split() for hook in local["hooks"]] == made
    assert {hook["language"] for hook in local["hooks"]} == {"system"}, "nothing is downloaded"

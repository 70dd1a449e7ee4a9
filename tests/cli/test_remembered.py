"""Remembered plans: the same states as those of a plan that is made anew, and none where anything has changed."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from lnl.cli import remembered, status_command
from lnl.cli.flags import Commands
from lnl.cli.new_command import TEMPLATES
from lnl.cli.planning import Request, read_request
from lnl.cli.studies import find_study
from lnl.system import user_code
from lnl.trial import code_hash
from lnl.trial.provenance import Current

STUDY = """
from lnl import Search, Study, Trial, Validation
{imports}
study = Study(
    name="mine",
    question="?",
    base=Trial(method="supervised", dataset="digits", network="small_convnet", epochs=2, validation=Validation(100)),
    arms={{"base": {{}}, "pretrained": {{"init_from": {{"method": "simclr"}}}}, "own": {{"method": "my_method.py"}}}},
    replicates={replicates},
    {more}
)
"""


def options_of(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    commands: Commands = parser.add_subparsers()
    status_command.add_parser(commands)
    return parser.parse_args(["status", *arguments, "--storage", "results", "--data", "data"])


def planned(options: argparse.Namespace) -> Request:
    request = read_request(find_study(options.study), options)
    remembered.remember(request, options)
    return request


def write_study(folder: Path, imports: str = "", replicates: str = "2", more: str = "") -> None:
    (folder / "mine.py").write_text(STUDY.format(imports=imports, replicates=replicates, more=more), encoding="utf-8")
    shutil.copy(TEMPLATES / "method.py", folder / "my_method.py")


def test_states_are_those_of_a_new_plan(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(own_folder)
    printed = []
    for _ in range(2):
        assert status_command.run(options_of("mine.py", "--json")) == 3
        printed.append(json.loads(capsys.readouterr().out))
    request, again = planned(options_of("mine.py")), remembered.recall(options_of("mine.py"))
    assert again is not None and again.plan.trials != request.plan.trials  # which the second was not made of
    assert printed[0] == printed[1] and len(printed[0]["trials"]) == 8  # two of them are prerequisites
    current = Current(own_folder / "data")
    assert [current.sources(p.trial) for p in again.plan.trials] == [
        current.sources(p.trial) for p in request.plan.trials
    ]
    assert again.plan.hash == request.plan.hash and again.plan.of_arms(["own"]) == request.plan.of_arms(["own"])


@pytest.mark.parametrize("edited", ["mine.py", "sizes.py", "my_method.py", "package"])
def test_what_a_plan_was_made_from_is_planned_anew_once_edited(
    edited: str, own_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_study(own_folder, "from sizes import REPLICATES", "REPLICATES")
    (own_folder / "sizes.py").write_text("REPLICATES = 2\n", encoding="utf-8")
    planned(options_of("mine.py"))
    assert remembered.recall(options_of("mine.py")) is not None
    if edited == "package":
        monkeypatch.setattr(remembered, "sources_digest", lambda: f"{code_hash.sources_digest()} edited")
    else:
        path = own_folder / edited
        path.write_text(f"{path.read_text(encoding='utf-8')}\n# edited\n", encoding="utf-8")
        for known in (user_code._known, user_code._modules):  # as another process, which reads files anew
            known.clear()
    assert remembered.recall(options_of("mine.py")) is None


@pytest.mark.parametrize("text", ["--set epochs=3", "--replicates 3", "--arms base", "--night 2026-11-21"])
def test_other_flags_are_another_plan(text: str, own_folder: Path) -> None:
    flags = text.split()
    write_study(own_folder)
    planned(options_of("mine.py"))
    assert remembered.recall(options_of("mine.py", *flags)) is None
    expected = planned(options_of("mine.py", *flags))
    again = remembered.recall(options_of("mine.py", *flags))
    assert again is not None and (again.plan.hash, again.arms) == (expected.plan.hash, expected.arms)


@pytest.mark.parametrize(
    "parts",
    [
        {"imports": "import os"},  # the environment
        {"imports": "from pathlib import Path"},  # other files
        {"imports": "exec('REPLICATES = 2')", "replicates": "REPLICATES"},
        {"more": "looks=(4, 8)"},  # results say how far it goes
        {"more": "search=Search(suggestions=2, arms=('base',)),"},
    ],
)
def test_a_plan_that_may_depend_on_more_is_made_anew(parts: dict[str, str], own_folder: Path) -> None:
    write_study(own_folder, **parts)
    planned(options_of("mine.py"))
    assert remembered.recall(options_of("mine.py")) is None


def test_a_folder_that_cannot_be_written_only_costs_time(own_folder: Path) -> None:
    write_study(own_folder)
    (own_folder / "data").write_text("a file", encoding="utf-8")
    planned(options_of("mine.py"))
    assert remembered.recall(options_of("mine.py")) is None


def test_an_unreadable_memory_is_none(own_folder: Path) -> None:
    write_study(own_folder)
    planned(options_of("mine.py"))
    (kept,) = (own_folder / "data" / "plans").iterdir()
    kept.write_bytes(kept.read_bytes()[:-40])
    assert remembered.recall(options_of("mine.py")) is None

"""`lnl studies`, `lnl copy` and `lnl new`: the studies that come with lnl, and files to start from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lnl.cli.flags import COMPLETE, USAGE
from lnl.cli.main import main
from lnl.cli.studies import SHIPPED, find_study
from lnl.cli.studies_command import question
from lnl.trial.run import run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def lnl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """`lnl(…)` in an empty folder -> exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_studies_are_listed_with_their_questions(lnl: Command) -> None:
    code, out, _ = lnl("studies")
    lines = {line.split()[0]: " ".join(line.split()) for line in out.splitlines()}
    assert code == COMPLETE and {path.stem for path in SHIPPED.glob("*.py")} <= lines.keys()
    assert lines["label_ratios"] == "label_ratios Do more unlabelled images per labelled one help? lnl"


def test_a_study_here_comes_before_one_of_the_same_name(lnl: Command) -> None:
    Path("studies").mkdir()
    Path("studies/search.py").write_text('"""Is it mine?  Yes.\n"""', encoding="utf-8")
    Path("studies/broken.py").write_text("(", encoding="utf-8")
    lines = [" ".join(line.split()) for line in lnl("studies")[1].splitlines()]
    assert "search Is it mine? here" in lines
    assert any(line.startswith("broken (cannot be read: ") for line in lines)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.py")), ids=lambda path: path.stem)
def test_every_study_begins_with_its_question(path: Path) -> None:
    assert question(path).endswith("?")


def test_a_copy_is_what_the_name_means_from_then_on(lnl: Command) -> None:
    code, out, _ = lnl("copy", "sensitivity")
    assert code == COMPLETE and "studies/sensitivity.py" in out
    copy = Path("studies/sensitivity.py")
    assert copy.read_text(encoding="utf-8") == (SHIPPED / "sensitivity.py").read_text(encoding="utf-8")
    copy.write_text(copy.read_text(encoding="utf-8").replace("replicates=5", "replicates=6"), encoding="utf-8")
    assert find_study("sensitivity").replicates == 6
    assert find_study(str(SHIPPED / "sensitivity.py")).replicates == 5
    before = copy.read_bytes()
    code, _, err = lnl("copy", "sensitivity")
    assert code == USAGE and "studies/sensitivity.py is there already" in err and copy.read_bytes() == before


def test_only_a_study_can_be_copied(lnl: Command) -> None:
    code, _, err = lnl("copy", "sensitivty")
    assert code == USAGE and "did you mean 'sensitivity'?" in err and not Path("studies").exists()


def test_a_new_study_runs_as_it_is_and_decides_by_one_contrast(lnl: Command) -> None:
    code, out, _ = lnl("new", "study", "mine")
    assert code == COMPLETE and "lnl run mine --preset smoke" in out
    study = find_study("mine")
    assert study.name == "mine" and len(study.contrasts) == 1 and set(study.presets) == {"smoke", "small"}
    trials = [planned.trial for planned in study.plan("smoke").trials]
    assert {trial.method_name for trial in trials} == {"supervised", "gce", "mixup"}
    for trial in trials:
        assert len(list(run(trial))) == 2
    code, _, err = lnl("new", "study", "mine")
    assert code == USAGE and "is there already" in err


def test_a_new_study_takes_own_images(lnl: Command) -> None:
    assert lnl("new", "study", "mine", "--dataset", 'folder:my_study/Bilder "ü"')[0] == COMPLETE
    assert find_study("mine").base.dataset == 'folder:my_study/Bilder "ü"'


@pytest.mark.parametrize("name", ["My Study", "1st", "../up", "", "ä"])
def test_a_name_that_no_study_can_have_is_refused(lnl: Command, name: str) -> None:
    code, _, err = lnl("new", "study", name)
    assert code == USAGE and "is no name of a study: give small letters" in err and not Path("studies").exists()


@pytest.mark.slow
def test_a_new_method_keeps_the_contract(own_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new", "method", "fresh"]) == COMPLETE
    assert capsys.readouterr().out.splitlines() == [
        "Wrote fresh.py.  Next:",
        "  lnl check fresh.py",
        "  lnl methods fresh.py",
    ]
    assert main(["check", "fresh.py"]) == COMPLETE, capsys.readouterr().out
    assert main(["methods", "fresh.py"]) == COMPLETE
    assert "fresh: part of each given label is shared out" in " ".join(capsys.readouterr().out.split())
    assert main(["new", "method", "fresh"]) == USAGE

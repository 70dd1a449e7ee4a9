"""Mistakes in a study's file are one sentence with field, nearest name and place; a file means one study everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lnl.cli import flags as cli_flags
from lnl.cli import main as cli_main
from lnl.declaring import DeclarationError
from lnl.space import Uniform
from lnl.study.parts import Contrast, Panel, Preset, Search
from lnl.study.study import Study
from lnl.training.task import Noise, Validation
from lnl.trial.config import Trial

BASE = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Trial(method="robmix", labls=3), "Trial(…): Unknown key 'labls': did you mean 'labels'?"),
        (lambda: Trial(method="robmix", noise={"rte": 0.1}), "Unknown key 'noise.rte': did you mean 'noise.rate'?"),
        (
            lambda: Trial(method={"name": "robmix", "optimizer": {"learningrate": 3}}),
            "Unknown key 'method.optimizer.learningrate': did you mean 'method.optimizer.learning_rate'?",
        ),
        (lambda: Trial(method="robmx"), "Trial(…): method: there is no method 'robmx': did you mean 'robmix'?"),
        (lambda: Trial(method="robmix", epochs=0), "epochs: Input should be greater than or equal to 1, not 0."),
        (lambda: Trial("robmix"), "Trial(…): Give every field by its name: "),
        (lambda: Noise("symmetric", rat=0.2), "Noise(…): Unknown key 'rat': did you mean 'rate'?"),
        (lambda: Noise("symetric"), "Noise(…): kind: Input should be 'none', 'symmetric', "),
        (lambda: Noise("human"), "Noise(…): noise.column names the human labels"),
        (lambda: Validation(imges=3), "Validation(…): Unknown key 'imges': did you mean 'images'?"),
        (lambda: Panel("x", ("a",), acros=("b",)), "Panel(…): Unknown key 'acros': did you mean 'across'?"),
        (lambda: Contrast("a", agianst="b"), "Contrast(…): Unknown key 'agianst': did you mean 'against'?"),
        (lambda: Contrast("a"), "Contrast(…): against: Field required."),
        (lambda: Preset(bse={}), "Preset(…): Unknown key 'bse': did you mean 'base'?"),
        (lambda: Search(sugestions=3), "Search(…): Unknown key 'sugestions': did you mean 'suggestions'?"),
        (lambda: Uniform(0.0, 1.0, lg=True), "Uniform(…): Unknown key 'lg': did you mean 'log'?"),
        (lambda: Uniform(1.0, 0.0), "Uniform(…): The range from 1.0 to 0.0 is empty"),
        (lambda: Study(name="x", question="?", base=BASE, arm={}), "Study(…): Unknown key 'arm': did you mean 'arms'?"),
        (
            lambda: Study(name="x", question="?", base=BASE, contrasts=[{"arm": "base", "agianst": "base"}]),
            "Study(…): Unknown key 'contrasts.0.agianst': did you mean 'contrasts.0.against'?",
        ),
        (
            lambda: Study(name="x", question="?", base=BASE, presets={"small": {"bse": {}}}),
            "Study(…): Unknown key 'presets.small.bse': did you mean 'presets.small.base'?",
        ),
        (
            lambda: Study(name="x", question="?", base=BASE, panels={"p": Panel("t", ("bold",))}),
            "Study(…): panel 'p' names arm 'bold', which the study does not have.",
        ),
        (lambda: Contrast("a", against="b", smallest_effect=1.5), "less than or equal to 1, not 1.5"),
        (
            lambda: Contrast("a", against="a"),
            "Contrast(…): a contrast must compare two different arms, and both are 'a'",
        ),
    ],
)
def test_a_mistake_is_one_sentence_with_its_file_and_line(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ValueError) as refusal:
        make()
    text = str(refusal.value)
    assert sentence in text and "test_declaring.py, line " in text, text
    assert "\n" not in text and text[-1] in ".?" and text[-2] not in ".?", text


def test_what_is_read_from_a_store_is_refused_as_before() -> None:
    """A stored trial has no file and no line."""
    from lnl.trial.config import parse

    with pytest.raises(ValueError, match=r"^Unknown key 'labls'") as refusal:
        parse({"method": "robmix", "labls": 3})
    assert not isinstance(refusal.value, DeclarationError)


TYPO = """from lnl import Noise, Study, Trial

study = Study(
    name="typo", question="?", base=Trial(method="supervised", noise=Noise("symmetric", rat=0.4))
)
study.main()
"""


def python(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    project = str(Path(__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": project, "LNL_STORAGE": "results"}
    return subprocess.run(
        [sys.executable, path.name, *flags], cwd=path.parent, env=env, capture_output=True, encoding="utf-8", timeout=60
    )


@pytest.mark.slow
def test_a_typo_is_told_alike_by_the_script_and_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence, where the script would end in pydantic's own page of text."""
    path = tmp_path / "typo.py"
    path.write_text(TYPO, encoding="utf-8")
    expected = "error: typo.py, line 4, Noise(…): Unknown key 'rat': did you mean 'rate'?\n"
    done = python(path)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)
    monkeypatch.chdir(tmp_path)
    for command in ("plan", "run", "status", "report", "ledger", "diff", "logs"):
        assert cli_main.main([command, "typo.py"]) == cli_flags.USAGE
        assert capsys.readouterr().err == expected


# Imports of its own folder, a dataclass with lazy annotations, a relative file, several studies under other names than
# `study`, and a choice under the guard.
SEVERAL = """from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from several_parts import BASE
from lnl import Study

@dataclass
class Size:
    replicates: int | None = 3

HERE = Path(__file__).parent
assert (HERE / "several_parts.py").is_file() and __name__ == "__main__"
first = Study(name="first", question="?", base=BASE, arms={"plain": {}}, replicates=1)
second = Study(name="second", question="?", base=BASE, arms={"plain": {}}, replicates=Size().replicates)
if __name__ == "__main__":
    second.main()
    first.main()
"""
PARTS = (
    'from lnl import Trial\nBASE = Trial(method="supervised", dataset="digits", network="small_convnet", labels=50)\n'
)


@pytest.mark.slow
def test_whatever_a_script_runs_the_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "studies" / "several.py"
    path.parent.mkdir()
    path.write_text(SEVERAL, encoding="utf-8")
    path.with_name("several_parts.py").write_text(PARTS, encoding="utf-8")
    by_script = python(path, "--plan")
    assert by_script.returncode == 0, by_script.stderr
    assert "second, preset base" in by_script.stdout
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    main = sys.modules["__main__"]
    for name in ("several", "studies/several.py", str(path)):
        assert cli_main.main(["plan", name]) == cli_flags.COMPLETE
        assert capsys.readouterr().out == by_script.stdout
    assert sys.modules["__main__"] is main
    monkeypatch.delitem(sys.modules, "several_parts")


@pytest.mark.parametrize("command", ["report", "ledger", "diff", "logs"])
def test_a_command_that_reads_results_takes_a_file_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """It asks for the study by the name under which its results are stored."""
    (tmp_path / "some_file.py").write_text(f"{PARTS}Study = None\n".replace("Study = None", SHORT), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert cli_main.main([command, "some_file.py"]) != cli_flags.COMPLETE
    assert "'short_name'" in capsys.readouterr().err


SHORT = 'from lnl import Study\nStudy(name="short_name", question="?", base=BASE).main()'

"""The page of methods says what their files say."""

from __future__ import annotations

import pytest

from lnl import methods
from lnl.cli import catalogue
from lnl.cli.main import main


def test_the_page_is_what_the_files_say() -> None:
    assert catalogue.PAGE.read_text(encoding="utf-8") == catalogue.page(), (
        "run `python -m lnl.cli.catalogue` and commit the page"
    )


@pytest.mark.parametrize("name", methods.names())
def test_every_method_says_what_it_is_and_what_it_uses(name: str) -> None:
    one = catalogue.entry(name)
    assert one.title.endswith(".") and one.uses
    assert set(one.uses) <= {"labels", "unlabelled", "probe", "two networks"}
    assert {switch.name for switch in one.switches} == set(methods.load(name).Config.model_fields) - {"name"}


def test_the_docstring_below_a_field_is_its_meaning() -> None:
    meanings = {switch.name: switch.meaning for switch in catalogue.entry("robmix").switches}
    assert meanings["lambda_mixmatch"] == "λ of L1 + λ·L2"
    assert meanings["temperature"] == "T of sharpening, eq. 7", "inherited from the settings that MixMatch shares"
    assert meanings["topology"].startswith("joint_two_head: both losses each step.  alternating_epoch:")
    assert meanings["contrastive_data"] == "views of labelled and unlabelled images, or of the latter"


def test_a_switch_says_what_a_search_tries_for_it() -> None:
    ieg = catalogue.entry("ieg")
    tried = {switch.name: switch.search for switch in ieg.switches}
    assert tried["threshold"] == "None, 0.25, 0.5, 1.0, 2.0"
    assert tried["temperature"] == "0.1 … 1" and tried["views"] == "2 … 4"
    assert tried["optimizer"] == "learning_rate 0.01 … 0.3 (log)", "a part of it"
    assert tried["batch_size"] == "", "not searched"
    assert ieg.search == "probe 10 … 1000 (log)", "a field of the trial"
    assert catalogue.entry("mixup").search == ""


@pytest.mark.parametrize("name", methods.names())
def test_all_that_is_searched_is_shown(name: str) -> None:
    one = catalogue.entry(name)
    shown = "; ".join([*(switch.search for switch in one.switches), one.search])
    assert all(catalogue.space_text(space) in shown for space in methods.load(name).SEARCH.values())


def test_the_terminal_shows_them(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in methods.names())
    assert main(["methods", "mixmatch"]) == 0
    assert "method.lambda_u" in capsys.readouterr().out
    assert main(["methods", "mixmatsch"]) == 2
    assert "did you mean 'mixmatch'?" in capsys.readouterr().err

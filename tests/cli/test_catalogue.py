"""The page of methods says what their files say."""

from __future__ import annotations

import json

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
    assert {switch.name for switch, _ in one.groups()} == set(methods.load(name).Config.model_fields) - {"name"}


def test_the_docstring_below_a_field_is_its_meaning() -> None:
    meanings = {switch.name: switch.meaning for switch in catalogue.entry("robmix").switches}
    assert meanings["lambda_mixmatch"] == "λ of L1 + λ·L2"
    assert meanings["temperature"] == "T of sharpening, eq. 7", "inherited from the settings that MixMatch shares"
    assert meanings["topology"].startswith("joint_two_head: both losses each step. alternating_epoch:")
    assert meanings["contrastive_data"] == "views of labelled and unlabelled images, or of the latter"


def test_a_switch_says_what_a_search_tries_for_it() -> None:
    ieg = catalogue.entry("ieg")
    tried = {switch.name: search for switch, search in ieg.groups()}
    assert tried["threshold"] == "None, 0.25, 0.5, 1.0, 2.0"
    assert tried["temperature"] == "0.1 … 1" and tried["views"] == "2 … 4"
    assert tried["optimizer"] == "learning_rate 0.01 … 0.3 (log)", "a part of it"
    assert tried["batch_size"] == "", "not searched"
    assert ieg.search == "probe 10 … 1000 (log)", "a field of the trial"
    assert catalogue.entry("mixup").search == ""


@pytest.mark.parametrize("name", methods.names())
def test_all_that_is_searched_is_shown(name: str) -> None:
    one = catalogue.entry(name)
    shown = "; ".join([*(search for _, search in one.groups()), one.search])
    assert all(catalogue.space_text(space) in shown for space in methods.load(name).SEARCH.values())


def test_a_switch_says_what_it_may_be() -> None:
    allowed = {switch.name: switch.allowed for switch in catalogue.entry("ieg").switches}
    assert allowed["batch_size"] == "whole number ≥ 2"
    assert allowed["threshold"] == "number > 0 or None"
    assert allowed["mixup"] == "beta, code, none" and allowed["use_probe"] == "True or False"
    assert allowed["optimizer.schedule"] == "constant, cosine, fixmatch, linear, step, restarts"
    assert allowed["optimizer.milestones"] == "list of numbers"


def test_the_terminal_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in methods.names())
    assert main(["methods", "mixmatsch"]) == 2
    assert "did you mean 'mixmatch'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["", *methods.names()])
def test_no_name_is_cut_in_a_narrow_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("lnl.cli.output.COLUMNS_OF_A_FILE", 80)
    assert main(["methods", name] if name else ["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    first = {line.split()[0] for line in lines if line.split()}
    expected = {f"method.{switch.name}" for switch in catalogue.entry(name).leaves()} if name else set(methods.names())
    assert expected <= first


def test_json_has_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--json"]) == 0
    assert [method["name"] for method in json.loads(capsys.readouterr().out)] == methods.names()
    assert main(["methods", "gce", "--json"]) == 0
    method = json.loads(capsys.readouterr().out)
    switches = {switch.pop("name"): switch for switch in method["switches"]}
    assert method["uses"] == ["labels"] and method["search"] == ""
    assert switches["method.q"] == {
        "allowed": "number > 0 and ≤ 1",
        "default": 0.7,
        "meaning": "of L_q: near 0 cross-entropy, 1 absolute error",
        "search": "0.1 … 1",
    }
    assert switches["method.optimizer.kind"]["default"] == "sgd"
    assert "method.optimizer" not in switches, "its fields stand for it"

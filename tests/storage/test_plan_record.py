"""The record of a plan: written as it always was, read back whole, also what earlier versions wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from lnl.space import Choice, Integer, Uniform
from lnl.storage.objects import StorageError
from lnl.storage.plan_record import PlanRecord, PlanRecordError, read_record, read_records
from tests import simulated

FIXTURES = Path(__file__).parents[1] / "fixture"
STORED = sorted([*FIXTURES.glob("results/studies/*.parquet"), *FIXTURES.glob("earlier/store/studies/*.parquet")])


def record(**changes: object) -> PlanRecord:
    return read_record(json.dumps({**simulated.plan(2, panels=["frozen_head"]), **changes}), simulated.STUDY)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_plans_of_earlier_versions_are_read(path: Path) -> None:
    """All that they say is kept as it stands; what came later has its default."""
    for row in pq.read_table(path).to_pylist():
        stored, found = json.loads(row["plan"]), read_record(row["plan"], row["study"]).as_json()
        assert {name: found[name] for name in stored} == stored
        assert json.dumps({name: found[name] for name in stored}) == json.dumps(stored), "in the same order"
        assert {name: found[name] for name in found.keys() - stored} in (
            {"method_changes": {}},
            {"method_changes": {}, "looks": [], "night": None},
        )


def test_there_are_stored_plans_to_read() -> None:
    assert len(STORED) >= 5


def test_a_search_is_read_with_its_spaces_and_its_winner() -> None:
    winner = {"number": 3, "params": simulated.OWN, "values": [0.9]}
    cell = simulated.cell("full", winner=winner, importance={"method.lambda_mixmatch": 1.0})
    found = record(search=simulated.search([cell]))
    (read,) = found.cells
    assert read.winner is not None and (read.winner.number, read.winner.values) == (3, (0.9,))
    assert {type(space) for space in read.space.values()} == {Uniform, Choice}
    assert found.as_json()["search"]["cells"] == [cell]


def test_a_space_is_read_back_as_the_one_that_was_written() -> None:
    spaces = {
        "labels": Integer(10, 500, log=True),
        "method.k": Uniform(0, 1, when={"method.truncated": (True, False)}),
        "method.truncated": Choice((True, None, 1, "one")),
    }
    cell = {**simulated.cell("full"), "space": {}}
    found = record(search=simulated.search([cell]))
    assert found.search is not None
    changed = found.search.cells[0].model_copy(update={"space": spaces})
    whole = found.model_copy(update={"search": found.search.model_copy(update={"cells": (changed,)})})
    assert read_record(json.dumps(whole.as_json()), "one").cells[0].space == spaces


def test_fields_of_a_later_version_are_left_out() -> None:
    assert record(weather="fine") == record()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{}", "study: Field required"),
        ("[1, 2]", "should be an object"),
        ("null", "should be an object"),
        ('{"study": ', "Invalid JSON"),
        ('{"study": "a", "preset": "b", "arms": {}, "trials": [{"trial": "c"}]}', r"trials\.0\.arm: Field required"),
        (
            json.dumps(
                {**simulated.plan(1), "search": simulated.search([simulated.cell(space={"x": {"kind": "odd"}})])}
            ),
            r"search\.cells\.0\.space\.x.*of one of the kinds uniform, integer, choice",
        ),
    ],
)
def test_what_is_no_plan_is_an_error_of_one_sentence_that_names_the_study(text: str, reason: str) -> None:
    with pytest.raises(PlanRecordError, match=f"stored plan of study 'noise' .*{reason}.*: remove its file") as raised:
        read_record(text, "noise")
    assert "\n" not in str(raised.value) and isinstance(raised.value, StorageError)
    rows = pd.DataFrame({"study": ["noise"], "plan": [text]})
    with pytest.raises(PlanRecordError, match="'noise'"):
        read_records(rows)


def test_a_record_is_frozen() -> None:
    found = record()
    with pytest.raises(ValidationError, match="frozen"):
        found.replicates = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        found.trials[0].arm = "other"  # type: ignore[misc]


def test_what_a_reader_asks_of_it() -> None:
    found = record()
    assert found.cells == () and found.most_replicates == 2
    assert record(looks=[4, 6]).most_replicates == 6
    assert found.trial_ids == {entry["trial"] for entry in simulated.plan(2, panels=["frozen_head"])["trials"]}
    assert found.contrasts[0].arms == {"frozen_head", "full"}
    with pytest.raises(ValueError, match="has no search"):
        found.require_search()


def test_reading_a_record_needs_neither_torch_nor_ray() -> None:
    code = "import sys, lnl.storage.plan_record; print(sorted({'torch', 'ray', 'optuna'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.strip() == "[]"

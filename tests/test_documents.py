"""The page of the five documents: every row that runs is planned, at the document's size and at the smallest."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from analysis.papers.registry import entries, paper
from lnl.cli.studies import find_study
from lnl.study.plan import Plan

PAGE = Path(__file__).parents[1] / "docs" / "documents.md"
HEADER = ("what", "command", "panel", "state")
NONE = "—"


@dataclass(frozen=True)
class Row:
    """A row of a table: what a document has, and how it is run."""

    document: str  # its number
    what: str
    command: str  # empty: none
    panels: tuple[str, ...]
    state: str

    @property
    def runs(self) -> bool:
        return self.state == "runs"


@dataclass(frozen=True)
class Request:
    """What a command that trains asks for."""

    search: bool
    study: str
    preset: str
    arms: tuple[str, ...]  # none: all
    changes: tuple[str, ...]  # KEY=VALUE


def read_rows() -> list[Row]:
    rows, document = [], ""
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"## (\d{3}): ", line):
            document = heading[1]
        if line.startswith("|"):
            cells = tuple(cell.strip() for cell in line.strip("|").split(" | "))
            assert len(cells) == len(HEADER) or set(line) <= set("|-"), f"no four cells: {line}"
            if cells != HEADER and not set(line) <= set("|-"):
                what, command, panels, state = cells
                rows.append(Row(document, what, command.strip("`").strip(NONE), named(panels), state))
    return rows


def named(panels: str) -> tuple[str, ...]:
    return () if panels == NONE else tuple(panels.split(", "))


ROWS = read_rows()
TRAINING = [row for row in ROWS if row.command and not row.command.startswith("lnl label ")]


def request(command: str) -> Request:
    parser = argparse.ArgumentParser()
    parser.add_argument("program", choices=["lnl"])
    parser.add_argument("verb", choices=["run", "search"])
    parser.add_argument("study")
    parser.add_argument("--preset", required=True)
    parser.add_argument("--arms", default="")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    asked = parser.parse_args(shlex.split(command))
    arms = tuple(filter(None, asked.arms.split(",")))
    return Request(asked.verb == "search", asked.study, asked.preset, arms, tuple(asked.changes))


@cache
def planned(study: str, preset: str, changes: tuple[str, ...] = ()) -> Plan:
    values: Mapping[str, Any] = dict(change.split("=") for change in changes)
    return find_study(study).plan(preset, changes=values)


def trained(plan: Plan, search: bool) -> set[str]:
    """The arms of which the plan has trials, or searches."""
    return {cell.arm for cell in plan.cells} if search else {trial.arm for trial in plan.trials}


def test_every_document_has_rows_and_every_row_a_state() -> None:
    assert {row.document for row in ROWS} == {"000", "001", "002", "003", "004"}
    for row in ROWS:
        assert row.runs or row.state.startswith("no: "), f"{row.what}: says neither 'runs' nor why not"
        assert row.command or not row.runs, f"{row.what}: runs by no command"


@pytest.mark.slow
def test_every_command_is_planned_and_its_arms_run_on_a_bare_machine() -> None:
    for row in TRAINING:
        asked = request(row.command)
        plan = planned(asked.study, asked.preset, asked.changes)
        shown = {arm for name in row.panels for arm in plan.record.panels[name].arms}
        arms = set(asked.arms) or shown or trained(plan, asked.search)
        assert arms, f"{row.what}: nothing is trained"
        assert arms <= trained(plan, asked.search), f"{row.what}: no trial of {arms - trained(plan, asked.search)}"
        for name in row.panels:
            hidden = set(asked.arms) - set(plan.record.panels[name].arms)
            assert not hidden, f"{row.what}: panel {name} does not show {sorted(hidden)}"
        if row.runs:
            small = trained(planned(asked.study, "smoke"), asked.search)
            assert arms <= small, f"{row.what}: smoke does not train {sorted(arms - small)}"


def test_tables_whose_numbers_are_in_the_registry_have_a_row() -> None:
    for entry in entries():
        if document := paper(entry.paper).seed:
            rows = [row.what for row in ROWS if row.document == document]
            known = entry.found != f"seed document {document}" or any(entry.where in what for what in rows)
            assert known, f"document {document}: no row has {entry.where}"

"""The difference between nights in words, Markdown and JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from analysis import statistics
from analysis.nights.difference import Difference
from analysis.nights.night import cell_name, cell_names
from analysis.nights.rule import Cell
from analysis.words import counted
from lnl.storage.places import canonical


def headline(found: Difference) -> str:
    """How many of how many moved."""
    words = [] if found.finished else [f"Nothing finished {'tonight' if found.night else 'here'}"]
    for way in ("down", "up"):
        if count := int((found.cells["moved"] == way).sum()):
            words.append(f"{count} {way}")
    if found.crashed:
        words.append(f"{len(found.crashed)} crashed")
    if not found.finished:
        return f"{', '.join(words)}."
    if found.cells.empty and not found.crashed:
        none = "no trial has an accuracy under the selection rule" if found.night else "no cell is in both"
        return f"Nothing can be judged yet: {', '.join(dict.fromkeys(found.few.values())) or none}."
    judged = f"{counted(len(found.cells), 'cell')} judged"
    return f"{', '.join(words) if words else 'Quiet'}; {judged}, {statistics.SELECTION_RULES[found.selection]}."


def _signed_points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _step_text(row: Mapping[str, Any], mark: str = "") -> str:
    step = _signed_points(row["mean"] - row["expected"])
    return f"{mark}{step}{mark} points ({100 * row['expected']:.2f} → {100 * row['mean']:.2f})"


def _p_value_text(row: Mapping[str, Any]) -> str:
    return "p < .001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}".replace("0.", ".")


def _evidence(found: Difference, row: Mapping[str, Any]) -> str:
    """Beside a moved cell: from what, how sure."""
    if found.night is None:
        way = "paired" if row["paired"] else "unpaired"
        n = f"n = {row['n']} and {row['n_against']}"
        return f"[{_signed_points(row['low'])}, {_signed_points(row['high'])}], {n}, {way}, {_p_value_text(row)}"
    both = " with the night before" * (row["span"] == 2)
    since = f", since {row['since']}" * (row["since"] != found.night)
    return (
        f"{100 * row['low']:.2f} to {100 * row['high']:.2f} expected, n = {row['n']}{both}, {_p_value_text(row)}{since}"
    )


def _twin_sentence(twin: Mapping[str, Any]) -> str:
    pair = f"A/A: {twin['arm']} − {twin['twin']}"
    pair += "".join(f" {key}={value}" for key, value in json.loads(twin["setting"]).items())
    if min(twin["n"], twin["n_twin"]) < 2:
        return f"{pair}: too few replicates tonight."
    difference, low, high = map(_signed_points, (twin["difference"], twin["low"], twin["high"]))
    if np.isnan(twin["p"]):
        return f"{pair}: {difference} points, without an interval: the replicates of each agree."
    state = "ALARM, zero lies outside" if twin["alarm"] else "holds zero"
    return (
        f"{pair}: {difference} [{low}, {high}] points, n = {twin['n']} and {twin['n_twin']}, {state}; "
        f"alarms on {twin['alarms']} of {counted(twin['nights'], 'night')}, where 5 % are expected."
    )


def terminal_lines(found: Difference) -> Iterator[str]:
    """For a terminal."""
    yield found.title
    yield headline(found)
    for row in statistics.records(found.moved):
        cell = row["arm"], row["setting"]
        yield f"{row['moved']:8}{cell_name(cell)}: {_step_text(row)}; {_evidence(found, row)}"
        yield from (f"        {text}" for text in found.changes.get(cell, []))
    for cell, text in found.crashed:
        yield f"crashed {cell_name(cell)}: {text}"
    yield from _notes(found)
    yield f"Look deeper: {', '.join(found.deeper)}"


def _notes(found: Difference) -> Iterator[str]:
    reasons = dict.fromkeys(found.few.values())
    for why in reasons if len(found.cells) or found.crashed or len(reasons) > 1 else ():
        yield f"Not judged yet, {why}: {cell_names(cell for cell, text in found.few.items() if text == why)}."
    yield from found.told
    yield from map(_twin_sentence, found.twins)


def markdown(found: Difference) -> str:
    """For a message or an issue."""
    parts = [f"### {found.title}", headline(found)]
    if len(found.moved) or found.crashed:
        table = ["| cell | moved | |", "|--|--|--|"]
        for row in statistics.records(found.moved):
            name = cell_name((row["arm"], row["setting"]))
            table.append(f"| {name} | {_step_text(row, '**')} | {_evidence(found, row)} |")
        table += [f"| {cell_name(cell)} | **crashed** | {_escaped(text)} |" for cell, text in found.crashed]
        parts.append("\n".join(table))
    same: dict[str, list[Cell]] = {}
    for cell, texts in found.changes.items():
        for text in texts:
            same.setdefault(text, []).append(cell)
    if same:
        changed = [
            f"- {_escaped(text)}" + (f" ({cell_names(cells)})" if len(cells) < len(found.changes) else "")
            for text, cells in same.items()
        ]
        parts.append("\n".join(["What changed:", "", *changed]))
    parts += [_escaped(text) for text in _notes(found)]
    parts.append("Look deeper: " + ", ".join(f"`{command}`" for command in found.deeper))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Nothing that a method printed may end a table or begin a heading."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def json_record(found: Difference) -> dict[str, Any]:
    """All of it, JSON-able."""
    cells = [
        {**{name: _json_value(value) for name, value in row.items()}, "setting": json.loads(row["setting"])}
        for row in statistics.records(found.cells)
    ]
    for row in cells:
        row["changes"] = found.changes.get((row["arm"], canonical(row["setting"])), [])
    names = ("title", "study", "preset", "night", "selection", "quiet", "finished", "told")
    return {
        **{name: getattr(found, name) for name in names},
        "cells": cells,
        "few": [
            {"arm": arm, "setting": json.loads(setting), "why": text} for (arm, setting), text in found.few.items()
        ],
        "crashed": [
            {"arm": arm, "setting": json.loads(setting), "why": text} for (arm, setting), text in found.crashed
        ],
        "twins": [{name: _json_value(value) for name, value in one.items()} for one in found.twins],
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

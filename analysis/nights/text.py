"""The difference between nights as text: for a terminal, in Markdown and in JSON."""

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


def headline(difference: Difference) -> str:
    """Say how many cells of how many moved."""
    words = [] if difference.finished else [f"Nothing finished {'tonight' if difference.night else 'here'}"]
    for direction in ("down", "up"):
        if count := int((difference.cells["moved"] == direction).sum()):
            words.append(f"{count} {direction}")
    if difference.crashed:
        words.append(f"{len(difference.crashed)} crashed")
    if not difference.finished:
        return f"{', '.join(words)}."
    if difference.cells.empty and not difference.crashed:
        none = "no trial has an accuracy under the selection rule" if difference.night else "no cell is in both"
        return f"Nothing can be judged yet: {', '.join(dict.fromkeys(difference.few.values())) or none}."
    judged = f"{counted(len(difference.cells), 'cell')} judged"
    return f"{', '.join(words) if words else 'Quiet'}; {judged}, {statistics.SELECTION_RULES[difference.selection]}."


def _signed_points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _step_text(row: Mapping[str, Any], mark: str = "") -> str:
    step = _signed_points(row["mean"] - row["expected"])
    return f"{mark}{step}{mark} points ({100 * row['expected']:.2f} → {100 * row['mean']:.2f})"


def _p_value_text(row: Mapping[str, Any]) -> str:
    return "p < .001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}".replace("0.", ".")


def _evidence(difference: Difference, row: Mapping[str, Any]) -> str:
    """Say what a moved cell is compared with, and how sure the move is."""
    if difference.night is None:
        pairing = "paired" if row["paired"] else "unpaired"
        n = f"n = {row['n']} and {row['n_against']}"
        return f"[{_signed_points(row['low'])}, {_signed_points(row['high'])}], {n}, {pairing}, {_p_value_text(row)}"
    both = " with the night before" * (row["span"] == 2)
    since = f", since {row['since']}" * (row["since"] != difference.night)
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


def terminal_lines(difference: Difference) -> Iterator[str]:
    """Yield the lines for a terminal."""
    yield difference.title
    yield headline(difference)
    for row in statistics.records(difference.moved):
        cell = row["arm"], row["setting"]
        yield f"{row['moved']:8}{cell_name(cell)}: {_step_text(row)}; {_evidence(difference, row)}"
        yield from (f"        {text}" for text in difference.changes.get(cell, []))
    for cell, text in difference.crashed:
        yield f"crashed {cell_name(cell)}: {text}"
    yield from _notes(difference)
    yield f"Look deeper: {', '.join(difference.deeper)}"


def _notes(difference: Difference) -> Iterator[str]:
    reasons = dict.fromkeys(difference.few.values())
    for why in reasons if len(difference.cells) or difference.crashed or len(reasons) > 1 else ():
        yield f"Not judged yet, {why}: {cell_names(cell for cell, text in difference.few.items() if text == why)}."
    yield from difference.told
    yield from map(_twin_sentence, difference.twins)


def markdown(difference: Difference) -> str:
    """Return the difference for a message or an issue."""
    parts = [f"### {difference.title}", headline(difference)]
    if len(difference.moved) or difference.crashed:
        table = ["| cell | moved | |", "|--|--|--|"]
        for row in statistics.records(difference.moved):
            name = cell_name((row["arm"], row["setting"]))
            table.append(f"| {name} | {_step_text(row, '**')} | {_evidence(difference, row)} |")
        table += [f"| {cell_name(cell)} | **crashed** | {_escaped(text)} |" for cell, text in difference.crashed]
        parts.append("\n".join(table))
    same: dict[str, list[Cell]] = {}
    for cell, texts in difference.changes.items():
        for text in texts:
            same.setdefault(text, []).append(cell)
    if same:
        changed = [
            f"- {_escaped(text)}" + (f" ({cell_names(cells)})" if len(cells) < len(difference.changes) else "")
            for text, cells in same.items()
        ]
        parts.append("\n".join(["What changed:", "", *changed]))
    parts += [_escaped(text) for text in _notes(difference)]
    parts.append("Look deeper: " + ", ".join(f"`{command}`" for command in difference.deeper))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Return a text in which nothing that a method printed ends a table or begins a heading."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def json_record(difference: Difference) -> dict[str, Any]:
    """Return the whole difference, JSON-able."""
    cells = [
        {**{name: _json_value(value) for name, value in row.items()}, "setting": json.loads(row["setting"])}
        for row in statistics.records(difference.cells)
    ]
    for row in cells:
        row["changes"] = difference.changes.get((row["arm"], canonical(row["setting"])), [])
    names = ("title", "study", "preset", "night", "selection", "quiet", "finished", "told")
    return {
        **{name: getattr(difference, name) for name in names},
        "cells": cells,
        "few": [
            {"arm": arm, "setting": json.loads(setting), "why": text} for (arm, setting), text in difference.few.items()
        ],
        "crashed": [
            {"arm": arm, "setting": json.loads(setting), "why": text} for (arm, setting), text in difference.crashed
        ],
        "twins": [{name: _json_value(value) for name, value in twin.items()} for twin in difference.twins],
    }


def _json_value(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

"""What changed beside a cell that moved: code, commit, configuration and environment."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.nights.night import RECORDED_FACTS, finished_trials
from analysis.nights.rule import Cell
from analysis.words import counted
from lnl.dotted import flatten
from lnl.storage.store import Store


def changes_of_cells(
    old: Store, old_study: str, new: Store, new_study: str, pairs: Mapping[Cell, tuple[pd.DataFrame, pd.DataFrame]]
) -> dict[Cell, list[str]]:
    """Of moved cells: code, commit, configuration and environment, as they were and as they are."""
    configs = []
    for store, study, place in ((old, old_study, 0), (new, new_study, 1)):
        wanted = [trial for pair in pairs.values() for trial in finished_trials(pair[place])["trial"].head(1)]
        rows, _ = store.read("trials", study, ["trial", "config"], [("trial", "in", wanted or [""])])
        configs.append(dict(zip(rows["trial"], rows["config"], strict=True)))
    return {cell: _changes(pair, configs) for cell, pair in pairs.items()}


def _changes(pair: tuple[pd.DataFrame, pd.DataFrame], configs: Sequence[Mapping[str, str]]) -> list[str]:
    """Describe what changed between the trials of a cell then and now."""
    before, now = (finished_trials(trials) for trials in pair)
    changes = [*_changed_facts(before, now)]
    if now["git_dirty"].eq(True).any():
        changes.append("uncommitted changes in the code's folder")
    changes += _changed_settings(
        *(_first_config(trials, of_side) for trials, of_side in zip((before, now), configs, strict=True))
    )
    return changes or ["nothing that is recorded"]


def _changed_facts(before: pd.DataFrame, now: pd.DataFrame) -> Iterator[str]:
    """Code, commit, data, versions and machines whose recorded values differ."""
    for column, name in RECORDED_FACTS.items():
        was, is_ = (sorted(set(trials[column].dropna())) for trials in (before, now))
        if was != is_:
            commits = _commits(was, is_) if column == "git_commit" else ""
            yield f"{name} {_shortened(column, was)} → {_shortened(column, is_)}{commits}"


def _shortened(column: str, values: Sequence[str]) -> str:
    """Name the first three of these values; of hashes their beginnings."""
    length = 7 if column == "git_commit" else 12 if column.endswith("hash") else None
    return ", ".join(value[:length] for value in values[:3]) or "none"


def _first_config(trials: pd.DataFrame, configs: Mapping[str, str]) -> dict[str, Any]:
    """The stored configuration of the first of these trials, by dotted field."""
    text = configs.get(trials["trial"].iloc[0]) if len(trials) else None
    return flatten(json.loads(text or "{}"))


def _changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    for key in dict.fromkeys([*before, *now]):
        was, is_ = (settings.get(key, "(none)") for settings in (before, now))
        if was != is_ and key != "replicate":
            yield f"{key} {was} → {is_}"


def _commits(was: Sequence[str], is_: Sequence[str]) -> str:
    """Say how many commits lie between two, where this code's repository knows them."""
    if len(was) != 1 or len(is_) != 1 or not all(re.fullmatch("[0-9a-f]{7,64}", commit) for commit in (*was, *is_)):
        return ""
    command = ["git", "rev-list", "--count", f"{was[0]}..{is_[0]}"]
    try:
        git = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({counted(int(git.stdout), 'commit')})" if git.returncode == 0 else ""

"""Confirmation: the best suggestion trained on fresh replicates."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
import pandas as pd

from lnl.search.rows import all_rows, frozen_trials, on_current_data, rows_of, winner
from lnl.storage.outcomes import counting
from lnl.storage.store import Store
from lnl.study.plan import Cell, Plan, Planned, trials_record, with_prerequisites
from lnl.trial.provenance import Current

logger = logging.getLogger(__name__)


def importances(rows: pd.DataFrame, cell: Cell) -> dict[str, float]:
    """Optuna's importance of each field for the accuracy (PED-ANOVA, its default), which sum to 1; {} where unknown."""
    complete = rows[rows["state"] == "complete"]
    if len(complete) < 4 or complete["values"].map(lambda values: values[0]).nunique() < 2:
        return {}
    directions: list[Any] = ["maximize", "minimize"][: len(complete["values"].iloc[0])]
    study = optuna.create_study(directions=directions)
    study.add_trials(frozen_trials(complete, cell))
    target = (lambda trial: trial.values[0]) if len(directions) > 1 else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = optuna.importance.get_param_importances(study, target=target)
        except (ValueError, RuntimeError):  # no field that all suggestions have, or that varies
            return {}
    return {key: float(value) for key, value in found.items()}


def confirmed(plan: Plan, store: Store, current: Current | None = None) -> Plan:
    """The plan with a searched arm for each search that has spent its budget: the arm with the best values found.

    Suggestions that were scored on other data than those of `current` do not count.

    It is trained on the study's replicates beside the arm itself, is compared with it, and stands for it in a second
    copy of every contrast and of every panel that goes across factors.
    """
    if plan.search is None:
        return plan
    cells = []
    stored = all_rows(store, plan.study)
    best: dict[str, dict[str, Any]] = {}  # searched arm -> setting -> values
    for cell, said in zip(plan.cells, plan.record["search"]["cells"], strict=True):
        rows = on_current_data(rows_of(stored, cell), cell, current or Current())
        rows = counting(rows, plan.search.suggestions)
        found = winner(rows) if len(rows) == plan.search.suggestions else None
        record = {**said, "finished": len(rows), "importance": importances(rows, cell)}
        if found is not None:
            params = json.loads(found["params"])
            record["winner"] = {"number": int(found["number"]), "params": params, "values": list(found["values"])}
            best.setdefault(cell.searched_arm, {})[cell.setting] = params
        cells.append(record)
    record = {**plan.record, "search": {**plan.record["search"], "cells": cells}}
    return _with_searched_arms(replace(plan, record=record), best) if best else replace(plan, record=record)


def _with_values(planned: Planned, arm: str, params: Mapping[str, Any]) -> Planned | None:
    """A planned trial with the values that were found; None, and said so, where they cannot be in its setting."""
    try:
        return Planned(planned.trial.override(params), arm, planned.setting)
    except ValueError as error:
        if planned.trial.replicate == 0:
            logger.warning("%s is left out of setting %s: %s", arm, planned.setting, error)
        return None


def _with_searched_arms(plan: Plan, best: Mapping[str, Mapping[str, Any]]) -> Plan:
    by_id = {planned.id: planned for planned in plan.trials}
    own = [by_id[entry["trial"]] for entry in plan.record["trials"]]
    source = {cell.searched_arm: cell.arm for cell in plan.cells if cell.searched_arm in best}
    everywhere = plan.search is not None and plan.search.settings == "base"
    searched = [
        one
        for arm, values in best.items()
        for planned in own
        if planned.arm == source[arm]
        and (params := values.get("{}" if everywhere else planned.setting)) is not None
        and (one := _with_values(planned, arm, params)) is not None
    ]
    declared = sorted([*own, *searched], key=lambda planned: planned.trial.replicate)
    trials = with_prerequisites(declared)
    arms, panels = dict(plan.record["arms"]), dict[str, Any]()
    stands: dict[str, dict[str, str]] = {}  # sampler -> arm -> its searched arm
    for cell in plan.cells:
        if (arm := cell.searched_arm) in best:
            values = best[arm].get("{}", next(iter(best[arm].values())))
            arms[arm] = {**arms[cell.arm], **values}
            stands.setdefault(cell.sampler, {})[cell.arm] = arm
    curves = next(iter(plan.record["panels"].values()))["curves"]
    for arm in dict.fromkeys(source.values()):
        both = [arm, *(mine[arm] for mine in stands.values() if arm in mine)]
        title = f"{arm.replace('_', ' ')}: own and searched values"
        panels[f"search_{arm}"] = {"title": title, "arms": both, "across": [], "curves": curves, "reference": arm}
    panels |= plan.record["panels"]
    for sampler, mine in stands.items():
        for name, panel in plan.record["panels"].items():
            if panel["across"] and (there := [mine[arm] for arm in panel["arms"] if arm in mine]):
                title = f"{panel['title']}, values searched by {sampler}"
                panels[f"{name}_{sampler}"] = {**panel, "title": title, "arms": there, "reference": there[0]}
    any_size = {"direction": "any", "smallest_effect": 0.0}
    contrasts = [{"arm": arm, "against": source[arm], **any_size} for arm in source]
    for first, second in itertools.combinations(stands, 2):
        both_searched = [arm for arm in stands[first] if arm in stands[second]]
        contrasts += [{"arm": stands[first][a], "against": stands[second][a], **any_size} for a in both_searched]
    contrasts += plan.record["contrasts"]
    for mine in stands.values():
        contrasts += [
            {**contrast, "arm": mine[contrast["arm"]], "against": mine[contrast["against"]]}
            for contrast in plan.record["contrasts"]
            if {contrast["arm"], contrast["against"]} <= set(mine)
        ]
    record = {
        **plan.record,
        "arms": arms,
        "panels": panels,
        "contrasts": contrasts,
        **trials_record(declared, trials),
    }
    return replace(plan, trials=trials, record=record)

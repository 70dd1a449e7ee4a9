"""Confirmation: `confirmed` is the plan that trains the best values that searches found on fresh replicates."""

from __future__ import annotations

import itertools
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
import pandas as pd

from lnl.search.rows import all_rows, frozen_trials, on_current_data, rows_of, winner
from lnl.storage.outcomes import counting
from lnl.storage.plan_record import ContrastRecord, PanelRecord, WinnerRecord
from lnl.storage.store import Store
from lnl.study.plan import Cell, Plan, Planned, with_prerequisites
from lnl.study.recording import prerequisite_records, trial_records
from lnl.trial.provenance import Current

logger = logging.getLogger(__name__)

Best = Mapping[str, Mapping[str, Mapping[str, Any]]]  # searched arm -> setting -> the best values found there
StandIns = Mapping[str, Mapping[str, str]]  # sampler -> arm -> the searched arm that stands for it


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
            importance = optuna.importance.get_param_importances(study, target=target)
        except (ValueError, RuntimeError):  # no field that all suggestions have, or that varies
            return {}
    return {key: float(value) for key, value in importance.items()}


def confirmed(plan: Plan, store: Store, current: Current | None = None) -> Plan:
    """The plan with a searched arm for each search that has spent its budget: the arm with the best values found.

    Suggestions that were scored on other data than those of `current` do not count.

    It is trained on the study's replicates beside the arm itself, is compared with it, and stands for it in a second
    copy of every contrast and of every panel that goes across factors.
    """
    if plan.search is None or plan.record.search is None:
        return plan
    cells = []
    stored = all_rows(store, plan.study)
    best: dict[str, dict[str, dict[str, Any]]] = {}
    for cell, declared in zip(plan.cells, plan.record.cells, strict=True):
        rows = on_current_data(rows_of(stored, cell), cell, current or Current())
        rows = counting(rows, plan.search.suggestions)
        row = winner(rows) if len(rows) == plan.search.suggestions else None
        best_suggestion = None
        if row is not None:
            number, params, values = int(row["number"]), json.loads(row["params"]), tuple(row["values"])
            best_suggestion = WinnerRecord(number=number, params=params, values=values)
            best.setdefault(cell.searched_arm, {})[cell.setting] = params
        changes = {"finished": len(rows), "importance": importances(rows, cell), "winner": best_suggestion}
        cells.append(declared.model_copy(update=changes))
    search = plan.record.search.model_copy(update={"cells": tuple(cells)})
    plan = replace(plan, record=plan.record.model_copy(update={"search": search}))
    return _with_searched_arms(plan, best) if best else plan


def _with_searched_arms(plan: Plan, best: Best) -> Plan:
    """The plan with an arm for each searched arm that has a winner."""
    by_id = {planned.id: planned for planned in plan.trials}
    own = [by_id[planned.trial] for planned in plan.record.trials]
    source = {cell.searched_arm: cell.arm for cell in plan.cells if cell.searched_arm in best}
    searched = _searched_trials(plan, own, source, best)
    declared = sorted([*own, *searched], key=lambda planned: planned.trial.replicate)
    trials = with_prerequisites(declared)
    stand_ins = _stand_ins(plan, best)
    changes = {
        "arms": _arms(plan, source, best),
        "panels": _panels(plan, source, stand_ins),
        "contrasts": _contrasts(plan, source, stand_ins),
        "trials": trial_records(declared),
        "prerequisites": prerequisite_records(trials),
    }
    return replace(plan, trials=trials, record=plan.record.model_copy(update=changes))


def _searched_trials(plan: Plan, own: Sequence[Planned], source: Mapping[str, str], best: Best) -> list[Planned]:
    """The trials of each searched arm: those of its source, `own`, with the values that were found."""
    everywhere = plan.search is not None and plan.search.settings == "base"
    searched = []
    for arm, values in best.items():
        for planned in own:
            params = values.get("{}" if everywhere else planned.setting) if planned.arm == source[arm] else None
            if params is not None and (confirming := _with_values(planned, arm, params)) is not None:
                searched.append(confirming)
    return searched


def _with_values(planned: Planned, arm: str, params: Mapping[str, Any]) -> Planned | None:
    """A planned trial with the values that were found; None, with a warning, where its setting does not allow them."""
    try:
        return Planned(planned.trial.override(params), arm, planned.setting)
    except ValueError as error:
        if planned.trial.replicate == 0:
            logger.warning("%s is left out of setting %s: %s", arm, planned.setting, error)
        return None


def _stand_ins(plan: Plan, best: Best) -> StandIns:
    stand_ins: dict[str, dict[str, str]] = {}
    for cell in plan.cells:
        if cell.searched_arm in best:
            stand_ins.setdefault(cell.sampler, {})[cell.arm] = cell.searched_arm
    return stand_ins


def _arms(plan: Plan, source: Mapping[str, str], best: Best) -> dict[str, Any]:
    """The declared arms, and the searched ones with the values of the base setting, or else of their first."""
    arms = dict(plan.record.arms)
    for arm in source:
        values = best[arm].get("{}", next(iter(best[arm].values())))
        arms[arm] = {**arms[source[arm]], **values}
    return arms


def _panels(plan: Plan, source: Mapping[str, str], stand_ins: StandIns) -> dict[str, PanelRecord]:
    """A panel for each arm beside its searched ones, the declared panels, and copies of these with searched arms."""
    declared = plan.record.panels
    curves = next(iter(declared.values())).curves
    panels: dict[str, PanelRecord] = {}
    for arm in dict.fromkeys(source.values()):
        arms = (arm, *(searched[arm] for searched in stand_ins.values() if arm in searched))
        title = f"{arm.replace('_', ' ')}: own and searched values"
        panels[f"search_{arm}"] = PanelRecord(title=title, arms=arms, curves=curves, reference=arm)
    panels |= declared
    for sampler, searched in stand_ins.items():
        for name, panel in declared.items():
            arms = tuple(searched[arm] for arm in panel.arms if arm in searched)
            if panel.across and arms:
                changes = {
                    "title": f"{panel.title}, values searched by {sampler}",
                    "arms": arms,
                    "reference": arms[0],
                }
                panels[f"{name}_{sampler}"] = panel.model_copy(update=changes)
    return panels


def _contrasts(plan: Plan, source: Mapping[str, str], stand_ins: StandIns) -> tuple[ContrastRecord, ...]:
    """Each searched arm against its source and those of other samplers, the declared contrasts, and copies of these."""
    declared = plan.record.contrasts
    contrasts = [ContrastRecord(arm=arm, against=source[arm]) for arm in source]
    for first, second in itertools.combinations(stand_ins.values(), 2):
        contrasts += [ContrastRecord(arm=first[arm], against=second[arm]) for arm in first if arm in second]
    contrasts += declared
    for searched in stand_ins.values():
        contrasts += [
            contrast.model_copy(update={"arm": searched[contrast.arm], "against": searched[contrast.against]})
            for contrast in declared
            if contrast.arms <= searched.keys()
        ]
    return tuple(contrasts)

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
from lnl.storage.plan_record import ContrastRecord, PanelRecord, PlanRecord, WinnerRecord
from lnl.storage.store import Store
from lnl.study.plan import Cell, Plan, Planned, with_prerequisites
from lnl.study.recording import prerequisite_records, trial_records
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
    if plan.search is None or plan.record.search is None:
        return plan
    cells = []
    stored = all_rows(store, plan.study)
    best: dict[str, dict[str, Any]] = {}  # searched arm -> setting -> values
    for cell, declared in zip(plan.cells, plan.record.cells, strict=True):
        rows = on_current_data(rows_of(stored, cell), cell, current or Current())
        rows = counting(rows, plan.search.suggestions)
        found = winner(rows) if len(rows) == plan.search.suggestions else None
        record = None
        if found is not None:
            record = WinnerRecord(
                number=int(found["number"]), params=json.loads(found["params"]), values=tuple(found["values"])
            )
            best.setdefault(cell.searched_arm, {})[cell.setting] = record.params
        about = {"finished": len(rows), "importance": importances(rows, cell), "winner": record}
        cells.append(declared.model_copy(update=about))
    search = plan.record.search.model_copy(update={"cells": tuple(cells)})
    plan = replace(plan, record=plan.record.model_copy(update={"search": search}))
    return _with_searched_arms(plan, best) if best else plan


def _with_values(planned: Planned, arm: str, params: Mapping[str, Any]) -> Planned | None:
    """A planned trial with the values that were found; None, and said so, where they cannot be in its setting."""
    try:
        return Planned(planned.trial.override(params), arm, planned.setting)
    except ValueError as error:
        if planned.trial.replicate == 0:
            logger.warning("%s is left out of setting %s: %s", arm, planned.setting, error)
        return None


def _with_searched_arms(plan: Plan, best: Mapping[str, Mapping[str, Any]]) -> Plan:
    """`best`: searched arm -> setting -> values."""
    source = {cell.searched_arm: cell.arm for cell in plan.cells if cell.searched_arm in best}
    by_sampler: dict[str, dict[str, str]] = {}  # sampler -> arm -> its searched arm
    for cell in plan.cells:
        if cell.searched_arm in best:
            by_sampler.setdefault(cell.sampler, {})[cell.arm] = cell.searched_arm
    declared = _with_searched_trials(plan, best, source)
    trials = with_prerequisites(declared)
    arms = dict(plan.record.arms)
    for arm, own in source.items():
        arms[arm] = {**arms[own], **best[arm].get("{}", next(iter(best[arm].values())))}
    changes = {
        "arms": arms,
        "panels": _with_searched_panels(plan.record, by_sampler, source),
        "contrasts": _with_searched_contrasts(plan.record, by_sampler, source),
        "trials": trial_records(declared),
        "prerequisites": prerequisite_records(trials),
    }
    return replace(plan, trials=trials, record=plan.record.model_copy(update=changes))


def _with_searched_trials(
    plan: Plan, best: Mapping[str, Mapping[str, Any]], source: Mapping[str, str]
) -> list[Planned]:
    """The declared trials and those of the searched arms, whole replicates first."""
    by_id = {planned.id: planned for planned in plan.trials}
    own = [by_id[planned.trial] for planned in plan.record.trials]
    everywhere = plan.search is not None and plan.search.settings == "base"
    searched = [
        trial
        for arm, values in best.items()
        for planned in own
        if planned.arm == source[arm]
        and (params := values.get("{}" if everywhere else planned.setting)) is not None
        and (trial := _with_values(planned, arm, params)) is not None
    ]
    return sorted([*own, *searched], key=lambda planned: planned.trial.replicate)


def _with_searched_panels(
    record: PlanRecord, by_sampler: Mapping[str, Mapping[str, str]], source: Mapping[str, str]
) -> dict[str, PanelRecord]:
    """One panel for each searched arm beside its own, the declared ones, and copies of those that cross factors."""
    panels: dict[str, PanelRecord] = {}
    curves = next(iter(record.panels.values())).curves
    for arm in dict.fromkeys(source.values()):
        both = (arm, *(searched[arm] for searched in by_sampler.values() if arm in searched))
        title = f"{arm.replace('_', ' ')}: own and searched values"
        panels[f"search_{arm}"] = PanelRecord(title=title, arms=both, curves=curves, reference=arm)
    panels |= record.panels
    for sampler, searched in by_sampler.items():
        for name, panel in record.panels.items():
            if panel.across and (arms := tuple(searched[arm] for arm in panel.arms if arm in searched)):
                title = f"{panel.title}, values searched by {sampler}"
                changes = {"title": title, "arms": arms, "reference": arms[0]}
                panels[f"{name}_{sampler}"] = panel.model_copy(update=changes)
    return panels


def _with_searched_contrasts(
    record: PlanRecord, by_sampler: Mapping[str, Mapping[str, str]], source: Mapping[str, str]
) -> tuple[ContrastRecord, ...]:
    """Each searched arm against its own, sampler against sampler, the declared ones, and these of searched arms."""
    contrasts = [ContrastRecord(arm=arm, against=own) for arm, own in source.items()]
    for first, second in itertools.combinations(by_sampler.values(), 2):
        contrasts += [ContrastRecord(arm=first[arm], against=second[arm]) for arm in first if arm in second]
    contrasts += record.contrasts
    for searched in by_sampler.values():
        contrasts += [
            contrast.model_copy(update={"arm": searched[contrast.arm], "against": searched[contrast.against]})
            for contrast in record.contrasts
            if contrast.arms <= searched.keys()
        ]
    return tuple(contrasts)

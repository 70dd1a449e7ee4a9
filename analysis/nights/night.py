"""A night: its plan, its trials and their states, as the store has them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.nights.rule import Cell, Values
from analysis.results import LoadError, first_replicate_of, is_on_other_data
from lnl.storage.currency import latest, sources_from
from lnl.storage.outcomes import is_outcome
from lnl.storage.places import canonical
from lnl.storage.plan_record import PLANNED_COLUMNS, PlanRecord, read_records
from lnl.storage.store import Store
from lnl.storage.tables import tell_left_out

MOST_NIGHTS = 60  # that are read, to know which of them were quiet
CRASHES = ("code_error", "oom", "timeout", "data_error")  # failures of the code; not so a preempted trial
RECORDED_FACTS = {  # column of a trial's row -> what it is called where it has changed
    "code_hash": "code",
    "git_commit": "commit",
    "data_hash": "data",
    "version_python": "Python",
    "version_torch": "torch",
    "version_ray": "Ray",
    "device": "device",
    "host": "host",
}
TRIAL_COLUMNS = (
    *("trial", "attempt", "replicate", "status", "failure_class", "failure_message", "transition", "seconds"),
    *("classes", "dataset", "ended_at", "sources_hash", "noise_hash", "split_hash", "git_dirty"),
    *(*RECORDED_FACTS, *(f"accuracy_{rule}" for rule in statistics.SELECTION_RULES)),
)


@dataclass(frozen=True)
class Night:
    """A plan and what became of it: its trials with `arm`, `setting`, `score` (NaN: none) and `state`."""

    name: str  # of the night; of another plan its study, preset or hash
    plan: PlanRecord
    trials: pd.DataFrame
    prerequisites: pd.DataFrame  # what these start from, where it is none of them

    @property
    def finished(self) -> bool:
        """Whether any trial has finished."""
        return bool((self.trials["state"] == "finished").any())

    def values(self) -> dict[Cell, Values]:
        """Return the accuracies of each cell that has some."""
        scores = self.trials["score"].to_numpy(float)
        known = {cell: scores[places] for cell, places in self._places.items()}
        known = {cell: values[~np.isnan(values)] for cell, values in known.items()}
        return {cell: values for cell, values in known.items() if len(values)}

    @property
    def cells(self) -> list[Cell]:
        """The cells in the order of the plan."""
        return list(self._places)

    def of(self, cell: Cell) -> pd.DataFrame:
        """Return the trials of a cell; none where the plan does not have it."""
        return self.trials.iloc[self._places.get(cell, [])]

    def planned(self, cell: Cell) -> int:
        """Return how many trials of a cell were planned."""
        return len(self._places.get(cell, []))

    def counts(self, chosen: pd.Series) -> Counter[Cell]:
        """Return how many of these trials each cell has."""
        return Counter(cells_of(self.trials[chosen]))

    @cached_property
    def _places(self) -> dict[Cell, list[int]]:
        places: dict[Cell, list[int]] = {}
        for place, cell in enumerate(cells_of(self.trials)):
            places.setdefault(cell, []).append(place)
        return places


def cells_of(trials: pd.DataFrame) -> list[Cell]:
    """Return the cell of each of these trials."""
    return list(zip(trials["arm"], trials["setting"], strict=True))


def night_of_plan(name: str, plan: PlanRecord, rows: pd.DataFrame) -> Night:
    """Join a plan with its results.  `rows`: the newest of each trial, with their scores."""
    trials = _with_states(pd.DataFrame(plan.trial_rows(), columns=PLANNED_COLUMNS), rows)
    also: list[tuple[str, str, dict[str, Any]]] = [(start.trial, start.arm, {}) for start in plan.prerequisites]
    before = pd.DataFrame(also, columns=["trial", "arm", "setting"])
    return Night(name, plan, trials, _with_states(before[~before["trial"].isin(trials["trial"])], rows))


def _with_states(planned: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    planned = planned.assign(setting=planned["setting"].map(canonical))
    trials = planned.merge(rows.drop(columns="replicate"), on="trial", how="left")
    ended = trials["failure_class"].where(trials["status"] != "ok", "finished").fillna(trials["status"])
    state = ended.where(trials["status"].notna(), "not run").where(~is_outcome(trials), "finished")
    return trials.assign(state=state, score=trials["score"].where(state == "finished"))


def plans_with_records(store: Store, study: str) -> pd.DataFrame:
    """Submitted plans of a study, oldest first, with their records and nights.  Raises LoadError where none is."""
    plans = store.plans(study)
    if plans.empty:
        raise LoadError(f"No plan of study '{study}' in {store.root}: give its name, and --storage.")
    return with_records(plans)


def with_records(plans: pd.DataFrame) -> pd.DataFrame:
    """These plans with the columns `record` and `night`."""
    records = pd.Series(read_records(plans), plans.index, dtype=object)
    return plans.assign(record=records, night=[record.night for record in records])


def scored_rows(
    store: Store,
    study: str,
    rule: str,
    plans: Sequence[Mapping[str, Any]],
    filters: Sequence[tuple[str, str, Any]] = (),
) -> tuple[pd.DataFrame, int]:
    """The attempt that counts of each trial of these plans, oldest plan first, with its score.

    Results on other data than those that the last plan was submitted with are left out; returns how many.
    """
    listed: set[str] = set().union(*(plan["record"].trial_ids for plan in plans))
    current = sources_from(plans[-1]["current"])
    rows, broken = store.read("trials", study, list(TRIAL_COLUMNS), list(filters) or None)
    tell_left_out(broken)
    rows = latest(rows[rows["trial"].isin(listed)], current)
    other_data = is_on_other_data(rows, current)
    rows = rows[~other_data]
    return rows.assign(score=statistics.accuracy(rows, rule)), int(other_data.sum())


def read_nights(
    store: Store, study: str, preset: str | None = None, night: str | None = None, selection: str | None = None
) -> tuple[list[Night], str, int]:
    """The stored nights of one preset up to this one (the latest without), oldest first, and the selection rule.

    Last the number of results that are left out, because they were made on other data than the last night's.

    Raises LoadError where there is no such night.
    """
    plans = plans_with_records(store, study)
    plans = plans[plans["night"].notna() & ((plans["preset"] == preset) | (preset is None))]
    if plans.empty:
        of = f" with preset '{preset}'" if preset else ""
        raise LoadError(f"Study '{study}'{of} has no night yet: run it with --night today.")
    chosen = plans if night is None else plans[plans["night"] == night]
    if chosen.empty:
        names = sorted(set(plans["night"]))
        shown = ", ".join(names[-3:]) + f" and {len(names) - 3} before" * (len(names) > 3)
        raise LoadError(f"Study '{study}' has no night {night}: there are {shown}.")
    last = chosen.sort_values("night", kind="stable").iloc[-1]  # of a night the newest
    chosen_plans = plans[(plans["preset"] == last["preset"]) & (plans["night"] <= last["night"])]
    chosen_plans = chosen_plans.groupby("night").tail(1).sort_values("night").tail(MOST_NIGHTS)
    rule = statistics.check_selection(selection or last["record"].selection)
    since = [("replicate", ">=", first_replicate_of(chosen_plans["record"].iloc[0]))]
    rows, on_other = scored_rows(store, study, rule, statistics.records(chosen_plans), since)
    return (
        [night_of_plan(plan["night"], plan["record"], rows) for plan in statistics.records(chosen_plans)],
        rule,
        on_other,
    )


def finished_trials(trials: pd.DataFrame) -> pd.DataFrame:
    """Return those of these trials that have finished."""
    return trials[trials["state"] == "finished"]


def cell_name(cell: Cell) -> str:
    """Name an arm and its setting: `robmix labels=40`."""
    setting = json.loads(cell[1])
    return " ".join([cell[0], *(f"{key}={value}" for key, value in setting.items())])


def cell_names(cells: Any) -> str:
    """Name several cells."""
    return ", ".join(cell_name(cell) for cell in cells)

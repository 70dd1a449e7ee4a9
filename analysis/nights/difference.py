"""Tonight against the nights before: which cells (an arm in a setting) moved, and what changed beside them.

A cell's mean of tonight is compared with what its last k quiet nights predict, and the mean of tonight and the night
before with what the nights before those predict: a step too small for one night shows in two.  The spread of a
replicate is estimated from all replicates of these nights within their nights, made wider by how much more the means of
nights scatter than that explains, over all cells together (a machine, a library), and in a cell itself.  A replicate
counts at most `OUTLIER_LIMIT` standard deviations from its night's median, so that no single one makes a step by
itself.  That takes `REPLICATES_TO_JUDGE` of them: a night with fewer of a cell is neither judged nor a reference for
it.  p is corrected for the two questions (Bonferroni) and over all cells of the night (Holm): of nights on which
nothing moved at most 5 % alarm, if spreads are not far from normal; tests/analysis/test_nights.py has figures for this
and for others.

Nights on which a cell moved are no reference for later ones, so a step does not hide itself.  After `FEWEST_NIGHTS`
nights in a row on which it moved the same way they are its new level, and the alarm ends.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.nights.changes import changes_of_cells
from analysis.nights.night import (
    Night,
    cell_name,
    cell_names,
    finished_trials,
    night_of_plan,
    plans_with_records,
    read_nights,
    scored_rows,
    with_records,
)
from analysis.nights.notes import (
    coming_and_going_notes,
    diverged_notes,
    left_out_note,
    missing_notes,
    new_and_known_crashes,
    slower_notes,
    twin_comparisons,
)
from analysis.nights.rule import (
    ALARM_RATE,
    FEWEST_NIGHTS,
    REFERENCE_NIGHTS,
    REPLICATES_TO_JUDGE,
    Cell,
    CellVerdict,
    judge_nights,
)
from analysis.results import LoadError
from analysis.verdicts import FEWEST_REPLICATES, holm
from analysis.words import counted
from lnl.storage.places import Place, storage_flag
from lnl.storage.store import Store


@dataclass(frozen=True)
class Difference:
    """What moved between two nights or plans, and what else is to be told."""

    title: str
    study: str
    preset: str
    night: str | None
    selection: str
    cells: pd.DataFrame  # judged ones in the plan's order: arm, setting, fields of `CellVerdict` or of `Comparison`
    few: dict[Cell, str]  # not judged yet, and what that takes
    changes: dict[Cell, list[str]]  # of moved cells: what changed since the last quiet night
    crashed: list[tuple[Cell, str]]  # that did not crash before
    told: list[str]  # sentences: missing, new and vanished cells, old crashes, divergences, slower ones
    finished: bool  # anything at all
    twins: list[dict[str, Any]] = field(default_factory=list)  # one configuration under two names
    nights: tuple[Night, ...] = ()
    verdicts: Mapping[str, Mapping[Cell, CellVerdict]] = field(default_factory=dict)
    report: str = ""  # flags of the report that shows more
    storage: str = ""  # the flag without which commands would look elsewhere

    @property
    def moved(self) -> pd.DataFrame:
        return self.cells[self.cells["moved"] != ""]

    @property
    def quiet(self) -> bool:
        return self.finished and self.moved.empty and not self.crashed

    @property
    def deeper(self) -> list[str]:
        """Return the commands that show more."""
        logs = [f"lnl logs {self.study} --preset {shlex.quote(self.preset)}{self.storage}"] if self.crashed else []
        return [f"lnl report {self.study} {self.report}{self.storage}", *logs]


def tonight(
    root: Place,
    study: str,
    preset: str | None = None,
    night: str | None = None,
    k: int = REFERENCE_NIGHTS,
    selection: str | None = None,
) -> Difference:
    """A night, the latest where none is given, against the last k quiet ones before it."""
    if k < FEWEST_NIGHTS:
        raise ValueError(f"{k} nights are too few for a reference: give --nights {FEWEST_NIGHTS} or more.")
    store = Store(root)
    nights, rule, on_other_data = read_nights(store, study, preset, night, selection)
    last, before = nights[-1], nights[:-1]
    verdicts = judge_nights({other.name: other.values() for other in nights}, k)
    judged = {cell: verdicts[last.name][cell] for cell in last.cells if cell in verdicts[last.name]}
    crashed, known = new_and_known_crashes(last, before, FEWEST_NIGHTS)
    return Difference(
        title=_title_of_night(study, last, before[-k:]),
        study=study,
        preset=last.plan.preset,
        night=last.name,
        selection=rule,
        cells=_judged_cells(judged),
        few={cell: _too_few(verdict) for cell, verdict in judged.items() if np.isnan(verdict.p_holm)},
        changes=_changes_since_reference(store, study, nights, judged),
        crashed=crashed,
        told=[
            *left_out_note(on_other_data),
            *missing_notes(last),
            *(
                f"Still crashing, as on the {FEWEST_NIGHTS} nights before: {cell_name(cell)} ({text})."
                for cell, text in known
            ),
            *coming_and_going_notes(nights),
            *diverged_notes(nights),
            *slower_notes(nights, verdicts[last.name]),
        ],
        finished=last.finished,
        twins=twin_comparisons(nights),
        nights=tuple(nights),
        verdicts=verdicts,
        report=f"--preset {shlex.quote(last.plan.preset)} --night {last.name}",
        storage=storage_flag(store.root),
    )


def _title_of_night(study: str, night: Night, before: Sequence[Night]) -> str:
    names = [other.name for other in before]
    ends = list(dict.fromkeys(names[:1] + names[-1:]))
    span = f" ({' to '.join(ends)})" if ends else ""
    of_night = f"{study}, preset {night.plan.preset}, night {night.name}"
    return f"{of_night}, against {counted(len(before), 'night')} before it{span}"


def _judged_cells(judged: Mapping[Cell, CellVerdict]) -> pd.DataFrame:
    """Return a row for each cell with enough replicates and nights before."""
    rows = [
        {"arm": arm, "setting": setting, **verdict._asdict()}
        for (arm, setting), verdict in judged.items()
        if not np.isnan(verdict.p_holm)
    ]
    return pd.DataFrame(rows, columns=["arm", "setting", *CellVerdict._fields])


def _too_few(verdict: CellVerdict) -> str:
    """Say why a cell is not judged."""
    if verdict.n < REPLICATES_TO_JUDGE:
        return f"it takes {REPLICATES_TO_JUDGE} replicates"
    return f"{FEWEST_NIGHTS} quiet nights make a reference"


def _changes_since_reference(
    store: Store, study: str, nights: Sequence[Night], judged: Mapping[Cell, CellVerdict]
) -> dict[Cell, list[str]]:
    """Of cells that moved: what changed since the last night that they are compared with."""
    by_name = {night.name: night for night in nights}
    since = {cell: by_name[verdict.reference[-1]] for cell, verdict in judged.items() if verdict.moved}
    pairs = {cell: (night.of(cell), nights[-1].of(cell)) for cell, night in since.items()}
    changes = changes_of_cells(store, study, store, study, pairs)
    return {cell: [f"since {since[cell].name}: {text}" for text in texts] for cell, texts in changes.items()}


def against(
    root: Place,
    study: str,
    preset: str | None = None,
    night: str | None = None,
    other: str | None = None,
    other_root: Place | None = None,
    selection: str | None = None,
) -> Difference:
    """The newest plan of a study (or of a night) against another: study, preset, night, plan hash, or another folder.

    Cells of equal arm and setting: paired by replicate where the stored hashes agree, else Welch's t; Holm over cells.
    """
    store, other_store = Store(root), Store(other_root or root)
    plan = _newest_plan(store, study, preset, night)
    other_plan = _other_plan(other_store, plan, other)
    elsewhere = other_store.root != store.root
    if other_plan["plan_hash"] == plan["plan_hash"] and not elsewhere:
        raise LoadError("Both are the same plan: give --against another one, or --against-storage.")
    rule = statistics.check_selection(selection or plan["record"].selection)
    (before, left_out_before), (now, left_out) = (
        _side(where, side, rule) for where, side in ((other_store, other_plan), (store, plan))
    )
    cells, few = _compared_cells(before, now, rule)
    moved = [(row["arm"], row["setting"]) for row in statistics.records(cells[cells["moved"] != ""])]
    pairs = {cell: (before.of(cell), now.of(cell)) for cell in moved}
    crashed, known = new_and_known_crashes(now, [before], 1)
    return Difference(
        title=f"{_plan_name(plan)} against {_plan_name(other_plan)}" + f" of {other_store.root}" * elsewhere,
        study=study,
        preset=plan["preset"],
        night=None,
        selection=rule,
        cells=cells,
        few=dict.fromkeys(few, f"it takes {FEWEST_REPLICATES} replicates"),
        changes=changes_of_cells(other_store, other_plan["study"], store, study, pairs),
        crashed=crashed,
        told=[
            *left_out_note(left_out_before + left_out),
            *missing_notes(now),
            *missing_notes(before, " of the other"),
            *(f"Crashing in both: {cell_name(cell)} ({text})." for cell, text in known),
            *_crashed_in_the_other(before),
            *_in_one_only(before, now),
        ],
        finished=now.finished,
        report=f"--preset {shlex.quote(plan['preset'])}" + (f" --night {plan['night']}" if plan["night"] else ""),
        storage=storage_flag(store.root),
    )


def _newest_plan(store: Store, study: str, preset: str | None, night: str | None) -> dict[str, Any]:
    """The plan of a study that was submitted last, of a preset and a night if given.  Raises LoadError."""
    plans = plans_with_records(store, study)
    plans = plans[((plans["preset"] == preset) | (preset is None)) & ((plans["night"] == night) | (night is None))]
    if plans.empty:
        wanted = f"preset '{preset}'" * bool(preset) + " and " * bool(preset and night) + f"night {night}" * bool(night)
        raise LoadError(f"No plan of study '{study}' has {wanted} in {store.root}.")
    return statistics.records(plans)[-1]


def _side(store: Store, plan: Mapping[str, Any], rule: str) -> tuple[Night, int]:
    """A plan with its results, and how many were left out because they are on other data."""
    rows, left_out = scored_rows(store, plan["study"], rule, [plan])
    name = f"{plan['study']} {plan['preset']} {plan['plan_hash']}"
    return night_of_plan(name, plan["record"], rows), left_out


def _compared_cells(before: Night, now: Night, rule: str) -> tuple[pd.DataFrame, list[Cell]]:
    """A row for each cell that both have with enough replicates, and the cells that have too few."""
    shared = [cell for cell in now.cells if cell in set(before.cells)]
    compared = {
        cell: statistics.compare(finished_trials(now.of(cell)), finished_trials(before.of(cell)), rule)
        for cell in shared
    }
    judged = [cell for cell in shared if min(compared[cell].n, compared[cell].n_against) >= FEWEST_REPLICATES]
    means = {cell: values.mean() for cell, values in now.values().items()}
    rows = []
    for cell, p in zip(judged, holm([compared[cell].p for cell in judged]), strict=True):
        comparison = compared[cell]
        moved = ("up" if comparison.difference > 0 else "down") if p <= ALARM_RATE else ""
        expected = means[cell] - comparison.difference
        about = {"arm": cell[0], "setting": cell[1], "mean": means[cell], "expected": expected}
        rows.append({**about, **comparison._asdict(), "p_holm": p, "moved": moved})
    columns = ["arm", "setting", "mean", "expected", *statistics.Comparison._fields, "p_holm", "moved"]
    return pd.DataFrame(rows, columns=columns), [cell for cell in shared if cell not in judged]


def _crashed_in_the_other(before: Night) -> Iterator[str]:
    crashed, _ = new_and_known_crashes(before, [], 1)
    yield from (f"Crashed in the other: {cell_name(cell)} ({text})." for cell, text in crashed)


def _in_one_only(before: Night, now: Night) -> Iterator[str]:
    """Name the cells that only one of the two has."""
    if only := set(now.cells) - set(before.cells):
        yield f"Only here: {cell_names(sorted(only))}."
    if only := set(before.cells) - set(now.cells):
        yield f"Only there: {cell_names(sorted(only))}."


def _plan_name(plan: Mapping[str, Any]) -> str:
    night = f", night {plan['night']}" if plan["night"] else ""
    return f"{plan['study']}, preset {plan['preset']}{night} (plan {plan['plan_hash']})"


def _other_plan(store: Store, plan: Mapping[str, Any], other: str | None) -> dict[str, Any]:
    """The newest plan that is meant by a name, or by none.  Raises LoadError."""
    plans = with_records(store.plans())
    for chosen in _candidates(plans, plan, other):
        if chosen.any():
            return statistics.records(plans[chosen])[-1]
    there = ", ".join(sorted({f"{row['study']} {row['preset']}" for row in statistics.records(plans)})) or "none"
    wanted = other or plan["study"]
    raise LoadError(f"There is no study, preset, night or plan '{wanted}' in {store.root}: there are {there}.")


def _candidates(plans: pd.DataFrame, plan: Mapping[str, Any], other: str | None) -> list[pd.Series]:
    """Which plans a name may mean, in the order in which meanings are tried: masks of rows."""
    same_study = plans["study"] == plan["study"]
    same = same_study & (plans["preset"] == plan["preset"])
    if other is None:
        same_night = plans["night"].isna() if plan["night"] is None else plans["night"] == plan["night"]
        return [same & same_night, same]
    of_study = plans["study"] == other
    return [
        plans["plan_hash"].str.startswith(other) if len(other) >= 6 else pd.Series(False, plans.index),
        same & (plans["night"] == other),
        same_study & (plans["preset"] == other),
        of_study & (plans["preset"] == plan["preset"]),
        of_study,
    ]

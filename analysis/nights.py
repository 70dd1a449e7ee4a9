"""Tonight against the nights before: which cells (an arm in a setting) moved, and what changed beside them.

A cell's mean of tonight is compared with what its last k quiet nights predict, and the mean of tonight and the night
before with what the nights before those predict: a step too small for one night shows in two.  The spread of a
replicate is estimated from all replicates of these nights within their nights, made wider by how much more the means of
nights scatter than that explains, over all cells together (a machine, a library), and in a cell itself.  A replicate
counts at most `OUTLYING` standard deviations from its night's median, so that no single one makes a step by itself.
That takes `REPLICATES` of them: a night with fewer of a cell is neither judged nor a reference for it.  p is corrected
for the two questions (Bonferroni) and over all cells of the night (Holm): of nights on which nothing moved at most 5 %
alarm, if spreads are not far from normal; tests/test_nights.py has figures for this and for others.

Nights on which a cell moved are no reference for later ones, so a step does not hide itself.  After `FEWEST` nights in
a row on which it moved the same way they are its new level, and the alarm ends.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import fdtrc, stdtr, stdtrit

from analysis import evidence, statistics
from analysis.load import LoadError, first_replicate
from lnl.results import Place, Store, canonical, is_outcome, latest

ALPHA = 0.05  # of a quiet night, over its cells
NIGHTS = 14  # that are the reference
FEWEST = 4  # quiet nights that make a reference, and nights in a row that make a new level
REPLICATES = 3  # of a cell on a night, for its median to outvote one of them
OUTLYING = 3.0  # standard deviations from the night's median that a replicate counts at most
FINEST = 0.001  # the least standard deviation of a replicate: what a test set of 10,000 images resolves at 99 %
RESTLESS = 0.05  # p of the F test by which a cell's own nights scatter more than its replicates explain
SPANS = 2  # questions: tonight alone, and with the night before
MEMORY = 60  # nights from which it is known which were quiet
SLOWER = 1.5  # times the usual seconds that are worth a note
OWN_FAULT = ("code_error", "oom", "timeout", "data_error")  # a crash; a preempted trial is nobody's fault

Cell = tuple[str, str]  # arm, setting (canonical JSON)
Values = NDArray[np.float64]


# ------------------------------------------------------------------------------------------------------------- the rule


class Judged(NamedTuple):
    """A cell on one night."""

    mean: float  # of tonight, outlying replicates counted as far as they count
    n: int
    expected: float  # NaN where replicates or nights before are too few
    low: float  # outside of which tonight alone is an alarm; all cells' hold together on 95 % of quiet nights
    high: float
    p_holm: float
    moved: str  # up | down | "" (quiet)
    span: int  # 2: it shows in tonight and the night before together
    since: str  # first night of the move
    reference: tuple[str, ...]  # nights
    deviation: float  # of one replicate


class _Surprise(NamedTuple):
    """Fresh nights beside what their reference predicts."""

    mean: float
    expected: float
    error: float
    freedom: float
    deviation: float

    @property
    def p(self) -> float:
        return float(2 * stdtr(self.freedom, -abs(self.mean - self.expected) / self.error))


def replay(nights: Mapping[str, Mapping[Cell, Values]], k: int = NIGHTS) -> dict[str, dict[Cell, Judged]]:
    """Every night judged by those before it, in the order given.  `nights`: accuracies of each cell's replicates."""
    quiet: dict[Cell, list[tuple[str, _Sample]]] = {}
    moving: dict[Cell, list[tuple[str, _Sample]]] = {}
    way: dict[Cell, str] = {}
    verdicts: dict[str, dict[Cell, Judged]] = {}
    for night, values in nights.items():
        samples = {cell: _Sample.of(here) for cell, here in values.items()}
        asked: list[dict[Cell, tuple[list[_Sample], list[_Sample]]]] = [{}, {}]
        for cell, here in samples.items():
            if len(here.values) < REPLICATES:
                continue
            before = quiet.get(cell, [])
            asked[0][cell] = [one for _, one in before[-k:]], [here]
            if before and not moving.get(cell):  # else the night before is known to have moved
                asked[1][cell] = [one for _, one in before[:-1][-k:]], [before[-1][1], here]
        found = [_surprises({cell: pair for cell, pair in one.items() if len(pair[0]) >= FEWEST}) for one in asked]
        cells = list(found[0])
        p = [SPANS * min(one[cell].p for one in found if cell in one) for cell in cells]
        adjusted = dict(zip(cells, evidence.holm(np.minimum(p, 1)) if cells else [], strict=True))
        verdicts[night] = {}
        for cell, here in samples.items():
            before, run = quiet.setdefault(cell, []), moving.setdefault(cell, [])
            if cell not in found[0]:
                names = tuple(name for name, _ in before)
                few = Judged(here.mean, len(here.values), np.nan, np.nan, np.nan, np.nan, "", 1, "", names, np.nan)
                verdicts[night][cell] = few
                if len(here.values) >= REPLICATES:
                    before.append((night, here))
                continue
            alone, both = found[0][cell], found[1].get(cell)
            share = ALPHA / SPANS / len(cells)
            span = 2 if both is not None and both.p < alone.p and alone.p > share else 1
            surprise = both if both is not None and span == 2 else alone
            moved = ("up" if surprise.mean > surprise.expected else "down") if adjusted[cell] <= ALPHA else ""
            reference = before[:-1][-k:] if moved and span == 2 else before[-k:]
            if not moved:
                before.append((night, here))
                run.clear()
            else:
                if moved != way.get(cell):
                    run.clear()
                if span == 2:
                    run.append(before.pop())
                run.append((night, here))
                way[cell] = moved
            half = stdtrit(alone.freedom, 1 - share / 2) * alone.error
            verdicts[night][cell] = Judged(
                mean=alone.mean,
                n=len(here.values),
                expected=alone.expected,
                low=alone.expected - half,
                high=alone.expected + half,
                p_holm=adjusted[cell],
                moved=moved,
                span=span if moved else 1,
                since=run[0][0] if moved else "",
                reference=tuple(name for name, _ in reference),
                deviation=alone.deviation,
            )
            if len(run) >= FEWEST:
                quiet[cell], moving[cell] = list(run), []
    return verdicts


@dataclass(frozen=True)
class _Sample:
    """Replicates of a cell on one night."""

    values: Values
    mean: float
    squares: float  # deviations from the mean, squared and summed
    farthest: float  # from the median

    @classmethod
    def of(cls, values: Values) -> _Sample:
        mean = float(values.mean())
        far = float(np.abs(values - np.median(values)).max())
        return cls(values, mean, float(((values - mean) ** 2).sum()), far)

    def clamped(self, most: float) -> _Sample:
        """With no replicate farther from the median than this."""
        if self.farthest <= most:
            return self
        centre = np.median(self.values)
        return _Sample.of(np.clip(self.values, centre - most, centre + most))


def _surprises(asked: Mapping[Cell, tuple[list[_Sample], list[_Sample]]]) -> dict[Cell, _Surprise]:
    """How far the fresh nights of each cell lie from its reference nights: (reference, fresh) by cell."""
    spread = _spreads({cell: reference for cell, (reference, _) in asked.items()})
    clamped = {
        cell: tuple([one.clamped(OUTLYING * spread[cell][0]) for one in nights] for nights in pair)
        for cell, pair in asked.items()
    }
    spread = _spreads({cell: reference for cell, (reference, _) in clamped.items()})
    found = {}
    for cell, (old, new) in clamped.items():
        (expected, before), (mean, fresh) = _mean(old), _mean(new)
        deviation, freedom = spread[cell]
        error = deviation * np.sqrt(1 / fresh + 1 / before)
        found[cell] = _Surprise(mean, expected, float(error), freedom, deviation)
    return found


def _mean(nights: Sequence[_Sample]) -> tuple[float, int]:
    """Over all replicates, and how many these are."""
    n = sum(len(one.values) for one in nights)
    return sum(len(one.values) * one.mean for one in nights) / n, n


def _spreads(references: Mapping[Cell, Sequence[_Sample]]) -> dict[Cell, tuple[float, int]]:
    """Standard deviation of a replicate, such that means of nights scatter as they do, and its degrees of freedom.

    These are the replicates' own, but where a cell's nights scatter more than chance lets them.
    """
    within, between, freedom, ratios = {}, {}, {}, []
    for cell, nights in references.items():
        mean, n = _mean(nights)
        freedom[cell] = n - len(nights), len(nights) - 1
        within[cell] = sum(one.squares for one in nights) / max(freedom[cell][0], 1)
        between[cell] = sum(len(one.values) * (one.mean - mean) ** 2 for one in nights) / freedom[cell][1]
        if freedom[cell][0] > 2 and within[cell] > FINEST**2:
            ratios.append(between[cell] / within[cell] * (1 - 2 / freedom[cell][0]))  # 1 is expected of quiet nights
    shared = max(1.0, sum(ratios) / len(ratios)) if ratios else 1.0
    found = {}
    for cell, (inside, outside) in freedom.items():
        usual = max(shared * within[cell], FINEST**2)
        restless = not inside or fdtrc(outside, inside, between[cell] / usual) < RESTLESS
        found[cell] = max(usual, between[cell]) ** 0.5, outside if restless else max(inside, outside)
    return found


# ------------------------------------------------------------------------------------------------------------- results

_FACTS = {  # of a trial's row: what may have changed
    "code_hash": "code",
    "git_commit": "commit",
    "data_hash": "data",
    "version_python": "Python",
    "version_torch": "torch",
    "version_ray": "Ray",
    "device": "device",
    "host": "host",
}
_COLUMNS = (
    *("trial", "attempt", "replicate", "status", "failure_class", "failure_message", "transition", "seconds"),
    *("noise_hash", "split_hash", "git_dirty", *_FACTS, *(f"accuracy_{rule}" for rule in statistics.SELECTION)),
)


@dataclass(frozen=True)
class Night:
    """A plan and what became of it: its trials with `arm`, `setting`, `score` (NaN: none) and `state`."""

    name: str  # of the night; of another plan its study, preset or hash
    plan: dict[str, Any]
    trials: pd.DataFrame
    prerequisites: pd.DataFrame  # what these start from, where it is none of them

    @property
    def finished(self) -> bool:
        """Whether anything is."""
        return bool((self.trials["state"] == "finished").any())

    def values(self) -> dict[Cell, Values]:
        """Accuracies of the cells that have some."""
        scores = self.trials["score"].to_numpy(float)
        known = {cell: scores[places] for cell, places in self._places.items()}
        known = {cell: values[~np.isnan(values)] for cell, values in known.items()}
        return {cell: values for cell, values in known.items() if len(values)}

    @property
    def cells(self) -> list[Cell]:
        """In the order of the plan."""
        return list(self._places)

    def of(self, cell: Cell) -> pd.DataFrame:
        """Its trials; none where the plan does not have it."""
        return self.trials.iloc[self._places.get(cell, [])]

    def planned(self, cell: Cell) -> int:
        """How many trials it was to have."""
        return len(self._places.get(cell, []))

    def counts(self, chosen: pd.Series) -> Counter[Cell]:
        """How many of these trials each cell has."""
        return Counter(_listed(self.trials[chosen]))

    @cached_property
    def _places(self) -> dict[Cell, list[int]]:
        places: dict[Cell, list[int]] = {}
        for place, cell in enumerate(_listed(self.trials)):
            places.setdefault(cell, []).append(place)
        return places


def _listed(trials: pd.DataFrame) -> list[Cell]:
    return list(zip(trials["arm"], trials["setting"], strict=True))


def _joined(name: str, plan: dict[str, Any], rows: pd.DataFrame) -> Night:
    """`rows`: the newest of each trial, with their scores."""
    trials = _with_states(pd.DataFrame(plan["trials"], columns=["trial", "arm", "setting", "replicate"]), rows)
    also = [{**one, "setting": {}} for one in plan.get("prerequisites", [])]
    before = pd.DataFrame(also, columns=["trial", "arm", "setting"])
    return Night(name, plan, trials, _with_states(before[~before["trial"].isin(trials["trial"])], rows))


def _with_states(planned: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    planned = planned.assign(setting=planned["setting"].map(canonical))
    trials = planned.merge(rows.drop(columns="replicate"), on="trial", how="left")
    ended = trials["failure_class"].where(trials["status"] != "ok", "finished").fillna(trials["status"])
    state = ended.where(trials["status"].notna(), "not run").where(~is_outcome(trials), "finished")
    return trials.assign(state=state, score=trials["score"].where(state == "finished"))


def _plans(store: Store, study: str) -> pd.DataFrame:
    """Submitted plans of a study, oldest first, with their records and nights.  Raises LoadError where none is."""
    plans = store.plans(study)
    if plans.empty:
        raise LoadError(f"No plan of study '{study}' in {store.root}: give its name, and --storage.")
    records = [json.loads(text) for text in plans["plan"]]
    return plans.assign(record=records, night=[record.get("night") for record in records])


def _rows(store: Store, study: str, rule: str, filters: Sequence[tuple[str, str, Any]] = ()) -> pd.DataFrame:
    rows = latest(store.read("trials", study, list(_COLUMNS), list(filters) or None)[0])
    return rows.assign(score=statistics.accuracy(rows, rule))


def read(
    store: Store, study: str, preset: str | None = None, night: str | None = None, selection: str | None = None
) -> tuple[list[Night], str]:
    """The stored nights of one preset up to this one (the latest without), oldest first, and the selection rule.

    Raises LoadError where there is no such night.
    """
    plans = _plans(store, study)
    plans = plans[plans["night"].notna() & ((plans["preset"] == preset) | (preset is None))]
    if plans.empty:
        of = f" with preset '{preset}'" if preset else ""
        raise LoadError(f"Study '{study}'{of} has no night yet: run it with --night today.")
    chosen = plans if night is None else plans[plans["night"] == night]
    if chosen.empty:
        there = sorted(set(plans["night"]))
        shown = ", ".join(there[-3:]) + f" and {len(there) - 3} before" * (len(there) > 3)
        raise LoadError(f"Study '{study}' has no night {night}: there are {shown}.")
    last = chosen.sort_values(["night", "submitted_at"], kind="stable").iloc[-1]
    mine = plans[(plans["preset"] == last["preset"]) & (plans["night"] <= last["night"])]
    mine = mine.groupby("night").tail(1).sort_values("night").tail(MEMORY)
    rule = statistics.check_selection(selection or last["record"].get("selection", "last"))
    rows = _rows(store, study, rule, [("replicate", ">=", first_replicate(mine["record"].iloc[0]))])
    return [_joined(one["night"], one["record"], rows) for one in statistics.records(mine)], rule


# ------------------------------------------------------------------------------------------------------- the difference


@dataclass(frozen=True)
class Difference:
    """What moved, and what else is to be told.  `cells`: arm, setting, the fields of `Judged` or of a comparison."""

    title: str
    study: str
    preset: str
    night: str | None
    selection: str
    cells: pd.DataFrame  # judged ones, in the order of the plan
    few: dict[Cell, str]  # not judged yet, and what that takes
    changes: dict[Cell, list[str]]  # of moved cells: what changed since the last quiet night
    crashed: list[tuple[Cell, str]]  # that did not crash before
    told: list[str]  # sentences: missing, new and vanished cells, old crashes, divergences, slower ones
    finished: bool  # anything at all
    twins: list[dict[str, Any]] = field(default_factory=list)  # one configuration under two names
    nights: tuple[Night, ...] = ()
    verdicts: Mapping[str, Mapping[Cell, Judged]] = field(default_factory=dict)
    report: str = ""  # flags of the report that shows more
    storage: Place = Path("results")  # where the results are: a comparison is read elsewhere, as a message or an issue

    @property
    def moved(self) -> pd.DataFrame:
        return self.cells[self.cells["moved"] != ""]

    @property
    def quiet(self) -> bool:
        return self.finished and self.moved.empty and not self.crashed

    @property
    def deeper(self) -> list[str]:
        """Commands."""
        storage = f"--storage {shlex.quote(str(self.storage))}"
        logs = [f"lnl logs {self.study} --preset {shlex.quote(self.preset)} {storage}"] if self.crashed else []
        return [f"lnl report {self.study} {self.report} {storage}", *logs]


def tonight(
    root: Place,
    study: str,
    preset: str | None = None,
    night: str | None = None,
    k: int = NIGHTS,
    selection: str | None = None,
) -> Difference:
    """A night, the latest where none is given, against the last k quiet ones before it."""
    if k < FEWEST:
        raise ValueError(f"{k} nights are too few for a reference: give --nights {FEWEST} or more.")
    store = Store(root)
    nights, rule = read(store, study, preset, night, selection)
    last, before = nights[-1], nights[:-1]
    verdicts = replay({one.name: one.values() for one in nights}, k)
    here = verdicts[last.name]
    rows = [
        {"arm": arm, "setting": setting, **here[arm, setting]._asdict()}
        for arm, setting in last.cells
        if (arm, setting) in here and not np.isnan(here[arm, setting].p_holm)
    ]
    cells = pd.DataFrame(rows, columns=["arm", "setting", *Judged._fields])
    moved = [cell for cell in last.cells if cell in here and here[cell].moved]
    by_name = {one.name: one for one in nights}
    since = {cell: by_name[here[cell].reference[-1]] for cell in moved}
    pairs = {cell: (since[cell].of(cell), last.of(cell)) for cell in moved}
    crashed, known = _crashes(last, before, FEWEST)
    still = [f"Still crashing, as on the {FEWEST} nights before: {words(cell)} ({text})." for cell, text in known]
    told = [*_missing(last), *still, *_coming_and_going(nights), *_diverged(nights), *_slower(nights, here)]
    ends = list(dict.fromkeys([one.name for one in before[-k:]][:: max(len(before[-k:]) - 1, 1)]))
    span = f" ({' to '.join(ends)})" if ends else ""
    of = f"{study}, preset {last.plan['preset']}, night {last.name}"
    return Difference(
        title=f"{of}, against {_count(len(before[-k:]), 'night')} before it{span}",
        study=study,
        preset=last.plan["preset"],
        night=last.name,
        selection=rule,
        cells=cells,
        few={
            cell: f"it takes {REPLICATES} replicates"
            if here[cell].n < REPLICATES
            else f"{FEWEST} quiet nights make a reference"
            for cell in last.cells
            if cell in here and np.isnan(here[cell].p_holm)
        },
        changes={
            cell: [f"since {since[cell].name}: {text}" for text in found]
            for cell, found in _changes(store, study, store, study, pairs).items()
        },
        crashed=crashed,
        told=told,
        finished=last.finished,
        twins=_twins(nights),
        nights=tuple(nights),
        verdicts=verdicts,
        report=f"--preset {shlex.quote(last.plan['preset'])} --night {last.name}",
        storage=store.root,
    )


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
    store, place = Store(root), Store(other_root or root)
    plans = _plans(store, study)
    plans = plans[((plans["preset"] == preset) | (preset is None)) & ((plans["night"] == night) | (night is None))]
    if plans.empty:
        wanted = f"preset '{preset}'" * bool(preset) + " and " * bool(preset and night) + f"night {night}" * bool(night)
        raise LoadError(f"No plan of study '{study}' has {wanted} in {store.root}.")
    mine = statistics.records(plans)[-1]
    theirs = _other(place, mine, other)
    if theirs["plan_hash"] == mine["plan_hash"] and place.root == store.root:
        raise LoadError("Both are the same plan: give --against another one, or --against-storage.")
    rule = statistics.check_selection(selection or mine["record"].get("selection", "last"))
    sides = []
    for one, where in ((theirs, place), (mine, store)):
        rows = _rows(where, one["study"], rule)
        sides.append(_joined(f"{one['study']} {one['preset']} {one['plan_hash']}", one["record"], rows))
    before, now = sides
    shared = [cell for cell in now.cells if cell in set(before.cells)]
    compared = {cell: statistics.compare(_finished(now.of(cell)), _finished(before.of(cell)), rule) for cell in shared}
    judged = [cell for cell in shared if min(compared[cell].n, compared[cell].n_against) >= evidence.FEWEST]
    adjusted = evidence.holm([compared[cell].p for cell in judged])
    means = {cell: values.mean() for cell, values in now.values().items()}
    rows_of = []
    for cell, p in zip(judged, adjusted, strict=True):
        found = compared[cell]
        moved = ("up" if found.difference > 0 else "down") if p <= ALPHA else ""
        about = {"arm": cell[0], "setting": cell[1], "mean": means[cell], "expected": means[cell] - found.difference}
        rows_of.append({**about, **found._asdict(), "p_holm": p, "moved": moved})
    columns = ["arm", "setting", "mean", "expected", *statistics.Comparison._fields, "p_holm", "moved"]
    cells = pd.DataFrame(rows_of, columns=columns)
    moved_cells = [(row["arm"], row["setting"]) for row in rows_of if row["moved"]]
    pairs = {cell: (before.of(cell), now.of(cell)) for cell in moved_cells}
    crashed, both = _crashes(now, [before], 1)
    told = [
        *_missing(now),
        *_missing(before, " of the other"),
        *(f"Crashing in both: {words(cell)} ({text})." for cell, text in both),
        *(f"Crashed in the other: {words(cell)} ({text})." for cell, text in _crashes(before, [], 1)[0]),
    ]
    for names, text in (
        (set(now.cells) - set(before.cells), "Only here"),
        (set(before.cells) - set(now.cells), "Only there"),
    ):
        if names:
            told.append(f"{text}: {_named(sorted(names))}.")
    return Difference(
        title=f"{_place_of(mine)} against {_place_of(theirs)}"
        + (f" of {place.root}" if place.root != store.root else ""),
        study=study,
        preset=mine["preset"],
        night=None,
        selection=rule,
        cells=cells,
        few={cell: f"it takes {evidence.FEWEST} replicates" for cell in shared if cell not in judged},
        changes=_changes(place, theirs["study"], store, study, pairs),
        crashed=crashed,
        told=told,
        finished=now.finished,
        storage=store.root,
        report=f"--preset {shlex.quote(mine['preset'])}" + (f" --night {mine['night']}" if mine["night"] else ""),
    )


def _place_of(plan: Mapping[str, Any]) -> str:
    night = f", night {plan['night']}" if plan["night"] else ""
    return f"{plan['study']}, preset {plan['preset']}{night} (plan {plan['plan_hash']})"


def _other(store: Store, mine: Mapping[str, Any], other: str | None) -> dict[str, Any]:
    """The newest plan that is meant.  Raises LoadError."""
    plans = store.plans()
    records = [json.loads(text) for text in plans["plan"]]
    plans = plans.assign(record=records, night=[record.get("night") for record in records])
    same = (plans["study"] == mine["study"]) & (plans["preset"] == mine["preset"])
    if other is None:
        tonight = plans["night"].isna() if mine["night"] is None else plans["night"] == mine["night"]
        candidates = [same & tonight, same]
    else:
        of_study = plans["study"] == other
        candidates = [
            plans["plan_hash"].str.startswith(other) if len(other) >= 6 else pd.Series(False, plans.index),
            same & (plans["night"] == other),
            (plans["study"] == mine["study"]) & (plans["preset"] == other),
            of_study & (plans["preset"] == mine["preset"]),
            of_study,
        ]
    for chosen in candidates:
        if chosen.any():
            return statistics.records(plans[chosen])[-1]
    there = ", ".join(sorted({f"{row['study']} {row['preset']}" for row in statistics.records(plans)})) or "none"
    raise LoadError(
        f"There is no study, preset, night or plan '{other or mine['study']}' in {store.root}: there are {there}."
    )


def _finished(trials: pd.DataFrame) -> pd.DataFrame:
    return trials[trials["state"] == "finished"]


def _crashes(now: Night, before: Sequence[Night], fewest: int) -> tuple[list[tuple[Cell, str]], list[tuple[Cell, str]]]:
    """Cells with a crash, prerequisites among them: new ones and known ones, and what happened.

    Known are those that crashed on the last `fewest` nights that had them, in no other way than on one of these, and in
    no larger part of their trials.
    """
    fresh: list[tuple[Cell, str]] = []
    known: list[tuple[Cell, str]] = []
    earlier = [_broken(night) for night in before]
    for cell, crash in _broken(now).items():
        if not crash.ways:
            continue
        there = [one[cell] for one in earlier if cell in one][-fewest:]
        often = len(there) == fewest and all(one.ways for one in there)
        new = [way for way in crash.ways if way not in {way for one in there for way in one.ways}]
        more = len(crash.ways) / crash.planned > max((len(one.ways) / one.planned for one in there), default=0)
        shown = crash.ways.index(new[0]) if new else 0
        text = f"{len(crash.ways)} of {crash.planned}, {crash.ways[shown][0]}: {crash.lines[shown]}"
        (known if often and not new and not more else fresh).append((cell, text))
    return fresh, known


class _Crash(NamedTuple):
    """What went wrong in a cell."""

    planned: int
    ways: list[tuple[str, str]]  # failure class and exception of each trial that crashed
    lines: list[str]


def _broken(night: Night) -> dict[Cell, _Crash]:
    """Every cell of a night and every prerequisite, if only with how many trials there were to be."""
    found: dict[Cell, _Crash] = {}
    for trials in (night.trials, night.prerequisites):
        about = (trials[column] for column in ("state", "failure_message"))
        for cell, state, message in zip(_listed(trials), *about, strict=True):
            crash = found.get(cell, _Crash(0, [], []))
            found[cell] = crash = crash._replace(planned=crash.planned + 1)
            if state in OWN_FAULT:
                line = str(message).strip().split("\n")[0]
                name = re.match(r"[\w.]+(?=:)", line)
                crash.ways.append((state, name[0] if name else ""))
                crash.lines.append(line)
    return found


def _missing(night: Night, of: str = "") -> Iterator[str]:
    """Cells without all their results, and why: nothing is dropped in silence."""
    open_states = night.trials[~night.trials["state"].isin(("finished", *OWN_FAULT))]
    reasons: dict[Cell, set[str]] = {}
    for cell, state in zip(_listed(open_states), open_states["state"], strict=True):
        reasons.setdefault(cell, set()).add(state)
    counts = Counter(_listed(open_states))
    parts: dict[str, list[str]] = {}
    for cell, states in reasons.items():
        part = "" if counts[cell] == night.planned(cell) else f" ({counts[cell]} of {night.planned(cell)})"
        parts.setdefault(" and ".join(sorted(states)), []).append(words(cell) + part)
    for why, cells in parts.items():
        yield f"Missing{of}, {why}: {', '.join(cells)}."
    none = night.trials[(night.trials["state"] == "finished") & night.trials["score"].isna()]
    if len(none):
        yield f"Without an accuracy under the selection rule{of}: {_named(dict.fromkeys(_listed(none)))}."


def _coming_and_going(nights: Sequence[Night]) -> Iterator[str]:
    earlier = {cell for night in nights[:-1] for cell in night.cells}
    if new := [cell for cell in nights[-1].cells if cell not in earlier and len(nights) > 1]:
        yield f"New: {_named(new)}."
    if len(nights) > 1 and (gone := [cell for cell in nights[-2].cells if cell not in set(nights[-1].cells)]):
        yield f"Vanished since {nights[-2].name}: {_named(gone)}."


def _diverged(nights: Sequence[Night]) -> Iterator[str]:
    """Cells that diverged tonight: a diverged trial counts as chance, and as one outlier."""
    parts = []
    counts = [night.counts(statistics.diverged(night.trials)) for night in nights]
    for cell in nights[-1].cells:
        if counts[-1][cell]:
            before = sum(one[cell] for one in counts[:-1]), sum(night.planned(cell) for night in nights[:-1])
            parts.append(
                f"{words(cell)} ({counts[-1][cell]} of {nights[-1].planned(cell)}; before, {before[0]} of {before[1]})"
            )
    if parts:
        yield f"Diverged, and counted as chance: {', '.join(parts)}."


def _slower(nights: Sequence[Night], judged: Mapping[Cell, Judged]) -> Iterator[str]:
    """Cells that took much longer than usual on the same device."""
    by_name = {night.name: night for night in nights}
    parts = []
    for cell, one in judged.items():
        now = _finished(nights[-1].of(cell))
        before = [_finished(by_name[name].of(cell)) for name in one.reference]
        usual = [group["seconds"].mean() for group in before if set(group["device"]) == set(now["device"])]
        if len(usual) >= FEWEST and now["seconds"].mean() > SLOWER * np.median(usual) > 0:
            parts.append(f"{words(cell)} ({np.median(usual):.3g} → {now['seconds'].mean():.3g} s a trial)")
    if parts:
        yield f"Slower: {', '.join(parts)}."


def _twins(nights: Sequence[Night]) -> list[dict[str, Any]]:
    """A/A: arms that are one configuration on other replicates, so unpaired; their difference must hold zero."""
    arms = nights[-1].plan["arms"]
    alike = {arm: canonical({**overrides, "replicate": 0}) for arm, overrides in arms.items()}
    pairs = [(one, other) for one, other in combinations(arms, 2) if alike[one] == alike[other]]
    values = [night.values() for night in nights]
    found = []
    for one, other in pairs:
        for setting in dict.fromkeys(setting for arm, setting in nights[-1].cells if arm == one):
            sides = [[here.get((arm, setting), np.empty(0)) for arm in (one, other)] for here in values]
            compared = [statistics.welch_difference(*pair) for pair in sides if min(map(len, pair)) > 1]
            now = compared[-1] if min(map(len, sides[-1])) > 1 else statistics.Estimate(*[np.asarray(np.nan)] * 6)
            about = {"arm": one, "twin": other, "setting": setting, "n": len(sides[-1][0]), "n_twin": len(sides[-1][1])}
            measured = dict(zip(("difference", "low", "high", "p"), map(float, now[:4]), strict=True))
            alarms = sum(bool(each.p <= ALPHA) for each in compared)
            found.append(
                {**about, **measured, "alarm": bool(now.p <= ALPHA), "alarms": alarms, "nights": len(compared)}
            )
    return found


# ------------------------------------------------------------------------------------------------------- what changed


def _changes(
    old: Store, old_study: str, new: Store, new_study: str, pairs: Mapping[Cell, tuple[pd.DataFrame, pd.DataFrame]]
) -> dict[Cell, list[str]]:
    """Of moved cells: code, commit, configuration and environment, as they were and as they are."""
    configs = []
    for store, study, place in ((old, old_study, 0), (new, new_study, 1)):
        wanted = [trial for pair in pairs.values() for trial in _finished(pair[place])["trial"].head(1)]
        rows, _ = store.read("trials", study, ["trial", "config"], [("trial", "in", wanted or [""])])
        configs.append(dict(zip(rows["trial"], rows["config"], strict=True)))
    return {cell: _changed(pair, configs) for cell, pair in pairs.items()}


def _changed(pair: tuple[pd.DataFrame, pd.DataFrame], configs: Sequence[Mapping[str, str]]) -> list[str]:
    before, now = (_finished(trials) for trials in pair)
    found = []
    for column, word in _FACTS.items():
        was, is_ = (sorted(set(trials[column].dropna())) for trials in (before, now))
        if was != is_:
            short = 7 if column == "git_commit" else 12
            sides = [
                ", ".join(value[:short] if column.endswith(("hash", "commit")) else value for value in side[:3])
                or "none"
                for side in (was, is_)
            ]
            found.append(f"{word} {sides[0]} → {sides[1]}" + (_commits(was, is_) if column == "git_commit" else ""))
    if now["git_dirty"].eq(True).any():
        found.append("uncommitted changes in the code's folder")
    first = [
        json.loads(config.get(trials["trial"].iloc[0]) or "{}") if len(trials) else {}
        for config, trials in zip(configs, (before, now), strict=True)
    ]
    flat = [dict(_flat(one)) for one in first]
    for key in dict.fromkeys([*flat[0], *flat[1]]):
        values = [one.get(key, "(none)") for one in flat]
        if values[0] != values[1] and key != "replicate":
            found.append(f"{key} {values[0]} → {values[1]}")
    return found or ["nothing that is recorded"]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, one in value.items():
        if isinstance(one, Mapping):
            yield from _flat(one, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", one


def _commits(was: Sequence[str], is_: Sequence[str]) -> str:
    """How many commits lie between, where this code's repository knows."""
    if len(was) != 1 or len(is_) != 1 or not all(re.fullmatch("[0-9a-f]{7,64}", one) for one in (*was, *is_)):
        return ""
    command = ["git", "rev-list", "--count", f"{was[0]}..{is_[0]}"]
    try:
        asked = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({_count(int(asked.stdout), 'commit')})" if asked.returncode == 0 else ""


# ------------------------------------------------------------------------------------------------------------- in words


def _count(n: int, word: str) -> str:
    return f"{n} {word}{'s' * (n != 1)}"


def words(cell: Cell) -> str:
    """An arm and where it is."""
    setting = json.loads(cell[1])
    return " ".join([cell[0], *(f"{key}={value}" for key, value in setting.items())])


def _named(cells: Any) -> str:
    return ", ".join(words(cell) for cell in cells)


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
    judged = f"{_count(len(found.cells), 'cell')} judged"
    return f"{', '.join(words) if words else 'Quiet'}; {judged}, {statistics.SELECTION[found.selection]}."


def _points(value: float) -> str:
    return f"{100 * value:+.2f}"


def _step(row: Mapping[str, Any], mark: str = "") -> str:
    step = _points(row["mean"] - row["expected"])
    return f"{mark}{step}{mark} points ({100 * row['expected']:.2f} → {100 * row['mean']:.2f})"


def _sure(row: Mapping[str, Any]) -> str:
    return "p < .001" if row["p_holm"] < 0.001 else f"p = {row['p_holm']:.3f}".replace("0.", ".")


def _where(found: Difference, row: Mapping[str, Any]) -> str:
    """Beside a moved cell: from what, how sure."""
    if found.night is None:
        way = "paired" if row["paired"] else "unpaired"
        n = f"n = {row['n']} and {row['n_against']}"
        return f"[{_points(row['low'])}, {_points(row['high'])}], {n}, {way}, {_sure(row)}"
    both = " with the night before" * (row["span"] == 2)
    since = f", since {row['since']}" * (row["since"] != found.night)
    return f"{100 * row['low']:.2f} to {100 * row['high']:.2f} expected, n = {row['n']}{both}, {_sure(row)}{since}"


def _twin(one: Mapping[str, Any]) -> str:
    pair = f"A/A: {one['arm']} − {one['twin']}"
    pair += "".join(f" {key}={value}" for key, value in json.loads(one["setting"]).items())
    if min(one["n"], one["n_twin"]) < 2:
        return f"{pair}: too few replicates tonight."
    if np.isnan(one["p"]):
        return f"{pair}: {_points(one['difference'])} points, without an interval: the replicates of each agree."
    state = "ALARM, zero lies outside" if one["alarm"] else "holds zero"
    return (
        f"{pair}: {_points(one['difference'])} [{_points(one['low'])}, {_points(one['high'])}] points, "
        f"n = {one['n']} and {one['n_twin']}, {state}; alarms on {one['alarms']} of {_count(one['nights'], 'night')}, "
        f"where 5 % are expected."
    )


def lines(found: Difference) -> Iterator[str]:
    """For a terminal."""
    yield found.title
    yield headline(found)
    for row in statistics.records(found.moved):
        cell = row["arm"], row["setting"]
        yield f"{row['moved']:8}{words(cell)}: {_step(row)}; {_where(found, row)}"
        yield from (f"        {text}" for text in found.changes.get(cell, []))
    for cell, text in found.crashed:
        yield f"crashed {words(cell)}: {text}"
    yield from _rest(found)
    yield f"Look deeper: {', '.join(found.deeper)}"


def _rest(found: Difference) -> Iterator[str]:
    reasons = dict.fromkeys(found.few.values())
    for why in reasons if len(found.cells) or found.crashed or len(reasons) > 1 else ():
        yield f"Not judged yet, {why}: {_named(cell for cell, text in found.few.items() if text == why)}."
    yield from found.told
    yield from map(_twin, found.twins)


def markdown(found: Difference) -> str:
    """For a message or an issue."""
    parts = [f"### {found.title}", headline(found)]
    if len(found.moved) or found.crashed:
        table = ["| cell | moved | |", "|--|--|--|"]
        for row in statistics.records(found.moved):
            name = words((row["arm"], row["setting"]))
            table.append(f"| {name} | {_step(row, '**')} | {_where(found, row)} |")
        table += [f"| {words(cell)} | **crashed** | {_cell_text(text)} |" for cell, text in found.crashed]
        parts.append("\n".join(table))
    same: dict[str, list[Cell]] = {}
    for cell, texts in found.changes.items():
        for text in texts:
            same.setdefault(text, []).append(cell)
    if same:
        changed = [
            f"- {_cell_text(text)}" + (f" ({_named(cells)})" if len(cells) < len(found.changes) else "")
            for text, cells in same.items()
        ]
        parts.append("\n".join(["What changed:", "", *changed]))
    parts += [_cell_text(text) for text in _rest(found)]
    parts.append("Look deeper: " + ", ".join(f"`{command}`" for command in found.deeper))
    return "\n\n".join(parts) + "\n"


def _cell_text(text: str) -> str:
    """Nothing that a method printed may end a table or begin a heading."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|").replace("<", "&lt;")


def as_json(found: Difference) -> dict[str, Any]:
    """All of it, JSON-able."""
    cells = [
        {**{name: _plain(value) for name, value in row.items()}, "setting": json.loads(row["setting"])}
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
        "twins": [{name: _plain(value) for name, value in one.items()} for one in found.twins],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value

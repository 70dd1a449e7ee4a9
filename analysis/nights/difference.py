"""Tonight against the nights before: which cells (an arm in a setting) moved, and what changed beside them.

A cell's mean of tonight is compared with what its last k quiet nights predict, and the mean of tonight and the night
before with what the nights before those predict: a step too small for one night shows in two.  The spread of a
replicate is estimated from all replicates of these nights within their nights, made wider by how much more the means of
nights scatter than that explains, over all cells together (a machine, a library), and in a cell itself.  A replicate
counts at most `OUTLYING` standard deviations from its night's median, so that no single one makes a step by itself.
That takes `REPLICATES` of them: a night with fewer of a cell is neither judged nor a reference for it.  p is corrected
for the two questions (Bonferroni) and over all cells of the night (Holm): of nights on which nothing moved at most 5 %
alarm, if spreads are not far from normal; tests/analysis/test_nights.py has figures for this and for others.

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
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis import statistics
from analysis import verdicts as verdicts_module
from analysis.nights.night import (
    _FACTS,
    OWN_FAULT,
    Night,
    _count,
    _finished,
    _joined,
    _listed,
    _named,
    _plans,
    _rows,
    _with_records,
    read,
    words,
)
from analysis.nights.rule import ALPHA, FEWEST, NIGHTS, REPLICATES, Cell, Judged, replay
from analysis.results import LoadError
from lnl.dotted import flatten
from lnl.storage.places import Place, canonical, storage_flag
from lnl.storage.store import Store

SLOWER = 1.5  # times the usual seconds that are worth a note


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
    storage: str = ""  # the flag without which commands would look elsewhere

    @property
    def moved(self) -> pd.DataFrame:
        return self.cells[self.cells["moved"] != ""]

    @property
    def quiet(self) -> bool:
        return self.finished and self.moved.empty and not self.crashed

    @property
    def deeper(self) -> list[str]:
        """Commands."""
        logs = [f"lnl logs {self.study} --preset {shlex.quote(self.preset)}{self.storage}"] if self.crashed else []
        return [f"lnl report {self.study} {self.report}{self.storage}", *logs]


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
    nights, rule, on_other_data = read(store, study, preset, night, selection)
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
    told = [
        *_left_out(on_other_data),
        *_missing(last),
        *still,
        *_coming_and_going(nights),
        *_diverged(nights),
        *_slower(nights, here),
    ]
    ends = list(dict.fromkeys([one.name for one in before[-k:]][:: max(len(before[-k:]) - 1, 1)]))
    span = f" ({' to '.join(ends)})" if ends else ""
    of = f"{study}, preset {last.plan.preset}, night {last.name}"
    return Difference(
        title=f"{of}, against {_count(len(before[-k:]), 'night')} before it{span}",
        study=study,
        preset=last.plan.preset,
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
        report=f"--preset {shlex.quote(last.plan.preset)} --night {last.name}",
        storage=storage_flag(store.root),
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
    rule = statistics.check_selection(selection or mine["record"].selection)
    sides, left_out = [], 0
    for one, where in ((theirs, place), (mine, store)):
        rows, count = _rows(where, one["study"], rule, [one])
        left_out += count
        sides.append(_joined(f"{one['study']} {one['preset']} {one['plan_hash']}", one["record"], rows))
    before, now = sides
    shared = [cell for cell in now.cells if cell in set(before.cells)]
    compared = {cell: statistics.compare(_finished(now.of(cell)), _finished(before.of(cell)), rule) for cell in shared}
    judged = [cell for cell in shared if min(compared[cell].n, compared[cell].n_against) >= verdicts_module.FEWEST]
    adjusted = verdicts_module.holm([compared[cell].p for cell in judged])
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
        *_left_out(left_out),
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
        few={cell: f"it takes {verdicts_module.FEWEST} replicates" for cell in shared if cell not in judged},
        changes=_changes(place, theirs["study"], store, study, pairs),
        crashed=crashed,
        told=told,
        finished=now.finished,
        report=f"--preset {shlex.quote(mine['preset'])}" + (f" --night {mine['night']}" if mine["night"] else ""),
        storage=storage_flag(store.root),
    )


def _place_of(plan: Mapping[str, Any]) -> str:
    night = f", night {plan['night']}" if plan["night"] else ""
    return f"{plan['study']}, preset {plan['preset']}{night} (plan {plan['plan_hash']})"


def _other(store: Store, mine: Mapping[str, Any], other: str | None) -> dict[str, Any]:
    """The newest plan that is meant.  Raises LoadError."""
    plans = store.plans()
    plans = _with_records(plans)
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


def _left_out(count: int) -> Iterator[str]:
    """Results that no mean may hold beside the others."""
    if count:
        yield f"{_count(count, 'result')} on other data, which have been replaced since, left out."


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
    counts = [night.counts(statistics.at_chance(night.trials)) for night in nights]
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
    arms = nights[-1].plan.arms
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
    fields = [flatten(one) for one in first]
    for key in dict.fromkeys([*fields[0], *fields[1]]):
        values = [one.get(key, "(none)") for one in fields]
        if values[0] != values[1] and key != "replicate":
            found.append(f"{key} {values[0]} → {values[1]}")
    return found or ["nothing that is recorded"]


def _commits(was: Sequence[str], is_: Sequence[str]) -> str:
    """How many commits lie between, where this code's repository knows."""
    if len(was) != 1 or len(is_) != 1 or not all(re.fullmatch("[0-9a-f]{7,64}", one) for one in (*was, *is_)):
        return ""
    command = ["git", "rev-list", "--count", f"{was[0]}..{is_[0]}"]
    try:
        asked = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, encoding="utf-8", errors="replace", timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f" ({_count(int(asked.stdout), 'commit')})" if asked.returncode == 0 else ""

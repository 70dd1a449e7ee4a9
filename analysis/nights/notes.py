"""Notes on a night beside its moves: crashes, what is missing, what diverged, what took longer, and twins."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from analysis import statistics
from analysis.nights.night import CRASHES, Night, cell_name, cell_names, cells_of, finished_trials
from analysis.nights.rule import ALARM_RATE, FEWEST_NIGHTS, Cell, CellVerdict, Values
from analysis.words import counted
from lnl.storage.places import canonical

SLOWDOWN_NOTED = 1.5  # times the usual seconds that are worth a note


def new_and_known_crashes(
    now: Night, before: Sequence[Night], fewest: int
) -> tuple[list[tuple[Cell, str]], list[tuple[Cell, str]]]:
    """Cells with a crash, prerequisites among them: new ones and known ones, and what happened.

    Known are those that crashed on the last `fewest` nights that had them, in no other way than on one of these, and in
    no larger part of their trials.
    """
    fresh: list[tuple[Cell, str]] = []
    known: list[tuple[Cell, str]] = []
    by_night = [_crashes_by_cell(night) for night in before]
    for cell, crash in _crashes_by_cell(now).items():
        if not crash.ways:
            continue
        earlier = [crashes[cell] for crashes in by_night if cell in crashes][-fewest:]
        always = len(earlier) == fewest and all(other.ways for other in earlier)
        seen = {way for other in earlier for way in other.ways}
        new = [way for way in crash.ways if way not in seen]
        more = crash.share > max((other.share for other in earlier), default=0)
        shown = crash.ways.index(new[0]) if new else 0
        text = f"{len(crash.ways)} of {crash.planned}, {crash.ways[shown][0]}: {crash.lines[shown]}"
        (known if always and not new and not more else fresh).append((cell, text))
    return fresh, known


class _Crash(NamedTuple):
    """What went wrong in a cell."""

    planned: int
    ways: list[tuple[str, str]]  # failure class and exception of each trial that crashed
    lines: list[str]

    @property
    def share(self) -> float:
        return len(self.ways) / self.planned


def _crashes_by_cell(night: Night) -> dict[Cell, _Crash]:
    """Every cell of a night and every prerequisite, if only with how many trials there were to be."""
    crashes: dict[Cell, _Crash] = {}
    for trials in (night.trials, night.prerequisites):
        about = (trials[column] for column in ("state", "failure_message"))
        for cell, state, message in zip(cells_of(trials), *about, strict=True):
            crash = crashes.get(cell, _Crash(0, [], []))
            crashes[cell] = crash = crash._replace(planned=crash.planned + 1)
            if state in CRASHES:
                line = str(message).strip().split("\n")[0]
                name = re.match(r"[\w.]+(?=:)", line)
                crash.ways.append((state, name[0] if name else ""))
                crash.lines.append(line)
    return crashes


def left_out_note(count: int) -> Iterator[str]:
    """Say how many results on replaced data are left out of all means."""
    if count:
        yield f"{counted(count, 'result')} on other data, which have been replaced since, left out."


def missing_notes(night: Night, of: str = "") -> Iterator[str]:
    """Cells without all their results, and why: nothing is dropped in silence."""
    unfinished = night.trials[~night.trials["state"].isin(("finished", *CRASHES))]
    states: dict[Cell, set[str]] = {}
    for cell, state in zip(cells_of(unfinished), unfinished["state"], strict=True):
        states.setdefault(cell, set()).add(state)
    counts = Counter(cells_of(unfinished))
    cells_by_reason: dict[str, list[str]] = {}
    for cell, of_cell in states.items():
        part = "" if counts[cell] == night.planned(cell) else f" ({counts[cell]} of {night.planned(cell)})"
        cells_by_reason.setdefault(" and ".join(sorted(of_cell)), []).append(cell_name(cell) + part)
    for reason, cells in cells_by_reason.items():
        yield f"Missing{of}, {reason}: {', '.join(cells)}."
    unscored = night.trials[(night.trials["state"] == "finished") & night.trials["score"].isna()]
    if len(unscored):
        yield f"Without an accuracy under the selection rule{of}: {cell_names(dict.fromkeys(cells_of(unscored)))}."


def coming_and_going_notes(nights: Sequence[Night]) -> Iterator[str]:
    """Name the cells that no night before had, and those that the last one had and this one lacks."""
    earlier = {cell for night in nights[:-1] for cell in night.cells}
    if new := [cell for cell in nights[-1].cells if cell not in earlier and len(nights) > 1]:
        yield f"New: {cell_names(new)}."
    if len(nights) > 1 and (gone := [cell for cell in nights[-2].cells if cell not in set(nights[-1].cells)]):
        yield f"Vanished since {nights[-2].name}: {cell_names(gone)}."


def diverged_notes(nights: Sequence[Night]) -> Iterator[str]:
    """Cells that diverged tonight: a diverged trial counts as chance, and as one outlier."""
    parts = []
    counts = [night.counts(statistics.at_chance(night.trials)) for night in nights]
    for cell in nights[-1].cells:
        if counts[-1][cell]:
            before = sum(of_night[cell] for of_night in counts[:-1]), sum(night.planned(cell) for night in nights[:-1])
            now = f"{counts[-1][cell]} of {nights[-1].planned(cell)}"
            parts.append(f"{cell_name(cell)} ({now}; before, {before[0]} of {before[1]})")
    if parts:
        yield f"Diverged, and counted as chance: {', '.join(parts)}."


def slower_notes(nights: Sequence[Night], judged: Mapping[Cell, CellVerdict]) -> Iterator[str]:
    """Name the cells that took much longer than usual on the same device."""
    by_name = {night.name: night for night in nights}
    parts = []
    for cell, verdict in judged.items():
        now = finished_trials(nights[-1].of(cell))
        before = [finished_trials(by_name[name].of(cell)) for name in verdict.reference]
        usual = [group["seconds"].mean() for group in before if set(group["device"]) == set(now["device"])]
        if len(usual) >= FEWEST_NIGHTS and now["seconds"].mean() > SLOWDOWN_NOTED * np.median(usual) > 0:
            parts.append(f"{cell_name(cell)} ({np.median(usual):.3g} → {now['seconds'].mean():.3g} s a trial)")
    if parts:
        yield f"Slower: {', '.join(parts)}."


def twin_comparisons(nights: Sequence[Night]) -> list[dict[str, Any]]:
    """A/A: arms that are one configuration on other replicates, so unpaired; their difference must hold zero."""
    arms = nights[-1].plan.arms
    configurations = {arm: canonical({**overrides, "replicate": 0}) for arm, overrides in arms.items()}
    values = [night.values() for night in nights]
    twins = []
    for arm, twin in combinations(arms, 2):
        if configurations[arm] != configurations[twin]:
            continue
        for setting in dict.fromkeys(setting for other, setting in nights[-1].cells if other == arm):
            pairs = [[of_night.get((name, setting), np.empty(0)) for name in (arm, twin)] for of_night in values]
            twins.append({"arm": arm, "twin": twin, "setting": setting, **_twin_comparison(pairs)})
    return twins


def _twin_comparison(pairs: Sequence[Sequence[Values]]) -> dict[str, Any]:
    """Tonight's difference of two twins, and on how many nights it was an alarm.  `pairs`: both twins', by night."""
    compared = [statistics.welch_difference(*pair) for pair in pairs if min(map(len, pair)) > 1]
    n, n_twin = map(len, pairs[-1])
    tonight = compared[-1] if min(n, n_twin) > 1 else statistics.Estimate(*[np.asarray(np.nan)] * 6)
    measured = dict(zip(("difference", "low", "high", "p"), map(float, tonight[:4]), strict=True))
    alarms = sum(bool(estimate.p <= ALARM_RATE) for estimate in compared)
    alarm = bool(tonight.p <= ALARM_RATE)
    return {"n": n, "n_twin": n_twin, **measured, "alarm": alarm, "alarms": alarms, "nights": len(compared)}

"""What a study cost: device-hours per arm, of use and of none, and what its machines did besides.

An attempt costs the time from its start to its end, times the devices that it held: GPUs (two trials that share one
half a GPU each) or, where it held none, CPUs.  The two are never added.  `seconds` in a trial's row is something else,
the training behind it, which earlier attempts may have done: what an outcome took over from attempts that were lost is
of use, and only the rest of their time is waste.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import LoadError
from analysis.tables.table import Table
from analysis.words import plural, readable
from lnl import replicates
from lnl.storage.outcomes import FAILURES_THAT_ARE_OUTCOMES
from lnl.storage.places import Place, place
from lnl.storage.schema import renamed
from lnl.storage.store import Store
from lnl.storage.tables import LeftOut

DEVICE_HOURS = {"gpus": "GPU-hours", "cpus": "CPU-hours"}
ATTEMPT_KINDS = {  # what became of an attempt -> what the caption says of it
    "useful": "attempts that became outcomes, diverged ones among them, and what these took over from lost ones",
    "failed": "out of memory and errors",
    "pruned": "given up by a search, which is its design and no accident",
    "lost": "preempted, or their worker died",
    "repeated": "outcomes that a later one of other code replaced",
}
IDLE = "idle"
RUN_EVENTS = ["run_started", "run_resized", "run_ended"]
TIME_COLUMNS = ("started_at", "ended_at", "device", "gpus", "cpus")
TRIAL_COLUMNS = (
    *("trial", "attempt", "preset", "arm", "replicate", "search", "status", "failure_class", "seconds"),
    *TIME_COLUMNS,
)


@dataclass(frozen=True)
class Ledger:
    """The device-hours of a study, or of a part of it.  Hours are NaN where no row tells them."""

    study: str
    spent: pd.DataFrame  # arm, unit, kind, reason, device, hours: one row per attempt, two where part of it was of use
    idle: dict[str, float]  # unit -> hours that runs could have used and no attempt did
    runs: int  # whose machines are known
    silent: int  # runs whose machines are not known
    unended: int  # runs without an end: still running, or killed
    unreadable: LeftOut

    def arms(self) -> pd.DataFrame:
        """Per arm and unit, the dearest first: attempts, untimed, a column per kind (NaN: not known) and the total."""
        rows = []
        for (arm, unit), attempts_of_arm in self.spent.groupby(["arm", "unit"], sort=False):
            counted = attempts_of_arm.drop_duplicates(["trial", "attempt"])
            by_kind = {
                kind: _known_sum(attempts_of_arm.loc[attempts_of_arm["kind"] == kind, "hours"])
                for kind in ATTEMPT_KINDS
            }
            by_kind |= dict.fromkeys(set(ATTEMPT_KINDS) - set(attempts_of_arm["kind"]), 0.0)
            about = {"arm": arm, "unit": unit, "attempts": len(counted), "untimed": int(counted["hours"].isna().sum())}
            rows.append({**about, **by_kind, "total": _known_sum(attempts_of_arm["hours"])})
        frame = pd.DataFrame(rows, columns=["arm", "unit", "attempts", "untimed", *ATTEMPT_KINDS, "total"])
        return frame.sort_values(["unit", "total"], ascending=False, kind="stable", ignore_index=True)

    def devices(self) -> pd.DataFrame:
        """Return attempts and hours for each kind of device."""
        counted = self.spent.assign(device=self.spent["device"].fillna("device not known"))
        hours = counted.groupby(["unit", "device"])["hours"].agg(_known_sum)
        attempts = counted.drop_duplicates(["trial", "attempt"]).groupby(["unit", "device"]).size()
        return pd.DataFrame({"attempts": attempts, "hours": hours}).reset_index()

    def units(self) -> list[str]:
        """Return the units that occur."""
        return [unit for unit in DEVICE_HOURS.values() if unit in self.idle or (self.spent["unit"] == unit).any()]

    def table(self) -> Table:
        """A line per arm, those of GPUs first, then what was idle and the total."""
        arms, rows, numbers = self.arms(), [], []
        for unit in self.units():
            here = self.spent[self.spent["unit"] == unit]
            idle = self.idle.get(unit, np.nan)
            for row in statistics.records(arms[arms["unit"] == unit]):
                rows.append([readable(row["arm"]), unit, *_hours_cells(here[here["arm"] == row["arm"]])])
                numbers.append(row)
            least = "≥ " * bool(self.silent and not np.isnan(idle))
            rows.append([IDLE, unit, *[""] * (1 + len(ATTEMPT_KINDS)), least + _hours_text(idle)])
            *cells, _ = _hours_cells(here)
            missing = here["hours"].isna().any() or np.isnan(idle) or least
            total = _known_sum(pd.Series([*here["hours"], idle]))
            rows.append(["all", unit, *cells, "≥ " * bool(missing) + _hours_text(total)])
            numbers += [{"arm": IDLE, "unit": unit, "total": idle}, {"arm": "all", "unit": unit, "total": total}]
        header = ["arm", "unit", "attempts", *ATTEMPT_KINDS, "total"]
        return Table(self._caption(), header, rows, pd.DataFrame(numbers, columns=list(arms.columns)))

    def _caption(self) -> str:
        kinds = "; ".join(f"{kind}: {text}" for kind, text in ATTEMPT_KINDS.items())
        return (
            f"What it cost: time of attempts from start to end × devices held. {kinds[0].upper()}{kinds[1:]}. "
            f"Idle: what the machines could have done while a run had them, start-up and interrupted attempts included."
        )

    def idle_sentences(self) -> Iterator[str]:
        """Yield, by unit, which share of what the machines of its runs could have done they did not do."""
        for unit, idle in self.idle.items():
            used = _known_sum(self.spent.loc[self.spent["unit"] == unit, "hours"])
            if used + idle > 0:
                yield f"Idle, start-up of runs and of processes included: {idle / (used + idle):.0%} of their {unit}."

    def sentences(self) -> Iterator[str]:
        """Yield what the table does not say."""
        for unit in self.units():
            failed = self.spent[(self.spent["kind"] == "failed") & (self.spent["unit"] == unit)]
            if len(failed):
                by_class = failed.fillna({"reason": "not said why"}).groupby("reason")["hours"].agg(_known_sum)
                parts = ", ".join(f"{reason} {_hours_text(hours)}" for reason, hours in by_class.items())
                yield f"Failed, {unit}: {parts}."
        for row in statistics.records(self.devices()):
            attempts = f"{row['attempts']:,} {plural('attempt', row['attempts'])}"
            yield f"{row['device']}: {attempts}, {_hours_text(row['hours'])} {row['unit']}."
        if not self.runs:
            yield "Idle time is not known: no run has told what it could use."
        elif self.silent:
            yield f"Runs that have not told what they could use, so that their idle time is not known: {self.silent}."
        if self.unended:
            yield f"Runs without an end, running or killed, counted up to their last attempt's end: {self.unended}."


def read_ledger(root: str | Place, study: str, preset: str | None = None, night: date | str | None = None) -> Ledger:
    """The ledger of a study, of one preset or one night if given.  Raises `LoadError` where nothing was ever tried."""
    store = Store(place(root))
    rows, broken = store.read("trials", study, TRIAL_COLUMNS)
    events, damaged = store.read("events", filters=[("kind", "in", RUN_EVENTS)], files="*-run_*")
    attempts = _timed(renamed(rows, store.plans(study)))
    runs = _runs(events[events["study"] == study], preset, attempts)
    spent = pd.DataFrame(_portions(attempts), columns=["trial", "attempt", "kind", "hours", "unseen"])
    spent = spent.merge(attempts.drop(columns="hours"), on=["trial", "attempt"])
    if preset is not None:
        spent = spent[spent["preset"] == preset]
    if night is not None:
        first = replicates.first_replicate(replicates.parse(night) if isinstance(night, str) else night)
        spent = spent[spent["replicate"] // replicates.REPLICATES_PER_NIGHT == first // replicates.REPLICATES_PER_NIGHT]
        runs = [run for run in runs if ((spent["started_at"] < run["end"]) & (spent["ended_at"] > run["start"])).any()]
    if spent.empty:
        wanted = f"study {study!r}" + f", preset {preset!r}" * (preset is not None) + f", night {night}" * bool(night)
        presets = f"; there are presets {', '.join(sorted(set(attempts['preset'])))}" if len(attempts) else ""
        raise LoadError(f"No attempt of {wanted} in {store.root}{presets}.")
    # Zeros are a cluster that was not asked.
    telling = [run for run in runs if any(any(part["resources"].values()) for part in run["parts"])]
    busy = _timed(store.read("trials", columns=TIME_COLUMNS)[0]) if telling else attempts
    idle = _idle_hours(telling, busy)
    for unit in idle:  # interrupted attempts leave no row, but the training that others took over from them
        idle[unit] = max(0.0, idle[unit] - spent.loc[spent["unit"] == unit, "unseen"].sum())
    label = spent["arm"].where(spent["search"].isna(), spent["arm"] + ", search")
    spent = spent.assign(arm=label, reason=spent["failure_class"])
    columns = ["trial", "attempt", "arm", "unit", "kind", "reason", "device", "hours"]
    unended = sum(run["open"] for run in runs)
    spent, counts = spent[columns].reset_index(drop=True), (len(telling), len(runs) - len(telling))
    return Ledger(study, spent, idle, *counts, unended, broken | damaged)


def _timed(rows: pd.DataFrame) -> pd.DataFrame:
    """Attempts with the unit they are counted in, the devices that they held, and their hours (NaN: not known)."""
    on_gpu = (rows["gpus"] > 0) | (rows["gpus"].isna() & ~rows["device"].fillna("").str.endswith("CPU"))
    held = rows["gpus"].where(on_gpu, rows["cpus"])
    wall = (rows["ended_at"] - rows["started_at"]).dt.total_seconds() / 3600
    unit = np.where(on_gpu, DEVICE_HOURS["gpus"], DEVICE_HOURS["cpus"])
    return rows.assign(unit=unit, held=held, wall=wall, hours=wall * held)


def _portions(attempts: pd.DataFrame) -> Iterator[tuple[str, int, str, float, float]]:
    """(trial, attempt, kind, hours, hours of attempts without a row among them) for every part of every attempt.

    The attempts before an outcome may be its beginning: its `seconds` tell how much training it goes on from.
    """
    for _, group in attempts.sort_values("attempt").groupby("trial", sort=False):
        rows = statistics.records(group)
        last = max((row["attempt"] for row in rows if _is_outcome(row)), default=None)
        before: list[dict[str, Any]] = []
        for row in rows:
            if not _is_outcome(row) and row["status"] != "pruned":
                before.append(row)
                continue
            kind = "pruned" if row["status"] == "pruned" else "useful" if row["attempt"] == last else "repeated"
            taken_over = np.nan_to_num(max(row["seconds"] / 3600 - row["wall"], 0.0))
            known = sum(earlier["wall"] for earlier in before if not np.isnan(earlier["wall"]))
            share = min(1.0, taken_over / known) if known else 0.0
            for earlier in before:
                yield earlier["trial"], earlier["attempt"], _waste(earlier), (1 - share) * earlier["hours"], 0.0
                if share and not np.isnan(earlier["hours"]):
                    yield earlier["trial"], earlier["attempt"], kind, share * earlier["hours"], 0.0
            unseen = (taken_over - share * known) * row["held"]
            yield row["trial"], row["attempt"], kind, row["hours"] + unseen, unseen
            before = []
        for earlier in before:
            yield earlier["trial"], earlier["attempt"], _waste(earlier), earlier["hours"], 0.0


def _is_outcome(row: Mapping[str, Any]) -> bool:
    return row["status"] == "ok" or row["failure_class"] in FAILURES_THAT_ARE_OUTCOMES


def _waste(row: Mapping[str, Any]) -> str:
    return "lost" if row["status"] == "preempted" else "failed"


def _runs(events: pd.DataFrame, preset: str | None, attempts: pd.DataFrame) -> list[dict[str, Any]]:
    """Each with start, end, and `open` where nobody told its end: then its last attempt's.

    Its `parts` have start, end, resources and hosts: machines came or went between them.
    """
    by_time = [{**json.loads(row["payload"]), **row} for row in statistics.records(events.sort_values("at"))]
    ends = {row["run"]: row["at"] for row in by_time if row["kind"] == "run_ended"}
    started = [row for row in by_time if row["kind"] == "run_started" and preset in (None, row["preset"])]
    runs = []
    for row in started:
        end = ends.get(row["run"])
        if end is None:
            later = [other["at"] for other in started if other["at"] > row["at"]]
            during = attempts[(attempts["started_at"] >= row["at"])]
            during = during[during["started_at"] < min(later)] if later else during
            end = max([row["at"], *during["ended_at"].dropna()])
        sizes = [row, *(other for other in by_time if other["kind"] == "run_resized" and other["run"] == row["run"])]
        borders = [*(min(size["at"], end) for size in sizes), end]
        kind = "GPU" if any(size["resources"].get("GPU") for size in sizes) else "CPU"
        parts = [
            {"start": start, "end": until, "hosts": frozenset(size.get("hosts") or ())}
            | {"resources": {kind: size["resources"].get(kind, 0.0)}}
            for size, (start, until) in zip(sizes, pairwise(borders), strict=True)
        ]
        runs.append({"start": row["at"], "end": end, "open": row["run"] not in ends, "parts": parts})
    return runs


def _idle_hours(runs: Sequence[Mapping[str, Any]], attempts: pd.DataFrame) -> dict[str, float]:
    """Hours per unit that runs could have used and no attempt, of whatever study, did.

    Drivers that share a machine share its devices: while both run, they count once.  Idle CPUs beside GPUs are not
    counted.
    """
    idle: dict[str, float] = {}
    parts = [part for run in runs for part in run["parts"]]
    borders = sorted({time for part in parts for time in (part["start"], part["end"])})
    for start, end in pairwise(borders):
        now = [part for part in parts if part["start"] <= start and end <= part["end"]]
        capacity = _capacity(now)
        for unit, devices in capacity.items():
            counted = attempts[(attempts["unit"] == unit) & attempts["hours"].notna()]
            idle[unit] = idle.get(unit, 0.0) + _unused(devices, counted, start, end)
    return idle


def _capacity(parts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the devices per unit of the runs' machines, each machine counted once."""
    clusters: list[tuple[frozenset[str], dict[str, float]]] = []
    for part in parts:
        hosts, largest = part["hosts"], dict(part["resources"])
        apart = []
        for other, resources in clusters:
            if hosts & other or not hosts or not other:  # who does not tell its hosts may be on any
                names = largest | resources
                hosts, largest = (
                    hosts | other,
                    {name: max(largest.get(name, 0), resources.get(name, 0)) for name in names},
                )
            else:
                apart.append((other, resources))
        clusters = [*apart, (hosts, largest)]
    devices: dict[str, float] = {}
    for _, resources in clusters:
        name, kind = ("gpus", "GPU") if "GPU" in resources else ("cpus", "CPU")
        devices[DEVICE_HOURS[name]] = devices.get(DEVICE_HOURS[name], 0.0) + resources[kind]
    return devices


def _unused(devices: float, attempts: pd.DataFrame, start: pd.Timestamp, end: pd.Timestamp) -> float:
    """Return the device-hours between two times that these attempts leave unused."""
    inside = attempts[(attempts["started_at"] < end) & (attempts["ended_at"] > start)]
    steps = [(start, 0.0), (end, 0.0)]
    for begins, ends, held in zip(inside["started_at"], inside["ended_at"], inside["held"], strict=True):
        steps += [(max(begins, start), held), (min(ends, end), -held)]
    unused, used = 0.0, 0.0
    for (time, change), (following, _) in pairwise(sorted(steps, key=lambda step: step[0])):
        used += change
        unused += max(0.0, devices - used) * (following - time).total_seconds() / 3600
    return unused


def _hours_cells(spent: pd.DataFrame) -> list[str]:
    """Attempts, hours by kind and in all; where some are not known, at least these."""
    untimed = spent.loc[spent["hours"].isna(), ["trial", "attempt"]].drop_duplicates()
    attempts = f"{len(spent[['trial', 'attempt']].drop_duplicates()):,}"
    cells = [attempts + f" ({len(untimed):,} not timed)" * bool(len(untimed))]
    for chosen in (*(spent[spent["kind"] == kind] for kind in ATTEMPT_KINDS), spent):
        known = _known_sum(chosen["hours"]) if len(chosen) else 0.0
        least = chosen["hours"].isna().any() and not np.isnan(known)
        cells.append("≥ " * bool(least) + _hours_text(known))
    return cells


def _known_sum(hours: pd.Series) -> float:
    """Return the sum of known hours; NaN where none is known."""
    return float(hours.sum(min_count=1))


def _hours_text(hours: float) -> str:
    """Format hours with three digits: 0.00231, 4.56, 1,230."""
    if np.isnan(hours):
        return "not known"
    if 0 < hours < 0.0001:
        return "< 0.0001"
    if hours >= 999.5:
        return f"{hours:,.0f}"
    return np.format_float_positional(hours, precision=3, fractional=False, trim="-")

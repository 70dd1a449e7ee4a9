"""Where the time of a study's trials went: seconds of each arm by phase, from what every attempt stores.

Phases are those of `lnl.system.timing`.  `start` is what an attempt took from begin to end besides them: data, the
network and the writing of rows.  Attempts of earlier versions tell no phases and are left out, as are those that go on
from an earlier one, whose phases are those of both.  Seconds are those of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date

import numpy as np
import pandas as pd

from analysis import statistics
from analysis.results import LoadError
from analysis.tables.table import Table
from analysis.words import counted, readable
from lnl import replicates
from lnl.storage.places import Place, place
from lnl.storage.schema import renamed
from lnl.storage.store import Store
from lnl.storage.tables import LeftOut

PHASES = {  # as they are shown -> what they are
    "start": "data, network, and rows at the end",
    "views": "augmenting images",
    "forward": "passes with a gradient, and losses",
    "backward": "gradients",
    "update": "optimizer and average",
    "meta": "virtual steps",
    "inference": "passes without a gradient in training",
    "rest": "of training: batches, selection; on a GPU the wait for it",
    "evaluation": "metrics and arrays",
    "checkpoint": "writing them",
    "report": "until the driver has looked at an epoch",
}
STORED = tuple(name for name in PHASES if name != "start")
LEAST_SHOWN = 0.005  # of an arm's time
NETWORK = ("forward", "backward")  # what no trial can do without
COLUMNS = (
    *("trial", "attempt", "preset", "arm", "replicate", "search", "status", "seconds", "started_at", "ended_at"),
    *("device", *(f"seconds_{name}" for name in STORED)),
)


@dataclass(frozen=True)
class Timings:
    """The phases of finished attempts."""

    attempts: pd.DataFrame  # arm, device, and a column of seconds for each of `PHASES`
    silent: int  # finished attempts that tell no phases
    unreadable: LeftOut

    def arms(self) -> pd.DataFrame:
        """Per arm, the slowest first: attempts, the mean seconds of each phase, and their sum `total`."""
        groups = self.attempts.groupby("arm", sort=False)
        means = groups[list(PHASES)].mean()
        frame = means.assign(attempts=groups.size(), total=means.sum(axis=1)).reset_index()
        return frame.sort_values("total", ascending=False, kind="stable", ignore_index=True)

    def table(self) -> Table:
        """A line per arm and one of all: seconds of an attempt, and the percentage of each phase."""
        arms = self.arms()
        sums = self.attempts[list(PHASES)].sum()
        everything = pd.DataFrame([{"arm": "all", "attempts": len(self.attempts), **(sums / len(self.attempts))}])
        everything["total"] = sums.sum() / len(self.attempts)
        frame = pd.concat([arms, everything], ignore_index=True)
        shown = self.shown()
        rows = [
            [readable(row["arm"]), f"{row['attempts']:,}", f"{row['total']:.1f}"]
            + [f"{100 * row[name] / row['total']:.0f}" for name in shown]
            for row in statistics.records(frame)
        ]
        parts = "; ".join(f"{name}: {PHASES[name]}" for name in shown)
        caption = f"Where the time of an attempt went: its seconds, and the percentage of each phase. {parts}."
        return Table(caption, ["arm", "attempts", "seconds", *(f"{name}, %" for name in shown)], rows, frame)

    def shown(self) -> list[str]:
        """The phases that take at least half a percent of some arm's time."""
        arms = self.arms()
        return [name for name in PHASES if (arms[name] >= LEAST_SHOWN * arms["total"]).any()]

    def sentences(self) -> Iterator[str]:
        """Yield what the table does not say."""
        sums = self.attempts[list(PHASES)].sum()
        network = sums[list(NETWORK)].sum() / sums.sum()
        yield f"Forward and backward passes took {network:.0%} of the time of {counted(len(self.attempts), 'attempt')}."
        if not self.attempts["device"].fillna("").str.endswith("CPU").all():
            yield "On a GPU only training as a whole, evaluation and what follows them can be told apart."
        if self.silent:
            yield f"{counted(self.silent, 'attempt')} of an earlier version, or in two parts, tell no phases."


def read_timings(root: str | Place, study: str, preset: str | None = None, night: date | str | None = None) -> Timings:
    """The timings of a study, of one preset or one night if given.  Raises `LoadError` where no attempt tells any."""
    store = Store(place(root))
    rows, broken = store.read("trials", study, COLUMNS)
    rows = renamed(rows, store.plans(study))
    rows = rows[rows["status"] == "ok"]
    if preset is not None:
        rows = rows[rows["preset"] == preset]
    if night is not None:
        asked = replicates.parse(night) if isinstance(night, str) else night
        first, count = replicates.first_replicate(asked), replicates.REPLICATES_PER_NIGHT
        rows = rows[rows["replicate"] // count == first // count]
    wall = (rows["ended_at"] - rows["started_at"]).dt.total_seconds()
    phases = rows[[f"seconds_{name}" for name in STORED]].set_axis(list(STORED), axis=1)
    start = wall - phases.sum(axis=1)
    tells = phases.notna().all(axis=1) & (start >= 0)
    if not tells.any():
        raise LoadError(
            f"No finished attempt of study {study!r} tells where its time went: it must have been run by this version."
        )
    label = rows["arm"].where(rows["search"].isna(), rows["arm"] + ", search")
    attempts = phases.assign(start=start, arm=label, device=rows["device"])[tells]
    return Timings(attempts.reset_index(drop=True), int(np.sum(~tells)), broken)

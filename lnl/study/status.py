"""The state of each trial of a plan, according to the store."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from lnl.storage.currency import latest
from lnl.storage.kept import attempts_with, lacking
from lnl.storage.leases import leases
from lnl.storage.outcomes import accuracies, diverged, is_outcome
from lnl.storage.part_names import Kept, attempt_name
from lnl.storage.store import Store
from lnl.storage.tables import tell_left_out
from lnl.study.plan import Plan, Planned, sources_of
from lnl.trial.provenance import Current

if TYPE_CHECKING:  # imports torch
    from lnl.trial.config import Trial

State = Literal["done", "failed", "missing", "stale", "running"]


@dataclass(frozen=True)
class Status:
    """A planned trial and what the store holds of it."""

    planned: Planned
    state: State
    seconds: float | None  # measured where done, else expected from finished trials of the same kind; None: unknown
    accuracy: float | None = None  # on test images under the plan's selection rule; of one that diverged chance
    failure: str | None = None
    diverged: bool = False  # one that is done, or stale
    device: str = ""  # on which `seconds` are expected
    changed: str = ""  # what has changed since a stale trial ran: `lnl.storage.currency.CHANGED_…`
    lacks: tuple[Kept, ...] = ()  # what one that is done, and has not diverged, was to keep and has not


def reconcile(
    plan: Plan,
    store: Store,
    current: Current | None = None,
    *,
    keep: Collection[Kept] = (),
    rerun_unkept: bool = False,
) -> list[Status]:
    """The state of each trial: done, stale (done by other code or data), running (leased), failed or missing.

    A trial that failed by accident (out of memory, an error) is tried again by the next run; one that diverged is done.
    `current`: what a new trial would use; by default this process's code and the default folder of data.  `keep`: what
    trials are to keep; one that is done without it says so, or, with `rerun_unkept`, counts as missing.
    """
    columns = [
        "trial",
        "attempt",
        "status",
        "failure_class",
        "failure_message",
        "classes",
        "transition",
        "data_hash",
        f"accuracy_{plan.record.selection}",
        "seconds",
        "code_hash",
        "sources_hash",
        "method",
        "dataset",
        "network",
        "preset",
        "epochs_done",
        "device",
        "ended_at",
    ]
    rows, unreadable = store.read("trials", plan.study, columns)
    tell_left_out(unreadable)
    rows = latest(rows, sources_of(plan, current or Current()))
    finished = is_outcome(rows) if len(rows) else pd.Series(dtype=bool)
    timings = rows[finished] if len(rows) else rows
    pace = _Pace(timings)
    rows = rows.assign(finished=finished, accuracy=accuracies(rows, plan.record.selection), diverged=diverged(rows))
    by_id = rows.set_index("trial").to_dict("index") if len(rows) else {}
    held = {trial for (_, trial), lease in leases(store, plan.study).items() if lease["alive"]}
    attempts = attempts_with(store, plan.study, keep)
    statuses = []
    for planned in plan.trials:
        trial, row = planned.trial, by_id.get(planned.id)
        expected = partial(Status, planned, seconds=pace.seconds(trial, plan.preset), device=pace.device)
        if planned.id in held:
            statuses.append(expected("running"))
        elif row is None:
            statuses.append(expected("missing"))
        elif not row["finished"]:
            statuses.append(expected("failed", failure=f"{row['failure_class']}: {row['failure_message']}"))
        else:
            status = _finished(planned, row, attempts)
            statuses.append(expected("missing") if status.lacks and rerun_unkept else status)
    return statuses


def _finished(planned: Planned, row: Mapping[Any, Any], attempts: Mapping[Kept, Collection[str]]) -> Status:
    """Of a trial that has a row as an outcome; `attempts`: by what was to be kept, those that have kept it."""
    state: State = "stale" if row["stale"] else "done"
    is_ok = row["status"] == "ok"
    return Status(
        planned,
        state,
        seconds=_known(row["seconds"]),
        accuracy=_known(row["accuracy"]),
        failure=None if is_ok else row["failure_message"],
        diverged=bool(row["diverged"]),
        changed=str(row["stale"]),
        lacks=lacking(attempt_name(planned.id, row["attempt"]), attempts) if is_ok and state == "done" else (),
    )


def _known(value: float) -> float | None:
    return None if pd.isna(value) else value


class _Pace:
    """Measured seconds per epoch, by method, data set and network, on the device that was used last."""

    def __init__(self, timings: pd.DataFrame) -> None:
        """`timings`: rows of finished trials."""
        self.device = ""
        self.measured: dict[Any, float] = {}
        if len(timings):
            timings = timings.assign(device=timings["device"].fillna("")).sort_values("ended_at", kind="stable")
            self.device = timings["device"].iloc[-1]
            here = timings[timings["device"] == self.device]
            for kind in (["method", "dataset", "network"], ["method", "dataset", "network", "preset"]):
                totals = here.groupby(kind)[["seconds", "epochs_done"]].sum()
                totals = totals[totals["epochs_done"] > 0]
                self.measured |= (totals["seconds"] / totals["epochs_done"]).to_dict()

    def seconds(self, trial: Trial, preset: str) -> float | None:
        """The expected seconds of a trial, by the same preset if it was timed: others may have longer epochs."""
        kind = (trial.method_name, trial.dataset, trial.network)
        pace = self.measured.get((*kind, preset), self.measured.get(kind))
        return None if pace is None else pace * trial.total_epochs


def by_state(statuses: Sequence[Status]) -> dict[str, int]:
    """The number of trials in each state."""
    return {
        state: sum(status.state == state for status in statuses)
        for state in ("done", "stale", "running", "failed", "missing")
    }

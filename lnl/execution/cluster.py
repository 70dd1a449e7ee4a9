"""How a run shares out a Ray cluster: which machines there are, and what is known of the trials that run there."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from lnl.execution.job import RunSettings
from lnl.execution.packing import Budget, Shares
from lnl.study.plan import Planned
from lnl.training.precision import has_checked_kernels
from lnl.trial.config import Trial
from lnl.trial.reports import TrialOutcome

LOOK_S = 10.0  # between two looks at the machines


class Machines(TypedDict):
    """The machines of a cluster at one moment, as events tell it."""

    resources: dict[str, float]
    nodes: int
    hosts: list[str]


@dataclass
class Cluster:
    """A connection to Ray, and how a run shares it out."""

    settings: RunSettings
    shares: Shares
    budget: Budget
    read_machines: Callable[[], Machines]
    machines_changed: Callable[[Machines], None]
    machines: Machines | None = None  # as last seen
    stopped: str | None = None  # why the run ended early
    running: dict[str, Planned] = field(default_factory=dict)
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Tell where machines have come or gone, at most once in `LOOK_S`."""
        if time.monotonic() - self.looked >= LOOK_S:
            self.looked = time.monotonic()
            if (machines := self.read_machines()) != self.machines:
                self.machines = machines
                self.machines_changed(machines)

    def begin(self, planned: Planned, seconds: float | None) -> float:
        """A trial is submitted to Ray; returns its share of a GPU.  `seconds`: what it is expected to take."""
        self.running[planned.id] = planned
        gpus = self.shares.give(planned.trial)
        self.budget.begin(planned.id, gpus, seconds)
        return gpus

    def end(self, trial: str, outcome: TrialOutcome) -> str | None:
        """A trial has ended; returns a sentence where it ran out of memory and is to be run again with more."""
        self.budget.end(trial)
        if (planned := self.running.pop(trial, None)) is None:
            return None
        if outcome.get("failure") == "oom" and self.shares.widen(planned.trial):
            share = self.shares.gpus(planned.trial)
            return f"{planned.arm} {trial} ran out of memory: it goes on with {share:g} of a GPU."
        if outcome["outcome"] in ("done", "pruned") and "peak_memory_mb" in outcome:
            self.shares.learn_of(planned.trial, outcome)
        return None


def precision_remark(trials: Sequence[Trial], gpus: float | str) -> str | None:
    """What to tell of trials in bfloat16 that have no GPU, where this machine's CPU has no fast and right kernels."""
    half = sum(trial.precision == "bfloat16" for trial in trials)
    if not half or gpus != 0 or has_checked_kernels():
        return None
    return (
        f"{half:,} of {len(trials):,} trials have precision bfloat16, which trains about ten times slower than float32 "
        "on this CPU. To use it only where it is faster: --set precision=auto."
    )

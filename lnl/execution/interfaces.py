"""The seams of a run: where its trials come from, where it shows how they go, and who trains them.

A run trains the trials of a `TrialSource` (the queue of a plan, or the searches of a plan, see `SearchSource`) and
reports to a `Display` (`PlanDisplay` and `SearchDisplay` also hear how the run begins).  `lnl.search` and `lnl.cli`
have classes of these kinds; neither they nor this module import Ray.  A `RunRequest` becomes a connection to a
cluster, and there an `Adapter` does the `Work`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lnl.execution.cluster import Cluster
from lnl.execution.job import Job, RunSettings
from lnl.execution.packing import Budget
from lnl.execution.submit import JobOf
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.study.status import Status
from lnl.trial.config import Trial
from lnl.trial.provenance import Current
from lnl.trial.reports import Metrics, TrialOutcome


class TrialSource(Protocol):
    """Where the trials of a run come from.  Trials are named by their ids."""

    @property
    def pruner(self) -> str:
        """Who ends trials early: `asha` is Ray Tune's; any other pruner is the source's own, see `epoch`."""
        ...

    def next(self, capacity: int) -> Planned | None:
        """A trial to train now, if no more than `capacity` are wanted at once; None: nothing at this moment."""
        ...

    def busy(self) -> bool:
        """Whether `next` may still give a trial after it has given None."""
        ...

    def expected_seconds(self, trial: str) -> float | None:
        """How long a trial will probably take; None: unknown."""
        ...

    def epoch(self, trial: str, metrics: Metrics) -> bool:
        """Hear of one more epoch of a trial; return whether the trial is to be pruned."""
        ...

    def prunable(self, trial: str) -> Sequence[tuple[str, int]]:
        """The searches that may prune a trial, each with the trial's number of epochs."""
        ...

    def ended(self, trial: str, outcome: TrialOutcome) -> None:
        """Hear how a trial ended."""
        ...

    def again(self, trial: str) -> None:
        """Hear that a trial ran out of memory: `next` gives it once more."""
        ...


class SearchSource(TrialSource, Protocol):
    """The searches of a plan."""

    @property
    def current(self) -> Current:
        """The code and data that their trials use."""
        ...

    def first_trials(self) -> Sequence[Trial]:
        """The arms in whose place the searches look for values."""
        ...

    def work(self) -> bool:
        """Whether there is a suggestion to evaluate now, by this driver."""
        ...

    def spent(self) -> bool:
        """Whether every search has spent its budget."""
        ...

    def close(self) -> None:
        """Release what this driver evaluates: the next driver takes it over."""
        ...


class Display(Protocol):
    """Where a run shows how its trials go."""

    def begin(self, trial: str, job: Job) -> None:
        """A worker has begun with a trial; once more where an earlier worker was lost."""
        ...

    def epoch(self, trial: str, metrics: Metrics) -> None:
        """A trial has trained one more epoch."""
        ...

    def end(self, trial: str, outcome: TrialOutcome) -> None:
        """A trial has ended."""
        ...

    def say(self, sentence: str) -> None:
        """Show a sentence."""
        ...

    def finish(self) -> None:
        """The run has ended."""
        ...


class PlanDisplay(Display, Protocol):
    """A display of a plan's trials."""

    def start(self, todo: Sequence[Planned], statuses: Sequence[Status]) -> None:
        """A round begins: the trials to be run, and how the whole plan stands."""
        ...


class SearchDisplay(Display, Protocol):
    """A display of searches."""

    def start(self) -> None:
        """The run begins."""
        ...


AnyDisplay = TypeVar("AnyDisplay", bound=Display)


class Track(Protocol):
    """Makes a display one that trackers follow."""

    def __call__(self, display: AnyDisplay) -> AnyDisplay: ...


@dataclass(frozen=True)
class RunRequest:
    """What a run asks a cluster for.  `trials`: those that are to be run, or of searches those that they begin with."""

    plan: Plan
    settings: RunSettings
    display: Display
    trials: Sequence[Trial]
    budget: Budget | None
    current: Current


@dataclass(frozen=True)
class Work:
    """The trials of a source, and what it takes to train them on a cluster."""

    source: TrialSource
    display: Display
    cluster: Cluster
    job_of: JobOf
    store: Store
    study: str
    ahead: int = 0  # how many trials may wait for devices within the cluster


class Adapter(Protocol):
    """Trains the trials of a source, and tells a display how they go.  It is made from its `Work`."""

    @property
    def stopped(self) -> str | None:
        """Why the run ended early, in a sentence."""
        ...

    @property
    def taken(self) -> set[str]:
        """The trials that another process trains."""
        ...

    def run(self) -> None:
        """Train until the source has nothing more to give, or the run is stopped."""
        ...

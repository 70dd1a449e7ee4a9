"""The trials of a plan that a run has to train: `trials_to_run` chooses them, and a `PlanQueue` gives them out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from lnl.execution import packing
from lnl.execution.cluster import Cluster
from lnl.study.plan import Plan, Planned
from lnl.study.status import Status
from lnl.trial.config import Trial
from lnl.trial.reports import Metrics, TrialOutcome

INTERRUPTED, BLOCKED = "Interrupted", "Not trained"
UNFINISHED = (INTERRUPTED, BLOCKED, packing.BUDGET)  # begin the sentences of runs that ended in order

IsTrained = Callable[[Trial], bool]


class PlanQueue:
    """The trials of a plan as a `TrialSource`, in the plan's order.

    A trial is given out once all that it starts from is trained, its share of a GPU is known and the budget holds it;
    it is given out again, with a larger share, where it ran out of memory.
    """

    pruner = "none"

    def __init__(
        self,
        waiting: Sequence[Planned],
        cluster: Cluster,
        expected: Mapping[str, float | None],
        is_trained: IsTrained,
    ) -> None:
        """`expected`: seconds of each trial, by its id."""
        self.waiting = list(waiting)
        self.running: dict[str, Planned] = {}
        self.cluster, self.expected, self.is_trained = cluster, expected, is_trained
        self.tried: set[str] = set()
        self.blocked: set[str] = set()  # until another trial ends
        self.stopped: str | None = None

    def next(self, capacity: int) -> Planned | None:
        for place, planned in self._startable():
            gpus = self.cluster.shares.gpus(planned.trial)
            if not self.cluster.budget.holds(self.expected.get(planned.id), gpus):
                self.stopped = self.cluster.budget.sentence if not self.running else None
                return None
            self.running[planned.id] = self.waiting.pop(place)
            self.tried.add(planned.id)
            return planned
        return None

    def _startable(self) -> Iterator[tuple[int, Planned]]:
        """The waiting trials that could start now, with their places; those that must wait are kept in `blocked`."""
        if all(planned.id in self.blocked for planned in self.waiting):
            return
        shares = self.cluster.shares
        pending = {planned.id for planned in (*self.waiting, *self.running.values())}
        measuring = {
            shares.kind_of(planned.trial) for planned in self.running.values() if shares.of(planned.trial) is None
        }
        for place, planned in enumerate(self.waiting):
            if shares.of(planned.trial) is None and shares.kind_of(planned.trial) in measuring:
                continue  # another trial of its kind measures their memory
            if planned.id in self.blocked or not is_ready(planned, pending, self.is_trained):
                self.blocked.add(planned.id)
            else:
                yield place, planned

    def busy(self) -> bool:
        return bool(self.running)

    def expected_seconds(self, trial: str) -> float | None:
        return self.expected.get(trial)

    def epoch(self, trial: str, metrics: Metrics) -> bool:
        return False

    def prunable(self, trial: str) -> Sequence[tuple[str, int]]:
        return []

    def ended(self, trial: str, outcome: TrialOutcome) -> None:
        self.blocked.clear()
        self.running.pop(trial, None)

    def again(self, trial: str) -> None:
        self.waiting.insert(0, self.running.pop(trial))
        self.tried.discard(trial)


def trials_to_run(
    plan: Plan, statuses: Sequence[Status], states: Collection[str], tried: set[str], is_trained: IsTrained
) -> list[Planned]:
    """The trials in these states, and their prerequisites that are not trained by current code on current data.

    Those in `tried` are left out.  A prerequisite that diverged counts as trained: what starts from it has diverged
    with it.
    """
    by_id = {status.planned.id: status for status in statuses}
    ids = {status.planned.id for status in statuses if status.state in states}
    unvisited = list(ids)
    is_trained = functools.cache(is_trained)  # many trials start from one
    while unvisited:
        for trial in by_id[unvisited.pop()].planned.trial.prerequisites.values():
            if trial.id not in ids and by_id[trial.id].state != "running" and not is_trained(trial):
                ids.add(trial.id)
                unvisited.append(trial.id)
    return [planned for planned in plan.trials if planned.id in ids - tried]


def is_ready(planned: Planned, pending: Collection[str], is_trained: IsTrained) -> bool:
    """Whether all that a trial starts from is trained, and will not be trained again before it: is not `pending`."""
    return all(trial.id not in pending and is_trained(trial) for trial in planned.trial.prerequisites.values())


def why_blocked(waiting: Sequence[Planned], statuses: Sequence[Status], is_trained: IsTrained) -> str:
    """Why none of the waiting trials can run."""
    by_id = {status.planned.id: status for status in statuses}
    prerequisites = (trial for planned in waiting for trial in planned.trial.prerequisites.values())
    first = next(by_id[trial.id] for trial in prerequisites if not is_trained(trial))
    why = (first.failure or "it is not trained yet: run again").splitlines()[0]
    return (
        f"{BLOCKED}: {len(waiting)} trials start from others that are not trained; "
        f"{first.planned.id} ({first.planned.trial.method_name}): {why}"
    )

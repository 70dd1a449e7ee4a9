"""The trials of a plan that wait, run, or are blocked by another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from lnl.execution import packing
from lnl.execution.ray_cluster import _Cluster
from lnl.study.plan import Plan, Planned
from lnl.study.status import Status
from lnl.trial.config import Trial

INTERRUPTED, BLOCKED = "Interrupted", "Not trained"
UNFINISHED = (INTERRUPTED, BLOCKED, packing.BUDGET)  # begin the sentences of runs that ended in order


class _Queue:
    """The trials that a plan waits for, handed out in its order to `_Work`: each once all that it starts from is
    trained, its share of a GPU is known and the budget holds it; again, with a larger share, where memory ran out.
    """

    pruner = "none"

    def __init__(
        self,
        waiting: Sequence[Planned],
        cluster: _Cluster,
        expected: Mapping[str, float | None],
        is_trained: Callable[[Trial], bool],
    ) -> None:
        self.waiting = list(waiting)
        self.running: dict[str, Planned] = {}
        self.cluster, self.expected, self.is_trained = cluster, expected, is_trained
        self.tried: set[str] = set()
        self.blocked: set[str] = set()  # until another trial ends
        self.stopped: str | None = None

    def next(self, capacity: int) -> Planned | None:
        shares = self.cluster.shares
        pending = {planned.id for planned in (*self.waiting, *self.running.values())}
        measuring = {
            shares.kind_of(planned.trial) for planned in self.running.values() if shares.of(planned.trial) is None
        }
        for place, planned in enumerate(self.waiting):
            if shares.of(planned.trial) is None and shares.kind_of(planned.trial) in measuring:
                continue  # another trial of its kind measures their memory
            if planned.id in self.blocked or not _ready(planned, pending, self.is_trained):
                self.blocked.add(planned.id)
                continue
            if not self.cluster.budget.holds(self.expected.get(planned.id), self.cluster.shares.gpus(planned.trial)):
                self.stopped = self.cluster.budget.sentence if not self.running else None
                return None
            self.running[planned.id] = self.waiting.pop(place)
            self.tried.add(planned.id)
            return planned
        return None

    def busy(self) -> bool:
        return bool(self.running)

    def epoch(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        return False

    def ended(self, trial: str, outcome: Mapping[str, Any]) -> None:
        self.blocked.clear()
        self.running.pop(trial, None)

    def again(self, trial: str) -> None:
        self.waiting.insert(0, self.running.pop(trial))
        self.tried.discard(trial)


def _waiting(
    plan: Plan, statuses: Sequence[Status], again: set[str], tried: set[str], is_trained: Callable[[Trial], bool]
) -> list[Planned]:
    """Trials to run, with those of their prerequisites that are not trained by current code on current data.

    Of one that diverged, that is kept: what starts from it has diverged with it.
    """
    of = {status.planned.id: status for status in statuses}
    ids = {status.planned.id for status in statuses if status.state in again}
    untouched = list(ids)
    is_trained = functools.cache(is_trained)  # many start from one
    while untouched:
        for trial in of[untouched.pop()].planned.trial.prerequisites.values():
            status = of[trial.id]
            if trial.id not in ids and status.state != "running" and not is_trained(trial):
                ids.add(trial.id)
                untouched.append(trial.id)
    return [planned for planned in plan.trials if planned.id in ids - tried]


def _ready(planned: Planned, pending: Collection[str], is_trained: Callable[[Trial], bool]) -> bool:
    """All that it starts from is trained and will not be trained again before it: it is not `pending`."""
    return all(trial.id not in pending and is_trained(trial) for trial in planned.trial.prerequisites.values())


def _blocked(waiting: Sequence[Planned], statuses: Sequence[Status], is_trained: Callable[[Trial], bool]) -> str:
    """Why none of them can run."""
    of = {status.planned.id: status for status in statuses}
    lacking = [
        of[trial.id] for planned in waiting for trial in planned.trial.prerequisites.values() if not is_trained(trial)
    ]
    first = lacking[0]
    why = (first.failure or "it is not trained yet: run again").splitlines()[0]
    return (
        f"{BLOCKED}: {len(waiting)} trials start from others that are not trained; "
        f"{first.planned.id} ({first.planned.trial.method_name}): {why}"
    )

"""Plan -> Ray Tune -> rows.  The only module that imports Ray.

The results folder, not Ray, is the memory: a run schedules what the plan still lacks, every worker writes its own
parquet rows and keeps its own checkpoint there, and Tune's folder is scratch.  So a killed worker is retried by Tune
and goes on from its checkpoint, and a killed driver or a killed Ray is followed by the next `run`, which does the
same.

Which Ray to use (environment variable RAY_ADDRESS) and how it authenticates is decided when this module is imported:
Ray reads both when it is imported itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lnl.execution.job import Settings
from lnl.execution.packing import Budget
from lnl.execution.queue import _blocked, _Queue, _ready, _waiting
from lnl.execution.ray_cluster import POLL_S, _Cluster, _cluster
from lnl.execution.submit import _submit
from lnl.execution.tune_adapter import PENDING, _Scheduler, _tune, _Watch, _Work
from lnl.storage import checkpoints
from lnl.storage.files import listed
from lnl.storage.leases import tidy_leases
from lnl.storage.outcomes import is_outcome
from lnl.storage.places import partition
from lnl.storage.store import Store
from lnl.study import checks
from lnl.study.plan import Plan
from lnl.study.status import Status, reconcile
from lnl.system import machine, processes
from lnl.trial.config import Trial
from lnl.trial.provenance import Current
from lnl.trial.trained import is_trained


@dataclass
class Outcome:
    """What one `run_plan` did."""

    statuses: list[Status]
    stopped: str | None = None  # one sentence, where it ended early


def run_plan(
    plan: Plan,
    settings: Settings,
    progress: Any,
    *,
    arms: Sequence[str] | None = None,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> Outcome:
    """Run what the plan lacks (failed trials again, stale ones on request) and return how it then stands.

    `budget`: what the whole run may still take; none where none is given.

    `progress` has `start(todo, statuses)`, `epoch(trial, metrics)`, `end(trial, outcome)`, `say(sentence)` and
    `finish()`.  Raises `StorageError` or `lnl.data.DataError` before anything starts where results or data cannot be
    had, `ConnectionError` where the cluster cannot.
    """
    processes.clear(machine.temporary_folders())
    store = Store(settings.storage)
    again = {"missing", "failed", *(["stale"] if rerun_stale else [])}
    tried: set[str] = set()
    stopped: str | None = None
    cluster: _Cluster | None = None

    chosen = plan.of_arms(arms)

    def standing() -> list[Status]:
        return [status for status in reconcile(plan, store, current) if status.planned.id in chosen]

    def trained(trial: Trial) -> bool:
        return is_trained(store, plan.study, trial, current)

    current = Current(settings.data)
    todo = [status.planned for status in standing() if status.state in again]
    checks.check(todo, settings.data, read=True)
    current = Current(settings.data)  # with data sets that were fetched: results of other data are known only now
    statuses, checked = standing(), {planned.id for planned in todo}
    more = [status.planned for status in statuses if status.state in again and status.planned.id not in checked]
    checks.check(more, settings.data, read=True)
    job_of = _submit(plan, store, current, rerun_stale)
    with contextlib.ExitStack() as stack:
        while stopped is None:
            waiting = _waiting(plan, statuses, again, tried, trained)
            ids = {planned.id for planned in waiting}
            if any(_ready(planned, ids, trained) for planned in waiting):
                asked = [planned.trial for planned in waiting]
                connection = _cluster(plan, settings, progress, asked, budget, current)
                cluster = cluster or stack.enter_context(connection)
                progress.start(waiting, statuses)
                stack.callback(progress.finish)
                expected = {status.planned.id: status.seconds for status in statuses}
                queue = _Queue(waiting, cluster, expected, trained)
                watch = _Watch(progress, queue, cluster)
                work = _Work(watch, cluster, job_of, ahead=PENDING)
                _tune(watch, work, _Scheduler(work, store, plan.study))
                stopped = cluster.stopped = watch.stopped or queue.stopped
                tried |= queue.tried - watch.taken
            elif settings.wait and any(status.state == "running" for status in statuses):
                if cluster:
                    cluster.look()
                time.sleep(POLL_S)  # another driver trains them; should it die, they are tried here
            elif waiting:
                stopped = _blocked(waiting, statuses, trained)
            else:
                break
            statuses = standing()
    tidy_leases(store, plan.study, {status.planned.id for status in statuses if status.state in ("done", "stale")})
    checkpoints.tidy(store, plan.study)
    return Outcome(statuses, stopped)


def run_search(
    plan: Plan,
    searches: Any,
    settings: Settings,
    progress: Any,
    *,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> str | None:
    """Train what the searches ask for until all have spent their budgets; returns a sentence where it ended early.

    `searches` is a `lnl.search.searches.Searches`.  Raises `StorageError` before anything starts where results cannot
    be had.
    """
    processes.clear(machine.temporary_folders())
    store = Store(settings.storage)
    job_of = _submit(plan, store, searches.current, rerun_stale)
    stopped: str | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(searches.close)
        begin_with = [search.cell.trial for search in searches.searches]
        connection = _cluster(plan, settings, progress, begin_with, budget, searches.current)
        cluster = stack.enter_context(connection)
        stack.callback(progress.finish)
        progress.start()
        watch = _Watch(progress, searches, cluster)
        work = _Work(watch, cluster, job_of)
        scheduler = _Scheduler(work, store, plan.study)
        while stopped is None and not searches.spent():
            if searches.work():
                work.living.clear()
                _tune(watch, work, scheduler)
                stopped = cluster.stopped = watch.stopped
            elif settings.wait:
                cluster.look()
                time.sleep(POLL_S)  # another driver evaluates the rest; should it die, that is taken over
            else:
                break
    rows, _ = store.read("trials", plan.study, ["trial", "status", "failure_class"])
    trials = set(rows.loc[is_outcome(rows) | (rows["status"] == "pruned"), "trial"])
    told = listed(store.root / "suggestions" / partition(plan.study), "*.parquet")
    tidy_leases(store, plan.study, trials | {f"search-{path.stem}" for path in told})
    checkpoints.tidy(store, plan.study)
    return stopped

"""Running a plan or its searches: plan -> Ray Tune -> rows.

The results folder, not Ray, is the memory: a run schedules what the plan still lacks, every worker writes its own
parquet rows and keeps its own checkpoint there, and Tune's folder is scratch.  So a killed worker is retried by Tune
and goes on from its checkpoint, and a killed driver or a killed Ray is followed by the next `run`, which does the
same.

`run_plan` trains the trials of a plan, `run_search` those that searches ask for.  Both set Ray's environment variables
and only then import the modules that import Ray.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from lnl.execution import ray_environment
from lnl.execution.cluster import Cluster
from lnl.execution.interfaces import PlanDisplay, RunRequest, SearchDisplay, SearchSource, Work
from lnl.execution.job import RunSettings
from lnl.execution.packing import Budget
from lnl.execution.queue import PlanQueue, is_ready, trials_to_run, why_blocked
from lnl.execution.submit import JobOf, submit
from lnl.storage import checkpoints
from lnl.storage.files import listed
from lnl.storage.leases import tidy_leases
from lnl.storage.outcomes import is_outcome
from lnl.storage.part_names import partition
from lnl.storage.store import Store
from lnl.study import checks
from lnl.study.plan import Plan, Planned
from lnl.study.status import Status, reconcile
from lnl.system import machine, processes
from lnl.trial.config import Trial
from lnl.trial.provenance import Current
from lnl.trial.trained import is_trained

POLL_S = 2.0  # while another driver finishes its trials


@dataclass(frozen=True)
class RunResult:
    """How a plan stands after `run_plan`."""

    statuses: list[Status]
    stopped: str | None = None  # one sentence, where the run ended early


def run_plan(
    plan: Plan,
    settings: RunSettings,
    display: PlanDisplay,
    *,
    arms: Sequence[str] | None = None,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> RunResult:
    """Run what the plan lacks (failed trials again, stale ones on request) and return how it then stands.

    `budget`: what the whole run may still take; None: no limit.

    Raises `StorageError` or `lnl.data.DataError` before anything starts where results or data cannot be had,
    `ConnectionError` where the cluster cannot.
    """
    processes.clear(machine.temporary_folders())
    return _PlanRun(plan, settings, display, arms, rerun_stale, budget).run()


class _PlanRun:
    """One call of `run_plan`: rounds of training, until nothing is left that this driver can train."""

    def __init__(
        self,
        plan: Plan,
        settings: RunSettings,
        display: PlanDisplay,
        arms: Sequence[str] | None,
        rerun_stale: bool,
        budget: Budget | None,
    ) -> None:
        self.plan, self.settings, self.display, self.budget = plan, settings, display, budget
        self.store, self.current = Store(settings.storage), Current(settings.data)
        self.rerun_stale = rerun_stale
        self.states = {"missing", "failed", *(["stale"] if rerun_stale else [])}  # of trials that are run
        self.chosen = plan.of_arms(arms)
        self.tried: set[str] = set()
        self.cluster: Cluster | None = None

    def run(self) -> RunResult:
        statuses = self._checked_statuses()
        job_of = submit(self.plan, self.store, self.current, self.rerun_stale)
        stopped: str | None = None
        with contextlib.ExitStack() as stack:
            while stopped is None:
                waiting = trials_to_run(self.plan, statuses, self.states, self.tried, self._is_trained)
                if self._can_start(waiting):
                    stopped = self._train(waiting, statuses, job_of, stack)
                elif self.settings.wait and any(status.state == "running" for status in statuses):
                    self._wait_for_other_drivers()
                elif waiting:
                    stopped = why_blocked(waiting, statuses, self._is_trained)
                else:
                    break
                statuses = self._statuses()
        finished = {status.planned.id for status in statuses if status.state in ("done", "stale")}
        _tidy(self.store, self.plan.study, finished)
        return RunResult(statuses, stopped)

    def _checked_statuses(self) -> list[Status]:
        """How the plan stands, once each data set to be used was loaded, each network built and each split made."""
        todo = self._to_run(self._statuses())
        checks.check(todo, self.settings.data, read=True)
        self.current = Current(self.settings.data)  # with data sets that were fetched: only now are results compared
        statuses, checked = self._statuses(), {planned.id for planned in todo}
        more = [planned for planned in self._to_run(statuses) if planned.id not in checked]
        checks.check(more, self.settings.data, read=True)
        return statuses

    def _to_run(self, statuses: Sequence[Status]) -> list[Planned]:
        return [status.planned for status in statuses if status.state in self.states]

    def _statuses(self) -> list[Status]:
        keep, again = self.settings.keep, self.settings.rerun_unkept
        statuses = reconcile(self.plan, self.store, self.current, keep=keep, rerun_unkept=again)
        return [status for status in statuses if status.planned.id in self.chosen]

    def _is_trained(self, trial: Trial) -> bool:
        return is_trained(self.store, self.plan.study, trial, self.current)

    def _can_start(self, waiting: Sequence[Planned]) -> bool:
        ids = {planned.id for planned in waiting}
        return any(is_ready(planned, ids, self._is_trained) for planned in waiting)

    def _train(
        self, waiting: Sequence[Planned], statuses: Sequence[Status], job_of: JobOf, stack: contextlib.ExitStack
    ) -> str | None:
        """Train the waiting trials; returns why the run ended early.  `stack` disconnects from Ray at the end."""
        if self.cluster is None:
            trials = [planned.trial for planned in waiting]
            request = RunRequest(self.plan, self.settings, self.display, trials, self.budget, self.current)
            self.cluster = stack.enter_context(_connected(request))
            stack.callback(self.display.finish)
        from lnl.execution.tune_adapter import TuneAdapter

        self.display.start(waiting, statuses)
        expected = {status.planned.id: status.seconds for status in statuses}
        queue = PlanQueue(waiting, self.cluster, expected, self._is_trained)
        ahead = ray_environment.PENDING
        adapter = TuneAdapter(Work(queue, self.display, self.cluster, job_of, self.store, self.plan.study, ahead))
        adapter.run()
        self.cluster.stopped = adapter.stopped or queue.stopped
        self.tried |= queue.tried - adapter.taken
        return self.cluster.stopped

    def _wait_for_other_drivers(self) -> None:
        """Another driver trains what is left; should it die, its trials are tried here."""
        if self.cluster:
            self.cluster.look()
        time.sleep(POLL_S)


def run_search(
    plan: Plan,
    searches: SearchSource,
    settings: RunSettings,
    display: SearchDisplay,
    *,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> str | None:
    """Train what the searches ask for until all have spent their budgets; returns a sentence where it ended early.

    Raises `StorageError` before anything starts where results cannot be had.
    """
    processes.clear(machine.temporary_folders())
    store = Store(settings.storage)
    job_of = submit(plan, store, searches.current, rerun_stale)
    stopped: str | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(searches.close)
        request = RunRequest(plan, settings, display, searches.first_trials(), budget, searches.current)
        cluster = stack.enter_context(_connected(request))
        from lnl.execution.tune_adapter import TuneAdapter

        stack.callback(display.finish)
        display.start()
        adapter = TuneAdapter(Work(searches, display, cluster, job_of, store, plan.study))
        while stopped is None and not searches.spent():
            if searches.work():
                adapter.run()
                stopped = cluster.stopped = adapter.stopped
            elif settings.wait:
                cluster.look()
                time.sleep(POLL_S)  # another driver evaluates the rest; should it die, that is taken over
            else:
                break
    rows, _ = store.read("trials", plan.study, ["trial", "status", "failure_class"])
    trials = set(rows.loc[is_outcome(rows) | (rows["status"] == "pruned"), "trial"])
    suggestions = listed(store.root / "suggestions" / partition(plan.study), "*.parquet")
    _tidy(store, plan.study, trials | {f"search-{path.stem}" for path in suggestions})
    return stopped


def _connected(request: RunRequest) -> AbstractContextManager[Cluster]:
    """A connection to Ray, whose environment variables are set before it is imported."""
    ray_environment.prepare(request.settings.address)
    from lnl.execution.ray_cluster import cluster_of_run

    return cluster_of_run(request)


def _tidy(store: Store, study: str, finished: set[str]) -> None:
    """Remove leases and checkpoints that killed workers have left of finished trials."""
    tidy_leases(store, study, finished)
    checkpoints.tidy(store, study)

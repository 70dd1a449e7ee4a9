"""Runs without Ray: a driver trains its trials itself, one after another.

All else is real: the command, the plan, its queue or its searches, leases, the worker, its rows.  So tests whose
subject is not Ray start no cluster and no workers, which cost as much CPU as thirty small trials.

    python tests/without_ray.py STUDY [ARGUMENT…]
"""

from __future__ import annotations

import contextlib
import runpy
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from lnl.execution import runner
from lnl.execution.cluster import Cluster, Machines
from lnl.execution.interfaces import Display, TrialSource
from lnl.execution.job import RunSettings
from lnl.execution.packing import Budget, Shares
from lnl.execution.submit import JobOf
from lnl.execution.worker import execute
from lnl.storage.objects import StorageError
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.trial.config import Trial
from lnl.trial.provenance import Current


class InThisProcess:
    """In the place of `lnl.execution.tune_adapter.TuneAdapter`."""

    def __init__(
        self,
        source: TrialSource,
        display: Display,
        cluster: Cluster,
        job_of: JobOf,
        store: Store,
        study: str,
        ahead: int = 0,
    ) -> None:
        self.source, self.display, self.cluster, self.job_of = source, display, cluster, job_of
        self.store, self.study = store, study
        self.stopped: str | None = None
        self.taken: set[str] = set()

    def run(self) -> None:
        """Train until the source has nothing more to give, or the storage fails."""
        try:
            while self.stopped is None and (planned := self.source.next(1)):
                self._train(planned)
        except StorageError as error:
            self.stopped = str(error)

    def _train(self, planned: Planned) -> None:
        trial, job, outcome = planned.id, self.job_of(planned), {}
        gpus = self.cluster.begin(planned, self.source.expected_seconds(trial))
        self.cluster.budget.start(trial)
        self.display.begin(trial, job)

        def report(told: Any) -> None:
            if "outcome" in told:
                outcome.update(told)
                return
            self.display.epoch(trial, told)
            if self.source.epoch(trial, told):
                self.store.request_prune(self.study, trial)

        execute(job, replace(self.cluster.settings, gpus_per_trial=gpus), report)
        if outcome["outcome"] == "storage":
            self.stopped = outcome["message"]
        if outcome["outcome"] == "taken":
            self.taken.add(trial)
        self.cluster.end(trial, outcome)  # type: ignore[arg-type]
        self.source.ended(trial, outcome)  # type: ignore[arg-type]
        self.display.end(trial, outcome)  # type: ignore[arg-type]


@contextlib.contextmanager
def connected(
    plan: Plan,
    settings: RunSettings,
    display: Display,
    trials: Sequence[Trial],
    budget: Budget | None,
    current: Current,
) -> Iterator[Cluster]:
    """In the place of `lnl.execution.runner._connected`."""
    machines: Machines = {"resources": {"CPU": 1.0}, "nodes": 1, "hosts": [socket.gethostname()]}
    settings = replace(settings, gpus_per_trial=0.0)
    yield Cluster(settings, Shares(0.0), budget or Budget(), lambda: machines, lambda changed: None, machines)


def main() -> None:
    """Run a study's file as `python` does."""
    module = ModuleType("lnl.execution.tune_adapter")
    module.TuneAdapter = InThisProcess  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    runner._connected = connected
    sys.argv = sys.argv[1:]
    sys.path[0] = str(Path(sys.argv[0]).resolve().parent)  # beside this file lies a package `analysis`
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()

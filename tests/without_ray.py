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
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from lnl.execution import runner
from lnl.execution.cluster import Cluster, Machines
from lnl.execution.interfaces import RunRequest, Work
from lnl.execution.packing import Budget, Shares
from lnl.execution.worker import execute
from lnl.storage.objects import StorageError
from lnl.study.plan import Planned


class InThisProcess:
    """An `Adapter` in the place of `lnl.execution.tune_adapter.TuneAdapter`."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.stopped: str | None = None
        self.taken: set[str] = set()

    def run(self) -> None:
        try:
            while self.stopped is None and (planned := self.work.source.next(1)):
                self._train(self.work, planned)
        except StorageError as error:
            self.stopped = str(error)

    def _train(self, work: Work, planned: Planned) -> None:
        trial, job, outcome = planned.id, work.job_of(planned), {}
        gpus = work.cluster.begin(planned, work.source.expected_seconds(trial))
        work.cluster.budget.start(trial)
        work.display.begin(trial, job)

        def report(told: Any) -> None:
            if "outcome" in told:
                outcome.update(told)
                return
            work.display.epoch(trial, told)
            if work.source.epoch(trial, told):
                work.store.request_prune(work.study, trial)

        execute(job, replace(work.cluster.settings, gpus_per_trial=gpus), report)
        if outcome["outcome"] == "storage":
            self.stopped = outcome["message"]
        if outcome["outcome"] == "taken":
            self.taken.add(trial)
        work.cluster.end(trial, outcome)  # type: ignore[arg-type]
        work.source.ended(trial, outcome)  # type: ignore[arg-type]
        work.display.end(trial, outcome)  # type: ignore[arg-type]


@contextlib.contextmanager
def connected(request: RunRequest) -> Iterator[Cluster]:
    """In the place of `lnl.execution.runner._connected`."""
    machines: Machines = {"resources": {"CPU": 1.0}, "nodes": 1, "hosts": [socket.gethostname()]}
    settings, budget = replace(request.settings, gpus_per_trial=0.0), request.budget or Budget()
    yield Cluster(settings, Shares(0.0), budget, lambda: machines, lambda changed: None, machines)


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

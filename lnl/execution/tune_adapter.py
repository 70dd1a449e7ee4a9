"""The trials of a `TrialSource` as trials of Ray Tune.  Import it after `ray_environment.prepare`.

`TuneAdapter` runs them.  Behind it three of Tune's own kinds of object meet: `_Suggest`, its search algorithm, asks the
source for trials; `_Events`, its callback, passes events on to the source and to the display; `_Pruning`, its
scheduler, asks workers to end trials early.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import ray
from ray import tune
from ray.air._internal import usage
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from lnl.execution.cluster import Cluster
from lnl.execution.interfaces import Adapter, Display, TrialSource, Work
from lnl.execution.job import Job
from lnl.execution.queue import INTERRUPTED
from lnl.execution.ray_connection import code_folder
from lnl.execution.submit import JobOf
from lnl.storage.objects import StorageError
from lnl.storage.secrets import mask
from lnl.storage.store import Store
from lnl.study.plan import Planned
from lnl.system import processes, user_code
from lnl.trial import code_hash
from lnl.trial.reports import TrialOutcome

RESOURCES_S = 1.0  # between two questions to Ray for the cluster's resources
RETRIES = 3  # of infrastructure failures (a lost worker or node), per trial and run

P = ParamSpec("P")
T = TypeVar("T")


class TuneAdapter(Adapter):
    """Trains with Ray Tune."""

    def __init__(self, work: Work) -> None:
        self.cluster = work.cluster
        self._events = _Events(work.display, work.source, work.cluster)
        self._suggest = _Suggest(self._events, work.source, work.cluster, work.job_of, work.ahead)
        self._pruning = _Pruning(self._suggest, self._events, work.source, work.store, work.study)

    @property
    def stopped(self) -> str | None:
        return self._events.stopped

    @property
    def taken(self) -> set[str]:
        return self._events.taken

    def run(self) -> None:
        self._suggest.running.clear()
        with _interrupts(self._events), processes.scratch("tune") as scratch:
            tuner = self._tuner(str(scratch))
            if os.environ.get("RAY_USAGE_STATS_ENABLED") == "0":
                # To count callbacks for these statistics Ray imports wandb and MLflow, which takes seconds.
                usage.tag_callbacks = lambda callbacks: False
            try:
                tuner.fit()
            except ray.exceptions.RayError as error:
                self._events.stopped = (
                    f"Ray was lost ({type(error).__name__}). What is finished is stored: run again to go on."
                )

    def _tuner(self, scratch: str) -> tune.Tuner:
        settings = self.cluster.settings
        cpus = settings.cpus_per_trial

        def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
            # Travels with the worker: with anything of lnl's own in it, lnl would be imported from the driver's files.
            wanted = {"CPU": cpus, "GPU": config["job"]["gpus"]}
            return tune.PlacementGroupFactory([{kind: share for kind, share in wanted.items() if share}])

        worker = _worker(str(code_folder()), user_code.carried(), code_hash.carried(), pickle.dumps(settings))
        return tune.Tuner(
            tune.with_resources(worker, resources),
            tune_config=tune.TuneConfig(
                search_alg=self._suggest,
                scheduler=self._pruning,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_id,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=tune.RunConfig(
                name=f"run-{secrets.token_hex(4)}",
                storage_path=scratch,
                verbose=0,
                callbacks=[self._events],
                stop=_Stop(self._events),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )


def _worker(
    code: str, own: bytes, hashes: tuple[str, dict[tuple[str, str | None], str]], settings: bytes
) -> Callable[[dict[str, Any]], None]:
    """The function that a worker calls with a trial's configuration.

    It travels by value, with plain data only, and imports lnl when it is called: from the folder `code`, where the
    machine has it, whatever has happened to the files that the driver was started from.  `own`: the user's own code;
    `hashes`: what the driver knows of `lnl.trial.code_hash`.
    """

    def work(config: dict[str, Any]) -> None:
        if os.path.isdir(code) and code not in sys.path:
            sys.path.insert(0, code)
        from lnl.execution.grouped import Grouped
        from lnl.execution.job import Job
        from lnl.execution.worker import execute
        from lnl.system import memory, user_code
        from lnl.trial import code_hash

        memory.keep_freed()
        user_code.receive(own)
        code_hash.receive(*hashes)
        of_trial = replace(pickle.loads(settings), gpus_per_trial=config["job"]["gpus"])
        job = Job.from_text(config["job"]["job"])
        # A search may end a trial after any epoch, and the trial waits for that.
        execute(job, of_trial, Grouped(tune.report) if job.search is None else Grouped(tune.report, every_s=0))

    return work


def _config(planned: Planned, job: Job, gpus: float) -> dict[str, Any]:
    """A Tune configuration; the job is text, because Tune takes dots and slashes in keys for its own."""
    return {"id": planned.id, "job": job.to_text(), "gpus": gpus}


def _job(trial: Any) -> Job:
    """The job of a Tune trial."""
    return Job.from_text(trial.config["job"]["job"])


def _trial_id(trial: Any) -> str:
    """Our id of a Tune trial."""
    return str(trial.config["job"]["id"])


def _trial_folder(trial: Any) -> str:
    """A folder in Tune's scratch; a trial may come twice."""
    return f"{_trial_id(trial)}-{trial.trial_id}"


class _Events(tune.Callback):
    """Passes Tune's events on to the display and to the source of trials.

    It stops the run where the storage fails, the budget is spent or the user interrupts.
    """

    def __init__(self, display: Display, source: TrialSource, cluster: Cluster) -> None:
        self.display, self.source, self.cluster = display, source, cluster
        self.stopped: str | None = None
        self.taken: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.cluster.budget.start(str(trial))
        self.guarded(self.display.begin, str(trial), _job(trial))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.guarded(self.cluster.look)
        if self.stopped is None and self.cluster.budget.is_spent():
            self.stopped = self.cluster.budget.sentence

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        for report in result["reports"]:
            if "outcome" in report:
                self._outcome(str(trial), report)
            else:
                self.guarded(self.display.epoch, str(trial), report)

    def _outcome(self, trial: str, outcome: TrialOutcome) -> None:
        if outcome["outcome"] == "storage":
            self.stopped = outcome["message"]
        if outcome["outcome"] == "taken":
            self.taken.add(trial)
        self.end(trial, outcome)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        message = f"{self._reason(trial)}, {RETRIES + 1} times by now; run again to go on."
        self.end(str(trial), {"outcome": "failed", "message": message})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.cluster.budget.wait(str(trial))
        name = f"{_job(trial).arm} {trial}"
        self.guarded(self.display.say, f"lost    {name}: {self._reason(trial)}; it goes on from its last checkpoint.")

    def _reason(self, trial: Any) -> str:
        """What ended a trial's worker, in a line."""
        with contextlib.suppress(OSError):
            text = Path(trial.error_file or os.devnull).read_text(encoding="utf-8", errors="replace").strip()
            if text and "The actor died" not in text and "The actor is dead" not in text:
                return mask(f"its worker failed ({text.splitlines()[-1].strip()})")
        return "its worker died"

    def end(self, trial: str, outcome: TrialOutcome) -> None:
        """A trial has ended: tell the source and the display, unless it runs again with more memory."""
        if sentence := self.cluster.end(trial, outcome):
            self.guarded(self.source.again, trial)
            self.guarded(self.display.say, sentence)
        else:
            self.guarded(self.source.ended, trial, outcome)
            self.guarded(self.display.end, trial, outcome)

    def guarded(self, act: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T | None:
        """Call a function; where the storage fails end the run in order, as Tune would not."""
        try:
            return act(*arguments, **options)
        except StorageError as error:
            self.stopped = str(error)
            return None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles callbacks, and a live display cannot be pickled.
        return {"display": None, "source": None, "cluster": None, "stopped": self.stopped, "taken": self.taken}


class _Stop(tune.Stopper):
    """Ends the run as soon as it is stopped, running trials included."""

    def __init__(self, events: _Events) -> None:
        self.events = events

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.events.stopped is not None

    def stop_all(self) -> bool:
        return self.events.stopped is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Stop:
        return self  # Tune copies its settings; the events must stay those that hear the user


class _Suggest(Searcher):
    """The source of trials as Tune's search algorithm: as many at once as the cluster holds, and some `ahead`."""

    def __init__(self, events: _Events, source: TrialSource, cluster: Cluster, job_of: JobOf, ahead: int) -> None:
        super().__init__()
        self.events, self.source, self.cluster, self.job_of, self.ahead = events, source, cluster, job_of, ahead
        self.running: dict[str, Planned] = {}  # by Tune's id of a trial
        self.resources: Mapping[str, float] = {}  # of the cluster, as last asked for
        self.asked = -math.inf

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # all of that is in the source

    def suggest(self, trial_id: str) -> Any:
        if self.events.stopped:
            return Searcher.FINISHED
        if len(self.running) >= (capacity := self._capacity() + self.ahead):
            return None
        planned = self.events.guarded(self.source.next, capacity)
        if planned is None:
            return None if self.source.busy() and not self.events.stopped else Searcher.FINISHED
        self.running[trial_id] = planned
        gpus = self.cluster.begin(planned, self.source.expected_seconds(planned.id))
        return {"job": _config(planned, self.job_of(planned), gpus)}

    def _capacity(self) -> int:
        """How many trials are wanted at once: those that the cluster can train, and one more, for which it may grow."""
        settings = self.cluster.settings
        if time.monotonic() - self.asked >= RESOURCES_S:  # Tune asks at every report of a worker
            self.resources, self.asked = ray.cluster_resources(), time.monotonic()
        wanted = {"CPU": settings.cpus_per_trial, "GPU": self.cluster.shares.given}
        now = max(1, int(min(self.resources.get(kind, 0.0) / share for kind, share in wanted.items() if share)))
        return now if settings.address == "local" else now + 1

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.running.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the source keeps what it needs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Suggest:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Pruning(FIFOScheduler):
    """Ends trials of searches early: as their source says, or as Ray Tune's ASHA does, one for each search."""

    RUNGS = 9  # ASHA first looks after this part of a trial's epochs
    REDUCTION = 3  # and keeps this part of the suggestions at each rung

    def __init__(self, suggest: _Suggest, events: _Events, source: TrialSource, store: Store, study: str) -> None:
        super().__init__()
        self.suggest, self.events, self.source, self.store, self.study = suggest, events, source, store, study
        self.asha: dict[str, AsyncHyperBandScheduler] = {}  # by search
        self.entered: set[tuple[str, str]] = set()  # searches, and the trials that their ASHA knows

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        alive = {trial.trial_id for trial in tune_controller.get_live_trials() if not trial.is_finished()}
        for gone in self.suggest.running.keys() - alive:  # Tune tells nobody when a worker cannot be used again
            message = "Ray could not use its worker again; run again to go on."
            self.events.end(self.suggest.running.pop(gone).id, {"outcome": "failed", "message": message})
        return super().choose_trial_to_run(tune_controller, **options)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        for report in result["reports"]:
            if "outcome" not in report and not self.events.stopped:
                self._epoch(tune_controller, trial, report)
        return FIFOScheduler.CONTINUE

    def _epoch(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        is_pruned = self.events.guarded(self.source.epoch, str(trial), result)
        if self.source.pruner == "asha":
            is_pruned = self._is_halved_away(tune_controller, trial, result)
        if is_pruned:  # the worker finds the request, writes its rows and ends: Tune would end it before that
            self.events.guarded(self.store.request_prune, self.study, str(trial))

    def _is_halved_away(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> bool:
        """Whether every search that may prune the trial halves it away; ending at its last epoch is no pruning."""
        decisions = []
        for search, epochs in dict(self.source.prunable(str(trial))).items():  # a search may want a trial twice
            if search not in self.asha:
                self.asha[search] = AsyncHyperBandScheduler(
                    time_attr="epoch",
                    metric="validation_accuracy",
                    mode="max",
                    max_t=epochs + 1,
                    grace_period=max(1, epochs // self.RUNGS),
                    reduction_factor=self.REDUCTION,
                )
            if (search, trial.trial_id) not in self.entered:
                self.entered.add((search, trial.trial_id))
                self.asha[search].on_trial_add(tune_controller, trial)
            decision = self.asha[search].on_trial_result(tune_controller, trial, result)
            decisions.append(decision == FIFOScheduler.STOP and result["epoch"] < epochs)
        return bool(decisions) and all(decisions)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Pruning:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def _interrupts(events: _Events) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run in order; the second is Python's own."""

    def handle(number: int, frame: Any) -> None:
        events.stopped = (
            f"{INTERRUPTED}. Finished trials are stored, running ones keep their last checkpoint: run again to go on."
        )
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

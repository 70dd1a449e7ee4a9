"""Trials of a queue or of searches as trials of Ray Tune."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import secrets
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler
from ray.tune.search import Searcher

from lnl.execution.job import Job
from lnl.execution.queue import INTERRUPTED
from lnl.execution.ray_cluster import _Cluster, _code
from lnl.storage.objects import StorageError
from lnl.storage.secrets import mask
from lnl.storage.store import Store
from lnl.study.plan import Planned
from lnl.system import processes

RETRIES = 3  # of infrastructure failures (a lost worker or node), per trial and run
PENDING = 200  # trials that wait for devices within Ray, where an autoscaler sees them


def _tune(watch: _Watch, work: _Work, scheduler: _Scheduler) -> None:
    """One Tuner whose trials are the jobs that `work` hands out."""
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of data mean the same in workers
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # rows go to parquet, not into Tune's scratch folder
    os.environ["TUNE_PRINT_ALL_TRIAL_ERRORS"] = "0"  # `_Watch` says them
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # `_interrupts` handles it
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(PENDING)
    settings = work.cluster.settings

    cpus = settings.cpus_per_trial

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        wanted = {"CPU": cpus, "GPU": config["job"]["gpus"]}
        return tune.PlacementGroupFactory([{kind: share for kind, share in wanted.items() if share}])

    with _interrupts(watch), processes.scratch("tune") as scratch:
        tuner = tune.Tuner(
            tune.with_resources(_work_of(str(_code()), pickle.dumps(settings)), resources),
            tune_config=tune.TuneConfig(
                search_alg=work,
                scheduler=scheduler,
                num_samples=-1,
                reuse_actors=True,
                trial_name_creator=_trial_name,
                trial_dirname_creator=_trial_folder,
            ),
            run_config=tune.RunConfig(
                name=f"run-{secrets.token_hex(4)}",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[watch],
                stop=_Stop(watch),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        try:
            tuner.fit()
        except ray.exceptions.RayError as error:
            watch.stopped = f"Ray was lost ({type(error).__name__}). What is finished is stored: run again to go on."


def _work_of(code: str, settings: bytes) -> Callable[[dict[str, Any]], None]:
    """What a worker does with a trial's configuration.

    It travels as it is, with plain data only, and imports lnl when it is called: from the folder `code`, where the
    machine has it, whatever has happened to the files that the driver was started from.
    """

    def work(config: dict[str, Any]) -> None:
        if os.path.isdir(code) and code not in sys.path:
            sys.path.insert(0, code)
        from lnl.execution.job import Job
        from lnl.execution.worker import execute

        here = replace(pickle.loads(settings), gpus_per_trial=config["job"]["gpus"])
        execute(Job.from_text(config["job"]["job"]), here, tune.report)

    return work


def _as_config(planned: Planned, job: Job, gpus: float) -> dict[str, Any]:
    """A Tune configuration; text, because Tune takes dots and slashes in keys for its own."""
    return {"id": planned.id, "job": job.to_text(), "gpus": gpus}


def _trial_name(trial: Any) -> str:
    """Of a Tune trial, our id."""
    return str(trial.config["job"]["id"])


def _trial_folder(trial: Any) -> str:
    """In Tune's scratch; a trial may come twice."""
    return f"{_trial_name(trial)}-{trial.trial_id}"


class _Watch(tune.Callback):
    """Passes Tune's events on to the progress display and to the source of trials; stops everything where storage
    fails, the budget is spent or the user interrupts.
    """

    def __init__(self, progress: Any, source: Any, cluster: _Cluster) -> None:
        self.progress = progress
        self.source = source  # a `_Queue`, or the `lnl.search.searches.Searches`
        self.cluster = cluster
        self.stopped: str | None = None
        self.taken: set[str] = set()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.cluster.budget.start(str(trial))
        self.guarded(self.progress.begin, str(trial), json.loads(trial.config["job"]["job"]))

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self.guarded(self.cluster.look)
        if self.stopped is None and self.cluster.budget.is_spent():
            self.stopped = self.cluster.budget.sentence

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "outcome" not in result:
            self.guarded(self.progress.epoch, str(trial), result)
            return
        if result["outcome"] == "storage":
            self.stopped = result["message"]
        if result["outcome"] == "taken":
            self.taken.add(str(trial))
        self.end(str(trial), result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        message = f"{self._reason(trial)}, {RETRIES + 1} times by now; run again to go on."
        self.end(str(trial), {"outcome": "failed", "message": message})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.cluster.budget.wait(str(trial))
        name = f"{json.loads(trial.config['job']['job'])['arm']} {trial}"
        self.guarded(self.progress.say, f"lost    {name}: {self._reason(trial)}; it goes on from its last checkpoint.")

    def _reason(self, trial: Any) -> str:
        """What ended its worker, in a line."""
        with contextlib.suppress(OSError):
            text = Path(trial.error_file or os.devnull).read_text(encoding="utf-8", errors="replace").strip()
            if text and "The actor died" not in text and "The actor is dead" not in text:
                return mask(f"its worker failed ({text.splitlines()[-1].strip()})")
        return "its worker died"

    def end(self, trial: str, outcome: Mapping[str, Any]) -> None:
        if more := self.cluster.end(trial, outcome):
            self.guarded(self.source.again, trial)
            self.guarded(self.progress.say, more)
        else:
            self.guarded(self.source.ended, trial, outcome)
            self.guarded(self.progress.end, trial, outcome)

    def guarded(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Call it; where the storage fails end the run in order, as Tune would not."""
        try:
            return act(*arguments)
        except StorageError as error:
            self.stopped = str(error)
            return None

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles callbacks, and a live display cannot be.
        return {"progress": None, "source": None, "cluster": None, "stopped": self.stopped, "taken": self.taken}


class _Stop(tune.Stopper):
    """Ends the run as soon as the watch says so, running trials included."""

    def __init__(self, watch: _Watch) -> None:
        self.watch = watch

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return self.watch.stopped is not None

    def stop_all(self) -> bool:
        return self.watch.stopped is not None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Stop:
        return self  # Tune copies its settings; the watch must stay the one that hears the user


class _Work(Searcher):
    """The source of trials as Tune's search algorithm: as many at once as the cluster holds, and some `ahead`."""

    def __init__(self, watch: _Watch, cluster: _Cluster, job_of: Callable[[Planned], Job], ahead: int = 0) -> None:
        super().__init__()
        self.watch, self.cluster, self.job_of, self.ahead = watch, cluster, job_of, ahead
        self.living: dict[str, Planned] = {}  # Tune's id of a trial -> ours

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True  # that is all in the source

    def suggest(self, trial_id: str) -> Any:
        source = self.watch.source
        if self.watch.stopped:
            return Searcher.FINISHED
        if len(self.living) >= (capacity := _capacity(self.cluster) + self.ahead):
            return None
        planned = self.watch.guarded(source.next, capacity)
        if planned is None:
            return None if source.busy() and not self.watch.stopped else Searcher.FINISHED
        self.living[trial_id] = planned
        gpus = self.cluster.begin(planned, getattr(source, "expected", {}).get(planned.id))
        return {"job": _as_config(planned, self.job_of(planned), gpus)}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.living.pop(trial_id, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what is asked for stands in Optuna's storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def __deepcopy__(self, memo: dict[int, Any]) -> _Work:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _capacity(cluster: _Cluster) -> int:
    """How many trials are wanted at once: what the cluster trains, and one more that makes it grow, if it can."""
    has, settings = ray.cluster_resources(), cluster.settings
    wanted = {"CPU": settings.cpus_per_trial, "GPU": cluster.shares.given}
    now = max(1, int(min(has.get(kind, 0.0) / share for kind, share in wanted.items() if share)))
    return now if settings.address == "local" else now + 1


class _Scheduler(FIFOScheduler):
    """Gives up trials of searches: as Optuna's pruner says, or as Ray Tune's ASHA, one for each cell."""

    RUNGS = 9  # ASHA first looks after this part of a trial's epochs
    REDUCTION = 3  # and keeps this part of the suggestions at each rung

    def __init__(self, work: _Work, store: Store, study: str) -> None:
        super().__init__()
        self.work, self.watch, self.store, self.study = work, work.watch, store, study
        self.asha: dict[str, AsyncHyperBandScheduler] = {}
        self.entered: set[tuple[str, str]] = set()  # searches and trials that their ASHA knows

    def choose_trial_to_run(self, tune_controller: Any, **options: Any) -> Any:
        alive = {trial.trial_id for trial in tune_controller.get_trials() if not trial.is_finished()}
        for gone in self.work.living.keys() - alive:  # Tune tells nobody when a worker cannot be used again
            message = "Ray could not use its worker again; run again to go on."
            self.watch.end(self.work.living.pop(gone).id, {"outcome": "failed", "message": message})
        return super().choose_trial_to_run(tune_controller, **options)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if "outcome" in result or self.watch.stopped:
            return FIFOScheduler.CONTINUE
        name = str(trial)
        stop = self.watch.guarded(self.watch.source.epoch, name, result)
        if self.watch.source.pruner == "asha":
            stop = self._halves(tune_controller, trial, result)
        if stop:  # its worker sees the mark, writes its rows and ends: Tune would end it before that
            self.watch.guarded(self.store.give_up, self.study, name)
        return FIFOScheduler.CONTINUE

    def _halves(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> bool:
        """Whether every search that the trial is a suggestion of halves it away; the last epoch is no pruning."""
        wishes = []
        for cell, epochs in dict(self.watch.source.prunable(str(trial))).items():
            if cell not in self.asha:
                self.asha[cell] = AsyncHyperBandScheduler(
                    time_attr="epoch",
                    metric="validation_accuracy",
                    mode="max",
                    max_t=epochs + 1,
                    grace_period=max(1, epochs // self.RUNGS),
                    reduction_factor=self.REDUCTION,
                )
            if (cell, trial.trial_id) not in self.entered:
                self.entered.add((cell, trial.trial_id))
                self.asha[cell].on_trial_add(tune_controller, trial)
            decision = self.asha[cell].on_trial_result(tune_controller, trial, result)
            wishes.append(decision == FIFOScheduler.STOP and result["epoch"] < epochs)
        return bool(wishes) and all(wishes)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Scheduler:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {}


@contextlib.contextmanager
def _interrupts(watch: _Watch) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run in order; the second is Python's own."""

    def handle(number: int, frame: Any) -> None:
        watch.stopped = (
            f"{INTERRUPTED}. Finished trials are stored, running ones keep their last checkpoint: run again to go on."
        )
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

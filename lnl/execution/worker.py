"""One planned trial on one machine: claim it, go on from its checkpoint, train, write its rows.

Workers call `execute`.  It knows no Ray, so tests call it, too.
"""

from __future__ import annotations

import contextlib
import math
import platform
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lnl import data
from lnl.execution import packing
from lnl.execution.job import Job, Settings
from lnl.storage import checkpoints
from lnl.storage.atomic import Overtaken
from lnl.storage.currency import why_stale
from lnl.storage.leases import Lease, LeaseRecord, Scalar, claim
from lnl.storage.logs import Output
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import FAILURES_THAT_ARE_OUTCOMES, accuracies, is_outcome, selection_rules
from lnl.storage.places import canonical, now
from lnl.storage.schema import TRIALS
from lnl.storage.secrets import mask
from lnl.storage.store import Store
from lnl.trial.config import Trial, parse
from lnl.trial.divergence import Diverged
from lnl.trial.provenance import Current
from lnl.trial.reports import Metrics, TrialOutcome, metrics_of
from lnl.trial.run import Execution, Row, Unusable, run
from lnl.trial.trained import DIVERGED, is_trained, save_trained, set_aside_damaged

IN_LEASE = (  # the columns that a lease holds, for the row that another worker writes should its holder be lost
    *("preset", "arm", "setting", "plan_hash", "search", "suggestion"),
    *("gpus", "cpus", "device", "code_hash", "git_commit", "git_dirty", "version_python", "version_torch"),
)
TAKEN: TrialOutcome = {"outcome": "taken"}

Report = Callable[[Metrics | TrialOutcome], None]


def execute(job: Job, settings: Settings, report: Report) -> None:
    """Run one trial here: claim it, go on from its checkpoint, write its rows.

    Every exit but a killed process leaves a row or a report: `report` gets the metrics of each epoch, and at last how
    the attempt ended.
    """
    try:
        outcome = _Work(job, settings).run(report)
        report(outcome)  # without the lease, which the process that goes on with the trial finds free
    except StorageError as error:
        report({"outcome": "storage", "message": str(error)})


class _Work:
    """A job in the hands of this worker: from its claim to the release of its lease."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job, self.settings = job, settings
        self.store, self.trial = Store(settings.storage), parse(job.trial)
        self.store.check_identity(job.store)
        self.current = Current(settings.data)
        _check_sources(job, self.trial, self.current)
        self.execution = _execution(job, settings, self.trial)
        self.about = _about(job, self.trial, settings, self.execution.torch_device())

    def run(self, report: Report) -> TrialOutcome:
        store, study, trial = self.store, self.job.study, self.trial
        in_lease = {name: self.about[name] for name in IN_LEASE}
        lease, lost_holder = claim(store, study, trial.id, run=self.job.run, **in_lease)
        if lease is None:
            return TAKEN
        with lease:
            if self._is_finished():
                store.tidy(study, trial.id)
                return {"outcome": "done"}  # by another driver, since this one planned, or by a worker lost since
            if self.job.search is not None:
                store.pop_prune_request(study, trial.id)  # clear a request left over from an earlier attempt
            attempt = store.next_attempt(study, trial.id)
            if lost_holder is not None:  # an earlier attempt has ended without a row: it gets its row here
                self._write_lost_attempt(attempt, lost_holder, lease.previous_beat)
                attempt += 1
            output = Output()
            try:
                with output:
                    return self._attempt(lease, attempt, report)
            finally:
                if (text := output.text()) and lease.renew():
                    store.write_log(study, trial.id, attempt, text)

    def _is_finished(self) -> bool:
        """Whether the trial has a row that counts, and what other trials need of it."""
        columns = ["trial", "attempt", "status", "failure_class", "code_hash", "data_hash", "sources_hash"]
        rows, _ = self.store.read("trials", self.job.study, columns, files=f"{self.trial.id}-*")
        finished = rows[is_outcome(rows)]
        is_current = (why_stale(finished, {self.trial.id: self.job.sources}) == "").any() or not self.job.rerun_stale
        is_kept = not self.job.prerequisite or is_trained(self.store, self.job.study, self.trial, self.current)
        return len(finished) > 0 and is_kept and bool(is_current)

    def _write_lost_attempt(self, attempt: int, holder: LeaseRecord, last_beat: datetime | None) -> None:
        row = {
            **self.about,
            **{name: value for name, value in holder.items() if name in IN_LEASE},
            "host": holder["host"].split("/")[0],
            "started_at": min(datetime.fromisoformat(holder["since"]), last_beat or now()),
            "ended_at": last_beat,
            "status": "preempted",
            "failure_class": "preempted",
            "failure_message": (
                "The worker was stopped or lost (killed, or its machine went away); the next attempt goes on."
            ),
            "attempt": attempt,
        }
        with contextlib.suppress(Overtaken):  # it was only cut off, and has written its row by now
            self.store.write_attempt(self.job.study, row, [])
            self.store.write_event(self.job.study, "lost", self.trial.id, attempt=attempt)

    def _attempt(self, lease: Lease, number: int, report: Report) -> TrialOutcome:
        """Train the claimed trial to its end and write its rows."""
        while True:
            attempt = _Attempt(self, lease, number)
            try:
                ending = attempt.train(report)
            except StorageError:
                if lease.renew():
                    raise
                return TAKEN  # another process has finished it meanwhile, and tidied up
            except Exception as error:
                if isinstance(error, checkpoints.Refused) and attempt.state is not None:
                    attempt.set_checkpoint_aside(error)  # its content is not of this trial: train from the beginning
                    continue
                ending = attempt.failed(error)
            if ending is None or not lease.renew():
                return TAKEN
            return attempt.finish(ending)


@dataclass(frozen=True)
class _Ending:
    """How the training of an attempt ended."""

    status: str  # ok | pruned | failed
    failure_class: str | None = None
    failure_message: str | None = None
    refused: bool = False  # the trial's values cannot be trained with
    broken: Exception | None = None  # of the accelerator: this process can train nothing more

    @property
    def is_outcome(self) -> bool:
        """Whether it is a result of the method, and no accident."""
        return self.failure_class is None or self.failure_class in FAILURES_THAT_ARE_OUTCOMES


Entry = tuple[int, int, str, str, float, float]  # epoch, step, split, metric, value, seconds
Array = tuple[int, str, str, list[int], torch.Tensor]  # epoch, split, name, shape, values


class _Attempt:
    """One attempt of a trial: its training, what it has recorded so far, and its rows."""

    def __init__(self, work: _Work, lease: Lease, number: int) -> None:
        self.job, self.settings, self.store = work.job, work.settings, work.store
        self.trial, self.current, self.execution, self.about = work.trial, work.current, work.execution, work.about
        self.lease, self.number = lease, number
        self.device = self.execution.torch_device()
        self.checkpoint = self.store.checkpoint_path(self.job.study, self.trial.id)
        self.header = {
            "study": self.job.study,
            "trial": self.trial.id,
            "code": str(self.about["code_hash"]),
            "device": self.device.type,
            "data": str(self.about["sources_hash"]),
        }
        self.state = _load_checkpoint(self.store, self.job.study, self.trial, self.header)
        set_aside_damaged(self.store, self.job.study, self.trial, self.current)
        self.history: list[Entry] = list(self.state["history"]) if self.state else []
        self.arrays: list[Array] = list(self.state["arrays"]) if self.state else []
        self.seconds: float = self.state["run"]["seconds"] if self.state else 0.0
        self.facts: dict[str, Any] = {}
        self.started_at, self.saved = now(), time.monotonic()
        self.device_memory_mb = _share_accelerator(self.device, self.settings)

    def train(self, report: Report) -> _Ending | None:
        """Train to the end, or until the search prunes the trial; None where the lease is lost."""
        for row in run(self.trial, self.execution, self.state["run"] if self.state else None, self.facts.update):
            if self.lease.lost:
                return None  # it was cut off for so long that another process goes on from its checkpoint
            self._record(row)
            self._save(row)
            report(metrics_of(row))  # comes back once the driver has looked at it
            if self.job.search is not None and self.store.pop_prune_request(self.job.study, self.trial.id):
                return _Ending("pruned")
        return _Ending("ok")

    def _record(self, row: Row) -> None:
        self.seconds = row.seconds
        self.history += [(row.epoch, row.step, *key, value, row.seconds) for key, value in row.metrics.items()]
        self.arrays += [(row.epoch, *key, list(array.shape), array.flatten()) for key, array in row.arrays.items()]

    def _save(self, row: Row) -> None:
        """A checkpoint, now and then; at the end what other trials start from."""
        if row.epoch == self.trial.total_epochs:
            if self.job.prerequisite:
                save_trained(self.store.trained, self.trial, row.snapshot()["parts"], self.current)
        elif time.monotonic() - self.saved >= self.settings.checkpoint_s:
            state = {"run": row.snapshot(), "history": self.history, "arrays": self.arrays}
            checkpoints.write(self.checkpoint, state, self.header)
            self.saved = time.monotonic()

    def failed(self, error: Exception) -> _Ending:
        """The ending by an error that is being handled."""
        traceback.print_exc()  # all of it, into the log
        if isinstance(error, Unusable) and isinstance(error.reason, checkpoints.Refused) and error.path is not None:
            checkpoints.set_aside(self.store, self.job.study, error.trial, error.path, error.reason)
        failure_class, message = _failure(error)
        is_broken = isinstance(error, torch.AcceleratorError) and failure_class != "oom"
        refused = isinstance(error, data.Unfit)
        return _Ending("failed", failure_class, message, refused, error if is_broken else None)

    def set_checkpoint_aside(self, error: checkpoints.Refused) -> None:
        checkpoints.set_aside(self.store, self.job.study, self.trial.id, self.checkpoint, error)

    def finish(self, ending: _Ending) -> TrialOutcome:
        """Write the rows.  Raises the error of an accelerator that broke, so that Ray replaces the process."""
        if self.job.prerequisite and ending.failure_class in FAILURES_THAT_ARE_OUTCOMES:
            # what starts from it has diverged with it
            save_trained(self.store.trained, self.trial, {DIVERGED: mask(ending.failure_message or "")}, self.current)
        row = self._row(ending)
        try:
            self.store.write_attempt(self.job.study, row, *self._long_rows())
        except StorageError:
            if self.lease.renew():
                raise
            return TAKEN  # cut off at this very moment
        if ending.broken is not None:
            raise ending.broken
        if ending.is_outcome:  # else the next run goes on from the checkpoint
            self.store.tidy(self.job.study, self.trial.id)
        return self._outcome(ending, row)

    def _row(self, ending: _Ending) -> dict[str, Any]:
        facts = {name: value for name, value in self.facts.items() if name != "transition"}
        rules = selection_rules(_curve(self.history, "test"), _curve(self.history, "validation"))
        reserved_mb = None
        if self.device_memory_mb and not ending.broken:
            reserved_mb = torch.cuda.max_memory_reserved(self.device) / 2**20
        return {
            **self.about,
            **facts,
            "transition": canonical(self.facts["transition"]) if self.facts else None,
            **(rules if ending.status == "ok" else {}),
            "status": ending.status,
            "failure_class": ending.failure_class,
            "failure_message": ending.failure_message,
            "attempt": self.number,
            "epochs_done": self.history[-1][0] if self.history else 0,
            "seconds": self.seconds,
            "peak_memory_mb": reserved_mb,
            "device_memory_mb": self.device_memory_mb,
            "started_at": self.started_at,
            "ended_at": now(),
        }

    def _long_rows(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """The rows of tables `epochs` and `arrays`."""
        key = {"trial": self.trial.id, "attempt": self.number}
        names = ("epoch", "step", "split", "metric", "value", "seconds")
        curves = [{**key, **dict(zip(names, entry, strict=True))} for entry in self.history]
        arrays = [
            {**key, "epoch": epoch, "split": split, "name": name, "shape": shape, "values": values.numpy()}
            for epoch, split, name, shape, values in self.arrays
        ]
        return curves, arrays

    def _outcome(self, ending: _Ending, row: Mapping[str, Any]) -> TrialOutcome:
        accuracy = float(accuracies(pd.DataFrame([row], columns=TRIALS.names), self.job.selection).iloc[0])
        return {
            "outcome": "pruned" if ending.status == "pruned" else "done" if ending.is_outcome else "failed",
            "message": mask(ending.failure_message or ""),
            "failure": ending.failure_class,
            "refused": ending.refused,
            "seconds": self.seconds,
            "accuracy": None if math.isnan(accuracy) else accuracy,
            "peak_memory_mb": row["peak_memory_mb"],
            "device_memory_mb": self.device_memory_mb,
        }


def _check_sources(job: Job, trial: Trial, current: Current) -> None:
    """Raise `StorageError` where this machine has other code or data than the driver: its rows would not be the plan's.

    Data that are not here are a matter of the trial, which will fail and say so.
    """
    here = current.sources(trial)
    if here.code_hash != job.sources.code_hash:
        raise StorageError(
            f"{socket.gethostname()} runs another version of lnl ({Path(__file__).parents[1]}) than this driver: "
            "bring the same code to all nodes (`ray up` again, no PYTHONPATH of their own); then run again."
        )
    for kind, ours, theirs in (
        (f"the data set {trial.dataset}", here.data_hash, job.sources.data_hash),
        ("the human labels, or the data of what its trials start from,", here.sources_hash, job.sources.sources_hash),
    ):
        if None not in (ours, theirs) and ours != theirs:
            raise StorageError(
                f"{socket.gethostname()} has another version of {kind} than this driver had when the run began "
                f"(checksums {ours} and {theirs}): give all machines the same files; then run again."
            )


def _share_accelerator(device: torch.device, settings: Settings) -> float | None:
    """Begin to measure this process's memory and keep it to its share; returns what the device has, MB."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # of an earlier trial in this process
    torch.cuda.reset_peak_memory_stats(device)
    total_mb = torch.cuda.get_device_properties(device).total_memory / 2**20
    gpus = settings.gpus_per_trial if isinstance(settings.gpus_per_trial, float | int) else 1.0
    torch.cuda.set_per_process_memory_fraction(packing.memory_fraction(gpus, total_mb), device)
    return total_mb


def _curve(history: Sequence[Entry], split: str) -> list[float]:
    return [value for _, _, part, metric, value, _ in history if (part, metric) == (split, "accuracy")]


def _failure(error: Exception) -> tuple[str, str]:
    """The failure class and the message of a failed attempt."""
    if isinstance(error, Diverged):
        return "nan", str(error)
    if isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, torch.AcceleratorError) and "out of memory" in str(error)
    ):
        return "oom", f"Out of accelerator memory: raise --gpus-per-trial. {error}"
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: " in str(error):  # a RuntimeError without a class
        return "oom", f"Out of memory: fewer trials at once need less. {error}"
    if isinstance(error, data.DataError):
        return "data_error", str(error)
    trace = traceback.format_exc(limit=-8)
    return "code_error", f"{type(error).__name__}: {error}\n{trace}"


def _execution(job: Job, settings: Settings, trial: Trial) -> Execution:
    """Where and how the trial is trained."""
    device = "cpu" if settings.device == "auto" and settings.gpus_per_trial == 0 else settings.device
    threads = max(1, round(settings.cpus_per_trial))
    embeddings = job.embeddings if trial.replicate == 0 else 0
    return Execution(device, threads, settings.data, Store(settings.storage).trained, embeddings)


def _about(job: Job, trial: Trial, settings: Settings, device: torch.device) -> dict[str, Scalar]:
    """The columns of a trial's row that are known before it runs."""
    return {
        "trial": trial.id,
        "preset": job.preset,
        "arm": job.arm,
        "setting": job.setting,
        "replicate": trial.replicate,
        "plan_hash": job.plan_hash,
        "search": job.search,
        "suggestion": job.suggestion,
        "method": trial.method_name,
        "dataset": trial.dataset,
        "network": trial.network,
        "labels": trial.labels,
        "noise_kind": trial.noise.kind,
        "noise_rate": trial.noise.rate,
        "epochs": trial.total_epochs,
        "config": canonical(trial.model_dump(mode="json")),
        "validation_labels": trial.validation.labels if trial.validation.images else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "cpus": settings.cpus_per_trial,
        "gpus": settings.gpus_per_trial,
        "host": socket.gethostname(),
        "code_hash": job.sources.code_hash,
        "sources_hash": job.sources.sources_hash,
        "git_commit": job.git_commit,
        "git_dirty": job.git_dirty,
        "version_python": platform.python_version(),
        "version_torch": str(torch.__version__),
        "version_ray": version("ray"),
    }


def _load_checkpoint(store: Store, study: str, trial: Trial, header: Mapping[str, str]) -> dict[str, Any] | None:
    """The newest checkpoint, or None.  One that is damaged or of other code, device or torch is set aside."""
    path = store.checkpoint_path(study, trial.id)
    try:
        state: dict[str, Any] = checkpoints.read(path, {**header, "torch": str(torch.__version__)})
        with checkpoints.fitting():
            done = state["run"]["epoch"]
            if {entry[0] for entry in state["history"]} != set(range(1, done + 1)) or done >= trial.total_epochs:
                raise checkpoints.Refused(f"its history is not that of its {done} epochs")
            state["arrays"], state["run"]["seconds"], state["run"]["parts"]
    except FileNotFoundError:
        return None
    except checkpoints.Refused as error:
        checkpoints.set_aside(store, study, trial.id, path, error)
        return None
    return state

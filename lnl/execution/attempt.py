"""One attempt of a trial that this worker holds: its training, its checkpoints, and its rows.

An `Attempt` trains (`train`), which gives an `Ending`, and then writes its rows (`finish`), which gives what the worker
reports.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch

from lnl import data
from lnl.execution import packing
from lnl.execution.job import Job, RunSettings
from lnl.storage import checkpoints, kept
from lnl.storage.kept import Outputs
from lnl.storage.leases import Lease, Scalar
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import FAILURES_THAT_ARE_OUTCOMES, accuracies, selection_rules
from lnl.storage.places import canonical, now
from lnl.storage.schema import TRIALS
from lnl.storage.secrets import mask
from lnl.storage.store import Store
from lnl.system.timing import PHASES, Clock, phase
from lnl.trial.config import Trial
from lnl.trial.divergence import Diverged
from lnl.trial.provenance import Current
from lnl.trial.reports import Metrics, TrialOutcome, metrics_of
from lnl.trial.run import Execution, Row, Unusable, run
from lnl.trial.trained import DIVERGED, save_trained, set_aside_damaged

CHECKPOINT_SHARE = 0.01  # of the training's time, at most
TAKEN: TrialOutcome = {"outcome": "taken"}

Report = Callable[[Metrics | TrialOutcome], None]


@dataclass(frozen=True)
class Assignment:
    """What a worker knows of a trial before it trains it."""

    job: Job
    settings: RunSettings
    store: Store
    trial: Trial
    current: Current
    execution: Execution
    about: Mapping[str, Scalar]  # the columns of the trial's row that are known already


@dataclass(frozen=True)
class Ending:
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


CurvePoint = tuple[int, int, str, str, float, float]  # epoch, step, split, metric, value, seconds
StoredArray = tuple[int, str, str, list[int], torch.Tensor]  # epoch, split, name, shape, values


class Attempt:
    """One attempt of a trial: its training, what it has recorded so far, and its rows."""

    def __init__(self, assignment: Assignment, lease: Lease, number: int) -> None:
        self.job, self.settings, self.store = assignment.job, assignment.settings, assignment.store
        self.trial, self.current = assignment.trial, assignment.current
        self.execution, self.about = assignment.execution, assignment.about
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
        self.history: list[CurvePoint] = list(self.state["history"]) if self.state else []
        self.arrays: list[StoredArray] = list(self.state["arrays"]) if self.state else []
        self.seconds: float = self.state["run"]["seconds"] if self.state else 0.0
        self.clock = Clock(self.state["clock"] if self.state else None)
        self.facts: dict[str, Any] = {}
        self.outputs = Outputs()  # what is kept of the last epoch
        self.started_at = now()
        self.next_checkpoint = time.monotonic() + self.settings.checkpoint_s
        self.device_memory_mb = _share_accelerator(self.device, self.settings)

    def train(self, report: Report) -> Ending | None:
        """Train to the end, or until the search prunes the trial; None where the lease is lost."""
        before = self.state["run"] if self.state else None
        for row in run(self.trial, self.execution, before, self.facts.update, self.clock):
            if self.lease.lost:
                return None  # it was cut off for so long that another process goes on from its checkpoint
            self._record(row)
            with self.clock.running(), phase("checkpoint"):
                self._save(row)
            with self.clock.running(), phase("report"):
                report(metrics_of(row))  # comes back once the driver has looked at it
            if self.job.search is not None and self.store.pop_prune_request(self.job.study, self.trial.id):
                return Ending("pruned")
        return Ending("ok")

    def _record(self, row: Row) -> None:
        self.seconds = row.seconds
        self.history += [(row.epoch, row.step, *key, value, row.seconds) for key, value in row.metrics.items()]
        self.arrays += [(row.epoch, *key, list(array.shape), array.flatten()) for key, array in row.arrays.items()]

    def _save(self, row: Row) -> None:
        """A checkpoint, now and then; at the end what other trials start from."""
        if row.epoch == self.trial.total_epochs:
            if self.job.search is None:
                self.outputs = row.keep(self.settings.keep)
            if self.job.prerequisite:
                save_trained(self.store.trained, self.trial, row.snapshot()["parts"], self.current)
        elif (began := time.monotonic()) >= self.next_checkpoint:
            state = {"run": row.snapshot(), "clock": self.clock.seconds, "history": self.history, "arrays": self.arrays}
            checkpoints.write(self.checkpoint, state, self.header)
            ended = time.monotonic()
            self.next_checkpoint = ended + until_checkpoint(self.settings.checkpoint_s, ended - began)

    def failed(self, error: Exception) -> Ending:
        """The ending by an error that is being handled."""
        traceback.print_exc()  # all of it, into the log
        if isinstance(error, Unusable) and isinstance(error.reason, checkpoints.Refused) and error.path is not None:
            checkpoints.set_aside(self.store, self.job.study, error.trial, error.path, error.reason)
        failure_class, message = failure_of(error)
        is_broken = isinstance(error, torch.AcceleratorError) and failure_class != "oom"
        refused = isinstance(error, data.Unfit)
        return Ending("failed", failure_class, message, refused, error if is_broken else None)

    def set_checkpoint_aside(self, error: checkpoints.Refused) -> None:
        """Put away a checkpoint whose content is not of this trial."""
        checkpoints.set_aside(self.store, self.job.study, self.trial.id, self.checkpoint, error)

    def finish(self, ending: Ending) -> TrialOutcome:
        """Write the rows.  Raises the error of an accelerator that broke, so that Ray replaces the process."""
        if self.job.prerequisite and ending.failure_class in FAILURES_THAT_ARE_OUTCOMES:
            # what starts from it has diverged with it
            save_trained(self.store.trained, self.trial, {DIVERGED: mask(ending.failure_message or "")}, self.current)
        row = self._row(ending)
        try:
            if ending.status == "ok":
                kept.write(self.store, self.job.study, self.trial.id, self.number, row["epochs_done"], self.outputs)
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

    def _row(self, ending: Ending) -> dict[str, Any]:
        facts = {name: value for name, value in self.facts.items() if name != "transition"}
        rules = selection_rules(_curve(self.history, "test"), _curve(self.history, "validation"))
        reserved_mb = None
        if self.device_memory_mb and not ending.broken:
            reserved_mb = torch.cuda.max_memory_reserved(self.device) / 2**20
        return {
            **self.about,
            **facts,
            "transition": canonical(self.facts["transition"]) if self.facts.get("transition") else None,
            **(rules if ending.status == "ok" else {}),
            "status": ending.status,
            "failure_class": ending.failure_class,
            "failure_message": ending.failure_message,
            "attempt": self.number,
            "epochs_done": self.history[-1][0] if self.history else 0,
            "seconds": self.seconds,
            **{f"seconds_{name}": self.clock.seconds[name] for name in PHASES},
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

    def _outcome(self, ending: Ending, row: Mapping[str, Any]) -> TrialOutcome:
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


def until_checkpoint(asked: float, cost: float) -> float:
    """Seconds of training until the next checkpoint, when the last took `cost` seconds: `asked`, or more, so that all
    of them take at most `CHECKPOINT_SHARE` of the time.  0 asks for one after every epoch, whatever it costs.
    """
    return max(asked, cost / CHECKPOINT_SHARE) if asked else 0.0


def _share_accelerator(device: torch.device, settings: RunSettings) -> float | None:
    """Begin to measure this process's memory and keep it to its share; returns what the device has, MB."""
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()  # of an earlier trial in this process
    torch.cuda.reset_peak_memory_stats(device)
    total_mb = torch.cuda.get_device_properties(device).total_memory / 2**20
    gpus = settings.gpus_per_trial if isinstance(settings.gpus_per_trial, float | int) else 1.0
    torch.cuda.set_per_process_memory_fraction(packing.memory_fraction(gpus, total_mb), device)
    return total_mb


def _curve(history: Sequence[CurvePoint], split: str) -> list[float]:
    return [value for _, _, part, metric, value, _ in history if (part, metric) == (split, "accuracy")]


def failure_of(error: Exception) -> tuple[str, str]:
    """Return the failure class and the message of an attempt that ended in this error."""
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


def _load_checkpoint(store: Store, study: str, trial: Trial, header: Mapping[str, str]) -> dict[str, Any] | None:
    """The newest checkpoint, or None.  One that is damaged or of other code, device or torch is set aside."""
    path = store.checkpoint_path(study, trial.id)
    try:
        state: dict[str, Any] = checkpoints.read(path, {**header, "torch": str(torch.__version__)})
        with checkpoints.fitting():
            done = state["run"]["epoch"]
            if {entry[0] for entry in state["history"]} != set(range(1, done + 1)) or done >= trial.total_epochs:
                raise checkpoints.Refused(f"its history is not that of its {done} epochs")
            state["arrays"], state["clock"], state["run"]["seconds"], state["run"]["parts"]
    except FileNotFoundError:
        return None
    except checkpoints.Refused as error:
        checkpoints.set_aside(store, study, trial.id, path, error)
        return None
    return state

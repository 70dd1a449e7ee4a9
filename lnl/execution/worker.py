"""One planned trial on one machine: claim it, go on from its checkpoint, train, write its rows.

The runner's workers call `execute`; it knows no Ray, so tests call it, too.
"""

from __future__ import annotations

import contextlib
import math
import platform
import socket
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from lnl import data
from lnl.execution import packing
from lnl.execution.job import Job, Report, Settings, flat
from lnl.storage import checkpoints
from lnl.storage.atomic import Overtaken
from lnl.storage.currency import why_stale
from lnl.storage.leases import Lease, claim
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
from lnl.trial.run import Unusable, run
from lnl.trial.trained import DIVERGED, is_trained, save_trained, set_aside_damaged

OF_ATTEMPT = (  # what a lease says of its attempt, for the row that another writes should its holder be lost
    *("preset", "arm", "setting", "plan_hash", "search", "suggestion"),
    *("gpus", "cpus", "device", "code_hash", "git_commit", "git_dirty", "version_python", "version_torch"),
)


def execute(job: Job, settings: Settings, report: Report) -> None:
    """Run one trial here: claim it, go on from its checkpoint, write its rows.  Runs in a Ray worker.

    Every exit but a killed process leaves a row or a report: `report` gets {"epoch", …metrics} per epoch and a last
    {"outcome": done | failed | taken | storage, …}.
    """
    store, trial = Store(settings.storage), parse(job.trial)
    try:
        store.check_identity(job.store)
        current = Current(settings.data)
        _check_sources(job, trial, current)
        about = _about(job, trial, settings)
        held = {name: about[name] for name in OF_ATTEMPT}
        lease, holder = claim(store, job.study, trial.id, run=job.run, **held)
        if lease is None:
            report({"outcome": "taken"})
            return
        with lease:
            columns = ["trial", "attempt", "status", "failure_class", "code_hash", "data_hash", "sources_hash"]
            rows, _ = store.read("trials", job.study, columns, files=f"{trial.id}-*")
            finished = rows[is_outcome(rows)]
            done = (why_stale(finished, {trial.id: job.sources}) == "").any() or not job.rerun_stale
            kept = not job.prerequisite or is_trained(store, job.study, trial, current)
            if len(finished) and kept and done:
                store.tidy(job.study, trial.id)
                report({"outcome": "done"})  # by another driver, since this one planned, or by a worker lost since
                return
            if job.search is not None:
                store.is_given_up(job.study, trial.id)  # forgets a mark that an earlier attempt did not live to see
            attempt = store.next_attempt(job.study, trial.id)
            if holder is not None:  # an earlier attempt died without a word: it gets its row here
                lost = "The worker was stopped or lost (killed, or its machine went away); the next attempt goes on."
                failure = {"status": "preempted", "failure_class": "preempted", "failure_message": lost}
                last_seen = {
                    **{name: holder[name] for name in held if name in holder},
                    "host": holder["host"].split("/")[0],
                    "started_at": min(datetime.fromisoformat(holder["since"]), lease.previous_beat or now()),
                    "ended_at": lease.previous_beat,
                }
                with contextlib.suppress(Overtaken):  # it was cut off, and has written its row by now
                    store.write_attempt(job.study, {**about, **last_seen, **failure, "attempt": attempt}, [])
                    store.write_event(job.study, "lost", trial.id, attempt=attempt)
                attempt += 1
            output = Output()
            try:
                with output:
                    last = _attempt(store, job, trial, settings, about, attempt, report, lease, current)
            finally:
                if (said := output.text()) and lease.holds():
                    store.write_log(job.study, trial.id, attempt, said)
        report(last)  # without the lease, which whoever goes on with the trial finds free
    except StorageError as error:
        report({"outcome": "storage", "message": str(error)})


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


def _attempt(
    store: Store,
    job: Job,
    trial: Trial,
    settings: Settings,
    about: Mapping[str, Any],
    attempt: int,
    report: Report,
    lease: Lease,
    current: Current,
) -> dict[str, Any]:
    """Train a claimed trial to its end, write its rows; returns the last report."""
    execution = replace(settings.execution(), embeddings=job.embeddings if trial.replicate == 0 else 0)
    device = execution.torch_device()
    checkpoint = store.checkpoint_path(job.study, trial.id)
    header = {"study": job.study, "trial": trial.id, "code": about["code_hash"], "device": device.type}
    header["data"] = str(about["sources_hash"])
    state = _load_checkpoint(store, job.study, trial, header)
    set_aside_damaged(store, job.study, trial, current)
    history: list[Entry] = list(state["history"]) if state else []
    arrays: list[Array] = list(state["arrays"]) if state else []
    seconds = state["run"]["seconds"] if state else 0.0
    started, saved = now(), time.monotonic()
    facts: dict[str, Any] = {}
    failure: dict[str, Any] = {}
    refused = False
    broken: Exception | None = None
    total_mb = _share_accelerator(device, settings)
    try:
        for row in run(trial, execution, state["run"] if state else None, facts.update):
            if lease.lost:
                return {"outcome": "taken"}  # it was cut off for so long that another goes on from its checkpoint
            seconds = row.seconds
            history += [(row.epoch, row.step, *key, value, row.seconds) for key, value in row.metrics.items()]
            arrays += [(row.epoch, *key, list(one.shape), one.flatten()) for key, one in row.arrays.items()]
            if row.epoch < trial.total_epochs and time.monotonic() - saved >= settings.checkpoint_s:
                checkpoints.write(checkpoint, {"run": row.snapshot(), "history": history, "arrays": arrays}, header)
                saved = time.monotonic()
            elif row.epoch == trial.total_epochs and job.prerequisite:
                save_trained(store.trained, trial, row.snapshot()["parts"], current)
            report(flat(row))  # comes back once the driver has looked at it
            if job.search is not None and store.is_given_up(job.study, trial.id):
                failure = {"status": "pruned"}
                break
    except StorageError:
        if lease.holds():
            raise
        return {"outcome": "taken"}  # another has finished it meanwhile, and tidied up
    except Exception as error:
        if isinstance(error, checkpoints.Refused) and state is not None:  # its content is not of this trial
            checkpoints.set_aside(store, job.study, trial.id, checkpoint, error)
            return _attempt(store, job, trial, settings, about, attempt, report, lease, current)
        traceback.print_exc()  # all of it, into the log
        if isinstance(error, Unusable) and isinstance(error.reason, checkpoints.Refused) and error.path is not None:
            checkpoints.set_aside(store, job.study, error.trial, error.path, error.reason)
        failure = {"status": "failed", **_failure(error)}
        refused = isinstance(error, data.Unfit)
        broken = error if isinstance(error, torch.AcceleratorError) and failure["failure_class"] != "oom" else None
    if not lease.holds():
        return {"outcome": "taken"}
    final = {
        **about,
        **{name: value for name, value in facts.items() if name != "transition"},
        "transition": canonical(facts["transition"]) if facts else None,
        **({} if failure else selection_rules(_curve(history, "test"), _curve(history, "validation"))),
        "status": "ok",
        **failure,
        "attempt": attempt,
        "epochs_done": history[-1][0] if history else 0,
        "seconds": seconds,
        "peak_memory_mb": torch.cuda.max_memory_reserved(device) / 2**20 if total_mb and not broken else None,
        "device_memory_mb": total_mb,
        "started_at": started,
        "ended_at": now(),
    }
    if job.prerequisite and failure.get("failure_class") in FAILURES_THAT_ARE_OUTCOMES:  # and of what starts from it
        save_trained(store.trained, trial, {DIVERGED: mask(failure["failure_message"])}, current)
    key = {"trial": trial.id, "attempt": attempt}
    names = ("epoch", "step", "split", "metric", "value", "seconds")
    curves = [{**key, **dict(zip(names, entry, strict=True))} for entry in history]
    shaped = [
        {**key, "epoch": epoch, "split": split, "name": name, "shape": shape, "values": values.numpy()}
        for epoch, split, name, shape, values in arrays
    ]
    try:
        store.write_attempt(job.study, final, curves, shaped)
    except StorageError:
        if lease.holds():
            raise
        return {"outcome": "taken"}  # cut off at this very moment
    if broken is not None:  # a process whose accelerator broke can train nothing more: Ray replaces it and tries again
        raise broken
    accident = "failure_class" in failure and failure["failure_class"] not in FAILURES_THAT_ARE_OUTCOMES
    if not accident:  # else the next run goes on from it
        store.tidy(job.study, trial.id)
    message = mask(failure.get("failure_message", ""))
    accuracy = float(accuracies(pd.DataFrame([final], columns=TRIALS.names), job.selection).iloc[0])
    return {
        "outcome": "pruned" if final["status"] == "pruned" else "failed" if accident else "done",
        "message": message,
        "failure": failure.get("failure_class"),
        "refused": refused,
        "seconds": seconds,
        "accuracy": None if math.isnan(accuracy) else accuracy,
        "peak_memory_mb": final["peak_memory_mb"],
        "device_memory_mb": total_mb,
    }


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


Entry = tuple[int, int, str, str, float, float]  # epoch, step, split, metric, value, seconds
Array = tuple[int, str, str, list[int], torch.Tensor]  # epoch, split, name, shape, values


def _curve(history: Sequence[Entry], split: str) -> list[float]:
    return [value for _, _, part, metric, value, _ in history if (part, metric) == (split, "accuracy")]


def _failure(error: Exception) -> dict[str, str]:
    """The class and the message of a failed attempt."""
    if isinstance(error, Diverged):
        return {"failure_class": "nan", "failure_message": str(error)}
    if (isinstance(error, torch.AcceleratorError) and "out of memory" in str(error)) or isinstance(
        error, torch.OutOfMemoryError
    ):
        message = f"Out of accelerator memory: raise --gpus-per-trial. {error}"
        return {"failure_class": "oom", "failure_message": message}
    if isinstance(error, MemoryError) or "DefaultCPUAllocator: " in str(error):  # a RuntimeError without a class
        return {"failure_class": "oom", "failure_message": f"Out of memory: fewer trials at once need less. {error}"}
    if isinstance(error, data.DataError):
        return {"failure_class": "data_error", "failure_message": str(error)}
    trace = traceback.format_exc(limit=-8)
    return {"failure_class": "code_error", "failure_message": f"{type(error).__name__}: {error}\n{trace}"}


def _about(job: Job, trial: Trial, settings: Settings) -> dict[str, Any]:
    """The columns of a trial row that are known before it runs."""
    method = trial.method_name
    device = settings.execution().torch_device()
    return {
        "trial": trial.id,
        "preset": job.preset,
        "arm": job.arm,
        "setting": job.setting,
        "replicate": trial.replicate,
        "plan_hash": job.plan_hash,
        "search": job.search,
        "suggestion": job.suggestion,
        "method": method,
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
        "version_torch": torch.__version__,
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

"""A worker: `execute` claims one planned trial, trains it from its checkpoint on (see `attempt`), and reports.

It knows no Ray, so tests call it, too.
"""

from __future__ import annotations

import contextlib
import platform
import socket
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

from lnl.execution.attempt import TAKEN, Assignment, Attempt, Report
from lnl.execution.job import Job, RunSettings
from lnl.storage import checkpoints, kept
from lnl.storage.atomic import Overtaken
from lnl.storage.currency import why_stale
from lnl.storage.leases import Lease, LeaseRecord, Scalar, claim
from lnl.storage.logs import Output
from lnl.storage.objects import StorageError
from lnl.storage.outcomes import is_outcome
from lnl.storage.places import canonical, now
from lnl.storage.store import Store
from lnl.trial.config import Trial, parse
from lnl.trial.provenance import Current
from lnl.trial.reports import TrialOutcome
from lnl.trial.run import Execution
from lnl.trial.trained import is_trained

IN_LEASE = (  # the columns that a lease holds, for the row that another worker writes should its holder be lost
    *("preset", "arm", "setting", "plan_hash", "search", "suggestion"),
    *("gpus", "cpus", "device", "code_hash", "git_commit", "git_dirty", "version_python", "version_torch"),
)


def execute(job: Job, settings: RunSettings, report: Report) -> None:
    """Run one trial here: claim it, go on from its checkpoint, write its rows.

    Every exit but a killed process leaves a row or a report: `report` gets the metrics of each epoch, and at last how
    the attempt ended.
    """
    try:
        outcome = _claimed(_assignment(job, settings), report)
        report(outcome)  # without the lease, which the process that goes on with the trial finds free
    except StorageError as error:
        report({"outcome": "storage", "message": str(error)})


def _assignment(job: Job, settings: RunSettings) -> Assignment:
    """Raises `StorageError` where this machine has another results folder, code or data than the driver."""
    store, trial, current = Store(settings.storage), parse(job.trial), Current(settings.data)
    store.check_identity(job.store)
    _check_sources(job, trial, current)
    execution = _execution(job, settings, trial)
    about = _about(job, trial, settings, execution.torch_device())
    return Assignment(job, settings, store, trial, current, execution, about)


def _claimed(assignment: Assignment, report: Report) -> TrialOutcome:
    """Claim the trial and train it."""
    job, store, trial = assignment.job, assignment.store, assignment.trial
    in_lease = {name: assignment.about[name] for name in IN_LEASE}
    lease, lost_holder = claim(store, job.study, trial.id, run=job.run, **in_lease)
    if lease is None:
        return TAKEN
    with lease:
        if _is_finished(assignment):
            store.tidy(job.study, trial.id)
            return {"outcome": "done"}  # by another driver, since this one planned, or by a worker lost since
        if job.search is not None:
            store.pop_prune_request(job.study, trial.id)  # clear a request left over from an earlier attempt
        number = store.next_attempt(job.study, trial.id)
        if lost_holder is not None:  # an earlier attempt has ended without a row: it gets its row here
            _write_lost_attempt(assignment, number, lost_holder, lease.previous_beat)
            number += 1
        output = Output()
        try:
            with output:
                return _train(assignment, lease, number, report)
        finally:
            if (text := output.text()) and lease.renew():
                store.write_log(job.study, trial.id, number, text)


def _is_finished(assignment: Assignment) -> bool:
    """Whether the trial has a row that counts, and what other trials need of it."""
    job, store, trial = assignment.job, assignment.store, assignment.trial
    columns = ["trial", "attempt", "status", "failure_class", "code_hash", "data_hash", "sources_hash"]
    rows, _ = store.read("trials", job.study, columns, files=f"{trial.id}-*")
    finished = rows[is_outcome(rows)]
    is_current = (why_stale(finished, {trial.id: job.sources}) == "").any() or not job.rerun_stale
    is_kept = not job.prerequisite or is_trained(store, job.study, trial, assignment.current)
    return len(finished) > 0 and is_kept and bool(is_current) and not _is_to_keep_more(assignment, finished)


def _is_to_keep_more(assignment: Assignment, finished: pd.DataFrame) -> bool:
    """Whether the newest of these attempts lacks what this run asks for, and is to be trained again for it."""
    job, settings = assignment.job, assignment.settings
    if not settings.rerun_unkept or job.search is not None:
        return False
    newest = finished.sort_values("attempt").iloc[-1]
    lacks = kept.lacks(assignment.store, job.study, assignment.trial.id, int(newest["attempt"]), settings.keep)
    return bool(newest["status"] == "ok") and lacks


def _write_lost_attempt(assignment: Assignment, number: int, holder: LeaseRecord, last_beat: datetime | None) -> None:
    store, study, trial = assignment.store, assignment.job.study, assignment.trial
    row = {
        **assignment.about,
        **{name: value for name, value in holder.items() if name in IN_LEASE},
        "host": holder["host"].split("/")[0],
        "started_at": min(datetime.fromisoformat(holder["since"]), last_beat or now()),
        "ended_at": last_beat,
        "status": "preempted",
        "failure_class": "preempted",
        "failure_message": (
            "The worker was stopped or lost (killed, or its machine went away); the next attempt goes on."
        ),
        "attempt": number,
    }
    with contextlib.suppress(Overtaken):  # it was only cut off, and has written its row by now
        store.write_attempt(study, row, [])
        store.write_event(study, "lost", trial.id, attempt=number)


def _train(assignment: Assignment, lease: Lease, number: int, report: Report) -> TrialOutcome:
    """Train the claimed trial to its end and write its rows."""
    while True:
        attempt = Attempt(assignment, lease, number)
        try:
            ending = attempt.train(report)
        except StorageError:
            if lease.renew():
                raise
            return TAKEN  # another process has finished it meanwhile, and tidied up
        except Exception as error:
            if isinstance(error, checkpoints.Refused) and attempt.state is not None:
                attempt.set_checkpoint_aside(error)  # train from the beginning
                continue
            ending = attempt.failed(error)
        if ending is None or not lease.renew():
            return TAKEN
        return attempt.finish(ending)


def _check_sources(job: Job, trial: Trial, current: Current) -> None:
    """Raise `StorageError` where this machine has other code or data than the driver: its rows would not fit the plan.

    Data that are missing here are no reason: the trial will fail and say so.
    """
    own = current.sources(trial)
    if own.code_hash != job.sources.code_hash:
        raise StorageError(
            f"{socket.gethostname()} runs another version of lnl ({Path(__file__).parents[1]}) than this driver: "
            "bring the same code to all nodes (`ray up` again, no PYTHONPATH of their own); then run again."
        )
    for what, own_hash, drivers_hash in (
        (f"the data set {trial.dataset}", own.data_hash, job.sources.data_hash),
        ("the human labels, or the data of what its trials start from,", own.sources_hash, job.sources.sources_hash),
    ):
        if None not in (own_hash, drivers_hash) and own_hash != drivers_hash:
            raise StorageError(
                f"{socket.gethostname()} has another version of {what} than this driver had when the run began "
                f"(checksums {own_hash} and {drivers_hash}): give all machines the same files; then run again."
            )


def _execution(job: Job, settings: RunSettings, trial: Trial) -> Execution:
    """Where and how the trial is trained."""
    device = "cpu" if settings.device == "auto" and settings.gpus_per_trial == 0 else settings.device
    threads = max(1, round(settings.cpus_per_trial))
    embeddings = job.embeddings if trial.replicate == 0 else 0
    return Execution(device, threads, settings.data, Store(settings.storage).trained, embeddings)


def _about(job: Job, trial: Trial, settings: RunSettings, device: torch.device) -> dict[str, Scalar]:
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

"""Plan -> Ray Tune -> rows.  The only module that imports Ray.

The results folder, not Ray, is the memory: a run schedules what the plan still lacks, every worker writes its own parquet
rows and keeps its own checkpoint there, and Tune's folder is scratch.  So a killed worker is retried by Tune and goes on
from its checkpoint, and a killed driver or a killed Ray is followed by the next `run`, which does the same.

Whether Ray runs with token authentication must be decided before Ray is imported; `prepare_environment` does, and the
command line calls it first.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import secrets
import signal
import socket
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_RAY_CLUSTER_FILE = "/tmp/ray/ray_current_cluster"  # written by `ray start` on every node of a cluster


def prepare_environment(address: str | None = None) -> str:
    """Ray's settings, to be made before `import ray`; returns the address to use: `local`, `auto` or a given one.

    A Ray of our own gets a token of its own, in this process's environment only.  A cluster's authentication is its own.
    """
    address = address or os.environ.get("RAY_ADDRESS") or ("auto" if os.path.exists(_RAY_CLUSTER_FILE) else "local")
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AIR_NEW_OUTPUT": "0", "RAY_SCHEDULER_EVENTS": "0", "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "TUNE_DISABLE_SIGINT_HANDLER": "1"}
    quiet |= {"TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1", "RAY_DEDUP_LOGS": "0"}
    if address == "local":
        quiet |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    return address


prepare_environment()

import pyarrow as pa  # noqa: E402
import ray  # noqa: E402
import torch  # noqa: E402
from ray import tune  # noqa: E402

from lnl import data, methods, task  # noqa: E402
from lnl.results import (  # noqa: E402
    Lease,
    StorageError,
    Store,
    canonical,
    claim,
    is_outcome,
    latest,
    now,
    selection_rules,
    write_atomically,
)
from lnl.streams import Streams  # noqa: E402
from lnl.study import Plan, Planned, Status, plan_row, reconcile  # noqa: E402
from lnl.trial import Diverged, Execution, Row, Trial, code_hash, parse, run  # noqa: E402

RETRIES = 3  # of infrastructure failures (a lost worker or node), per trial and run
POLL_S = 2.0  # while another driver finishes its trials


@dataclass(frozen=True)
class Settings:
    """How a plan is executed; nothing here changes a result's identity."""

    storage: Path
    data: Path | None = None
    address: str = "local"
    cpus_per_trial: float = 1
    gpus_per_trial: float | None = None  # None: one where the cluster has GPUs
    device: str = "auto"
    checkpoint_s: float = 10.0  # seconds of training between checkpoints
    wait: bool = True  # for trials that another driver holds


# ------------------------------------------------------------------------------------------------------- the worker


def execute(job: Mapping[str, Any], settings: Settings, plan: Mapping[str, str], report: Callable[[dict[str, Any]], None]) -> None:
    """Run one trial here: claim it, go on from its checkpoint, write its rows.  Runs in a Ray worker.

    Every exit but a killed process leaves a row or a report: `report` gets {"epoch", …metrics} per epoch and a last
    {"outcome": done | failed | taken | storage, …}.
    """
    store, trial = Store(settings.storage), parse(job["trial"])
    try:
        lease, previous = claim(store, trial.id, study=plan["study"], attempt=None)
    except StorageError as error:
        report({"outcome": "storage", "message": str(error)})
        return
    if lease is None:
        report({"outcome": "taken"})
        return
    with lease:
        rows, _ = store.read("trials", plan["study"], ["trial", "attempt", "status", "failure_class", "code_hash"], [("trial", "=", trial.id)])
        fresh = rows[is_outcome(rows)] if len(rows) else rows
        if len(fresh) and not (job["rerun"] and (fresh["code_hash"] != code_hash(job["method"])).all()):
            report({"outcome": "done"})
            return
        attempt = int(rows["attempt"].max()) + 1 if len(rows) else 1
        try:
            _attempt(store, trial, job, settings, plan, attempt, previous is not None, report)
        except StorageError as error:
            report({"outcome": "storage", "message": str(error)})


def _attempt(
    store: Store, trial: Trial, job: Mapping[str, Any], settings: Settings, plan: Mapping[str, str], attempt: int, lost: bool,
    report: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    """One execution of a claimed trial.  `lost`: an earlier one died without a word; it gets its row here."""
    study, method = plan["study"], job["method"]
    execution = Execution(settings.device, max(1, round(settings.cpus_per_trial)), settings.data)
    device = execution.torch_device()
    about = {
        "trial": trial.id,
        "preset": plan["preset"],
        "arm": job["arm"],
        "setting": job["setting"],
        "replicate": trial.replicate,
        "plan_hash": plan["hash"],
        "method": method,
        "dataset": trial.dataset,
        "network": trial.network,
        "labels": trial.labels,
        "noise_kind": trial.noise.kind,
        "noise_rate": trial.noise.rate,
        "epochs": trial.total_epochs,
        "config": canonical(trial.model_dump(mode="json")),
        "validation_labels": trial.validation.labels if trial.validation.images else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine(),
        "cpus": settings.cpus_per_trial,
        "gpus": settings.gpus_per_trial,
        "host": socket.gethostname(),
        "code_hash": code_hash(method),
        "git_commit": plan["git_commit"],
        "git_dirty": plan["git_dirty"],
        "version_python": platform.python_version(),
        "version_torch": torch.__version__,
        "version_ray": ray.__version__,
    }
    checkpoint = store.checkpoint_path(trial.id)
    state = _load_checkpoint(store, study, trial, checkpoint, about["code_hash"])
    if lost:
        store.write_event(study, "lost", trial.id, attempt=attempt)
        message = "The worker was lost (killed, or its machine went away); the trial went on in the next attempt."
        store.write_attempt(study, {**about, "attempt": attempt, "status": "preempted", "failure_class": "preempted", "failure_message": message, "ended_at": now()}, [])
        attempt += 1
    history: list[tuple[int, int, str, str, float, float]] = list(state["history"]) if state else []
    started, saved, facts = now(), time.monotonic(), {}
    seconds = state["run"]["seconds"] if state else 0.0
    failure: dict[str, Any] = {"status": "ok"}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        for row in run(trial, execution, state["run"] if state else None):
            facts, seconds = row.facts, row.seconds
            history += [(row.epoch, row.step, split, metric, value, row.seconds) for (split, metric), value in row.metrics.items()]
            if row.epoch < trial.total_epochs and time.monotonic() - saved >= settings.checkpoint_s:
                _save_checkpoint(checkpoint, trial, about["code_hash"], row, history)
                saved = time.monotonic()
            report(_flat(row))
    except Diverged as error:
        failure = {"status": "failed", "failure_class": "nan", "failure_message": str(error)}
    except torch.OutOfMemoryError as error:
        failure = {"status": "failed", "failure_class": "oom", "failure_message": f"Out of accelerator memory: raise --gpus-per-trial. {error}"}
    except data.DataError as error:
        failure = {"status": "failed", "failure_class": "data_error", "failure_message": str(error)}
    except StorageError:
        raise
    except Exception as error:
        trace = traceback.format_exc(limit=-8)
        failure = {"status": "failed", "failure_class": "code_error", "failure_message": f"{type(error).__name__}: {error}\n{trace}"}
    test = [value for _, _, split, metric, value, _ in history if (split, metric) == ("test", "accuracy")]
    held = [value for _, _, split, metric, value, _ in history if (split, metric) == ("validation", "accuracy")]
    final = {
        **about,
        **{name: value for name, value in facts.items() if name != "transition"},
        "transition": canonical(facts["transition"]) if "transition" in facts else None,
        **selection_rules(test, held or None),
        **failure,
        "attempt": attempt,
        "epochs_done": max((entry[0] for entry in history), default=0),
        "seconds": seconds,
        "peak_memory_mb": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        "started_at": started,
        "ended_at": now(),
    }
    long = [
        {"trial": trial.id, "attempt": attempt, "epoch": epoch, "step": step, "split": split, "metric": metric, "value": value, "seconds": at}
        for epoch, step, split, metric, value, at in history
    ]
    store.write_attempt(study, final, long)
    checkpoint.unlink(missing_ok=True)
    outcome = "done" if failure["status"] == "ok" or failure["failure_class"] == "nan" else "failed"
    report({"outcome": outcome, "message": failure.get("failure_message", ""), "accuracy": final.get("accuracy_last")})


def _flat(row: Row) -> dict[str, Any]:
    """A row as Tune metrics: test_accuracy, train_loss, …"""
    return {"epoch": row.epoch, **{f"{split}_{metric}": value for (split, metric), value in row.metrics.items()}}


def _save_checkpoint(path: Path, trial: Trial, code: str, row: Row, history: Sequence[tuple[Any, ...]]) -> None:
    state = {"trial": trial.id, "code": code, "run": row.snapshot(), "history": list(history)}
    write_atomically(path, lambda temporary: torch.save(state, temporary))


def _load_checkpoint(store: Store, study: str, trial: Trial, path: Path, code: str) -> dict[str, Any] | None:
    """The newest checkpoint, or None.  One that is damaged or was written by other code is set aside with an event."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        reason = None if (state["trial"], state["code"]) == (trial.id, code) else "it was written by other code"
    except Exception as error:
        reason = f"it cannot be read ({type(error).__name__})"
    if reason is None:
        return state
    os.replace(path, path.with_suffix(f".refused-{now():%Y%m%dT%H%M%S}"))
    store.write_event(study, "checkpoint_refused", trial.id, reason=f"The checkpoint was set aside because {reason}; the trial starts anew.")
    return None


# ------------------------------------------------------------------------------------------------------- the driver


@dataclass
class Outcome:
    """What one `run_plan` did."""

    scheduled: int
    statuses: list[Status]
    stopped: str | None = None  # one sentence, where it ended early

    @property
    def complete(self) -> bool:
        return self.stopped is None and all(status.state in ("done", "stale") for status in self.statuses)


def run_plan(
    plan: Plan, settings: Settings, progress: Any, *, arms: Sequence[str] | None = None, rerun_stale: bool = False
) -> Outcome:
    """Run what the plan lacks (failed trials again, stale ones on request) and return how it then stands.

    `progress` has `start(todo, statuses)`, `epoch(trial, metrics)`, `end(trial, outcome)`, `say(sentence)` and `finish()`.
    Raises `StorageError`, `lnl.data.DataError` before anything starts where the results or the data cannot be had.
    """
    store = Store(settings.storage)
    wanted = [planned for planned in plan.trials if arms is None or planned.arm in arms]
    commit, dirty = git_state()
    store.write_plan(plan_row(plan, commit))
    again = {"missing", "failed", *(["stale"] if rerun_stale else [])}
    scheduled, finished = 0, set[str]()
    stopped: str | None = None
    with _ray(settings) as resources, tempfile.TemporaryDirectory(prefix="lnl-tune-") as scratch:
        while True:
            statuses = [status for status in reconcile(plan, store) if status.planned in set(wanted)]
            todo = [status.planned for status in statuses if status.state in again and status.planned.id not in finished]
            if todo:
                check_data(todo, settings.data)
                progress.start(todo, statuses)
                facts = {"study": plan.study, "preset": plan.preset, "hash": plan.hash, "git_commit": commit, "git_dirty": dirty}
                stopped = _tune(todo, settings, facts, resources, Path(scratch), progress, rerun_stale)
                scheduled += len(todo)
                finished |= {planned.id for planned in todo}
            elif settings.wait and any(status.state == "running" for status in statuses):
                progress.say("Waiting for trials that another driver is running.")
                time.sleep(POLL_S)
                continue
            if stopped or not todo:
                break
            finished -= {s.planned.id for s in reconcile(plan, store) if s.state in ("running", "missing")} if settings.wait else set()
    progress.finish()
    return Outcome(scheduled, reconcile(plan, store), stopped)


def check_data(todo: Sequence[Planned], root: Path | None) -> None:
    """Load every data set once and try every split: bad wishes fail here, in one sentence, before anything is scheduled."""
    seen = set()
    for planned in todo:
        trial = planned.trial
        key = (trial.dataset, trial.labels, trial.unlabelled_ratio, trial.probe, trial.validation, trial.noise.column)
        if key in seen:
            continue
        seen.add(key)
        dataset = data.load(trial.dataset, root)
        task.split(
            dataset,
            Streams(0),
            labels=trial.labels,
            unlabelled_ratio=trial.unlabelled_ratio,
            probe=trial.probe,
            validation=trial.validation,
        )
        if trial.noise.column:
            data.human_labels(dataset, trial.noise.column, root)


@contextlib.contextmanager
def _ray(settings: Settings) -> Iterator[dict[str, float]]:
    """A connection to Ray: the cluster at `address`, or one of our own on this machine.  Yields a trial's resources."""
    own = not ray.is_initialized()
    if own:
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
        if settings.address == "local":
            options |= {"include_dashboard": False, "object_store_memory": 200_000_000}
        else:
            options |= {"runtime_env": {"env_vars": {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"}}}
        try:
            ray.init(address=settings.address, **options)
        except ConnectionError as error:
            raise ConnectionError(f"No Ray cluster answers at '{settings.address}': start one, or use --address local. ({error})") from None
    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if len(alive) > 1 and not os.environ.get("LNL_SHARED_STORAGE"):
            _check_shared(settings.storage, alive)
        gpus = settings.gpus_per_trial
        if gpus is None:
            gpus = 1.0 if ray.cluster_resources().get("GPU") else 0.0
        yield {"cpu": settings.cpus_per_trial, **({"gpu": gpus} if gpus else {})}
    finally:
        if own:
            ray.shutdown()


def _check_shared(storage: Path, nodes: Sequence[Mapping[str, Any]]) -> None:
    """On several nodes every worker must see the driver's results folder: write a marker here, look for it there."""
    marker = storage / f".shared-{secrets.token_hex(4)}"
    write_atomically(marker, lambda temporary: temporary.write_text("seen"))
    try:
        look = ray.remote(num_cpus=0)(os.path.exists)
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        seen = ray.get([look.options(scheduling_strategy=strategy(node["NodeID"], soft=False)).remote(str(marker)) for node in nodes], timeout=60)
        blind = [node["NodeManagerAddress"] for node, here in zip(nodes, seen, strict=True) if not here]
    finally:
        marker.unlink()
    if blind:
        raise StorageError(f"Node {blind[0]} does not see the results folder {storage}: give a --storage that all nodes share.")


def _tune(
    todo: Sequence[Planned], settings: Settings, facts: Mapping[str, Any], resources: Mapping[str, float], scratch: Path, progress: Any, rerun: bool
) -> str | None:  # fmt: skip
    """One Tuner over the trials; returns a sentence where it had to stop early."""
    jobs = [
        {"id": p.id, "trial": p.trial.model_dump(mode="json"), "method": p.trial.model_dump(mode="json")["method"]["name"], "arm": p.arm, "setting": p.setting, "rerun": rerun}
        for p in todo
    ]  # fmt: skip
    watch = _Watch(progress)

    def trainable(config: dict[str, Any]) -> None:
        execute(config["job"], settings, facts, tune.report)

    with _interrupts(watch):
        tuner = tune.Tuner(
            tune.with_resources(trainable, dict(resources)),
            param_space={"job": tune.grid_search(jobs)},
            tune_config=tune.TuneConfig(reuse_actors=True, trial_name_creator=_job_id, trial_dirname_creator=_job_id),
            run_config=tune.RunConfig(
                name=f"run-{secrets.token_hex(4)}",
                storage_path=str(scratch),
                verbose=0,
                callbacks=[watch],
                stop=_Stop(watch),
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        )
        tuner.fit()
    return watch.stopped


def _job_id(trial: Any) -> str:
    return str(trial.config["job"]["id"])


class _Watch(tune.Callback):
    """Passes Tune's events on to the progress display; stops everything where storage fails or the user interrupts."""

    def __init__(self, progress: Any) -> None:
        self.progress, self.stopped = progress, None

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        job = trial.config["job"]
        if "outcome" not in result:
            self.progress.epoch(job["id"], result)
            return
        if result["outcome"] == "storage":
            self.stopped = result["message"]
        self.progress.end(job["id"], result)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        job = trial.config["job"]
        self.progress.end(job["id"], {"outcome": "failed", "message": f"its worker died {RETRIES + 1} times; run again to go on."})

    def __getstate__(self) -> dict[str, Any]:
        return {"progress": None, "stopped": self.stopped}  # Tune pickles callbacks; a live display cannot be


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


@contextlib.contextmanager
def _interrupts(watch: _Watch) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) ends the run in order; the second is Python's own."""

    def handle(number: int, frame: Any) -> None:
        watch.stopped = "Interrupted. Finished trials are stored, running ones keep their last checkpoint: run again to go on."
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the running code and whether it has uncommitted changes; (None, None) outside a repository."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


# ------------------------------------------------------------------------------------------- for anybody's own Tuner


def trainable(method: str, **base: Any) -> Callable[[dict[str, Any]], None]:
    """Any method as a function for `ray.tune.Tuner`; `base` and the Tuner's `param_space` hold (dotted) fields of `Trial`.

        tune.Tuner(trainable("mixmatch", dataset="digits", labels=40, epochs=10),
                   param_space={"noise.rate": tune.grid_search([0.2, 0.4]), "noise.kind": "symmetric"}).fit()

    Reports `epoch`, `test_accuracy`, `train_loss`, … once an epoch, with a Ray checkpoint from which a paused or lost trial
    goes on, so that schedulers such as ASHA work.  Choose by `validation_accuracy` (give `validation.images`), not by test.
    Raises `ValueError` for an unknown method or field before anything starts.
    """
    start = Trial(method=methods.configure(method)).override(base)

    def train(config: dict[str, Any]) -> None:
        state = None
        if checkpoint := tune.get_checkpoint():
            with checkpoint.as_directory() as folder:
                state = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
        for row in run(start.override(_dotted(config)), Execution(), state):
            with tempfile.TemporaryDirectory() as folder:
                torch.save(row.snapshot(), Path(folder) / "state.pt")
                tune.report(_flat(row), checkpoint=tune.Checkpoint.from_directory(folder))

    train.__name__ = method
    return train


def _dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"noise": {"rate": .4}} -> {"noise.rate": .4}"""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found

"""Plan -> Ray Tune -> rows.  The only module that imports Ray.

The results folder, not Ray, is the memory: a run schedules what the plan still lacks, every worker writes its own
parquet rows and keeps its own checkpoint there, and Tune's folder is scratch.  So a killed worker is retried by Tune
and goes on from its checkpoint, and a killed driver or a killed Ray is followed by the next `run`, which does the
same.

Which Ray to use (environment variable RAY_ADDRESS) and how it authenticates is decided when this module is imported:
Ray reads both when it is imported itself.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import logging
import math
import os
import pickle
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from lnl import machine


def _prepare_environment() -> str:
    """Ray's settings, which count only before `import ray`; returns the address: `local`, `auto` or a given one.

    A Ray of our own gets a token of its own, in this process's environment only, and stays on loopback: all of its
    ports, those of metrics included.  A cluster's authentication is its own, and so is that of a program that imported
    Ray before us.
    """
    address = os.environ.get("RAY_ADDRESS") or ("auto" if machine.cluster()[0] else "local")
    settings = {
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        "RAY_SCHEDULER_EVENTS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
        "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # `_Watch` says it in a line
    }
    if address == "local" and "ray" not in sys.modules:
        settings |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        settings["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's one way, on Linux too, to 127.0.0.1 as its address
    if not machine.has_home():
        settings["HOME"] = "/nonexistent"  # Ray's import and its workers' want the name of one, and write nothing there
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    return address


ADDRESS = _prepare_environment()

import ray  # noqa: E402
import torch  # noqa: E402
from ray import tune  # noqa: E402
from ray.autoscaler.sdk import request_resources  # noqa: E402
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler  # noqa: E402
from ray.tune.search import Searcher  # noqa: E402

from lnl import checkpoints, checks, data, methods, packing, processes  # noqa: E402
from lnl.code_hash import code_hash, snapshot  # noqa: E402
from lnl.files import listed  # noqa: E402
from lnl.logs import mask  # noqa: E402
from lnl.packing import Budget  # noqa: E402
from lnl.provenance import Current, data_keys, verified_checksum  # noqa: E402
from lnl.results import StorageError, Store, is_outcome, partition, tidy_leases  # noqa: E402
from lnl.study import Plan, Planned, Status, plan_row, reconcile  # noqa: E402
from lnl.trial import (  # noqa: E402
    Execution,
    Trial,
    is_trained,
    run,
)
from lnl.worker import Job, Settings, flat  # noqa: E402

RETRIES = 3  # of infrastructure failures (a lost worker or node), per trial and run
PENDING = 200  # trials that wait for devices within Ray, where an autoscaler sees them
NODE_ANSWERS_S = 120.0  # until a node that does not answer is left alone
# until a node that could take a trial is given up, where nothing says that one will come
NODE_JOINS_S = float(os.environ.get("LNL_NODE_JOINS_S", 120))
POLL_S = 2.0  # while another driver finishes its trials
LOOK_S = 10.0  # between two looks at the machines


INTERRUPTED, BLOCKED = "Interrupted", "Not trained"
UNFINISHED = (INTERRUPTED, BLOCKED, packing.BUDGET)  # begin the sentences of runs that ended in order


@dataclass
class Outcome:
    """What one `run_plan` did."""

    statuses: list[Status]
    stopped: str | None = None  # one sentence, where it ended early


def run_plan(
    plan: Plan,
    settings: Settings,
    progress: Any,
    *,
    arms: Sequence[str] | None = None,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> Outcome:
    """Run what the plan lacks (failed trials again, stale ones on request) and return how it then stands.

    `budget`: what the whole run may still take; none where none is given.

    `progress` has `start(todo, statuses)`, `epoch(trial, metrics)`, `end(trial, outcome)`, `say(sentence)` and
    `finish()`.  Raises `StorageError` or `lnl.data.DataError` before anything starts where results or data cannot be
    had, `ConnectionError` where the cluster cannot.
    """
    processes.clear(machine.temporary_folders())
    store = Store(settings.storage)
    again = {"missing", "failed", *(["stale"] if rerun_stale else [])}
    tried: set[str] = set()
    stopped: str | None = None
    cluster: _Cluster | None = None

    chosen = plan.of_arms(arms)

    def standing() -> list[Status]:
        return [status for status in reconcile(plan, store, current) if status.planned.id in chosen]

    def trained(trial: Trial) -> bool:
        return is_trained(store, plan.study, trial, current)

    current = Current(settings.data)
    todo = [status.planned for status in standing() if status.state in again]
    checks.check(todo, settings.data, read=True)
    current = Current(settings.data)  # with data sets that were fetched: results of other data are known only now
    statuses, checked = standing(), {planned.id for planned in todo}
    more = [status.planned for status in statuses if status.state in again and status.planned.id not in checked]
    checks.check(more, settings.data, read=True)
    job_of = _submit(plan, store, current, rerun_stale)
    with contextlib.ExitStack() as stack:
        while stopped is None:
            waiting = _waiting(plan, statuses, again, tried, trained)
            ids = {planned.id for planned in waiting}
            if any(_ready(planned, ids, trained) for planned in waiting):
                asked = [planned.trial for planned in waiting]
                connection = _cluster(plan, settings, progress, asked, budget, current)
                cluster = cluster or stack.enter_context(connection)
                progress.start(waiting, statuses)
                stack.callback(progress.finish)
                expected = {status.planned.id: status.seconds for status in statuses}
                queue = _Queue(waiting, cluster, expected, trained)
                watch = _Watch(progress, queue, cluster)
                work = _Work(watch, cluster, job_of, ahead=PENDING)
                _tune(watch, work, _Scheduler(work, store, plan.study))
                stopped = cluster.stopped = watch.stopped or queue.stopped
                tried |= queue.tried - watch.taken
            elif settings.wait and any(status.state == "running" for status in statuses):
                if cluster:
                    cluster.look()
                time.sleep(POLL_S)  # another driver trains them; should it die, they are tried here
            elif waiting:
                stopped = _blocked(waiting, statuses, trained)
            else:
                break
            statuses = standing()
    tidy_leases(store, plan.study, {status.planned.id for status in statuses if status.state in ("done", "stale")})
    checkpoints.tidy(store, plan.study)
    return Outcome(statuses, stopped)


class _Queue:
    """The trials that a plan waits for, handed out in its order to `_Work`: each once all that it starts from is
    trained, its share of a GPU is known and the budget holds it; again, with a larger share, where memory ran out.
    """

    pruner = "none"

    def __init__(
        self,
        waiting: Sequence[Planned],
        cluster: _Cluster,
        expected: Mapping[str, float | None],
        is_trained: Callable[[Trial], bool],
    ) -> None:
        self.waiting = list(waiting)
        self.running: dict[str, Planned] = {}
        self.cluster, self.expected, self.is_trained = cluster, expected, is_trained
        self.tried: set[str] = set()
        self.blocked: set[str] = set()  # until another trial ends
        self.stopped: str | None = None

    def next(self, capacity: int) -> Planned | None:
        shares = self.cluster.shares
        pending = {planned.id for planned in (*self.waiting, *self.running.values())}
        measuring = {
            shares.kind_of(planned.trial) for planned in self.running.values() if shares.of(planned.trial) is None
        }
        for place, planned in enumerate(self.waiting):
            if shares.of(planned.trial) is None and shares.kind_of(planned.trial) in measuring:
                continue  # another trial of its kind measures their memory
            if planned.id in self.blocked or not _ready(planned, pending, self.is_trained):
                self.blocked.add(planned.id)
                continue
            if not self.cluster.budget.holds(self.expected.get(planned.id), self.cluster.shares.gpus(planned.trial)):
                self.stopped = self.cluster.budget.sentence if not self.running else None
                return None
            self.running[planned.id] = self.waiting.pop(place)
            self.tried.add(planned.id)
            return planned
        return None

    def busy(self) -> bool:
        return bool(self.running)

    def epoch(self, trial: str, metrics: Mapping[str, Any]) -> bool:
        return False

    def ended(self, trial: str, outcome: Mapping[str, Any]) -> None:
        self.blocked.clear()
        self.running.pop(trial, None)

    def again(self, trial: str) -> None:
        self.waiting.insert(0, self.running.pop(trial))
        self.tried.discard(trial)


def _submit(plan: Plan, store: Store, current: Current, rerun_stale: bool) -> Callable[[Planned], Job]:
    """Write the plan to the store; returns what makes jobs of its trials."""
    identity, run = store.identity(), secrets.token_hex(8)
    commit, dirty = git_state()
    store.write_plan(plan_row(plan, commit, current))

    def job(planned: Planned) -> Job:
        return Job(
            trial=planned.trial.model_dump(mode="json"),
            arm=planned.arm,
            setting=planned.setting,
            prerequisite=planned.prerequisite,
            search=planned.search,
            suggestion=planned.suggestion,
            embeddings=plan.record["embeddings"],
            store=identity,
            run=run,
            rerun_stale=rerun_stale or planned.search is not None,  # a search compares what one code gives
            study=plan.study,
            preset=plan.preset,
            plan_hash=plan.hash,
            selection=plan.record["selection"],
            sources=current.sources(planned.trial),
            git_commit=commit,
            git_dirty=dirty,
        )

    return job


def _waiting(
    plan: Plan, statuses: Sequence[Status], again: set[str], tried: set[str], is_trained: Callable[[Trial], bool]
) -> list[Planned]:
    """Trials to run, with those of their prerequisites that are not trained by current code on current data.

    Of one that diverged, that is kept: what starts from it has diverged with it.
    """
    of = {status.planned.id: status for status in statuses}
    ids = {status.planned.id for status in statuses if status.state in again}
    untouched = list(ids)
    is_trained = functools.cache(is_trained)  # many start from one
    while untouched:
        for trial in of[untouched.pop()].planned.trial.prerequisites.values():
            status = of[trial.id]
            if trial.id not in ids and status.state != "running" and not is_trained(trial):
                ids.add(trial.id)
                untouched.append(trial.id)
    return [planned for planned in plan.trials if planned.id in ids - tried]


def _ready(planned: Planned, pending: Collection[str], is_trained: Callable[[Trial], bool]) -> bool:
    """All that it starts from is trained and will not be trained again before it: it is not `pending`."""
    return all(trial.id not in pending and is_trained(trial) for trial in planned.trial.prerequisites.values())


def _blocked(waiting: Sequence[Planned], statuses: Sequence[Status], is_trained: Callable[[Trial], bool]) -> str:
    """Why none of them can run."""
    of = {status.planned.id: status for status in statuses}
    lacking = [
        of[trial.id] for planned in waiting for trial in planned.trial.prerequisites.values() if not is_trained(trial)
    ]
    first = lacking[0]
    why = (first.failure or "it is not trained yet: run again").splitlines()[0]
    return (
        f"{BLOCKED}: {len(waiting)} trials start from others that are not trained; "
        f"{first.planned.id} ({first.planned.trial.method_name}): {why}"
    )


@dataclass
class _Cluster:
    """A connection to Ray, and how a run shares it out."""

    settings: Settings
    shares: packing.Shares
    budget: Budget
    machines_changed: Callable[[dict[str, Any]], None]  # hears what there is then
    machines: dict[str, Any] = field(default_factory=dict)
    stopped: str | None = None  # why the run ended early
    running: dict[str, Planned] = field(default_factory=dict)
    looked: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        """Tell where machines have come or gone, now and then."""
        if time.monotonic() - self.looked >= LOOK_S:
            self.looked = time.monotonic()
            if (now := _machines()) != self.machines:
                self.machines = now
                self.machines_changed(now)

    def begin(self, planned: Planned, seconds: float | None) -> float:
        """A trial is handed to Ray, with this share of a GPU.  `seconds`: what it is expected to take."""
        self.running[planned.id] = planned
        self.budget.begin(planned.id, gpus := self.shares.give(planned.trial), seconds)
        return gpus

    def end(self, trial: str, outcome: Mapping[str, Any]) -> str | None:
        """It comes back, with what it measured; a sentence where it ran out of memory and is to go on with more."""
        self.budget.end(trial)
        if (planned := self.running.pop(trial, None)) is None:
            return None
        if outcome.get("failure") == "oom" and self.shares.widen(planned.trial):
            share = self.shares.gpus(planned.trial)
            return f"{planned.arm} {trial} ran out of memory: it goes on with {share:g} of a GPU."
        if outcome["outcome"] in ("done", "pruned") and "peak_memory_mb" in outcome:
            self.shares.learn_of(planned.trial, outcome)
        return None


@contextlib.contextmanager
def _cluster(
    plan: Plan,
    settings: Settings,
    progress: Any,
    waiting: Sequence[Trial],
    budget: Budget | None,
    current: Current,
) -> Iterator[_Cluster]:
    """Connect to Ray, look at its nodes, write down when the run begins and ends.

    `waiting`: the trials that are to be run, or of searches those that they begin with.
    """
    store, run = Store(settings.storage), secrets.token_hex(8)
    if settings.address == "local" and not os.environ.get("RAY_ADDRESS") and (refused := machine.cluster()[1]):
        progress.say(refused)
    with _ray(settings.address, settings.cpus):
        gpus = settings.gpus_per_trial
        if gpus is None and settings.address != "local":  # on a cluster that starts, workers join after the head
            _check_room(replace(settings, gpus_per_trial=0.0), packing.Shares(0.0), progress)
        has_gpus = ray.cluster_resources().get("GPU", 0) > 0
        if gpus is None or (gpus == packing.AUTO and not has_gpus and settings.address == "local"):
            gpus = 1.0 if has_gpus else 0.0
        settings = replace(settings, gpus_per_trial=gpus)
        shares = packing.Shares(gpus)
        if gpus == packing.AUTO:
            shares.learn(store.read("trials", columns=packing.COLUMNS)[0])
        if settings.address != "local":
            checksums = {key: current.checksum(*key) for key in data_keys(waiting)}
            _check_nodes(settings, store.identity(), checksums, progress)
        _check_room(settings, shares, progress)
        about: dict[str, Any] = {"run": run, "preset": plan.preset}
        machines = _machines()
        store.write_event(plan.study, "run_started", **about, **machines, trials=len(waiting))
        began = time.monotonic()
        changed = functools.partial(store.write_event, plan.study, "run_resized", **about)
        cluster = _Cluster(settings, shares, budget or Budget(), lambda now: changed(**now), machines)
        try:
            yield cluster
        finally:
            with contextlib.suppress(StorageError):  # it has ended the run already
                seconds = time.monotonic() - began
                store.write_event(plan.study, "run_ended", **about, stopped=cluster.stopped, seconds=seconds)


def _machines() -> dict[str, Any]:
    """What the cluster has at this moment, as events tell it."""
    resources = ray.cluster_resources()
    hosts = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    counts = {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU")}
    return {"resources": counts, "nodes": len(hosts), "hosts": sorted(set(hosts))}


@contextlib.contextmanager
def _ray(address: str, cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray: the cluster at `address`, or one of our own here.  Raises `OSError`."""
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            logging.getLogger("ray").setLevel(logging.ERROR)
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            folder = None
            if address == "local":
                folder = stack.enter_context(machine.ray_folder())
                options |= _own_options(folder, cpus)
            else:  # the code of this driver, whatever lies on the other machines
                options |= {"runtime_env": {"py_modules": [str(_code() / "lnl")]}}
            if address == "auto":  # Ray by itself follows whatever it finds, other users' as well
                os.environ["RAY_ADDRESS"] = _cluster_of_this_machine()
            _knock(address)
            stack.callback(ray.shutdown)
            with _standard_error() as said:
                try:
                    ray.init(address=address, configure_logging=True, **options)
                except Exception as error:  # Ray's own time-out is no more than that
                    reason = f"{error} {said()}"
                    raise ConnectionError(_failure(folder, reason) if folder else _refusal(address, reason)) from None
        yield


def _own_options(folder: Path, cpus: int | None) -> dict[str, Any]:
    """Of a Ray of our own, whose files are in `folder`."""
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": 200_000_000,
        "num_cpus": cpus or machine.cpus(),
        "_temp_dir": str(folder / "r"),
    }
    if "RAY_worker_niceness" not in os.environ:  # by default workers give way to everybody, and starve beside others
        options["_system_config"] = {"worker_niceness": 0}
    if not os.path.isdir("/dev/shm"):
        options["_plasma_directory"] = str(folder)
    return options


def _cluster_of_this_machine() -> str:
    """Its address; Raises `ConnectionError` where it belongs to none."""
    address, refused = machine.cluster()
    if address is None:
        raise ConnectionError(
            refused
            or "This machine belongs to no Ray cluster: start one, name one (--address host:port), or use "
            "--address local."
        )
    return address


@contextlib.contextmanager
def _standard_error() -> Iterator[Callable[[], str]]:
    """Keep aside what is written there, by threads of Ray too: twenty lines say what its one error leaves out."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept:
        os.dup2(kept.fileno(), 2)
        try:
            yield lambda: (kept.seek(0), kept.read())[1]
        finally:
            os.dup2(before, 2)
            os.close(before)


def _refusal(address: str, reason: str) -> str:
    """Why somebody listens at the address and no connection came about, and what to do."""
    first = (reason.strip().splitlines() or ["no answer"])[0]
    _, mismatch, versions = reason.partition("Version mismatch:")
    if mismatch:
        return (
            f"The Ray cluster at '{address}' runs another Ray or Python than this driver, and both must be the same: "
            f"{' '.join(versions.split())}"
        )
    if "AuthToken" in reason:
        return (
            f"The Ray cluster at '{address}' refuses this driver's token: set RAY_AUTH_MODE=token and put the "
            "cluster's own token into ~/.ray/auth_token, or name its file in RAY_AUTH_TOKEN_PATH."
        )
    return f"No Ray cluster can be used at '{address}': start one, or use --address local. ({first})"


def _failure(folder: Path, reason: str) -> str:
    """Why a Ray of our own did not start: in its own words, and what this machine has left."""
    cause = (reason.partition("Check failed:")[2] or reason).strip() or "it does not say why"
    left = {
        "GiB of memory": psutil.virtual_memory().available / 2**30,
        f"GiB of disk in {folder.parent}": psutil.disk_usage(str(folder)).free / 2**30,
    }
    free = " and ".join(f"{amount:.1f} {what}" for what, amount in left.items())
    return (
        f"Ray cannot start on this machine, which has {free} free and a load of {os.getloadavg()[0]:.0f} on "
        f"{machine.cpus()} CPUs: {textwrap.shorten(cause.splitlines()[0], 300, placeholder=' …')}"
    )


def _knock(address: str) -> None:
    """Raise `ConnectionError` where nobody can be heard at host:port, or on loopback; Ray would try for minutes."""
    try:
        if address == "local":
            with socket.create_server(("127.0.0.1", 0)) as door:
                socket.create_connection(door.getsockname(), timeout=10).close()
            return
        where = os.environ["RAY_ADDRESS"] if address == "auto" else address  # a dead cluster leaves its address
        host, colon, port = where.removeprefix("ray://").rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, ValueError) as error:  # ValueError: of a port that is no number
        raise ConnectionError(
            f"This machine cannot reach itself at 127.0.0.1, as Ray has to: bring its loopback up. ({error})"
            if address == "local"
            else f"No Ray cluster answers at '{address}': start one, or use --address local. ({error})"
        ) from None


def _check_nodes(
    settings: Settings, identity: str, checksums: Mapping[tuple[str, str | None], str | None], progress: Any
) -> None:
    """Ask every node of the cluster whether trials can run there.

    Raises `StorageError` where one does not see the results folder, runs other code, or has (of those that can take a
    trial) no or other data than this driver; says where GPUs are none.  A node that joins later is asked by its first
    trial.  `checksums`: of data sets and of columns of human labels, here.
    """

    def look(node: str) -> tuple[str | None, str | None]:
        name = socket.gethostname()
        try:
            Store(settings.storage).check_identity(identity)
        except StorageError as error:
            return str(error), None
        if (theirs := code_hash("supervised")) != mine:
            return f"{name} runs another version of lnl ({theirs}) than this driver ({mine}).", None
        for (dataset, column), expected in checksums.items() if node in with_room else ():
            try:
                found = verified_checksum(dataset, column, settings.data)
            except data.DataError as error:
                return f"{name} cannot use the data: {error}", None
            if found != expected:
                what = f"'{column}' of {dataset}" if column else dataset
                return (
                    f"{name} has another version of {what} ({found}) than this driver ({expected}): give all machines "
                    "the same files.",
                    None,
                )
        if node in with_gpus and not torch.cuda.is_available():
            return None, f"{name} offers GPUs that PyTorch cannot use: trials there train on its CPU."
        return None, None

    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = {node["NodeID"] for node in nodes if node["Resources"].get("GPU")}
    with_room = {node["NodeID"] for node in nodes if node["Resources"].get("CPU", 0.0) >= settings.cpus_per_trial}
    if settings.gpus_per_trial:
        with_room &= with_gpus
    mine = code_hash("supervised")
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    ask = ray.remote(num_cpus=0, max_retries=0)(look)
    asked = [
        ask.options(scheduling_strategy=place(node["NodeID"], soft=False)).remote(node["NodeID"]) for node in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        name = node["NodeManagerHostname"]
        try:
            refusal, remark = ray.get(answer, timeout=NODE_ANSWERS_S)
        except ray.exceptions.RayError as error:
            first = str(error).strip().splitlines()[0]
            progress.say(
                f"{name} does not answer ({type(error).__name__}: {first}); the study goes on without waiting."
            )
            continue
        if refusal:
            raise StorageError(refusal)
        if remark:
            progress.say(remark)


def _check_room(settings: Settings, shares: packing.Shares, progress: Any) -> None:
    """Ask for a node that can take a trial, and wait for it.  Raises `ConnectionError` where none comes."""
    gpus = shares.given
    wanted = {"CPU": settings.cpus_per_trial, "GPU": gpus}
    asked = f"{settings.cpus_per_trial:g} CPUs and {gpus:g} GPUs"
    deadline = time.monotonic() + (0 if settings.address == "local" else NODE_JOINS_S)
    told = False
    try:
        while not _has_room(wanted):
            if time.monotonic() >= deadline:
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                there = ", ".join(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in nodes)
                raise ConnectionError(
                    f"A trial asks for {asked}, and no node offers that (there are {there}): change --gpus-per-trial "
                    "or --cpus-per-trial, or add a node."
                )
            if not told:
                progress.say(f"No node offers {asked} yet: waiting for one, {NODE_JOINS_S:g} s at most.")
                told = True
            # An autoscaler starts a node for it; again and again, because another driver's last word undoes ours.
            request_resources(bundles=[{kind: math.ceil(share) for kind, share in wanted.items() if share}])
            time.sleep(POLL_S)
    finally:
        if told:
            request_resources(bundles=[])


def _has_room(wanted: Mapping[str, float]) -> bool:
    return any(
        node["Alive"] and all(node["Resources"].get(kind, 0.0) >= share for kind, share in wanted.items())
        for node in ray.nodes()
    )


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
        from lnl.worker import Job, execute

        here = replace(pickle.loads(settings), gpus_per_trial=config["job"]["gpus"])
        execute(Job.from_text(config["job"]["job"]), here, tune.report)

    return work


@functools.cache
def _code() -> Path:
    """The folder with this process's code that workers import from; it lives as long as the process."""
    scratch = contextlib.ExitStack()
    atexit.register(scratch.close)
    return snapshot(Path(scratch.enter_context(processes.scratch("code"))))


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
        self.source = source  # a `_Queue`, or the `lnl.search.Searches`
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


# ---------------------------------------------------------------------------------------------------------- searches


def run_search(
    plan: Plan,
    searches: Any,
    settings: Settings,
    progress: Any,
    *,
    rerun_stale: bool = False,
    budget: Budget | None = None,
) -> str | None:
    """Train what the searches ask for until all have spent their budgets; returns a sentence where it ended early.

    `searches` is a `lnl.search.Searches`.  Raises `StorageError` before anything starts where results cannot be had.
    """
    processes.clear(machine.temporary_folders())
    store = Store(settings.storage)
    job_of = _submit(plan, store, searches.current, rerun_stale)
    stopped: str | None = None
    with contextlib.ExitStack() as stack:
        stack.callback(searches.close)
        begin_with = [search.cell.trial for search in searches.searches]
        connection = _cluster(plan, settings, progress, begin_with, budget, searches.current)
        cluster = stack.enter_context(connection)
        stack.callback(progress.finish)
        progress.start()
        watch = _Watch(progress, searches, cluster)
        work = _Work(watch, cluster, job_of)
        scheduler = _Scheduler(work, store, plan.study)
        while stopped is None and not searches.spent():
            if searches.work():
                work.living.clear()
                _tune(watch, work, scheduler)
                stopped = cluster.stopped = watch.stopped
            elif settings.wait:
                cluster.look()
                time.sleep(POLL_S)  # another driver evaluates the rest; should it die, that is taken over
            else:
                break
    rows, _ = store.read("trials", plan.study, ["trial", "status", "failure_class"])
    trials = set(rows.loc[is_outcome(rows) | (rows["status"] == "pruned"), "trial"])
    told = listed(store.root / "suggestions" / partition(plan.study), "*.parquet")
    tidy_leases(store, plan.study, trials | {f"search-{path.stem}" for path in told})
    checkpoints.tidy(store, plan.study)
    return stopped


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


@functools.cache
def git_state() -> tuple[str | None, bool | None]:
    """Commit of the running code and whether it has uncommitted changes; (None, None) outside a repository."""
    if sent := os.environ.get("LNL_GIT_COMMIT"):  # by who sent the code here without its repository
        return sent.removesuffix("-dirty"), sent.endswith("-dirty")
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *words],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


# ------------------------------------------------------------------------------------------- for anybody's own Tuner


def trainable(method: str, **base: Any) -> Callable[[dict[str, Any]], None]:
    """Any method for `ray.tune.Tuner`; `base` and the Tuner's `param_space` hold (dotted) fields of `Trial`.

    What a trial starts from (`init_from`, a teacher) is trained within it; only a study trains it once for all.

        tune.Tuner(trainable("mixmatch", dataset="digits", labels=40, epochs=10),
                   param_space={"noise.rate": tune.grid_search([0.2, 0.4]), "noise.kind": "symmetric"}).fit()

    Reports `epoch`, `test_accuracy`, `train_loss`, … once an epoch, with a Ray checkpoint from which a paused or lost
    trial goes on, so that schedulers such as ASHA work.  Choose by `validation_accuracy` (give `validation.images`),
    not by test.
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
                tune.report(flat(row), checkpoint=tune.Checkpoint.from_directory(folder))

    train.__name__ = method
    return train


def _dotted(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"noise": {"rate": .4}} -> {"noise.rate": .4}"""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= _dotted(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found

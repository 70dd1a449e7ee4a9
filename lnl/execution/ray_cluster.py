"""Connecting to a Ray cluster and checking its nodes before anything trains."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
import ray
import torch
from ray.autoscaler.sdk import request_resources

from lnl import data
from lnl.execution import packing
from lnl.execution.job import Settings
from lnl.execution.packing import Budget
from lnl.storage.objects import StorageError
from lnl.storage.store import Store
from lnl.study.plan import Plan, Planned
from lnl.system import machine, processes
from lnl.trial.code_hash import snapshot, sources_digest
from lnl.trial.config import Trial
from lnl.trial.provenance import Current, data_keys, verified_checksum


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
NODE_ANSWERS_S = 120.0  # until a node that does not answer is left alone
# until a node that could take a trial is given up, where nothing says that one will come
NODE_JOINS_S = float(os.environ.get("LNL_NODE_JOINS_S", 120))
POLL_S = 2.0  # while another driver finishes its trials
LOOK_S = 10.0  # between two looks at the machines


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
        if (theirs := sources_digest()) != mine:
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
    mine = sources_digest()
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


@functools.cache
def _code() -> Path:
    """The folder with this process's code that workers import from; it lives as long as the process."""
    scratch = contextlib.ExitStack()
    atexit.register(scratch.close)
    return snapshot(Path(scratch.enter_context(processes.scratch("code"))))

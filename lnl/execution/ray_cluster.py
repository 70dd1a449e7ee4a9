"""The Ray cluster of one run: connected, its nodes checked, its beginning and end stored as events.

Import it after `ray_environment.prepare`.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import ray

from lnl.execution import packing, ray_nodes
from lnl.execution.cluster import Cluster, precision_remark
from lnl.execution.interfaces import Display, RunRequest
from lnl.execution.job import RunSettings
from lnl.execution.packing import Budget, Shares
from lnl.execution.ray_connection import connected
from lnl.storage.objects import StorageError
from lnl.storage.store import Store
from lnl.study.plan import Plan
from lnl.system import machine
from lnl.trial.provenance import data_keys


@contextlib.contextmanager
def cluster_of_run(request: RunRequest) -> Iterator[Cluster]:
    """Connect to Ray, check its nodes, store when the run begins and ends."""
    settings, display, trials = request.settings, request.display, request.trials
    store = Store(settings.storage)
    if settings.address == "local" and not os.environ.get("RAY_ADDRESS") and (refused := machine.cluster()[1]):
        display.say(refused)
    with connected(settings.address, settings.cpus):
        gpus = _gpus_per_trial(settings, display)
        settings, shares = replace(settings, gpus_per_trial=gpus), Shares(gpus)
        if gpus == packing.AUTO:
            shares.learn(store.read("trials", columns=packing.MEASURED)[0])
        if settings.address != "local":
            checksums = {key: request.current.checksum(*key) for key in data_keys(trials)}
            ray_nodes.check_nodes(settings, store.identity(), checksums, display)
        ray_nodes.check_room(settings, shares.given, display)
        if remark := precision_remark(trials, gpus):
            display.say(remark)
        budget = request.budget or Budget()
        with _stored_as_events(request.plan, store, settings, shares, budget, len(trials)) as cluster:
            yield cluster


@contextlib.contextmanager
def _stored_as_events(
    plan: Plan, store: Store, settings: RunSettings, shares: Shares, budget: Budget, trials: int
) -> Iterator[Cluster]:
    event = functools.partial(store.write_event, plan.study, run=secrets.token_hex(8), preset=plan.preset)
    machines = ray_nodes.machines()
    event("run_started", **machines, trials=trials)
    began = time.monotonic()
    cluster = Cluster(
        settings,
        shares,
        budget,
        ray_nodes.machines,
        machines_changed=lambda machines: event("run_resized", **machines),
        machines=machines,
    )
    try:
        yield cluster
    finally:
        with contextlib.suppress(StorageError):  # it has ended the run already
            event("run_ended", stopped=cluster.stopped, seconds=time.monotonic() - began)


def _gpus_per_trial(settings: RunSettings, display: Display) -> float | Literal["auto"]:
    """The GPUs of a trial: as asked for, else one where the cluster has GPUs."""
    asked, is_local = settings.gpus_per_trial, settings.address == "local"
    if asked is None and not is_local:  # on a cluster that starts, workers join after the head
        ray_nodes.check_room(settings, 0.0, display)
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    if asked is None or (asked == packing.AUTO and not has_gpus and is_local):
        return 1.0 if has_gpus else 0.0
    return asked

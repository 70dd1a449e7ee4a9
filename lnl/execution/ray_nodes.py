"""The nodes of a Ray cluster: what they have, and whether trials can run there.

Import it after `ray_environment.prepare`.
"""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import ray
import torch
from ray.autoscaler.sdk import request_resources

from lnl import data
from lnl.execution.cluster import Machines
from lnl.execution.interfaces import Display
from lnl.execution.job import RunSettings
from lnl.storage.objects import StorageError
from lnl.storage.store import Store
from lnl.system import user_code
from lnl.trial.code_hash import sources_digest
from lnl.trial.provenance import verified_checksum

ANSWER_S = 120.0  # until a node that does not answer is no longer waited for
# until a node that could take a trial is given up, where nothing says that one will come
JOIN_S = float(os.environ.get("LNL_NODE_JOINS_S", 120))
POLL_S = 2.0

DataKey = tuple[str, str | None]  # a data set, and a column of its given labels ("" for the only one)
Answer = tuple[str | None, str | None]  # of a node: why no trial can run there, and what the user should know


def machines() -> Machines:
    """What the cluster has at this moment."""
    resources = ray.cluster_resources()
    hosts = [node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]]
    counts = {kind: resources.get(kind, 0.0) for kind in ("CPU", "GPU")}
    return {"resources": counts, "nodes": len(hosts), "hosts": sorted(set(hosts))}


def check_nodes(
    settings: RunSettings, identity: str, checksums: Mapping[DataKey, str | None], display: Display
) -> None:
    """Ask every node of the cluster whether trials can run there.

    Raises `StorageError` where a node does not see the results folder, runs other code, or has (of those that can take
    a trial) no or other data than this driver; tells where PyTorch cannot use a node's GPUs.  A node that joins later
    is asked by its first trial.  `checksums`: of data sets and of columns of given labels, on this machine.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    with_gpus = {node["NodeID"] for node in nodes if node["Resources"].get("GPU")}
    with_room = {node["NodeID"] for node in nodes if node["Resources"].get("CPU", 0.0) >= settings.cpus_per_trial}
    if settings.gpus_per_trial:
        with_room &= with_gpus
    place = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    ask = ray.remote(num_cpus=0, max_retries=0)(_node_check(settings, identity, checksums, with_room, with_gpus))
    answers = [
        ask.options(scheduling_strategy=place(node["NodeID"], soft=False)).remote(node["NodeID"]) for node in nodes
    ]
    for node, answer in zip(nodes, answers, strict=True):
        refusal, remark = _answer_of(node["NodeManagerHostname"], answer)
        if refusal:
            raise StorageError(refusal)
        if remark:
            display.say(remark)


def _answer_of(name: str, answer: Any) -> Answer:
    try:
        refusal, remark = ray.get(answer, timeout=ANSWER_S)
    except ray.exceptions.RayError as error:
        first_line = str(error).strip().splitlines()[0]
        reason = f"{type(error).__name__}: {first_line}"
        return None, f"{name} does not answer ({reason}); the study goes on without waiting."
    return refusal, remark


def _node_check(
    settings: RunSettings,
    identity: str,
    checksums: Mapping[DataKey, str | None],
    with_room: Collection[str],
    with_gpus: Collection[str],
) -> Callable[[str], Answer]:
    """The question to a node, by its id; Ray sends it by value, and so to nodes with other code, too.

    `with_room`, `with_gpus`: ids of the nodes that can take a trial, and of those that offer GPUs.
    """
    own_hash, own_code = sources_digest(), user_code.carried()

    def check_data(host: str) -> str | None:
        user_code.receive(own_code)  # data sets may be functions
        for (dataset, column), expected in checksums.items():
            try:
                checksum = verified_checksum(dataset, column, settings.data)
            except data.DataError as error:
                return f"{host} cannot use the data: {error}"
            if checksum != expected:
                labels = f"'{column}'" if column else "the given labels"
                what = dataset if column is None else f"{labels} of {dataset}"
                return (
                    f"{host} has another version of {what} ({checksum}) than this driver ({expected}): give all "
                    "machines the same files."
                )
        return None

    def check(node: str) -> Answer:
        host = socket.gethostname()
        try:
            Store(settings.storage).check_identity(identity)
        except StorageError as error:
            return str(error), None
        if (node_hash := sources_digest()) != own_hash:
            return f"{host} runs another version of lnl ({node_hash}) than this driver ({own_hash}).", None
        if node in with_room and (refusal := check_data(host)):
            return refusal, None
        if node in with_gpus and not torch.cuda.is_available():
            return None, f"{host} offers GPUs that PyTorch cannot use: trials there train on its CPU."
        return None, None

    return check


def check_room(settings: RunSettings, gpus: float, display: Display) -> None:
    """Ask for a node that can take a trial with these GPUs, and wait for it.

    Raises `ConnectionError` where none comes.
    """
    wanted = {"CPU": settings.cpus_per_trial, "GPU": gpus}
    deadline = time.monotonic() + (0 if settings.address == "local" else JOIN_S)
    is_waiting = False
    try:
        while not _has_room(wanted):
            if time.monotonic() >= deadline:
                raise ConnectionError(_no_room(wanted))
            if not is_waiting:
                display.say(f"No node offers {_in_words(wanted)} yet: waiting for one, {JOIN_S:g} s at most.")
                is_waiting = True
            # An autoscaler starts a node for it; asked again and again, because the last word of another driver
            # replaces ours.
            request_resources(bundles=[{kind: math.ceil(share) for kind, share in wanted.items() if share}])
            time.sleep(POLL_S)
    finally:
        if is_waiting:
            request_resources(bundles=[])


def _no_room(wanted: Mapping[str, float]) -> str:
    offers = ", ".join(_in_words(node["Resources"]) for node in ray.nodes() if node["Alive"])
    return (
        f"A trial asks for {_in_words(wanted)}, and no node offers that (there are {offers}): change --gpus-per-trial "
        "or --cpus-per-trial, or add a node."
    )


def _in_words(resources: Mapping[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"


def _has_room(wanted: Mapping[str, float]) -> bool:
    return any(
        node["Alive"] and all(node["Resources"].get(kind, 0.0) >= share for kind, share in wanted.items())
        for node in ray.nodes()
    )

"""What `lnl doctor` looks for: missing packages, damaged files, and ports that accept unauthenticated connections.

Whoever reaches the dashboard of a Ray cluster without a token can run code on it (CVE-2023-48022).
"""

from __future__ import annotations

import http.client
import ipaddress
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from lnl.storage.files import listed, read_file, reason, shown
from lnl.storage.leases import leases
from lnl.storage.objects import StorageError
from lnl.storage.places import Place
from lnl.storage.store import Store
from lnl.storage.tables import TWICE
from lnl.system import machine, processes

DASHBOARD = 8265  # Ray's default port
LOCAL = "local"  # as an address: a Ray of our own, which has a token of its own
TOKEN = Path("~/.ray/auth_token")  # where Ray looks for one
PACKAGES = ("ray", "torch", "torchvision", "optuna", "pandas", "pyarrow")
_TRAIN_AGAIN = "remove it and its row below trials, then run the study again"  # a trial with a row counts as done
_KEEP_AGAIN = "remove it, then run the study again with --keep and --rerun-unkept"
REMEDIES = {  # what to do about a part of a table that cannot be read
    "trials": "remove it, then run the study again",
    "epochs": _TRAIN_AGAIN,
    "arrays": _TRAIN_AGAIN,
    "predictions": _KEEP_AGAIN,
    "beliefs": _KEEP_AGAIN,
    "suggestions": "remove it; the search goes on without it",
    "studies": "remove it",
    "events": "remove it",
}


def examine(store: Store) -> tuple[dict[str, Any], list[str]]:
    """Return facts of the environment, and a sentence for everything that is wrong there or in the results."""
    import torch

    versions = {name: _version(name) for name in PACKAGES}
    problems = [f"{name} is not installed: pip install -e ." for name, version in versions.items() if version is None]
    problems += _unreadable_tables(store)
    problems += _unreadable_files(store)
    problems += _leases(store)
    problems += _working_files(store)
    problems += _on_other_data(store)
    problems += of_cluster()
    on_disk = _disk(store.root, problems) if isinstance(store.root, Path) else {}
    facts = {
        "python": sys.version.split()[0],
        **versions,
        "cpus": machine.cpus(),
        "gpus": torch.cuda.device_count(),
        "bfloat16": bool(torch.cuda.is_bf16_supported())
        if torch.cuda.is_available()
        else bool(torch.backends.cpu.get_cpu_capability().startswith("AVX512")),
        **on_disk,
    }
    return facts, problems


def left_over() -> list[str]:
    """A sentence for each scratch folder of a process that was killed, which is no problem."""
    folders = processes.left_over(machine.temporary_folders())
    return [f"left-over folder {path}: of a process that was killed; the next run removes it." for path in folders]


def _unreadable_tables(store: Store) -> Iterator[str]:
    """Yield a sentence for each part of a table that cannot be read."""
    for table, remedy in REMEDIES.items():
        _, unreadable = store.read(table, check=True)
        for path, why in unreadable.items():
            yield f"left out {shown(store.within(path))} ({why}): {'remove those' if TWICE in why else remedy}."


def _on_other_data(store: Store) -> Iterator[str]:
    """Yield a sentence for each study and preset whose newest plan has results on data that were replaced since."""
    from analysis.results import read_results

    plans, _ = store.read("studies")
    for study, preset in sorted(set(zip(plans["study"], plans["preset"], strict=True))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unreadable files, which have their own sentences
            results = read_results(store.root, study, preset)
        if results.on_other_data:
            yield f"{study}, preset {preset}: {results.on_other_data}"


def _leases(store: Store) -> Iterator[str]:
    """Yield a sentence for each lease that nobody holds, or whose time cannot be right."""
    for (study, trial), lease in sorted(leases(store).items()):
        holder = f"process {lease['pid']} of {lease['host'].split('/')[0]}"
        name = trial.replace("search-", "suggestion ") if trial.startswith("search-") else f"trial {trial}"
        if lease["from_the_future"]:
            yield (
                f"the lease of {name} of {study} ({holder}) was renewed in the future: set the clocks right; the next "
                "run takes it over unless it is renewed again within a minute."
            )
        elif not lease["alive"]:
            yield f"abandoned lease of {name} of {study} ({holder} is gone): the next run takes it over."


def _working_files(store: Store) -> Iterator[str]:
    """Yield a sentence for each checkpoint and trained file that is damaged or no longer used."""
    from lnl.storage import checkpoints, kept  # the first imports torch

    for study, trial in sorted(checkpoints.of_finished(store)):
        yield f"checkpoint of the finished trial {trial} of {study}: the next run of the study removes it."
    files = [path for folder in ("checkpoints", "trained") for path in listed(store.root / folder, "*.*", deep=True)]
    for name, path in sorted((shown(store.within(path)), path) for path in files):
        if ".refused-" in path.name:
            yield f"refused checkpoint {name}: remove it once looked at."
        elif path.suffix == ".labels" or (path.suffix == ".pt" and path.parent.name != "checkpoints"):
            try:
                checkpoints.check(path)
            except checkpoints.Refused as error:
                yield f"damaged {name}: {error}; whoever needs it next trains it anew."
            except FileNotFoundError:  # its trial has ended meanwhile
                continue
    for path in listed(store.root / "weights", "*.safetensors", deep=True):
        try:
            kept.read_weights(path)
        except StorageError as error:
            yield str(error)
    for pattern in ("checkpoints/*.pt", "leases/*.json", "leases/*.pruned", "trained/*.npy"):
        folder, _, names = pattern.partition("/")
        old = (shown(store.within(path)) for path in listed(store.root / folder, names))
        yield from (f"{name} is of an older version of lnl, and no longer used: remove it." for name in sorted(old))


def _unreadable_files(store: Store) -> Iterator[str]:
    """Yield a sentence for each lease and log, and for the results' own name, that cannot be read."""
    readable = {store.lease_path(study, trial) for study, trial in leases(store)}
    for path in listed(store.root / "leases", "*.json", deep=True):
        if path not in readable and path.parent.name.startswith("study="):
            yield f"unreadable {shown(store.within(path))} ({_why_unreadable(path) or 'it holds no lease'}): remove it."
    for path in listed(store.root / "logs", "*.txt", deep=True):
        if why := _why_unreadable(path):
            yield f"unreadable {shown(store.within(path))} ({why}): remove it."
    try:
        store.known_identity()
    except StorageError as error:
        yield str(error)


def _why_unreadable(path: Place) -> str | None:
    try:
        return None if read_file(path) else "it is empty"
    except OSError as error:
        return reason(error)


def _disk(folder: Path, problems: list[str]) -> dict[str, float]:
    """Return the free space, and add problems that only a folder has: files of killed writers, and a full disk."""
    problems += [
        f"half-written {shown(path).removeprefix(f'{shown(folder)}/')}: left by a killed process; remove it."
        for path in listed(folder, ".*.tmp", deep=True)
    ]
    free = psutil.disk_usage(str(folder if folder.exists() else Path.cwd())).free / 2**30
    if free < 1:
        problems.append(f"only {free:.1f} GiB free where results are written.")
    return {"free_gib": round(free, 1)}


def _version(package: str) -> str | None:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return None


def of_cluster(port: int = DASHBOARD) -> Iterator[str]:
    """Yield sentences on the security of the Ray cluster that this machine belongs to; `port`: its dashboard's."""
    yield from _dashboard(port)
    address, refused = machine.cluster()
    if refused:
        yield refused
    if address or os.environ.get("RAY_ADDRESS", LOCAL) not in ("", LOCAL):
        yield from _token()


def _dashboard(port: int) -> Iterator[str]:
    if (version := _unauthenticated_answer(port)) is not None:
        yield (
            f"the dashboard on port {port} answers without a token ({version}): whoever reaches it runs code here; "
            "restart the cluster with RAY_AUTH_MODE=token."
        )
    if _listens_outside(port):
        yield (
            f"port {port} (Ray's dashboard) listens on outer addresses: start the head with "
            "--dashboard-host=127.0.0.1 and use a tunnel."
        )


def _token() -> Iterator[str]:
    """Yield sentences on the token of a machine that belongs to a cluster."""
    path = Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)))  # as it is, without a home directory
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "disabled" or (mode != "token" and not path.exists()):
        yield "this machine belongs to a Ray cluster without a token: set RAY_AUTH_MODE=token on all of its machines."
    if path.exists() and path.stat().st_mode & 0o077:  # Ray itself leaves one so where it needs none
        yield f"the token {path} can be read by others: chmod 600 {path}."


def _unauthenticated_answer(port: int) -> str | None:
    """What a dashboard on this machine answers without a token; None where it refuses, or there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request("GET", "/api/version")
        answer = connection.getresponse()
        text = answer.read(200).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
    return " ".join(text.split()) if answer.status == 200 and "ray_version" in text else None


def _listens_outside(port: int) -> bool:
    """Whether something listens on this port at an address that other machines can reach."""
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # some systems do not tell of other users' processes
        return False
    listening = [connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN]
    return any(not ipaddress.ip_address(at.ip).is_loopback for at in listening if at.port == port)

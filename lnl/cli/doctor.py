"""What `lnl doctor` looks for: parts that are missing or damaged, and doors that are open to everybody.

Whoever reaches the dashboard of a cluster without a token runs code on it (CVE-2023-48022).
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
from lnl.storage.read import TWICE
from lnl.storage.store import Store
from lnl.system import machine, processes

DASHBOARD = 8265  # Ray's default port
TOKEN = Path("~/.ray/auth_token")  # where Ray looks for one


def examine(store: Store) -> tuple[dict[str, Any], list[str]]:
    """Facts of the environment, and a sentence for everything that is wrong there or in the results folder."""
    import torch

    problems: list[str] = []
    versions = {name: _version(name) for name in ("ray", "torch", "torchvision", "optuna", "pandas", "pyarrow")}
    problems += [f"{name} is not installed: pip install -e ." for name, version in versions.items() if version is None]
    remedies = {
        "trials": "remove it, then run the study again",
        "epochs": "remove it and its row below trials, then run the study again",  # a trial with a row is done
        "arrays": "remove it and its row below trials, then run the study again",
        "suggestions": "remove it; the search goes on without it",
        "studies": "remove it",
        "events": "remove it",
    }
    for table, remedy in remedies.items():
        _, broken = store.read(table, check=True)
        problems += [
            f"left out {shown(store.within(path))} ({why}): {'remove those' if TWICE in why else remedy}."
            for path, why in broken.items()
        ]
    problems += _unreadable(store)
    problems += _working_files(store)
    problems += [
        f"left-over folder {path}: of a process that was killed; the next run removes it."
        for path in processes.left_over(machine.temporary_folders())
    ]
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


def _on_other_data(store: Store) -> Iterator[str]:
    """A sentence for each study and preset whose newest plan has results on data that were replaced since."""
    from analysis.results import read_results

    plans, _ = store.read("studies")
    for study, preset in sorted(set(zip(plans["study"], plans["preset"], strict=True))):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of unreadable files, which are told above
            results = read_results(store.root, study, preset)
        if results.on_other_data:
            yield f"{study}, preset {preset}: {results.on_other_data}"


def _working_files(store: Store) -> Iterator[str]:
    """Sentences on leases, checkpoints and trained files that nobody works with."""
    from lnl.storage import checkpoints  # imports torch

    for (study, trial), lease in sorted(leases(store).items()):
        holder = f"process {lease['pid']} of {lease['host'].split('/')[0]}"
        what = trial.replace("search-", "suggestion ") if trial.startswith("search-") else f"trial {trial}"
        if lease["from_the_future"]:
            yield (
                f"the lease of {what} of {study} ({holder}) was renewed in the future: set the clocks right; the next "
                "run takes it over unless it is renewed again within a minute."
            )
        elif not lease["alive"]:
            yield f"abandoned lease of {what} of {study} ({holder} is gone): the next run takes it over."
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
    for pattern in ("checkpoints/*.pt", "leases/*.json", "leases/*.pruned", "trained/*.npy"):
        folder, _, names = pattern.partition("/")
        old = (shown(store.within(path)) for path in listed(store.root / folder, names))
        yield from (f"{name} is of an older version of lnl, and no longer used: remove it." for name in sorted(old))


def _unreadable(store: Store) -> Iterator[str]:
    """Sentences on leases, on logs and on the folder's own name where these cannot be read."""
    held = {store.lease_path(study, trial) for study, trial in leases(store)}
    damaged = [
        path
        for path in listed(store.root / "leases", "*.json", deep=True)
        if path not in held and path.parent.name.startswith("study=")
    ]
    for path in [*damaged, *listed(store.root / "logs", "*.txt", deep=True)]:
        try:
            why = None if read_file(path) else "it is empty"
        except OSError as error:
            why = reason(error)
        if why or path in damaged:
            yield f"unreadable {shown(store.within(path))} ({why or 'it holds no lease'}): remove it."
    try:
        store.known_identity()
    except StorageError as error:
        yield str(error)


def _disk(folder: Path, problems: list[str]) -> dict[str, float]:
    """What only a folder can suffer from: files of killed writers, and a full disk."""
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
    """Sentences on the cluster that this machine belongs to, and on its token's file."""
    if (version := _answers(port)) is not None:
        yield (
            f"the dashboard on port {port} answers without a token ({version}): whoever reaches it runs code here; "
            "restart the cluster with RAY_AUTH_MODE=token."
        )
    if _listens_outside(port):
        yield (
            f"port {port} (Ray's dashboard) listens on outer addresses: start the head with "
            "--dashboard-host=127.0.0.1 and use a tunnel."
        )
    address, refused = machine.cluster()
    if refused:
        yield refused
    belongs = bool(os.environ.get("RAY_ADDRESS") or address)
    token = Path(os.path.expanduser(os.environ.get("RAY_AUTH_TOKEN_PATH", TOKEN)))  # as it is, without a home directory
    mode = os.environ.get("RAY_AUTH_MODE")
    if belongs and (mode == "disabled" or (mode != "token" and not token.exists())):
        yield "this machine belongs to a Ray cluster without a token: set RAY_AUTH_MODE=token on all of its machines."
    if belongs and token.exists() and token.stat().st_mode & 0o077:  # Ray itself leaves one so where it needs none
        yield f"the token {token} can be read by others: chmod 600 {token}."


def _answers(port: int) -> str | None:
    """What a dashboard on this machine says of itself to somebody without a token."""
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
    try:
        doors = psutil.net_connections("tcp")
    except psutil.AccessDenied:  # of other users' processes, on some systems
        return False
    here = [door.laddr.ip for door in doors if door.status == psutil.CONN_LISTEN and door.laddr.port == port]
    return any(not ipaddress.ip_address(address).is_loopback for address in here)

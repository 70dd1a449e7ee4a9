"""A connection to Ray: a Ray of our own on this machine, or a cluster.  Import it after `ray_environment.prepare`."""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import socket
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import ray

from lnl.system import machine, processes
from lnl.trial.code_hash import snapshot


@contextlib.contextmanager
def connected(address: str, cpus: int | None = None) -> Iterator[None]:
    """Connect to Ray: to the cluster at `address`, or to one of our own on this machine.  Raises `OSError`."""
    with contextlib.ExitStack() as stack:
        if not ray.is_initialized():
            logging.getLogger("ray").setLevel(logging.ERROR)
            options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
            folder = None
            if address == "local":
                folder = stack.enter_context(machine.ray_folder())
                options |= own_options(folder, cpus)
            else:  # the code of this driver, whatever lies on the other machines
                options |= {"runtime_env": {"py_modules": [str(code_folder() / "lnl")]}}
            if address == "auto":  # Ray by itself follows whatever it finds, other users' as well
                os.environ["RAY_ADDRESS"] = _cluster_of_this_machine()
            _check_port_open(address)
            stack.callback(ray.shutdown)
            with _captured_stderr() as stderr:
                try:
                    ray.init(address=address, configure_logging=True, **options)
                except Exception as error:  # Ray's own error is often no more than a time-out
                    reason = f"{error} {stderr()}"
                    sentence = why_not_started(folder, reason) if folder else why_refused(address, reason)
                    raise ConnectionError(sentence) from None
        yield


@functools.cache
def code_folder() -> Path:
    """The folder with this process's code that workers import from; it lives as long as the process."""
    scratch = contextlib.ExitStack()
    atexit.register(scratch.close)
    return snapshot(Path(scratch.enter_context(processes.scratch("code"))))


def own_options(folder: Path, cpus: int | None) -> dict[str, Any]:
    """Options of a Ray of our own, whose files are in `folder`."""
    options: dict[str, Any] = {
        "include_dashboard": False,
        "object_store_memory": 200_000_000,
        "num_cpus": cpus or machine.cpus(),
        "_temp_dir": str(folder / "r"),
    }
    system = {
        "worker_niceness": 0,  # by default workers give way to everybody, and starve beside others
        "prestart_worker_first_driver": False,  # Tune's trials have an environment of their own, and workers for it
    }
    options["_system_config"] = {name: value for name, value in system.items() if f"RAY_{name}" not in os.environ}
    if not os.path.isdir("/dev/shm"):
        options["_plasma_directory"] = str(folder)
    return options


def _cluster_of_this_machine() -> str:
    """The address of the cluster that this machine belongs to.  Raises `ConnectionError` where there is none."""
    address, refused = machine.cluster()
    if address is None:
        raise ConnectionError(
            refused
            or "This machine belongs to no Ray cluster: start one, name one (--address host:port), or use "
            "--address local."
        )
    return address


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """Capture stderr (file descriptor 2), including Ray's threads, to quote it in the error."""
    sys.stderr.flush()
    before = os.dup(2)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as captured:
        os.dup2(captured.fileno(), 2)
        try:
            yield lambda: (captured.seek(0), captured.read())[1]
        finally:
            os.dup2(before, 2)
            os.close(before)


def why_refused(address: str, reason: str) -> str:
    """Why a cluster that listens at the address refused the connection, and what to do."""
    first_line = (reason.strip().splitlines() or ["no answer"])[0]
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
    return f"No Ray cluster can be used at '{address}': start one, or use --address local. ({first_line})"


def why_not_started(folder: Path, reason: str) -> str:
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


def _check_port_open(address: str) -> None:
    """Raise `ConnectionError` where nothing listens at host:port, or loopback is down: Ray would try for minutes."""
    try:
        if address == "local":
            with socket.create_server(("127.0.0.1", 0)) as server:
                socket.create_connection(server.getsockname(), timeout=10).close()
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

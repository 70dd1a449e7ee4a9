"""Ray's environment variables: which Ray to use, and its settings, which count only before `import ray`.

Only a run calls `prepare`; importing a module of this package sets no variable.
"""

from __future__ import annotations

import os
import secrets
import sys

from lnl.system import machine

PENDING = 200  # trials that wait for devices within Ray, where an autoscaler sees them
DEFAULTS = {  # a user's own values stay
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a trial without a GPU sees none
    "RAY_DEDUP_LOGS_SKIP_REGEX": "A worker died or was killed",  # the display says it in a line
}
FIXED = {  # what a run relies on
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of data mean the same in workers
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # rows go to parquet, not into Tune's scratch folder
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",  # the display says them in a line each
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `tune_adapter` handles it
    "TUNE_MAX_PENDING_TRIALS_PG": str(PENDING),
}


def address() -> str:
    """The address of the Ray to use: that of $RAY_ADDRESS, else `auto` on a node of a cluster, else `local`."""
    return os.environ.get("RAY_ADDRESS") or ("auto" if machine.cluster()[0] else "local")


def prepare(address: str) -> None:
    """Set Ray's variables for a run at this address, in this process and its children.

    A Ray of our own gets a token of its own and stays on loopback with all of its ports, those of metrics included.
    The authentication of a cluster is its own, and so is that of a program that imported Ray before.
    """
    values = dict(DEFAULTS)
    if address == "local" and "ray" not in sys.modules:
        values |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        values["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # Ray's one way, on Linux too, to 127.0.0.1 as its address
    if not machine.has_home():
        values["HOME"] = "/nonexistent"  # Ray's import and its workers' want the name of one, and write nothing there
    for name, value in values.items():
        os.environ.setdefault(name, value)
    os.environ.update(FIXED)

"""Commands of tests as processes that are forked from one that has imported what they all import.

Such a process has an environment, a folder and an exit code of its own, as one that is started anew, but does not spend
three seconds of CPU on importing torch and this package.  Ray is not among the imports: it reads its variables then.
A command that a test kills is started with `subprocess`, which tells the number of its process.
"""

from __future__ import annotations

import atexit
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver
from pathlib import Path

ROOT = Path(__file__).parents[1]
WITHOUT_RAY = str(ROOT / "tests" / "without_ray.py")  # a script that runs the study that follows
# Of Ray clusters of tests, as of a Ray of our own: no worker gives way to other processes, or starts in advance.
CLUSTER_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_prestart_worker_first_driver": "0",
}
PACKAGES = ("lnl", "analysis")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])


def run_script(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path | None = None, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run `python SCRIPT ARGUMENT…` in a folder.  Raises `subprocess.TimeoutExpired`."""
    with tempfile.TemporaryDirectory() as scratch:
        outputs = [Path(scratch) / "stdout", Path(scratch) / "stderr"]
        about = (list(arguments), dict(environment), folder or Path.cwd(), outputs)
        _start_server()
        process = CONTEXT.Process(target=_become, args=about)
        process.start()
        process.join(timeout)
        texts = [path.read_text(encoding="utf-8") for path in outputs if path.exists()]
        if process.exitcode is None:
            os.killpg(process.ident or 0, signal.SIGKILL)  # what it has started, too
            raise subprocess.TimeoutExpired(list(arguments), timeout, *texts)
        return subprocess.CompletedProcess(list(arguments), process.exitcode, *texts)


@functools.cache
def _start_server() -> None:
    """Start the process from which others are forked, once: it is to find this repository from any folder."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def run_command(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run any other command in a folder.  Raises `subprocess.TimeoutExpired`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    with subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes) as process:
        try:
            texts = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too
            raise subprocess.TimeoutExpired(list(command), timeout, *process.communicate()) from None
    return subprocess.CompletedProcess(list(command), process.returncode, *texts)


def _become(arguments: list[str], environment: dict[str, str], folder: Path, outputs: Sequence[Path]) -> None:
    """Run a script in this process, and end it; its standard output and error go into these files."""
    for number, path in enumerate(outputs, start=1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.setsid()
    os.chdir(folder)
    multiprocessing.set_start_method(None, force=True)  # as in a process of its own
    os.environ.clear()
    os.environ.update(environment)
    script, sys.argv = arguments[0], arguments
    first = [str(Path(script).resolve().parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:0] = [path for path in first if path]
    if any((Path(path) / PACKAGES[0]).is_dir() and Path(path) != ROOT for path in first):  # a copy, perhaps edited
        for name in [name for name in sys.modules if name.partition(".")[0] in PACKAGES]:
            del sys.modules[name]
    code = _exit_code(script)
    atexit._run_exitfuncs()  # which multiprocessing's own end leaves out
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(script: str) -> int:
    """Run the script; returns its exit code."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0

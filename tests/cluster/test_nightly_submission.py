"""cluster/nightly/night.py on a real cluster with a token, which has a network and processes of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import ray

from tests.forked import CLUSTER_SETTINGS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SEPARATE = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
HEAD = ["ray", "start", "--head", "--dashboard-host=127.0.0.1", "--num-cpus=0", "--object-store-memory=100000000"]
STUDY = """
import os, sys
open("said", "w").write(f"# {sys.argv[1:]} {os.environ['LNL_GIT_COMMIT']} {os.path.exists('secret')}")
sys.exit(int(open("ends").read()))
"""
DIFF = """#!/bin/sh
(cat said; echo; echo "$@") > night.md; exit $(cat moved)
"""


class Machine:
    """A machine of one's own: whatever runs on it ends with it, and nothing outside hears of it."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self.environment = {"PATH": f"{folder}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}"} | {
            "HOME": str(folder),
            **CLUSTER_SETTINGS,
            "RAY_TMPDIR": f"/tmp/{folder.name[:8]}-{os.getpid()}",  # short, as sockets' names have to be
            **environment,
        }
        self.outside = subprocess.Popen(
            [*SEPARATE, "sh", "-c", "ip link set lo up && echo up && exec sleep 1000"], stdout=subprocess.PIPE
        )
        assert self.outside.stdout and self.outside.stdout.readline() == b"up\n"
        children = Path(f"/proc/{self.outside.pid}/task/{self.outside.pid}/children").read_text(encoding="utf-8")
        self.enter = ["nsenter", "--target", children.split()[0], "--net", "--pid", "--mount"]

    def start(self, command: Sequence[object], **environment: str) -> subprocess.Popen[str]:
        words = [*self.enter, *map(str, command)]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            words, env={**self.environment, **environment}, stdout=pipe, stderr=pipe, encoding="utf-8"
        )

    def run(self, *command: object, **environment: str) -> tuple[int, str, str]:
        process = self.start(command, **environment)
        out, err = process.communicate(timeout=120)
        return process.returncode, out, err

    def close(self) -> None:
        self.outside.kill()
        self.outside.communicate()
        shutil.rmtree(self.environment["RAY_TMPDIR"], ignore_errors=True)


@contextlib.contextmanager
def cluster(folder: Path, *flags: str, mounts: Sequence[Path] = (), **environment: str) -> Iterator[Machine]:
    """A machine that is a cluster's head.  `mounts`: a folder and another one in whose place it stands there."""
    allowed = subprocess.run(
        [*SEPARATE, "ip", "link", "set", "lo", "up"], capture_output=True, encoding="utf-8", check=False
    )
    if allowed.returncode != 0:
        pytest.skip(f"no namespaces here: {allowed.stderr.strip()}")
    machine = Machine(folder, environment)
    try:
        if mounts:
            machine.run("mount", "--bind", *mounts)
        code, out, err = machine.run(*HEAD, *flags)
        assert code == 0, out + err
        yield machine
    finally:
        machine.close()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose night is a script of three lines, in a git repository, with a file that git ignores."""
    for name in ("project/cluster/nightly", "project/studies", "bin"):
        (tmp_path / name).mkdir(parents=True)
    project = tmp_path / "project"
    shutil.copy(ROOT / "cluster" / "nightly" / "night.py", project / "cluster" / "nightly")
    for name, text in {
        "studies/nightly.py": STUDY,
        ".gitignore": "secret\n",
        "secret": "",
        "ends": "0",
        "moved": "3",
    }.items():
        (project / name).write_text(text, encoding="utf-8")
    lnl = tmp_path / "bin" / "lnl"
    lnl.write_text(DIFF, encoding="utf-8")
    lnl.chmod(0o755)
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *words], cwd=project, check=True)
    return project


def test_a_night_is_submitted_once_and_its_comparison_collected(project: Path, tmp_path: Path) -> None:
    night = [sys.executable, project / "cluster" / "nightly" / "night.py"]
    token = tmp_path / "token"
    token.write_text("0123456789abcdef" * 4, encoding="utf-8")
    with cluster(tmp_path, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token)) as machine:
        tonight = ("--night", "2026-11-21", "--budget-hours", "0.5", "--preset", "smoke")
        both = [machine.start([*night, "submit", *tonight]) for _ in range(2)]
        said, quiet = zip(*sorted(process.communicate(timeout=120) for process in both), strict=True)
        assert [process.returncode for process in both] == [0, 0] and quiet == ("", ""), quiet
        assert said[0] == "nightly-2026-11-21 is submitted.\n" and "is there already" in said[1]
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=project, capture_output=True, encoding="utf-8", check=True
        )
        sent = f"# {[*tonight]} {commit.stdout.strip()} False\n"
        compared = "diff nightly --night 2026-11-21 --preset smoke --markdown night.md\n"
        assert machine.run(*night, "collect", *tonight) == (3, sent + compared, "")
        assert machine.run(*night, "submit", *tonight)[1] == "nightly-2026-11-21 is there already: FAILED.\n"

        # The budget is spent, nothing moved; then the sweep itself fails, which must not show the comparison before it.
        for ends, moved, expected in (("3", "0", 0), ("1", "0", 1)):
            (project / "ends").write_text(ends, encoding="utf-8")
            (project / "moved").write_text(moved, encoding="utf-8")
            assert machine.run(*night, "submit", *tonight, "--again")[1] == "nightly-2026-11-21 is submitted.\n"
            code, out, err = machine.run(*night, "collect", *tonight)
            assert (code, out) == (
                expected,
                "" if expected else f"{sent.replace(' False', '-dirty False')}{compared}",
            ), err
        assert err.splitlines()[-1].startswith("error: nightly-2026-11-21 ended without a comparison (FAILED)")

        (tmp_path / "wrong").write_text("f" * 64, encoding="utf-8")
        for flags, environment, sentence in (
            ([], {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}, "refuses the token"),
            (["--address", "http://127.0.0.1:9"], {}, "No Ray dashboard answers at http://127.0.0.1:9"),
        ):
            code, out, err = machine.run(*night, "submit", *flags, **environment)
            assert code == 1 and out == "" and sentence in err and err.count("\n") == 1, err
        code, _, err = machine.run(*night, "collect", "--night", "2020-01-01")
        assert code == 1 and "knows no job nightly-2020-01-01" in err


class Dying(BaseHTTPRequestHandler):
    """A dashboard that wants a token, and which is gone once it has told its version."""

    def do_GET(self) -> None:
        token = self.headers.get("Authorization") or self.headers.get("X-Ray-Authorization")
        if token and self.path != "/api/version":
            self.close_connection = True
            return
        about = {"version": "4", "ray_version": ray.__version__, "ray_commit": ray.__commit__, "session_name": "s"}
        self.send_response(200 if token else 401)
        self.end_headers()
        self.wfile.write(json.dumps(about).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("command", ["submit", "collect"])
def test_a_cluster_that_is_gone_gets_one_sentence(command: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Dying) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        night = [sys.executable, ROOT / "cluster" / "nightly" / "night.py", command, "--address", address]
        # Ray's client would go where RAY_ADDRESS says, whatever address it is given.
        environment = {**os.environ, "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "RAY_ADDRESS": "local"}
        done = subprocess.run(night, env=environment, capture_output=True, encoding="utf-8", timeout=120)
        server.shutdown()
    assert (done.returncode, done.stdout) == (1, "") and done.stderr.count("\n") == 1, done.stderr
    assert f"The cluster at {address} answers no more (ConnectionError)" in done.stderr


def test_an_open_cluster_gets_no_night(project: Path, tmp_path: Path) -> None:
    with cluster(tmp_path, RAY_AUTH_MODE="disabled") as machine:
        code, out, err = machine.run(sys.executable, project / "cluster" / "nightly" / "night.py", "submit")
        assert (code, out) == (1, "") and "answers without a token" in err and err.count("\n") == 1

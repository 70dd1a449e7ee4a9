"""The shipped `cluster/onprem.yaml`, on three hosts with SSH servers, and what a study survives there.

The client clones the project, `ray up` brings it to the hosts, `ray submit` runs the study; /mnt/lnl stands for NFS.
Two workers pretend to have a GPU each.  By default a host is lost; LNL_ALL_ACCIDENTS=1 for all accidents.  A killed
worker of a Ray of our own is in tests/execution/test_runner.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests import hosts
from tests.execution.test_runner import assert_same_results, declare, execute_without_ray, wait_for
from tests.hosts import Host, Network
from tests.methods.test_own_methods import NETWORK

pytestmark = [pytest.mark.long, pytest.mark.hosts]

ROOT = Path(__file__).parents[2]
at_length = pytest.mark.skipif("LNL_ALL_ACCIDENTS" not in os.environ, reason="LNL_ALL_ACCIDENTS=1 for everything")
SMALL = "--object-store-memory=100000000"
# Instead of downloading 5 GB: an environment with everything that this one has, except this project.
INSTALL = """
printf '%s\\n' {packages} $HOME/lnl > $HOME/venv/lib/python{version}/site-packages/project.pth
printf '#!/bin/sh\\nexec $HOME/venv/bin/python -m ray.scripts.scripts "$@"\\n' > $HOME/venv/bin/ray
chmod +x $HOME/venv/bin/ray
"""


ALL_NODES = """
import sys, time, ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
while {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]} != set(sys.argv[1:]):
    time.sleep(0.5)
"""


NODE_ID = """
import sys, ray
ray.init("auto", logging_level="ERROR", log_to_driver=False)
print(*(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeManagerAddress"] == sys.argv[1]))
"""
NOTICE_S = 1


@dataclass
class Cluster:
    """The client's clone, its cluster file, and the hosts that it names."""

    lan: Network
    clone: Path
    file: Path

    @property
    def head(self) -> Host:
        return self.lan.hosts["head"]

    def up(self) -> None:
        code, output = self.lan.client.run("ray", "up", "-y", self.file, cwd=self.clone)
        assert code == 0, output
        self.whole()

    def whole(self) -> None:
        """Wait until all nodes are there, as Ray sees it."""
        addresses = [host.address for host in self.lan.hosts.values()]
        code, output = self.on_head("python", "-c", ALL_NODES, *addresses)
        assert code == 0, output

    def on_head(self, *command: str, host: Host | None = None) -> tuple[int, str]:
        """As somebody who has logged in there."""
        return (host or self.head).run("bash", "-ic", shlex.join(command))

    def submit(self, script: str | Path, *flags: str | Path) -> subprocess.Popen[str]:
        return self.lan.client.start("ray", "submit", self.file, script, "--", *flags, cwd=self.clone)


def fill_in(text: str, lan: Network) -> str:
    """The shipped file with its EDIT lines edited, and small nodes."""
    head, *workers = (host.address for host in lan.hosts.values())
    python = getattr(sys, "_base_executable", sys.executable)
    for old, new in {
        "192.168.1.10": head,
        "[192.168.1.11, 192.168.1.12]": f"[{', '.join(workers)}]",
        "ssh_user: ubuntu": "ssh_user: root",
        "/mnt/lnl": str(lan.shared),
        "python3 -m venv": f"{python} -m venv --without-pip",
        "ray start ": "RAY_worker_niceness=0 ray start ",  # else workers starve beside other tests
        "~/venv/bin/pip install --quiet -e ~/lnl": f"sh {lan.folder}/etc/install",
        "--num-cpus=0 --num-gpus=0": f"--num-cpus=0 --num-gpus=0 {SMALL}",
        "--address=$RAY_HEAD_IP:6379": f"--address=$RAY_HEAD_IP:6379 --num-cpus=1 --num-gpus=1 {SMALL}",
    }.items():
        assert old in text, f"cluster/onprem.yaml has no '{old}' any more"
        text = text.replace(old, new)
    return text


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := hosts.reason_to_skip():
        pytest.skip(reason)
    with hosts.network(tmp_path_factory.mktemp("lan"), ["head", "one", "two"]) as lan:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        install = INSTALL.format(packages=sysconfig.get_paths()["purelib"], version=version)
        (lan.folder / "etc" / "install").write_text(install, encoding="utf-8")
        clone = lan.client.home / "clone"
        for command in (
            "git config --global safe.directory '*'",
            f"git clone --quiet {ROOT} clone",
            "mkdir -m 700 .ray && (umask 077; od -An -tx1 -N32 /dev/urandom | tr -d ' \\n' > .ray/auth_token)",
        ):
            code, output = lan.client.run("bash", "-c", command)
            assert code == 0, output
        file = clone / "cluster" / "onprem-test.yaml"
        lan.client.seen(file).write_text(fill_in((ROOT / "cluster" / "onprem.yaml").read_text(encoding="utf-8"), lan))
        cluster = Cluster(lan, clone, file)
        cluster.up()
        yield cluster


def test_the_study_on_three_hosts(cluster: Cluster) -> None:
    """Its method and network are files of a user's own that lie on the head alone: their text goes to the workers."""
    for name, text in (("mine", (ROOT / "lnl/methods/robmix.py").read_text(encoding="utf-8")), ("net", NETWORK)):
        cluster.head.seen(cluster.head.home / f"{name}.py").write_text(text, encoding="utf-8")
    flags = ("--preset", "smoke", "--arms", "full,frozen_head", "--set", "method.temperature=0.5", "--replicates", "1")
    own = ("--set", "method=mine.py", "--set", "network=net.py:wide")
    process = cluster.submit("studies/robmix_ablation.py", *own, *flags)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    results = cluster.lan.client.seen(cluster.lan.shared / "results")
    rows = pd.read_parquet(results / "trials")
    assert "7 trials: 7 done." in output and len(rows) == 7, output
    assert (rows["status"] == "ok").all() and (rows["gpus"] == 1).all()
    assert set(rows["method"]) == {"mine.py"} and set(rows["network"]) == {"net.py:wide"}
    for worker in ("one", "two"):
        assert not list(cluster.lan.hosts[worker].seen(cluster.head.home).rglob("mine.py"))
    assert set(rows["host"]) == {"one", "two"}, "both workers train, the head does not"
    assert {json.loads(config)["method"]["temperature"] for config in rows["config"]} == {0.5}, "what stands after --"
    assert rows["git_commit"].notna().all()
    assert (results / "reports" / "robmix_ablation-smoke" / "index.html").stat().st_size > 100_000


@at_length
def test_another_version_of_the_project_on_a_worker_does_not_matter(cluster: Cluster) -> None:
    """The driver brings its own code; `ray up` came to the workers long ago."""
    old = cluster.lan.hosts["two"].seen(cluster.head.home / "lnl" / "lnl" / "training" / "task.py")
    text = old.read_text(encoding="utf-8")
    old.write_text("raise SystemExit('an old version')", encoding="utf-8")
    try:
        storage, command = quick(cluster, "other_version")
        process = command()
        output, _ = process.communicate(timeout=300)
    finally:
        old.write_text(text, encoding="utf-8")
    assert process.returncode == 0, output
    assert set(pd.read_parquet(storage / "trials")["host"]) == {"one", "two"}


@at_length
@pytest.mark.parametrize(
    "mistake, sentence",
    {
        "RAY_AUTH_TOKEN=0123": "refuses this driver's token",
        "RAY_ADDRESS=10.77.0.99:6379": "No Ray cluster answers at '10.77.0.99:6379'",
        "LNL_STORAGE=/tmp/results": "does not see the results folder /tmp/results",
    }.items(),
)
def test_a_mistake_is_one_sentence_before_anything_trains(cluster: Cluster, mistake: str, sentence: str) -> None:
    declare(cluster.head.seen(cluster.head.home))
    storage = cluster.lan.shared / mistake.partition("=")[0]
    code, output = cluster.head.run(
        "bash", "-ic", f"export LNL_STORAGE={storage} {mistake}; python quick.py --no-report"
    )
    said = [line for line in output.splitlines() if not line.startswith("bash: ")]  # it has no terminal
    assert code == 1 and len(said) == 1 and said[0].startswith("error: ") and sentence in said[0], output
    for folder in (storage, Path("/tmp/results")):
        assert not list(cluster.head.seen(folder).glob("trials/**/*.parquet"))


# ------------------------------------------------------------------------------------------------------- accidents


@dataclass
class Run:
    """A study that is under way on the cluster, and one of its trials that has written a checkpoint."""

    cluster: Cluster
    storage: Path  # as seen from here
    command: Callable[[], subprocess.Popen[str]]
    process: subprocess.Popen[str]
    trial: str
    lease: dict[str, Any]

    @property
    def host(self) -> Host:
        """Where the trial runs."""
        return self.cluster.lan.hosts[self.lease["host"].split("/")[0]]


def lose_process(run: Run) -> None:
    run.host.run("kill", "-9", str(run.lease["pid"]))


def lose_host(run: Run) -> None:
    run.host.kill()
    time.sleep(5)
    run.host.boot()


def lose_driver(run: Run) -> None:
    run.cluster.head.run("pkill", "-9", "-f", "quick.py")  # sees the head's processes only
    output, _ = run.process.communicate(timeout=60)
    assert run.process.returncode != 0, output
    run.process = run.command()


def lose_head(run: Run) -> None:
    run.cluster.head.kill()
    run.process.communicate(timeout=60)
    run.cluster.head.boot()
    run.cluster.up()
    run.process = run.command()


def lose_network(run: Run) -> None:
    host = run.host
    host.cut()
    time.sleep(75)
    host.heal()


def freeze_host(run: Run) -> None:
    """It hangs for longer than its lease lasts, and then goes on as if nothing had happened."""
    run.host.run("bash", "-c", "kill -STOP -1")  # everything there but process 1
    time.sleep(90)
    run.host.run("bash", "-c", "kill -CONT -1")


def slow_host(run: Run) -> None:
    """Its processes run a tenth of the time."""
    slow = "for i in $(seq 15); do kill -STOP $0; sleep 0.9; kill -CONT $0; sleep 0.1; done"
    run.host.run("bash", "-c", slow, str(run.lease["pid"]))


def fill_disk(run: Run) -> None:
    run.host.fill()
    run.process.wait(timeout=200)
    run.host.relieve()


def fill_results(run: Run) -> None:
    """The disk that all share."""
    lan = run.cluster.lan
    lan.fill(lan.shared)
    output, _ = run.process.communicate(timeout=300)
    lan.relieve(lan.shared)
    assert run.process.returncode != 0 and output.count("No space left to write") == 1, output
    run.process = run.command()


def drain_host(run: Run) -> None:
    """A spot notice: it goes away in a second, with its trial in the middle."""
    run.host.run("kill", "-STOP", str(run.lease["pid"]))  # to tell Ray takes longer than the trial
    code, output = run.cluster.on_head("python", "-c", NODE_ID, run.host.address)
    assert code == 0, output
    notice = f"--reason DRAIN_NODE_REASON_PREEMPTION --reason-message spot --deadline-remaining-seconds {NOTICE_S}"
    drain = f"ray drain-node --address {run.cluster.head.address}:6379 --node-id {output.split()[-1]} {notice}"
    code, output = run.cluster.on_head(*drain.split())
    assert code == 0, output
    run.host.run("kill", "-CONT", str(run.lease["pid"]))
    time.sleep(NOTICE_S)
    lose_host(run)


ACCIDENTS = (
    lose_process,
    lose_host,
    lose_driver,
    lose_head,
    lose_network,
    freeze_host,
    slow_host,
    fill_disk,
    fill_results,
    drain_host,
)
BY_DEFAULT = (lose_host,)
ENDURED = (slow_host, fill_disk, fill_results)  # the trial is not interrupted, or its driver ends


QUICK = {"epochs": 60, "steps": 20, "replicates": 1}  # two trials of some seconds


def quick(cluster: Cluster, name: str) -> tuple[Path, Callable[[], subprocess.Popen[str]]]:
    """A results folder, as seen from here, and what starts the study quick there."""
    declare(cluster.lan.client.seen(cluster.clone), **QUICK)
    storage = cluster.lan.shared / name
    flags = ("--storage", storage, "--no-report", "--checkpoint-seconds", "1")
    return cluster.lan.client.seen(storage), lambda: cluster.submit("quick.py", *flags)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = execute_without_ray(declare(folder, **QUICK), folder / "results")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "results"


def leases(storage: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in (storage / "leases").rglob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            found[path.stem] = json.loads(path.read_text(encoding="utf-8"))
    return found


@dataclass
class Recovery:
    """Watches until somebody trains the trial again, for the figures of the note."""

    storage: Path
    trial: str
    lease: dict[str, Any]
    began: float = field(default_factory=time.time)
    again: float | None = None  # s until the trial was in training again
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Recovery:
        self.saved = next((self.storage / "checkpoints").rglob(f"{self.trial}.pt")).stat().st_mtime
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.whole = time.time() - self.began
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while self.again is None and not self._stop.wait(0.1):
            if leases(self.storage).get(self.trial, self.lease)["token"] != self.lease["token"]:
                self.again = time.time() - self.began

    def __str__(self) -> str:
        rows = pd.read_parquet(self.storage / "trials")
        attempts = rows[rows["trial"] == self.trial].sort_values("attempt")
        epoch_s = float(attempts["seconds"].iloc[-1] / attempts["epochs_done"].iloc[-1])
        went_on = "by itself" if self.again is None else f"after {self.again:.0f} s"
        repeated = 0 if self.again is None else (self.began - self.saved) / epoch_s
        return (
            f"went on {went_on}, about {repeated:.1f} epochs of {epoch_s:.2f} s repeated, the study ended after "
            f"{self.whole:.0f} s; attempts {attempts[['attempt', 'status', 'host']].values.tolist()}, rows {len(rows)}"
        )


@pytest.mark.parametrize(
    "accident",
    [pytest.param(one, id=one.__name__, marks=() if one in BY_DEFAULT else at_length) for one in ACCIDENTS],
)
def test_nothing_is_lost_and_nothing_twice(
    cluster: Cluster, undisturbed: Path, accident: Callable[[Run], None]
) -> None:
    cluster.whole()
    storage, command = quick(cluster, accident.__name__)
    process = command()

    def begun() -> tuple[str, dict[str, Any]] | None:
        saved = {path.stem for path in (storage / "checkpoints").rglob("*.pt")}
        return next(((trial, lease) for trial, lease in leases(storage).items() if trial in saved), None)

    trial, lease = wait_for(begun, "a checkpoint")
    run = Run(cluster, storage, command, process, trial, lease)
    with Recovery(storage, trial, lease) as recovery:
        accident(run)
        output, _ = run.process.communicate(timeout=300)
    assert run.process.returncode == 0, output
    assert_same_results(storage, undisturbed)
    assert recovery.again or accident in ENDURED, "the accident came too late to be one"
    print(f"{accident.__name__}: {recovery}")

"""Trials on one GPU: known shares, one measurement for each kind, more after running out of memory, and budgets.

The cluster here asks for a token, so what a driver without it is told stands here, too.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from lnl.cli.studies import find_study
from lnl.execution import packing
from lnl.execution.cluster import Cluster, Machines, precision_remark
from lnl.execution.job import RunSettings
from lnl.execution.packing import Budget, Shares, memory_fraction, share
from lnl.execution.queue import PlanQueue
from lnl.execution.ray_connection import why_refused
from lnl.storage.places import canonical
from lnl.storage.store import Store
from lnl.study.plan import Planned
from lnl.training.task import Noise
from lnl.trial.config import Trial
from tests.execution.test_runner import LONGEST_S, command, declare, environment
from tests.forked import CLUSTER_SETTINGS, run_script

TRIAL = Trial(method="supervised", dataset="digits", labels=50)
MACHINES: Machines = {"resources": {}, "nodes": 0, "hosts": []}
OTHER = TRIAL.override({"method.batch_size": 512})


def row(trial: Trial, peak: float | None, device: float | None = 40_000.0) -> dict[str, object]:
    return {"config": canonical(trial.model_dump(mode="json")), "peak_memory_mb": peak, "device_memory_mb": device}


@pytest.mark.parametrize(
    ("peak", "device", "expected"),
    [
        (2_999, 40_000, 0.1),  # at 3,000 each would take 3,000 × 1.1 + 700 = 4,000
        (3_001, 40_000, 0.1111),
        (4_500, 40_000, 0.1428),  # rounded, it would be 0.1429, and seven of these are more than one
        (100, 140_000, 0.0625),  # never more than 16
        (30_000, 40_000, 1.0),
        (50_000, 40_000, 1.0),
    ],
)
def test_shares_are_whole_parts_that_fit(peak: float, device: float, expected: float) -> None:
    assert share(peak, device) == expected


@pytest.mark.parametrize("peak", [10.0, 500.0, 3_000.0, 17_000.0])
def test_what_a_process_may_take_leaves_room_for_its_neighbours(peak: float) -> None:
    part = share(peak, 40_000)
    allowed = memory_fraction(part, 40_000) * 40_000
    assert allowed >= peak or part == 1, "a trial like the measured one fits into its share"
    assert (allowed + packing.CONTEXT_MB) / part <= 40_000 * (1 + 1e-9) or part == 1
    assert memory_fraction(1.0, 40_000) == 1 and memory_fraction(2.0, 40_000) == 1


def test_the_first_of_a_kind_measures() -> None:
    shares = Shares("auto")
    assert shares.of(TRIAL) is None
    shares.learn(pd.DataFrame([row(TRIAL, 3_000.0), row(TRIAL.override({"replicate": 1}), 8_000.0)]))
    assert shares.of(TRIAL) == 1 / 4, "of several the largest counts: 8,000 × 1.1 + 700 fits four times"
    same = TRIAL.override({"replicate": 7, "noise": Noise("symmetric", 0.4), "epochs": 3})
    assert shares.of(same) == 1 / 4
    assert shares.of(TRIAL.override({"method.optimizer.learning_rate": 0.5})) == 1 / 4, "a suggestion of a search"
    assert shares.of(OTHER) is None, "another batch size takes other memory"
    shares.learn_of(OTHER, {"outcome": "done", "peak_memory_mb": None, "device_memory_mb": None})
    assert shares.of(OTHER) == 1, "nothing could be measured"
    assert shares.given == 1 and shares.give(OTHER) == 1 and shares.given == 1, "what others left says nothing of now"
    assert shares.give(TRIAL) == shares.given == 1 / 4

    unknown = Shares("auto")
    unknown.learn(pd.DataFrame([row(TRIAL, None, None), row(TRIAL, 2_999.0), row(TRIAL, 0.0)]))
    assert unknown.of(TRIAL) == 0.1, "a lost worker, a CPU and a failure before the first byte have measured nothing"


def test_more_after_running_out_of_memory() -> None:
    shares = Shares(0.25)
    assert [shares.widen(TRIAL), shares.of(TRIAL), shares.of(OTHER)] == [True, 0.5, 0.25]
    shares.give(TRIAL)
    assert [shares.widen(TRIAL), shares.of(TRIAL)] == [True, 1.0]
    shares.give(TRIAL)
    assert not shares.widen(TRIAL), "there is no more than a whole GPU"
    assert not Shares(0.0).widen(TRIAL) and not Shares(1.0).widen(TRIAL)
    learnt = Shares("auto")
    learnt.learn(pd.DataFrame([row(TRIAL, 2_999.0)]))
    assert learnt.widen(TRIAL)
    assert learnt.of(TRIAL.override({"replicate": 5})) == 0.2, "its whole kind was measured too small"
    one, other = TRIAL.override({"replicate": 6}), TRIAL.override({"replicate": 7})
    assert [learnt.give(one), learnt.give(other)] == [0.2, 0.2]
    assert learnt.widen(one) and learnt.widen(other)
    assert learnt.of(one) == learnt.of(other) == 0.4, "both ran out of 0.2"


def test_a_budget_holds_what_was_taken_and_what_was_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("lnl.execution.packing.time.monotonic", lambda: clock[0])
    budget = Budget(1.0, cpus=2)  # one hour: 3,600 s of one GPU, or 1,800 s of two CPUs
    assert budget.holds(3_500, 1.0) and not budget.holds(3_700, 1.0) and not budget.holds(1_900, 0.0)
    budget.begin("a", 0.5, 2_000)
    assert budget.holds(2_500, 1.0) and not budget.holds(2_700, 1.0), "a promises 1,000"
    clock[0] = 500.0
    assert not budget.is_spent() and budget.holds(2_500, 1.0), "it still waits for its devices"
    budget.start("a")
    clock[0] = 2_500.0
    budget.wait("a")  # its worker was lost
    clock[0] = 90_000.0
    budget.start("a")
    clock[0] = 92_000.0
    assert not budget.holds(1_700, 1.0), "a has taken 1,000 and 1,000"
    budget.end("a")
    assert budget.spent == 2_000 and not budget.is_spent()
    budget.begin("b", 0.0, None)
    budget.start("b")
    clock[0] += 799
    assert not budget.is_spent()
    clock[0] += 1
    assert budget.is_spent() and "1 device-hours" in budget.sentence
    assert Budget(None, 1).holds(1e9, 1.0) and not Budget(None, 1).is_spent()


def test_trials_wait_for_the_first_of_their_kind_and_come_back_when_memory_ran_out(tmp_path: Path) -> None:
    a, b, other = (Planned(trial, "arm", "{}") for trial in (TRIAL, TRIAL.override({"replicate": 1}), OTHER))
    cluster = Cluster(RunSettings(storage=tmp_path), Shares("auto"), Budget(None, 1), lambda: MACHINES, lambda _: None)
    queue = PlanQueue([a, b, other], cluster, {}, lambda _: True)
    assert queue.next(9) is a and cluster.begin(a, None) == 1, "a whole GPU to measure on"
    assert queue.next(9) is other and cluster.begin(other, None) == 1
    assert queue.next(9) is None and queue.busy(), "b waits for what a measures"

    done = {"outcome": "done", "peak_memory_mb": 8_000.0, "device_memory_mb": 40_000.0}
    cluster.end(a.id, {"outcome": "done"})  # by another driver, which did not say what it measured
    assert cluster.shares.of(b.trial) is None
    cluster.begin(a, None)
    assert cluster.end(a.id, done) is None
    queue.ended(a.id, done)
    assert queue.next(9) is b and cluster.begin(b, None) == 0.25

    ran_out = {"outcome": "failed", "failure": "oom"}
    assert cluster.end(b.id, ran_out) == f"arm {b.id} ran out of memory: it goes on with 0.5 of a GPU."
    queue.again(b.id)
    assert b.id not in queue.tried and queue.next(9) is b and cluster.begin(b, None) == 0.5
    assert cluster.end(other.id, ran_out) is None, "it had a whole GPU"
    queue.ended(other.id, ran_out)
    assert cluster.end(b.id, done) is None
    queue.ended(b.id, done)
    assert queue.next(9) is None and not queue.busy() and queue.tried == {a.id, b.id, other.id}


CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=2, num_gpus=1, include_dashboard=False,
                  object_store_memory=100_000_000))
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def one_gpu(ray_folder: Path) -> Iterator[str]:
    """Address of a cluster of one node that pretends to have one GPU."""
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=guarded("a" * 64) | {"RAY_TMPDIR": str(ray_folder)},
    )
    assert cluster.stdin and cluster.stdout
    yield cluster.stdout.readline().strip()
    cluster.communicate("", timeout=LONGEST_S)


def guarded(token: str) -> dict[str, str]:
    return {**environment(), **CLUSTER_SETTINGS, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}


def execute(
    address: str, study: Path, storage: Path, *flags: str, token: str = "a" * 64
) -> subprocess.CompletedProcess[str]:
    _, *arguments = (flag for flag in command(study, storage, *flags) if flag not in ("--address", "local"))
    return run_script([*arguments, "--address", address], guarded(token), timeout=LONGEST_S)


@pytest.mark.long
def test_a_wrong_token_is_one_sentence(tmp_path: Path, one_gpu: str) -> None:
    done = execute(one_gpu, declare(tmp_path), tmp_path / "results", token="b" * 64)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert f"error: The Ray cluster at '{one_gpu}' refuses this driver's token: set RAY_AUTH_MODE=token" in done.stderr
    assert not list((tmp_path / "results").rglob("leases/*.json"))


def test_another_version_of_ray_is_one_sentence() -> None:
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.60.0\n    Python: 3.12.1\n"
        "This process on node 10.0.0.2 was started with:\n    Ray: 2.60.0\n    Python: 3.11.7\n"
    )
    sentence = why_refused("auto", said)
    assert "runs another Ray or Python than this driver" in sentence and "\n" not in sentence
    assert "Python: 3.12.1" in sentence and "Python: 3.11.7" in sentence


@pytest.mark.long
def test_auto_packs_what_was_measured_and_gives_more_where_memory_ran_out(tmp_path: Path, one_gpu: str) -> None:
    """Rows with peaks are as a GPU leaves them; the memory that runs out is this machine's, for real."""
    storage = tmp_path / "results"
    arms = {"known": {}, "unknown": {"method.batch_size": 8}, "greedy": {"method.batch_size": 10**13}}
    study = declare(tmp_path, arms=arms, replicates=1)
    planned = {
        (one["arm"], one["replicate"]): one["trial"]
        for one in json.loads(execute(one_gpu, study, storage, "--plan", "--json").stdout)["trials"]
    }
    configs = {one.arm: one.trial for one in find_study(str(study)).plan().trials}
    for arm in ("known", "greedy"):
        measured = {**row(configs[arm], 8_000.0), "trial": f"earlier-{arm}", "attempt": 1, "status": "ok"}
        Store(storage).write_attempt("earlier", measured, [])

    done = execute(one_gpu, study, storage, "--gpus-per-trial", "auto")
    assert done.returncode == 3, done.stdout + done.stderr
    rows = pd.read_parquet(storage / "trials" / "study=quick").set_index("trial")
    taken = {key: list(rows.loc[[trial], "gpus"]) for key, trial in planned.items()}
    assert taken["known", 0] == [0.25]
    assert taken["unknown", 0] == [1.0], "a pretended GPU measures nothing"
    assert taken["greedy", 0] == [0.25, 0.5, 1.0]
    greedy = rows[rows["arm"] == "greedy"]
    assert (greedy["failure_class"] == "oom").all() and list(greedy.loc[planned["greedy", 0], "attempt"]) == [1, 2, 3]
    assert "ran out of memory: it goes on with 0.5 of a GPU." in done.stdout
    assert "3 trials: 2 done, 1 failed" in done.stdout

    events = Store(storage).read("events", filters=[("study", "==", "quick")])[0].set_index("kind")
    begun, ended = (json.loads(events.loc[kind, "payload"]) for kind in ("run_started", "run_ended"))
    assert begun["run"] == ended["run"] and begun["trials"] == 3 and begun["resources"] == {"CPU": 2, "GPU": 1}
    assert ended["stopped"] is None and ended["seconds"] > 0


@pytest.mark.long
def test_a_budget_ends_a_run_in_order_and_a_wish_that_no_node_can_meet_ends_it_at_once(
    tmp_path: Path, one_gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "results"
    study = declare(tmp_path, arms={"plain": {}}, replicates=3, epochs=4, steps=5)
    part = execute(one_gpu, study, storage, "--budget-hours", "0.000001")  # 3.6 ms of one GPU: less than any trial
    assert part.returncode == 3 and "The budget of 1e-06 device-hours holds no more." in part.stdout, part.stdout
    before = len(pd.read_parquet(storage / "trials")) if (storage / "trials").exists() else 0
    assert before < 3
    rest = execute(one_gpu, study, storage, "--budget-hours", "1")
    assert rest.returncode == 0 and "3 trials: 3 done." in rest.stdout, rest.stdout + rest.stderr

    monkeypatch.setenv("LNL_NODE_JOINS_S", "1")
    wish = execute(one_gpu, declare(tmp_path, replicates=4), storage, "--gpus-per-trial", "2")
    assert wish.returncode == 1 and "Traceback" not in wish.stderr
    assert "A trial asks for 1 CPUs and 2 GPUs, and no node offers that (there are 2 CPUs and 1 GPUs)" in wish.stderr


# ------------------------------------------------------------------------------------------------- what a run is told


@pytest.mark.parametrize("has_kernels", [True, False])
def test_slow_half_precision_on_a_cpu_is_told(monkeypatch: pytest.MonkeyPatch, has_kernels: bool) -> None:
    monkeypatch.setattr("lnl.execution.cluster.has_checked_kernels", lambda: has_kernels)
    base = Trial(method="supervised", dataset="digits", network="small_convnet")
    half = base.model_copy(update={"precision": "bfloat16"})
    said = precision_remark([base, half, half], 0.0)
    if has_kernels:
        assert said is None
    else:
        assert said is not None and said.startswith("2 of 3 trials have precision bfloat16") and "--set" in said
    assert [precision_remark(*on) for on in (([base], 0.0), ([half], 1.0), ([half], "auto"), ([], 0.0))] == [None] * 4

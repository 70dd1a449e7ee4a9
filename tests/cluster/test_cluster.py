"""The same study on a running Ray cluster, here of two nodes with pretended GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.execution.test_runner import LONGEST_S, TWO_ARMS, command, declare, environment
from tests.forked import CLUSTER_SETTINGS, run_script
from tests.trial.test_currency import write_images

pytestmark = pytest.mark.long

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = dict(num_cpus=1, num_gpus=1, object_store_memory=100_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(include_dashboard=False, **node))
cluster.add_node(**node)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_study_on_two_nodes_with_gpus_and_one_that_has_other_data_there(tmp_path: Path, ray_folder: Path) -> None:
    settings = {**CLUSTER_SETTINGS, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(ray_folder)}
    for seed, machine in enumerate(("nodes", "driver")):
        (tmp_path / machine).mkdir()
        write_images(tmp_path / machine / "mine.npz", seed)
    open_cluster = {**environment(), **settings, "LNL_DATA": str(tmp_path / "nodes")}
    cluster = subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env=open_cluster,
    )
    assert cluster.stdin and cluster.stdout
    try:
        address = cluster.stdout.readline().strip()

        def run(study: Path, data: str) -> subprocess.CompletedProcess[str]:
            _, *words = command(study, tmp_path / "results")
            script = [word for word in words if word not in ("--address", "local")]
            own = {**open_cluster, "LNL_DATA": str(tmp_path / data)}
            return run_script([*script, "--address", address], own, timeout=LONGEST_S)

        done = run(declare(tmp_path), "nodes")
        assert done.returncode == 0, done.stdout + done.stderr
        rows = pd.read_parquet(tmp_path / "results" / "trials")
        assert len(rows) == 2 * len(TWO_ARMS) and (rows["status"] == "ok").all()
        assert (rows["gpus"] == 1).all(), "where a cluster has GPUs a trial takes one"
        refused = run(declare(tmp_path, {"mine": {"dataset": "npz:mine.npz", "labels": 20}}), "driver")
        assert refused.returncode == 1, refused.stdout + refused.stderr
        assert "has another version of npz:mine.npz" in refused.stderr and "same files" in refused.stderr
        assert len(pd.read_parquet(tmp_path / "results" / "trials")) == len(rows), "nothing was trained"
    finally:
        cluster.communicate("", timeout=LONGEST_S)

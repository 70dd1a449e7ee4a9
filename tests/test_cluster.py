"""The same study on a running Ray cluster, here of two nodes with pretended GPUs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.test_runner import TWO_ARMS, command, declare, environment

pytestmark = pytest.mark.slow

CLUSTER = """
import sys
from ray.cluster_utils import Cluster
small = dict(object_store_memory=100_000_000)
cluster = Cluster(initialize_head=True, head_node_args=dict(num_cpus=0, include_dashboard=False, **small))
for _ in range(2):
    cluster.add_node(num_cpus=1, num_gpus=1, **small)
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def test_a_study_on_two_nodes_with_gpus(tmp_path: Path) -> None:
    settings = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    open_cluster = {**environment(), **settings}
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
        flags = [
            flag for flag in command(declare(tmp_path), tmp_path / "results") if flag not in ("--address", "local")
        ]
        done = subprocess.run(
            [*flags, "--address", address],
            capture_output=True,
            encoding="utf-8",
            timeout=180,
            env=open_cluster,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        rows = pd.read_parquet(tmp_path / "results" / "trials")
        assert len(rows) == 2 * len(TWO_ARMS) and (rows["status"] == "ok").all()
        assert (rows["gpus"] == 1).all(), "where a cluster has GPUs a trial takes one"
    finally:
        cluster.communicate("", timeout=60)

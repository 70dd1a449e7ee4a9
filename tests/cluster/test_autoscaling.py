"""A study on a cluster that has no GPU machine yet, under Ray's own autoscaler; only the machines are pretended."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
import yaml

from tests.cluster.test_nightly_submission import cluster
from tests.execution.test_runner import command, declare

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LISTS = ("cluster_synced_files", "initialization_commands", "setup_commands", "head_setup_commands", "rsync_exclude")
LISTS += ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands", "rsync_filter")


def pretended(head_node: str) -> dict:
    """cluster/gpu.yaml with machines that are processes of this one."""
    ours = yaml.safe_load((ROOT / "cluster" / "gpu.yaml").read_text(encoding="utf-8"))
    head, gpu = (ours["available_node_types"][name] for name in ("head", "gpu_spot"))
    return {
        **{name: [] for name in LISTS},
        **{name: {} for name in ("file_mounts", "head_node", "worker_nodes", "docker")},
        **{name: ours[name] for name in ("cluster_name", "max_workers", "idle_timeout_minutes", "auth")},
        "file_mounts_sync_continuously": False,
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "launch_multiple": True,
            "head_node_id": head_node,
        },
        "available_node_types": {
            "ray.head.default": {**head, "node_config": {}},
            "gpu_spot": {**gpu, "resources": {"CPU": 1, "GPU": 1}, "max_workers": 1, "node_config": {}},
        },
        "head_node_type": "ray.head.default",
    }


def test_a_study_makes_the_cluster_grow(tmp_path: Path) -> None:
    from ray.autoscaler._private.fake_multi_node import node_provider

    head, provider = node_provider.FAKE_HEAD_NODE_ID, Path(node_provider.__file__).parent
    whole = shutil.copytree(provider, tmp_path / "provider")  # Ray's wheel lacks the defaults that belong there
    file = whole / "example.yaml"
    file.write_text(yaml.safe_dump(pretended(head)), encoding="utf-8")
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 4, "PYTHONPATH": str(ROOT)}
    settings |= {"RAY_FAKE_CLUSTER": "1", "RAY_CLOUD_INSTANCE_ID": head, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": head}
    settings |= {"RAY_NODE_TYPE_NAME": "ray.head.default", "RAY_enable_autoscaler_v2": "1"}
    settings |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    with cluster(tmp_path, f"--autoscaling-config={file}", mounts=(whole, provider), **settings) as machine:
        words = command(declare(tmp_path, {"plain": {}}), tmp_path / "results", "--address", "127.0.0.1:6379")
        code, out, err = machine.run(*words, "--gpus-per-trial", "1")
        assert code == 0 and "No node offers 1 CPUs and 1 GPUs yet" in out, out + err
    rows = pd.read_parquet(tmp_path / "results" / "trials")
    assert len(rows) == 2 and (rows["status"] == "ok").all() and (rows["gpus"] == 1).all()

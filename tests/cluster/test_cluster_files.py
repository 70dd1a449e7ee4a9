"""Files below cluster/ against published schemas (Ray, EC2, Kubernetes, KubeRay, GitHub), and against each other."""

from __future__ import annotations

import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import kubernetes_validate
import pytest
import yaml
from jsonschema import Draft202012Validator
from packaging.specifiers import SpecifierSet

from lnl.cli.main import study_main
from lnl.cli.studies import find_study

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
FILES = sorted(path for path in CLUSTER.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
LAUNCHED = sorted(CLUSTER.glob("*.yaml"))
KUBERNETES = "1.31"  # the oldest with a stable podFailurePolicy
KUBERAY = json.loads((ROOT / "tests" / "kuberay_schema.json").read_text(encoding="utf-8"))


def relative(path: Path) -> str:
    return path.relative_to(CLUSTER).as_posix()


# ------------------------------------------------------------------------------------------------- Ray's own launcher


@pytest.mark.parametrize("file", LAUNCHED, ids=relative)
def test_rays_schema(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.chdir(ROOT)
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    assert config["file_mounts"]["~/lnl"] == "."
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.split()
    assert not any("#" in line for name, lines in config.items() if name.endswith("commands") for line in lines)
    folders = {part for path in tracked for part in Path(path).parts}
    assert not folders & set(config["rsync_exclude"]), "rsync would leave out part of the project"


@pytest.mark.parametrize("file", LAUNCHED, ids=relative)
def test_clusters_are_closed(file: Path) -> None:
    config = yaml.safe_load(file.read_text(encoding="utf-8"))
    head = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in head and "RAY_AUTH_MODE=token" in file.read_text(encoding="utf-8")
    assert "~/.ray/auth_token" in config["file_mounts"]
    for node in config.get("available_node_types", {}).values():
        assert node["node_config"]["SecurityGroupIds"], "Ray would open port 22 to the world"


def test_cloud_machines_are_what_ec2_takes() -> None:
    """Ray passes a node's configuration on unseen."""
    config = yaml.safe_load((CLUSTER / "gpu.yaml").read_text(encoding="utf-8"))
    asked = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for node in config["available_node_types"].values():
        wish = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = botocore.validate.ParamValidator().validate(wish, asked)
        assert not report.has_errors(), report.generate_report()
        unknown = set(wish) - set(asked.members)
        assert not unknown
    head, workers = config["available_node_types"]["head"], config["available_node_types"]["gpu_spot"]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    assert workers["min_workers"] == 0 and workers["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


# --------------------------------------------------------------------------------------------------------- Kubernetes


MANIFESTS = {
    manifest["kind"]: manifest
    for file in sorted((CLUSTER / "kuberay").glob("*.yaml"))
    for manifest in yaml.safe_load_all(file.read_text(encoding="utf-8"))
}
each_manifest = pytest.mark.parametrize("manifest", MANIFESTS.values(), ids=MANIFESTS)


def pods(part: Any) -> Iterator[dict[str, Any]]:
    """Every pod template within a manifest."""
    if isinstance(part, dict):
        if "containers" in part.get("spec", {}):
            yield part
        for below in part.values():
            yield from pods(below)
    elif isinstance(part, list):
        for below in part:
            yield from pods(below)


def complaints(manifest: dict[str, Any]) -> list[str]:
    if manifest["apiVersion"] == "ray.io/v1":
        schema = Draft202012Validator({**KUBERAY, "$ref": f"#/kinds/{manifest['kind']}"})
        found = [f"{error.json_path}: {error.message}" for error in schema.iter_errors(manifest)]
        parts = [{"apiVersion": "v1", "kind": "PodTemplate", "template": pod} for pod in pods(manifest)]
    else:
        found, parts = [], [manifest]
    for part in parts:
        try:
            kubernetes_validate.validate(part, KUBERNETES, strict=True)
        except kubernetes_validate.ValidationError as error:
            found.append(f"{error.path}: {error.message}")
    return found


@each_manifest
def test_published_schemas_of_kubernetes(manifest: dict[str, Any]) -> None:
    assert complaints(manifest) == []


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("cluster.yaml", "idleTimeoutSeconds:", "idleTimeoutMinutes:"),
        ("cluster.yaml", "mode: token", "mode: on"),
        ("cluster.yaml", "minReplicas: 0", "minReplicas: none"),
        ("cluster.yaml", "automountServiceAccountToken:", "autoMountServiceAccountToken:"),
        ("cluster.yaml", "accessModes: [ReadWriteMany]", "accessMode: ReadWriteMany"),
        ("job.yaml", "entrypoint:", "entryPoint:"),
        ("nightly.yaml", "concurrencyPolicy: Forbid", "concurrency: Forbid"),
    ],
)
def test_a_slip_of_the_pen_is_found(file: str, right: str, wrong: str) -> None:
    text = (CLUSTER / "kuberay" / file).read_text(encoding="utf-8")
    assert right in text
    assert any(complaints(manifest) for manifest in yaml.safe_load_all(text.replace(right, wrong)))


@each_manifest
def test_pods_have_no_privileges(manifest: dict[str, Any]) -> None:
    assert "hostNetwork" not in json.dumps(manifest) and "privileged" not in json.dumps(manifest)
    for pod in pods(manifest):
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        if pod is not manifest["spec"].get("headGroupSpec", {}).get("template"):  # its autoscaler asks for pods
            assert pod["spec"]["automountServiceAccountToken"] is False
        for container in pod["spec"]["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert (
                set(container["resources"]["requests"]) == {"cpu", "memory"}
                and "memory" in container["resources"]["limits"]
            )


def test_manifests_agree_with_each_other() -> None:
    cluster, job, cron = MANIFESTS["RayCluster"], MANIFESTS["RayJob"], MANIFESTS["CronJob"]
    name = cluster["metadata"]["name"]
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": name}
    assert MANIFESTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    assert cron["spec"]["concurrencyPolicy"] == "Forbid"
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]
    allowed = [
        peer["podSelector"]["matchLabels"]
        for rule in MANIFESTS["NetworkPolicy"]["spec"]["ingress"]
        for peer in rule["from"]
        if "podSelector" in peer
    ]
    assert pod["metadata"]["labels"] in allowed
    container = pod["spec"]["containers"][0]
    settings = {one["name"]: one.get("value") or one["valueFrom"]["secretKeyRef"] for one in container["env"]}
    assert settings["RAY_API_SERVER_ADDRESS"] == f"http://{name}-head-svc:8265"
    assert settings["RAY_AUTH_TOKEN"] == {"name": name, "key": "auth_token"}, "the Secret that the operator makes"
    ours = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    assert container["image"] == ours["containers"][0]["image"]
    assert (
        ours["volumes"][0]["persistentVolumeClaim"]["claimName"]
        == MANIFESTS["PersistentVolumeClaim"]["metadata"]["name"]
    )


# ------------------------------------------------------------------------------------------------------------ GitHub


def test_the_workflow_passes_githubs_schema_and_zizmor() -> None:
    file = str(CLUSTER / "nightly" / "github-actions.yml")
    for command in (
        ["check-jsonschema", "--builtin-schema", "vendor.github-workflows", file],
        ["zizmor", "--offline", "--no-config", "--no-progress", "--persona", "auditor", "--min-severity", "low", file],
    ):
        installed = Path(sys.executable).parent / command[0]
        done = subprocess.run([installed, *command[1:]], capture_output=True, encoding="utf-8", check=False)
        assert done.returncode == 0, done.stdout + done.stderr


# ----------------------------------------------------------------------------------------------------------- ourselves


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_versions_of_ray_are_the_projects(file: Path) -> None:
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    ours = SpecifierSet(next(text for text in needed if text.startswith("ray[")).split("]")[1])
    named = re.findall(
        r"(?:rayVersion: |rayproject/ray:|ray\[default\]==)(\d+\.\d+\.[\d*]+)", file.read_text(encoding="utf-8")
    )
    assert all(ours.contains(version.replace("*", "0")) for version in named), (named, str(ours))
    assert ours.contains(importlib.metadata.version("ray"))
    assert named or file.name not in ("Dockerfile", "cluster.yaml", "github-actions.yml")


@pytest.mark.parametrize("file", FILES, ids=relative)
def test_nothing_floats(file: Path) -> None:
    """Images and actions are pinned or to be filled in, and what is to be filled in says so."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if image := re.search(r"(?:image: (?:&\w+ )?|FROM )(\S+)", line):
            assert image[1].startswith("*") or image[1].endswith(":EDIT") or re.search(r":\d+\.\d+\.\d+", image[1])
        if action := re.search(r"uses: (\S+)", line):
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", action[1]) and "# v" in line
        if file.suffix in (".yaml", ".yml") and "EDIT" in line and not line.lstrip().startswith("#"):
            assert "# EDIT" in line


def commands() -> set[tuple[str, ...]]:
    """Every command line of ours in a file below cluster/: its script, and the flags."""
    found = set()
    for file in FILES:
        if file.suffix == ".py":
            continue
        for words in re.findall(
            r"(?:cluster/nightly/night\.py|studies/\w+\.py)[^\n&|;`#>']*", file.read_text(encoding="utf-8")
        ):
            filled = words.replace('"$DO"', "submit").replace(r"$(date +\%F)", "2026-11-21")
            script, *flags = shlex.split(filled)
            found.add((script, *(flag for flag in flags if flag != "--")))
    return found


@pytest.mark.slow
def test_commands_in_the_files_work_as_they_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CLUSTER / "nightly")
    import night

    seen = set()
    for script, *flags in sorted(commands()):
        assert (ROOT / script).is_file(), script
        seen.add(script)
        if script.endswith("night.py"):
            night.parser().parse_args(flags or ["submit"])
        else:
            assert study_main(find_study(str(ROOT / script)), [*flags, "--plan", "--storage", str(tmp_path)]) == 0
    assert {"cluster/nightly/night.py", "studies/robmix_ablation.py"} <= seen


def test_both_lines_of_the_crontab_mean_one_night() -> None:
    """Cron's clock is the machine's and a night's default is a day in UTC: of two days in one morning, elsewhere."""
    lines = [
        line
        for line in (CLUSTER / "nightly" / "crontab").read_text(encoding="utf-8").splitlines()
        if "night.py" in line
    ]
    assert [" --night $(date +\\%F) " in line for line in lines] == [True, True], lines


def test_a_job_knows_the_commit_that_it_was_sent_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(CLUSTER / "nightly")
    import night

    from lnl.execution.submit import git_state

    here = git_state.__wrapped__()
    monkeypatch.setenv("LNL_GIT_COMMIT", night.commit())
    assert git_state.__wrapped__() == here

"""Condenses KubeRay's published definitions to the JSON Schema that tests/cluster/test_cluster_files.py checks against.

    git clone --branch v1.7.0 https://github.com/ray-project/kuberay
    python tests/condense_crds.py kuberay/ray-operator/config/crd/bases v1.7.0

What is Kubernetes' own within them (pod templates, containers' fields) is left to Kubernetes' published schemas.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
KUBERNETES = {"template", "submitterPodTemplate", "headService", "env", "envFrom", "resources", "securityContext"}
KUBERNETES |= {"volumeMounts", "metadata", "gcsFaultToleranceOptions", "historyServerOptions", "networkPolicy"}
KEPT = ("type", "enum", "required", "minimum", "maximum", "minItems", "maxItems", "pattern")


def condensed(schema: dict[str, Any]) -> dict[str, Any]:
    """Types, ranges and names only; a name that is not there is refused."""
    kept = {key: schema[key] for key in KEPT if key in schema}
    if schema.get("x-kubernetes-int-or-string"):
        kept["type"] = ["integer", "string"]
    if "properties" in schema:
        kept["properties"] = {
            name: {"type": part["type"]} if name in KUBERNETES and "type" in part else condensed(part)
            for name, part in schema["properties"].items()
        }
        kept["additionalProperties"] = False
    elif isinstance(values := schema.get("additionalProperties"), dict):
        kept["additionalProperties"] = condensed(values)
    if "items" in schema:
        kept["items"] = condensed(schema["items"])
    return kept


def main(folder: Path, version: str) -> None:
    kinds = {}
    for kind, file in KINDS.items():
        published = yaml.safe_load((folder / file).read_text(encoding="utf-8"))["spec"]["versions"]
        schema = next(one["schema"]["openAPIV3Schema"] for one in published if one["name"] == "v1")
        kinds[kind] = condensed(schema)
        del kinds[kind]["properties"]["status"]
    cluster = {"$ref": "#/kinds/RayCluster/properties/spec"}
    kinds["RayJob"]["properties"]["spec"]["properties"]["rayClusterSpec"] = cluster
    source = f"github.com/ray-project/kuberay {version}, ray-operator/config/crd/bases, by tests/condense_crds.py"
    text = json.dumps({"source": source, "kinds": kinds}, indent=1, sort_keys=True)
    (HERE / "kuberay_schema.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

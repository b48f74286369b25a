"""The Kubernetes files fit the schemas and the client of Kubernetes, and the parsers of Ray.

No package has schemas of KubeRay's own kinds. Therefore the pods in these objects are checked as pods, the Ray clusters
by Ray's parser for KubeRay's autoscaler, and the applications by Ray Serve's parser.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from commandlines import CLUSTER, command_of
from kubernetes import client
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from upfield.common.command import from_tree, parse

FILES = sorted((CLUSTER / "k8s").glob("*.yaml"))
VERSIONS = ("1.30", "1.34")
DOCUMENTS = [(path.stem, document) for path in FILES for document in yaml.safe_load_all(path.read_text())]
CORE = [(name, document) for name, document in DOCUMENTS if document["apiVersion"] != "ray.io/v1"]
RAY = {document["kind"]: document["spec"] for _, document in DOCUMENTS if document["apiVersion"] == "ray.io/v1"}
CLUSTERS = {"RayJob": "rayClusterSpec", "RayService": "rayClusterConfig"}
# The keys that KubeRay documents; it drops all others silently.
KNOWN_KEYS = {
    "RayJob": {
        "entrypoint",
        "shutdownAfterJobFinishes",
        "ttlSecondsAfterFinished",
        "backoffLimit",
        "rayClusterSpec",
    },
    "RayService": {
        "serveConfigV2",
        "serviceUnhealthySecondThreshold",
        "deploymentUnhealthySecondThreshold",
        "rayClusterConfig",
    },
}
KNOWN_CLUSTER_KEYS = {
    "rayVersion",
    "authOptions",
    "enableInTreeAutoscaling",
    "autoscalerOptions",
    "headGroupSpec",
    "workerGroupSpecs",
}
KNOWN_GROUP_KEYS = {"groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"}


def pods() -> dict[str, dict[str, Any]]:
    """Return the specification of every pod in the files."""
    pod_specs = {
        f"{document['kind']}": document["spec"]["template"]["spec"] for _, document in CORE if is_job(document)
    }
    for kind, key in CLUSTERS.items():
        for group in (RAY[kind][key]["headGroupSpec"], *RAY[kind][key]["workerGroupSpecs"]):
            pod_specs[f"{kind} {group.get('groupName', 'head')}"] = group["template"]["spec"]
    return pod_specs


def is_job(document: dict[str, Any]) -> bool:
    return document["kind"] == "Job"


def job() -> dict[str, Any]:
    return next(document for _, document in CORE if is_job(document))


PODS = pods()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [document for _, document in CORE], ids=lambda document: document["kind"])
def test_an_object_fits_the_schema_of_its_kind(document: dict[str, Any], version: str) -> None:
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", PODS)
def test_a_pod_fits_the_schema(name: str, version: str) -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": PODS[name]}
    kubernetes_validate.validate(pod, version, strict=True)


def test_an_unknown_key_is_found() -> None:
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": PODS["Job"] | {"volume": []}}
    with pytest.raises(kubernetes_validate.ValidationError, match="volume"):
        kubernetes_validate.validate(pod, VERSIONS[0], strict=True)


@pytest.mark.parametrize("document", [document for _, document in CORE], ids=lambda document: document["kind"])
def test_the_client_reads_an_object_and_loses_nothing(document: dict[str, Any]) -> None:
    api = client.ApiClient(client.Configuration())
    kind = f"V1{document['kind']}"
    read = api._ApiClient__deserialize(document, kind)  # pyright: ignore[reportAttributeAccessIssue]
    assert api.sanitize_for_serialization(read) == document


@pytest.mark.parametrize("kind", CLUSTERS)
def test_ray_parses_the_clusters(kind: str) -> None:
    spec = RAY[kind][CLUSTERS[kind]]
    cluster = {"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "c", "namespace": "n"}}
    types = _derive_autoscaling_config_from_ray_cr(cluster | {"spec": spec})["available_node_types"]
    assert "GPU" not in types["headgroup"]["resources"] or types["headgroup"]["resources"]["GPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1


@pytest.mark.parametrize("kind", CLUSTERS)
def test_kuberays_objects_have_documented_keys_only(kind: str) -> None:
    assert RAY[kind].keys() <= KNOWN_KEYS[kind]
    spec = RAY[kind][CLUSTERS[kind]]
    assert spec.keys() <= KNOWN_CLUSTER_KEYS
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert group.keys() <= KNOWN_GROUP_KEYS
        # Ray takes them as flags, so all of them are text.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_ray_is_the_version_of_the_image() -> None:
    pinned = dict(line.split("==") for line in constraints().splitlines() if "==" in line)
    assert {RAY[kind][key]["rayVersion"] for kind, key in CLUSTERS.items()} == {pinned["ray"]}


def constraints() -> str:
    return (CLUSTER.parent / "constraints.txt").read_text(encoding="utf-8")


def imported(module: str) -> Any:
    """Import modules that import Ray Serve, which raises warnings of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(module)


def application() -> dict[str, Any]:
    (application_config,) = yaml.safe_load(RAY["RayService"]["serveConfigV2"])["applications"]
    return application_config


def test_ray_serve_imports_the_application_with_arguments_that_it_accepts() -> None:
    module, _, name = application()["import_path"].partition(":")
    assert callable(getattr(imported(module), name))
    from_tree(command_of("serve").schema, application()["args"], "args")


def test_ray_serve_reads_the_applications() -> None:
    read = imported("ray.serve.schema").ServeDeploySchema.model_validate(
        yaml.safe_load(RAY["RayService"]["serveConfigV2"])
    )
    assert [running.import_path for running in read.applications] == [application()["import_path"]]


def test_tune_accepts_the_sweep(tmp_path: Path) -> None:
    (config_map,) = [document for _, document in DOCUMENTS if document["kind"] == "ConfigMap"]
    tune = command_of("tune")
    file = tmp_path / "sweep.yaml"
    file.write_text(config_map["data"]["sweep.yaml"])
    parse(tune, ["--config", str(file), "--out", "sweep"])


@pytest.mark.parametrize("name", PODS)
def test_a_pod_runs_without_root_and_has_shared_memory(name: str) -> None:
    pod = PODS[name]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] > 0
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["resources"]["limits"].get("nvidia.com/gpu") == container["resources"]["requests"].get(
            "nvidia.com/gpu"
        )
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
        assert mounts.keys() >= {"/runs"}
        assert set(mounts.values()) <= volumes.keys()


def test_the_cache_stays_below_the_limit_of_its_volume() -> None:
    pod = PODS["Job"]
    (container,) = pod["containers"]
    config = parse(command_of("train"), container["args"])
    (cache,) = [volume for volume in pod["volumes"] if volume["name"] == "cache"]
    assert config.data.cache_bytes < gibibytes(cache["emptyDir"]["sizeLimit"]) * 0.9
    limit = container["resources"]["limits"]["ephemeral-storage"]
    assert gibibytes(cache["emptyDir"]["sizeLimit"]) < gibibytes(limit)
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    assert str(config.data.cache_dir) in mounts


def gibibytes(text: str) -> int:
    """Return the bytes of a quantity such as 60Gi."""
    assert text.endswith("Gi")
    return int(text.removesuffix("Gi")) * 2**30


def test_pods_of_the_training_job_find_pod_0_by_the_service() -> None:
    service = next(document for _, document in CORE if document["kind"] == "Service")
    spec, pod = job()["spec"], PODS["Job"]
    environment = {entry["name"]: entry.get("value") for entry in pod["containers"][0]["env"]}
    assert service["spec"]["clusterIP"] == "None"
    assert pod["subdomain"] == service["metadata"]["name"]
    assert environment["MASTER_ADDR"] == f"{job()['metadata']['name']}-0.{service['metadata']['name']}"
    assert int(environment["MASTER_PORT"]) == service["spec"]["ports"][0]["port"]
    assert spec["completions"] == spec["parallelism"] == int(environment["NUM_NODES"])
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == environment["PROCESSES"]
    # Kubernetes sets this label on the pods of a job.
    assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job()["metadata"]["name"]}


def test_pods_that_a_signal_stopped_are_started_again_and_those_with_wrong_input_are_not() -> None:
    rules = job()["spec"]["podFailurePolicy"]["rules"]
    actions = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert actions == {2: "FailJob", 75: "Ignore"}
    assert PODS["Job"]["restartPolicy"] == "Never"
    assert PODS["Job"]["terminationGracePeriodSeconds"] >= 120

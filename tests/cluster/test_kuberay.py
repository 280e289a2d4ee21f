"""cluster/kuberay.yaml, without a Kubernetes.

The schema is KubeRay's and Kubernetes' in our own words: only the fields that we use, and none besides, so that a misspelt one
is found here and not dropped in silence over there.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

ROOT = Path(__file__).parents[2]
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"type": "string", "pattern": r"^\d+(\.\d+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"}


def fields(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": required | optional,
        "required": list(required),
        "additionalProperties": False,
    }


def each(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": schema, "minItems": 1}


RESOURCES = fields(
    {name: {"type": "object", "additionalProperties": QUANTITY, "minProperties": 2} for name in ("limits", "requests")}
)
ENVIRONMENT = {
    "oneOf": [
        fields({"name": TEXT, "value": {"type": "string"}}),
        fields(
            {
                "name": TEXT,
                "valueFrom": fields({"secretKeyRef": fields({"name": TEXT, "key": TEXT}, optional={"type": "boolean"})}),
            }
        ),
    ]
}
CONTAINER = fields(
    {"name": TEXT, "image": TEXT, "resources": RESOURCES, "volumeMounts": each(fields({"name": TEXT, "mountPath": TEXT}))},
    command=each(TEXT),
    args=each(TEXT),
    env=each(ENVIRONMENT),
    ports=each(fields({"name": TEXT, "containerPort": {"type": "integer", "minimum": 1, "maximum": 65535}})),
)
VOLUME = fields(
    {"name": TEXT},
    persistentVolumeClaim=fields({"claimName": TEXT}),
    emptyDir=fields({}, medium={"const": "Memory"}, sizeLimit=QUANTITY),
)
POD = fields(
    {
        "spec": fields(
            {
                "securityContext": fields(
                    {"runAsUser": COUNT, "runAsGroup": COUNT, "fsGroup": COUNT, "runAsNonRoot": {"const": True}}
                ),
                "containers": each(CONTAINER),
                "volumes": each(VOLUME),
            },
            terminationGracePeriodSeconds=COUNT,
        )
    }
)
STARTED = {"type": "object", "additionalProperties": {"type": "string"}}  # KubeRay wants strings there, numbers are refused
CLUSTER = fields(
    {
        "rayVersion": TEXT,
        "authOptions": fields({"mode": {"enum": ["token", "disabled"]}}),
        "enableInTreeAutoscaling": {"type": "boolean"},
        "headGroupSpec": fields(
            {"serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, "rayStartParams": STARTED, "template": POD}
        ),
        "workerGroupSpecs": each(
            fields(
                {
                    "groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT, "rayStartParams": STARTED,
                    "template": POD,
                }
            )
        ),
    },
    autoscalerOptions=fields({"idleTimeoutSeconds": COUNT}),
)  # fmt: skip
JOB = fields(
    {
        "entrypoint": TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode"]},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": CLUSTER,
    }
)
CLAIM = fields(
    {
        "accessModes": each({"enum": ["ReadWriteMany"]}),
        "storageClassName": TEXT,
        "resources": fields({"requests": fields({"storage": QUANTITY})}),
    }
)
KINDS = {"PersistentVolumeClaim": ("v1", CLAIM), "RayCluster": ("ray.io/v1", CLUSTER), "RayJob": ("ray.io/v1", JOB)}


def documents() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text()))


def clusters() -> Iterator[dict[str, Any]]:
    """The specs of the cluster that stays, and of the job's."""
    for document in documents():
        if document["kind"] == "RayCluster":
            yield document["spec"]
        elif document["kind"] == "RayJob":
            yield document["spec"]["rayClusterSpec"]


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def check(document: dict[str, Any]) -> None:
    version, spec = KINDS[document["kind"]]
    name = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
    whole = fields({"apiVersion": {"const": version}, "kind": TEXT, "metadata": fields({"name": name}), "spec": spec})
    Draft202012Validator(whole).validate(document)


def test_the_documents_have_the_fields_that_kuberay_knows() -> None:
    assert [document["kind"] for document in documents()] == ["PersistentVolumeClaim", "RayCluster", "RayJob"]
    for document in documents():
        check(document)


def break_head(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], Any]:
    return lambda spec: change(spec["headGroupSpec"])


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.update(autoscalerOption={}),
        lambda spec: spec.pop("rayVersion"),
        lambda spec: spec["authOptions"].update(mode="on"),
        lambda spec: spec["workerGroupSpecs"][0].update(minReplicas="0"),
        break_head(lambda head: head["rayStartParams"].update({"num-cpus": 0})),
        break_head(lambda head: head["template"]["spec"]["containers"][0].update(volumeMount=[])),
        break_head(lambda head: head["template"]["spec"]["containers"][0]["resources"]["limits"].update(memory="16 GB")),
    ],
)
def test_a_field_that_is_wrong_is_found(change: Callable[[dict[str, Any]], Any]) -> None:
    cluster = copy.deepcopy(next(document for document in documents() if document["kind"] == "RayCluster"))
    change(cluster["spec"])
    with pytest.raises(ValidationError):
        check(cluster)


def test_volumes_are_there_and_shared() -> None:
    (claim,) = (document for document in documents() if document["kind"] == "PersistentVolumeClaim")
    for cluster in clusters():
        for pod in pods(cluster):
            named = {volume["name"]: volume for volume in pod["volumes"]}
            assert named["shared"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
            for container in pod["containers"]:
                mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
                assert mounts.keys() <= named.keys() and mounts["shared"] == "/mnt/shared"
                if container["name"].startswith("ray-"):
                    assert mounts["shm"] == "/dev/shm" and named["shm"]["emptyDir"]["medium"] == "Memory"


def test_the_token_is_on_and_nothing_is_open_to_the_world() -> None:
    for cluster in clusters():
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
        for pod in pods(cluster):
            for variable in (each for container in pod["containers"] for each in container.get("env", ())):
                secret = re.search("TOKEN|PASSWORD|SECRET|KEY|BACKEND_STORE", variable["name"])
                assert not secret or "secretKeyRef" in variable["valueFrom"], variable


def test_mlflow_is_reached_under_the_name_that_it_allows() -> None:
    (cluster,) = (document["spec"] for document in documents() if document["kind"] == "RayCluster")
    (head,) = pods(cluster)[:1]
    ray, mlflow = head["containers"]
    (uri,) = (variable["value"] for variable in ray["env"] if variable["name"] == "MLFLOW_TRACKING_URI")
    (allowed,) = re.findall(r'--allowed-hosts "([^"]*)"', mlflow["args"][0])
    assert uri.removeprefix("http://") in allowed.split(",")
    assert {"name": "mlflow", "containerPort": 5000} in ray["ports"]


def test_pods_come_from_zero_and_all_run_one_image_of_the_pinned_ray() -> None:
    images = {container["image"] for cluster in clusters() for pod in pods(cluster) for container in pod["containers"]}
    assert len(images) == 1
    from css_ray import __version__

    assert images.pop().endswith(f"/css-ray:{__version__}")
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    for cluster in clusters():
        assert cluster["rayVersion"] == pinned[1]
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        for group in cluster["workerGroupSpecs"]:
            assert group["replicas"] == group["minReplicas"] == 0 < group["maxReplicas"]


def test_the_job_runs_a_command_that_exists_and_may_be_started_again() -> None:
    import shlex

    from click.testing import CliRunner

    from css_ray_cli.main import main

    (job,) = (document["spec"] for document in documents() if document["kind"] == "RayJob")
    python, module, package, *arguments = shlex.split(job["entrypoint"])
    assert (python, module, package) == ("python", "-m", "css_ray_cli") and arguments[:2] == ["study", "drive"]
    known = CliRunner().invoke(main, ["study", "drive", "--help"]).output
    assert all(option in known for option in arguments if option.startswith("--"))
    file = arguments[arguments.index("--file") + 1]
    assert (ROOT / Path(file).relative_to("/opt/css-ray")).is_file()

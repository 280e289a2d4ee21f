"""cluster/kuberay.yaml, without a Kubernetes.

The schema is KubeRay's and Kubernetes' in our own words: only the fields that we use, and none besides, so that a misspelt one
is found here and not dropped in silence over there.
"""

from __future__ import annotations

import copy
import re
import subprocess
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
    workingDir=TEXT,
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
            tolerations=each(fields({"key": TEXT, "operator": {"enum": ["Exists"]}, "effect": {"enum": ["NoSchedule"]}})),
            nodeSelector={"type": "object", "additionalProperties": TEXT},
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
SELECTED = fields({"matchLabels": {"type": "object", "additionalProperties": TEXT, "minProperties": 1}})
POLICY = fields(
    {
        "podSelector": SELECTED,
        "policyTypes": {"const": ["Ingress"]},
        "ingress": each(
            fields(
                {},
                **{"from": each(fields({"podSelector": SELECTED}))},
                ports=each(fields({"protocol": {"const": "TCP"}, "port": COUNT})),
            )
        ),
    }
)
KINDS = {
    "PersistentVolumeClaim": ("v1", CLAIM),
    "NetworkPolicy": ("networking.k8s.io/v1", POLICY),
    "RayCluster": ("ray.io/v1", CLUSTER),
    "RayJob": ("ray.io/v1", JOB),
}


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
    assert [document["kind"] for document in documents()] == list(KINDS)
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
                assert not secret or "secretKeyRef" in variable.get("valueFrom", ()), variable


def test_only_rays_pods_reach_more_than_the_dashboard() -> None:
    (policy,) = (document["spec"] for document in documents() if document["kind"] == "NetworkPolicy")
    ray_pods = {"matchLabels": {"ray.io/is-ray-node": "yes"}}  # KubeRay puts it on each head and worker
    assert policy["podSelector"] == ray_pods
    for rule in policy["ingress"]:
        # A rule without `from` is for all, one without `ports` for all ports.
        assert rule.get("from") == [{"podSelector": ray_pods}] or [port["port"] for port in rule["ports"]] == [8265], rule


def sidecar() -> tuple[dict[str, Any], str]:
    """The MLflow container of the cluster that stays, and what its bash runs."""
    (cluster,) = (document["spec"] for document in documents() if document["kind"] == "RayCluster")
    (mlflow,) = (container for container in pods(cluster)[0]["containers"] if container["name"] == "mlflow")
    assert mlflow["command"] == ["bash", "-c"]
    (script,) = mlflow["args"]
    return mlflow, script


def test_mlflow_is_reached_under_the_names_that_it_allows_and_no_other() -> None:
    from mlflow.server.security_utils import is_allowed_host_header

    (cluster,) = (document for document in documents() if document["kind"] == "RayCluster")
    ray = pods(cluster["spec"])[0]["containers"][0]
    (uri,) = (variable["value"] for variable in ray["env"] if variable["name"] == "MLFLOW_TRACKING_URI")
    # KubeRay names a head's service so, and gives it the ports of the Ray container alone.
    assert uri == f"http://{cluster['metadata']['name']}-head-svc:5000"
    assert {"name": "mlflow", "containerPort": 5000} in ray["ports"]
    (allowed,) = re.findall(r'--allowed-hosts "([^"]*)"', sidecar()[1])
    for host, expected in {
        uri.removeprefix("http://"): True,
        "localhost:5001": True,
        "css-ray.example.org:5000": False,
    }.items():
        assert is_allowed_host_header(allowed.split(","), host) is expected, host


@pytest.mark.parametrize(
    ("secret", "uri"), [(None, "sqlite:////mlflow/mlflow.db"), ("postgresql://u:p@h/d", "postgresql://u:p@h/d")]
)
def test_the_database_is_sqlite_or_that_of_the_secret(secret: str | None, uri: str, tmp_path: Path) -> None:
    """Its address, with a password, goes by the environment: a command line is seen by all."""
    _, script = sidecar()
    for name in ("mlflow", "mkdir"):  # stand-ins: the one shows what it was given, the other makes nothing
        (tmp_path / name).write_text('#!/bin/sh\n[ "${0##*/}" = mkdir ] || echo "$MLFLOW_BACKEND_STORE_URI" "$@"\n')
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"} | ({} if secret is None else {"MLFLOW_BACKEND_STORE_URI": secret})
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    given, *arguments = ran.stdout.split()
    assert given == uri and arguments[0] == "server" and uri not in arguments


def test_mlflows_database_lies_in_a_volume_of_the_pod() -> None:
    mlflow, _ = sidecar()
    assert {"name": "mlflow", "mountPath": "/mlflow"} in mlflow["volumeMounts"]
    (uri,) = (variable for variable in mlflow["env"] if variable["name"] == "MLFLOW_BACKEND_STORE_URI")
    assert uri["valueFrom"]["secretKeyRef"]["optional"] is True


def secret(container: dict[str, Any], name: str) -> dict[str, Any]:
    """Where a variable of a container comes from."""
    (variable,) = (variable for variable in container["env"] if variable["name"] == name)
    found: dict[str, Any] = variable["valueFrom"]["secretKeyRef"]
    return found


def test_mlflow_asks_for_the_password_that_the_drivers_have() -> None:
    mlflow, script = sidecar()
    assert "--app-name basic-auth" in script and "export MLFLOW_FLASK_SERVER_SECRET_KEY=" in script
    names = {variable["name"]: variable.get("value") for variable in mlflow["env"]}
    password = secret(mlflow, "MLFLOW_AUTH_ADMIN_PASSWORD")
    assert "optional" not in password
    for cluster in clusters():
        driver = pods(cluster)[0]["containers"][0]
        assert secret(driver, "MLFLOW_TRACKING_PASSWORD") == password
        assert {"name": "MLFLOW_TRACKING_USERNAME", "value": names["MLFLOW_AUTH_ADMIN_USERNAME"]} in driver["env"]
        for pod in pods(cluster)[1:]:
            assert "env" not in pod["containers"][0]  # workers write nothing to MLflow
    # The image has the file, and the table of users lies in the pod's own volume.
    file = Path(names["MLFLOW_AUTH_CONFIG_PATH"] or "").relative_to("/opt/css-ray")
    assert f"COPY {file} cluster/" in (ROOT / "Dockerfile").read_text()
    assert "database_uri = sqlite:///users.db\n" in (ROOT / file).read_text() and mlflow["workingDir"] == "/mlflow"


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


def container(spec: dict[str, Any], group: str = "headGroupSpec") -> dict[str, Any]:
    """Ray's container of a cluster's head, or of its workers."""
    found = spec[group][0] if group == "workerGroupSpecs" else spec[group]
    first: dict[str, Any] = found["template"]["spec"]["containers"][0]
    return first


@pytest.mark.parametrize(
    ("kind", "change", "check"),
    [
        ("RayCluster", lambda spec: spec.update(authOptions={"mode": "disabled"}), test_the_token_is_on_and_nothing_is_open_to_the_world),
        ("RayJob", lambda spec: spec["rayClusterSpec"].pop("authOptions"), test_the_token_is_on_and_nothing_is_open_to_the_world),
        ("RayCluster", lambda spec: spec["headGroupSpec"].update(serviceType="LoadBalancer"), test_the_token_is_on_and_nothing_is_open_to_the_world),
        ("RayCluster", lambda spec: container(spec)["env"].append({"name": "RAY_AUTH_TOKEN", "value": "x"}), test_the_token_is_on_and_nothing_is_open_to_the_world),
        ("NetworkPolicy", lambda spec: spec["ingress"][0].pop("from"), test_only_rays_pods_reach_more_than_the_dashboard),
        ("NetworkPolicy", lambda spec: spec["ingress"][1]["ports"].append({"protocol": "TCP", "port": 5000}), test_only_rays_pods_reach_more_than_the_dashboard),
        ("RayCluster", lambda spec: container(spec)["ports"].pop(), test_mlflow_is_reached_under_the_names_that_it_allows_and_no_other),
        ("RayCluster", lambda spec: container(spec)["env"].pop(), test_mlflow_asks_for_the_password_that_the_drivers_have),
        ("RayCluster", lambda spec: container(spec)["volumeMounts"].pop(), test_volumes_are_there_and_shared),
        ("RayJob", lambda spec: container(spec["rayClusterSpec"], "workerGroupSpecs")["volumeMounts"].pop(0), test_volumes_are_there_and_shared),
        ("RayCluster", lambda spec: container(spec, "workerGroupSpecs").update(image="REGISTRY/css-ray:0.0.9"), test_pods_come_from_zero_and_all_run_one_image_of_the_pinned_ray),
        ("RayJob", lambda spec: spec["rayClusterSpec"].update(rayVersion="2.59.0"), test_pods_come_from_zero_and_all_run_one_image_of_the_pinned_ray),
        ("RayCluster", lambda spec: spec["workerGroupSpecs"][0].update(minReplicas=1), test_pods_come_from_zero_and_all_run_one_image_of_the_pinned_ray),
        ("RayJob", lambda spec: spec.update(entrypoint=spec["entrypoint"] + " --forever"), test_the_job_runs_a_command_that_exists_and_may_be_started_again),
    ],
)  # fmt: skip
def test_what_would_be_wrong_is_found(
    kind: str, change: Callable[[dict[str, Any]], Any], check: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = documents()
    change(next(document["spec"] for document in changed if document["kind"] == kind))
    monkeypatch.setitem(globals(), "documents", lambda: changed)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        check()

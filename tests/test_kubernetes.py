"""The Kubernetes files: the job that Prefect's own worker makes of the template, against the published schemas."""

import asyncio
import copy
import json
import re
import tomllib
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings
from prefect_kubernetes.worker import KubernetesWorker, KubernetesWorkerJobConfiguration

from tests.conftest import ROOT

KUBERNETES = ROOT / "infra" / "kubernetes"
TEMPLATE = json.loads((KUBERNETES / "base-job-template.json").read_text())
CPU = json.loads((KUBERNETES / "cpu.json").read_text())
VARIANTS = {
    "defaults": {},
    "cpu": CPU,
    "everything": {
        "gpus": 8,
        "node_selector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "cpu_limit": "16",
        "priority_class": "training",
        "image_pull_secrets": [{"name": "registry"}],
        "workspace": {"name": "workspace", "persistentVolumeClaim": {"claimName": "teacher"}},
        "env": {"OMP_NUM_THREADS": "8"},
        "labels": {"team": "vision"},
        "annotations": {"note": "one, two"},
    },
}
# The oldest release that is still looked after, and the newest that is known.
VERSIONS = ("1.34", "1.37")
# Prefect's worker wants these two in the pod although they are the job's; the API server drops them.
PREFECTS_OWN = {"parallelism": 1, "completions": 1}
AUTH = "somebody:a-password-of-prefect"


def job(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest that Prefect's worker sends to Kubernetes for a flow run."""

    async def make() -> dict[str, Any]:
        template = copy.deepcopy(TEMPLATE)
        # The template names no block and no variable of Prefect's, so no server is asked for one.
        client = get_client()
        configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(
            template, variables, client=client
        )
        run = FlowRun(flow_id="6c2ef5a1-51b0-4b4b-b2b6-0b0b1a9b4e1c", name="swift-tapir")
        configuration.prepare_for_flow_run(run)
        worker = KubernetesWorker(work_pool_name="any")
        # As with the two settings that the chart sets for a Secret that exists.
        await worker._replace_env_variable_with_secret(
            "PREFECT_API_AUTH_STRING", configuration, secret_name="nfm-prefect", secret_key="auth-string"
        )
        return configuration.job_manifest

    with temporary_settings({PREFECT_API_URL: "http://prefect-server:4200/api", PREFECT_API_AUTH_STRING: AUTH}):
        return asyncio.run(make())


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return request.param, job(VARIANTS[request.param])


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["template"]["spec"]


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(manifest)["containers"]
    return only


def without_prefects_own(manifest: dict[str, Any]) -> dict[str, Any]:
    stripped = copy.deepcopy(manifest)
    assert {key: pod(stripped).pop(key) for key in PREFECTS_OWN} == PREFECTS_OWN
    return stripped


@pytest.mark.parametrize("version", VERSIONS)
def test_the_job_satisfies_the_published_schema_to_the_last_key(variant, version):
    name, manifest = variant
    assert kubernetes_validate.validate(without_prefects_own(manifest), version, strict=True) == version, name


def test_the_schema_refuses_what_kubernetes_would():
    def refuses(change) -> bool:
        manifest = without_prefects_own(job({}))
        change(manifest)
        try:
            kubernetes_validate.validate(manifest, VERSIONS[-1], strict=True)
        except kubernetes_validate.ValidationError:
            return True
        return False

    assert not refuses(lambda manifest: None)
    assert refuses(lambda manifest: pod(manifest).update(gracePeriod=3))
    assert refuses(lambda manifest: pod(manifest).update(tolerations={"key": "nvidia.com/gpu"}))
    assert refuses(lambda manifest: pod(manifest).update(terminationGracePeriodSeconds="120"))
    assert refuses(lambda manifest: manifest["spec"].update(backoffLimit="0"))
    assert refuses(lambda manifest: container(manifest).pop("name"))


def test_no_placeholder_and_no_null_is_left(variant):
    _, manifest = variant
    text = json.dumps(manifest)
    assert "{{" not in text
    assert "null" not in text
    assert "" not in [value for value in walk(manifest) if isinstance(value, str)]


def walk(value: Any) -> Iterator[Any]:
    yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from walk(inner)


def test_a_preempted_job_has_the_time_for_a_checkpoint_and_only_prefect_starts_it_again(variant):
    _, manifest = variant
    assert manifest["spec"]["backoffLimit"] == 0
    assert pod(manifest)["restartPolicy"] == "Never"
    assert pod(manifest)["terminationGracePeriodSeconds"] >= 60
    behaviour = {e["name"]: e.get("value") for e in container(manifest)["env"]}
    assert behaviour["PREFECT_FLOW_RUN_EXECUTE_SIGTERM_BEHAVIOR"] == "reschedule"


def test_the_job_runs_as_the_images_user_and_can_gain_nothing(variant):
    _, manifest = variant
    of_pod, of_container = pod(manifest)["securityContext"], container(manifest)["securityContext"]
    users = [
        line.split()[1] for line in (ROOT / "infra/Dockerfile").read_text().splitlines() if line.startswith("USER ")
    ]
    assert f"{of_pod['runAsUser']}:{of_pod['runAsGroup']}" == users[-1]
    assert of_pod["runAsNonRoot"] is True
    assert of_pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert of_container["allowPrivilegeEscalation"] is False
    assert of_container["readOnlyRootFilesystem"] is True
    assert of_container["capabilities"] == {"drop": ["ALL"]}
    assert pod(manifest)["automountServiceAccountToken"] is False


def test_what_the_job_writes_to_is_mounted_and_shared_memory_is_memory(variant):
    _, manifest = variant
    volumes = {volume["name"]: volume for volume in pod(manifest)["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container(manifest)["volumeMounts"]}
    assert set(mounts) == {"/home/nfm", "/tmp", "/dev/shm"}
    assert set(mounts.values()) == set(volumes)
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert container(manifest)["workingDir"] == "/home/nfm"


def test_secrets_are_references_and_no_value_of_one_is_in_the_manifest(variant):
    _, manifest = variant
    entries = {entry["name"]: entry for entry in container(manifest)["env"]}
    wanted = {
        "AWS_ACCESS_KEY_ID": ("nfm", "s3-access-key"),
        "AWS_SECRET_ACCESS_KEY": ("nfm", "s3-secret-key"),
        "MLFLOW_TRACKING_USERNAME": ("nfm", "mlflow-user"),
        "MLFLOW_TRACKING_PASSWORD": ("nfm", "mlflow-password"),
        "PREFECT_API_AUTH_STRING": ("nfm-prefect", "auth-string"),
    }
    for name, (secret, key) in wanted.items():
        assert entries[name] == {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
    assert AUTH not in json.dumps(manifest)


def test_a_job_gets_the_gpus_that_it_asks_for_and_nodes_that_have_them():
    gpu, cpu, all_of_it = (job(variables) for variables in VARIANTS.values())
    for manifest, count in ((gpu, 1), (cpu, 0), (all_of_it, 8)):
        resources = container(manifest)["resources"]
        # Kubernetes wants both equal: GPUs are not shared.
        assert resources["limits"]["nvidia.com/gpu"] == resources["requests"]["nvidia.com/gpu"] == count
    assert pod(gpu)["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    assert container(gpu)["image"].endswith("-gpu")
    assert pod(cpu)["tolerations"] == [], "a job without GPUs keeps nobody from them"
    assert not container(cpu)["image"].endswith("-gpu")
    assert pod(gpu)["nodeSelector"] == pod(cpu)["nodeSelector"] == {}
    assert pod(all_of_it)["nodeSelector"] == VARIANTS["everything"]["node_selector"]
    assert "cpu" not in container(gpu)["resources"]["limits"], "a job may use the cores that nobody else does"
    assert container(all_of_it)["resources"]["limits"]["cpu"] == "16"


def test_what_a_deployment_sets_reaches_the_job():
    manifest = job(VARIANTS["everything"])
    assert pod(manifest)["volumes"][0] == VARIANTS["everything"]["workspace"]
    assert pod(manifest)["priorityClassName"] == "training"
    assert {"name": "OMP_NUM_THREADS", "value": "8"} in container(manifest)["env"]
    assert manifest["metadata"]["labels"]["team"] == "vision"
    assert manifest["metadata"]["annotations"]["note"] == "one, two"


def test_a_real_server_takes_the_work_pool_and_gives_the_template_back(prefect_server):
    with get_client(sync_client=True) as client:
        pool = WorkPoolCreate(name="from-template", type="kubernetes", base_job_template=TEMPLATE)
        client.create_work_pool(pool)
        read = client.read_work_pool("from-template")
    assert read.type == "kubernetes"
    assert read.base_job_template == TEMPLATE


def test_the_server_holds_job_variables_against_the_schema(prefect_server):
    @flow(name="of-kubernetes")
    def nothing() -> None:
        pass

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="checked", type="kubernetes", base_job_template=TEMPLATE))
        flow_id = client.create_flow(nothing)

        def deploy(name: str, variables: dict[str, Any]) -> Any:
            return client.create_deployment(flow_id, name, work_pool_name="checked", job_variables=variables)

        made = client.read_deployment(deploy("good", CPU))
        assert made.job_variables == CPU
        for name, value in (("gpus", "two"), ("gpus", -1), ("tolerations", {"key": "a"}), ("grace_seconds", 1)):
            with pytest.raises(PrefectHTTPStatusError, match=f"Validation failed for field '{name}'"):
                deploy("bad", {name: value})


def test_every_variable_is_described_used_and_has_a_default_or_may_be_left_out():
    properties = TEMPLATE["variables"]["properties"]
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(TEMPLATE["job_configuration"])))
    assert used == set(properties)
    for name, schema in properties.items():
        assert schema["title"], name
        assert schema["description"].endswith("."), name
        assert schema["type"] in ("string", "integer", "boolean", "object", "array"), name
    assert not TEMPLATE["variables"].get("required")
    optional = {name for name, schema in properties.items() if "default" not in schema}
    assert optional == {"cpu_limit", "priority_class", "job_watch_timeout_seconds", "name", "command"}


def test_the_values_of_the_charts_name_our_image_and_hold_no_secret():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    server, worker = (yaml.safe_load((KUBERNETES / f"{n}-values.yaml").read_text()) for n in ("server", "worker"))
    image = server["global"]["prefect"]["image"]
    assert (image["repository"], image["prefectTag"]) == ("nfm", version)
    assert worker["worker"]["image"] == image
    assert TEMPLATE["variables"]["properties"]["image"]["default"] == f"nfm:{version}-gpu"
    assert CPU["image"] == f"nfm:{version}"
    auth = [server["server"]["basicAuth"], worker["worker"]["selfHostedServerApiConfig"]["basicAuth"]]
    assert auth == [{"enabled": True, "existingSecret": "nfm-prefect"}] * 2
    assert server["externalDatabase"]["existingSecret"]
    assert not {"password", "authString", "connectionString"} & {
        key for value in walk([server, worker]) if isinstance(value, dict) for key in value
    }

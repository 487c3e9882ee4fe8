"""Each assertion of `tests/deploy/manifests.py` finds the fault that it is there for, planted in what has none."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy import manifests
from tests.deploy.manifests import Object
from tests.deploy.test_overlays import folder

LINES = (Path(__file__).parent / "planted_faults.txt").read_text("utf-8").splitlines()
PLANTED = [tuple(line.split(" | ")) for line in LINES if line and not line.startswith("#")]
ORDERS = {  # of init containers, and what is said of it
    (1, 0, 2): "verify-bundle reads bundle before fetch-bundle has filled it",
    (2, 0, 1): "fetch-bundle runs after the native sidecar guard has started",
    (0, 2, 1): "verify-bundle runs after the native sidecar guard has started",
}


@pytest.fixture(scope="module")
def rendered(side: Callable[[str], Path]) -> dict[str, list[Object]]:
    programs = side("kubectl")
    names = ("production", "production-plain", "autoscaled-keda", "signed-init", "gpu-claim", "mesh")
    texts = {name: manifests.kustomize(folder(name), programs) for name in names}
    texts["kserve"] = KSERVE
    return manifests.read_all(texts, programs)


def node_of(objects: list[Object], name: str) -> Any:
    """A container, the pod's spec, or the spec of the object of a kind."""
    (pod,) = manifests.pods(objects)
    if name == "pod":
        return pod.spec
    found = [one for one in pod.before + pod.beside if one["name"] == name]
    found += [one.get("spec", one.get("data")) for one in objects if one["kind"] == name]
    (node,) = found
    return node


def put(node: Any, path: str, value: Any) -> None:
    """Set what stands at a path of keys and numbers below a node, making tables on the way; None takes it out."""
    *parents, last = (int(key) if key.lstrip("-").isdecimal() else key for key in path.split())
    for key in parents:
        node = node[key] if isinstance(node, list) else node.setdefault(key, {})
    if last == "+":
        node.append(value)
    elif value is None:
        del node[last]
    else:
        node[last] = value


def put_flag(container: Any, flag: str, value: str | None) -> None:
    """Give a container's flag another value, or take it away."""
    kept = [arg for arg in container["args"] if not arg.startswith(f"{flag}=")]
    container["args"] = kept + ([f"{flag}={value}"] if value is not None else [])


@pytest.mark.parametrize(("check", "overlay", "node", "path", "value", "told"), PLANTED)
def test_a_planted_fault_is_found(
    rendered: dict[str, list[Object]], check: str, overlay: str, node: str, path: str, value: str, told: str
) -> None:
    objects = copy.deepcopy(rendered[overlay])
    put_in = put_flag if path.startswith("--") else put
    put_in(node_of(objects, node), path, json.loads(value))
    found = getattr(manifests, f"{check}_faults")(objects)
    assert any(told in fault for fault in found), found or manifests.faults(objects)


def test_what_faults_are_planted_in_has_none(rendered: dict[str, list[Object]]) -> None:
    assert {overlay for _, overlay, *_ in PLANTED} <= set(rendered)
    assert [fault for name in rendered if name != "kserve" for fault in manifests.faults(rendered[name])] == []


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_init_containers_in_a_wrong_order_are_found(rendered: dict[str, list[Object]], order: tuple[int, ...]) -> None:
    objects = copy.deepcopy(rendered["signed-init"])
    pod = node_of(objects, "pod")
    pod["initContainers"] = [pod["initContainers"][place] for place in order]
    assert any(ORDERS[order] in fault for fault in manifests.reference_faults(objects))


def test_the_longest_inspection_of_all_models_counts_for_the_drain(rendered: dict[str, list[Object]]) -> None:
    objects = copy.deepcopy(rendered["production"])
    guard = node_of(objects, "guard")
    put_flag(guard, "--bundle", None)
    guard["env"].append({"name": "GUARD_BUNDLE", "value": ""})
    for longest, faulty in (("", False), ("inspect_timeout_s = 30", True)):
        tables = f"inspect_timeout_s = 2\n[models.a]\nbundle = '/a'\n[models.b]\nbundle = '/b'\n{longest}\n"
        put(node_of(objects, "ConfigMap"), "guard.toml", tables)
        found = manifests.drain_faults(objects)
        assert any("the guard forwards for 37 s" in fault for fault in found) == faulty


def test_an_api_that_is_gone_is_found(rendered: dict[str, list[Object]]) -> None:
    objects = copy.deepcopy(rendered["production"])
    (policy,) = [one for one in objects if one["kind"] == "NetworkPolicy"]
    policy["apiVersion"] = "extensions/v1beta1"
    assert manifests.enum_faults(objects) == [
        "NetworkPolicy/guarded-model: apiVersion is extensions/v1beta1, wanted networking.k8s.io/v1"
    ]


def test_every_check_is_tried() -> None:
    assert {f"{check}_faults" for check, *_ in PLANTED} == {check.__name__ for check in manifests.CHECKS}


def test_a_version_that_is_stated_wrongly_is_found(rendered: dict[str, list[Object]]) -> None:
    objects = copy.deepcopy(rendered["production"])
    (deployment,) = [one for one in objects if one["kind"] == "Deployment"]
    deployment["metadata"]["annotations"] = {"kubernetes.inference-guard/native-sidecar": "1.28"}
    assert manifests.version_faults(objects, "1.37") == ["Kubernetes 1.28 is stated as the lowest version, and 1.29 is"]
    del deployment["metadata"]["annotations"]
    (fault,) = manifests.version_faults(objects, "1.37")
    assert fault.startswith("nothing states a lowest version of Kubernetes")


KSERVE = """
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: digits}
spec:
  predictor:
    automountServiceAccountToken: false
    enableServiceLinks: false
    terminationGracePeriodSeconds: 60
    containers:
      - name: kserve-container
        args: [tritonserver, --model-repository=/models, --grpc-address=127.0.0.1, --allow-http=false]
      - name: transformer-container
        args: [serve, --model_name, digits, --listen=0.0.0.0:8081, --upstream=127.0.0.1:9000, --bundle=/bundle]
        ports: [{name: h2c, containerPort: 8081}, {name: metrics, containerPort: 8082}]
"""


def test_pods_are_found_where_kserve_has_them(rendered: dict[str, list[Object]]) -> None:
    (pod,) = manifests.pods(rendered["kserve"])
    assert pod.where == "InferenceService/digits predictor"
    assert pod.guard["name"] == "transformer-container"
    assert [one["name"] for one in pod.others] == ["kserve-container"]
    assert pod.settings(rendered["kserve"]).listen == "0.0.0.0:8081"
    assert manifests.port_faults(rendered["kserve"]) == []
    assert manifests.route_faults(rendered["kserve"]) == [
        "InferenceService/digits predictor kserve-container: serves its metrics to everybody; wanted "
        "--allow-metrics=false, or --metrics-address"
    ]

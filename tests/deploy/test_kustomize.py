"""What `kubectl apply -k deploy/kustomize/base` would create, written out: ports, probes, settings, and locks."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.config import ServeConfig
from tests.deploy.manifests import Object, kustomize, pods, read, schema_faults
from tests.deploy.rendered import flags_of, port_of


@pytest.fixture(scope="module")
def rendered(root: Path, side: Callable[[str], Path]) -> list[Object]:
    programs = side("kubectl")
    return read(kustomize(root / "deploy/kustomize/base", programs), programs)


@pytest.fixture(scope="module")
def objects(rendered: list[Object]) -> dict[str, Any]:
    """Kind -> object; there is one of each."""
    kinds = {item["kind"]: item for item in rendered}
    assert len(kinds) == len(rendered)
    return kinds


@pytest.fixture(scope="module")
def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]["spec"]


@pytest.fixture(scope="module")
def guard(pod: Any) -> Any:
    (only,) = pod["initContainers"]
    return only


@pytest.fixture(scope="module")
def model_server(pod: Any) -> Any:
    (only,) = pod["containers"]
    return only


@pytest.mark.parametrize(
    ("right", "wrong"), [("startupProbe", "startProbe"), ("readOnlyRootFilesystem", "readOnlyRootFileSystem")]
)
def test_schemas_find_a_mistake(rendered: list[Object], right: str, wrong: str, side: Callable[[str], Path]) -> None:
    text = json.dumps(rendered)
    assert right in text
    planted = json.loads(text.replace(right, wrong, 1))
    found = schema_faults({"": (planted, ["1.29"])}, side("kubectl"))
    assert any(wrong in fault for fault in found["", "1.29"])


def test_the_guard_is_a_native_sidecar_that_starts_first(guard: Any, model_server: Any) -> None:
    assert guard["restartPolicy"] == "Always"
    assert guard["args"][0] == "serve"
    assert "command" not in guard  # the image's entry point is guard
    assert (
        flags_of(guard)["upstream"] == f"{flags_of(model_server)['grpc-address']}:{flags_of(model_server)['grpc-port']}"
    )


@pytest.mark.parametrize(
    ("probe", "service"), [("startupProbe", ""), ("livenessProbe", ""), ("readinessProbe", "readiness")]
)
def test_probes_ask_for_the_right_health_service(guard: Any, probe: str, service: str) -> None:
    # Start-up that waits for the upstream would deadlock: a native sidecar starts before it.
    assert guard[probe]["grpc"] == {"port": port_of(flags_of(guard)["listen"]), "service": service}


def test_the_model_server_is_reached_on_loopback_only(model_server: Any) -> None:
    given = flags_of(model_server)
    assert given["grpc-address"] == "127.0.0.1"
    assert given["allow-http"] == given["allow-metrics"] == "false"
    assert "ports" not in model_server
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & set(model_server)  # the kubelet could not reach it


def test_clients_reach_the_guard_and_nothing_else(objects: dict[str, Any], guard: Any) -> None:
    ports = {port["name"]: port["containerPort"] for port in guard["ports"]}
    assert ports == {
        "grpc-inference": port_of(flags_of(guard)["listen"]),
        "metrics": port_of(flags_of(guard)["metrics-listen"]),
    }
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == [ports["grpc-inference"]]
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert [rule["ports"] for rule in policy["ingress"]] == [
        [{"port": ports["grpc-inference"]}],
        [{"port": ports["metrics"]}],
    ]
    assert all(rule["from"] for rule in policy["ingress"])
    assert flags_of(guard)["admin-listen"].startswith("unix:")


def test_every_selector_selects_this_pod_and_no_other(objects: dict[str, Any]) -> None:
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert labels
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["NetworkPolicy"]["spec"]["podSelector"] == {"matchLabels": labels}


def test_prometheus_is_told_where_the_metrics_are(objects: dict[str, Any], guard: Any) -> None:
    annotations = objects["Deployment"]["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port_of(flags_of(guard)["metrics-listen"])),
        "prometheus.io/path": "/metrics",
    }


@pytest.mark.parametrize("name", ["guard", "model-server"])
def test_containers_are_locked_down(pod: Any, name: str) -> None:
    (container,) = [c for c in pod["initContainers"] + pod["containers"] if c["name"] == name]
    context = container["securityContext"]
    assert context["runAsNonRoot"] is True
    assert context["runAsUser"] > 0
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        assert mount.get("readOnly") or "emptyDir" in volumes[mount["name"]], mount


def test_the_pod_is_locked_down(pod: Any) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)


def test_no_service_can_put_settings_into_the_guards_environment(pod: Any, objects: dict[str, Any]) -> None:
    # A Service named guard-x sets GUARD_X_SERVICE_HOST, and an unknown GUARD_ setting is an error.
    assert pod["enableServiceLinks"] is False
    assert not objects["Service"]["metadata"]["name"].startswith("guard-")


@pytest.fixture(scope="module")
def settings(rendered: list[Object]) -> ServeConfig:
    """The sidecar's settings, read as the sidecar reads them."""
    (found,) = pods(rendered)
    return found.settings(rendered)


def test_it_enforces_and_fails_closed(settings: ServeConfig) -> None:
    assert (settings.mode, settings.on_failure) == ("enforce", "closed")


def test_its_threads_are_the_processors_that_it_requests(guard: Any) -> None:
    (threads,) = [one["valueFrom"] for one in guard["env"] if one["name"] == "GUARD_THREADS"]
    assert threads == {"resourceFieldRef": {"resource": "requests.cpu"}}
    assert guard["resources"]["requests"]["cpu"] == "1"


def test_the_command_line_has_these_flags(
    guard: Any, side: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command = [side("cpu") / "guard", guard["args"][0], "--help"]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert not [name for name in flags_of(guard) if f"--{name}" not in shown]

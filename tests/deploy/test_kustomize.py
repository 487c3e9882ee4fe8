"""What `kubectl apply -k deploy/kustomize/base` would create: valid Kubernetes, and no way around the guard."""

from __future__ import annotations

import copy
import ipaddress
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from guard.config import ServeConfig, load_config

TO_JSON = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
VERSIONS = ["1.29", "1.33", "1.37"]  # native sidecars are on by default from 1.29
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
HANDLERS = ("postStart", "preStop")


@pytest.fixture(scope="module")
def rendered(root: Path, side: Callable[[str], Path]) -> str:
    return run(side("kubectl") / "kubectl", "kustomize", root / "deploy/kustomize/base").stdout


@pytest.fixture(scope="module")
def objects(rendered: str, side: Callable[[str], Path]) -> dict[str, Any]:
    """Kind -> object; there is one of each."""
    found = json.loads(run(side("kubectl") / "python", "-c", TO_JSON, given=rendered).stdout)
    kinds = {item["kind"]: item for item in found}
    assert len(kinds) == len(found)
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


def flags(container: Any) -> dict[str, str]:
    return dict(arg.removeprefix("--").split("=", 1) for arg in container["args"] if arg.startswith("--"))


def run(program: Path, *arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run([program, *arguments], input=given, capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def validate(text: str, version: str, programs: Path, folder: Path) -> str:
    file = folder / "rendered.yaml"
    file.write_text(text, encoding="utf-8")
    done = run(programs / "kubernetes-validate", "--strict", "-k", version, file)
    return done.stdout + done.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_valid(rendered: str, version: str, side: Callable[[str], Path], tmp_path: Path) -> None:
    assert validate(rendered, version, side("kubectl"), tmp_path).count("passed") == rendered.count("\nkind: ")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("startupProbe:", "startProbe:"), ("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: 7")],
)
def test_the_validation_finds_a_mistake(
    rendered: str, right: str, wrong: str, side: Callable[[str], Path], tmp_path: Path
) -> None:
    assert right in rendered
    with pytest.raises(AssertionError, match=r"rendered\.yaml"):
        validate(rendered.replace(right, wrong, 1), "1.29", side("kubectl"), tmp_path)


def test_the_guard_is_a_native_sidecar_that_starts_first(guard: Any, model_server: Any) -> None:
    assert guard["restartPolicy"] == "Always"
    assert guard["args"][0] == "serve"
    assert "command" not in guard  # the image's entry point is guard
    assert flags(guard)["upstream"] == f"{flags(model_server)['grpc-address']}:{flags(model_server)['grpc-port']}"


@pytest.mark.parametrize(
    ("probe", "service"), [("startupProbe", ""), ("livenessProbe", ""), ("readinessProbe", "readiness")]
)
def test_probes_ask_for_the_right_health_service(guard: Any, probe: str, service: str) -> None:
    # Start-up that waits for the upstream would deadlock: a native sidecar starts before it.
    assert guard[probe]["grpc"] == {"port": port_of(flags(guard)["listen"]), "service": service}


def test_the_model_server_is_reached_on_loopback_only(model_server: Any) -> None:
    given = flags(model_server)
    assert given["grpc-address"] == "127.0.0.1"
    assert given["allow-http"] == given["allow-metrics"] == "false"
    assert "ports" not in model_server
    assert not {"readinessProbe", "livenessProbe", "startupProbe"} & set(model_server)  # the kubelet could not reach it


def test_clients_reach_the_guard_and_nothing_else(objects: dict[str, Any], guard: Any) -> None:
    ports = {port["name"]: port["containerPort"] for port in guard["ports"]}
    assert ports == {"inference": port_of(flags(guard)["listen"]), "metrics": port_of(flags(guard)["metrics-listen"])}
    assert [port["targetPort"] for port in objects["Service"]["spec"]["ports"]] == [ports["inference"]]
    policy = objects["NetworkPolicy"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    assert [rule["ports"] for rule in policy["ingress"]] == [
        [{"port": ports["inference"]}],
        [{"port": ports["metrics"]}],
    ]
    assert all(rule["from"] for rule in policy["ingress"])
    assert flags(guard)["admin-listen"].startswith("127.0.0.1:")


def port_faults(objects: dict[str, Any]) -> list[str]:
    """Whatever is wrong with the ports of rendered objects, a line each; none is right.

    The names of a native sidecar's ports mean nothing to a Service before Kubernetes 1.32, nor to some network plugins.
    """
    (guard,) = objects["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    declared = {port["containerPort"] for port in guard["ports"]}
    reached = {
        port_of(address)
        for flag, address in flags(guard).items()
        if flag.endswith("listen") and not ipaddress.ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    }
    faults = [f"containerPort {port}: no flag of the guard listens there" for port in sorted(declared - reached)]
    faults += [f"{port}: the guard listens there, and no containerPort says so" for port in sorted(reached - declared)]
    for place, port in port_references(objects):
        if type(port) is not int:
            faults.append(f"{place}: {port!r} is not a number")
        elif port not in declared & reached:
            faults.append(f"{place}: {port} is no port of the guard")
    return faults


def port_references(objects: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Each reference to a container's port: where it stands, and the number or the name."""
    template = objects["Deployment"]["spec"]["template"]
    yield "prometheus.io/port", int(template["metadata"]["annotations"]["prometheus.io/port"])
    for port in objects["Service"]["spec"]["ports"]:
        yield "Service", port.get("targetPort", port["port"])
    for rule in objects["NetworkPolicy"]["spec"]["ingress"]:
        for port in rule["ports"]:
            yield from (("NetworkPolicy", port[key]) for key in ("port", "endPort") if key in port)
    for container in template["spec"]["initContainers"] + template["spec"]["containers"]:
        actions = {name: container[name] for name in PROBES if name in container}
        actions |= {name: act for name, act in container.get("lifecycle", {}).items() if name in HANDLERS}
        for name, action in actions.items():
            for kind in ("grpc", "httpGet", "tcpSocket"):
                if kind in action:
                    yield f"{container['name']} {name}", action[kind]["port"]


def test_ports_are_numbers_on_which_the_guard_listens(objects: dict[str, Any]) -> None:
    assert port_faults(objects) == []
    assert len(list(port_references(objects))) == 7  # annotation, Service, two rules, three probes


@pytest.mark.parametrize(("wrong", "fault"), [("inference", "'inference' is not a number"), (9000, "9000 is no port")])
@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("Service", "Service spec ports 0 targetPort"),
        ("NetworkPolicy", "NetworkPolicy spec ingress 0 ports 0 port"),
        ("NetworkPolicy", "NetworkPolicy spec ingress 1 ports 0 port"),
        ("NetworkPolicy", "NetworkPolicy spec ingress 1 ports 0 endPort"),
        *((f"guard {probe}", f"guard {probe} httpGet port") for probe in PROBES),
        ("guard readinessProbe", "guard readinessProbe grpc port"),
        ("guard livenessProbe", "guard livenessProbe tcpSocket port"),
        ("model-server preStop", "model-server lifecycle preStop httpGet port"),
        ("model-server postStart", "model-server lifecycle postStart tcpSocket port"),
    ],
)
def test_a_planted_port_is_found(objects: dict[str, Any], place: str, path: str, wrong: Any, fault: str) -> None:
    planted = copy.deepcopy(objects)
    pod = planted["Deployment"]["spec"]["template"]["spec"]
    containers = {container["name"]: container for container in pod["initContainers"] + pod["containers"]}
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split())
    node: Any = planted | containers
    for key in parents:
        node = node[key] if isinstance(node, list) else node.setdefault(key, {})
    node[last] = wrong
    (found,) = port_faults(planted)
    assert found.startswith(f"{place}: {fault}")


def test_a_port_on_which_nobody_listens_is_found(objects: dict[str, Any]) -> None:
    planted = copy.deepcopy(objects)
    (guard,) = planted["Deployment"]["spec"]["template"]["spec"]["initContainers"]
    guard["args"] = [arg.replace("0.0.0.0:8082", "127.0.0.1:8082") for arg in guard["args"]]
    assert port_faults(planted) == [
        "containerPort 8082: no flag of the guard listens there",
        "prometheus.io/port: 8082 is no port of the guard",
        "NetworkPolicy: 8082 is no port of the guard",
    ]


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
        "prometheus.io/port": str(port_of(flags(guard)["metrics-listen"])),
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


@pytest.fixture
def settings(objects: dict[str, Any], guard: Any, tmp_path: Path) -> ServeConfig:
    """The sidecar's settings, read as the sidecar reads them."""
    (name,) = objects["ConfigMap"]["data"]
    assert flags(guard)["config"] == f"/etc/guard/{name}"
    file = tmp_path / name
    file.write_text(objects["ConfigMap"]["data"][name], encoding="utf-8")
    given = {key.replace("-", "_"): value for key, value in flags(guard).items() if key != "config"}
    return load_config(file, {}, given)


def test_it_enforces_and_fails_closed(settings: ServeConfig) -> None:
    assert (settings.mode, settings.on_failure) == ("enforce", "closed")


def test_there_is_time_to_stop(settings: ServeConfig, pod: Any, model_server: Any) -> None:
    pause = float(model_server["lifecycle"]["preStop"]["exec"]["command"][1])
    stop = pause + float(flags(model_server)["exit-timeout-secs"]) + settings.drain_s
    assert pod["terminationGracePeriodSeconds"] > stop


def test_the_command_line_has_these_flags(
    guard: Any, side: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = run(side("cpu") / "guard", guard["args"][0], "--help").stdout.split()
    assert not [name for name in flags(guard) if f"--{name}" not in shown]


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])

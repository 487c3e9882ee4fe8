"""Ports of rendered objects: do references lead to an open port, do routes lead to the guard alone, can probes ask?

Before Kubernetes 1.32 a Service finds no endpoint by the name of a native sidecar's port, and some network plugins find
none either: a reference to one is a number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from guard.config import ServeConfig
from guard.errors import ConfigError
from tests.deploy.rendered import (
    DOORS,
    Object,
    Pod,
    environment_of,
    flags_of,
    is_guard,
    is_loopback,
    pods,
    port_of,
    reached,
    stays,
)

PROBES = ("startupProbe", "livenessProbe", "readinessProbe")
HOOKS = ("postStart", "preStop")
ASKED = ("grpc", "httpGet", "tcpSocket")
SCRAPED = ("prometheus.io/port", "prometheus.kserve.io/port")
ALIVE, READY = ("/livez", "/v2/health/live"), ("/readyz", "/v2/health/ready")
KSERVES = "kserve-container"  # in KServe's pods: the model server
MESH_PORTS = {15012: "istiod", 53: "the names of the cluster"}
OF_THE_GUARD_ALONE = ("", "liveness", "inference.GRPCInferenceService")
# How model servers are told where to listen: the flag or variable, and what it is unless given.
LISTENING_FLAGS = {
    "tritonserver": {"grpc-address": "0.0.0.0", "http-address": "0.0.0.0"},
    "ovms": {"grpc_bind_address": "0.0.0.0", "rest_bind_address": "0.0.0.0"},
}
SWITCHES = {"http-address": "allow-http", "grpc-address": "allow-grpc"}  # Triton: false, and the address is none


def port_faults(objects: Sequence[Object]) -> list[str]:
    """References to ports that lead nowhere, and ports of a guard that are declared and closed, or open and hidden."""
    found = []
    for pod in pods(objects):
        open_ports = guard_ports(pod, objects)
        if pod.guard is not None and open_ports is not None:
            declared = {one["containerPort"] for one in pod.guard.get("ports") or ()}
            found += [
                f"{pod.where} guard: containerPort {one}: the guard does not listen there"
                for one in sorted(declared - open_ports)
            ]
            found += [
                f"{pod.where} guard: listens on {one}, and no containerPort says so"
                for one in sorted(open_ports - declared)
            ]
        for place, port in port_references(pod, objects):
            found += reference_faults_of(place, port, pod, open_ports)
    return found


def guard_ports(pod: Pod, objects: Sequence[Object]) -> set[int] | None:
    """The ports on which a pod's guard can be reached; None where there is no guard, or it refuses its settings."""
    try:
        return set(reached(pod.settings(objects)))
    except ConfigError:
        return None


def reference_faults_of(place: str, port: Any, pod: Pod, open_ports: set[int] | None) -> Iterator[str]:
    containers = {True: pod.before, False: pod.beside}
    if isinstance(port, str):
        names = {
            early: {one.get("name") for container in some for one in container.get("ports") or ()}
            for early, some in containers.items()
        }
        if port in names[True]:
            yield f"{place}: {port!r} is the name of a native sidecar's port; wanted its number"
        elif port not in names[False]:
            yield f"{place}: no container has a port called {port!r}"
        return
    declared = {one["containerPort"] for some in containers.values() for c in some for one in c.get("ports") or ()}
    if port not in declared | (open_ports or set()):
        yield f"{place}: {port} is no port of {pod.where}"


def port_references(pod: Pod, objects: Sequence[Object]) -> Iterator[tuple[str, Any]]:
    """Each reference to a port of the pod: where it stands, and the number or the name."""
    for name in SCRAPED:
        if name in pod.annotations:
            yield f"{pod.where} {name}", int(pod.annotations[name])
    for one in objects:
        place, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec") or {}
        if one["kind"] == "Service" and selects({"matchLabels": spec.get("selector")}, pod):
            for port in spec["ports"]:
                yield place, port.get("targetPort", port["port"])
        elif one["kind"] == "NetworkPolicy" and selects(spec["podSelector"], pod):
            for rule in spec.get("ingress") or ():
                for port in rule.get("ports") or ():
                    yield from ((place, port[key]) for key in ("port", "endPort") if key in port)
        elif one["kind"] == "PodMonitor" and selects(spec["selector"], pod):
            for end in spec["podMetricsEndpoints"]:
                yield from ((place, end[key]) for key in ("port", "portNumber", "targetPort") if key in end)
    for container in pod.before + pod.beside:
        for name, action in actions_of(container):
            yield from (
                (f"{pod.where} {container['name']} {name}", action[kind]["port"]) for kind in ASKED if kind in action
            )


def actions_of(container: Object) -> Iterator[tuple[str, Any]]:
    """The probes and hooks of a container."""
    yield from ((name, container[name]) for name in PROBES if container.get(name))
    hooks = container.get("lifecycle") or {}
    yield from ((name, hooks[name]) for name in HOOKS if hooks.get(name))


def selects(selector: Mapping[str, Any] | None, pod: Pod) -> bool:
    """Whether a label selector selects a pod; one without labels selects it where it is written as empty."""
    if selector is None or (selector.get("matchLabels") is None and "matchLabels" in selector):
        return False
    return all(pod.labels.get(name) == value for name, value in (selector.get("matchLabels") or {}).items())


def route_faults(objects: Sequence[Object]) -> list[str]:
    """Ways to a model server that pass the guard by."""
    found: list[str] = []
    for pod in (one for one in pods(objects) if one.guard is not None):
        try:
            settings = pod.settings(objects)
        except ConfigError:
            continue
        doors = {port_of(getattr(settings, name)) for name in DOORS if getattr(settings, name)}
        found += routes_of(pod, objects, doors, settings)
        for container in pod.others:
            place = f"{pod.where} {container['name']}"
            found += [
                f"{place}: containerPort {one['containerPort']} is a way around the guard"
                for one in container.get("ports") or ()
            ]
            found += [f"{place}: {fault}" for fault in listening_faults(container)]
    return found


def routes_of(pod: Pod, objects: Sequence[Object], doors: set[int], settings: ServeConfig) -> Iterator[str]:
    """Faults of the Services and policies that lead to a pod, whose guard lets clients in by `doors`."""
    open_ports = reached(settings)
    routed = policed = False
    for one in objects:
        place, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec") or {}
        if one["kind"] == "Service" and selects({"matchLabels": spec.get("selector")}, pod):
            routed = True
            numbers = [number_of(port.get("targetPort", port["port"]), pod) for port in spec["ports"]]
            yield from (
                f"{place}: leads to {n}, by which no client of the guard comes in" for n in numbers if n not in doors
            )
        elif one["kind"] == "NetworkPolicy" and selects(spec["podSelector"], pod):
            policed = True
            if "Egress" in spec.get("policyTypes", ()):
                yield from (f"{place}: {fault}" for fault in egress_faults(spec.get("egress") or (), pod, settings))
            for rule in spec.get("ingress") or ():
                ports = rule.get("ports") or ()
                if not ports:
                    yield f"{place}: a rule without ports opens all of the pod's"
                if not rule.get("from"):
                    yield f"{place}: a rule without `from` lets everybody in"
                yield from (
                    f"{place}: opens {port.get('port')}, on which the guard does not listen"
                    for port in ports
                    if number_of(port.get("port"), pod) not in open_ports or "endPort" in port
                )
    if any(one["kind"] == "NetworkPolicy" for one in objects) and routed and not policed:
        yield f"{pod.where}: no NetworkPolicy selects it"


def egress_faults(rules: Sequence[Object], pod: Pod, settings: ServeConfig) -> Iterator[str]:
    """What a pod sends out, and no rule lets out."""
    guard: Any = pod.guard
    if not rules:
        if settings.events_sink is not None:
            yield f"lets nothing out, and events_sink = {settings.events_sink!r} would never be reached"
        for name in environment_of(guard):
            if name.startswith("OTEL_EXPORTER_OTLP") and name.endswith("_ENDPOINT"):
                yield f"lets nothing out, and {name} would never be reached"
    if pod.labels.get("sidecar.istio.io/inject") == "true":
        opened = {port["port"] for rule in rules for port in rule.get("ports") or ()}
        every = any(not rule.get("ports") for rule in rules)
        for port, what in MESH_PORTS.items():
            if not every and port not in opened:
                yield f"does not let out {port}, by which the mesh's proxy reaches {what}: it would not start"


def number_of(port: Any, pod: Pod) -> Any:
    """The number of a port, given as such or by a container's name for it."""
    names = {p.get("name"): p["containerPort"] for c in pod.before + pod.beside for p in c.get("ports") or ()}
    return names.get(port, port)


def listening_faults(container: Object) -> Iterator[str]:
    """Where a model server that we know would listen beyond loopback."""
    flags, environment = flags_of(container), environment_of(container)
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    program = words[0].rpartition("/")[2] if words else ""
    for name, default in LISTENING_FLAGS.get(program, {}).items():
        off = SWITCHES.get(name)
        address = flags.get(name, flags.get(name.replace("_", "-"), default))
        if not (off and flags.get(off) == "false") and not is_loopback(address):
            yield f"listens on {address}; wanted --{name}=127.0.0.1" + (f" or --{off}=false" if off else "")
    if program == "tritonserver" and flags.get("allow-metrics") != "false" and flags.get("metrics-address") is None:
        yield "serves its metrics to everybody; wanted --allow-metrics=false, or --metrics-address"
    if program == "mlserver" and not is_loopback(environment.get("MLSERVER_HOST", "0.0.0.0")):
        yield "listens on 0.0.0.0; wanted the variable MLSERVER_HOST=127.0.0.1"


def probe_faults(objects: Sequence[Object]) -> list[str]:
    """Probes that a kubelet cannot make, that ask the wrong thing, or that wait for what waits for them."""
    found: list[str] = []
    for pod in (one for one in pods(objects) if one.guard is not None):
        try:
            settings = pod.settings(objects)
        except ConfigError:
            continue
        for container in pod.before + pod.beside:
            place = f"{pod.where} {container['name']}"
            if not is_guard(container):
                found += [
                    f"{place} {name}: the kubelet cannot reach what listens on loopback; wanted exec, or none"
                    for name in PROBES
                    if set(ASKED) & set(container.get(name) or ()) and not asks_the_guard(name, container, settings)
                ]
                if container["name"] == KSERVES and not container.get("readinessProbe"):
                    found.append(
                        f"{place}: {kserves_probe(container, settings)}; wanted a readinessProbe that asks the guard"
                    )
                continue
            found += [f"{place}: no {name}" for name in PROBES if not container.get(name)]
            for name in PROBES:
                found += [
                    f"{place} {name}: {fault}" for fault in probe_faults_of(name, container.get(name) or {}, settings)
                ]
            if stays(container) and "startupProbe" in container:
                allowed = budget_s(container["startupProbe"])
                if allowed < 60:
                    found.append(f"{place} startupProbe: {allowed:g} s are all that the guard has to load its bundle")
    return found


def asks_the_guard(name: str, container: Object, settings: ServeConfig) -> bool:
    """Whether a model server's readiness is whether the guard is alive: all containers of a pod have one address."""
    return name == "readinessProbe" and not [*probe_faults_of("livenessProbe", container[name], settings)]


def kserves_probe(container: Object, settings: ServeConfig) -> str:
    """The readiness probe that KServe gives a container without one: whether its first port, or 8080, is open."""
    port = next((one["containerPort"] for one in container.get("ports") or ()), 8080)
    who = "the guard listens by chance" if port in reached(settings) else "nothing listens for it"
    return f"KServe probes port {port} of the pod, where {who}"


def probe_faults_of(name: str, probe: Object, settings: ServeConfig) -> Iterator[str]:
    """What is wrong with one probe of the guard."""
    of_all = name == "readinessProbe"
    if ask := probe.get("grpc"):
        if settings.tls_certificate:
            yield "kubelets speak no TLS to a gRPC port; wanted httpGet on the metrics port"
        if ask["port"] != port_of(settings.listen):
            yield f"asks over gRPC on {ask['port']}; the guard answers on {port_of(settings.listen)}"
        service = ask.get("service", "")
        if of_all != (service == "readiness") or (not of_all and service not in OF_THE_GUARD_ALONE):
            yield f"asks for the health service {service!r}, {wanted(of_all)}"
    if ask := probe.get("httpGet"):
        if number(ask["port"]) != port_of(settings.metrics_listen):
            yield f"asks over HTTP on {ask['port']}; health is on {port_of(settings.metrics_listen)}"
        if ask.get("path") not in (READY if of_all else ALIVE):
            yield f"asks {ask.get('path')}, {wanted(of_all)}"
        if ask.get("scheme", "HTTP") != "HTTP":
            yield "speaks TLS; the metrics port never does"
    if "tcpSocket" in probe:
        yield "an open port tells neither health nor readiness; wanted grpc or httpGet"


def wanted(of_all: bool) -> str:  # noqa: FBT001
    if of_all:
        return "which leaves the model server out: wanted readiness"
    return "which waits for the model server, and that for the guard: wanted the guard alone"


def number(port: Any) -> Any:
    return int(port) if isinstance(port, str) and port.isdecimal() else port


def budget_s(probe: Object) -> float:
    """How long a probe may fail before its container is killed."""
    return float(probe.get("periodSeconds", 10)) * float(probe.get("failureThreshold", 3))

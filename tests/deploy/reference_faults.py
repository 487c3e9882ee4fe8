"""Names in rendered objects that have to fit each other: volumes, selectors, targets of scaling, metrics."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from prometheus_client import CollectorRegistry

from guard.serve.metrics import Metrics
from tests.deploy.port_faults import selects
from tests.deploy.rendered import Object, Pod, pods, stays

# What is no part of the manifests, and has to be there: see deploy/README.md.
OUTSIDE = {"ConfigMap": ("guard-trusted-keys",), "Secret": ("guard-tls",)}
SELECTORS = {  # kind -> the selector of pods in its spec
    "Deployment": "selector",
    "PodDisruptionBudget": "selector",
    "NetworkPolicy": "podSelector",
    "PodMonitor": "selector",
}


def reference_faults(objects: Sequence[Object]) -> list[str]:
    """Names that lead nowhere."""
    every = list(pods(objects))
    found = [
        fault for pod in every for fault in (*volume_faults(pod, objects), *order_faults(pod), *spread_faults(pod))
    ]
    for one in objects:
        place, spec = f"{one['kind']}/{one['metadata']['name']}", one.get("spec") or {}
        selector = (
            {"matchLabels": spec.get("selector")}
            if one["kind"] == "Service"
            else spec.get(SELECTORS.get(one["kind"], ""))
        )
        if one["kind"] == "Service" or one["kind"] in SELECTORS:
            if not (selector or {}).get("matchLabels"):
                found.append(f"{place}: its selector names no labels: it selects every pod of the namespace, or none")
            elif not any(selects(selector, pod) for pod in every):
                found.append(f"{place}: its selector selects none of these pods")
        if target := spec.get("scaleTargetRef"):
            found += [f"{place}: {fault}" for fault in scaling_faults(spec, target, objects)]
        found += [f"{place}: {fault}" for fault in metric_faults(one)]
    return found


def volume_faults(pod: Pod, objects: Sequence[Object]) -> Iterator[str]:
    """Mounts without a volume, volumes that nobody mounts, and sources that are not there."""
    volumes = {one["name"]: one for one in pod.spec.get("volumes") or ()}
    mounted = {mount["name"] for c in pod.before + pod.beside for mount in c.get("volumeMounts") or ()}
    yield from (
        f"{pod.where}: no volume is called {name!r}, which a container mounts"
        for name in sorted(mounted - set(volumes))
    )
    yield from (f"{pod.where}: nobody mounts the volume {name!r}" for name in sorted(set(volumes) - mounted))
    for name, volume in volumes.items():
        if len(volume) != 2:
            yield f"{pod.where}: the volume {name!r} has {len(volume) - 1} sources, wanted one"
        for kind, field, key in (("ConfigMap", "configMap", "name"), ("Secret", "secret", "secretName")):
            source = (volume.get(field) or {}).get(key)
            there = [one["metadata"]["name"] for one in objects if one["kind"] == kind]
            if source is not None and source not in (*there, *OUTSIDE[kind]):
                yield f"{pod.where}: no {kind} is called {source!r}, the source of the volume {name!r}"
    for container in pod.before + pod.beside:
        for mount in container.get("volumeMounts") or ():
            volume = volumes.get(mount["name"], {})
            place = f"{pod.where} {container['name']}: {mount['mountPath']}"
            if "subPath" in mount and ("configMap" in volume or "secret" in volume):
                yield f"{place} is mounted by subPath, and would never be updated"
            if not mount.get("readOnly") and "emptyDir" not in volume:
                yield f"{place} is mounted to be written to; only an emptyDir is"
    claims = {one["name"] for one in pod.spec.get("resourceClaims") or ()}
    for container in pod.before + pod.beside:
        for claim in (container.get("resources") or {}).get("claims") or ():
            if claim["name"] not in claims:
                yield f"{pod.where} {container['name']}: the pod has no claim {claim['name']!r}"


def order_faults(pod: Pod) -> Iterator[str]:
    """Init containers run in order: what fills a volume comes before what reads it, and what ends before the guard."""
    filled: set[str] = set()
    volumes = {one["name"]: one for one in pod.spec.get("volumes") or ()}
    writers = {
        mount["name"]: container["name"]
        for container in pod.before
        for mount in container.get("volumeMounts") or ()
        if not mount.get("readOnly") and not stays(container) and "emptyDir" in volumes.get(mount["name"], {})
    }
    for container in pod.before:
        for mount in container.get("volumeMounts") or ():
            if mount.get("readOnly") and mount["name"] in writers and mount["name"] not in filled:
                writer = writers[mount["name"]]
                yield f"{pod.where}: {container['name']} reads {mount['name']} before {writer} has filled it"
        filled |= {name for name, writer in writers.items() if writer == container["name"]}
    names = [one["name"] for one in pod.before]
    for number, container in enumerate(pod.before):
        if stays(container) and not all(stays(one) for one in pod.before[number:]):
            later = next(name for name, one in zip(names[number:], pod.before[number:], strict=True) if not stays(one))
            yield f"{pod.where}: {later} runs after the native sidecar {container['name']} has started; wanted before"


def spread_faults(pod: Pod) -> Iterator[str]:
    for rule in pod.spec.get("topologySpreadConstraints") or ():
        if not selects(rule.get("labelSelector"), pod):
            yield f"{pod.where}: the spread by {rule['topologyKey']} does not count its own pods"


def scaling_faults(spec: Object, target: Object, objects: Sequence[Object]) -> Iterator[str]:
    """What is wrong with a HorizontalPodAutoscaler or a ScaledObject."""
    kind = target.get("kind", "Deployment")
    scaled = next((one for one in objects if (one["kind"], one["metadata"]["name"]) == (kind, target["name"])), None)
    if scaled is None:
        yield f"scales {kind}/{target['name']}, which is not there"
        return
    if "replicas" in scaled["spec"]:
        yield f"scales {kind}/{target['name']}, whose own `replicas` would be set back at each roll-out"
    (pod, *_) = pods([scaled])
    containers = {one["name"]: one for one in pod.before + pod.beside if one in pod.beside or stays(one)}
    wanted = [one["containerResource"] for one in spec.get("metrics") or () if one["type"] == "ContainerResource"]
    named = [(one["container"], one["name"]) for one in wanted]
    triggers = spec.get("triggers") or ()
    named += [(one["metadata"]["containerName"], one["type"]) for one in triggers if "containerName" in one["metadata"]]
    for name, resource in named:
        if name not in containers:
            yield f"scales by the {resource} of a container {name!r}, which no pod has"
        elif resource not in ((containers[name].get("resources") or {}).get("requests") or {}):
            yield f"scales by the {resource} of {name}, which requests none: there is no utilization without"
    low = spec.get("minReplicas", spec.get("minReplicaCount", 1))
    high = spec.get("maxReplicas", spec.get("maxReplicaCount", low))
    if not 0 < low <= high:
        yield f"scales from {low} to {high} replicas"


def metric_faults(one: Object) -> Iterator[str]:
    """Metrics of the guard by which something is scaled, and that no guard has."""
    spec = one.get("spec") or {}
    texts = [m["pods"]["metric"]["name"] for m in spec.get("metrics") or () if m["type"] == "Pods"]
    texts += [t["metadata"].get("query", "") for t in spec.get("triggers") or ()]
    for name in re.findall(r"\bguard_[a-z0-9_]+", " ".join(texts)):
        if name not in known_metrics():
            yield f"asks for the metric {name}, which no guard has"


@cache
def known_metrics() -> frozenset[str]:
    """The names of the guard's metrics, as they stand on /metrics."""
    registry = CollectorRegistry()
    Metrics(registry, methods=())
    names: Any = registry._names_to_collectors  # every name that a scrape can show
    return frozenset(names)

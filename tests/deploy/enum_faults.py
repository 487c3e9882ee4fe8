"""Fields whose values are fixed, and that schemas leave open: `restartPolicy: Sometimes` is valid there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from tests.deploy.rendered import Object

PULL = ("Always", "IfNotPresent", "Never")
# By the end of a field's path. `*` stands for an item of a list or a key of one's own.
VALUES: dict[str, tuple[str, ...]] = {
    "initContainers.*.restartPolicy": ("Always",),
    "containers.*.restartPolicy": ("Always", "OnFailure", "Never"),
    "restartPolicy": ("Always", "OnFailure", "Never"),
    "imagePullPolicy": PULL,
    "image.pullPolicy": PULL,
    "terminationMessagePolicy": ("File", "FallbackToLogsOnError"),
    "dnsPolicy": ("ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"),
    "preemptionPolicy": ("Never", "PreemptLowerPriority"),
    "protocol": ("TCP", "UDP", "SCTP"),
    "scheme": ("HTTP", "HTTPS", "http", "https"),
    "seccompProfile.type": ("RuntimeDefault", "Localhost", "Unconfined"),
    "appArmorProfile.type": ("RuntimeDefault", "Localhost", "Unconfined"),
    "fsGroupChangePolicy": ("OnRootMismatch", "Always"),
    "emptyDir.medium": ("", "Memory"),
    "topologySpreadConstraints.*.whenUnsatisfiable": ("DoNotSchedule", "ScheduleAnyway"),
    "topologySpreadConstraints.*.nodeAffinityPolicy": ("Honor", "Ignore"),
    "topologySpreadConstraints.*.nodeTaintsPolicy": ("Honor", "Ignore"),
    "tolerations.*.operator": ("Exists", "Equal"),
    "tolerations.*.effect": ("NoSchedule", "PreferNoSchedule", "NoExecute"),
    "matchExpressions.*.operator": ("In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt"),
    "strategy.type": ("RollingUpdate", "Recreate"),
    "policyTypes.*": ("Ingress", "Egress"),
    "accessModes.*": ("ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"),
    "unhealthyPodEvictionPolicy": ("IfHealthyBudget", "AlwaysAllow"),
    "internalTrafficPolicy": ("Cluster", "Local"),
    "externalTrafficPolicy": ("Cluster", "Local"),
    "sessionAffinity": ("None", "ClientIP"),
    "metrics.*.type": ("Resource", "ContainerResource", "Pods", "Object", "External"),
    "target.type": ("Utilization", "Value", "AverageValue"),
    "scaleUp.selectPolicy": ("Max", "Min", "Disabled"),
    "scaleDown.selectPolicy": ("Max", "Min", "Disabled"),
    "policies.*.type": ("Pods", "Percent"),
    "completionMode": ("NonIndexed", "Indexed"),
    "podReplacementPolicy": ("TerminatingOrFailed", "Failed"),
    "concurrencyPolicy": ("Allow", "Forbid", "Replace"),
    "ServiceSpec.type": ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"),
    "triggers.*.metricType": ("Utilization", "Value", "AverageValue"),
    "fallback.behavior": ("static", "currentReplicas", "currentReplicasIfHigher", "currentReplicasIfLower"),
}
# What IANA and Kubernetes name, and what Istio reads beside: another word means nothing to anybody.
PROTOCOLS = (
    "kubernetes.io/h2c",
    "kubernetes.io/ws",
    "kubernetes.io/wss",
    "http",
    "https",
    "tcp",
    "tls",
    "grpc",
    "http2",
)
PRIVATE = re.compile(r"[a-z0-9.-]+\.[a-z]+/[A-Za-z0-9._-]+")  # mycompany.example/protocol
PORT_NAME = re.compile(r"(?=.{1,15}$)(?=.*[a-z])[a-z0-9]+(-[a-z0-9]+)*")
API_VERSIONS = {
    "Deployment": "apps/v1",
    "Service": "v1",
    "ConfigMap": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodDisruptionBudget": "policy/v1",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "ResourceClaimTemplate": "resource.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
    "PrometheusRule": "monitoring.coreos.com/v1",
    "ScaledObject": "keda.sh/v1alpha1",
    "Job": "batch/v1",
}


def enum_faults(objects: Sequence[Object]) -> list[str]:
    """Values that nobody knows, where only some are known."""
    found: list[str] = []
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        if one["apiVersion"] != API_VERSIONS.get(one["kind"], one["apiVersion"]):
            found.append(f"{where}: apiVersion is {one['apiVersion']}, wanted {API_VERSIONS[one['kind']]}")
        for path, value in leaves(one, ()):
            found += [f"{where} {'.'.join(path)}: {fault}" for fault in value_faults(one["kind"], path, value)]
    return found


def leaves(node: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of an object that is neither a list nor a table, with its path."""
    if isinstance(node, dict):
        for key, item in node.items():
            if key not in ("annotations", "labels", "matchLabels", "data", "nodeSelector"):
                yield from leaves(item, (*path, key))
    elif isinstance(node, list):
        for number, item in enumerate(node):
            yield from leaves(item, (*path, str(number)))
    else:
        yield path, node


def value_faults(kind: str, path: tuple[str, ...], value: Any) -> Iterator[str]:
    """What is wrong with one value."""
    spelled = tuple("*" if part.isdecimal() else part for part in path)
    spelled = ("ServiceSpec", *spelled[1:]) if kind == "Service" and spelled[:1] == ("spec",) else spelled
    known = next(
        (values for end, values in VALUES.items() if spelled[-end.count(".") - 1 :] == tuple(end.split("."))), None
    )
    if (
        known is not None
        and value not in known
        and not (spelled[-1] == "medium" and str(value).startswith("HugePages"))
    ):
        yield f"{value!r} is none of {', '.join(map(repr, known))}"
    if spelled[-1] == "appProtocol" and value not in PROTOCOLS and not PRIVATE.fullmatch(str(value)):
        yield f"{value!r} is no protocol that has such a name; there are {', '.join(PROTOCOLS)}"
    if spelled[-3:] == ("ports", "*", "name") and not PORT_NAME.fullmatch(str(value)):
        yield f"{value!r} is no name for a port: 15 small letters, digits and single hyphens at most"
    if (
        spelled[-1] in ("containerPort", "port", "targetPort", "portNumber")
        and isinstance(value, int)
        and not 0 < value < 65536
    ):
        yield f"{value} is no port"

"""The Kubernetes versions that rendered objects are for: what they state, what they need, and what its schemas say.

An object states them by annotations `kubernetes.inference-guard/PART: "1.29"`, the highest of which counts. A schema
knows a field from the version in which it came as an alpha; it works from that in which it is on by default.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.deploy.port_faults import PROBES
from tests.deploy.rendered import Object, pods

STATED = "kubernetes.inference-guard/"
OLDEST, NEWEST = "1.25", "1.37"  # that kubernetes-validate 1.37.0 knows
OWN_GROUPS = (
    "",
    "apps",
    "batch",
    "policy",
    "autoscaling",
    "networking.k8s.io",
    "resource.k8s.io",
    "rbac.authorization.k8s.io",
)
SCRIPT = """
import functools, json, sys
import kubernetes_validate as check
from kubernetes_validate import utils
utils.schema_contents = functools.cache(utils.schema_contents)  # a megabyte of definitions a version
found = []
for where, version, one in json.load(sys.stdin):
    try:
        check.validate(one, version, strict=True)
    except check.SchemaNotFoundError as error:
        found.append([where, version, one["apiVersion"], error.message])
    except check.ValidationError as error:
        path = ".".join(map(str, error.absolute_path))
        found.append([where, version, "", f"{path}: {error.message[:300]}"])
print(json.dumps(found))
"""


def minor(version: str) -> int:
    major, _, number = version.partition(".")
    if major != "1" or not number.isdecimal():
        raise ValueError(f"{version!r} is no version of Kubernetes; wanted one such as 1.29")
    return int(number)


def versions(first: str, last: str = NEWEST) -> list[str]:
    return [f"1.{number}" for number in range(minor(first), minor(last) + 1)]


def every_container(objects: Sequence[Object]) -> list[Object]:
    return [container for pod in pods(objects) for container in pod.before + pod.beside]


def has_probes(objects: Sequence[Object]) -> bool:
    return any("grpc" in (one.get(name) or {}) for one in every_container(objects) for name in PROBES)


def has_native_sidecars(objects: Sequence[Object]) -> bool:
    return any("restartPolicy" in one for pod in pods(objects) for one in pod.before)


def has_image_volumes(objects: Sequence[Object]) -> bool:
    return any("image" in one for pod in pods(objects) for one in pod.spec.get("volumes") or ())


def has_claims(objects: Sequence[Object]) -> bool:
    return any(pod.spec.get("resourceClaims") for pod in pods(objects))


def has_sleeping_hooks(objects: Sequence[Object]) -> bool:
    return any("sleep" in ((one.get("lifecycle") or {}).get("preStop") or {}) for one in every_container(objects))


def has_container_metrics(objects: Sequence[Object]) -> bool:
    specs = [one.get("spec") or {} for one in objects]
    metrics = [one["type"] for spec in specs if isinstance(spec.get("metrics"), list) for one in spec["metrics"]]
    return "ContainerResource" in metrics or any(
        "containerName" in one["metadata"] for spec in specs for one in spec.get("triggers") or ()
    )


def has_eviction_policies(objects: Sequence[Object]) -> bool:
    return any("unhealthyPodEvictionPolicy" in (one.get("spec") or {}) for one in objects)


# What works by itself from which version on, and whether objects have it.
NEEDS: tuple[tuple[str, str, Callable[[Sequence[Object]], bool]], ...] = (
    ("a gRPC probe", "1.24", has_probes),
    ("a native sidecar (restartPolicy of an init container)", "1.29", has_native_sidecars),
    ("an image volume", "1.35", has_image_volumes),
    ("a resource claim (resource.k8s.io/v1)", "1.34", has_claims),
    ("a preStop that sleeps", "1.30", has_sleeping_hooks),
    ("a metric of one container", "1.27", has_container_metrics),
    ("unhealthyPodEvictionPolicy", "1.27", has_eviction_policies),
)


def stated_version(objects: Sequence[Object]) -> str | None:
    """The lowest version that objects state; None where they state none."""
    stated = [
        value
        for one in objects
        for name, value in (one["metadata"].get("annotations") or {}).items()
        if name.startswith(STATED)
    ]
    return max(stated, key=minor, default=None)


def needs(objects: Sequence[Object]) -> dict[str, str]:
    """What of the objects needs which version."""
    return {what: version for what, version, there in NEEDS if there(objects)}


def lowest_version(objects: Sequence[Object]) -> str:
    """The lowest version for which objects are, by what they hold; none is lower than what can be checked."""
    return max([OLDEST, *needs(objects).values()], key=minor)


def version_faults(objects: Sequence[Object], version: str) -> list[str]:
    """Why objects are not for a version of Kubernetes: a sentence each; none where they are."""
    found = []
    stated = stated_version(objects)
    if stated is None:
        found.append(f"nothing states a lowest version of Kubernetes; wanted an annotation {STATED}PART")
    elif minor(stated) != minor(lowest_version(objects)):
        found.append(f"Kubernetes {stated} is stated as the lowest version, and {lowest_version(objects)} is")
    found += [
        f"{what} needs Kubernetes {least} or later; this one is {version}"
        for what, least in needs(objects).items()
        if minor(version) < minor(least)
    ]
    if not found and minor(version) < minor(OLDEST):
        found.append(f"made for Kubernetes {OLDEST} or later; this one is {version}")
    return found


def schema_faults(
    cases: Mapping[str, tuple[Sequence[Object], Sequence[str]]], programs: Path
) -> dict[tuple[str, str], list[str]]:
    """Hold objects against the schemas of versions; of each case (objects, versions), the faults by (case, version).

    `programs` is the side environment `kubectl`. Kinds of operators, which no schema knows, are passed over.
    """
    asked: dict[str, list[tuple[str, str]]] = {}
    for name, (objects, for_versions) in cases.items():
        for one in objects:
            for version in for_versions:
                asked.setdefault(json.dumps([version, one], sort_keys=True), []).append((name, version))
    lines = [[str(number), *json.loads(question)] for number, question in enumerate(asked)]
    done = subprocess.run(
        [programs / "python", "-c", SCRIPT], input=json.dumps(lines), capture_output=True, check=False, text=True
    )
    assert done.returncode == 0, done.stderr
    found: dict[tuple[str, str], list[str]] = {asker: [] for askers in asked.values() for asker in askers}
    for number, _, api_version, message in json.loads(done.stdout):
        question = list(asked)[int(number)]
        if api_version and group_of(api_version) not in OWN_GROUPS:
            continue
        one: Any = json.loads(question)[1]
        for asker in asked[question]:
            found[asker].append(f"{one['kind']}/{one['metadata']['name']}: {message}")
    return found


def group_of(api_version: str) -> str:
    return api_version.rpartition("/")[0]


def kinds_unknown(objects: Sequence[Object]) -> Iterator[str]:
    """The objects that only an operator's own schema can judge."""
    yield from (one["kind"] for one in objects if group_of(one["apiVersion"]) not in OWN_GROUPS)

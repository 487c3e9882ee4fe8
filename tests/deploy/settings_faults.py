"""Do the guard's flags, environment and ConfigMap make settings that the guard takes, and is the guard locked down?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from guard.errors import ConfigError
from tests.deploy.rendered import Object, Pod, is_guard, pods

CONTEXT = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
}
SHELLS = ("sh", "bash", "ash", "dash", "busybox")


def settings_faults(objects: Sequence[Object]) -> list[str]:
    """What the guard would refuse at its start, and what it may do that it need not."""
    return [fault for pod in pods(objects) for fault in faults_of(pod, objects)]


def faults_of(pod: Pod, objects: Sequence[Object]) -> Iterator[str]:
    if pod.guard is None:
        return
    try:
        pod.settings(objects)
    except ConfigError as error:
        yield f"{pod.where}: the guard refuses its settings: {error}"
    for container in pod.before + pod.beside:
        place = f"{pod.where} {container['name']}"
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        if (is_guard(container) or "guard" in container.get("image", "")) and words and words[0].endswith(SHELLS):
            yield f"{place}: runs through the shell {words[0]}; wanted the command itself"
        if not is_guard(container):
            continue
        context = container.get("securityContext") or {}
        for name, value in CONTEXT.items():
            if context.get(name) != value:
                yield f"{place}: securityContext.{name} is {context.get(name)}, wanted {value}"
        if not {"memory"} <= set((container.get("resources") or {}).get("limits") or ()):
            yield f"{place}: no limit of memory, by which the guard bounds what it holds"
    if pod.spec.get("automountServiceAccountToken") is not False:
        yield f"{pod.where}: a token of the API server is mounted; wanted automountServiceAccountToken: false"
    if pod.spec.get("enableServiceLinks") is not False:
        yield f"{pod.where}: links to Services enter the environment; wanted enableServiceLinks: false"
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        if pod.spec.get(name):
            yield f"{pod.where}: {name} is on"

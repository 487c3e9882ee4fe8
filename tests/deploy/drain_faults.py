"""Does a pod have the time to stop, and does what stops first leave the rest working?

All preStop hooks of a pod run at once, at the start of its termination. A container gets SIGTERM when its hook is over,
a native sidecar when, besides, all ordinary containers have ended. `terminationGracePeriodSeconds` bounds the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from guard.config import ServeConfig
from guard.errors import ConfigError
from guard.serve.drain_call import ANSWER_S, LATE_S
from tests.deploy.rendered import Object, Pod, flags_of, pods, stays

HOOK_START_S = 2.0  # for `guard drain` to start, a Python interpreter
MARGIN_S = 5.0
DEFAULT_GRACE_S = 30.0  # Kubernetes' own
SHELLS = ("sh", "bash", "ash", "dash", "/bin/sh", "/bin/bash")


def drain_faults(objects: Sequence[Object]) -> list[str]:
    """What a pod would lose when it is stopped."""
    found: list[str] = []
    for pod in (one for one in pods(objects) if one.guard is not None):
        try:
            settings = pod.settings(objects)
        except ConfigError:
            continue
        found += [f"{pod.where}: {fault}" for fault in (*hook_faults(pod, settings), *time_faults(pod, settings))]
    return found


def hook_faults(pod: Pod, settings: ServeConfig) -> Iterator[str]:
    """What is wrong with the guard's preStop: wanted `guard drain ADDRESS`, without a shell."""
    guard: Any = pod.guard
    hook = (guard.get("lifecycle") or {}).get("preStop") or {}
    command = (hook.get("exec") or {}).get("command") or []
    if not command:
        yield "the guard has no preStop that drains it: clients would learn of its end by errors"
        return
    if command[0] in SHELLS:
        yield f"preStop runs through the shell {command[0]}; wanted the command itself"
    elif command[:2] != ["guard", "drain"]:
        yield f"preStop runs {' '.join(command)}; wanted guard drain ADDRESS"
    elif (address := next((word for word in command[2:] if not word.startswith("-")), "")) != settings.admin_listen:
        yield f"preStop drains {address or 'no address'}, and the guard's admin_listen is {settings.admin_listen}"
    if settings.admin_listen.startswith("unix:"):
        yield from socket_faults(pod, settings.admin_listen.removeprefix("unix:"))


def socket_faults(pod: Pod, path: str) -> Iterator[str]:
    """A socket lies in a directory that the guard may write to and nobody else mounts."""
    guard: Any = pod.guard
    mounts = [one for one in guard.get("volumeMounts") or () if path.startswith(one["mountPath"].rstrip("/") + "/")]
    volumes = {one["name"]: one for one in pod.spec.get("volumes") or ()}
    if not mounts:
        yield f"{path} lies on the root file system, which is read-only; wanted it in a volume"
        return
    mount = max(mounts, key=lambda one: len(one["mountPath"]))
    if mount.get("readOnly") or "emptyDir" not in volumes.get(mount["name"], {}):
        yield f"{path} lies in the volume {mount['name']}, where the guard cannot make a socket; wanted an emptyDir"
    for container in pod.before + pod.beside:
        if container is not guard and any(one["name"] == mount["name"] for one in container.get("volumeMounts") or ()):
            yield f"{container['name']} mounts {mount['name']} too, and could drain the guard by {path}"


def time_faults(pod: Pod, settings: ServeConfig) -> Iterator[str]:
    """Sums of the times that a stop takes, against what the pod allows."""
    guard: Any = pod.guard
    allowed = float(pod.spec.get("terminationGracePeriodSeconds", DEFAULT_GRACE_S))
    hook = HOOK_START_S + max(ANSWER_S, settings.drain_s + LATE_S)  # the former where nobody answers
    pauses = {one["name"]: pause_s(one) for one in pod.others}
    stops = [pauses[one["name"]] + exit_s(one) for one in pod.others]
    needed = max([hook, *stops]) + settings.grace_s if stays(guard) else max([hook + settings.grace_s, *stops])
    if allowed < needed + MARGIN_S:
        yield (
            f"terminationGracePeriodSeconds is {allowed:g}; a stop may take {needed:g} s, "
            f"and a margin is {MARGIN_S:g} s: wanted {needed + MARGIN_S:g}"
        )
    longest = max((one.inspect_timeout_s for one in settings.model_configs()), default=settings.inspect_timeout_s)
    least = HOOK_START_S + settings.drain_s + longest
    for name, pause in pauses.items():
        if pause < least:
            yield (
                f"{name} ends {pause:g} s after the pod is told to stop, and the guard forwards for {least:g} s: "
                f"wanted a preStop of {least:g} s"
            )


def pause_s(container: Object) -> float:
    """How long a container's preStop keeps it, as far as it can be told: `sleep N`."""
    hook = (container.get("lifecycle") or {}).get("preStop") or {}
    if "sleep" in hook:
        return float(hook["sleep"]["seconds"])
    command = (hook.get("exec") or {}).get("command") or []
    return float(command[1]) if command[:1] == ["sleep"] and len(command) == 2 else 0.0


def exit_s(container: Object) -> float:
    """How long a model server that we know takes at most to end what it has, once it got SIGTERM."""
    flags = flags_of(container)
    return float(flags.get("exit-timeout-secs", flags.get("exit-timeout", 30 if "model-repository" in flags else 0)))

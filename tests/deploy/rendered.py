"""Rendered Kubernetes objects as the checks of `tests/deploy/manifests.py` see them: pods, containers, the guard."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from guard.config import ServeConfig, load_config
from guard.errors import ConfigError
from guard.kserve_arguments import KNOWN, kserve_settings

Object = dict[str, Any]

TO_JSON = """
import json, sys, yaml
load = lambda text: [one for one in yaml.safe_load_all(text) if one]
print(json.dumps({name: load(text) for name, text in json.load(sys.stdin).items()}))
"""
GUARDS = ("guard", "transformer-container")  # names of its container; KServe wants the second
DOORS = ("listen", "rest_listen", "authz_listen")  # settings: where clients come in


@dataclass(frozen=True)
class Pod:
    """A pod's template, wherever it stands in an object."""

    where: str  # KIND/NAME, and the field where an object has several
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def before(self) -> list[Object]:
        """The init containers, native sidecars among them."""
        return list(self.spec.get("initContainers") or ())

    @property
    def beside(self) -> list[Object]:
        """The ordinary containers."""
        return list(self.spec.get("containers") or ())

    @property
    def guard(self) -> Object | None:
        """The container that runs `guard serve`; none where the pod has no guard."""
        return next((one for one in self.before + self.beside if is_guard(one)), None)

    @property
    def others(self) -> list[Object]:
        """The containers that run beside the guard: the model server, and what else there is."""
        return [one for one in self.before + self.beside if not is_guard(one) and (one in self.beside or stays(one))]

    def settings(self, objects: Sequence[Object]) -> ServeConfig:
        """The guard's settings, read as the guard reads them: its flags, its environment, its ConfigMap.

        Raises:
            ConfigError: as the guard does.
        """
        guard = self.guard
        if guard is None:
            raise ConfigError(f"{self.where} has no container that runs guard serve")
        flags = {name.replace("-", "_"): value for name, value in flags_of(guard).items()}
        file = flags.pop("config", None)
        environment = {one["name"]: one["value"] for one in guard.get("env") or () if "value" in one}
        given = [f"{name}={value}" for name, value in flags.items() if name in KNOWN]
        own = {name: value for name, value in flags.items() if name not in KNOWN}
        ours = {**kserve_settings(given, environment).flags, **own}
        with tempfile.TemporaryDirectory() as folder:
            settings = None
            if file is not None and (text := self.mounted(guard, file, objects)) is not None:
                settings = Path(folder, "guard.toml")
                settings.write_text(text, encoding="utf-8")
            return load_config(settings, environment, ours)

    def mounted(self, container: Object, path: str, objects: Sequence[Object]) -> str | None:
        """The text of a file that a container sees from a ConfigMap among the objects; None where it is not there."""
        volumes = {one["name"]: one for one in self.spec.get("volumes") or ()}
        for mount in container.get("volumeMounts") or ():
            source = volumes.get(mount["name"], {}).get("configMap")
            if source and path.startswith(mount["mountPath"] + "/"):
                name = path.removeprefix(mount["mountPath"] + "/")
                for one in objects:
                    if one["kind"] == "ConfigMap" and one["metadata"]["name"] == source["name"]:
                        return (one.get("data") or {}).get(name)
        return None


def read(text: str, programs: Path) -> list[Object]:
    """Read rendered YAML; `programs` is the folder of a side environment that has PyYAML (`kubectl`)."""
    return read_all({"": text}, programs)[""]


def read_all(texts: Mapping[str, str], programs: Path) -> dict[str, list[Object]]:
    """Read many rendered texts at once, each by its name."""
    command = [programs / "python", "-c", TO_JSON]
    done = subprocess.run(command, input=json.dumps(texts), capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[Object]] = json.loads(done.stdout)
    return found


def kustomize(folder: Path, programs: Path) -> str:
    """What `kubectl kustomize` renders of a folder; `programs` is the side environment `kubectl`."""
    done = subprocess.run([programs / "kubectl", "kustomize", folder], capture_output=True, check=False, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pods(objects: Sequence[Object]) -> Iterator[Pod]:
    """The pods that objects would start: of a Deployment, a Job, KServe's resources and what else has containers."""
    for one in objects:
        name = f"{one['kind']}/{one['metadata']['name']}"
        yield from pods_below(name, one, one["metadata"])


def pods_below(where: str, node: Any, metadata: Mapping[str, Any]) -> Iterator[Pod]:
    if isinstance(node, list):
        for number, item in enumerate(node):
            yield from pods_below(f"{where}.{number}", item, metadata)
    elif isinstance(node, dict):
        own = node.get("metadata")
        metadata = own if isinstance(own, dict) else metadata
        if isinstance(node.get("containers"), list):
            yield Pod(where, metadata.get("labels") or {}, metadata.get("annotations") or {}, node)
            return
        for key, item in node.items():
            name = where if key in ("spec", "template") else f"{where} {key}"
            yield from pods_below(name, item, metadata)


def is_guard(container: Object) -> bool:
    """Whether a container runs `guard serve`."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    return container["name"] in GUARDS or words[:1] == ["serve"] or words[:2] == ["guard", "serve"]


def stays(container: Object) -> bool:
    """Whether an init container is a native sidecar: started before the others, and stopped after them."""
    return container.get("restartPolicy") == "Always"


def flags_of(container: Object) -> dict[str, str]:
    """The flags of a command line, `--name=value` and `--name value`; a bare one is "true"."""
    words = [*(container.get("command") or ()), *(container.get("args") or ())]
    flags: dict[str, str] = {}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            flags[name] = value if equals else "true" if not following or following.startswith("-") else following
    return flags


def environment_of(container: Object) -> dict[str, str]:
    return {one["name"]: str(one["value"]) for one in container.get("env") or () if "value" in one}


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT, a host, or unix:PATH is reached from within its pod alone."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0] if address.count(":") == 1 or address.startswith("[") else address
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def reached(settings: ServeConfig) -> dict[int, str]:
    """The ports on which a guard can be reached from outside of its pod, each with the setting that opens it."""
    addresses = {name: getattr(settings, name) for name in (*DOORS, "metrics_listen", "admin_listen")}
    return {port_of(at): name for name, at in addresses.items() if at and not is_loopback(at)}

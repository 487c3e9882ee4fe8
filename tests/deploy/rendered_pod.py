"""The containers of a rendered pod as processes of this machine, started, probed and stopped as a kubelet does.

How it works. Command lines, environment, probes and hooks are the rendered ones, with three things put in their place:
a mounted path becomes a folder, a port becomes a free one of loopback (two pods share this machine), and the image's
entry point becomes `python -m guard`. A rendered `mlserver start` is MLServer's own. Where the model server is Triton,
whose image is not at hand, MLServer stands in for its command, at the address that the guard's `--upstream` names; its
hooks and its turn are the rendered ones.

Stopping is what the kubelet's killContainer does: all preStop hooks run at once; each container gets SIGTERM after its
own, a native sidecar after the containers that it serves have ended; and SIGKILL when the pod's grace period is over.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from guard.errors import NotReadyError
from guard.serve.probe import probe
from tests.serve import tiny_bundle
from tests.serve.guarded import free_port
from tests.serve.mlserver_process import RUNTIME, SETTINGS
from tests.serve.processes import ROOT

GUARD = "guard"
POLL_S = 0.05
START_S = 90.0


def render(kubectl: Path, overlay: Path) -> dict[str, Any]:
    """The objects that kustomize makes of a folder, by kind."""
    words = [kubectl / "kubectl", "kustomize", overlay]
    text = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    to_json = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    found = subprocess.run([kubectl / "python", "-c", to_json], input=text, check=True, capture_output=True, text=True)
    return by_kind(json.loads(found.stdout))


def by_kind(objects: Sequence[Any]) -> dict[str, Any]:
    """Rendered objects by their kind; of a pod there is one Deployment and one ConfigMap."""
    return {item["kind"]: item for item in objects}


@dataclass(eq=False)
class RenderedPod:
    """One pod of a rendered Deployment: its guard and its model server."""

    objects: Mapping[str, Any]
    bundle: Path
    mlserver: Path  # the programs of its environment
    volumes: Mapping[str, Mapping[str, bytes]] = field(default_factory=dict)  # of Secrets and others: name -> files
    pause_factor: float = 1.0  # of the seconds in hooks and settings; 1: as they are rendered
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pod-")))  # short: it holds a socket
    ports: dict[str, int] = field(default_factory=dict)  # rendered -> real
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Lay out what the containers mount."""
        shutil.copytree(self.bundle, self.folder / "bundle")  # a volume's name, as "guard-config" below
        for volume in self.spec["volumes"]:
            (self.folder / volume["name"]).mkdir(exist_ok=True)
        for name, files in self.volumes.items():
            for file, content in files.items():
                (self.folder / name / file).write_bytes(content)
        self.configure(self.settings)

    @property
    def spec(self) -> Any:
        return self.objects["Deployment"]["spec"]["template"]["spec"]

    @property
    def containers(self) -> dict[str, Any]:
        """All containers by name, init containers first."""
        return {one["name"]: one for one in [*self.spec.get("initContainers", ()), *self.spec["containers"]]}

    @property
    def guard(self) -> Any:
        return self.containers[GUARD]

    @property
    def server(self) -> Any:
        """The model server's container."""
        (found,) = [one for one in self.spec["containers"] if one["name"] != GUARD]
        return found

    def mounts(self, container: Any) -> dict[str, Path]:
        """The folder that stands for each path that a container mounts: by the name of its volume."""
        return {mount["mountPath"]: self.folder / mount["name"] for mount in container["volumeMounts"]}

    @property
    def guard_is_sidecar(self) -> bool:
        return self.guard.get("restartPolicy") == "Always"

    @property
    def settings(self) -> str:
        """guard.toml as rendered, its pauses shortened where that is wanted."""
        (text,) = self.objects["ConfigMap"]["data"].values()
        return re.sub(
            r"(?m)^drain_s = ([\d.]+)", lambda found: f"drain_s = {float(found[1]) * self.pause_factor}", text
        )

    def configure(self, text: str) -> None:
        """Put a guard.toml in place as kubelets do: a folder, and a link that is swapped to it."""
        config = self.folder / "guard-config"
        fresh = config / f"..{time.monotonic_ns()}"
        fresh.mkdir(parents=True)
        (fresh / "guard.toml").write_text(text, "utf-8")
        (config / "..new").symlink_to(fresh.name)
        (config / "..new").replace(config / "..data")
        if not (config / "guard.toml").is_symlink():
            (config / "guard.toml").symlink_to("..data/guard.toml")

    def here(self, text: str, container: Any) -> str:
        """A rendered word, with the pod's paths and ports put in the place of the container's."""
        mounts = self.mounts(container)
        paths = "|".join(sorted(map(re.escape, mounts), reverse=True))
        text = re.sub(rf"(?<![\w.])({paths})(?=/|$)", lambda found: str(mounts[found[1]]), text)
        return re.sub(
            r"\b(?:0\.0\.0\.0|127\.0\.0\.1|localhost):(\d+)\b", lambda found: f"127.0.0.1:{self.port(found[1])}", text
        )

    def setting(self, variable: str) -> str:
        """The value of a variable of the guard's environment, as it is here."""
        return self.environment(self.guard)[variable]

    def port(self, rendered: str | int) -> int:
        """The port of this machine that stands for a container's."""
        return self.ports.setdefault(str(rendered), free_port())

    def environment(self, container: Any) -> dict[str, str]:
        """The environment of a container, and what a process of this machine needs."""
        found = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
        if container is not self.server:
            found["PYTHONPATH"] = str(ROOT)
        for variable in container.get("env", ()):
            source = variable.get("valueFrom", {})
            if variable["name"].endswith("_PORT"):
                found[variable["name"]] = str(self.port(variable["value"]))
            elif "value" in variable:
                found[variable["name"]] = self.here(variable["value"], container)
            elif "resourceFieldRef" in source:
                kind, _, name = source["resourceFieldRef"]["resource"].partition(".")
                found[variable["name"]] = str(math.ceil(float(container["resources"][kind][name].removesuffix("m"))))
            else:
                raise AssertionError(f"a variable that no process gets here: {variable}")
        return found

    def words(self, rendered: list[str], container: Any) -> list[str]:
        """A rendered command as a command of this machine."""
        words = [self.here(word, container) for word in rendered]
        return [sys.executable, "-m", "guard", *words[1:]] if words[0] == "guard" else words

    def start_container(self, name: str) -> None:
        """Start a container's process; its standard error goes to a file."""
        container = self.containers[name]
        if name == GUARD:
            words, folder = self.words(["guard", *container["args"]], container), self.folder
            environment = self.environment(container)
        else:
            folder = self.mounts(container)["/models"]
            self.write_model(folder)
            environment = self.environment(container)
            if container.get("command", [""])[0] != "mlserver":
                self.stand_in(folder)
            words = [str(self.mlserver / "mlserver"), "start", str(folder)]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)

    def write_model(self, folder: Path) -> None:
        """Lay out the tiny model as MLServer wants it."""
        model = folder / "tiny.onnx"
        model.write_bytes(tiny_bundle.classifier())
        served = {"implementation": f"{RUNTIME.stem}.OnnxRuntime", "parameters": {"uri": str(model)}}
        (folder / "model-settings.json").write_text(json.dumps({"name": tiny_bundle.MODEL_NAME, **served}))
        shutil.copy(RUNTIME, folder)

    def stand_in(self, folder: Path) -> None:
        """Write settings by which MLServer listens where another server's command would, as the guard's flags say."""
        ports = {"grpc_port": int(self.address("upstream").rpartition(":")[2]), "http_port": self.port("http")}
        (folder / "settings.json").write_text(json.dumps({**SETTINGS, **ports}))

    def start(self, *, model_first: bool = False) -> None:
        """Start the pod as a kubelet does, or its model server before its guard; return once both run."""
        self.initialise()
        names = [GUARD, self.server["name"]]
        order = names[::-1] if model_first else names
        for name in order:
            self.start_container(name)
            if "startupProbe" in self.containers[name]:
                self.until(lambda: self.probe("startupProbe"), "started")

    def initialise(self) -> None:
        """Run the init containers that end by themselves, one after the other; each has to end with 0."""
        for container in self.spec.get("initContainers", ()):
            if container.get("restartPolicy") == "Always":
                continue
            words = self.words([*container.get("command", ["guard"]), *container.get("args", ())], container)
            done = subprocess.run(
                words, env=self.environment(container), cwd=self.folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ChildProcessError(f"{container['name']} ended with {done.returncode}: {done.stderr}")

    def until_ready(self) -> None:
        """Wait until the readiness probe succeeds."""
        self.until(lambda: self.probe("readinessProbe"), "ready")

    def until(self, holds: Callable[[], bool], wanted: str) -> None:
        deadline = time.monotonic() + START_S
        while not holds():
            ended = {name: process.returncode for name, process in self.running.items() if process.poll() is not None}
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"not {wanted}, ended: {ended}\n{self.logs()}")
            time.sleep(POLL_S)

    def logs(self) -> str:
        return "\n".join(
            f"{file.name}:\n{file.read_text('utf-8', 'replace')[-3000:]}" for file in self.folder.glob("*.log")
        )

    def probe(self, name: str) -> bool:
        """Whether a rendered probe of the guard succeeds once."""
        wanted = self.guard[name]
        if "grpc" in wanted:
            try:
                address = f"127.0.0.1:{self.port(wanted['grpc']['port'])}"
                probe(address, wanted["grpc"].get("service", ""), timeout_s=wanted.get("timeoutSeconds", 1))
            except NotReadyError:
                return False
            return True
        address = f"127.0.0.1:{self.port(wanted['httpGet']['port'])}"
        try:
            urllib.request.urlopen(
                f"http://{address}{wanted['httpGet']['path']}", timeout=wanted.get("timeoutSeconds", 1)
            )
        except (OSError, urllib.error.URLError):
            return False
        return True

    def stop(self) -> dict[str, int]:
        """Stop the pod as a kubelet does; return the exit code of each hook and container."""
        codes: dict[str, int] = {}
        deadline = time.monotonic() + float(self.spec["terminationGracePeriodSeconds"])
        others_ended = threading.Event()
        if set(self.running) == {GUARD}:
            others_ended.set()

        def end(name: str) -> None:
            hook = self.containers[name].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command")
            if hook is not None:
                codes[f"{name} preStop"] = self.run_hook(hook, self.containers[name])
            if name == GUARD and self.guard_is_sidecar:
                others_ended.wait(max(0.0, deadline - time.monotonic()))
            process = self.running.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                codes[name] = process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                codes[name] = process.wait()
            if name != GUARD:
                others_ended.set()

        threads = [threading.Thread(target=end, args=(name,)) for name in tuple(self.running)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return codes

    def run_hook(self, rendered: list[str], container: Any) -> int:
        """Run a preStop hook in exec form, and return its exit code."""
        if rendered[0] == "sleep":
            time.sleep(float(rendered[1]) * self.pause_factor)
            return 0
        words = self.words(rendered, container)
        with (self.folder / "hooks.log").open("ab") as log:
            return subprocess.run(
                words, env=self.environment(container), stdout=log, stderr=log, check=False
            ).returncode

    def address(self, flag: str = "listen") -> str:
        """The address that a flag of the guard leads to here."""
        (found,) = [arg.partition("=")[2] for arg in self.guard["args"] if arg.startswith(f"--{flag}=")]
        return self.here(found, self.guard)

    def remove(self) -> None:
        """Kill what still runs, and remove the folder."""
        for process in self.running.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

"""KServe's examples: they fit KServe's own types, and the one port that KServe leads to is the guard's."""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from guard.config import ServeConfig, load_config
from guard.kserve_arguments import kserve_settings, rewritten
from tests.deploy.chart import asked_of
from tests.deploy.kubernetes_versions import versions
from tests.deploy.manifests import faults, schema_faults
from tests.deploy.port_faults import probe_faults
from tests.deploy.rendered import reached
from tests.side import ROOT

FILES = ("triton", "mlserver", "openvino", "transformer")
GUARD, MODEL_SERVER = "transformer-container", "kserve-container"
TO_JSON = "import json, sys, yaml; print(json.dumps([list(yaml.safe_load_all(open(name))) for name in sys.argv[1:]]))"
INJECTED = ["--model_name", "digits", "--predictor_host", "digits-predictor.models", "--http_port", "8080"]
OLDEST = "1.29"
EXPLAINED = {  # what our own assertions say of these examples, and why it is so
    "listens on 8082, and no containerPort says so": "KServe makes a Service of each port that is declared",
    "ServingRuntime/.*: (a token of the API server|links to Services)": "the InferenceService says so for its pods",
    "ServingRuntime/.*: terminationGracePeriodSeconds is 30": "likewise",
    "transformer guard: containerPort 8080: the guard does not listen there": "KServe adds --http_port 8080",
    "NetworkPolicy/digits-predictor: its selector selects none": "it is for the pods that KServe makes",
}
OWN_FLAGS = {"--bundle": "bundle", "--listen": "listen", "--metrics-listen": "metrics_listen"}
OWN_FLAGS |= {"--admin-listen": "admin_listen"}


@pytest.fixture(scope="module")
def examples(side: Callable[[str], Path]) -> dict[str, list[Any]]:
    paths = [ROOT / "deploy" / "kserve" / f"{name}.yaml" for name in FILES]
    command = [side("kubectl") / "python", "-c", TO_JSON, *paths]
    found = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    return dict(zip(FILES, found, strict=True))


def kserves(objects: list[Any]) -> list[Any]:
    return [one for one in objects if one["apiVersion"].startswith("serving.kserve.io/")]


def pods(objects: list[Any]) -> list[Any]:
    """The parts of the objects that have containers: pods, as far as they are ours."""
    specs = [one["spec"] for one in kserves(objects)]
    parts = [*specs, *(spec.get(name, {}) for spec in specs for name in ("predictor", "transformer"))]
    return [part for part in parts if "containers" in part]


def containers(objects: list[Any]) -> dict[str, Any]:
    return {one["name"]: one for pod in pods(objects) for one in pod["containers"]}


def settings_of(container: Any, *more: str) -> ServeConfig:
    """The settings of a guard that is started with these arguments, read as it reads them."""
    words = rewritten([*container["args"], *more])
    given = [value for flag, value in pairwise(words) if flag == "--kserve"]
    own = {
        OWN_FLAGS[name]: value
        for name, _, value in (word.partition("=") for word in words[1:] if "=" in word and word.startswith("--"))
    }
    return load_config(None, {}, {**kserve_settings(given, {}).flags, **own})


def test_they_fit_kserves_types(examples: dict[str, list[Any]]) -> None:
    found = [one for name in FILES for one in kserves(examples[name])]
    assert len(found) == 6
    planted = [copy.deepcopy(found[0]) for _ in range(3)]
    planted[0]["spec"]["predictr"] = {}
    planted[1]["spec"]["predictor"]["containers"][0]["args"] = "serve"
    del planted[2]["spec"]["predictor"]["containers"][0]["name"]
    told = asked_of("kserve", "kserve_program.py", [*found, *planted])
    assert told[: len(found)] == [[]] * len(found)
    (unknown,), (wrong,), (missing,) = told[len(found) :]
    assert unknown == "InferenceService.spec.predictr is no field of V1beta1InferenceServiceSpec"
    assert wrong.startswith("InferenceService.spec.predictor.containers[0].args: ")
    assert missing == "InferenceService.spec.predictor.containers[0].name: Field required"


def test_their_pods_are_valid(examples: dict[str, list[Any]], side: Callable[[str], Path]) -> None:
    cases = {}
    for name in FILES:
        parts = ("containers", "volumes", "securityContext")
        specs = [{key: pod[key] for key in parts if key in pod} for pod in pods(examples[name])]
        whole = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec} for spec in specs]
        policies = [one for one in examples[name] if one["kind"] == "NetworkPolicy"]
        cases[name] = ([*whole, *policies], versions(OLDEST))
    found = schema_faults(cases, side("kubectl"))
    assert {case: faults for case, faults in found.items() if faults} == {}


@pytest.mark.parametrize("name", FILES)
def test_no_other_fault_than_what_kserve_wants_so(name: str, examples: dict[str, list[Any]]) -> None:
    found = [fault for fault in faults(examples[name]) if not any(re.search(words, fault) for words in EXPLAINED)]
    assert found == []


@pytest.mark.parametrize("name", FILES)
def test_the_only_port_that_is_led_to_is_the_guards(name: str, examples: dict[str, list[Any]]) -> None:
    found = containers(examples[name])
    more = INJECTED if name == "transformer" else []
    settings = settings_of(found[GUARD], *more)
    (port,) = found[GUARD]["ports"]  # KServe makes a Service of each; Knative allows one
    doors = {"h2c": settings.listen, "http1": settings.rest_listen}  # KServe and Istio tell gRPC by the name
    assert doors[port["name"]] == f"0.0.0.0:{port['containerPort']}"
    if name != "transformer":
        assert "ports" not in found[MODEL_SERVER]
        assert (settings.upstream, settings.rest_upstream) == ("127.0.0.1:9000", "")


@pytest.mark.parametrize(("name", "words"), [("triton", "--grpc-address=127.0.0.1"), ("openvino", "127.0.0.1")])
def test_the_model_server_listens_on_loopback(name: str, words: str, examples: dict[str, list[Any]]) -> None:
    assert any(word.endswith(words) for word in containers(examples[name])[MODEL_SERVER]["args"])


def test_mlserver_listens_on_loopback(examples: dict[str, list[Any]]) -> None:
    environment = {one["name"]: one["value"] for one in containers(examples["mlserver"])[MODEL_SERVER]["env"]}
    assert (environment["MLSERVER_HOST"], environment["MLSERVER_GRPC_PORT"]) == ("127.0.0.1", "9000")


@pytest.mark.parametrize("name", FILES)
def test_probes_ask_where_the_guard_answers_and_start_up_never_waits(name: str, examples: dict[str, list[Any]]) -> None:
    guard = containers(examples[name])[GUARD]
    settings = settings_of(guard)
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = guard[probe]
        ready = probe == "readinessProbe"
        if "grpc" in asked:
            assert asked["grpc"] == {
                "port": int(settings.listen.rpartition(":")[2]),
                "service": "readiness" if ready else "",
            }
        else:
            port = int(settings.metrics_listen.rpartition(":")[2])
            assert asked["httpGet"] == {"path": "/readyz" if ready else "/livez", "port": port}


def defaulted(container: Any) -> Any:
    """The readiness probe of a container as KServe completes it: whether the first port, or 8080, is open."""
    port = next((one["containerPort"] for one in container.get("ports", ())), 8080)
    return container.get("readinessProbe") or {"tcpSocket": {"port": port}}


@pytest.mark.parametrize("http_port", ["8080", "8090"])
@pytest.mark.parametrize("name", FILES)
def test_a_pod_becomes_ready_wherever_the_guard_listens(
    name: str, http_port: str, examples: dict[str, list[Any]]
) -> None:
    found = containers(examples[name])
    moved = [] if name == "triton" else ["--http_port", http_port]
    open_ports = reached(settings_of(found[GUARD], *moved))  # from outside of the pod, as a kubelet asks
    for container in found.values():
        (asked,) = (ask for kind, ask in defaulted(container).items() if kind in ("grpc", "httpGet", "tcpSocket"))
        assert asked["port"] in open_ports, container["name"]


@pytest.mark.parametrize(
    ("name", "http_port", "words"),
    [
        ("triton", "", "KServe probes port 8080 of the pod, where nothing listens for it"),
        ("mlserver", "8080", "KServe probes port 8080 of the pod, where the guard listens by chance"),
        ("openvino", "8090", "KServe probes port 8080 of the pod, where nothing listens for it"),
    ],
)
def test_a_model_server_that_is_left_to_kserves_probe_is_found(
    name: str, http_port: str, words: str, examples: dict[str, list[Any]]
) -> None:
    objects = copy.deepcopy(examples[name])
    found = containers(objects)
    del found[MODEL_SERVER]["readinessProbe"]
    found[GUARD]["args"] += [f"--http_port={http_port}"] if http_port else []
    (told,) = [fault for fault in probe_faults(objects) if "KServe probes" in fault]
    assert words in told
    found[MODEL_SERVER]["readinessProbe"] = {"grpc": {"port": 9000}}
    assert any("cannot reach what listens on loopback" in fault for fault in probe_faults(objects))


@pytest.mark.parametrize("name", FILES)
def test_there_is_time_to_stop(name: str, examples: dict[str, list[Any]]) -> None:
    found = containers(examples[name])
    settings = settings_of(found[GUARD])
    assert found[GUARD]["lifecycle"]["preStop"]["exec"]["command"] == ["guard", "drain", settings.admin_listen]
    specs = [one["spec"] for one in kserves(examples[name]) if one["kind"] == "InferenceService"]
    (whole,) = [spec.get("transformer", spec["predictor"])["terminationGracePeriodSeconds"] for spec in specs]
    wanted = settings.drain_s + settings.grace_s
    if MODEL_SERVER in found:
        pause = float(found[MODEL_SERVER]["lifecycle"]["preStop"]["exec"]["command"][1])
        assert pause >= settings.drain_s + settings.inspect_timeout_s
        wanted = pause + 30 + settings.grace_s
    assert whole >= wanted


def test_the_predictor_is_reached_by_the_transformer_alone(examples: dict[str, list[Any]]) -> None:
    (policy,) = [one["spec"] for one in examples["transformer"] if one["kind"] == "NetworkPolicy"]
    (service,) = kserves(examples["transformer"])
    (port,) = service["spec"]["predictor"]["model"]["ports"]
    assert policy["podSelector"]["matchLabels"]["component"] == "predictor"
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": port["containerPort"]}]
    assert [one["podSelector"]["matchLabels"]["component"] for one in rule["from"]] == ["transformer"]

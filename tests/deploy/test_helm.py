"""The chart: every set of values lints and is valid from its lowest Kubernetes on, and wrong values are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from guard import cli
from tests.deploy import chart_schema
from tests.deploy.chart import SETS, all_rendered, ask_helm, lowest, objects_of
from tests.deploy.drain_faults import drain_faults
from tests.deploy.kubernetes_versions import NEWEST, minor, versions
from tests.deploy.manifests import faults, lowest_version, pods, schema_faults

INFO = {"icon is recommended"}  # what helm lint says of a chart without fault


@pytest.fixture(scope="module")
def linted() -> dict[str, Any]:
    """Each set, linted."""
    return ask_helm({name: {"values": file.read_text("utf-8"), "lint": "strictly"} for name, file in SETS.items()})


@pytest.fixture(scope="module")
def for_versions() -> dict[str, Any]:
    """Each set, rendered for its lowest version and for the one below it."""
    return ask_helm(
        {
            f"{name} 1.{minor}": {"values": f"{file.read_text('utf-8')}\nkubeVersion: '1.{minor}'\n"}
            for name, file in SETS.items()
            for minor in (lowest(name) - 1, lowest(name))
        }
    )


@pytest.fixture(scope="module")
def by_schema(side: Callable[[str], Path]) -> dict[tuple[str, str], list[str]]:
    """The faults by Kubernetes' own schemas, of each set in each version from its lowest to the newest."""
    cases = {name: (objects_of(name), versions(f"1.{lowest(name)}")) for name in SETS}
    return schema_faults(cases, side("kubectl"))


@pytest.mark.parametrize("name", SETS)
def test_a_set_lints_strictly(name: str, linted: dict[str, Any]) -> None:
    assert linted[name]["errors"] == []
    assert set(linted[name]["messages"]) <= INFO


@pytest.mark.parametrize("name", SETS)
def test_a_set_says_so_below_its_lowest_version(name: str, for_versions: dict[str, Any]) -> None:
    assert "error" not in for_versions[f"{name} 1.{lowest(name)}"]
    error = for_versions[f"{name} 1.{lowest(name) - 1}"]["error"]
    assert f"needs Kubernetes 1.{lowest(name)} or later, this is 1.{lowest(name) - 1}; set " in error


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_valid_from_its_lowest_version_to_the_newest(
    name: str, by_schema: dict[tuple[str, str], list[str]]
) -> None:
    stated = f"1.{lowest(name)}"
    assert minor(lowest_version(objects_of(name))) <= lowest(name)
    assert {version: by_schema[name, version] for version in versions(stated) if by_schema[name, version]} == {}
    assert versions(stated)[-1] == NEWEST


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_no_fault_that_schemas_do_not_see(name: str) -> None:
    wanted = [" guard: /audit is mounted to be written to"] if name == "audit" else []  # a claim that is there for that
    found = faults(objects_of(name))
    assert len(found) == len(wanted), found
    assert all(words in fault for words, fault in zip(wanted, found, strict=True))


def test_the_settings_of_the_schema_are_those_of_the_code() -> None:
    text = chart_schema.FILE.read_text("utf-8")
    assert text == chart_schema.renewed(text), "run: python -m tests.deploy.chart_schema"


WRONG = {  # values -> words of the error
    "settings: {mod: shadow}": ("at '/settings'", "'mod' not allowed"),
    "settings: {mode: loud}": ("at '/settings/mode'", "'enforce', 'flag', 'shadow', 'off'"),
    "settings: {max_rows: many}": ("at '/settings/max_rows'", "want integer"),
    "settings: {max_rows: 0}": ("at '/settings/max_rows'", "minimum", "want 1"),
    "settings: {sample: 1.5}": ("at '/settings/sample'", "maximum"),
    "settings: {tell_flags: 'yes'}": ("at '/settings/tell_flags'", "want boolean"),
    "settings: {allow_methods: ModelConfig}": ("at '/settings/allow_methods'", "want array"),
    "settings: {models: {digits: {mode: flag}}}": ("at '/settings/models/digits'", "'bundle'"),
    "settings: {models: {digits: {bundle: /b, listen: x}}}": ("at '/settings/models/digits'", "'listen' not allowed"),
    "settings: {models: {}}": ("at '/settings/models'", "minProperties"),
    "setings: {}": ("'setings' not allowed",),
    "guard: {sidecar: both}": ("at '/guard/sidecar'", "'native', 'plain'"),
    "guard: {resources: {limit: {memory: 1Gi}}}": ("at '/guard/resources'", "'limit' not allowed"),
    "ports: {inference: 70000}": ("at '/ports/inference'", "maximum"),
    "image: {digest: abc}": ("at '/image/digest'", "pattern"),
    "settings: {listen: '0.0.0.0:9'}": ("settings.listen: the chart sets it; use the value ports.inference",),
    "settings: {trusted_keys: [a.pub]}": (
        "settings.trusted_keys: the chart sets it; use the value bundle.trustedKeys",
    ),
    "settings: {drain_s: 20}": (
        "modelServer.pause_s: 15 is less than drain_s, inspect_timeout_s and 2 s together, 27",
    ),
    "ports: {metrics: 8081}": ("ports.inference and ports.metrics are both 8081",),
    "ports: {metrics: 9000}": ("modelServer.grpcPort and ports.metrics are both 9000",),
    "modelServer: {httpPort: 9001}": ("modelServer.httpPort needs ports.rest",),
    "tls: {clientCA: true}": ("tls.clientCA needs tls.secret",),
    "bundle: {from: copy}": ("bundle.from: copy needs bundle.image.reference",),
    "bundle: {from: none}": ("bundle.from: none needs settings.models",),
    "settings: {models: {digits: {bundle: /b}}}": ("settings.models names a bundle for each model",),
    "{bundle: {from: none}, settings: {models: {a: {bundle: /b}, c: {bundle: /d, inspect_timeout_s: 60}}}}": (
        "modelServer.pause_s: 15 is less than drain_s, inspect_timeout_s and 2 s together, 67",
    ),
    "modelServer: {exit_s: 5, args: [tritonserver, --exit-timeout-secs=30]}": ("modelServer.exit_s: 5, and the model",),
    "modelServer: {exit_s: 5, args: [tritonserver, --exit-timeout-secs, '30']}": ("takes up to 30 s to end",),
    "modelServer: {exit_s: 5, args: [tritonserver]}": ("takes up to 30 s to end",),
    "modelServer: {grpcPort: 9100, args: [--grpc-port=9000, --exit-timeout-secs=1]}": (
        "modelServer.grpcPort: 9100, and modelServer.args say --grpc-port=9000",
    ),
    "modelServer: {args: [--port, '9001', --grpc_bind_address=127.0.0.1]}": (
        "modelServer.grpcPort: 9000, and modelServer.args say --port=9001",
    ),
    "{modelServer: {httpPort: 9002, args: [--rest_port=9001]}, ports: {rest: 8080}}": (
        "modelServer.httpPort: 9002, and modelServer.args say --rest_port=9001",
    ),
    "modelServer: {args: [], env: [{name: MLSERVER_GRPC_PORT, value: '9001'}]}": (
        "modelServer.grpcPort: 9000, and modelServer.env says MLSERVER_GRPC_PORT=9001",
    ),
    "guard: {resources: {requests: {cpu: null}}}": ("guard.resources.requests.cpu is not set", "settings.threads"),
    "guard: {resources: {requests: {cpu: '0'}}}": ("guard.resources.requests.cpu is not set",),
    "{audit: {enabled: true}, settings: {audit_max_bytes: 4294967296}}": (
        "audit.sizeLimit: 512Mi is less than the 4724464026 bytes",
        "set it to 4506Mi",
    ),
    "{audit: {enabled: true}, settings: {sample_share: 0.01}}": ("audit.sizeLimit: 512Mi is less", "set it to 564Mi"),
    "{audit: {enabled: true, sizeLimit: 800M}, bundle: {from: none}, settings: {sample_share: 0.1,"
    " models: {a: {bundle: /a}, b: {bundle: /b}}}}": ("audit.sizeLimit: 800M is less", "set it to 845Mi"),
    "settings: {sample_share: 0.01}": ("settings.sample_share needs audit.enabled",),
    "settings: {audit_inputs: true}": ("settings.audit_inputs needs audit.enabled",),
    "settings: {require_signature: true}": ("settings.require_signature needs bundle.trustedKeys.configMap",),
    "autoscaling: {kind: hpa, minReplicas: 8}": ("autoscaling.minReplicas: 8 is more than autoscaling.maxReplicas: 4",),
    "autoscaling: {kind: keda, minReplicas: 8, prometheus: 'http://p:9090', queueRows: 9}": (
        "autoscaling.minReplicas: 8 is more than autoscaling.maxReplicas: 4",
    ),
    "service: {type: LoadBalancer, headless: true}": ("service.type: LoadBalancer has an address",),
    "service: {type: NodePort, headless: true}": ("service.type: NodePort has an address",),
    "guard: {env: [{name: GUARD_THREADS, value: '2'}]}": ("guard.env: GUARD_THREADS would beat settings.threads",),
    "guard: {env: [{name: GUARD_UPSTREAM, value: 'h:1'}]}": (
        "guard.env: GUARD_UPSTREAM: the chart sets it; use the value modelServer.grpcPort",
    ),
    "guard: {env: [{name: GUARD_MODE, value: 'off'}]}": ("guard.env: GUARD_MODE would beat settings.mode",),
    "guard: {env: [{name: A, value: b}, {name: A, value: c}]}": ("guard.env has A twice",),
    "settings: {events_sink: 'http://broker.events/'}": (
        "networkPolicy.egress is empty",
        "settings.events_sink would never be reached",
    ),
    "guard: {env: [{name: OTEL_EXPORTER_OTLP_ENDPOINT, value: 'http://otel:4317'}]}": (
        "guard.env OTEL_EXPORTER_OTLP_ENDPOINT would never be reached",
    ),
    "guard: {env: [{name: OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, value: 'http://otel:4317'}]}": (
        "networkPolicy.egress is empty",
    ),
    "podLabels: {sidecar.istio.io/inject: 'true'}": ("the mesh's proxy (podLabels) would never be reached",),
    "autoscaling: {kind: keda}": ("autoscaling.kind: keda needs autoscaling.prometheus",),
    "autoscaling: {kind: keda, prometheus: 'http://p:9090'}": ("autoscaling.kind: keda needs autoscaling.queueRows",),
}


@pytest.fixture(scope="module")
def refused() -> dict[str, Any]:
    return ask_helm({values: {"values": values} for values in WRONG})


@pytest.mark.parametrize("values", WRONG)
def test_wrong_values_are_refused_with_a_line_that_says_what_is_wrong(values: str, refused: dict[str, Any]) -> None:
    error = refused[values].get("error", "")
    assert error, "it was rendered"
    for words in WRONG[values]:
        assert words in error


AGREEING = {  # values -> words of the model server's command line, or of the guard's
    "modelServer: {exit_s: 0}": ("--exit-timeout-secs=0",),
    "modelServer: {exit_s: 60}": ("--exit-timeout-secs=60",),
    "modelServer: {grpcPort: 9100}": ("--grpc-port=9100", "--upstream=127.0.0.1:9100"),
    "modelServer: {args: [a, --exit-timeout-secs=9, --flag, '{{ .Release.Name }}']}": ("--flag", "digits"),
    "{modelServer: {pause_s: 67}, bundle: {from: none}, settings: {models: {a: {bundle: /b, inspect_timeout_s: 60}}},"
    " guard: {volumes: [{name: b, emptyDir: {}}], volumeMounts: [{name: b, mountPath: /b, readOnly: true}]}}": (),
    "{settings: {threads: 2}, guard: {resources: {requests: {cpu: null}}}}": (),
    "guard: {resources: {requests: {cpu: null}, limits: {cpu: '1'}}}": (),  # the request is the limit then
    "{audit: {enabled: true, sizeLimit: 5Gi}, settings: {audit_max_bytes: 4294967296}}": (),
    "{audit: {enabled: true, claim: c}, settings: {audit_max_bytes: 4294967296, sample_share: 0.1}}": (),
    "{networkPolicy: {enabled: false}, settings: {events_sink: 'http://broker.events/'}}": (),
    "{networkPolicy: {egress: [{}]}, settings: {events_sink: 'http://broker.events/'}}": (),
    "guard: {env: [{name: GUARD_LOG_LEVEL, value: debug}]}": (),
}


@pytest.fixture(scope="module")
def agreeing() -> dict[str, Any]:
    return ask_helm({values: {"values": values} for values in AGREEING})


@pytest.mark.parametrize("values", AGREEING)
def test_values_that_agree_are_rendered_and_have_time_to_stop(values: str, agreeing: dict[str, Any]) -> None:
    assert "error" not in agreeing[values], agreeing[values]
    objects = agreeing[values]["objects"]
    assert drain_faults(objects) == []
    words = [word for pod in pods(objects) for one in pod.before + pod.beside for word in one["args"]]
    assert set(AGREEING[values]) <= set(words)


def known_flags(command: str) -> set[str]:
    """The flags that a command of ours has."""
    found: Any = typer.main.get_command(cli.app)
    return {option for parameter in found.commands[command].params for option in parameter.opts}


@pytest.mark.parametrize("name", SETS)
def test_every_command_line_of_ours_has_flags_that_are_there(name: str) -> None:
    lines = [
        one["args"]
        for pod in pods(objects_of(name))
        for one in pod.before + pod.beside
        if "inference-guard" in one["image"]
    ]
    lines += [
        line.split("-- guard ")[1].split() for line in all_rendered()[name]["notes"].splitlines() if "-- guard " in line
    ]
    assert {line[0] for line in lines} >= {"serve", "probe"}
    for command, *words in lines:
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known_flags(command), command


@pytest.mark.parametrize("name", SETS)
def test_notes_tell_the_next_command(name: str) -> None:
    notes = all_rendered()[name]["notes"]
    assert "kubectl --namespace models rollout status deployment/digits-inference-guard" in notes
    assert "helm --namespace models test digits" in notes
    assert ("It refuses nothing yet" in notes) == (name == "reload-in-place")


@pytest.mark.parametrize("name", SETS)
def test_deploy_readme_tells_what_a_set_is_for_and_its_lowest_version(name: str, root: Path) -> None:
    readme = (root / "deploy/README.md").read_text("utf-8")
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{name}` |")]
    assert row.endswith(f"| 1.{lowest(name)} |")

"""The chart: every set of values lints and is valid from its lowest Kubernetes on, and wrong values are refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.deploy import chart_schema
from tests.deploy.chart import NEWEST, SETS, all_rendered, ask_helm, asked_of, lowest, objects_of

BY_KUBERNETES = {"v1", "apps/v1", "autoscaling/v2", "networking.k8s.io/v1", "policy/v1"}
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
def faults() -> dict[str, list[str]]:
    """By set, what the schemas of Kubernetes have against its objects, from its lowest version to the newest."""
    objects = {name: [one for one in objects_of(name) if one["apiVersion"] in BY_KUBERNETES] for name in SETS}
    versions = {name: [f"1.{minor}" for minor in range(lowest(name), NEWEST + 1)] for name in SETS}
    asked = {  # many sets have many objects in common
        (json.dumps(one), version) for name in SETS for one in objects[name] for version in versions[name]
    }
    pairs = sorted(asked)
    told = asked_of("kubectl", "kubernetes_program.py", [(json.loads(one), version) for one, version in pairs])
    by_pair = dict(zip(pairs, told, strict=True))
    return {
        name: [
            f"{version}: {fault}"
            for one in objects[name]
            for version in versions[name]
            if (fault := by_pair[json.dumps(one), version]) is not None
        ]
        for name in SETS
    }


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
def test_a_set_is_valid_from_its_lowest_version_to_the_newest(name: str, faults: dict[str, list[str]]) -> None:
    assert faults[name] == []


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
    "settings: {drain_s: 20}": ("modelServer.pause_s: 10 is less than settings.drain_s: 20",),
    "ports: {metrics: 8081}": ("ports.inference and ports.metrics are both 8081",),
    "ports: {admin: 9000}": ("modelServer.grpcPort and ports.admin are both 9000",),
    "ports: {rest: 8080}": ("ports.rest needs modelServer.httpPort",),
    "tls: {clientCA: true}": ("tls.clientCA needs tls.secret",),
    "bundle: {from: copy}": ("bundle.from: copy needs bundle.image.reference",),
    "bundle: {from: none}": ("bundle.from: none needs settings.models",),
    "settings: {models: {digits: {bundle: /b}}}": ("settings.models names a bundle for each model",),
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


@pytest.mark.parametrize("name", SETS)
def test_notes_tell_the_next_command(name: str) -> None:
    notes = all_rendered()[name]["notes"]
    assert "kubectl --namespace models rollout status deployment/digits-inference-guard" in notes
    assert "helm --namespace models test digits" in notes
    assert ("It refuses nothing yet" in notes) == (name == "reload-in-place")

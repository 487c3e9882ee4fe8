"""The chart and Kustomize say the same: containers, probes, ports, volumes, Services and policies, part by part."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import ask_helm
from tests.deploy.manifests import Object, kustomize, pods, read_all
from tests.side import ROOT

KUSTOMIZE = ROOT / "deploy" / "kustomize"
# An overlay -> the values that ask the chart for the same.
SAME = {
    "base": "{}",
    "plain-container": "guard: {sidecar: plain}",
    "tls": "tls: {secret: guard-tls}",
    "signed-claim": "bundle: {trustedKeys: {configMap: guard-trusted-keys}}",
    "signed-init": """
        bundle:
          from: copy
          image: {reference: 'guard-bundle:latest'}
          trustedKeys: {configMap: guard-trusted-keys}""",
}
NAMES = {"guarded-model": "digits-inference-guard"}
OF_A_CONTAINER = (
    *("args", "command", "env", "ports", "startupProbe", "livenessProbe", "readinessProbe", "lifecycle"),
    *("restartPolicy", "securityContext", "resources", "volumeMounts"),
)
OF_A_POD = ("automountServiceAccountToken", "enableServiceLinks", "terminationGracePeriodSeconds", "securityContext")


@pytest.fixture(scope="module")
def overlays(side: Callable[[str], Path]) -> dict[str, list[Object]]:
    folders = {name: KUSTOMIZE / ("base" if name == "base" else f"overlays/{name}") for name in SAME}
    programs = side("kubectl")
    return read_all({name: kustomize(folder, programs) for name, folder in folders.items()}, programs)


@pytest.fixture(scope="module")
def charts() -> dict[str, list[Object]]:
    found = ask_helm({name: {"values": values} for name, values in SAME.items()})
    return {name: [one for one in found[name]["objects"] if not is_hook(one)] for name in SAME}


def is_hook(one: Object) -> bool:
    return "helm.sh/hook" in (one["metadata"].get("annotations") or {})


def plain(part: Any) -> Any:
    """A part with one name for what the two call by names of their own, lists of named things in their order."""
    if isinstance(part, dict):
        return {key: plain(value) for key, value in part.items()}
    if isinstance(part, list):
        inner = [plain(one) for one in part]
        named = all(isinstance(one, dict) and "name" in one for one in inner)
        return sorted(inner, key=lambda one: (one["name"], one.get("mountPath", ""))) if named else inner
    return NAMES.get(part, part) if isinstance(part, str) else part


def containers(objects: list[Object]) -> dict[str, Any]:
    (pod,) = pods(objects)
    found = {}
    for early, some in ((True, pod.before), (False, pod.beside)):
        for one in some:
            parts = {key: plain(one[key]) for key in OF_A_CONTAINER if key in one}
            found[one["name"]] = {"is first": early, **parts}
    return found


@pytest.mark.parametrize("name", SAME)
def test_containers_are_the_same(name: str, overlays: dict[str, list[Object]], charts: dict[str, list[Object]]) -> None:
    theirs, ours = containers(overlays[name]), containers(charts[name])
    assert list(theirs) == list(ours)
    for container, parts in theirs.items():
        assert ours[container] == parts


@pytest.mark.parametrize("name", SAME)
def test_pods_are_the_same(name: str, overlays: dict[str, list[Object]], charts: dict[str, list[Object]]) -> None:
    (theirs,), (ours,) = pods(overlays[name]), pods(charts[name])
    assert {key: ours.spec.get(key) for key in OF_A_POD} == {key: theirs.spec.get(key) for key in OF_A_POD}
    volumes = [
        {one["name"]: one for one in plain(pod.spec["volumes"]) if one["name"] != "guard-config"}
        for pod in (theirs, ours)
    ]
    assert volumes[0] == volumes[1]
    scraped = [
        {key: value for key, value in pod.annotations.items() if key.startswith("prom")} for pod in (theirs, ours)
    ]
    assert scraped[0] == scraped[1]


@pytest.mark.parametrize("name", SAME)
def test_services_and_policies_are_the_same(
    name: str, overlays: dict[str, list[Object]], charts: dict[str, list[Object]]
) -> None:
    for kind, keys in (("Service", ("ports",)), ("NetworkPolicy", ("policyTypes", "ingress", "egress"))):
        (theirs,) = [one["spec"] for one in overlays[name] if one["kind"] == kind]
        (ours,) = [one["spec"] for one in charts[name] if one["kind"] == kind]
        assert {key: ours[key] for key in keys} == {key: theirs[key] for key in keys}


def test_the_settings_are_the_same(overlays: dict[str, list[Object]], charts: dict[str, list[Object]]) -> None:
    (theirs,), (ours,) = pods(overlays["base"]), pods(charts["base"])
    assert ours.settings(charts["base"]) == theirs.settings(overlays["base"])

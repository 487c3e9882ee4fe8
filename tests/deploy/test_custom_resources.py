"""Custom resources fit the types that their projects publish; what is wrong with one is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.chart import SETS, asked_of, objects_of
from tests.deploy.rendered import kustomize, read_all
from tests.side import ROOT

KINDS = {"ScaledObject", "PodMonitor", "PrometheusRule"}
OVERLAYS = ("autoscaled", "autoscaled-keda")  # of kustomize, which have one of each
OF_ISTIO = {"PeerAuthentication", "AuthorizationPolicy", "ServiceEntry", "EnvoyFilter"}
ISTIO = ("in-the-path", "ext-authz", "envoy-filter")


def planted() -> dict[str, Any]:
    """What must be said -> an object of the chart with that fault."""
    (scaled,) = [one for one in objects_of("keda") if one["kind"] == "ScaledObject"]
    (monitor,) = [one for one in objects_of("monitoring") if one["kind"] == "PodMonitor"]
    return {
        "spec.minReplicaCount: Input should be": {**scaled, "spec": {**scaled["spec"], "minReplicaCount": "few"}},
        "PodMonitor.spec.podMetricsEndpoints[0].portNumbr is no field": {
            **monitor,
            "spec": {**monitor["spec"], "podMetricsEndpoints": [{"portNumbr": 8082}]},
        },
    }


@pytest.fixture(scope="module")
def told(side: Callable[[str], Path]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """The faults of what is shipped, and of what was planted; importing the types takes longest, so at once."""
    shipped = {
        f"{one['kind']} of the values {name}": one for name in SETS for one in objects_of(name) if one["kind"] in KINDS
    }
    programs = side("kubectl")
    texts = {name: kustomize(ROOT / "deploy/kustomize/overlays" / name, programs) for name in OVERLAYS}
    for name, objects in read_all(texts, programs).items():
        shipped |= {f"{one['kind']} of the overlay {name}": one for one in objects if one["kind"] in KINDS}
    texts = {name: (ROOT / "deploy" / "istio" / f"{name}.yaml").read_text("utf-8") for name in ISTIO}
    for name, objects in read_all(texts, programs).items():
        shipped |= {f"{one['kind']} of istio/{name} {one['metadata']['name']}": one for one in objects}
    wrong = planted()
    found = asked_of("crds", "crds_program.py", [*shipped.values(), *wrong.values()])
    return dict(zip(shipped, found, strict=False)), dict(zip(wrong, found[len(shipped) :], strict=True))


def test_what_is_shipped_fits(told: tuple[dict[str, list[str]], dict[str, list[str]]]) -> None:
    shipped, _ = told
    assert {name.partition(" ")[0] for name in shipped} == KINDS | OF_ISTIO
    assert {name: faults for name, faults in shipped.items() if faults} == {}


def test_a_planted_fault_is_found(told: tuple[dict[str, list[str]], dict[str, list[str]]]) -> None:
    _, wrong = told
    for words, faults in wrong.items():
        assert len(faults) == 1
        assert faults[0].startswith(words)

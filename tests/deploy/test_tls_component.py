"""The component that adds TLS: probes that kubelets can make, and a certificate that arrives when it is renewed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.config import load_config
from tests.deploy.manifests import kustomize, pods, read


@pytest.fixture(scope="module")
def pod(root: Path, side: Callable[[str], Path]) -> Any:
    (found,) = pods(read(kustomize(root / "deploy/kustomize/overlays/tls", side("kubectl")), side("kubectl")))
    return found.spec


def test_kubelets_probe_the_port_that_never_speaks_tls(pod: Any) -> None:
    (guard,) = pod["initContainers"]
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert guard[name]["httpGet"] == {"path": path, "port": 8082}
        assert "grpc" not in guard[name]
        assert guard[name]["periodSeconds"]  # the rest of the base's probe stays


def test_the_guard_finds_its_certificate_and_sees_a_new_one(pod: Any) -> None:
    (guard,) = pod["initContainers"]
    config = load_config(None, {one["name"]: one["value"] for one in guard["env"] if "value" in one}, {})
    (mount,) = [one for one in guard["volumeMounts"] if one["name"] == "guard-tls"]
    assert {config.tls_certificate, config.tls_key} == {f"{mount['mountPath']}/tls.{end}" for end in ("crt", "key")}
    assert "subPath" not in mount
    (volume,) = [one for one in pod["volumes"] if one["name"] == "guard-tls"]
    assert volume["secret"] == {"secretName": "guard-tls", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == 65532  # whom that mode lets read it

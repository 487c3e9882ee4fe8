"""The component that adds TLS: probes that kubelets can make, and a certificate that arrives when it is renewed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guard.config import load_config

TO_JSON = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
VERSIONS = ("1.29", "1.33", "1.37")
OVERLAY = "resources: [../base]\ncomponents: [../components/tls]\n"


@pytest.fixture(scope="module")
def rendered(root: Path, side: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    """What an overlay with the component renders."""
    folder = tmp_path_factory.mktemp("kustomize")
    for part in ("base", "components"):
        (folder / part).symlink_to(root / "deploy/kustomize" / part)
    (folder / "overlay").mkdir()
    (folder / "overlay/kustomization.yaml").write_text(OVERLAY, "utf-8")
    command = [side("kubectl") / "kubectl", "kustomize", folder / "overlay", "--load-restrictor=LoadRestrictionsNone"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def pod(rendered: str, side: Callable[[str], Path]) -> Any:
    command = [side("kubectl") / "python", "-c", TO_JSON]
    objects = json.loads(subprocess.run(command, check=True, capture_output=True, text=True, input=rendered).stdout)
    (deployment,) = [one for one in objects if one["kind"] == "Deployment"]
    return deployment["spec"]["template"]["spec"]


def test_kubelets_probe_the_port_that_never_speaks_tls(pod: Any) -> None:
    (guard,) = pod["initContainers"]
    for name, path in (("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")):
        assert guard[name]["httpGet"] == {"path": path, "port": 8082}
        assert "grpc" not in guard[name]
        assert guard[name]["periodSeconds"]  # the rest of the base's probe stays


def test_the_guard_finds_its_certificate_and_sees_a_new_one(pod: Any) -> None:
    (guard,) = pod["initContainers"]
    config = load_config(None, {one["name"]: one["value"] for one in guard["env"]}, {})
    (mount,) = [one for one in guard["volumeMounts"] if one["name"] == "guard-tls"]
    assert {config.tls_certificate, config.tls_key} == {f"{mount['mountPath']}/tls.{end}" for end in ("crt", "key")}
    assert "subPath" not in mount
    (volume,) = [one for one in pod["volumes"] if one["name"] == "guard-tls"]
    assert volume["secret"] == {"secretName": "guard-tls", "defaultMode": 0o440}
    assert pod["securityContext"]["fsGroup"] == 65532  # whom that mode lets read it


@pytest.mark.parametrize("version", VERSIONS)
def test_it_is_valid(rendered: str, side: Callable[[str], Path], tmp_path: Path, version: str) -> None:
    (tmp_path / "rendered.yaml").write_text(rendered, "utf-8")
    command = [side("kubectl") / "kubernetes-validate", "-k", version, "--strict", tmp_path / "rendered.yaml"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr

"""Every overlay of deploy/kustomize: valid from the version that it states, refused below, and without a fault."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from guard.bundle import Bundle
from guard.errors import BundleError
from guard.signing import sign
from tests.deploy.kubernetes_versions import NEWEST, OLDEST, versions
from tests.deploy.manifests import (
    Object,
    faults,
    kustomize,
    lowest_version,
    pods,
    read_all,
    schema_faults,
    stated_version,
    version_faults,
)
from tests.serve import tiny_bundle

KUSTOMIZE = Path(__file__).resolve().parent.parent.parent / "deploy/kustomize"
OVERLAYS = sorted(folder.name for folder in (KUSTOMIZE / "overlays").iterdir())
NAMES = ["base", *OVERLAYS]
COMPONENTS = sorted(folder.name for folder in (KUSTOMIZE / "components").iterdir())


def folder(name: str) -> Path:
    return KUSTOMIZE / "base" if name == "base" else KUSTOMIZE / "overlays" / name


@pytest.fixture(scope="module")
def rendered(side: Callable[[str], Path]) -> dict[str, list[Object]]:
    programs = side("kubectl")
    return read_all({name: kustomize(folder(name), programs) for name in NAMES}, programs)


@pytest.fixture(scope="module")
def by_schema(rendered: dict[str, list[Object]], side: Callable[[str], Path]) -> dict[tuple[str, str], list[str]]:
    """The faults by Kubernetes' own schemas, of each overlay in each version that can be checked."""
    return schema_faults({name: (objects, versions(OLDEST)) for name, objects in rendered.items()}, side("kubectl"))


@pytest.mark.parametrize("name", NAMES)
def test_it_has_no_fault(rendered: dict[str, list[Object]], name: str) -> None:
    assert faults(rendered[name]) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_states_its_lowest_version(rendered: dict[str, list[Object]], name: str) -> None:
    assert stated_version(rendered[name]) == lowest_version(rendered[name])


@pytest.mark.parametrize("name", NAMES)
def test_it_is_valid_from_there_on_and_refused_below(
    rendered: dict[str, list[Object]], by_schema: dict[tuple[str, str], list[str]], name: str
) -> None:
    lowest = lowest_version(rendered[name])
    for version in versions(lowest):
        assert by_schema[name, version] == []
        assert version_faults(rendered[name], version) == []
    for version in ("1.24", *versions(OLDEST, lowest)[:-1]):
        (first, *_) = version_faults(rendered[name], version)
        assert re.search(r"1\.\d\d or later; this one is " + re.escape(version), first)
    assert versions(lowest)[-1] == NEWEST


def test_schemas_refuse_what_they_do_not_know(by_schema: dict[tuple[str, str], list[str]]) -> None:
    assert any("restartPolicy" in fault for fault in by_schema["base", "1.27"])
    assert any("'image' was unexpected" in fault for fault in by_schema["signed-image-volume", "1.30"])
    assert any("ResourceClaimTemplate" in fault for fault in by_schema["gpu-claim", "1.33"])


@pytest.mark.parametrize("name", COMPONENTS)
def test_an_overlay_has_each_component(name: str) -> None:
    texts = [(folder(overlay) / "kustomization.yaml").read_text("utf-8") for overlay in OVERLAYS]
    assert any(f"components/{name}\n" in text for text in texts)


@pytest.mark.parametrize("name", NAMES)
def test_deploy_readme_tells_what_it_is_for_and_its_lowest_version(
    rendered: dict[str, list[Object]], root: Path, name: str
) -> None:
    readme = (root / "deploy/README.md").read_text("utf-8")
    label = "base" if name == "base" else f"overlays/{name}"
    (row,) = [line for line in readme.splitlines() if line.startswith(f"| `{label}` |")]
    assert [cell.strip() for cell in row.strip("|").split("|")][-1] == lowest_version(rendered[name])


def deployment(objects: list[Object]) -> Any:
    (found,) = [one for one in objects if one["kind"] == "Deployment"]
    return found


def test_a_bundle_is_verified_before_the_guard_starts(rendered: dict[str, list[Object]]) -> None:
    for name, before in {
        "signed-claim": ["verify-bundle", "guard"],
        "signed-image-volume": ["verify-bundle", "guard"],
        "signed-init": ["fetch-bundle", "verify-bundle", "guard"],
        "production-plain": ["verify-bundle"],
    }.items():
        (pod,) = pods(rendered[name])
        assert [one["name"] for one in pod.before] == before
        verify = next(one for one in pod.before if one["name"] == "verify-bundle")
        settings = pod.settings(rendered[name])
        assert verify["args"] == ["inspect", settings.bundle, f"--trusted-key={settings.trusted_keys[0]}"]
        assert verify["image"].partition(":")[0] == "inference-guard"


def test_init_containers_refuse_what_was_changed_since_it_was_signed(
    rendered: dict[str, list[Object]], tmp_path: Path
) -> None:
    """Runs the command lines of both init containers, with folders in the places of the mounts."""
    bundle = tiny_bundle.make(tmp_path / "made")
    sign_as_trusted(bundle, tmp_path)
    (pod,) = pods(rendered["signed-init"])
    shutil.copytree(bundle.path, tmp_path / "models")
    places = {"/models": tmp_path / "models", "/target": tmp_path / "target", "/bundle": tmp_path / "target"}
    places["/etc/guard-keys"] = tmp_path
    (tmp_path / "target").mkdir()
    fetch, verify = (one for one in pod.before if one["name"] != "guard")
    assert run_as(fetch["command"], places) == 0
    arguments = [sys.executable, "-m", "guard", *verify["args"]]
    assert run_as(arguments, places) == 0
    (tmp_path / "target/weights.bin").write_bytes(b"others")
    assert run_as(arguments, places) == BundleError.exit_code


def sign_as_trusted(bundle: Bundle, folder: Path) -> None:
    """Sign a bundle with a new key, whose public part is laid down as the overlays want it."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    (folder / "key.pem").write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / "signer.pub").write_bytes(public)
    sign(bundle, folder / "key.pem", ask=lambda: "")


def run_as(words: list[str], places: dict[str, Path]) -> int:
    """Run a command with other paths in the places of a container's, and return its exit code."""
    for path, place in places.items():
        words = [re.sub(rf"(^|=){path}(?=$|/)", rf"\g<1>{place}", word) for word in words]
    return subprocess.run(words, capture_output=True, check=False).returncode


def test_settings_change_in_place_under_a_name_without_a_hash(rendered: dict[str, list[Object]]) -> None:
    names = {
        overlay: [one["metadata"]["name"] for one in rendered[overlay] if one["kind"] == "ConfigMap"]
        for overlay in ("base", "reload")
    }
    assert names["reload"] == ["guard-config"]
    assert re.fullmatch(r"guard-config-[a-z0-9]{10}", names["base"][0])
    (pod,) = pods(rendered["reload"])
    assert pod.settings(rendered["reload"]).watch_files


def test_the_plain_container_is_the_native_sidecar_in_another_place(rendered: dict[str, list[Object]]) -> None:
    (native,), (plain,) = pods(rendered["base"]), pods(rendered["plain-container"])
    assert [one["name"] for one in plain.beside] == ["guard", "model-server"]
    assert plain.guard == {key: value for key, value in native.guard.items() if key != "restartPolicy"}
    assert plain.before == []


def test_scaling_leaves_the_replicas_to_the_scaler(rendered: dict[str, list[Object]]) -> None:
    for name in ("autoscaled", "autoscaled-keda", "production"):
        assert "replicas" not in deployment(rendered[name])["spec"]


def test_the_two_share_one_device(rendered: dict[str, list[Object]]) -> None:
    for name in ("gpu-shared", "gpu-claim"):
        (pod,) = pods(rendered[name])
        guard, (model_server,) = pod.guard, pod.beside
        settings = pod.settings(rendered[name])
        assert settings.device == "cuda"
        assert settings.device_memory_bytes
        assert guard["image"].endswith(":cuda")
        for kind in ("claims",) if name == "gpu-claim" else ("requests", "limits"):
            asked = [one["resources"][kind] for one in (guard, model_server)]
            assert asked[0] == asked[1] if kind == "claims" else all("nvidia.com/gpu.shared" in one for one in asked)


def test_tls_is_told_to_those_who_route(rendered: dict[str, list[Object]]) -> None:
    for name, protocol in {"base": "kubernetes.io/h2c", "tls": "https", "production": "https"}.items():
        (service,) = [one for one in rendered[name] if one["kind"] == "Service"]
        assert [port["appProtocol"] for port in service["spec"]["ports"]] == [protocol]

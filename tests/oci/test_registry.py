"""Bundles pushed to a real registry and pulled from it, by the guard and by skopeo, and how that fails."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from guard.bundle import Bundle
from guard.oci.pack import pack
from guard.oci.unpack import unpack
from guard.signing import Trust
from tests.oci.images import manifest_in
from tests.oci.registry_process import guard, missing, registry_process, skopeo
from tests.serve import tiny_bundle

pytestmark = [pytest.mark.slow, pytest.mark.large]
NOBODY = Trust.of(())
# "guard:secret", as `htpasswd -B` writes it.
HTPASSWD = "guard:$2b$04$Jt6EizGxZN07igSV3XszHue/p4UyjWzaijZiphcad9lcjF7Er2zPa\n"


@pytest.fixture(scope="module", autouse=True)
def registry_is_built(no_registry: str) -> None:
    if missing() is not None:
        pytest.skip(no_registry)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("registry") / "bundle", version="7")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, registry_is_built: None) -> Iterator[str]:
    with registry_process(tmp_path_factory.mktemp("images")) as address:
        yield address


def lines(done: subprocess.CompletedProcess[str]) -> dict[str, str]:
    assert done.returncode == 0, done.stderr
    return dict(line.split(None, 1) for line in done.stdout.splitlines())


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_what_is_pushed_is_pulled(bundle: Bundle, registry: str, tmp_path: Path) -> None:
    place = f"oci://{registry}/guards/tiny:7"
    pushed = lines(guard("pack", bundle.path, "--out", place))
    packed = pack(bundle, tmp_path / "layout")
    assert pushed["digest"] == packed.digest  # known before it is pushed
    assert lines(guard("pack", bundle.path, "--out", place)) == pushed  # which changes nothing
    pulled = lines(guard("unpack", place, "--out", tmp_path / "pulled"))
    assert pulled["image"] == pushed["image"] == f"{registry}/guards/tiny@{packed.digest}"
    assert Bundle.open(tmp_path / "pulled").digest == bundle.digest
    lines(guard("unpack", f"oci://{pushed['image']}", "--out", tmp_path / "pinned"))
    assert Bundle.open(tmp_path / "pinned").digest == bundle.digest
    assert sorted(file.name for file in tmp_path.iterdir()) == ["layout", "pinned", "pulled"]


def test_another_tool_sees_the_same(bundle: Bundle, registry: str, tmp_path: Path) -> None:
    lines(guard("pack", bundle.path, "--out", f"oci://{registry}/seen:1"))
    seen = json.loads(skopeo("inspect", "--tls-verify=false", f"docker://{registry}/seen:1"))
    assert seen["Digest"] == pack(bundle, tmp_path / "image.tar").digest
    assert seen["Labels"]["guard.v1.bundle.digest"] == bundle.digest
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/seen:1", f"oci:{tmp_path}/copied:1")
    assert unpack(tmp_path / "copied", tmp_path / "copy", NOBODY)[0].digest == bundle.digest
    skopeo("copy", "--dest-tls-verify=false", f"oci-archive:{tmp_path}/image.tar", f"docker://{registry}/sent:1")
    lines(guard("unpack", f"oci://{registry}/sent:1", "--out", tmp_path / "sent"))
    assert Bundle.open(tmp_path / "sent").digest == bundle.digest


def test_an_image_of_dockers_format_is_pulled(bundle: Bundle, registry: str, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "image.tar")
    copied = ("copy", "--dest-tls-verify=false", "--format=v2s2", f"oci-archive:{tmp_path}/image.tar")
    skopeo(*copied, f"docker://{registry}/docker:1")
    lines(guard("unpack", f"oci://{registry}/docker:1", "--out", tmp_path / "pulled"))
    assert Bundle.open(tmp_path / "pulled").digest == bundle.digest


def test_what_is_not_there(bundle: Bundle, registry: str, tmp_path: Path) -> None:
    refused(guard("unpack", f"oci://{registry}/guards/tiny:none", "--out", tmp_path / "x"), 5, "is not there", "tag")
    digest = "sha256:" + "0" * 64
    refused(guard("unpack", f"oci://{registry}/guards/tiny@{digest}", "--out", tmp_path / "x"), 5, "is not there")
    refused(guard("pack", bundle.path, "--out", f"oci://{registry}/guards/tiny@{digest}"), 2, "name a tag")
    refused(guard("pack", bundle.path, "--out", "oci://127.0.0.1:9/guards/tiny:1"), 10, "cannot be reached")
    refused(guard("pack", bundle.path, "--out", "oci://nowhere.invalid/guards/tiny:1"), 10, "cannot be reached")
    assert not list(tmp_path.iterdir())


def test_an_image_that_was_changed_in_the_registry(bundle: Bundle, tmp_path: Path) -> None:
    """Whoever can write to the registry's disk, or stands between, gets no bundle in."""
    with registry_process(tmp_path) as address:
        place = f"oci://{address}/guards/tiny:1"
        lines(guard("pack", bundle.path, "--out", place))
        pack(bundle, tmp_path / "layout")
        layer = manifest_in(tmp_path / "layout")[0]["layers"][0]["digest"].removeprefix("sha256:")
        (blob,) = (tmp_path / "images").rglob(f"{layer}/data")
        content = bytearray(blob.read_bytes())
        content[100] ^= 1
        blob.write_bytes(content)
        refused(guard("unpack", place, "--out", tmp_path / "out"), 5, "altered")
        blob.write_bytes(bytes(content) + b"more")
        refused(guard("unpack", place, "--out", tmp_path / "out"), 5)
        assert not (tmp_path / "out").exists()


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    """The address of a registry that wants a password."""
    (tmp_path / "htpasswd").write_text(HTPASSWD, encoding="utf-8")
    with registry_process(
        tmp_path, auth={"htpasswd": {"realm": "test", "path": str(tmp_path / "htpasswd")}}
    ) as address:
        yield address


def test_a_registry_that_wants_a_password(bundle: Bundle, closed: str, tmp_path: Path) -> None:
    def log_in(password: str) -> str:
        word = base64.b64encode(f"guard:{password}".encode()).decode()
        (tmp_path / "config.json").write_text(json.dumps({"auths": {closed: {"auth": word}}}), encoding="utf-8")
        return str(tmp_path)

    place = f"oci://{closed}/guards/tiny:1"
    refused(guard("pack", bundle.path, "--out", place), 2, "wants a password", "docker login")
    wrong = guard("pack", bundle.path, "--out", place, DOCKER_CONFIG=log_in("wrong"))
    refused(wrong, 2, "accepts no credentials", "docker login")
    assert "wrong" not in wrong.stderr
    lines(guard("pack", bundle.path, "--out", place, DOCKER_CONFIG=log_in("secret")))
    lines(guard("unpack", place, "--out", tmp_path / "out", DOCKER_CONFIG=log_in("secret")))
    assert Bundle.open(tmp_path / "out").digest == bundle.digest
    refused(guard("unpack", place, "--out", tmp_path / "other"), 2, "docker login")


def test_a_registry_with_a_certificate_of_ones_own(bundle: Bundle, tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "certificate.pem"))
    tls = {"certificate": str(tmp_path / "certificate.pem"), "key": str(tmp_path / "key.pem")}
    with registry_process(tmp_path, tls=tls) as address:
        place = f"oci://{address}/guards/tiny:1"
        assert guard("pack", bundle.path, "--out", place).returncode != 0  # nobody trusts it
        lines(guard("pack", bundle.path, "--out", place, REQUESTS_CA_BUNDLE=str(tmp_path / "ca.pem")))
        trusted = guard("unpack", place, "--out", tmp_path / "out", REQUESTS_CA_BUNDLE=str(tmp_path / "ca.pem"))
        lines(trusted)
    assert Bundle.open(tmp_path / "out").digest == bundle.digest


def test_the_pulled_bundle_gives_the_same_verdicts(bundle: Bundle, registry: str, tmp_path: Path) -> None:
    import guard as package

    lines(guard("pack", bundle.path, "--out", f"oci://{registry}/served:1"))
    lines(guard("unpack", f"oci://{registry}/served:1", "--out", tmp_path / "pulled"))
    images = tiny_bundle.clean(20, seed=4)
    there, here = (package.open(path).inspect(images) for path in (tmp_path / "pulled", bundle.path))
    assert there.readings.p_value.tolist() == here.readings.p_value.tolist()
    shutil.rmtree(tmp_path / "pulled")

"""Bundles packed as images: the same bytes always, what a node mounts is the bundle, and provenance travels along."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from guard import cli
from guard.bundle import SIGNATURE, Bundle
from guard.errors import BundleError
from guard.oci.pack import pack
from guard.oci.unpack import unpack
from guard.signing import Trust, open_trusted, sign
from tests.oci.images import manifest_in
from tests.serve import tiny_bundle
from tests.test_signing import nobody, write_key

PROVENANCE = {
    "calibrated": {"parent": "ab" * 32},
    "sources": {
        "data": {"items": 3, "digest": "sha256:" + "cd" * 32},
        "test": {"items": 1, "digest": "sha256:" + "0" * 64},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pack")


@pytest.fixture(scope="module")
def keys(folder: Path) -> Path:
    """ours.pem and ours.pub."""
    return write_key(folder, "ours", ec.generate_private_key(ec.SECP256R1())).parent


@pytest.fixture(scope="module")
def signed(folder: Path, keys: Path) -> Bundle:
    bundle = tiny_bundle.make(folder / "bundle", version="7", provenance=PROVENANCE)
    sign(bundle, keys / "ours.pem", ask=nobody)
    return bundle


def mounted(layout: Path, place: Path) -> Path:
    """What an image volume shows: the layers laid out by another program."""
    place.mkdir()
    for layer in manifest_in(layout)[0]["layers"]:
        blob = layout / "blobs/sha256" / layer["digest"].removeprefix("sha256:")
        subprocess.run(["tar", "-xzf", blob, "-C", place], check=True)
    return place / "models"


def test_the_same_bundle_is_the_same_image(signed: Bundle, tmp_path: Path) -> None:
    other = Path(shutil.copytree(signed.path, tmp_path / "elsewhere"))
    for file in other.iterdir():
        os.utime(file, (1, 1))
        file.chmod(0o600)
    packed = pack(signed, tmp_path / "one.tar")
    assert pack(Bundle.open(other), tmp_path / "two.tar") == packed
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    assert pack(signed, tmp_path / "layout") == packed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["elsewhere", "layout", "one.tar", "two.tar"]


def test_a_mounted_image_is_the_bundle_and_its_signature_holds(signed: Bundle, keys: Path, tmp_path: Path) -> None:
    pack(signed, tmp_path / "layout")
    found = mounted(tmp_path / "layout", tmp_path / "volume")
    bundle, signer = open_trusted(found, Trust.of([keys / "ours.pub"]))
    assert bundle.digest == signed.digest
    assert signer is not None
    assert {file.name for file in found.iterdir()} == {*signed.files, "manifest.json", SIGNATURE}
    assert {oct(file.stat().st_mode & 0o777) for file in found.iterdir()} <= {"0o644"}  # for whoever the guard runs as


@pytest.mark.slow
def test_model_signing_accepts_what_was_unpacked(
    signed: Bundle, keys: Path, side: Callable[[str], Path], tmp_path: Path
) -> None:
    pack(signed, tmp_path / "image.tar")
    unpack(tmp_path / "image.tar", tmp_path / "elsewhere", Trust.of(()))
    command = [str(side("signing") / "python"), "-m", "model_signing", "verify", "key", "elsewhere"]
    command += ["--signature", f"elsewhere/{SIGNATURE}", "--public_key", str(keys / "ours.pub")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path, env=environment)


def test_provenance_is_in_manifest_and_configuration(signed: Bundle, tmp_path: Path) -> None:
    pack(signed, tmp_path / "layout")
    manifest, _ = manifest_in(tmp_path / "layout")
    said = manifest["annotations"]
    assert said["guard.v1.bundle.digest"] == signed.digest
    assert said["guard.v1.bundle.identity"] == signed.identity
    assert said["guard.v1.parent"] == "ab" * 32
    assert said["guard.v1.source.data"] == "sha256:" + "cd" * 32
    assert said["guard.v1.model.name"] == tiny_bundle.MODEL_NAME
    assert said["org.opencontainers.image.version"] == "7"
    assert "org.opencontainers.image.created" not in said
    assert all(isinstance(text, str) and text for text in said.values())
    blob = tmp_path / "layout/blobs/sha256" / manifest["config"]["digest"].removeprefix("sha256:")
    assert json.loads(blob.read_bytes())["config"]["Labels"] == said


def test_a_foreign_provenance_is_no_hindrance(folder: Path, tmp_path: Path) -> None:
    odd = tiny_bundle.make(tmp_path / "odd", provenance={"calibrated": 3, "sources": ["data"]})
    pack(odd, tmp_path / "layout")
    assert "guard.v1.parent" not in manifest_in(tmp_path / "layout")[0]["annotations"]


def test_an_image_is_dated_where_that_is_asked_for(
    signed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    pack(signed, tmp_path / "layout")
    assert (
        manifest_in(tmp_path / "layout")[0]["annotations"]["org.opencontainers.image.created"] == "1970-01-02T00:00:00Z"
    )


@pytest.mark.parametrize("epoch", ["yesterday", "1.5", "9" * 30])
def test_a_date_that_is_none_is_refused(
    signed: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], epoch: str
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert cli.run(["pack", str(signed.path), "--out", str(tmp_path / "layout")]) == 2
    assert "wanted seconds" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["layout", "layout.tar"])
def test_nothing_is_written_over(signed: Bundle, tmp_path: Path, out: str) -> None:
    (tmp_path / out).write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match="is not written over"):
        pack(signed, tmp_path / out)
    assert (tmp_path / out).read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", ["samples.npz", "manifest.json"])
def test_what_changes_after_it_was_opened_is_not_packed(signed: Bundle, tmp_path: Path, name: str) -> None:
    bundle = Bundle.open(shutil.copytree(signed.path, tmp_path / "bundle"))
    content = bytearray((bundle.path / name).read_bytes())
    content[-3] ^= 1
    (bundle.path / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} was altered"):
        pack(bundle, tmp_path / "layout")
    assert [file.name for file in tmp_path.iterdir()] == ["bundle"]


def test_pack_and_unpack_on_the_command_line(
    signed: Bundle, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, out = str(tmp_path / "deep/image.tar"), tmp_path / "deeper/bundle"
    assert cli.run(["pack", str(signed.path), "--out", image]) == 0
    assert "digest    sha256:" in capsys.readouterr().out
    assert cli.run(["unpack", image, "--out", str(out), "--trusted-key", str(keys / "ours.pub")]) == 0
    assert "verified" in capsys.readouterr().out
    assert Bundle.open(out).digest == signed.digest


def test_inspect_shows_where_a_bundle_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated = {"parent": "ab" * 32, "items": 1234}
    bundle = tiny_bundle.make(tmp_path / "bundle", provenance={**PROVENANCE, "calibrated": calibrated})
    assert cli.run(["inspect", str(bundle.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "made from data: 3 items, sha256 " + "cd" * 8 in said
    assert "parent " + "ab" * 8 + ", its thresholds set anew on 1,234 items" in said
    assert "made by guard tests" in said

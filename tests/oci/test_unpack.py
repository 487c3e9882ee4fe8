"""Images taken apart: those of other tools are read, damaged and hostile ones write nothing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from guard.bundle import Bundle
from guard.errors import BundleError
from guard.oci import unpack as unpacking
from guard.oci.image import INDEX_TYPE, MAX_DOCUMENT_BYTES, document
from guard.oci.pack import pack
from guard.oci.unpack import unpack
from guard.signing import Trust
from tests.oci.images import Image, files_of, manifest_in, member, sparse_member, tar_of
from tests.serve import tiny_bundle
from tests.test_signing import write_key

NOBODY = Trust.of(())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("unpack") / "bundle")


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image")


def unpacked(layout: Path, tmp_path: Path) -> str:
    return unpack(layout, tmp_path / "out", NOBODY)[0].digest


def refused(source: Path, tmp_path: Path, *words: str, trust: Trust = NOBODY) -> None:
    """Nothing is written beside the image, and the message has these words."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(BundleError) as caught:
        unpack(source, tmp_path / "out", trust)
    assert set(tmp_path.rglob("*")) == before
    for word in words:
        assert word in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    "layer_type",
    [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.v1.tar+gzip",
        "application/vnd.docker.image.rootfs.diff.tar.gzip",
    ],
)
def test_layers_of_other_tools(bundle: Bundle, image: Image, tmp_path: Path, layer_type: str) -> None:
    layout = image.index(image.manifest([files_of(bundle.path)], layer_type=layer_type))
    assert unpacked(layout, tmp_path) == bundle.digest


@pytest.mark.parametrize("folder", ["./models/", "/models/"])
def test_names_that_begin_at_the_root(bundle: Bundle, image: Image, tmp_path: Path, folder: str) -> None:
    assert unpacked(image.index(image.manifest([files_of(bundle.path, folder)])), tmp_path) == bundle.digest


def test_a_bundle_on_top_of_a_base_image(bundle: Bundle, image: Image, tmp_path: Path) -> None:
    """As KServe's modelcars: a shell below, and what lower layers had in the folder taken away."""
    base = [member("bin/sh", b"shell"), member("models", kind=tarfile.DIRTYPE), member("models/old.onnx", b"old")]
    removal = [member("models/.wh.old.onnx"), member("etc/link", kind=tarfile.SYMTYPE, target="/etc/passwd")]
    layout = image.index(image.manifest([base, removal, files_of(bundle.path)]))
    assert unpacked(layout, tmp_path) == bundle.digest


@pytest.mark.parametrize("whiteout", [".wh.models", "models/.wh..wh..opq"])
def test_a_folder_that_a_layer_empties(bundle: Bundle, image: Image, tmp_path: Path, whiteout: str) -> None:
    layers = [[member("models/old.onnx", b"old")], [member(whiteout)], files_of(bundle.path)]
    assert unpacked(image.index(image.manifest(layers)), tmp_path) == bundle.digest


def test_an_index_of_platforms_with_attestations(bundle: Bundle, image: Image, tmp_path: Path) -> None:
    """As builders write it: an index in the index, one image for each platform, and what they attest of them."""
    manifest = image.manifest([files_of(bundle.path)])
    attested = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    of = [{**manifest, "platform": {"architecture": one, "os": "linux"}} for one in ("arm64", "amd64")]
    inner = image.put(document({"schemaVersion": 2, "manifests": [{**manifest, **attested}, *of]}), INDEX_TYPE)
    assert unpacked(image.index(inner), tmp_path) == bundle.digest


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (member("models/link", kind=tarfile.SYMTYPE, target="/etc/passwd"), "no plain file"),
        (member("models/hardlink", kind=tarfile.LNKTYPE, target="etc/passwd"), "no plain file"),
        (member("models/pipe", kind=tarfile.FIFOTYPE), "no plain file"),
        (member("models/sub/x.onnx", b"x"), "a folder of its own"),
        (member("models/../escaped", b"x"), "a folder of its own"),
        (member("models/../../escaped", b"x"), "a folder of its own"),
        (member("models", b"x"), "a folder of its own"),
        (member("models/.wh.../escaped"), "a folder of its own"),
        (member("models/extra.onnx", b"x"), "not named in the manifest"),
        (member("models/samples.npz", b"x"), "altered"),
    ],
    ids=lambda one: one[0].name if isinstance(one, tuple) else "",
)
def test_what_is_no_bundle_is_not_written(bundle: Bundle, image: Image, tmp_path: Path, bad: Any, words: str) -> None:
    refused(image.index(image.manifest([[*files_of(bundle.path), bad]])), tmp_path, words)


def test_members_that_lie_elsewhere_are_not_written(bundle: Bundle, image: Image, tmp_path: Path) -> None:
    """What climbs out of the image by its name lies outside of `models/`, and is ignored like all of a base image."""
    astray = [member("../escaped", b"x"), member("/escaped", b"x"), member("models2/x", b"x")]
    assert unpacked(image.index(image.manifest([[*astray, *files_of(bundle.path)]])), tmp_path) == bundle.digest
    assert not list(tmp_path.rglob("*escaped*"))


def test_an_image_without_a_bundle(image: Image, tmp_path: Path) -> None:
    refused(image.index(image.manifest([[member("bin/sh", b"x")]])), tmp_path, "no file in /models", "COPY")


def test_a_layer_that_is_not_what_its_configuration_says(bundle: Bundle, image: Image, tmp_path: Path) -> None:
    manifest = image.manifest([files_of(bundle.path)], diff_ids=["sha256:" + "0" * 64])
    refused(image.index(manifest), tmp_path, "its configuration says")


def test_a_layer_that_would_fill_the_disk(
    bundle: Bundle, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 2**20)
    layout = image.index(image.manifest([[*files_of(bundle.path), member("bin/zeros", bytes(2**24))]]))
    refused(layout, tmp_path, "unpacks to more than")


SPARSE = ("old GNU", "PAX 0.0", "PAX 0.1", "PAX 1.0")


@pytest.mark.parametrize("form", SPARSE)
def test_a_sparse_member_is_what_it_is_taken_for(form: str) -> None:
    """The planted ones unpack to what they say, as tarfile reads them; else the tests below would show nothing."""
    with tarfile.open(fileobj=io.BytesIO(tar_of([sparse_member("models/x", form, 2**20)]))) as tar:
        (found,) = tar
        assert (found.name, found.size, found.issparse(), found.isfile()) == ("models/x", 2**20, True, True)
        content = tar.extractfile(found)
        assert content is not None
        assert content.read() == (b"x" * 512).ljust(2**20, b"\0")


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("layer_type", ["tar", "tar+gzip"])
def test_a_sparse_member_of_a_layer_is_refused(
    bundle: Bundle, image: Image, tmp_path: Path, form: str, layer_type: str
) -> None:
    layer = [sparse_member("models/samples.npz", form, 2**50), *files_of(bundle.path)]
    manifest = image.manifest([layer], layer_type=f"application/vnd.oci.image.layer.v1.{layer_type}")
    refused(image.index(manifest), tmp_path, "is sparse")


@pytest.mark.parametrize("form", SPARSE)
@pytest.mark.parametrize("name", ["index.json", "blobs/sha256/" + "0" * 64])
def test_a_sparse_part_of_an_archive_is_refused(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / "image.tar").write_bytes(tar_of([sparse_member(name, form, 2**50)]))
    refused(tmp_path / "image.tar", tmp_path, "is sparse")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_a_header_that_would_fill_the_memory(
    bundle: Bundle, image: Image, tmp_path: Path, kind: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpacking, "MAX_HEADER_BYTES", 2**16)
    layer = [member("long", bytes(2**16 + 1), kind), *files_of(bundle.path)]
    refused(image.index(image.manifest([layer])), tmp_path, "a header has 65537 bytes")


def test_members_are_not_kept(bundle: Bundle, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    def watched(tar: tarfile.TarFile, found: tarfile.TarInfo, folder: Path) -> None:
        nonlocal most
        most = max(most, len(tar.members))
        take(tar, found, folder)

    take = unpacking.take
    monkeypatch.setattr(unpacking, "take", watched)
    many = [member(f"bin/{number}") for number in range(100)]
    assert unpacked(image.index(image.manifest([[*many, *files_of(bundle.path)]])), tmp_path) == bundle.digest
    assert most <= 1


def damage(act: Callable[[Path, dict[str, Any], Path], None]) -> Any:
    return pytest.param(act, id=act.__name__)


def a_flipped_byte(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    layer = layout / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    content = bytearray(layer.read_bytes())
    content[len(content) // 2] ^= 1
    layer.write_bytes(content)


def a_longer_layer(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    layer = layout / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")
    layer.write_bytes(layer.read_bytes() + b"\0")


def a_missing_layer(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    (layout / "blobs/sha256" / manifest["layers"][0]["digest"].removeprefix("sha256:")).unlink()


def a_changed_manifest(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    file.write_bytes(file.read_bytes().replace(b"models", b"m0dels").replace(b"tiny", b"t1ny"))


def no_index(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    (layout / "index.json").unlink()


def an_index_of_nothing(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    (layout / "index.json").write_text('{"manifests": []}')


def an_index_that_is_no_json(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    (layout / "index.json").write_text("{")


def an_index_that_is_a_list(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    (layout / "index.json").write_text("[]")


def a_digest_that_is_a_path(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    text = (layout / "index.json").read_text()
    (layout / "index.json").write_text(text.replace(file.name, "../../../../etc/passwd"))


def a_size_that_is_no_number(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["size"] = "many"
    (layout / "index.json").write_text(json.dumps(index))


def a_huge_manifest(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"][0]["size"] = MAX_DOCUMENT_BYTES + 1
    (layout / "index.json").write_text(json.dumps(index))


def two_images(layout: Path, manifest: dict[str, Any], file: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    index["manifests"].append({**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": "b"}})
    (layout / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "act",
    [
        damage(act)
        for act in (
            a_flipped_byte,
            a_longer_layer,
            a_missing_layer,
            a_changed_manifest,
            no_index,
            an_index_of_nothing,
            an_index_that_is_no_json,
            an_index_that_is_a_list,
            a_digest_that_is_a_path,
            a_size_that_is_no_number,
            a_huge_manifest,
            two_images,
        )
    ],
)
def test_a_damaged_layout_is_refused(
    bundle: Bundle, tmp_path: Path, act: Callable[[Path, dict[str, Any], Path], None]
) -> None:
    layout = tmp_path / "layout"
    pack(bundle, layout)
    act(layout, *manifest_in(layout))
    refused(layout, tmp_path)


@pytest.mark.parametrize("kind", ["application/vnd.oci.image.layer.v1.tar+zstd", "application/octet-stream"])
def test_a_layer_of_another_kind(bundle: Bundle, image: Image, tmp_path: Path, kind: str) -> None:
    refused(image.index(image.manifest([files_of(bundle.path)], layer_type=kind)), tmp_path, kind, "gzip")


def test_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "image.tar").write_bytes(b"no archive" * 100)
    refused(tmp_path / "image.tar", tmp_path, "no archive of an image")
    refused(tmp_path / "nothing", tmp_path, "is not there")


def test_a_bundle_without_a_signature_where_one_is_wanted(bundle: Bundle, tmp_path: Path) -> None:
    key = write_key(tmp_path, "ours", ec.generate_private_key(ec.SECP256R1()))
    pack(bundle, tmp_path / "layout")
    refused(tmp_path / "layout", tmp_path, "not signed", trust=Trust.of([key.with_suffix(".pub")]))


def test_a_bundle_is_not_written_over(bundle: Bundle, tmp_path: Path) -> None:
    pack(bundle, tmp_path / "layout")
    (tmp_path / "out").mkdir()
    refused(tmp_path / "layout", tmp_path, "is not written over")

"""A bundle is whole or it is no bundle; it is never changed, and nothing reaches outside it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from guard.bundle import MANIFEST, Bundle, Samples, write_bundle
from guard.calibration import Calibration
from guard.errors import BundleError
from guard.manifest import FORMAT_VERSION, Manifest
from tests.serve import tiny_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return tiny_bundle.make(tmp_path_factory.mktemp("bundle") / "original")


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(original.path, tmp_path / "bundle"))


def contents(bundle: Bundle) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in bundle.path.iterdir() if file.name != MANIFEST}


def rewrite(bundle: Path, change: Callable[[dict[str, Any]], None]) -> None:
    raw = json.loads((bundle / MANIFEST).read_text("utf-8"))
    change(raw)
    (bundle / MANIFEST).write_text(json.dumps(raw), "utf-8")


def vouch(bundle: Path, name: str) -> None:
    """Write a file's true digest into the manifest, as whoever altered it on purpose would."""
    digest = hashlib.sha256((bundle / name).read_bytes()).hexdigest()
    rewrite(bundle, lambda raw: raw["files"].update({name: digest}))


def read_whole(path: Path) -> tuple[Calibration, Samples]:
    bundle = Bundle.open(path)
    return bundle.calibration, bundle.samples


def refused(bundle: Path, *words: str) -> None:
    """One line that names the path and what is wrong, and the spoilt copy is left as it was."""
    before = sorted(bundle.iterdir()) if bundle.is_dir() else []
    with pytest.raises(BundleError) as caught:
        read_whole(bundle)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message
    assert before == (sorted(bundle.iterdir()) if bundle.is_dir() else [])


def test_it_opens_as_it_was_written(original: Bundle) -> None:
    again = Bundle.open(original.path)
    assert again.manifest == original.manifest
    assert again.digest == original.digest == hashlib.sha256((original.path / MANIFEST).read_bytes()).hexdigest()
    assert again.calibration.items == tiny_bundle.ITEMS


def test_a_manifest_survives_json(original: Bundle) -> None:
    raw = json.loads(original.manifest.to_json({"a": "b"}))
    assert raw.pop("files") == {"a": "b"}
    assert Manifest.from_json(raw) == original.manifest


@pytest.mark.parametrize(
    "make", [lambda path: None, lambda path: path.write_text("x"), Path.mkdir], ids=["nothing", "file", "empty folder"]
)
def test_what_is_no_bundle(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "x")
    refused(tmp_path / "x", str(tmp_path / "x"), "not a bundle")


FILES = ["screen.onnx", "interpret.onnx", "steps.onnx", "calibration.npz", "samples.npz"]


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    refused(bundle, name, "missing")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_which_one_bit_was_altered(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    refused(bundle, name, "altered")


@pytest.mark.parametrize("name", FILES)
def test_a_file_cut_short(bundle: Path, name: str) -> None:
    (bundle / name).write_bytes((bundle / name).read_bytes()[:-20])
    refused(bundle, name, "altered")


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_the_manifest_does_not_vouch_for(bundle: Path, name: str) -> None:
    rewrite(bundle, lambda raw: raw["files"].pop(name))
    refused(bundle, name)


def test_a_file_added(bundle: Path) -> None:
    (bundle / "more.bin").write_bytes(b"x")
    refused(bundle, "more.bin")


@pytest.mark.parametrize("name", ["calibration.npz", "samples.npz"])
@pytest.mark.parametrize("spoilt", ["half", "empty", "text"])
def test_arrays_damaged_by_somebody_who_vouches_for_them(bundle: Path, name: str, spoilt: str) -> None:
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes({"half": content[: len(content) // 2], "empty": b"", "text": b"no"}[spoilt])
    vouch(bundle, name)
    refused(bundle, name, "cannot be read")


def test_arrays_are_never_unpickled(bundle: Path) -> None:
    np.savez(bundle / "samples.npz", images=np.asarray([{"a": 1}], dtype=object))
    vouch(bundle, "samples.npz")
    refused(bundle, "samples.npz", "cannot be read")


def test_samples_that_lack_an_array(bundle: Path) -> None:
    np.savez(bundle / "samples.npz", images=np.zeros(1))
    vouch(bundle, "samples.npz")
    refused(bundle, "samples.npz", "logits")


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "sub/inside", "..", ".", "", MANIFEST])
def test_names_that_lead_elsewhere(bundle: Path, name: str) -> None:
    (bundle.parent / "outside").write_bytes(b"x")
    digest = hashlib.sha256(b"x").hexdigest()
    rewrite(bundle, lambda raw: raw["files"].update({name: digest}))
    refused(bundle)


def test_a_program_that_leads_elsewhere(bundle: Path) -> None:
    shutil.copy(bundle / "screen.onnx", bundle.parent / "screen.onnx")
    rewrite(bundle, lambda raw: raw["programs"][0].update(file="../screen.onnx"))
    refused(bundle, "../screen.onnx")


def test_what_a_mount_leaves_behind_is_let_be(bundle: Path, original: Bundle) -> None:
    (bundle / "lost+found").mkdir()
    (bundle / "..data").write_bytes(b"x")
    shutil.move(bundle / "screen.onnx", bundle / "..screen.onnx")
    (bundle / "screen.onnx").symlink_to("..screen.onnx")
    assert Bundle.open(bundle).digest == original.digest


@pytest.mark.parametrize("found", [0, FORMAT_VERSION + 1, None, "1", 1.5])
def test_another_format(bundle: Path, found: object) -> None:
    rewrite(bundle, lambda raw: raw.update(format=found))
    refused(bundle, "format", repr(found), str(FORMAT_VERSION))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xff", b'{"format": 2}', b'{"format": 2, "files": []}']
)
def test_a_foreign_manifest(bundle: Path, content: bytes) -> None:
    (bundle / MANIFEST).write_bytes(content)
    refused(bundle, MANIFEST)


@pytest.mark.parametrize(
    "key",
    ["model", "programs", "detectors", "repairs", "reject_rate", "flag_rate", "recipe", "seed", "made_by", "files"],
)
@pytest.mark.parametrize("value", [None, 7, "x"])
def test_a_manifest_with_a_field_of_another_kind(bundle: Path, key: str, value: object) -> None:
    if (key, value) in {("seed", 7), ("reject_rate", 7), ("flag_rate", 7)}:
        rewrite(bundle, lambda raw: raw.pop(key))
    else:
        rewrite(bundle, lambda raw: raw.update({key: value}))
    refused(bundle, MANIFEST)


def test_a_program_with_a_field_too_many(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["programs"][0].update(colour="red"))
    refused(bundle, MANIFEST, "colour")


def test_a_datatype_that_we_do_not_read(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["model"]["input"].update(datatype="BF16"))
    refused(bundle, "BF16", "FP32")


def test_a_layout_that_we_do_not_read(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["model"]["input"].update(layout="HWCN"))
    refused(bundle, "HWCN", "NHWC")


def test_a_manifest_from_before_there_were_layouts(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["model"]["input"].pop("layout"))
    assert Bundle.open(bundle).manifest.model.input.layout == "NCHW"


def test_a_manifest_from_before_one_number_an_item_was_known(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["model"]["output"].pop("single"))
    output = Bundle.open(bundle).manifest.model.output
    assert (output.single, output.columns) == (False, output.classes)


def test_one_number_for_more_than_two_classes_is_no_output(bundle: Path) -> None:
    rewrite(bundle, lambda raw: raw["model"]["output"].update(single=True))
    with pytest.raises(BundleError, match=r"one number an item of logits for 3 classes; wanted .* of two classes"):
        Bundle.open(bundle)


def test_an_unknown_repair_names_those_there_are(original: Bundle) -> None:
    assert original.repair("steps").file == "steps.onnx"
    with pytest.raises(BundleError, match="'median'; it has: steps"):
        original.repair("median")


def test_a_repair_of_before_its_opinions_is_refused(bundle: Path) -> None:
    def older(raw: dict[str, Any]) -> None:
        raw["format"] = 3
        del raw["repairs"][0]["opinions"]

    rewrite(bundle, older)
    with pytest.raises(BundleError, match="without telling whether the repaired answer is stable; train the bundle"):
        Bundle.open(bundle).repair("steps")


# Writing.


def test_an_existing_path_is_refused_and_left_alone(original: Bundle, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    with pytest.raises(BundleError, match="exists"):
        write_bundle(tmp_path / "taken", original.manifest, contents(original))
    assert [file.name for file in tmp_path.rglob("*")] == ["taken", "mine"]


def test_what_is_written_is_bit_identical(original: Bundle, tmp_path: Path) -> None:
    again = write_bundle(tmp_path / "deep" / "again", original.manifest, contents(original))
    assert again.digest == original.digest
    assert [file.name for file in (tmp_path / "deep").iterdir()] == ["again"], "nothing is left lying about"


class FullDisk(Exception):
    pass


@pytest.mark.parametrize("survives", range(7))
def test_nothing_half_written(original: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int) -> None:
    """The disk is full after so many files: nothing is at the path, nor beside it."""
    written = 0
    write_bytes, write_text = Path.write_bytes, Path.write_text

    def limited(real: Callable[..., int]) -> Callable[..., int]:
        def write(self: Path, content: Any, **settings: Any) -> int:
            nonlocal written
            if written == survives:
                real(self, content[: len(content) // 2], **settings)
                raise FullDisk
            written += 1
            return real(self, content, **settings)

        return write

    files = contents(original)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", limited(write_bytes))
        patch.setattr(Path, "write_text", limited(write_text))
        if survives > len(files):
            write_bundle(tmp_path / "new", original.manifest, files)
            assert [file.name for file in tmp_path.iterdir()] == ["new"]
            return
        with pytest.raises(FullDisk):
            write_bundle(tmp_path / "new", original.manifest, files)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_that_would_not_open_is_not_written(original: Bundle, tmp_path: Path) -> None:
    files = contents(original)
    del files["calibration.npz"]
    with pytest.raises(BundleError, match=r"calibration\.npz"):
        write_bundle(tmp_path / "new", original.manifest, files)
    with pytest.raises(BundleError):
        write_bundle(tmp_path / "new", original.manifest, {**contents(original), "../escaped": b"x"})
    assert list(tmp_path.iterdir()) == []


def test_another_setting_is_another_digest(original: Bundle, tmp_path: Path) -> None:
    other = write_bundle(tmp_path / "other", replace(original.manifest, seed=1), contents(original))
    assert other.digest != original.digest

"""Reading inputs and labels: every format gives the same items, and what is damaged is named."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from guard.arrays import read_examples, to_wire
from guard.data_file import DataFile
from guard.errors import ConfigError, DataError
from guard.manifest import InputSpec

SPEC = InputSpec("input", "FP32", (3, 4, 5), (0.0,), (1.0,), 255)
NORMALISED = replace(SPEC, low=(-2.0, -1.0, 0.0), high=(2.0, 3.0, 1.0))


def pictures(items: int = 6, channels: int = 3) -> NDArray[np.uint8]:
    """[item, height, width, channel], every item another."""
    return np.random.default_rng(0).integers(0, 256, (items, 4, 5, channels), dtype=np.uint8)


def labels(items: int = 6) -> NDArray[np.int64]:
    return np.arange(items) % 3


def npz(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path / "data.npz", **arrays)  # type: ignore[arg-type]
    return path / "data.npz"


def refused(path: Path, *words: str) -> None:
    with pytest.raises(DataError) as caught:
        read_examples(path)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), str(caught.value)


# What is read.


def test_npz(tmp_path: Path) -> None:
    found = read_examples(npz(tmp_path, images=pictures(), labels=labels().astype(np.uint8)))
    assert np.array_equal(found.images, pictures())
    assert np.array_equal(found.labelled(), labels())
    assert found.labelled().dtype == np.int64
    assert len(found) == 6


def test_npz_of_floats_and_of_vectors(tmp_path: Path) -> None:
    images = np.random.default_rng(1).random((4, 3, 4, 5))
    found = read_examples(npz(tmp_path, images=images))
    assert found.images.dtype == np.float32
    assert np.array_equal(found.images, images.astype(np.float32))
    vectors = read_examples(npz(tmp_path, images=np.ones((7, 9), dtype=np.float32)))
    assert vectors.images.shape == (7, 9)


@pytest.mark.parametrize(
    "turned",
    [
        pytest.param(lambda a: a, id="as it is"),
        pytest.param(np.asfortranarray, id="Fortran order"),
        pytest.param(lambda a: a.astype(">f4"), id="big-endian"),
        pytest.param(lambda a: a.astype(np.float16), id="half"),
        pytest.param(lambda a: a.astype(np.float64), id="double"),
        pytest.param(lambda a: a.transpose(0, 2, 3, 1), id="channels last"),
    ],
)
def test_floats_in_every_form_are_the_same_items(
    tmp_path: Path, turned: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    images = (np.arange(2 * 3 * 4 * 5) / 128).clip(0, 1).astype(np.float32).reshape(2, 3, 4, 5)  # exact in halves
    found = read_examples(npz(tmp_path, images=turned(images), labels=np.asarray([[1], [0]], dtype=">i2")))
    wire = to_wire(found.images, SPEC, found.source, layout=found.layout)
    assert np.array_equal(wire, images)
    assert wire.dtype == np.dtype("=f4")
    assert found.labelled().tolist() == [1, 0]


def test_a_double_beyond_all_floats(tmp_path: Path) -> None:
    refused(npz(tmp_path, images=np.full((2, 3, 4, 5), 1e300)), "item 0", "finite")


def test_arrays_that_are_left_out_are_said(tmp_path: Path) -> None:
    found = read_examples(npz(tmp_path, images=pictures(), y=labels()))
    assert found.notes == ("arrays left out: y",)
    with pytest.raises(DataError, match=r"no labels; an array `labels`.*\['images', 'y'\]"):
        found.labelled()


def test_npy_has_no_labels_and_says_so_only_when_asked(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", pictures())
    found = read_examples(tmp_path / "x.npy")
    assert found.labels is None
    with pytest.raises(DataError, match=r"x\.npy has no labels"):
        found.labelled()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_arrays_of_three_axes_are_what_the_model_takes(tmp_path: Path, dtype: type) -> None:
    found = read_examples(npz(tmp_path, images=np.ones((6, 4, 5), dtype=dtype)))
    assert (found.images.shape, found.layout) == ((6, 4, 5), None)

    def wire(shape: tuple[int, ...], wanted: str, layout: str | None = None) -> tuple[int, ...]:
        model = InputSpec("x", "FP32", shape, (0.0,), (1.0,), None, wanted)
        return to_wire(found.images, model, "f", layout=layout).shape

    assert wire((1, 4, 5), "NCHW") == (6, 1, 4, 5), "grey pictures"
    assert wire((1, 4, 5), "NHWC", "NCHW") == (6, 4, 5, 1)
    assert wire((4, 5), "NCT") == (6, 4, 5), "series with channels first, and channels last"
    assert wire((5, 4), "NCT") == (6, 5, 4)
    assert wire((5, 4), "NTC") == (6, 4, 5)
    with pytest.raises(
        ConfigError, match=r"takes series \[item, channel, time\], and the layout NHWC is none of theirs"
    ):
        wire((4, 5), "NCT", "NHWC")
    with pytest.raises(ConfigError, match=r"takes images .*, and the layout NTC is none of theirs"):
        wire((1, 4, 5), "NCHW", "NTC")
    with pytest.raises(DataError, match=r"one item has shape \[4, 5\]; the model takes \[3, 5\]"):
        wire((3, 5), "NCT")
    square = np.zeros((2, 5, 5), dtype=np.float32)
    with pytest.raises(DataError, match=r"5 channels of 5 steps \(channels first, NCT\) or .*--data-layout NCT or NTC"):
        to_wire(square, InputSpec("x", "FP32", (5, 5), (0.0,), (1.0,), None, "NCT"), "f")


def test_bytes_of_series_are_the_models_own_values() -> None:
    series = np.array([[[0, 100, 255]]], dtype=np.uint8)
    wide = InputSpec("x", "FP32", (1, 3), (0.0,), (255.0,), None, "NCT")
    assert to_wire(series, wide, "f").tolist() == [[[0.0, 100.0, 255.0]]]
    with pytest.raises(DataError, match=r"outside the model's range \[0, 1\]"):
        to_wire(series, InputSpec("x", "FP32", (1, 3), (0.0,), (1.0,), None, "NCT"), "f")


def test_series_of_one_channel_may_leave_its_axis_out() -> None:
    line = InputSpec("x", "FP32", (1, 7), (0.0,), (1.0,), None, "NTC")
    assert to_wire(np.zeros((3, 7), dtype=np.float32), line, "f").shape == (3, 7, 1)


def test_class_folders_in_sorted_order(tmp_path: Path) -> None:
    order = {"cat": 1, "ant": 0, "dog": 2}
    for i, name in enumerate(["cat", "ant", "dog", "ant"]):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(pictures()[i]).save(tmp_path / name / f"{i}.png")
    (tmp_path / "ant" / "notes.txt").write_text("no picture")
    found = read_examples(tmp_path)
    assert found.labelled().tolist() == sorted(order[name] for name in ["cat", "ant", "dog", "ant"])
    assert np.array_equal(found.images[0], pictures()[1])
    assert np.array_equal(found.images[2], pictures()[0])


def test_one_picture_grey_or_coloured(tmp_path: Path) -> None:
    Image.fromarray(pictures()[0]).save(tmp_path / "a.png")
    Image.fromarray(pictures(channels=1)[0, ..., 0]).save(tmp_path / "b.bmp")
    assert np.array_equal(read_examples(tmp_path / "a.png").images, pictures()[:1])
    assert read_examples(tmp_path / "b.bmp").images.shape == (1, 4, 5, 1)


# What is refused.


def test_what_is_not_there_or_of_no_known_kind(tmp_path: Path) -> None:
    refused(tmp_path / "none.npz", "none.npz", "does not exist")
    (tmp_path / "x.xml").write_text("1,2")
    refused(tmp_path / "x.xml", "no known kind", "npz", ".csv", ".parquet")
    refused(tmp_path, "neither tables, IDX files nor class folders")


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"x": np.zeros(3)}, ("['x']", "`images`")),
        ({"images": np.zeros((2, 3, 4, 5), dtype=np.int32)}, ("int32", "wanted uint8")),
        ({"images": np.zeros((2, 3, 4), dtype=np.uint16)}, ("uint16 [2, 3, 4]", "wanted uint8")),
        ({"images": np.zeros((2, 3, 4), dtype=bool)}, ("bool",)),
        ({"X_train": pictures(), "y_train": labels()}, ("['X_train', 'y_train']", "`images`")),
        ({"images": np.zeros((2, 0, 4, 3), dtype=np.uint8)}, ("no items", "[2, 0, 4, 3]")),
        ({"images": np.zeros((2, 3, 4, 5), dtype=complex)}, ("complex",)),
        ({"images": np.zeros(5, dtype=np.float32)}, ("[5]",)),
        ({"images": np.zeros((0, 3, 4, 5), dtype=np.float32)}, ("no items",)),
        ({"images": pictures(), "labels": np.zeros(5, dtype=np.int64)}, ("6 inputs", "[5]")),
        ({"images": pictures(), "labels": np.zeros((6, 3), dtype=np.int64)}, ("6 inputs", "[6, 3]")),
        ({"images": pictures(), "labels": np.eye(6, dtype=np.int64)}, ("[6, 6]", "one-hot", "argmax")),
        ({"images": pictures(), "labels": np.eye(6)}, ("float64", "one-hot", "argmax")),
        ({"images": pictures(), "labels": np.zeros(6)}, ("float64", "whole class numbers", "labels.astype(int)")),
        ({"images": pictures(), "labels": np.arange(6) / 2}, ("float64", "whole class numbers", "0.5 is none")),
        ({"images": pictures(), "labels": np.asarray([0, 1, np.inf, 0, 1, 2])}, ("float64", "inf is none")),
        ({"images": pictures(), "labels": np.full(6, np.nan)}, ("float64", "whole class numbers")),
        ({"images": pictures(), "labels": np.asarray(["a"] * 6)}, ("whole class numbers", "names (a)")),
        ({"images": pictures(), "labels": np.full(6, 2**64 - 1, dtype=np.uint64)}, ("18446744073709551615",)),
        ({"images": pictures(), "labels": np.asarray(3)}, ("6 inputs", "[]")),
        ({"images": pictures(), "labels": labels() - 1}, ("label -1 is negative",)),
        ({"images": np.asarray([{"a": 1}], dtype=object)}, ("cannot be read",)),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_used(tmp_path: Path, arrays: dict[str, NDArray[Any]], words: tuple[str, ...]) -> None:
    refused(npz(tmp_path, **arrays), "data.npz", *words)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_names_the_item(tmp_path: Path, value: float) -> None:
    images = np.zeros((4, 3, 4, 5), dtype=np.float32)
    images[2, 1, 0, 0] = value
    refused(npz(tmp_path, images=images), "item 2", "finite")


@pytest.mark.parametrize("keep", [0, 10, 300, -30])
def test_a_truncated_npz(tmp_path: Path, keep: int) -> None:
    file = npz(tmp_path, images=pictures(), labels=labels())
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, "data.npz", "cannot be read")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_one_byte_of_an_npz_may_be_wrong(tmp_path: Path, save: Callable[..., None]) -> None:
    save(tmp_path / "data.npz", images=np.random.default_rng(0).random((3, 4), dtype=np.float32))
    whole = (tmp_path / "data.npz").read_bytes()
    found = []
    for place in range(len(whole)):
        (tmp_path / "data.npz").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_examples(tmp_path / "data.npz")
        except DataError:
            found.append(place)
    assert len(found) > len(whole) / 3


def test_labels_that_are_yes_or_no_are_two_classes(tmp_path: Path) -> None:
    found = read_examples(npz(tmp_path, images=pictures(), labels=np.asarray([True, False] * 3)))
    assert found.labelled().tolist() == [1, 0] * 3


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as packed:
        packed.writestr("images", b"not an array")
    with pytest.raises(DataError, match="images is no array in numpy's format"):
        read_examples(tmp_path / "a.npz")


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_examples("a" * 5000)


def test_a_foreign_npz(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_text("I am a poem")
    refused(tmp_path / "data.npz", "cannot be read")


def test_a_damaged_picture(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Image.fromarray(pictures()[0]).save(tmp_path / "a" / "0.png")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    for content in (whole[:60], b"no picture"):
        (tmp_path / "a" / "1.png").write_bytes(content)
        refused(tmp_path, "1.png", "picture")


def test_pictures_of_different_sizes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for i, size in enumerate([4, 5]):
        Image.fromarray(np.zeros((size, size, 3), dtype=np.uint8)).save(tmp_path / "a" / f"{i}.png")
    refused(tmp_path, "2 different sizes")


# Wire values.


def test_uint8_pictures_become_wire_values() -> None:
    wire = to_wire(pictures(), SPEC)
    assert wire.shape == (6, 3, 4, 5)
    assert wire.dtype == np.float32
    assert np.array_equal(np.rint(wire * 255).astype(np.uint8), pictures().transpose(0, 3, 1, 2))


def test_uint8_pictures_for_a_normalised_model() -> None:
    wire = to_wire(pictures(), NORMALISED)
    mean, spread = np.asarray([-2, -1, 0.0]), np.asarray([4, 4, 1.0])
    by_hand = pictures().transpose(0, 3, 1, 2) / 255 * spread[:, None, None] + mean[:, None, None]
    assert np.allclose(wire, by_hand, atol=1e-5)


def test_uint8_pictures_for_a_model_that_takes_bytes() -> None:
    wire = to_wire(pictures(), replace(SPEC, datatype="UINT8", high=(255.0,)))
    assert wire.dtype == np.uint8
    assert np.array_equal(wire, pictures().transpose(0, 3, 1, 2))


@pytest.mark.parametrize("spec", [SPEC, NORMALISED], ids=["unit", "normalised"])
def test_unit_space_and_back(spec: InputSpec) -> None:
    unit = np.random.default_rng(2).random((5, 3, 4, 5), dtype=np.float32)
    assert np.allclose(spec.box.to_unit(spec.box.from_unit(unit)), unit, atol=1e-6)
    assert np.allclose(spec.box.from_unit(np.zeros_like(unit)).min(axis=(0, 2, 3)), spec.low)
    assert np.allclose(spec.box.from_unit(np.ones_like(unit)).max(axis=(0, 2, 3)), spec.high)


@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_a_channel_last_wire(datatype: str) -> None:
    """Files, unit space and wire agree on every pixel, whatever the file held."""
    spec = replace(SPEC, datatype=datatype, high=(255.0,), layout="NHWC")
    assert spec.wire_shape == (4, 5, 3)
    wire = to_wire(pictures(), spec)
    assert wire.dtype == spec.dtype
    assert wire.flags.c_contiguous
    assert np.array_equal(wire, pictures())
    unit = spec.box.to_unit(wire)
    assert unit.shape == (6, 3, 4, 5)
    assert np.array_equal(unit, pictures().transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255))
    assert np.array_equal(spec.box.from_unit(unit), wire)
    floats = pictures().transpose(0, 3, 1, 2).astype(np.float32)
    assert np.array_equal(to_wire(floats, spec), wire)


def test_bytes_with_channels_first_are_read_as_such() -> None:
    assert np.array_equal(to_wire(pictures().transpose(0, 3, 1, 2), SPEC), to_wire(pictures(), SPEC))


def test_a_cube_is_read_as_it_is_said_to_be_or_not_at_all() -> None:
    cube, spec = np.random.default_rng(4).random((2, 3, 3, 3), dtype=np.float32), replace(SPEC, shape=(3, 3, 3))
    with pytest.raises(DataError, match=r"3 channels of 3 x 3 \(channels first, NCHW\) or .*--data-layout NCHW or"):
        to_wire(cube, spec)
    assert np.array_equal(to_wire(cube, spec, layout="NCHW"), cube)
    assert np.array_equal(to_wire(cube, spec, layout="NHWC"), cube.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("datatype", ["FP32", "UINT8"])
def test_unit_floats_for_a_model_of_bytes_are_not_taken_for_black(datatype: str) -> None:
    images = np.random.default_rng(5).random((2, 3, 4, 5), dtype=np.float32)
    spec = replace(SPEC, datatype=datatype, high=(255.0,))
    with pytest.raises(DataError, match=r"span \[0.*range \[0, 255\], all but black"):
        to_wire(images, spec)
    to_wire(np.rint(images), spec)  # dark, but on the model's own steps


def test_floats_for_bytes_are_whole_or_refused() -> None:
    spec = replace(SPEC, datatype="UINT8", high=(255.0,))
    images = np.full((1, 3, 4, 5), 7.0, dtype=np.float32)
    assert (to_wire(images, spec) == 7).all()
    images[0, 0, 0, 3] = 20.5
    with pytest.raises(DataError, match=r"takes bytes, and values such as 20.5"):
        to_wire(images, spec)


def test_bytes_are_never_wrapped_around() -> None:
    spec = replace(SPEC, datatype="UINT8", high=(255.0,))
    unit = np.linspace(-0.1, 1.1, 60, dtype=np.float32).reshape(1, 3, 4, 5)
    wire = spec.box.from_unit(unit)
    assert np.array_equal(np.sort(wire, axis=None), wire.ravel())


def test_values_outside_the_range_name_the_setting() -> None:
    with pytest.raises(DataError, match=r"values span \[0, 255\].*--range"):
        to_wire(np.asarray([[0.0, 255.0]], dtype=np.float32), replace(SPEC, shape=(2,)))
    with pytest.raises(DataError, match="outside the model's range"):
        to_wire(np.asarray([[-0.1, 0.5]], dtype=np.float32), replace(SPEC, shape=(2,)))


def test_values_outside_a_range_of_their_own_name_the_part_that_leaves_it_furthest() -> None:
    vectors = replace(SPEC, shape=(3,), low=(0.0, 0.0, 0.0), high=(1.0, 10.0, 1000.0))
    with pytest.raises(DataError, match=r"values of feature 1 span \[5, 30\].*range \[0, 10\]"):
        to_wire(np.asarray([[1.05, 5.0, 999.0], [0.0, 30.0, 1001.0]], dtype=np.float32), vectors)
    wire = NORMALISED.box.from_unit(np.full((2, 3, 4, 5), 0.5, dtype=np.float32))
    wire[1, 2, 0, 0] += 9
    with pytest.raises(DataError, match=r"values of channel 2 span"):
        to_wire(wire, NORMALISED)


@pytest.mark.parametrize(
    "images",
    [
        pytest.param(pictures(channels=1), id="one channel"),
        pytest.param(np.zeros((2, 5, 4, 3), np.float32), id="on its side"),
        pytest.param(np.zeros((2, 60), np.float32), id="flat"),
    ],
)
def test_items_of_another_shape(images: NDArray[Any]) -> None:
    with pytest.raises(DataError, match=r"the model takes \[3, 4, 5\]"):
        to_wire(images, SPEC)


def test_inputs_are_never_changed() -> None:
    images = pictures()
    floats = np.random.default_rng(3).random((2, 3, 4, 5), dtype=np.float32)
    before = images.copy(), floats.copy()
    to_wire(images, NORMALISED)
    NORMALISED.box.to_unit(to_wire(floats, SPEC))[:] = 7
    assert np.array_equal(images, before[0])
    assert np.array_equal(floats, before[1])


def test_examples_count_their_items() -> None:
    assert len(DataFile(pictures(3), None, "x")) == 3


NAMES = ("cat", "ant", "bee")


@pytest.mark.parametrize("labels", [["ant", "cat", "bee"], [b"ant", b"cat", b"bee"], [["ant"], ["cat"], ["bee"]]])
def test_labels_that_are_names_are_found_among_the_models(tmp_path: Path, labels: list[Any]) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((3, 4), np.float32), labels=np.asarray(labels))
    assert read_examples(tmp_path / "data.npz", classes=NAMES).labelled().tolist() == [1, 0, 2]


def test_a_label_that_is_no_name_of_the_models_says_which_there_are(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", images=np.zeros((2, 4), np.float32), labels=np.asarray(["ant", "elk"]))
    with pytest.raises(DataError, match=r"item 1 has label 'elk', .* known, cat, ant, bee, or numbers"):
        read_examples(tmp_path / "data.npz", classes=NAMES)
    with pytest.raises(DataError, match=r"whole class numbers .*\(ant, elk\), since the model says no names"):
        read_examples(tmp_path / "data.npz")

"""Pictures of every mode and kind: read as they are shown, or refused by name."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from guard.errors import DataError
from guard.pictures import PICTURES, looks_like_picture, read_picture
from tests.picture_files import COLOURS, ORIENTATION, RAMP, RAMP_16, chunk, png, save

PHOTO = Image.fromarray(COLOURS)
HALF = np.full((6, 8, 1), 128, dtype=np.uint8)
WIDE = np.repeat(RAMP_16[..., None], 3, axis=2)
FULL = np.full((6, 8, 1), 65535, dtype=np.uint16)
WHITE_IS_ZERO = bytes([6, 1, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0])  # TIFF's entry 262, which Pillow writes as 1
BLACK_IS_ZERO = WHITE_IS_ZERO[:8] + bytes([1, 0, 0, 0])


def near(found: NDArray[Any], wanted: NDArray[Any], *, tolerance: int = 1) -> bool:
    return found.shape == wanted.shape and int(np.abs(found.astype(int) - wanted).max()) <= tolerance


# 16 bits.


@pytest.mark.parametrize(
    ("name", "write", "channels"),
    [
        ("grey.png", lambda f: save(f, RAMP_16), 1),
        ("grey.tif", lambda f: save(f, RAMP_16), 1),
        ("grey.tiff", lambda f: save(f, RAMP_16, compression="tiff_deflate"), 1),
        ("big-endian.tif", lambda f: Image.fromarray(RAMP_16.astype(">u2")).save(f), 1),
        ("grey.pgm", lambda f: save(f, RAMP_16), 1),
        ("alpha.png", lambda f: f.write_bytes(png(np.concatenate([RAMP_16[..., None], FULL], axis=2), 4)), 1),
        ("rgb.png", lambda f: f.write_bytes(png(WIDE, 2)), 3),
        ("rgba.png", lambda f: f.write_bytes(png(np.concatenate([WIDE, FULL], axis=2), 6)), 3),
        ("rgb.ppm", lambda f: f.write_bytes(b"P6 8 6 65535\n" + WIDE.astype(">u2").tobytes()), 3),
    ],
)
def test_sixteen_bits_are_scaled_and_said(
    tmp_path: Path, name: str, write: Callable[[Path], object], channels: int
) -> None:
    write(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert near(found.values, np.repeat((RAMP_16 // 257)[..., None], channels, axis=2))
    assert any("16 bits" in change for change in found.changes)


# Modes.


@pytest.mark.parametrize(
    ("name", "write", "wanted"),
    [
        ("rgb.png", lambda f: PHOTO.save(f), COLOURS),
        ("opaque.png", lambda f: PHOTO.convert("RGBA").save(f), COLOURS),
        ("opaque.webp", lambda f: PHOTO.convert("RGBA").save(f, lossless=True), COLOURS),
        ("rgb.bmp", lambda f: PHOTO.save(f), COLOURS),
        ("RGB.TIF", lambda f: PHOTO.save(f, format="TIFF"), COLOURS),
        ("rgb.ppm", lambda f: PHOTO.save(f), COLOURS),
        ("palette.png", lambda f: PHOTO.quantize(48).save(f), np.asarray(PHOTO.quantize(48).convert("RGB"))),
        ("palette.gif", lambda f: PHOTO.quantize(48).save(f), np.asarray(PHOTO.quantize(48).convert("RGB"))),
        ("grey.png", lambda f: save(f, RAMP), RAMP[..., None]),
        ("grey-palette.png", lambda f: Image.fromarray(RAMP).convert("P").save(f), RAMP[..., None]),
        ("grey.gif", lambda f: save(f, RAMP), RAMP[..., None]),
        ("grey-alpha.png", lambda f: Image.fromarray(RAMP).convert("LA").save(f), RAMP[..., None]),
        ("one-bit.png", lambda f: Image.fromarray(RAMP > 99).save(f), 255 * (RAMP > 99)[..., None]),
        ("one-bit.tif", lambda f: Image.fromarray(RAMP > 99).save(f), 255 * (RAMP > 99)[..., None]),
        ("fifteen.pgm", lambda f: f.write_bytes(b"P5 2 1 15\n\x00\x0f"), np.asarray([[[0], [255]]])),
    ],
)
def test_modes_that_have_one_meaning(
    tmp_path: Path, name: str, write: Callable[[Path], object], wanted: NDArray[Any]
) -> None:
    write(tmp_path / name)
    found = read_picture(tmp_path / name)
    assert np.array_equal(found.values, wanted)
    assert found.values.dtype == np.uint8
    assert found.changes == ()


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}], ids=str)
def test_jpeg(tmp_path: Path, settings: dict[str, Any]) -> None:
    smooth = np.repeat(RAMP[..., None], 3, axis=2)
    assert near(
        read_picture(save(tmp_path / "a.jpg", smooth, quality=100, **settings)).values, smooth.astype(int), tolerance=4
    )


def test_a_cameras_jpeg_with_a_preview_is_its_first_picture(tmp_path: Path) -> None:
    PHOTO.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    PHOTO.save(tmp_path / "b.jpg", format="JPEG")
    first, alone = (read_picture(tmp_path / name).values for name in ("a.jpg", "b.jpg"))
    assert np.array_equal(first, alone)


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("half.png", lambda f: save(f, np.concatenate([COLOURS, HALF], axis=2)), "100% of its pixels are transparent"),
        ("half.webp", lambda f: save(f, np.concatenate([COLOURS, HALF], axis=2), lossless=True), "transparent"),
        ("half.tif", lambda f: save(f, np.concatenate([COLOURS, HALF], axis=2)), "transparent"),
        ("grey.png", lambda f: save(f, np.concatenate([RAMP[..., None], HALF], axis=2)), "transparent"),
        ("palette.png", lambda f: PHOTO.quantize(8).save(f, transparency=0), "transparent"),
        ("palette.gif", lambda f: PHOTO.quantize(8).save(f, transparency=0), "transparent"),
        ("one-grey.png", lambda f: save(f, RAMP, transparency=5), "2% of its pixels are transparent"),
        ("one-colour.png", lambda f: save(f, COLOURS, transparency=tuple(COLOURS[0, 0].tolist())), "transparent"),
        ("wide.png", lambda f: f.write_bytes(png(RAMP_16, 0, chunk(b"tRNS", b"\0\0"))), "transparent grey"),
        ("print.jpg", lambda f: PHOTO.convert("CMYK").save(f), "CMYK"),
        ("print.tif", lambda f: PHOTO.convert("CMYK").save(f), "CMYK"),
        ("lab.tif", lambda f: PHOTO.convert("LAB").save(f), "LAB"),
        ("ycc.tif", lambda f: PHOTO.convert("YCbCr").save(f), "YCbCr"),
        ("float.tif", lambda f: save(f, RAMP.astype(np.float32)), "its colours are F"),
        ("int.tif", lambda f: save(f, RAMP_16.astype(np.int32)), "no known scale"),
        ("negative.tif", lambda f: f.write_bytes(
            save(f, RAMP_16).read_bytes().replace(BLACK_IS_ZERO, WHITE_IS_ZERO)), "negative"),
        *((f"moves.{end}", lambda f: PHOTO.save(f, save_all=True, append_images=[Image.fromarray(255 - COLOURS)]),
           "2 frames") for end in ("gif", "png", "webp", "tif")),
        ("empty.png", lambda f: f.write_bytes(b""), "0 bytes are of no known kind"),
        ("page.jpg", lambda f: f.write_text("<html>not found</html>"), "no known kind"),
        ("bomb.png", lambda f: f.write_bytes(png(RAMP, 0, size=(60000, 60000))), "exceeds limit"),
    ],
)  # fmt: skip
def test_what_has_several_meanings_is_refused_by_name(
    tmp_path: Path, name: str, write: Callable[[Path], object], words: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError) as caught:
        read_picture(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert " at 0x" not in str(caught.value)


# Orientation and colour.

TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {  # EXIF 2.32, tag 274: where row 0 and column 0 lie
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a[::-1].transpose(1, 0, 2),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: a[:, ::-1].transpose(1, 0, 2),
}


@pytest.mark.parametrize("end", ["png", "tif", "lzw.tif", "webp", "jpg"])
@pytest.mark.parametrize("values", [RAMP, COLOURS, RAMP_16], ids=["grey", "colour", "16 bits"])
@pytest.mark.parametrize("orientation", TURNED)
def test_pictures_are_turned_upright(tmp_path: Path, end: str, values: NDArray[Any], orientation: int) -> None:
    if values.dtype == np.uint16 and end in ("webp", "jpg"):
        return
    settings = {"webp": {"lossless": True}, "lzw.tif": {"compression": "tiff_lzw"}, "jpg": {"quality": 100}}.get(
        end, {}
    )
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    found = read_picture(save(tmp_path / f"a.{end}", values, exif=exif, **settings))
    plain = read_picture(save(tmp_path / f"b.{end}", values, **settings))
    assert np.array_equal(found.values, TURNED[orientation](plain.values))
    assert any("EXIF" in change for change in found.changes) == (orientation != 1)


def test_a_foreign_colour_profile_is_said(tmp_path: Path) -> None:
    for kind, said in (("sRGB", False), ("XYZ", True)):
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile(kind)).tobytes()  # type: ignore[arg-type]
        found = read_picture(save(tmp_path / "a.png", COLOURS, icc_profile=profile))
        assert np.array_equal(found.values, COLOURS)
        assert any("profile" in change for change in found.changes) == said


# Damage.


@pytest.mark.parametrize("end", ["png", "jpg", "gif", "tif", "webp", "bmp", "ppm"])
def test_damage_is_an_error_of_ours_or_none(tmp_path: Path, end: str) -> None:
    whole, generator = save(tmp_path / f"a.{end}", COLOURS).read_bytes(), random.Random(0)
    refused = 0
    for attempt in range(120):
        content = bytearray(whole)
        if attempt % 2:
            content = content[: generator.randrange(len(content))]
        else:
            for _ in range(3):
                content[generator.randrange(min(len(content), 400))] = generator.randrange(256)
        (tmp_path / f"b.{end}").write_bytes(bytes(content))
        try:
            read_picture(tmp_path / f"b.{end}")
        except DataError as error:
            refused += f"b.{end}" in str(error)
    assert refused > 40


def test_files_that_look_like_pictures_whatever_their_name(tmp_path: Path) -> None:
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM"):
        assert looks_like_picture(save(tmp_path / "a", COLOURS, format=kind)), kind
    (tmp_path / "photo").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0")
    assert looks_like_picture(tmp_path / "photo")
    os.mkfifo(tmp_path / "pipe")
    assert not looks_like_picture(tmp_path / "pipe")
    (tmp_path / "b").write_text("no picture")
    assert not looks_like_picture(tmp_path / "b")
    assert not looks_like_picture(tmp_path / "none")
    assert {end for end in PICTURES if end != end.lower()} == set()

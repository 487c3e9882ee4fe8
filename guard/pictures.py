"""Pictures from files, as bytes [height, width, channel]: what a viewer shows, or a refusal that names the file.

Rule 1: one opaque picture of grey or RGB values comes out of a file, or an error; what was changed on the way is said.
Example: a 16-bit grey picture is scaled to 8 bits, 65535 to 255, and a photograph that lies on its side is turned.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import DataError, first_line
from guard.thread_warnings import ThreadWarnings

PICTURES = {
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")  # Pillow's names; it knows more
# First bytes of pictures, of kinds that are read and others: a TIFF, a WebP, a bitmap, a Netpbm file, a HEIC or AVIF.
SIGNATURE = re.compile(
    rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|BM....\0\0\0\0|P[1-6]\s+[0-9#]"
    rb"|....ftyp(hei[cxm]|mif1|avi[fs])",
    re.DOTALL,
)
SIGNED_CODE, SAMPLE_FORMAT_CODE = 2, 339  # TIFF's tag of how values are written, and its value for signed ones
ORIENTATION_CODE, UPRIGHT_CODE = 0x0112, 1  # EXIF's tag, and its value for a picture that lies as it is shown
PHOTOMETRIC_CODE, WHITE_IS_ZERO_CODE = 262, 0  # TIFF's tag, and its value for negatives
LYING_CODES = {5, 6, 7, 8}  # of EXIF's orientations: those that exchange width and height
COMMON_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # whose heads say size and colours as they will be read
STEPS_OF_16_BITS, STEPS_OF_8_BITS, OPAQUE_STEPS = 65535, 255, 255
BYTES_FACTOR = 257  # 16-bit steps in one of 8 bits
GREY, COLOURED = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA")  # Pillow's modes
WARNINGS = ThreadWarnings()  # pictures are decoded side by side
# What Pillow raises for damaged content, beside its own errors.
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, struct.error, zlib.error, MemoryError)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture's values and what was changed to get them."""

    values: NDArray[np.uint8]  # [height, width, channel], one channel or three
    changes: tuple[str, ...] = ()  # each as a part of a sentence: "turned as EXIF says"


@dataclass(frozen=True)
class PictureHead:
    """A picture's size and channels, as its file's head says them."""

    size: tuple[int, int]  # height and width, as it is shown
    channels: int | None  # of its values; None where only they can tell


def looks_like_picture(file: Path) -> bool:
    """Tell whether a file begins as a picture does, whatever its name."""
    try:
        if not file.is_file():  # a pipe would be waited for
            return False
        with file.open("rb") as stream:
            return SIGNATURE.match(stream.read(16)) is not None
    except OSError:
        return False


def read_picture(file: Path) -> Picture:
    """Read a picture from a file. Raises DataError, which names the file and what in it is not read."""
    try:
        # In memory: Pillow 13 maps a plain TIFF that lies on its side with width and height exchanged.
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read as a picture: {first_line(error)}") from error
    return decode_picture(content, str(file))


def decode_picture(content: bytes, file: str) -> Picture:
    """Decode the bytes of a picture file; `file` says where they come from. Raises DataError, which names it."""
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise DataError(
            f"reading {file} takes Pillow; install inference-guard[offline], or hand over an .npz"
        ) from error
    try:
        with WARNINGS.caught() as warned, Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            values, changes = upright_values(picture, file)
    except UnidentifiedImageError as error:
        seen = f"its {len(content)} bytes are of no known kind"
        raise DataError(f"{file} cannot be read as a picture: {seen}; wanted {', '.join(FORMATS)}") from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise DataError(f"{file} cannot be read as a picture: {first_line(error)}") from error
    said = [f"read although {text!r}" for text in warned[:1]]
    return Picture(values, (*changes, *said))


def picture_head(file: Path) -> PictureHead:
    """Read a picture's size and channels without decoding it, but for rare kinds. Raises DataError where that fails."""
    try:
        with file.open("rb") as stream:
            head = head_of(stream)
    except OSError:
        head = None
    return head_of_values(read_picture(file)) if head is None else head


def head_in(content: bytes, file: str) -> PictureHead:
    """Return what `picture_head` reads from the bytes of a picture file; `file` says where they come from."""
    head = head_of(io.BytesIO(content))
    return head_of_values(decode_picture(content, file)) if head is None else head


def head_of(stream: IO[bytes]) -> PictureHead | None:
    """Return a picture's head; None where only decoding tells it, or what is wrong."""
    from PIL import Image

    try:
        with WARNINGS.caught(), Image.open(stream, formats=FORMATS) as picture:
            if picture.format not in COMMON_FORMATS:
                return None
            code = picture.getexif().get(ORIENTATION_CODE, UPRIGHT_CODE)
            mode, (width, height), raw = picture.mode, picture.size, raw_mode(picture)[0]
    except (*DAMAGED, Image.DecompressionBombError):
        return None
    size = (width, height) if code in LYING_CODES else (height, width)
    if mode in GREY or mode.startswith("I"):
        return PictureHead(size, 1)
    return PictureHead(size, None if mode in ("P", "PA") or raw.startswith("LA") else 3)


def head_of_values(picture: Picture) -> PictureHead:
    height, width, channels = picture.values.shape
    return PictureHead((height, width), channels)


def upright_values(picture: Any, file: str) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the values of an opened picture as it is shown, and what was changed. Raises DataError."""
    from PIL import ImageOps

    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # a camera's JPEG with a preview behind it
        raise refusal(file, f"it holds {frames} frames or pages", "one picture a file; write the one that is meant")
    changes = []
    raw, maximum = raw_mode(picture)
    orientation = picture.getexif().get(ORIENTATION_CODE, UPRIGHT_CODE)
    picture.load()
    values = to_bytes(picture, raw, file)
    if orientation != UPRIGHT_CODE:
        changes.append("turned as its EXIF orientation says")
        # Pillow turns a TIFF itself when it is loaded, and then holds no orientation any more.
        values = np.asarray(ImageOps.exif_transpose(with_exif_of(picture, values)))
        values = values[..., None] if values.ndim == 2 else values
    if foreign_profile(picture):
        changes.append("read without its colour profile, which is not sRGB")
    if "16" in raw or maximum > STEPS_OF_8_BITS:
        changes.append("scaled from 16 bits to 8, 65535 to 255")
    return values, changes


def with_exif_of(picture: Any, values: NDArray[np.uint8]) -> Any:
    """Return a picture of values that has the EXIF orientation which another has left."""
    from PIL import Image

    turned = Image.fromarray(values[..., 0] if values.shape[2] == 1 else values)
    turned.getexif()[ORIENTATION_CODE] = picture.getexif().get(ORIENTATION_CODE, UPRIGHT_CODE)
    return turned


def raw_mode(picture: Any) -> tuple[str, int]:
    """Return how the file holds its values, as Pillow calls it (`RGB;16B`), and the largest that it may hold.

    Both are known until the values are read; the largest is 0 where Pillow does not say it.
    """
    tiles = getattr(picture, "tile", None) or [(None, None, None, "")]
    settings = tiles[0][3] if isinstance(tiles[0][3], tuple) else (tiles[0][3],)
    words = [setting for setting in settings if isinstance(setting, str)]
    whole = [setting for setting in settings[1:2] if isinstance(setting, int) and picture.format == "PPM"]
    scaled = picture.mode.startswith("I;16") or picture.mode == "I"
    return (words[0] if words else "I;16" if scaled else ""), (whole[0] if whole else 0)


def to_bytes(picture: Any, raw: str, file: str) -> NDArray[np.uint8]:
    """Convert a picture of any mode that has one meaning. Raises DataError for all others."""
    mode = picture.mode
    if mode.startswith("I"):
        return sixteen_bits(picture, raw, file)
    if SIGNED_CODE in tag_values(picture, SAMPLE_FORMAT_CODE):
        raise refusal(file, "its values are signed", "0 black to 255 white; scale it yourself")
    if mode not in (*GREY, *COLOURED):
        raise refusal(file, f"its colours are {mode}", "grey or RGB; convert it, as several ways of doing so differ")
    if picture.has_transparency_data and (alpha := np.asarray(picture.convert("RGBA"))[..., 3]).min() < OPAQUE_STEPS:
        share = f"{(alpha < OPAQUE_STEPS).mean():.0%} of its pixels are transparent"
        raise refusal(file, share, "an opaque one; put it on the background that the model was trained on")
    if mode in GREY:
        return np.asarray(picture.convert("L"), dtype=np.uint8)[..., None]
    values = np.asarray(picture.convert("RGB"), dtype=np.uint8)
    may_be_grey = mode in ("P", "PA") or raw.startswith("LA")
    return values[..., :1] if may_be_grey and bool((values == values[..., :1]).all()) else values


def tag_values(picture: Any, code: int) -> tuple[int, ...]:
    """Return the values of a TIFF's tag; none where it has not got it, or is no TIFF."""
    found = getattr(picture, "tag_v2", {}).get(code, ())
    return found if isinstance(found, tuple) else (found,)


def sixteen_bits(picture: Any, raw: str, file: str) -> NDArray[np.uint8]:
    """Scale a grey picture of 16 bits to 8. Raises DataError where its values have no known scale."""
    values = np.asarray(picture).astype(np.int64)
    known = picture.mode.startswith("I;16") or picture.format in ("PNG", "PPM")
    if not known or raw == "I;12" or not 0 <= values.min() <= values.max() <= STEPS_OF_16_BITS:
        span = f"[{values.min()}, {values.max()}]"
        raise refusal(file, f"it holds whole numbers {span} of no known scale", "8 or 16 bits; scale it yourself")
    if WHITE_IS_ZERO_CODE in tag_values(picture, PHOTOMETRIC_CODE) or "transparency" in picture.info:
        raise refusal(file, "it is a 16-bit negative or has a transparent grey", "16 bits, 0 black, opaque")
    return np.rint(values / BYTES_FACTOR).astype(np.uint8)[..., None]


def foreign_profile(picture: Any) -> bool:
    """Tell whether a picture's colours are described by a profile other than sRGB."""
    profile = picture.info.get("icc_profile")
    return bool(profile) and b"sRGB" not in profile and b"s\0R\0G\0B" not in profile


def refusal(file: str, seen: str, wanted: str) -> DataError:
    return DataError(f"{file} is not read as a picture: {seen}; wanted {wanted}")

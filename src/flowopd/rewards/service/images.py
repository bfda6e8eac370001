"""Pictures as bytes of image files, and back; what could fill the memory is refused first."""

import io
import struct
import zlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from flowopd.errors import FlowOPDError
from flowopd.rewards.service.headers import SIGNATURE, check_header, check_size

Format = Literal["png", "webp", "jpeg"]
LOSSLESS: tuple[Format, ...] = ("png", "webp")
MEDIA: dict[Format, str] = {"png": "image/png", "webp": "image/webp", "jpeg": "image/jpeg"}
MODES = ("RGB", "L")
# What Pillow raises for bytes that are no whole image, or that would unpack to too much.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    IndexError,
    struct.error,
    UnidentifiedImageError,
    Image.DecompressionBombError,
)


def encode(picture: NDArray[np.uint8], form: Format = "png", quality: int = 95) -> bytes:
    """A picture [H, W, 3] as an image file; of these only jpeg loses anything.

    png is not compressed, which is forty times as fast; webp is about half as large.
    """
    if form == "png":
        return _png(picture)
    image, file = Image.fromarray(picture), io.BytesIO()
    if form == "webp":
        image.save(file, "WEBP", lossless=True, exact=True, method=0)
    else:
        image.save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def most_bytes(height: int, width: int, form: Format = "png") -> int:
    """No image file of `encode` is larger."""
    if form == "jpeg":
        return (height + 16) * (width + 16) * 9 // 2 + 4096
    return height * (3 * width + 1) * 102 // 100 + 4096


def opened(data: bytes, most_pixels: int) -> Image.Image:
    """The image in a file, of which only the header is read: its size is checked, not unpacked."""
    check_header(data, most_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        frames = getattr(image, "n_frames", 1)
    except BROKEN as error:
        raise FlowOPDError(f"it is no PNG, JPEG or WebP image ({_short(error)}).") from None
    check_size(image.width, image.height, most_pixels)
    if frames != 1:
        raise FlowOPDError(f"it has {frames} frames; a picture has one.")
    if image.mode not in MODES or "transparency" in image.info:
        raise FlowOPDError(
            f"its pixels are of the mode {image.mode}; they should be RGB or grey, 8 bits a "
            "channel and nothing transparent."
        )
    return _whole(data) if image.format == "PNG" else image


def pixels(image: Image.Image) -> NDArray[np.uint8]:
    """The picture [H, W, 3] of an opened image."""
    try:
        return np.asarray(image.convert("RGB"))
    except BROKEN as error:
        raise FlowOPDError(f"its pixels cannot be read ({_short(error)}).") from None


def _whole(data: bytes) -> Image.Image:
    """A PNG again, when the checksums of all its parts are right; reading pixels skips those."""
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()
        return Image.open(io.BytesIO(data), formats=("PNG",))
    except BROKEN as error:
        raise FlowOPDError(f"it is damaged ({_short(error)}).") from None


def _png(picture: NDArray[np.uint8]) -> bytes:
    """Rows as they are, each after the number of a filter that does nothing."""
    height, width, _ = picture.shape
    rows = np.zeros((height, 1 + 3 * width), np.uint8)
    rows[:, 1:] = picture.reshape(height, -1)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    file = [SIGNATURE]
    for kind, data in ((b"IHDR", head), (b"IDAT", zlib.compress(rows.data, 0)), (b"IEND", b"")):
        checksum = zlib.crc32(data, zlib.crc32(kind))
        file += [struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)]
    return b"".join(file)


def _short(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 100 else text[:97] + "..."

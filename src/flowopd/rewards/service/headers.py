"""What image files say of themselves, read before a decoder spends time or memory on them."""

from flowopd.errors import FlowOPDError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
SEGMENTS = 512
"""Parts of a JPEG before its pixels; a colour profile and EXIF need a few."""
CHUNKS, CHUNK_BYTES = 64, 1024
"""Parts of a PNG: so many, and one more for so many bytes."""
BASELINE = (0xC0, 0xC1)
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
SCAN = 0xDA


def check_header(data: bytes, most_pixels: int) -> None:
    """A FlowOPDError for a file that would cost much more than its bytes; others are let through.

    Pillow reads each part of a PNG or a JPEG in Python, a JPEG may have its pixels again and again,
    and WebP's decoder makes room for the pixels when the file is opened.
    """
    if data[:8] == SIGNATURE:
        _check_png(data)
    elif data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        check_size(*_webp_size(data), most_pixels)


def check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise FlowOPDError(f"it has {width} x {height} pixels, and there is room for {most}.")


def _check_png(data: bytes) -> None:
    depth = data[24:25]
    if depth not in (b"", b"\x08"):
        raise FlowOPDError(f"it has {depth[0]} bits a channel, and should have 8.")
    place, most = len(SIGNATURE), CHUNKS + len(data) // CHUNK_BYTES
    for _ in range(most):
        if place >= len(data):
            return
        place += 12 + int.from_bytes(data[place : place + 4], "big")
    raise FlowOPDError(f"it is in more than {most} parts, too small to be a picture's.")


def _check_jpeg(data: bytes) -> None:
    place = 2
    for _ in range(SEGMENTS):
        if place + 4 > len(data) or data[place] != 0xFF:
            raise FlowOPDError("it is no PNG, JPEG or WebP image (a JPEG's header is damaged).")
        kind = data[place + 1]
        if kind in FRAMES and kind not in BASELINE:
            raise FlowOPDError("it is a JPEG of another kind than baseline, such as progressive.")
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == SCAN:
            break
    else:
        raise FlowOPDError(f"it is a JPEG of more than {SEGMENTS} parts before its pixels.")
    if data.find(b"\xff\xda", place) >= 0:
        raise FlowOPDError("it is a JPEG of several scans; a picture has one.")


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height

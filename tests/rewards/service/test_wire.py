"""Pictures and scores on the way: nothing is lost, and nothing is unpacked that is too large."""

import base64
import io
import json
import math
import struct
import subprocess
import sys
import time
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from served import pictures, records

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores
from flowopd.rewards.service.images import encode, most_bytes, opened, pixels
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.wire import (
    Reply,
    jsonable,
    read_reply,
    read_request,
    reply_body,
    request_body,
)
from flowopd.rewards.work.calls import Failed
from flowopd.tasks.prompts import PromptRecord

MOST = 2**20


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, rows: bytes = bytes(1000), depth: int = 8, more: int = 0) -> bytes:
    """A PNG that says to be of that size, with so many empty parts besides."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0))
    parts = [head, chunk(b"tEXt") * more, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_with_scans(count: int) -> bytes:
    """A JPEG of one scan, and then that scan again and again."""
    data = file_of(Image.new("RGB", (16, 16), "red"), "JPEG")
    scan = data[data.index(b"\xff\xda") : -2]
    return data[:-2] + scan * (count - 1) + data[-2:]


class TestPictures:
    @pytest.mark.parametrize("form", ["png", "webp"])
    def test_lossless_files_give_the_same_pixels(self, form: Any) -> None:
        for picture in pictures(3, size=33):
            np.testing.assert_array_equal(pixels(opened(encode(picture, form), MOST)), picture)

    def test_jpeg_gives_nearly_the_same(self) -> None:
        smooth = np.stack(np.meshgrid(*[np.arange(64, dtype=np.uint8)] * 2) * 2, -1)[..., :3]
        close = pixels(opened(encode(smooth, "jpeg"), MOST)).astype(int)
        assert 0 < np.abs(close - smooth).max() < 12

    @pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
    @pytest.mark.parametrize("shape", [(1, 1), (2, 300), (300, 2), (64, 64), (257, 255)])
    def test_no_file_is_larger_than_foreseen(self, form: Any, shape: tuple[int, int]) -> None:
        noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        assert len(encode(noise, form, 100)) <= most_bytes(*shape, form)

    def test_grey_becomes_rgb(self) -> None:
        grey = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
        assert pixels(opened(file_of(grey, "PNG"), MOST)).shape == (8, 8, 3)

    @pytest.mark.parametrize("size", [(2000, 2000), (100_000, 100_000), (2**31 - 1, 2**31 - 1)])
    def test_giant_pngs_are_refused_by_their_header(self, size: tuple[int, int]) -> None:
        with pytest.raises(FlowOPDError, match=r"there is room for|no PNG"):
            opened(png(*size), MOST)

    @pytest.mark.parametrize("lossless", [True, False])
    def test_giant_webps_are_refused_before_the_decoder_sees_them(self, lossless: bool) -> None:
        data = file_of(Image.new("RGB", (4000, 300)), "WEBP", lossless=lossless)
        assert len(data) < 5000
        with pytest.raises(FlowOPDError, match="4000 x 300 pixels, and there is room for 1048576"):
            opened(data, MOST)
        extended = bytearray(file_of(Image.new("RGBA", (4000, 300)), "WEBP", exif=b"Exif\0\0"))
        assert extended[12:16] == b"VP8X"
        with pytest.raises(FlowOPDError, match="4000 x 300 pixels"):
            opened(bytes(extended), MOST)

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (b"", "no PNG, JPEG or WebP"),
            (b"hello", "no PNG, JPEG or WebP"),
            (file_of(Image.new("RGB", (8, 8)), "GIF"), "no PNG, JPEG or WebP"),
            (file_of(Image.new("RGB", (8, 8)), "BMP"), "no PNG, JPEG or WebP"),
            (file_of(Image.new("RGBA", (8, 8)), "PNG"), "of the mode RGBA"),
            (file_of(Image.effect_noise((8, 8), 99).convert("P"), "PNG"), "of the mode P"),
            (file_of(Image.new("1", (8, 8)), "PNG"), "has 1 bits a channel"),
            (file_of(Image.new("I;16", (8, 8)), "PNG"), "has 16 bits a channel"),
            (png(8, 8, bytes(8 * 49), depth=16), "has 16 bits a channel"),
            (file_of(Image.new("RGB", (8, 8)), "JPEG", progressive=True), "such as progressive"),
            (jpeg_with_scans(2), "several scans"),
            (file_of(Image.new("CMYK", (8, 8)), "JPEG"), "of the mode CMYK"),
            (file_of(Image.new("RGB", (8, 8)), "PNG", transparency=(0, 0, 0)), "transparent"),
            (
                file_of(
                    Image.new("RGB", (8, 8)),
                    "PNG",
                    save_all=True,
                    append_images=[Image.new("RGB", (8, 8), "red")],
                ),
                "2 frames",
            ),
        ],
    )
    def test_what_is_no_picture_is_refused(self, data: bytes, sentence: str) -> None:
        with pytest.raises(FlowOPDError, match=sentence):
            opened(data, MOST)

    @pytest.mark.parametrize(
        ("data", "sentence"),
        [
            (png(8, 8, bytes(8 * 25), more=500_000), "too small to be a picture's"),
            (jpeg_with_scans(20_000), "several scans"),
            (b"\xff\xd8" + b"\xff\xfe\0\2" * 500_000, "more than 512 parts"),
            (b"\xff\xd8" + b"\xff" * 2_000_000, "no PNG, JPEG"),
        ],
    )
    def test_files_of_many_small_parts_take_no_time(self, data: bytes, sentence: str) -> None:
        start = time.process_time()
        with pytest.raises(FlowOPDError, match=sentence):
            opened(data, MOST)
        assert time.process_time() - start < 0.3

    def test_what_cameras_add_to_a_jpeg_does_no_harm(self) -> None:
        """A thumbnail in it is a JPEG of its own."""
        exif, picture = Image.Exif(), Image.new("RGB", (16, 16), "red")
        exif[0x010F] = "a camera"
        small = b"Exif\0\0" + exif.tobytes() + jpeg_with_scans(1)
        data = file_of(picture, "JPEG", exif=small, icc_profile=bytes(100_000), dpi=(72, 72))
        assert pixels(opened(data, MOST)).shape == (16, 16, 3)

    @pytest.mark.parametrize("form", ["png", "webp", "jpeg"])
    def test_files_that_are_cut_off_or_damaged_never_give_another_error(self, form: Any) -> None:
        data = encode(pictures(1, size=40)[0], form)
        rng = np.random.default_rng(1)
        cut = [data[:length] for length in range(0, len(data), 97)]
        for _ in range(60):
            damaged = bytearray(data)
            for place in rng.integers(0, len(data), 4):
                damaged[place] = rng.integers(0, 256)
            cut.append(bytes(damaged))
        for attempt in cut:
            try:
                pixels(opened(attempt, MOST))
            except FlowOPDError:
                continue


class TestRequests:
    def test_come_out_as_they_went_in(self) -> None:
        images, own = pictures(4), records(4, include=[{"class": "cat", "count": 2}], text='ä "x"')
        found, read = read_request(request_body(images, own), Limits())
        np.testing.assert_array_equal(np.stack(found), images)
        assert read == own

    def test_have_at_most_so_many_pixels_in_all(self) -> None:
        body = request_body(pictures(3, size=10), records(3))
        read_request(body, Limits(pixels=360))
        with pytest.raises(FlowOPDError, match=r"items\.2 is wrong: it has 12 x 10 pixels.* 119"):
            read_request(body, Limits(pixels=359))

    def test_have_at_most_so_many_pictures(self) -> None:
        with pytest.raises(FlowOPDError, match="3 pictures; a request may have at most 2"):
            read_request(request_body(pictures(3), records(3)), Limits(batch=2))

    @pytest.mark.parametrize("value", [float("nan"), {1, 2}, b"bytes"])
    def test_what_json_cannot_say_is_not_sent(self, value: Any) -> None:
        with pytest.raises(FlowOPDError, match="cannot be sent"):
            request_body(pictures(1), [PromptRecord("x", meta={"value": value})])

    @pytest.mark.parametrize(
        ("items", "sentence"),
        [
            ("{", "Invalid JSON"),
            ("[]", "should be an object"),
            ("{}", "items: it is missing"),
            ('{"items": {"0": 1}}', "items: it is missing, or should be a list"),
            ('{"items": []}', "items: List should have at least 1 item"),
            ('{"items": [], "' + "b" * 10_000 + '": 1}', "^The body: the key 'b{60}' is not perm"),
            ('{"items": [{"prompt": "x"}]}', r"items\.0\.image: Field required"),
            ('{"items": [{"image": "AAAA"}]}', r"items\.0\.prompt: Field required"),
            ('{"items": [{"image": 3, "prompt": "x"}]}', "valid string"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "b": 1}]}', "not permitted"),
            ('{"items": [{"image": "AA A", "prompt": "x"}]}', "it is not base64"),
            ('{"items": [{"image": "\\u00e4", "prompt": "x"}]}', "it is not base64"),
            ('{"items": [{"image": "AAAA", "prompt": "\\ud800"}]}', "Invalid JSON"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "meta": [1]}]}', "valid dictionary"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "meta": {"a": 1e999}}]}', "finite"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "meta": {"a": NaN}}]}', "Invalid JSON"),
            (
                '{"items": [{"image": "A", "prompt": "x", "meta": {"a": "' + "b" * 65_536 + '"}}]}',
                "65545 characters as JSON, and may have 65536",
            ),
            ("[" * 100_000, "Invalid JSON"),
            ('{"items": ' + "[" * 100_000 + "]" * 100_000 + "}", "Invalid JSON"),
            ("\xff", "Invalid JSON"),
            ("null", "should be an object"),
        ],
    )
    def test_with_something_wrong_are_refused_in_a_sentence(
        self, items: str, sentence: str
    ) -> None:
        with pytest.raises(FlowOPDError, match=sentence):
            read_request(items.encode("latin-1"), Limits())

    def test_of_which_much_is_wrong_are_refused_for_the_first_of_it(self) -> None:
        good = json.loads(request_body(pictures(1), records(1)))["items"]
        body = json.dumps({"items": good + [{"image": 1}] * 60}).encode()
        with pytest.raises(FlowOPDError) as caught:
            read_request(body, Limits())
        said = "items.1.image: Input should be a valid string. items.1.prompt: Field required."
        assert str(caught.value) == said

    def test_of_long_records_are_read(self) -> None:
        """Commas are what values are counted by, and are in prompts as well."""
        own = [PromptRecord("red, " * 300, meta={"box": list(range(2000))})] * 64
        _, read = read_request(request_body(pictures(64), own), Limits())
        assert read == own

    @pytest.mark.parametrize(
        ("first", "piece", "count", "last"),
        [
            ("[", "1,", 2**17, "1]}"),
            ("[", "1,", 2**21, "1]}"),
            ("[", '{"image": "a", "prompt": "b"},', 2**17, "1]}"),
            ('[1], "0": [', '{"a":1},', 2**20, "1]}"),
            ('[{"meta": [', "[],", 2**20, "1]}]}"),
            ("", '{"a":', 2**20, ""),
        ],
    )
    def test_take_little_more_memory_than_their_bytes(
        self, first: str, piece: str, count: int, last: str
    ) -> None:
        """Each of some MiB in tiny values, read in a process whose most is looked at."""
        program = f"""
import resource
from flowopd.errors import FlowOPDError
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.wire import read_request
body = {('{"items": ' + first).encode()!r} + {piece.encode()!r} * {count} + {last.encode()!r}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_request(body, Limits())
except FlowOPDError:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        kibibytes = int(done.stdout) // (1024 if sys.platform == "darwin" else 1)
        assert kibibytes < 30 * 1024


class TestReplies:
    def test_floats_are_the_same_to_the_last_bit(self) -> None:
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2**63, 20_000, dtype=np.uint64)
        numbers = [float(number) for number in bits.view(np.float64) if math.isfinite(number)]
        numbers += [0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 2**53 + 1.0]
        scores = [Scores({"value": number}) for number in numbers]
        for sent, got in zip(numbers, read_reply(reply_body(scores, "x")).scores, strict=True):
            value = got.values["value"]
            assert value is not None
            assert struct.pack("<d", value) == struct.pack("<d", sent)

    def test_missing_values_keep_their_reasons(self) -> None:
        score = Scores({"a": None, "b": 1.0}, {"a": "it is blind"}, {"seen": ["x", {"n": 3}]})
        assert read_reply(reply_body([score], "one")) == Reply([score], "one")

    def test_failures_are_told_from_values_that_are_missing(self) -> None:
        reason = ({"a": None}, {"a": "no memory left"})
        sent = [Scores(*reason), Failed(*reason)]
        assert read_reply(reply_body(sent, "one")).scores == sent
        assert Scores(*reason) != Failed(*reason)

    def test_details_are_made_to_fit(self) -> None:
        given = {
            "array": np.arange(3),
            "number": np.float32(0.5),
            "nan": float("nan"),
            "tuple": (1, "x"),
            3: {"big": 10**30, "none": None, "yes": True},
            "text": "a\ud800b",
        }
        assert jsonable(given) == {
            "array": [0, 1, 2],
            "number": 0.5,
            "nan": None,
            "tuple": [1, "x"],
            "3": {"big": None, "none": None, "yes": True},
            "text": "a?b",
        }

    def test_nonsense_is_refused(self) -> None:
        for body in (b"", b"[]", b'{"scores": 3}', b'{"scores": [{"values": {"a": "x"}}]}'):
            with pytest.raises(FlowOPDError):
                read_reply(body)


def test_base64_is_taken_as_it_is_written() -> None:
    """Not with line breaks or other letters, which some decoders skip."""
    good = base64.b64encode(encode(pictures(1)[0])).decode()
    item = {"image": good[:20] + "\n" + good[20:], "prompt": "x"}
    with pytest.raises(FlowOPDError, match="not base64"):
        read_request(json.dumps({"items": [item]}).encode(), Limits())

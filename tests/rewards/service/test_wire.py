"""Pictures and scores on the way: nothing is lost, and nothing is unpacked that is too large."""

import base64
import io
import json
import math
import struct
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
    jsonable,
    read_reply,
    read_request,
    reply_body,
    request_body,
)
from flowopd.tasks.prompts import PromptRecord

MOST = 2**20


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size, as a decompression bomb has it."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in ((b"IHDR", head), (b"IDAT", body), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        parts += [struct.pack(">I", len(data)), kind, data, checksum]
    return b"".join(parts)


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
            opened(png_header(*size), MOST)

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
            (file_of(Image.new("P", (8, 8)), "PNG"), "of the mode P"),
            (file_of(Image.new("I;16", (8, 8)), "PNG"), "of the mode I;16"),
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
            ('{"items": []}', "items: List should have at least 1 item"),
            ('{"items": [{"prompt": "x"}]}', r"items\.0\.image: Field required"),
            ('{"items": [{"image": "AAAA"}]}', r"items\.0\.prompt: Field required"),
            ('{"items": [{"image": 3, "prompt": "x"}]}', "valid string"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "b": 1}]}', "not permitted"),
            ('{"items": [{"image": "AA A", "prompt": "x"}]}', "it is not base64"),
            ('{"items": [{"image": "\\u00e4", "prompt": "x"}]}', "it is not base64"),
            ('{"items": [{"image": "AAAA", "prompt": "\\ud800"}]}', "Invalid JSON"),
            ('{"items": [{"image": "AAAA", "prompt": "x", "meta": [1]}]}', "should be an object"),
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

    def test_of_which_much_is_wrong_are_refused_in_few_words(self) -> None:
        body = json.dumps({"items": [{"image": 1}] * 1000}).encode()
        with pytest.raises(FlowOPDError) as caught:
            read_request(body, Limits())
        assert len(str(caught.value)) < 400
        assert "And 1997 more." in str(caught.value)


class TestReplies:
    def test_floats_are_the_same_to_the_last_bit(self) -> None:
        rng = np.random.default_rng(0)
        bits = rng.integers(0, 2**63, 20_000, dtype=np.uint64)
        numbers = [float(number) for number in bits.view(np.float64) if math.isfinite(number)]
        numbers += [0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1 / 3, 2**53 + 1.0]
        scores = [Scores({"value": number}) for number in numbers]
        for sent, got in zip(numbers, read_reply(reply_body(scores)), strict=True):
            value = got.values["value"]
            assert value is not None
            assert struct.pack("<d", value) == struct.pack("<d", sent)

    def test_missing_values_keep_their_reasons(self) -> None:
        score = Scores({"a": None, "b": 1.0}, {"a": "it is blind"}, {"seen": ["x", {"n": 3}]})
        assert read_reply(reply_body([score])) == [score]

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

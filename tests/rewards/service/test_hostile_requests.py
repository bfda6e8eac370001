"""Requests that want no score: every one is refused with a 4xx, and the server stays as it was.

Both servers are tried: the package's, and the stand-alone one of servers/deqa.
"""

import base64
import contextlib
import io
import json
import os
import random
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from deqa_script import script, served_script
from PIL import Image
from served import QUICK, Exact, ask, held, pictures, port_of, raw, records, served, traced

from flowopd.rewards.service import gate
from flowopd.rewards.service.images import encode
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.wire import request_body
from flowopd.tasks.prompts import PromptRecord

KEY = "a-token-of-24-characters"
Serve = Callable[..., AbstractContextManager[str]]
GOOD = request_body(pictures(1), records(1))


@contextlib.contextmanager
def package(
    token: str | None = None, connections: int = 64, queue: int = 8, seconds: float | None = None
) -> Iterator[str]:
    with served(Exact(), _limits(connections, queue, seconds), token) as url:
        yield url


@contextlib.contextmanager
def stand_alone(
    token: str | None = None, connections: int = 64, queue: int = 8, seconds: float | None = None
) -> Iterator[str]:
    limits = _limits(connections, queue, seconds)
    with served_script(limits.model_dump(), token) as url:
        yield url


def _limits(connections: int, queue: int, seconds: float | None) -> Limits:
    """`seconds` that a body may take."""
    changes: dict[str, Any] = {"connections": connections, "queue": queue}
    if seconds is not None:
        changes |= {"pause_seconds": seconds, "body_seconds": seconds}
    return QUICK.model_copy(update=changes)


@pytest.fixture(autouse=True)
def short_farewells(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gate, script()):
        monkeypatch.setattr(module, "DRAIN_SECONDS", 0.1)


both = pytest.mark.parametrize("serve", [package, stand_alone])


def status_of(answer: bytes) -> int:
    """Of an answer that there has to be."""
    kind, status, _ = answer.split(b" ", 2)
    assert kind == b"HTTP/1.1"
    return int(status)


def score_at(url: str, path: str, body: Any) -> int:
    return ask(url, "POST", path, body)[0]


def score(url: str, body: Any) -> tuple[int, Any]:
    return ask(url, "POST", "/score", body)


def item(image: bytes | str, **more: Any) -> dict[str, Any]:
    text = image if isinstance(image, str) else base64.b64encode(image).decode()
    return {"image": text, "prompt": "x", **more}


def png(width: int, height: int, data: bytes = b"", depth: int = 8) -> bytes:
    head = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in ((b"IHDR", head), (b"IDAT", zlib.compress(data)), (b"IEND", b"")):
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        parts += [struct.pack(">I", len(content)), kind, content, checksum]
    return b"".join(parts)


def assert_alive(url: str) -> None:
    assert ask(url, "GET", "/healthz")[0] == 200
    status, reply = score(url, GOOD)
    assert status == 200
    assert len(reply["scores"]) == 1


def post(path: str, *headers: str) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join([*lines, "", ""]).encode()


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def file_of(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@both
def test_bodies_that_are_no_request(serve: Serve) -> None:
    good = json.loads(GOOD)["items"][0]
    bodies: list[Any] = [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\x00\xff",
        b'"' * 9,
        b"[" * 50_000,
        b'{"items": ' + b"9" * 10_000 + b"}",
        {},
        {"items": None},
        {"items": {}},
        {"items": []},
        {"items": [None]},
        {"items": [good], "more": 1},
        {"items": [{**good, "prompt": 7}]},
        {"items": [{**good, "meta": "x"}]},
        {"items": [{**good, "unknown": "x"}]},
        {"items": [good, {"prompt": "x"}]},
        {"items": [good] * (QUICK.batch + 1)},
        {"items": [1] * 30_000},
        b'{"items": [' + b"[]," * 100_000 + b"[]]}",
        {"items": [{**good, "prompt": "x" * 20_001}]},
        {"items": [{**good, "task": "x" * 201}]},
        {"items": [{**good, "tag": "x" * 201}]},
        {"items": [{**good, "tag": None}]},
        {"items": [{**good, "prompt": "\ud800"}]},
        {"items": [{**good, "meta": {"a": "x" * 2**16}}]},
        {"items": [{**good, "meta": {"a": nested(198)}}]},
        {"items": [{**good, "meta": {"a": float("nan")}}]},
        GOOD.replace(b'"meta": {}', b'"meta": {"a": 1e999}'),
        GOOD.decode().encode("utf-16"),
        b"\xef\xbb\xbf" + GOOD,
    ]
    with serve() as url:
        for body in bodies:
            status, reply = score(url, body)
            assert status == 422, body
            assert reply["error"].endswith(".")
            assert len(reply["error"]) <= 1000
        largest = {**good, "prompt": "x" * 20_000, "meta": {"a": nested(190)}}
        assert score(url, {"items": [largest]})[0] == 200
        assert_alive(url)


@both
def test_images_that_are_none(serve: Serve) -> None:
    whole = encode(pictures(1, size=40)[0])
    images: list[Any] = [
        "",
        "not base64!",
        "ä",
        b"x",
        b"\x89PNG\r\n\x1a\n",
        *(whole[:length] for length in (20, 60, len(whole) // 2, len(whole) - 20)),
        b"RIFF\x10\x00\x00\x00WEBPVP8X" + bytes(20),
        b"\xff\xd8\xff\xe0" + bytes(50),
        file_of(Image.new("RGB", (8, 8)), "JPEG", progressive=True),
        file_of(Image.new("RGB", (8, 8)), "JPEG").replace(b"\xff\xda", b"\xff\xda" * 2),
        b"\xff\xd8" + b"\xff\xfe\x00\x02" * 100_000,
        png(8, 8, bytes(8 * 49), depth=16),
        b"GIF89a" + bytes(50),
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    ]
    with serve() as url:
        for image in images:
            status, reply = score(url, {"items": [item(image)]})
            assert status == 422, image
            assert reply["error"].endswith(".")
        assert_alive(url)


@both
def test_images_that_would_fill_the_memory(serve: Serve) -> None:
    """A file of a few kilobytes can claim gigabytes: its header is what is looked at."""
    vp8x = b"RIFF\x1e\x00\x00\x00WEBPVP8X\x0a\x00\x00\x00" + bytes(4) + b"\xff\xff\xff" * 2
    bombs = [
        png(50_000, 50_000, bytes(10**6)),
        png(2**31 - 1, 2**31 - 1),
        png(300, 300, bytes(300 * 901)),
        vp8x + bytes(60),
    ]
    with serve() as url:
        for bomb in bombs:
            status, reply = score(url, {"items": [item(bomb)]})
            assert status == 422
            assert "pixels" in reply["error"] or "no PNG" in reply["error"]
        small = item(encode(pictures(1, size=120)[0]))
        assert score(url, {"items": [small] * 4})[0] == 200
        status, reply = score(url, {"items": [small] * 5})
        assert (status, "there is room for" in reply["error"]) == (422, True)
        assert_alive(url)


@both
def test_bodies_that_are_too_large(serve: Serve) -> None:
    with serve() as url:
        large = b"x" * (QUICK.body + 1)
        assert score(url, large)[0] == 413
        said = post("/score", f"Content-Length: {10**15}")
        assert b" 413 " in raw(url, said).split(b"\r\n")[0]
        assert b" 413 " in raw(url, post("/check", "Content-Length: 70000"), b"x" * 70_000)
        chunked = post("/score", "Transfer-Encoding: chunked")
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        assert status_of(raw(url, chunked, *[chunk] * 20)) in (413, 411)
        assert score_at(url, "/score?x=1", b"x" * (QUICK.body + 1)) == 413
        assert score_at(url, "/score?x=1", GOOD) == 200
        assert_alive(url)


@both
def test_http_that_is_none(serve: Serve) -> None:
    attempts = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 5000 + b"\r\n",
        post("/score", "Content-Length: -5"),
        post("/score", "Content-Length: 1e3"),
        post("/score", "Content-Length: 5", "Content-Length: 6") + b"12345",
        post("/score", "Transfer-Encoding: chunked") + b"zz\r\n",
        b"BREW /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"GET http://evil.example/about HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /about HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
    ]
    with serve() as url:
        for attempt in attempts:
            answer = raw(url, attempt)
            if not answer and not attempt.strip():
                continue  # was asked for nothing
            status = status_of(answer)
            assert 400 <= status < 500 or (status == 200 and b"GET /about" in attempt), attempt
        assert_alive(url)


@both
def test_callers_that_are_slow(serve: Serve) -> None:
    """What does not go on gets an answer, and so does what comes byte by byte."""
    with serve() as url:
        late = [
            (b"GET /healthz HT",),
            (post("/score", f"Content-Length: {len(GOOD)}"), GOOD[:30]),
            (post("/score", "Content-Length: 100"),),
        ]
        for pieces in late:
            assert status_of(raw(url, *pieces, seconds=30)) == 408
        header = post("/score", f"Content-Length: {len(GOOD)}")
        drip = [header[i : i + 1] for i in range(len(header))]
        assert status_of(raw(url, *drip, pause=0.02, seconds=30)) == 408
        drip = [GOOD[i : i + 1] for i in range(64)]
        assert status_of(raw(url, header, *drip, pause=0.1, seconds=30)) == 408
        raw(url, b"", b"\r\n", seconds=30)  # has asked for nothing, and may be left alone
        assert_alive(url)


@both
def test_bodies_that_come_slowly_keep_nobody_from_the_rest(serve: Serve) -> None:
    slow = post("/score", f"Content-Length: {len(GOOD)}")
    with serve(queue=2, seconds=30.0) as url, contextlib.ExitStack() as stack:
        for _ in range(2):
            place = socket.create_connection(("127.0.0.1", port_of(url)))
            stack.enter_context(place)
            place.sendall(slow + GOOD[:10])
        end = time.monotonic() + 20
        while "in_flight 2.0" not in ask(url, "GET", "/metrics")[1]:
            assert time.monotonic() < end
        start = time.monotonic()
        assert ask(url, "GET", "/healthz")[0] == 200
        assert ask(url, "GET", "/about", b"xx")[0] == 200
        assert score(url, GOOD)[0] == 429
        assert ask(url, "POST", "/check")[0] == 429
        assert time.monotonic() - start < 15


@both
def test_connections_that_are_held_open(serve: Serve) -> None:
    """They go when their time is over; until then, others are told to come back."""
    with serve(connections=8) as url, contextlib.ExitStack() as stack:
        end, answer = time.monotonic() + 60, b""
        while b" 429 " not in answer:
            assert time.monotonic() < end
            for _ in range(20):
                place = socket.create_connection(("127.0.0.1", port_of(url)))
                stack.enter_context(place)
            with contextlib.suppress(ConnectionError):
                answer = raw(url, b"", pause=0.5)
        while ask_or_none(url) != 200:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert_alive(url)


def ask_or_none(url: str) -> int | None:
    try:
        return ask(url, "GET", "/healthz")[0]
    except (OSError, EOFError, ValueError):
        return None


@both
def test_wrong_tokens(serve: Serve) -> None:
    with serve(token=KEY) as url:
        for given in ("", "Bearer", "Bearer x", f"Bearer {KEY}x", f"bearer  {KEY[:-1]}", "ä" * 3):
            headers = {"Authorization": given.encode().decode("latin-1")}
            status, reply = ask(url, "POST", "/score", GOOD, headers)
            assert (status, "token" in reply["error"]) == (401, True)
        assert ask(url, "POST", "/score", GOOD, {"Authorization": f"Bearer {KEY}"})[0] == 200
        assert ask(url, "GET", "/healthz")[0] == 200
        assert ask(url, "GET", "/healthz?x=1")[0] == 200
        assert ask(url, "GET", "/about")[0] == 401


@both
def test_other_names_of_this_machine(serve: Serve) -> None:
    with serve() as url:
        assert ask(url, "GET", "/about", headers={"Host": "evil.example"})[0] == 403
        for name in ("localhost:1", "127.1.2.3", "[::1]:80", "LOCALHOST"):
            assert ask(url, "GET", "/about", headers={"Host": name})[0] == 200


@both
def test_web_pages(serve: Serve) -> None:
    with serve() as url:
        for path in ("/check", "/score"):
            assert ask(url, "POST", path, GOOD, {"Origin": "https://evil.example"})[0] == 403
    with serve(token=KEY) as url:
        right = {"Authorization": f"Bearer {KEY}", "Origin": "https://example.org"}
        assert ask(url, "GET", "/about", headers=right)[0] == 200


@both
@pytest.mark.parametrize("form", ["png", "jpeg", "webp"])
def test_damaged_requests_at_random(serve: Serve, form: Any) -> None:
    """Right requests with some bytes changed, left out or put in: 200 or a 4xx, and never a 5xx."""
    dice = random.Random(0)
    image = encode(pictures(1, size=12)[0], form)
    with serve() as url:
        seen = set()
        for _ in range(120):
            damaged = bytearray(image)
            for _ in range(dice.choice([0, 1, 3])):
                place = dice.randrange(dice.choice([30, len(damaged)]))
                damaged[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            body = bytearray(json.dumps({"items": [item(bytes(damaged))]}).encode())
            for _ in range(dice.choice([0, 0, 1, 4])):
                place = dice.randrange(len(body))
                body[place : place + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            status, reply = score(url, bytes(body))
            seen.add(status)
            assert status in (200, 422), (status, reply)
        assert seen == {200, 422}
        assert_alive(url)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="there is no /proc to look into")
@both
def test_nothing_is_left_of_them(serve: Serve) -> None:
    """No connection, no thread, no memory."""
    bomb = {"items": [item(png(300, 300, bytes(300 * 901)))]}

    def attack(url: str) -> None:
        score(url, b"{")
        score(url, bomb)
        raw(url, b"nonsense\r\n\r\n")
        raw(url, post("/score", f"Content-Length: {10**9}"))
        with socket.create_connection(("127.0.0.1", port_of(url))) as place:
            place.sendall(post("/score", f"Content-Length: {len(GOOD)}") + GOOD[:100])

    with serve() as url, traced():
        attack(url)
        time.sleep(QUICK.header_seconds + 0.2)
        before = threading.active_count(), len(os.listdir("/proc/self/fd")), held()
        for _ in range(10):
            attack(url)
        end = time.monotonic() + 10
        while time.monotonic() < end:
            after = threading.active_count(), len(os.listdir("/proc/self/fd"))
            if after[0] <= before[0] and after[1] <= before[1]:
                break
            time.sleep(0.05)
        assert after[0] <= before[0]
        assert after[1] <= before[1]
        assert held() - before[2] < 2**20
        assert_alive(url)
        assert "in_flight 0.0" in ask(url, "GET", "/metrics")[1]


def test_texts_that_cannot_be_encoded_do_not_break_the_reply() -> None:
    class Echo(Exact):
        def _one(self, image: Any, record: PromptRecord) -> Any:
            record.meta["lone"] = "\ud800"
            return super()._one(image, record)

    with served(Echo()) as url:
        status, reply = score(url, GOOD)
    assert (status, reply["scores"][0]["detail"]["meta"]) == (200, {"lone": "?"})

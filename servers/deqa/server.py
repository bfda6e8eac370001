"""DeQA-Score over HTTP, for environments with the old transformers that it needs.

    python server.py [--device cuda:0] [--port 8101] [--token-file FILE] ...

Speaks the protocol of `flowopd reward serve` (JSON, pictures as PNG, JPEG or WebP in base64) with
nothing but Python's own library and Pillow; torch and transformers are imported with the weights.
"""

import argparse
import base64
import binascii
import contextlib
import hmac
import io
import ipaddress
import json
import math
import os
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageFilter, ImageStat

PROTOCOL, NAME, VERSION = 1, "deqa", 1
MODEL = "zhiyuanyou/DeQA-Score-Mix3"
METRIC = {
    "name": NAME,
    "low": 1.0,
    "high": 5.0,
    "strata": False,
    "scale": 5.0,
}
TOKEN, SHORTEST = "FLOWOPD_REWARD_TOKEN", 16
LOCAL_NAMES = ("localhost", "127.0.0.1", "[::1]")
KEYS = {"image", "prompt", "task", "tag", "meta"}
BROKEN = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
SMALL = 64 * 1024
DRAIN_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    body: int = 64 * 2**20
    batch: int = 64
    pixels: int = 64 * 2**20
    queue: int = 8
    connections: int = 64
    header_seconds: float = 10.0
    pause_seconds: float = 10.0
    body_seconds: float = 60.0


class RefusedError(Exception):
    def __init__(self, status, sentence, **headers):
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


# ---------------------------------------------------------------------------- the models


class DeQAScore:
    """The weights with their own code, whose `score` is the expectation over the five words."""

    def __init__(self, model, revision, device, batch_size):
        import torch
        from transformers import AutoModelForCausalLM

        self.batch_size, self._torch = batch_size, torch
        self.model = AutoModelForCausalLM.from_pretrained(
            model,
            revision=revision,
            trust_remote_code=True,
            attn_implementation="eager",
            torch_dtype=torch.float16,
            device_map={"": device},
        ).eval()
        commit = getattr(self.model.config, "_commit_hash", None)
        self.names = [f"{model}@{commit}" if commit else model]

    def score(self, images):
        found = []
        for first in range(0, len(images), self.batch_size):
            with self._torch.inference_mode():
                scores = self.model.score(images[first : first + self.batch_size])
            found += [float(score) for score in scores.reshape(-1)]
        return found


class Stub:
    """No DeQA-Score at all: 1 to 5 by how much neighbouring pixels differ, to try the server."""

    names = ("stub",)

    def score(self, images):
        return [self._one(image.convert("L").filter(ImageFilter.FIND_EDGES)) for image in images]

    def _one(self, edges):
        return 1.0 + 4.0 * (1.0 - math.exp(-ImageStat.Stat(edges).mean[0] / 16.0))


class Scorer:
    """One model, asked by one request at a time."""

    def __init__(self, model, identity):
        self.model, self.identity = model, identity
        self.turn = threading.Lock()
        self.images = self.failures = self.missing = self.seconds = 0

    def score(self, images):
        with self.turn:
            started = time.monotonic()
            try:
                found = self._each(images)
            finally:
                self.seconds += time.monotonic() - started
            self.images += len(images)
            self.missing += sum(value is None for value, _ in found)
        return [
            {
                "values": {NAME: value},
                "reasons": {} if value is not None else {NAME: reason},
                "detail": {},
            }
            for value, reason in found
        ]

    def check(self):
        """Sharp against blurred: the first has to be the better one."""
        sharp = _scene()
        blurred = sharp.filter(ImageFilter.GaussianBlur(8))
        (good, _), (bad, _) = self._each([sharp, blurred])
        known = good is not None and bad is not None
        return [
            {
                "what": "a sharp picture's score less a blurred one's",
                "value": good - bad if known else None,
                "expected": "above 0",
                "good": known and good > bad,
            }
        ]

    def _each(self, images):
        """A value or a reason for each; one by one when all together raises."""
        try:
            values = self.model.score(images)
            if len(values) != len(images):
                raise ValueError(f"{len(values)} scores for {len(images)} pictures")
            return [_finite(value) for value in values]
        except Exception as error:
            self.failures += 1
            words = f"{type(error).__name__}: {error}"[:300]
            print(f"{NAME} failed: {words}", file=sys.stderr, flush=True)
            if len(images) == 1:
                return [(None, f"the scorer failed: {words}")]
        return [self._each([image])[0] for image in images]


def _finite(value):
    if not math.isfinite(value):
        return None, f"the scorer gave {value}, which is no number"
    return float(value), ""


def _scene(size=448):
    """Discs and bars on a gradient, with hard edges."""
    from PIL import ImageDraw

    picture = Image.linear_gradient("L").resize((size, size)).convert("RGB")
    draw = ImageDraw.Draw(picture)
    for i in range(6):
        left = 20 + 70 * i
        draw.ellipse((left, 40 + 50 * (i % 3), left + 60, 100 + 50 * (i % 3)), (200, 40 * i, 60))
        draw.rectangle((left, 260, left + 30, 260 + 25 * (i + 1)), (30, 90, 255 - 40 * i))
    return picture


# ---------------------------------------------------------------------------- requests


def read_request(body, limits):
    """The pictures of a request; a RefusedError for what is wrong with it."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise RefusedError(422, "The body is no JSON.") from None
    items = data.get("items") if isinstance(data, dict) else None
    if not isinstance(items, list) or not items or len(data) != 1:
        raise RefusedError(422, 'The body should be {"items": [...]} with at least one item.')
    if len(items) > limits.batch:
        raise RefusedError(
            422, f"There are {len(items)} pictures; a request may have at most {limits.batch}."
        )
    images, left = [], limits.pixels
    for number, item in enumerate(items):
        _check_item(number, item)
        try:
            image = opened(item["image"], left)
        except ValueError as error:
            raise RefusedError(422, f"The image of items.{number} is wrong: {error}") from None
        left -= image.width * image.height
        images.append(image)
    pictures = []
    for number, image in enumerate(images):
        try:
            pictures.append(image.convert("RGB"))
        except BROKEN:
            raise RefusedError(
                422, f"The image of items.{number} is wrong: its pixels cannot be read."
            ) from None
    return pictures


def _check_item(number, item):
    right = (
        isinstance(item, dict)
        and {"image", "prompt"} <= item.keys() <= KEYS
        and all(isinstance(item.get(key, ""), str) for key in ("image", "prompt", "task", "tag"))
        and isinstance(item.get("meta", {}), dict)
    )
    if not right:
        raise RefusedError(422, f"items.{number} should have an image and a prompt, both texts.")


def opened(text, most):
    """The image in base64, of which only the header is read."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("it is not base64.") from None
    _check_size(*_webp_size(data), most)
    try:
        image = Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP"))
        frames = getattr(image, "n_frames", 1)
    except BROKEN:
        raise ValueError("it is no PNG, JPEG or WebP image.") from None
    _check_size(image.width, image.height, most)
    if frames != 1 or image.mode not in ("RGB", "L") or "transparency" in image.info:
        raise ValueError("it should have one frame of RGB or grey, 8 bits, nothing transparent.")
    if image.format != "PNG":
        return image
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # the checksums, which are skipped
        return Image.open(io.BytesIO(data), formats=("PNG",))  # when the pixels are read
    except BROKEN:
        raise ValueError("it is damaged.") from None


def _check_size(width, height, most):
    if width * height > most:
        raise ValueError(f"it has {width} x {height} pixels, and there is room for {most}.")


def _webp_size(data):
    """A WebP's size by its header, since its decoder makes room when it is opened."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    if data[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return tuple(int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))


# ---------------------------------------------------------------------------- HTTP


class Timed(io.RawIOBase):
    """What a socket receives, until a moment that is set from outside."""

    def __init__(self, connection):
        self.connection, self.end, self.pause = connection, 0.0, 0.0
        self.received = 0

    def readable(self):
        return True

    def readinto(self, buffer):
        left = min(self.end - time.monotonic(), self.pause)
        if left <= 0:
            raise TimeoutError("too slow")
        self.connection.settimeout(left)
        count = self.connection.recv_into(buffer)
        self.received += count
        return count

    def allow(self, seconds, pause):
        self.end, self.pause, self.received = time.monotonic() + seconds, pause, 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "deqa", ""

    def setup(self):
        super().setup()
        self.rfile.close()
        self.timed = Timed(self.connection)
        self.rfile = io.BufferedReader(self.timed)

    def handle_one_request(self):
        limits = self.server.limits
        self.timed.allow(limits.header_seconds, limits.header_seconds)
        self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
        try:
            super().handle_one_request()
        except (TimeoutError, ConnectionError):
            self.close_connection = True

    def log_message(self, *arguments):
        return

    def log_error(self, *arguments):
        """Also called when a header does not come: then whoever still listens is told."""
        self.close_connection = True
        if self.timed.received:
            with contextlib.suppress(OSError):
                self.answer(408, {"error": "The request came too slowly; send it in one go."})

    def send_error(self, code, message=None, explain=None):
        """The library's own refusals, in our form; a method that it does not know is a 405."""
        status = 405 if code == 501 else code if 400 <= code < 500 else 400
        self.close_connection = True
        allowed = {"Allow": "GET, POST"} if status == 405 else None
        self.answer(status, {"error": f"{message or 'This is no valid HTTP request'}."}, allowed)

    def do_GET(self):
        self.dispatch("GET")

    def do_POST(self):
        self.dispatch("POST")

    def dispatch(self, method):
        try:
            self.check_caller()
            body = self.body()
            reply = self.reply(method, body)
        except RefusedError as refusal:
            self.answer(refusal.status, {"error": str(refusal)}, refusal.headers)
        except TimeoutError:
            self.close_connection = True
            self.answer(408, {"error": "The body of the request came too slowly."})
        else:
            self.answer(200, reply)

    def reply(self, method, body):
        server, path = self.server, self.path.partition("?")[0]
        known = {
            "/healthz": "GET",
            "/about": "GET",
            "/metrics": "GET",
            "/score": "POST",
            "/check": "POST",
        }
        if path not in known:
            raise RefusedError(404, f"There is no {path[:100]!r}.")
        if known[path] != method:
            raise RefusedError(405, f"{path} takes {known[path]}.", Allow=known[path])
        if path == "/healthz":
            return {"status": "ok"}
        if path == "/about":
            return server.about()
        if path == "/metrics":
            return server.counts()
        with server.admitted():
            if path == "/check":
                return {"findings": server.scorer.check()}
            kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise RefusedError(
                    415, "The body has to be JSON: 'Content-Type: application/json'."
                )
            with server.room:
                return {"scores": server.scorer.score(read_request(body, server.limits))}

    def check_caller(self):
        token = self.server.token
        if token is None:
            host = self.headers.get("Host", "localhost").lower()
            name = host if host.endswith("]") else host.rpartition(":")[0] or host
            if name not in LOCAL_NAMES:
                self.refuse_unread(
                    403, "A server without a token answers only to localhost and its addresses."
                )
        elif self.path != "/healthz":
            scheme, _, given = self.headers.get("Authorization", "").partition(" ")
            given = given.strip().encode("utf-8", "replace")
            right = hmac.compare_digest(given, token.encode())
            if not right or scheme.lower() != "bearer":
                self.refuse_unread(
                    401,
                    "The token is missing or wrong; send it as 'Authorization: Bearer TOKEN'.",
                    WWW_Authenticate="Bearer",
                )

    def refuse_unread(self, status, sentence, **headers):
        """Refuse without reading the body, but let some of it in so that the answer arrives."""
        self.close_connection = True
        self.timed.allow(DRAIN_SECONDS, DRAIN_SECONDS)
        length = self.headers.get("Content-Length", "0")
        with contextlib.suppress(OSError):
            left = int(length) if length.isdigit() else 0
            while left > 0 and (piece := self.rfile.read(min(left, SMALL))):
                left -= len(piece)
        raise RefusedError(status, sentence, **headers)

    def body(self):
        limits = self.server.limits
        most = limits.body if self.path == "/score" else SMALL
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding"):
            self.refuse_unread(411, "Send the body with its Content-Length.")
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            self.refuse_unread(400, "The Content-Length is no number.")
        if int(length) > most:
            self.refuse_unread(413, f"The body is too large; at most {most} bytes are taken here.")
        with self.server.reading:
            self.timed.allow(limits.body_seconds, limits.pause_seconds)
            body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("hung up")
        return body

    def answer(self, status, reply, headers=None):
        text = isinstance(reply, str)
        content = reply.encode() if text else json.dumps(reply, allow_nan=False).encode()
        self.connection.settimeout(30.0)
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if text else "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address, scorer, limits, token):
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, Handler)
        self.scorer, self.limits, self.token = scorer, limits, token
        self.started, self.requests = time.monotonic(), 0
        self.places = threading.Semaphore(limits.connections)
        self.reading = threading.Semaphore(limits.queue)
        self.waiting = threading.Semaphore(limits.queue)
        self.room = threading.Semaphore(2)  # one is scored while the next is read

    def process_request(self, request, client_address):
        if not self.places.acquire(blocking=False):
            body = b'{"error": "The server has too many connections; come back in a moment."}'
            head = (
                "HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nConnection: close\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            with contextlib.suppress(OSError):
                request.settimeout(1.0)
                request.sendall(head.encode() + body)
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address):
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.places.release()

    def handle_error(self, request, client_address):
        print(f"{NAME}: {sys.exc_info()[1]!r}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def admitted(self):
        if not self.waiting.acquire(blocking=False):
            raise RefusedError(429, "The server has enough to do; come back.", Retry_After="1")
        try:
            self.requests += 1
            yield
        finally:
            self.waiting.release()

    def about(self):
        limits = self.limits
        return {
            "protocol": PROTOCOL,
            "name": NAME,
            "version": VERSION,
            "metrics": [METRIC],
            "tasks": None,
            "grouped": False,
            "identity": self.scorer.identity,
            "about": {"models": self.scorer.model.names, "licence": "MIT", "cost": ""},
            "limits": {
                "body": limits.body,
                "batch": limits.batch,
                "pixels": limits.pixels,
                "queue": limits.queue,
            },
        }

    def counts(self):
        scorer = self.scorer
        counts = {
            "requests_total": self.requests,
            "images_total": scorer.images,
            "missing_total": scorer.missing,
            "failures_total": scorer.failures,
            "score_seconds_sum": scorer.seconds,
            "uptime_seconds": time.monotonic() - self.started,
        }
        return "".join(f"flowopd_reward_{name} {value}\n" for name, value in counts.items())


def find_token(arguments):
    if arguments.token_file:
        with open(arguments.token_file, encoding="utf-8") as file:
            token = file.read().strip()
    else:
        token = os.environ.get(TOKEN) or None
    if token is not None and not (token and token.isascii() and token.isprintable()):
        sys.exit("The token has to be of ASCII letters, digits and signs, and may not be empty.")
    found = socket.getaddrinfo(arguments.host, None, flags=socket.AI_PASSIVE)
    inside = all(ipaddress.ip_address(one[4][0]).is_loopback for one in found)
    if not inside and (token is None or len(token) < SHORTEST):
        sys.exit(
            f"{arguments.host} can be reached from other machines: give a token of {SHORTEST} or "
            f"more characters with --token-file or in {TOKEN}, or serve at 127.0.0.1."
        )
    return token


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="a hub id, or a folder with the weights")
    parser.add_argument("--revision", help="the commit of the hub id, whose code is run")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once on the device")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101, help="0 is any free one")
    parser.add_argument("--token-file", help=f"or the environment's {TOKEN}")
    parser.add_argument("--stub", action="store_true", help="no model: try the server without it")
    for name, value in vars(Limits()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    limits = Limits(**{name: getattr(arguments, name) for name in vars(Limits())})
    server = Server((arguments.host, arguments.port), None, limits, find_token(arguments))
    if arguments.stub:
        model = Stub()
    else:
        print(f"loading {arguments.model}", flush=True)
        model = DeQAScore(
            arguments.model, arguments.revision, arguments.device, arguments.batch_size
        )
    server.scorer = Scorer(model, {} if arguments.model == MODEL else {"model": arguments.model})
    host, port = server.server_address[:2]
    what = ", ".join(model.names)
    print(f"{NAME} {VERSION} ({what}) is served at http://{host}:{port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()

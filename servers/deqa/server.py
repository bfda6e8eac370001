"""DeQA-Score over HTTP, for environments with the old transformers that it needs.

    python server.py [--device cuda:0] [--port 8101] [--token-file FILE] ...

Speaks the protocol of `flowopd reward serve` (JSON, pictures as PNG, JPEG or WebP in base64) with
nothing but Python's own library and Pillow; torch and transformers are imported with the weights.
What it speaks is what `GET /openapi.json` of that says; it has no schema of its own.
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
import secrets
import socket
import struct
import sys
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image, ImageFilter, ImageStat

PROTOCOL, NAME, VERSION = 2, "deqa", 1
MODEL = "zhiyuanyou/DeQA-Score-Mix3"
METRIC = {
    "name": NAME,
    "low": 1.0,
    "high": 5.0,
    "strata": False,
    "scale": 5.0,
}
TOKEN, SHORTEST = "FLOWOPD_REWARD_TOKEN", 16
LOCALHOST = "localhost"
WAYS = {
    "/healthz": "GET",
    "/about": "GET",
    "/metrics": "GET",
    "/score": "POST",
    "/check": "POST",
}
WORK = ("/score", "/check")
LONGEST = {"prompt": 20_000, "task": 200, "tag": 200}
LARGEST_META, DEEPEST, PARTS = 64 * 1024, 198, 4096
KEYS = {"image", "prompt", "task", "tag", "meta"}
BROKEN = (OSError, SyntaxError, ValueError, IndexError, struct.error, Image.DecompressionBombError)
SMALL = 64 * 1024
DRAIN_SECONDS = 1.0
METRICS = {
    "requests_total": ("counter", "Requests that were answered, by path and status."),
    "images_total": ("counter", "Pictures that were scored."),
    "missing_total": ("counter", "Values that could not be had."),
    "failures_total": ("counter", "Pictures on which the scorer failed."),
    "score_seconds_sum": ("counter", "Seconds that the scorer worked."),
    "score_seconds_count": ("counter", "Requests that the scorer worked on."),
    "requests_in_flight": ("gauge", "Requests that are read, wait or are scored."),
    "uptime_seconds": ("gauge", "Seconds since the server started."),
    "resident_memory_bytes": ("gauge", "Memory that the process holds."),
}


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
    """One model, asked by one request at a time, which may take so many seconds."""

    def __init__(self, model, identity, timeout=120.0):
        self.model, self.identity, self.timeout = model, identity, timeout
        self.instance = secrets.token_hex(8)
        self.turn, self.late = threading.Lock(), None
        self.images = self.failures = self.missing = self.calls = self.seconds = 0

    def score(self, images):
        """A Score for each picture, as the protocol has it."""
        with self.turn:
            started = time.monotonic()
            try:
                found = self._in_time(images)
            finally:
                self.seconds += time.monotonic() - started
                self.calls += 1
            self.images += len(images)
            self.missing += sum(value is None for value, _, _ in found)
            self.failures += sum(failed for _, _, failed in found)
        return [
            {
                "values": {NAME: value},
                "reasons": {} if value is not None else {NAME: reason},
                "detail": {},
                "failed": failed,
            }
            for value, reason, failed in found
        ]

    def check(self):
        """Sharp against blurred: the first has to be the better one."""
        sharp = _scene()
        blurred = sharp.filter(ImageFilter.GaussianBlur(8))
        with self.turn:
            (good, _, _), (bad, _, _) = self._in_time([sharp, blurred])
        known = good is not None and bad is not None
        return [
            {
                "what": "a sharp picture's score less a blurred one's",
                "value": good - bad if known else None,
                "expected": "above 0",
                "good": known and good > bad,
            }
        ]

    def refuse_if_late(self):
        """While a call that took too long has not come back, if ever it does."""
        late = self.late
        if late is not None and late.is_alive():
            raise RefusedError(
                503,
                "The scorer does not come back: it is still at work on a call that was given up.",
                Retry_After="1",
            )

    def _in_time(self, images):
        """What `_each` finds, in a thread that is left alone when it does not come back."""
        self.refuse_if_late()
        found = []
        thread = threading.Thread(target=lambda: found.append(self._each(images)), daemon=True)
        thread.start()
        thread.join(self.timeout)
        if thread.is_alive():
            self.late = thread
            raise RefusedError(
                503,
                f"The scorer does not come back: it did not answer within {self.timeout:g} s.",
                Retry_After="1",
            )
        return found[0]

    def _each(self, images):
        """A value or a reason for each; one by one when all together raises."""
        try:
            values = self.model.score(images)
            if len(values) != len(images):
                raise ValueError(f"{len(values)} scores for {len(images)} pictures")
            return [_finite(value) for value in values]
        except (Exception, SystemExit) as error:
            words = f"{type(error).__name__}: {error}"[:300]
            print(f"{NAME} failed: {words}", file=sys.stderr, flush=True)
            if len(images) == 1:
                return [(None, f"the scorer failed: {words}", True)]
        return [self._each([image])[0] for image in images]


def _finite(value):
    if not math.isfinite(value):
        return None, f"the scorer gave {value}, which is no number", False
    return float(value), "", False


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
    if sum(body.count(sign) for sign in (b",", b"[", b"{")) > PARTS * limits.batch:
        raise RefusedError(422, f"The body has more than {PARTS * limits.batch} values.")
    try:
        data = json.loads(body.decode("utf-8"), parse_constant=_no_number)
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
    for key, most in LONGEST.items():
        if len(item.get(key, "")) > most:
            raise RefusedError(422, f"items.{number}.{key} should have at most {most} characters.")
    meta = item.get("meta", {})
    if _deeper(meta, DEEPEST) or len(json.dumps(meta)) > LARGEST_META:
        raise RefusedError(422, f"items.{number}.meta is too deep or too large.")
    record = {key: value for key, value in item.items() if key != "image"}
    try:
        json.dumps(record, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        raise RefusedError(422, f"items.{number} has what JSON does not.") from None


def _deeper(value, levels):
    """Whether lists and objects are within one another more often than that."""
    if not isinstance(value, list | dict):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_deeper(one, levels - 1) for one in inner)


def _no_number(text):
    raise ValueError(f"{text} is no JSON")


def opened(text, most):
    """The image in base64, of which only the header is read."""
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise ValueError("it is not base64.") from None
    _check_header(data, most)
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


def _check_header(data, most):
    """Refuse what costs much more than its bytes before a decoder sees it.

    Parts of a PNG or JPEG without end, a JPEG whose pixels come again and again, a giant WebP.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    elif data[:2] == b"\xff\xd8":
        _check_jpeg(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) >= 30:
        _check_size(*_webp_size(data), most)


def _check_png(data):
    if data[24:25] not in (b"", b"\x08"):
        raise ValueError(f"it has {data[24]} bits a channel, and should have 8.")
    place, parts = 8, 64 + len(data) // 1024
    while place < len(data):
        place += 12 + int.from_bytes(data[place : place + 4], "big")
        parts -= 1
        if parts < 0:
            raise ValueError("it has too many parts.")


def _check_jpeg(data):
    place, kind = 2, 0
    for _ in range(512):
        if place + 4 > len(data) or data[place] != 0xFF:
            raise ValueError("it is no PNG, JPEG or WebP image.")
        kind = data[place + 1]
        if kind in (0xC2, 0xC3) or (0xC5 <= kind <= 0xCF and kind not in (0xC8, 0xCC)):
            raise ValueError("it is a JPEG of another kind than baseline, such as progressive.")
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
        if kind == 0xDA:
            break
    if kind != 0xDA or data.find(b"\xff\xda", place) >= 0:
        raise ValueError("it is a JPEG of several scans, or of too many parts.")


def _webp_size(data):
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
    protocol_version = default_request_version = "HTTP/1.1"
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
        path = self.path.partition("?")[0]
        try:
            self.check_caller(path)
            with self.admitted() if path in WORK else contextlib.nullcontext():
                reply = self.reply(method, path, self.body(path))
        except RefusedError as refusal:
            self.answer(refusal.status, {"error": str(refusal)}, refusal.headers)
        except TimeoutError:
            self.close_connection = True
            self.answer(408, {"error": "The body of the request came too slowly."})
        else:
            self.answer(200, reply)

    def reply(self, method, path, body):
        server, scorer = self.server, self.server.scorer
        if path not in WAYS:
            raise RefusedError(404, f"There is no {path[:100]!r}.")
        if WAYS[path] != method:
            raise RefusedError(405, f"{path} takes {WAYS[path]}.", Allow=WAYS[path])
        if path == "/about":
            return server.about()
        if path == "/metrics":
            return server.counts()
        scorer.refuse_if_late()
        if path == "/healthz":
            return {"status": "ok"}
        if path == "/check":
            return {"findings": scorer.check()}
        kind = self.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RefusedError(415, "The body has to be JSON: 'Content-Type: application/json'.")
        with server.room:
            scores = scorer.score(read_request(body, server.limits))
        return {"scores": scores, "instance": scorer.instance}

    @contextlib.contextmanager
    def admitted(self):
        """A place among the requests that are read, wait or are scored."""
        if not self.server.waiting.acquire(blocking=False):
            self.refuse_unread(429, "The server has enough to do; come back.", Retry_After="1")
        self.server.count("requests_in_flight")
        try:
            yield
        finally:
            self.server.count("requests_in_flight", -1)
            self.server.waiting.release()

    def check_caller(self, path):
        token = self.server.token
        if token is None:
            host = self.headers.get("Host", LOCALHOST).lower()
            if self.headers.get("Origin") is not None:
                self.refuse_unread(403, "A server without a token answers no web page.")
            if not self.server.is_local(host):
                self.refuse_unread(
                    403, "A server without a token answers only to localhost and its addresses."
                )
        elif path != "/healthz":
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

    def body(self, path):
        limits = self.server.limits
        most = limits.body if path == "/score" else SMALL
        length = self.headers.get("Content-Length", "0")
        if self.headers.get("Transfer-Encoding"):
            self.refuse_unread(411, "Send the body with its Content-Length.")
        once = len(self.headers.get_all("Content-Length", ["0"])) == 1
        if not (once and length.isascii() and length.isdigit() and len(length) < 20):
            self.refuse_unread(400, "The Content-Length is no number.")
        if int(length) > most:
            self.refuse_unread(413, f"The body is too large; at most {most} bytes are taken here.")
        self.timed.allow(limits.body_seconds, limits.pause_seconds)
        body = self.rfile.read(int(length))
        if len(body) < int(length):
            raise ConnectionError("hung up")
        return body

    def answer(self, status, reply, headers=None):
        text = isinstance(reply, str)
        content = reply.encode() if text else json.dumps(reply, allow_nan=False).encode()
        path = self.path.partition("?")[0] if self.command else "other"
        path = path if path in WAYS else "other"
        self.server.count("requests_total", path=path, status=status)
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
        self.names = (LOCALHOST, address[0].lower())
        self.started, self.numbers = time.monotonic(), {"requests_in_flight": 0}
        self.counting = threading.Lock()
        self.places = threading.Semaphore(limits.connections)
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

    def is_local(self, host):
        """Whether a name, with its port or without, can only mean this machine."""
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        try:
            return name in self.names or ipaddress.ip_address(name.strip("[]")).is_loopback
        except ValueError:
            return False

    def count(self, name, amount=1, **labels):
        braces = ",".join(f'{key}="{value}"' for key, value in labels.items())
        key = f"{name}{{{braces}}}" if braces else name
        with self.counting:
            self.numbers[key] = self.numbers.get(key, 0) + amount

    def about(self):
        limits = self.limits
        return {
            "protocol": PROTOCOL,
            "instance": self.scorer.instance,
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
        """In Prometheus's form, under the names that `flowopd reward serve` has."""
        scorer = self.scorer
        with self.counting:
            numbers = dict(self.numbers)
        numbers |= {
            "images_total": scorer.images,
            "missing_total": scorer.missing,
            "failures_total": scorer.failures,
            "score_seconds_sum": scorer.seconds,
            "score_seconds_count": scorer.calls,
            "uptime_seconds": time.monotonic() - self.started,
            "resident_memory_bytes": resident_memory(),
        }
        lines = []
        for name, (kind, words) in METRICS.items():
            lines += [
                f"# HELP flowopd_reward_{name} {words}",
                f"# TYPE flowopd_reward_{name} {kind}",
            ]
            own = sorted(key for key in numbers if key.partition("{")[0] == name)
            lines += [f"flowopd_reward_{key} {float(numbers[key])!r}" for key in own]
        return "\n".join(lines) + "\n"


def resident_memory():
    """Bytes that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


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


def identity_of(arguments):
    """The setting `model` that flowopd's `deqa` has to have to take the scores for its own."""
    name = f"{arguments.model}@{arguments.revision}" if arguments.revision else arguments.model
    name = "stub" if arguments.stub else name
    return {} if name == MODEL else {"model": name}


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=MODEL, help="a hub id, or a folder with the weights")
    parser.add_argument("--revision", help="the commit of the hub id, whose code is run")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at once on the device")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8101, help="0 is any free one")
    parser.add_argument("--token-file", help=f"or the environment's {TOKEN}")
    parser.add_argument(
        "--timeout", type=float, default=120.0, help="seconds of a request's call of the model"
    )
    parser.add_argument("--stub", action="store_true", help="no model: try the server without it")
    for name, value in vars(Limits()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    arguments = parser.parse_args()
    if arguments.revision and os.path.isdir(arguments.model):
        sys.exit("A folder has no --revision; leave it out, or give the hub id.")
    limits = Limits(**{name: getattr(arguments, name) for name in vars(Limits())})
    server = Server((arguments.host, arguments.port), None, limits, find_token(arguments))
    if arguments.stub:
        model = Stub()
    else:
        print(f"loading {arguments.model}", flush=True)
        model = DeQAScore(
            arguments.model, arguments.revision, arguments.device, arguments.batch_size
        )
    server.scorer = Scorer(model, identity_of(arguments), arguments.timeout)
    host, port = server.server_address[:2]
    what = ", ".join(model.names)
    print(f"{NAME} {VERSION} ({what}) is served at http://{host}:{port}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.serve_forever()


if __name__ == "__main__":
    main()

"""Servers of scores within the test's process, the scorers that they serve, and raw requests."""

import asyncio
import contextlib
import gc
import http.client
import json
import select
import socket
import threading
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import About, Finding, MetricInfo, Scores
from flowopd.rewards.service.access import taken
from flowopd.rewards.service.connections import assembled
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.scoring import Service
from flowopd.rewards.work.runners import Runner, ThreadRunner
from flowopd.tasks.prompts import PromptRecord

QUICK = Limits(
    body=2**20, batch=8, pixels=2**16, header_seconds=0.8, pause_seconds=0.8, body_seconds=1.0
)


class Exact:
    """Numbers that no rounding on the way would leave as they are, by picture and prompt."""

    name, version, tasks, grouped = "exact", 3, None, False
    metrics = (MetricInfo("exact"), MetricInfo("length", 0, 1e9, scale=10))
    about = About(("owner/exact",), "MIT", "nothing")

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.seen: list[str] = []

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        self.calls.append(len(images))
        self.seen += [record.prompt for record in records]
        return [self._one(image, record) for image, record in zip(images, records, strict=True)]

    def _one(self, image: np.ndarray, record: PromptRecord) -> Scores:
        weights = np.arange(1, image.size + 1, dtype=np.float64)
        value = float(np.sin(image.reshape(-1) @ weights)) / 3
        if record.meta.get("blind"):
            return Scores({"exact": None, "length": 1.0}, {"exact": "it is blind"})
        detail = {"shape": image.shape, "tag": record.tag, "meta": record.meta}
        return Scores({"exact": value, "length": float(len(record.prompt))}, detail=detail)


class Fussy(Exact):
    """Raises at some prompts, gives no numbers at others, and refuses others beforehand."""

    tasks = frozenset({"a", "b"})

    def check(self, record: PromptRecord) -> None:
        if record.prompt == "refused":
            raise FlowOPDError("it is refused.")

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        prompts = [record.prompt for record in records]
        if "raises" in prompts:
            raise RuntimeError("no memory left")
        if "short" in prompts:
            return super().score(images, records)[1:]
        scores = super().score(images, records)
        odd = {"nan": float("nan"), "inf": -float("inf")}
        return [
            Scores({"exact": odd[prompt], "length": np.float32(2)}) if prompt in odd else score
            for prompt, score in zip(prompts, scores, strict=True)
        ]

    def self_check(self) -> list[Finding]:
        return [Finding("red", 0.25, "above 0.2", True), Finding("blue", None, "a value", False)]


class Slow(Exact):
    """Takes as long as it is told, or until it is let go."""

    def __init__(self, seconds: float = 60.0) -> None:
        super().__init__()
        self.seconds, self.go = seconds, threading.Event()
        self.started = threading.Event()

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        self.started.set()
        self.go.wait(self.seconds)
        return super().score(images, records)


@contextlib.contextmanager
def served(
    scorer: Any,
    limits: Limits | None = None,
    token: str | None = None,
    identity: dict[str, Any] | None = None,
    timeout: float | None = None,
    runners: Sequence[Runner] | None = None,
    port: int = 0,
) -> Iterator[str]:
    """The address of a server of the scorer, which works in a thread if nothing else is given."""
    place = taken("127.0.0.1", port)
    places = runners or [ThreadRunner(scorer)]
    service = Service(scorer, places, limits or Limits(), identity, timeout)
    server = assembled(service, token)

    async def run() -> None:
        await service.load()
        await server.serve(sockets=[place])

    thread = threading.Thread(target=asyncio.run, args=(run(),), daemon=True)
    thread.start()
    try:
        _wait_until(lambda: server.started)
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=10)
        place.close()
        service.close()


def _wait_until(condition: Any, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as place:
        return int(place.getsockname()[1])


def ask(
    url: str, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """The status and the JSON (or text) of an answer."""
    data = json.dumps(body).encode() if isinstance(body, dict | list) else body
    sent = {"Content-Type": "application/json"} if data is not None else {}
    connection = http.client.HTTPConnection("127.0.0.1", port_of(url), timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, data, {**sent, **(headers or {})})
        answer = connection.getresponse()
        content = answer.read()
        if answer.headers.get_content_type() == "application/json":
            return answer.status, json.loads(content)
        return answer.status, content.decode()


def raw(url: str, *parts: bytes, pause: float = 0.0, seconds: float = 10.0) -> bytes:
    """What comes back of bytes sent piece by piece, until the server hangs up or says no more.

    Nothing is sent any more when it has answered, since that could cost the answer.
    """
    found = b""
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=seconds) as place:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                place.sendall(part)
                if select.select([place], [], [], pause)[0]:
                    break
        with contextlib.suppress(ConnectionError):
            while piece := _received(place, said=bool(found)):
                found += piece
    return found


def _received(place: socket.socket, *, said: bool) -> bytes:
    if said:
        place.settimeout(0.3)
    try:
        return place.recv(65536)
    except TimeoutError:
        assert said, "the server neither answers nor hangs up"
        return b""


def pictures(count: int, size: int = 8, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, size, size + 2, 3), dtype=np.uint8)


def records(count: int, **meta: Any) -> list[PromptRecord]:
    return [PromptRecord(f"prompt {i}", "a", f"tag {i % 2}", dict(meta)) for i in range(count)]


@contextlib.contextmanager
def traced() -> Iterator[None]:
    """Memory that Python and numpy hold is counted: what the process keeps varies with chance."""
    tracemalloc.start()
    try:
        yield
    finally:
        tracemalloc.stop()


def held() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]

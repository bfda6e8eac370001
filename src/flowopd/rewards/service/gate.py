"""What stands before the application: who may ask, how much, how fast, and how many at once."""

import asyncio
import contextlib
import hmac
import ipaddress
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flowopd.rewards.service.counters import Counters
from flowopd.rewards.service.limits import Limits

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = ("/healthz",)
"""Paths that need no token."""
WORK = ("/score", "/check")
"""Paths that are admitted one queue's length at a time."""
PATHS = (*OPEN, *WORK, "/about", "/metrics", "/openapi.json")
LOCALHOST = "localhost"
LONGEST = 1000
"""Characters of the sentence of a refusal, which may have in it what a client sent."""
SEND_SECONDS = 30.0
DRAIN_SECONDS = 1.0
SMALL = 64 * 1024
"""Bytes of the body of a request that needs none."""
COME_BACK = 1
"""Seconds."""


class RefusedError(Exception):
    """The answer to a request that does not get through."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class GoneError(Exception):
    """The one who asked has hung up."""


class Gate:
    """An ASGI application around another.

    The token is compared before a byte of the body is read; the body is read whole, within its
    limits, before the application sees the request. Without a token only those are answered who
    call the server ``localhost``, by an address of the loopback, or as it was told to (``name``),
    and no web page is: browsers say where a request comes from that another page made.
    """

    def __init__(
        self, app: App, limits: Limits, token: str | None, counters: Counters, name: str = LOCALHOST
    ) -> None:
        self.app, self.limits, self.counters = app, limits, counters
        self.token, self.name = None if token is None else token.encode(), name.lower()
        self.admitted = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        seen = _Watched(send)
        try:
            await self._through(scope, receive, seen)
        except RefusedError as refused:
            await _drain(receive)
            await _answer(seen, refused)
        except GoneError:
            return
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.counters.add("requests_total", path=path, status=str(seen.status or "none"))

    async def _through(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {key.lower(): value for key, value in scope["headers"]}
        self._check_caller(scope["path"], headers)
        most = self.limits.body if scope["path"] == "/score" else SMALL
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length[:20]) > most:
            raise _too_large(most)
        if scope["path"] not in WORK:
            body = await self._body(receive, most)
            return await self.app(scope, _replayed(body, receive), send)
        if self.admitted >= self.limits.queue:
            raise RefusedError(
                429,
                f"The server has {self.admitted} requests to work on; come back in a moment.",
                retry_after=str(COME_BACK),
            )
        self.admitted += 1
        self.counters.add("requests_in_flight")
        try:
            body = await self._body(receive, most)
            return await self.app(scope, _replayed(body, receive), send)
        finally:
            self.admitted -= 1
            self.counters.add("requests_in_flight", -1)

    def _check_caller(self, path: str, headers: dict[bytes, bytes]) -> None:
        if self.token is None:
            if b"origin" in headers:
                raise RefusedError(403, "A server without a token answers no web page.")
            if not self._is_local(headers.get(b"host", b"localhost").decode("latin-1").lower()):
                raise RefusedError(
                    403,
                    f"A server without a token answers only to {self.name} and to addresses of "
                    "this machine such as 127.0.0.1; start it with a token to call it otherwise.",
                )
            return
        if path in OPEN:
            return
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        right = hmac.compare_digest(given.strip(), self.token)
        if not right or scheme.lower() != b"bearer":
            raise RefusedError(
                401,
                "The token is missing or wrong; send it as 'Authorization: Bearer TOKEN'.",
                www_authenticate="Bearer",
            )

    def _is_local(self, host: str) -> bool:
        """Whether a name, with its port or without, can only mean this machine."""
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name in (LOCALHOST, self.name):
            return True
        try:
            return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
        except ValueError:
            return False

    async def _body(self, receive: Receive, most: int) -> bytes:
        clock = asyncio.get_running_loop().time
        end = clock() + self.limits.body_seconds
        body = bytearray()
        while True:
            wait = min(self.limits.pause_seconds, end - clock())
            try:
                async with asyncio.timeout(wait):
                    event = await receive()
            except TimeoutError:
                raise RefusedError(
                    408, "The body of the request came too slowly; send it in one go."
                ) from None
            if event["type"] == "http.disconnect":
                raise GoneError
            body += event.get("body", b"")
            if len(body) > most:
                raise _too_large(most)
            if not event.get("more_body", False):
                return bytes(body)


class _Watched:
    """Sends on, remembers the status, and gives up on those who do not read."""

    def __init__(self, send: Send) -> None:
        self.send = send
        self.status = 0

    async def __call__(self, event: Event) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await self.send(event)
        except TimeoutError:
            raise GoneError from None


def _too_large(most: int) -> RefusedError:
    return RefusedError(
        413, f"The body of the request is too large; at most {most} bytes are taken here."
    )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what comes after it."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Event:
        return events.pop() if events else await receive()

    return again


async def _drain(receive: Receive) -> None:
    """Let a body come in unread for a moment, so that the answer to it is not lost."""

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            event: Event = {"more_body": True}
            while event.get("more_body", False):
                event = await receive()


async def _answer(send: Send, refused: RefusedError) -> None:
    body = refusal(str(refused))
    headers = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        "connection": "close",
        **refused.headers,
    }
    encoded = [(key.encode("ascii"), value.encode("ascii")) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})


def refusal(sentence: str) -> bytes:
    """The body of every answer that is none."""
    if len(sentence) > LONGEST:
        sentence = sentence[: LONGEST - 4] + "...."
    return json.dumps({"error": sentence}).encode("ascii")

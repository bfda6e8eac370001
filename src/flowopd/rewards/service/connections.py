"""uvicorn, with connections that cannot be held open for nothing, and errors that are sentences."""

import asyncio
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flowopd.rewards.service.app import application
from flowopd.rewards.service.gate import COME_BACK, LOCALHOST, refusal
from flowopd.rewards.service.limits import Limits
from flowopd.rewards.service.scoring import Service

IDLE_SECONDS, GRACE_SECONDS = 30, 10
LARGEST_HEADER = 16 * 1024


class Guarded(H11Protocol):
    """uvicorn's protocol, with a time in which the header of a request has to be there.

    uvicorn itself waits for it without end. Its body is timed by the gate.
    """

    limits = Limits()
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._refuse(429, "The server has too many connections; come back in a moment.")
        else:
            self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.transport.is_closing() or self._busy:
            self._stop_waiting()
        elif self._timer is None:
            self._wait_for_header()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, "This is no valid HTTP request.")

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _wait_for_header(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_seconds, self._late)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if not self.transport.is_closing() and not self._busy:
            self._refuse(408, "The header of the request came too slowly; send it in one go.")

    def _refuse(self, status: int, sentence: str) -> None:
        body = refusal(sentence)
        headers: list[tuple[bytes, bytes]] = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"connection", b"close"),
        ]
        if status == 429:
            headers.append((b"retry-after", str(COME_BACK).encode("ascii")))
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            reason = HTTPStatus(status).phrase.encode("ascii")
            start = h11.Response(status_code=status, headers=headers, reason=reason)
            for event in (start, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def assembled(service: Service, token: str | None, name: str = LOCALHOST) -> uvicorn.Server:
    """A server that is not started yet; ``name`` is what it is called by."""
    http: Any = type("Guarded", (Guarded,), {"limits": service.limits})
    config = uvicorn.Config(
        application(service, token, name),
        http=http,
        ws="none",
        lifespan="off",
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
        h11_max_incomplete_event_size=LARGEST_HEADER,
    )
    return uvicorn.Server(config)

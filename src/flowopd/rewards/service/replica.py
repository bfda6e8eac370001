"""One of the servers that a remote scorer asks, as seen from here."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import Scores, UnavailableError
from flowopd.rewards.service.retry import backoff, retry_after
from flowopd.rewards.service.wire import (
    PROTOCOL,
    AboutReply,
    CheckReply,
    Found,
    read_reply,
    sentences,
)
from flowopd.rewards.work.calls import in_words

if TYPE_CHECKING:
    import httpx

JOIN_SECONDS = 10.0
PIECE = 256 * 1024
TOO_MUCH = (413, 422)
"""Refusals that are about the pictures and prompts of a request."""


class BusyError(Exception):
    """The server asks to come back after some seconds."""

    def __init__(self, seconds: float) -> None:
        super().__init__("it is busy")
        self.seconds = seconds


class DownError(Exception):
    """The server does not answer, or not with sense; another may."""


class Replica:
    """A server, whether it is believed to answer, and what it said of itself."""

    def __init__(
        self,
        url: str,
        client: "httpx.AsyncClient",
        agrees: Callable[[str, AboutReply], None],
        seconds: float,
    ) -> None:
        self.url = url.rstrip("/")
        self.about: AboutReply | None = None
        self.up = self.wrong = False
        """`wrong`: it answers, and does not let itself be asked by us, or serves something else."""
        self.trouble = "it was not asked yet"
        self._client, self._agrees, self._seconds = client, agrees, seconds
        self._failures, self._next = 0, 0.0
        self._joining = asyncio.Lock()

    async def join(self) -> None:
        """Ask for its health and for what it is, after a pause if it just failed.

        Raises a DownError where it does not answer, and a FlowOPDError where it is another.
        """
        async with self._joining:
            if self.up:
                return
            await asyncio.sleep(max(0.0, self._next - time.monotonic()))
            try:
                await self._answer("GET", "/healthz", JOIN_SECONDS)
                about = _about(self.url, await self._answer("GET", "/about", JOIN_SECONDS))
                self._agrees(self.url, about)
            except (DownError, BusyError) as error:
                self.fail(str(error))
                raise DownError(str(error)) from None
            except FlowOPDError as error:
                self.fail(str(error))
                self.wrong = True
                raise
            self.about = about
            self.up, self._failures, self.trouble = True, 0, ""

    async def score(self, body: bytes, count: int) -> list[Scores]:
        """The scores of a request of so many pictures."""
        about = self.about
        content = await self._answer("POST", "/score", self._seconds, body)
        try:
            reply = read_reply(content)
        except FlowOPDError as error:
            raise DownError(f"it answered nonsense: {error}") from None
        if about is None or reply.instance != about.instance:
            raise DownError("it was started again, and has to say first what it serves")
        if len(reply.scores) != count:
            raise DownError(f"it gave {len(reply.scores)} scores for {count} pictures")
        known = {metric.name for metric in about.metrics}
        for name in sorted({name for score in reply.scores for name in score.values} - known):
            raise DownError(f"it gave {name!r}, which is none of its metrics")
        return reply.scores

    async def check(self) -> list[Found]:
        """What the scorer finds there."""
        content = await self._answer("POST", "/check", self._seconds)
        try:
            return CheckReply.model_validate_json(content).findings
        except ValidationError as error:
            raise DownError(f"it answered nonsense: {sentences(error)}") from None

    def fail(self, trouble: str) -> None:
        """Leave it alone for a while."""
        self.up, self.wrong, self.trouble = False, False, trouble
        self._next = time.monotonic() + backoff(self._failures)
        self._failures += 1

    async def _answer(self, method: str, path: str, seconds: float, body: bytes = b"") -> bytes:
        import httpx

        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        try:
            async with asyncio.timeout(seconds):
                answer = await self._client.request(
                    method,
                    self.url + path,
                    content=_pieces(body) if body else None,
                    headers=headers if body else None,
                )
        except TimeoutError:
            raise DownError(f"no answer within {seconds:g} seconds") from None
        except httpx.InvalidURL as error:
            raise UnavailableError(f"{self.url} is no address of a server: {error}.") from None
        except (httpx.HTTPError, RuntimeError) as error:  # the latter when the client was closed
            raise DownError(in_words(error)) from None
        if answer.status_code == 200:
            return answer.content
        if answer.status_code == 429:
            raise BusyError(retry_after(answer.headers, self._failures))
        said = _said(answer)
        if answer.status_code >= 500 or answer.status_code in (408, 499):
            raise DownError(f"it answered {answer.status_code}: {said}")
        kind = FlowOPDError if answer.status_code in TOO_MUCH else UnavailableError
        raise kind(f"The server {self.url} answered {answer.status_code}: {said}")


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    """The body, which nobody holds when it is sent: httpx's answers keep what they answer."""
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


def _about(url: str, content: bytes) -> AboutReply:
    """What the server says of itself. Its protocol comes first: by another, the rest is none."""
    try:
        protocol = json.loads(content)["protocol"]
    except (ValueError, LookupError, TypeError):
        raise DownError("it is no server of scores: it names no protocol") from None
    if protocol != PROTOCOL:
        raise UnavailableError(
            f"The server {url} speaks the protocol {protocol!r}, and this is {PROTOCOL}: the two "
            "are of different versions of flowopd; install the same on both sides."
        )
    try:
        return AboutReply.model_validate_json(content)
    except ValidationError as error:
        raise DownError(f"it is no server of scores: {sentences(error)}") from None


def _said(answer: Any) -> str:
    """The sentence of a refusal, or the beginning of whatever else came."""
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return " ".join(answer.text.split())[:200] or "nothing more"

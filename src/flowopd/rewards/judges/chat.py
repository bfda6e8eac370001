"""An OpenAI-compatible endpoint: questions with a picture, bounded in number, time and tries."""

import asyncio
import base64
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flowopd.errors import FlowOPDError
from flowopd.rewards.judges.settings import JudgeSettings
from flowopd.rewards.service.retry import backoff, retry_after

if TYPE_CHECKING:
    import httpx

LIST_SECONDS = 20.0
REFUSED = (401, 403, 404)
PASSING = (408, 409, 425, 429)
"""Statuses that may be another the next time, as those from 500 are."""


@dataclass(frozen=True)
class Question:
    text: str
    image: Callable[[], bytes]
    """Makes the PNG file, which is wanted only when it is the question's turn."""


@dataclass(frozen=True)
class Answer:
    """What the judge said; `text` is None where it said nothing, and `trouble` says why."""

    text: str | None
    trouble: str = ""
    cut: bool = False
    """The reply was cut off at the number of tokens allowed."""
    unheard: bool = False
    """There was no answer to any try."""


class PassingError(Exception):
    """What may be better the next time, after some seconds."""

    def __init__(self, trouble: str, seconds: float | None = None) -> None:
        super().__init__(trouble)
        self.seconds = seconds


class Endpoint:
    """Must be used in one event loop."""

    def __init__(self, name: str, settings: JudgeSettings) -> None:
        import httpx

        key = settings.key()
        self._name, self._settings = name, settings
        self._client = httpx.AsyncClient(
            timeout=None,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=4.0),
            headers={"Authorization": f"Bearer {key}"} if key else None,
            trust_env=not _is_loopback(settings.base_url),
        )
        self._places = asyncio.Semaphore(settings.concurrency)

    async def close(self) -> None:
        await self._client.aclose()

    async def check(self) -> None:
        """Refuse an endpoint that is not there, or that knows other models only."""
        try:
            answer = await self._sent("GET", "/models", LIST_SECONDS)
        except PassingError as error:
            raise FlowOPDError(self._unreachable(str(error))) from None
        if answer.status_code in (401, 403):
            raise self._refused(answer)
        known = _names(answer) if answer.status_code == 200 else []
        if known and self._settings.model not in known:
            raise FlowOPDError(
                f"The judge {self._name!r}: {self._settings.base_url} has no model "
                f"{self._settings.model!r}; it has {', '.join(known[:10])}."
            )

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each. Where not a single one could be had, that is an error."""
        tasks = [asyncio.create_task(self._one(question)) for question in questions]
        try:
            answers = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        if answers and all(answer.unheard for answer in answers):
            raise FlowOPDError(self._unreachable(answers[0].trouble))
        return answers

    async def _one(self, question: Question) -> Answer:
        async with self._places:
            image, trouble = await asyncio.to_thread(question.image), ""
            body, tries = self._body(question.text, image), self._settings.attempts
            for failures in range(tries):
                try:
                    return await self._answered(body, failures)
                except PassingError as error:
                    trouble = str(error)
                    if failures + 1 < tries:
                        await asyncio.sleep(error.seconds or backoff(failures))
            return Answer(None, f"no answer in {tries} tries; the last: {trouble}", unheard=True)

    async def _answered(self, body: dict[str, Any], failures: int) -> Answer:
        answer = await self._sent("POST", "/chat/completions", self._settings.request_seconds, body)
        if answer.status_code in REFUSED:
            raise self._refused(answer)
        if answer.status_code in PASSING or answer.status_code >= 500:
            raise PassingError(_said(answer), retry_after(answer.headers, failures))
        if answer.status_code != 200:
            return Answer(None, _said(answer))
        try:
            choice = answer.json()["choices"][0]
            text, reason = choice["message"]["content"], choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError):
            raise PassingError(f"an answer without a message: {answer.text[:200]}") from None
        if not isinstance(text, str):
            return Answer(None, f"the message has no text (it ended with {reason!r})")
        return Answer(text, cut=reason == "length")

    async def _sent(
        self, method: str, path: str, seconds: float, body: dict[str, Any] | None = None
    ) -> "httpx.Response":
        import httpx

        try:
            async with asyncio.timeout(seconds):
                url = self._settings.base_url + path
                return await self._client.request(method, url, json=body)
        except TimeoutError:
            raise PassingError(f"no answer within {seconds:g} seconds") from None
        except httpx.InvalidURL as error:
            raise FlowOPDError(f"The judge {self._name!r}: {url} is no address: {error}.") from None
        except httpx.HTTPError as error:
            words = " ".join(str(error).split())
            raise PassingError(f"{type(error).__name__}: {words}") from None

    def _body(self, text: str, image: bytes) -> dict[str, Any]:
        data = base64.b64encode(image).decode("ascii")
        content = [
            {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
            {"type": "text", "text": text},
        ]
        settings = self._settings
        return {
            "model": settings.model,
            "messages": [{"role": "user", "content": content}],
            "temperature": settings.temperature,
            "max_tokens": settings.max_tokens,
            **settings.extra,
        }

    def _unreachable(self, trouble: str) -> str:
        return (
            f"The judge {self._name!r} gets no answer from {self._settings.base_url}: {trouble}. "
            "Start the server, or mend base_url."
        )

    def _refused(self, answer: "httpx.Response") -> FlowOPDError:
        hint = (
            f" The key is taken from the environment's {self._settings.api_key_env}."
            if answer.status_code != 404
            else f" It may have no model {self._settings.model!r}."
        )
        return FlowOPDError(
            f"The judge {self._name!r} is refused by {self._settings.base_url}: "
            f"{_said(answer)}.{hint}"
        )


def _names(answer: "httpx.Response") -> list[str]:
    try:
        return [str(model["id"]) for model in answer.json()["data"]]
    except (ValueError, LookupError, TypeError):
        return []


def _said(answer: "httpx.Response") -> str:
    """The status, and the message that came with it."""
    try:
        data = answer.json()
        error = data.get("error", data) if isinstance(data, dict) else data
        words = str(error["message"] if isinstance(error, dict) and "message" in error else error)
    except ValueError:
        words = answer.text
    return f"it answered {answer.status_code}: {' '.join(words.split())[:200]}"


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

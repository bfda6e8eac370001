"""An OpenAI-compatible endpoint: questions with a picture, bounded in number, time and tries."""

import asyncio
import base64
import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from flowopd.rewards.judges.settings import JudgeSettings
from flowopd.rewards.scorer import UnavailableError
from flowopd.rewards.service.retry import backoff, retry_after
from flowopd.rewards.work.calls import in_words

if TYPE_CHECKING:
    import httpx

LIST_SECONDS = 20.0
REFUSED = (401, 403, 404)
PASSING = (408, 409, 425, 429)
"""Statuses that may be another the next time, as those from 500 are."""
WHOLE = ("stop", "eos_token", "stop_sequence", "end_turn")
"""How servers say that a reply came to its end. Any other word, as `length`, says it did not."""


@dataclass(frozen=True)
class Question:
    text: str
    image: Callable[[], bytes]
    """Makes the PNG file, which is wanted only when it is the question's turn."""


@dataclass(frozen=True)
class Answer:
    """What the judge said, all of it; otherwise `trouble` says why it did not.

    `text` is what there is of a reply that was cut off, and None where there is nothing.
    """

    text: str | None
    trouble: str = ""
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
            raise UnavailableError(self._unreachable(str(error))) from None
        if answer.status_code in (401, 403):
            raise self._refused(answer)
        known = _names(answer) if answer.status_code == 200 else []
        if known and self._settings.model not in known:
            raise UnavailableError(
                f"The judge {self._name!r}: {self._settings.base_url} has no model "
                f"{self._settings.model!r}; it has {', '.join(known[:10])}."
            )

    async def ask(self, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each, in `call_seconds`. Where there was not a single one, that is an
        error."""
        end = asyncio.get_running_loop().time() + self._settings.call_seconds
        tasks = [asyncio.create_task(self._one(question, end)) for question in questions]
        try:
            answers = await asyncio.gather(*tasks)
        except BaseException:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            raise
        if answers and all(answer.unheard for answer in answers):
            raise UnavailableError(self._unreachable(answers[0].trouble))
        return answers

    async def _one(self, question: Question, end: float) -> Answer:
        tries, troubles = self._settings.attempts, list[str]()
        try:
            async with asyncio.timeout_at(end), self._places:
                image = await asyncio.to_thread(question.image)
                body = self._body(question.text, image)
                while True:
                    try:
                        return await self._answered(body, len(troubles))
                    except PassingError as error:
                        troubles.append(str(error))
                        if len(troubles) == tries:
                            break
                        await asyncio.sleep(error.seconds or backoff(len(troubles) - 1))
            why = f"in {tries} tries"
        except TimeoutError:
            seconds = self._settings.call_seconds
            why = f"within the {seconds:g} seconds of its call (call_seconds)"
        last = f"; the last: {troubles[-1]}" if troubles else ""
        return Answer(None, f"no answer {why}{last}", unheard=True)

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
        hint = ": raise max_tokens" if reason == "length" else ""
        if not isinstance(text, str):
            return Answer(None, f"the message has no text (it ended with {reason!r}{hint})")
        if reason and reason not in WHOLE:
            return Answer(text, f"the reply was cut off (it ended with {reason!r}{hint})")
        return Answer(text)

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
            raise UnavailableError(
                f"The judge {self._name!r}: {url} is no address: {error}."
            ) from None
        except httpx.HTTPError as error:
            raise PassingError(in_words(error)) from None

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

    def _refused(self, answer: "httpx.Response") -> UnavailableError:
        hint = (
            f" The key is taken from the environment's {self._settings.api_key_env}."
            if answer.status_code != 404
            else f" It may have no model {self._settings.model!r}."
        )
        return UnavailableError(
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

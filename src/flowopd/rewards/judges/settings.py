"""What a recipe says of a judge behind an OpenAI-compatible endpoint."""

import os
from typing import Any, ClassVar

from pydantic import Field, ValidationInfo, field_validator

from flowopd.config import FilePath
from flowopd.rewards.settings import ScorerSettings

KEY = "OPENAI_API_KEY"


class JudgeSettings(ScorerSettings):
    HOUSEKEEPING: ClassVar[frozenset[str]] = ScorerSettings.HOUSEKEEPING | {
        "base_url",
        "api_key_env",
        "concurrency",
        "request_seconds",
        "call_seconds",
        "attempts",
        "replies",
    }

    base_url: str = "http://127.0.0.1:8000/v1"
    """Where `chat/completions` is: vllm, sglang, or a service."""
    model: str = Field(min_length=1)
    """Its name there."""
    api_key_env: str = KEY
    """The environment's variable that holds the key, if the endpoint wants one."""
    rubric: FilePath | None = None
    """A rubric of your own, in place of the one that comes with the package."""
    size: int | None = Field(None, ge=16)
    """Pictures are shown so many pixels wide and high; null: as they are."""
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(1024, ge=1)
    extra: dict[str, Any] = Field(default_factory=dict)
    """More keys of the request, as {chat_template_kwargs: {enable_thinking: false}}."""
    concurrency: int = Field(16, ge=1)
    """Requests at the same time."""
    request_seconds: float = Field(120.0, gt=0)
    """In which an answer has to be there."""
    call_seconds: float = Field(540.0, gt=0)
    """In which all answers of a call have to be there; those that are not are missing. It should
    be less than the scorer's `timeout`, after which the others would be lost, too."""
    attempts: int = Field(4, ge=1)
    """Tries of a request that fails for the moment."""
    replies: FilePath | None = None
    """A file to which every reply is added, a JSON object a line."""

    @field_validator("device", "batch_size")
    @classmethod
    def _elsewhere(cls, value: Any, info: ValidationInfo) -> Any:
        if value != ScorerSettings.model_fields[info.field_name or ""].default:
            raise ValueError("the chat server decides that (concurrency says how much it is asked)")
        return value

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("it should begin with http:// or https://")
        return url.rstrip("/")

    def key(self) -> str | None:
        return os.environ.get(self.api_key_env) or None

"""What a recipe says of the servers that a scorer asks."""

import os
import ssl
from typing import Any, ClassVar

from pydantic import Field, field_validator, model_validator

from flowopd.config import Config, FilePath
from flowopd.errors import FlowOPDError
from flowopd.rewards.service.access import HOST, PORT, TOKEN, find_token
from flowopd.rewards.service.images import LOSSLESS, Format
from flowopd.rewards.settings import ScorerSettings, ScorerSpec


class DeclaredMetric(Config):
    """A `MetricInfo`, as a recipe says it."""

    name: str = Field(min_length=1)
    low: float | None = None
    high: float | None = None
    strata: bool = False
    scale: float = Field(1.0, gt=0)


class Declaration(Config):
    """A scorer that this installation does not know."""

    name: str = Field(min_length=1)
    version: int = 1
    metrics: list[DeclaredMetric] = Field(min_length=1)
    tasks: list[str] | None = None
    grouped: bool = False
    settings: dict[str, Any] = Field(default_factory=dict)
    """Those that it has beside its defaults and that change a number, as `/about` tells them."""


class ServerSettings(ScorerSettings):
    """How servers are asked, whatever they serve."""

    HOUSEKEEPING: ClassVar[frozenset[str]] = ScorerSettings.HOUSEKEEPING | {
        "urls",
        "token_env",
        "token_file",
        "connections",
        "request_seconds",
        "call_seconds",
        "patience",
        "attempts",
        "hedge_after",
    }

    urls: list[str] = Field([f"http://{HOST}:{PORT}"], min_length=1)
    """Servers of the same scorer; the work is spread over those that answer."""
    token_env: str = TOKEN
    """The environment's variable that holds the token."""
    token_file: FilePath | None = None
    format: Format = "png"
    """png and webp lose nothing; jpeg is smaller, and another score."""
    quality: int = Field(95, ge=1, le=100)
    """Of jpeg."""
    connections: int = Field(2, ge=1)
    """Requests at the same time to each server: one is scored while the next travels."""
    request_seconds: float = Field(240.0, gt=0)
    """In which a server has to answer; more than it allows its scorer for a call."""
    call_seconds: float = Field(540.0, gt=0)
    """In which all scores of a call have to be there; those that are not are missing. It should be
    less than the scorer's `timeout`, after which the others would be lost, too."""
    patience: float = Field(60.0, ge=0)
    """Seconds for which all servers may be away before that is an error."""
    attempts: int = Field(4, ge=1)
    """Servers that may fail on a request before its pictures stay without a score."""
    hedge_after: float = Field(10.0, gt=0)
    """Seconds after which a request is also sent to another server that has nothing to do."""

    @field_validator("device")
    @classmethod
    def _elsewhere(cls, device: str) -> str:
        if device != "auto":
            raise ValueError("it is chosen where the server is started")
        return device

    @model_validator(mode="after")
    def _addresses(self) -> "ServerSettings":
        for url in self.urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} should begin with http:// or https://")
        if len(set(self.urls)) != len(self.urls):
            raise ValueError("the same server is named twice")
        return self

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.format in LOSSLESS:
            found.pop("format", None)
        if self.format != "jpeg":
            found.pop("quality", None)
        return found

    def token(self) -> str | None:
        if self.token_file is not None:
            return find_token(None, self.token_file)
        given = os.environ.get(self.token_env)
        try:
            return find_token(given, None) if given else None
        except FlowOPDError as error:
            place = f"the environment's {self.token_env}"
            raise FlowOPDError(f"The token in {place} cannot be used. {error}") from None

    def certificates(self) -> ssl.SSLContext | bool:
        """By which servers at https addresses are known: the usual ones, or the environment's."""
        import httpx

        if not any(url.startswith("https://") for url in self.urls):
            return True
        try:
            return httpx.create_ssl_context()
        except OSError as error:
            raise FlowOPDError(
                f"The certificates that SSL_CERT_FILE or SSL_CERT_DIR name cannot be read: {error}."
            ) from None


class RemoteSettings(ServerSettings):
    scorer: ScorerSpec | None = None
    """What the servers serve, as a scorer of this installation; it is not loaded here."""
    declares: Declaration | None = None
    """The same for a scorer that this installation does not know."""

    @model_validator(mode="after")
    def _one_of_both(self) -> "RemoteSettings":
        if (self.scorer is None) == (self.declares is None):
            raise ValueError(
                "it should say what the servers serve: either 'scorer' (a scorer that is known "
                "here) or 'declares' (name, version and metrics of one that is not)"
            )
        return self

    def identity(self) -> dict[str, Any]:
        found = super().identity()
        if self.scorer is not None:
            found["scorer"] = {"name": self.scorer.title, **self.scorer.identity()}
        return found

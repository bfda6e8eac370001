"""What a server takes at most, so that no request can use up its memory, time or connections."""

from pydantic import Field

from flowopd.config import Config

MEBIBYTE = 2**20


class Limits(Config):
    """The limits of a server of scores."""

    body: int = Field(64 * MEBIBYTE, ge=1024)
    """Bytes of a request."""
    batch: int = Field(64, ge=1)
    """Pictures of a request."""
    pixels: int = Field(64 * MEBIBYTE, ge=1)
    """Pixels of all pictures of a request together."""
    queue: int = Field(8, ge=1)
    """Requests that are read, wait or are scored at the same time; more are told to come back."""
    connections: int = Field(128, ge=2)
    header_seconds: float = Field(10.0, gt=0)
    """In which the header of a request has to be there."""
    pause_seconds: float = Field(10.0, gt=0)
    """For which the body of a request may come to a halt."""
    body_seconds: float = Field(60.0, gt=0)
    """In which the body of a request has to be there."""

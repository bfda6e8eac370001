"""A prompt file as a configuration names it."""

from pydantic import Field

from flowopd.config import Config, FilePath
from flowopd.tasks.prompts import PromptRecord, read_prompts, take


class PromptSet(Config):
    """A prompt file; a relative path is relative to the configuration file."""

    path: FilePath
    task: str = ""
    limit: int | None = Field(None, ge=1)
    images_per_prompt: int | None = Field(None, ge=1)
    """None: as the protocol says for all."""


def read_set(prompts: PromptSet, limit: int | None = None) -> list[PromptRecord]:
    """The records of the file, at most as many as it or `limit` says."""
    limits = [number for number in (prompts.limit, limit) if number is not None]
    return take(read_prompts(prompts.path, prompts.task), min(limits, default=None))

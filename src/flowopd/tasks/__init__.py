"""What is asked of a model: prompts, each with its task."""

from flowopd.tasks.prompts import PromptRecord, read_prompts, take

__all__ = ["PromptRecord", "read_prompts", "take"]

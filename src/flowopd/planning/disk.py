"""What a stage writes."""

from collections.abc import Sequence

from flowopd.algorithms.settings import NFTConfig, SFTConfig
from flowopd.planning.needs import Item
from flowopd.training.config import TrainConfig
from flowopd.training.estimate import probe_count
from flowopd.training.probe import MOST_PIXELS

FLOAT = 4
POOL, RESULT = "pool", "the transformer"
HEADER = 512
"""Of a small file, about: names of tensors, and the prompt."""


def checkpoints(config: TrainConfig, parameters: int) -> Item:
    """The student with AdamW's two averages, its own averages, NFT's older student."""
    copies = 3 + (config.ema is not None) + isinstance(config.algorithm, NFTConfig)
    keep = config.checkpoint.keep
    size = FLOAT * parameters * copies
    return Item("checkpoints", size * (keep + 1), f"the last {keep}, and one that is being written")


def result(config: TrainConfig, parameters: int, itemsize: int, *, for_diffusers: bool) -> Item:
    """What comes out of a training."""
    if config.student.full:
        return Item(RESULT, itemsize * parameters)
    formats = 2 if for_diffusers else 1
    note = "for PEFT and for diffusers" if for_diffusers else "for PEFT"
    return Item("adapter", FLOAT * parameters * formats, note)


def text_cache(prompts: int, embedding: int) -> Item:
    """One file for each different prompt, and the empty one."""
    return Item("text cache", (prompts + 1) * (embedding + HEADER), f"{prompts + 1:,} prompts")


def pool(config: TrainConfig, latents: Sequence[int]) -> list[Item]:
    """The teachers' pictures, of fine-tuning."""
    if not isinstance(config.algorithm, SFTConfig):
        return []
    channels, height, width = latents
    pictures = config.algorithm.images_per_task * len(config.tasks)
    size = FLOAT * pictures * channels * height * width
    return [Item(POOL, size, f"latents of {pictures:,} pictures")]


def panels(config: TrainConfig) -> list[Item]:
    """Contact sheets of the probes' pictures."""
    if config.probe is None or not config.probe.panel:
        return []
    count = probe_count(config)
    return [Item("panels", 3 * count * MOST_PIXELS**2, f"{count:,}, at most")]


def pictures(count: int, sides: tuple[int, int]) -> list[Item]:
    """Uncompressed, which a picture's file never is."""
    size = 3 * count * sides[0] * sides[1]
    return [Item("pictures", size, f"{count:,}, at most")] if count else []

"""How much a stage computes."""

from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.needs import Work
from flowopd.planning.prompt_files import PromptFiles
from flowopd.training.config import TrainConfig
from flowopd.training.division import Division
from flowopd.training.estimate import drawing, estimate, probe_count


def training_work(config: TrainConfig, division: Division, files: PromptFiles) -> Work:
    total, probe = estimate(config), config.probe
    pictures = files.count(probe.prompts, probe.limit, 1) if probe else 0
    return Work(
        updates=config.updates,
        images_per_update=sum(division.counts.values()),
        division=division.sentence(),
        forwards_per_update=total.forwards_of_update(config.updates),
        backwards_per_update=total.backwards // config.updates,
        images=total.images,
        forwards=total.forwards,
        backwards=total.backwards,
        probes=probe_count(config) * drawing(probe.sampling, pictures) if probe else 0,
    )


def evaluation_work(config: EvalConfig, panel: int, files: PromptFiles) -> Work:
    images = panel + files.count(config.prompts, config.limit, config.images_per_prompt)
    return Work(images=images, forwards=drawing(config, images))

"""How much a stage computes, which is all that can be said of networks that are not rehearsed."""

from collections import Counter

from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.needs import EVALUATE, TRAIN, StageNeeds, Work
from flowopd.planning.prompt_files import PromptFiles
from flowopd.tasks.batches import Batches
from flowopd.training.checks import check_processes
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


def count_training(name: str, config: TrainConfig, devices: int, files: PromptFiles) -> StageNeeds:
    check_processes(config, devices)
    batch = config.batch
    first = Batches(
        {task: files.of(one.prompts) for task, one in config.tasks.items()},
        {task: one.share for task, one in config.tasks.items()},
        prompts=batch.prompts,
        images_per_prompt=batch.images_per_prompt,
        mixing=batch.mixing,
    ).draw()
    division = Division(Counter(sample.task for sample in first), devices, batch.micro)
    work = training_work(config, division, files)
    return StageNeeds((name,), TRAIN, work, notes=(_note(config.model.family),))


def count_evaluation(name: str, config: EvalConfig, panel: int, files: PromptFiles) -> StageNeeds:
    work = evaluation_work(config, panel, files)
    return StageNeeds((name,), EVALUATE, work, notes=(_note(config.model.family),))


def _note(family: str) -> str:
    return f"Memory and disk are not planned for models of the family {family}."

"""What can be said of models whose networks cannot be rehearsed: how much is computed."""

from collections import Counter

from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.needs import EVALUATE, TRAIN, StageNeeds
from flowopd.planning.prompt_files import PromptFiles
from flowopd.planning.work import evaluation_work, training_work
from flowopd.tasks.batches import Batches
from flowopd.training.checks import check_processes
from flowopd.training.config import TrainConfig
from flowopd.training.division import Division


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

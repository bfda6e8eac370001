"""From a stage's configuration to what it needs, by rehearsing it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning import disk, held
from flowopd.planning.alike import sampling_signature, signature
from flowopd.planning.counted import evaluation_work, training_work
from flowopd.planning.experts import Experts, Maker
from flowopd.planning.needs import EVALUATE, MERGE, TRAIN, Item, Rehearsed, StageNeeds, Work
from flowopd.planning.notes import of_evaluation, of_training
from flowopd.planning.outline import Outline, bytes_in, open_outline, outlined
from flowopd.planning.prompt_files import Assumed, PromptFiles
from flowopd.planning.rehearsal import Rehearsal
from flowopd.planning.sampling import Sampled, rehearse_sampling
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.network import Expert
from flowopd.policy.protocol import ModelConfig
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.checks import check_processes
from flowopd.training.config import TrainConfig

Records = Mapping[str, Sequence[PromptRecord]]


@dataclass(frozen=True)
class Base:
    """What a training needs to know of its model."""

    weights: Sequence[Item]
    itemsize: int
    latents: Sequence[int]
    embedding: int
    """Bytes of a prompt's."""
    for_diffusers: bool
    """Whether its adapters are written for diffusers, too."""


class Planner:
    """Plans the stages of one model on so many devices. What is alike is rehearsed once."""

    def __init__(
        self,
        model: ModelConfig,
        makers: Mapping[Path, Maker],
        devices: int,
        files: PromptFiles,
        assumed: Assumed,
    ) -> None:
        """The model's family is one that has outlines."""
        self._devices, self._files = devices, files
        self._experts = Experts(outlined(model), makers, assumed)
        self._rehearsed: dict[str, tuple[Base, Rehearsed]] = {}
        self._sampled: dict[str, Sampled] = {}

    def train(self, name: str, config: TrainConfig) -> StageNeeds:
        check_processes(config, self._devices)
        config = config.model_copy(update={"model": outlined(config.model)})
        base, found = self._rehearse(config)
        items = [*base.weights, *held.of_training(config, found)]
        written = self._written(config, base, found.parameters)
        return StageNeeds(
            names=(name,),
            kind=TRAIN,
            work=training_work(config, found.division, self._files),
            held=items,
            phases=held.phases(items, found.peaks),
            host=held.on_host(config, found, written),
            disk=written,
            notes=of_training(config),
        )

    def merge(self, name: str, adapter: Path) -> StageNeeds:
        """Of what is made in the folder `adapter`."""
        made = self._experts.of(adapter)
        size = bytes_in(made.tensors.values()) if isinstance(made, AdapterFiles) else 0
        return StageNeeds(
            names=(name,),
            kind=MERGE,
            work=Work(),
            disk=[Item("adapter", size, "for PEFT; as much again if a parent is for diffusers")],
            notes=["It is done on the CPU."],
        )

    def evaluate(
        self, name: str, config: EvalConfig, adapter: Path | None, panel: int
    ) -> StageNeeds:
        """`panel` pictures are drawn beside those of the protocol."""
        expert = None if adapter is None else self._experts.of(adapter)
        work = evaluation_work(config, panel, self._files)
        sampled = self._sample(config, expert, work.images)
        items = [*sampled.weights]
        items += [Item("what is evaluated", sampled.expert)] if sampled.expert else []
        kept = work.images if config.save_images else panel
        return StageNeeds(
            names=(name,),
            kind=EVALUATE,
            work=work,
            held=items,
            phases=held.phases(items, sampled.peaks),
            disk=disk.pictures(kept, sampled.sides),
            notes=of_evaluation(config),
        )

    def _sample(self, config: EvalConfig, expert: Expert | None, images: int) -> Sampled:
        key = sampling_signature(config, expert, images)
        if key not in self._sampled:
            config = config.model_copy(update={"model": outlined(config.model)})
            model = open_outline(config.model)
            self._sampled[key] = rehearse_sampling(model, config, expert, images)
        return self._sampled[key]

    def _rehearse(self, config: TrainConfig) -> tuple[Base, Rehearsed]:
        records, probe = self._records(config), config.probe
        probed = self._files.count(probe.prompts, probe.limit, 1) if probe else 0
        key = signature(config, records, self._experts, probed)
        if key not in self._rehearsed:
            model = open_outline(config.model)
            base = base_of(model, config)
            rehearsal = Rehearsal(
                config, model, records, self._experts, devices=self._devices, probed=probed
            )
            self._rehearsed[key] = base, rehearsal.run()
        return self._rehearsed[key]

    def _records(self, config: TrainConfig) -> dict[str, list[PromptRecord]]:
        return {name: self._files.of(task.prompts) for name, task in config.tasks.items()}

    def _written(self, config: TrainConfig, base: Base, parameters: int) -> list[Item]:
        items = [
            disk.checkpoints(config, parameters),
            disk.result(config, parameters, base.itemsize, for_diffusers=base.for_diffusers),
            *disk.pool(config, base.latents),
            *disk.panels(config),
        ]
        if config.text_cache is not None:
            items.append(disk.text_cache(len(self._prompts(config)), base.embedding))
        return items

    def _prompts(self, config: TrainConfig) -> set[str]:
        """The different prompts of a run."""
        probe = config.probe
        probed = self._files.of(probe.prompts, probe.limit) if probe else []
        trained = [record for found in self._records(config).values() for record in found]
        return {record.prompt for record in (*trained, *probed)}


def base_of(model: Outline, config: TrainConfig) -> Base:
    """Before anything is added to the model."""
    embeds = model.encode_prompts([""])
    return Base(
        weights=held.weights(model, cached=config.text_cache is not None),
        itemsize=model.dtype.itemsize,
        latents=model.latent_shape(config.rollout.height, config.rollout.width),
        embedding=bytes_in([embeds.sequence, embeds.pooled]),
        for_diffusers=model.lora_prefix is not None,
    )

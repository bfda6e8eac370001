"""The stages of a study, planned in the order in which they are done."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flowopd.config import load_config
from flowopd.errors import FlowOPDError
from flowopd.evaluation.protocol import EvalConfig
from flowopd.planning.advice import advise, advise_evaluation
from flowopd.planning.counted import count_evaluation, count_training
from flowopd.planning.needs import EVALUATE, MERGE, TRAIN, Change, StageNeeds, Work
from flowopd.planning.outline import has_outline
from flowopd.planning.planner import Planner
from flowopd.planning.prompt_files import Assumed, PromptFiles
from flowopd.reporting.progress import progress
from flowopd.study.config import Study
from flowopd.study.kinds import KINDS
from flowopd.study.names import BASE, evaluation_of, seed_names, unknown
from flowopd.study.panel import panel_size
from flowopd.study.plan import STAGES, closure, ordered
from flowopd.study.references import adapter_of, drafts


@dataclass(frozen=True)
class PlannedStage:
    """A stage of the study's file. Its seeds have the same needs, each for itself."""

    name: str
    kind: str
    config: Any
    needs: tuple[str, ...]


@dataclass(frozen=True)
class StudyNeeds:
    """Of the stages that are planned; those that need the same stand together."""

    name: str
    stages: Sequence[StageNeeds]
    assumed: Sequence[str]
    devices: int
    memory: int | None
    """Of each device, in bytes; None: not known."""

    def record(self) -> dict[str, Any]:
        """For machines; sizes are in bytes."""
        return {
            "study": self.name,
            "devices": self.devices,
            "memory": self.memory,
            "stages": [stage.record(self.memory) for stage in self.stages],
            "assumed": list(self.assumed),
        }


def plan_study(
    study: Study, folder: Path, *, only: Sequence[str] = (), devices: int, memory: int | None
) -> StudyNeeds:
    """All stages, or some with what they need, if they were run in `folder`.

    Nothing is written, and no weights are read.
    """
    stages = folder / STAGES
    known = {stage.name: stage for stage in read_stages(study, stages)}
    needs = {name: stage.needs for name, stage in known.items()}
    names = closure(_named(study, only, known), needs) if only else list(needs)
    plans = _Plans(study, stages, known, devices)
    found: list[StageNeeds] = []
    with progress("planning", len(names), "stages") as advance:
        for name in names:
            planned = plans.of(known[name])
            if memory is not None:
                planned = replace(planned, changes=plans.changes(known[name], planned, memory))
            _join(found, planned)
            advance(1)
    return StudyNeeds(study.config.name, found, plans.assumed.sentences, devices, memory)


def read_stages(study: Study, stages: Path) -> Iterator[PlannedStage]:
    """Each after those that it needs; of several seeds, the first. ``stages`` is their folder."""
    found = drafts(study, stages)
    for name in ordered(found):
        draft = found[name]
        if draft.name == draft.origin:
            config = KINDS[draft.kind].read(draft.data, study, draft.origin)
            yield PlannedStage(name, draft.kind, config, draft.needs)
    evaluation = study.config.evaluation
    if evaluation is None:
        return
    options = {"model": study.config.model, "adapters": {}, "out": stages}
    protocol = load_config(EvalConfig, evaluation.protocol, options=options)
    for row in evaluation.rows:
        yield PlannedStage(evaluation_of(row), EVALUATE, protocol, () if row == BASE else (row,))


class _Plans:
    """Plans stages one by one."""

    def __init__(
        self, study: Study, stages: Path, known: Mapping[str, PlannedStage], devices: int
    ) -> None:
        self.assumed = Assumed()
        self._study, self._stages, self._devices = study, stages, devices
        self._files = PromptFiles(self.assumed)
        self._planner: Planner | None = None
        if has_outline(study.config.model):
            makers = {
                adapter_of(stages, name): stage.config
                for name, stage in known.items()
                if stage.kind != EVALUATE
            }
            self._planner = Planner(study.config.model, makers, devices, self._files, self.assumed)

    def of(self, stage: PlannedStage) -> StageNeeds:
        if self._planner is None:
            return self._counted(stage)
        if stage.kind == TRAIN:
            return self._planner.train(stage.name, stage.config)
        if stage.kind == MERGE:
            return self._planner.merge(stage.name, adapter_of(self._stages, stage.name))
        adapter = adapter_of(self._stages, stage.needs[0]) if stage.needs else None
        return self._planner.evaluate(stage.name, stage.config, adapter, self._panel)

    def changes(self, stage: PlannedStage, needs: StageNeeds, memory: int) -> Sequence[Change]:
        """Settings with which a stage would fit, if it does not."""
        if self._planner is None or stage.kind == MERGE:
            return ()

        def plan(config: Any) -> StageNeeds:
            return self.of(replace(stage, config=config))

        chosen = advise if stage.kind == TRAIN else advise_evaluation
        return chosen(stage.config, needs, memory, plan)

    def _counted(self, stage: PlannedStage) -> StageNeeds:
        if stage.kind == TRAIN:
            return count_training(stage.name, stage.config, self._devices, self._files)
        if stage.kind == EVALUATE:
            return count_evaluation(stage.name, stage.config, self._panel, self._files)
        return StageNeeds((stage.name,), MERGE, Work())

    @property
    def _panel(self) -> int:
        evaluation = self._study.config.evaluation
        return 0 if evaluation is None else panel_size(evaluation.panel)


def _named(study: Study, only: Sequence[str], known: Mapping[str, PlannedStage]) -> set[str]:
    """The stages of these names; that of a seed is the first seed's, which needs as much."""
    seeds = {
        seed: origin
        for origin, stage in study.config.stages.items()
        for seed in seed_names(origin, stage.seeds or [0])
    }
    seeds |= {evaluation_of(seed): evaluation_of(origin) for seed, origin in seeds.items()}
    chosen = {seeds.get(name, name) for name in only}
    for name in only:
        if seeds.get(name, name) not in known:
            raise FlowOPDError(
                f"--only names {name!r}, which is no stage of this study."
                + unknown(name, list(known), "stages are")
            )
    return chosen


def _join(found: list[StageNeeds], planned: StageNeeds) -> None:
    """Put a stage beside the one that needs the same, if there is one."""
    for place, other in enumerate(found):
        if replace(other, names=()) == replace(planned, names=()):
            found[place] = replace(other, names=(*other.names, *planned.names))
            return
    found.append(planned)

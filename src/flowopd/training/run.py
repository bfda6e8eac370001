"""One training run: every check without weights, then everything opened, then the trainer."""

import hashlib
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.adapters import adapter_warnings
from flowopd.algorithms.settings import NFTConfig, OPDConfig, SFTConfig
from flowopd.errors import FlowOPDError
from flowopd.evaluation.run import HOUSEKEEPING as MODEL_HOUSEKEEPING
from flowopd.files import check_writable, make_writable, sha256
from flowopd.models import opened
from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.lora import LoraSettings
from flowopd.policy.lora_match import linear_layers
from flowopd.policy.network import Expert, NetworkFiles, check_expert
from flowopd.policy.protocol import VelocityModel
from flowopd.policy.text_cache import through_cache
from flowopd.rewards.reward import RewardFunction
from flowopd.rewards.scorer import Scorer
from flowopd.rewards.started import Started
from flowopd.rewards.work import Jury
from flowopd.tasks.prompt_set import read_set
from flowopd.tasks.prompts import PromptRecord
from flowopd.training.checks import anchor_adapter, check_processes, check_self_teaching
from flowopd.training.config import HOUSEKEEPING, StudentConfig, TrainConfig, with_scales
from flowopd.training.method import Context
from flowopd.training.probe import Probe
from flowopd.training.ranks import Ranks, processes
from flowopd.training.record import check_trackers
from flowopd.training.reward_check import check_rewards, scorers_at_work
from flowopd.training.roles import Roles, open_roles
from flowopd.training.velocities import Velocities

ADAPTER = "adapter"
MOST_ROUNDING = 0.05
"""Of a merged teacher, as a share of what it changes, before a warning says so."""


@dataclass(frozen=True)
class TrainPlan:
    """A run that has passed every check that needs no weights."""

    config: TrainConfig
    records: Mapping[str, Sequence[PromptRecord]]
    reward: RewardFunction
    probe: Probe | None
    files: Mapping[Path, Expert]
    """The adapters and networks that the run reads, by the path that the configuration gives."""
    scorers: Sequence[Scorer] = ()
    """As `config.scorers` names them."""


@dataclass(frozen=True)
class Outcome:
    """What a run took."""

    images: int
    forwards: int
    seconds: float


def prepare(config: TrainConfig, *, pending: Collection[Path] = ()) -> TrainPlan:
    """Refuse what cannot be trained. Adapters at `pending` paths are still to be made."""
    check_processes(config, processes())
    config.model.check_training()
    config.model.check()
    records = {
        name: [record for entry in task.prompts for record in read_set(entry)]
        for name, task in config.tasks.items()
    }
    rollout = config.rollout
    for found in records.values():
        prompts = [record.prompt for record in found]
        config.model.check_pictures(prompts, rollout.height, rollout.width)
    started = Started()
    scorers = started.all(config.scorers)
    reward = RewardFunction(scorers, {name: task.reward for name, task in config.tasks.items()})
    for name, found in records.items():
        reward.check(name, found)
    check_trackers(config.trackers)
    probe = Probe.read(config.probe, started) if config.probe else None
    if probe is not None:
        prompts = [record.prompt for record in probe.records]
        size = probe.config.sampling
        config.model.check_pictures(prompts, size.height, size.width)
    _check_targets(config)
    paths = [path for path in adapter_paths(config) if path not in set(pending)]
    files = {}
    if paths:
        skeleton, fingerprint = config.model.skeleton(), config.model.fingerprint()
        files = {path: check_expert(config.model, path, skeleton, fingerprint) for path in paths}
    _check_kinds(config, files, complete=len(paths) == len(adapter_paths(config)))
    check_self_teaching(config, lambda path: files[path].identity if path in files else str(path))
    return TrainPlan(config, records, reward, probe, files, scorers)


def _check_kinds(config: TrainConfig, files: Mapping[Path, Expert], *, complete: bool) -> None:
    """Refuse a network where an adapter is needed, and settings of what is not there."""
    start = None if config.start is None else files.get(config.start)
    if config.student.full and not config.model.whole_networks:
        raise FlowOPDError(
            f"student.full trains all weights of a network, which the family "
            f"{config.model.family!r} has no students of; leave it out."
        )
    if not config.student.full and isinstance(start, NetworkFiles):
        raise FlowOPDError(
            f"start is {config.start}, which is a whole network; a LoRA goes on from an adapter. "
            "Give one, or train all weights with student.full: true."
        )
    if not complete:
        return
    teaching = [files[path] for path in adapter_paths(config, start=False)]
    if config.teachers.merged and not any(isinstance(one, AdapterFiles) for one in teaching):
        raise FlowOPDError("teachers.merged would do nothing: no teacher and no anchor is a LoRA.")
    if config.teachers.place == "host" and not any(
        isinstance(one, NetworkFiles) for one in teaching
    ):
        raise FlowOPDError(
            "teachers.place: host would do nothing: all teachers are adapters, which are small and "
            "stay on the device. Leave it out."
        )


def _check_targets(config: TrainConfig) -> None:
    """Refuse names of layers that the model does not have."""
    targets = config.student.targets
    if config.start is not None or not isinstance(targets, list):
        return
    layers = linear_layers(config.model.skeleton())
    for target in targets:
        if not LoraSettings(1, 1.0, (target,)).select(layers):
            raise FlowOPDError(
                f"student.targets names {target!r}, which is no linear layer of this model. It has "
                f"layers such as {', '.join(list(layers)[-3:])}."
            )


def warn(sentences: Sequence[str]) -> None:
    for sentence in sentences:
        print(f"warning: {sentence}", file=sys.stderr)


def start_warnings(plan: TrainPlan) -> list[str]:
    """A sentence for each of `student`'s settings that the LoRA to go on from has otherwise."""
    config, usual = plan.config.student, StudentConfig()
    start = None if plan.config.start is None else plan.files[plan.config.start]
    if not isinstance(start, AdapterFiles) or config.full:
        return []
    there = {"rank": start.config.rank, "alpha": start.config.alpha}
    found = [
        f"student.{key} is {getattr(config, key)}, and {plan.config.start}, from which it goes on, "
        f"has {value}: that is kept."
        for key, value in there.items()
        if getattr(config, key) not in (getattr(usual, key), value)
    ]
    if config.targets is not None:
        found.append(
            f"student.targets does nothing: those of {plan.config.start}, from which it goes on, "
            "are kept."
        )
    return found


def rounding_warnings(roles: Roles, dtype: object) -> list[str]:
    """A sentence for each merged teacher that its network's precision has changed a good deal."""
    found = {source: roles.bank.rounding(name) for name, source in roles.folded.items()}
    return [
        f"{source}, merged by teachers.merged, is off by {share:.0%} of what it changes, since the "
        f"merged weights are rounded to {dtype}, by the same amount at every step. Without "
        "teachers.merged the rounding is that of activations alone."
        for source, share in found.items()
        if share > MOST_ROUNDING
    ]


def guidance_warnings(plan: TrainPlan, settings: Mapping[str, Any]) -> list[str]:
    """A sentence for each adapter that is used otherwise than it was trained."""
    config, files = plan.config, plan.files
    algorithm = config.algorithm
    used = [(task.teacher, task.teacher_guidance) for task in config.tasks.values()]
    own = algorithm.student_guidance if isinstance(algorithm, OPDConfig) else None
    used.append((config.start, own))
    if isinstance(algorithm, OPDConfig) and algorithm.anchor is not None:
        used.append((anchor_adapter(config), algorithm.anchor.guidance))
    found = [
        adapter_warnings(
            files[path],
            guidance=config.rollout.guidance_of(guidance),
            settings=settings,
        )
        for path, guidance in used
        if path is not None
    ]
    return list(dict.fromkeys(sentence for sentences in found for sentence in sentences))


def adapter_paths(config: TrainConfig, *, start: bool = True) -> list[Path]:
    """Every adapter (or network) that the run reads, each once; with what it starts from or not."""
    teachers = (task.teacher for task in config.tasks.values())
    paths = [config.start if start else None, *teachers, anchor_adapter(config)]
    return list(dict.fromkeys(path for path in paths if path is not None))


def train(plan: TrainPlan, folder: Path) -> Outcome:
    """Train in `folder`, from the last checkpoint there if there is one."""
    from flowopd.training.methods import METHODS
    from flowopd.training.trainer import Trainer

    config = plan.config
    missing = [path for path in adapter_paths(config) if path not in plan.files]
    if missing:
        raise FlowOPDError(f"The adapter {missing[0]} is not there yet; make it first.")
    check_writable(folder)
    make_writable(folder)
    ranks = Ranks()
    with Jury(scorers_at_work(plan, main=ranks.main)) as jury:
        check_rewards(plan, jury, ranks, folder)
        with opened(config.model) as model:
            if ranks.main:
                warn([*guidance_warnings(plan, model.settings), *start_warnings(plan)])
            context = make_context(plan, model, ranks, folder, jury)
            if ranks.main:
                warn(rounding_warnings(context.roles, model.dtype))
            method = METHODS[config.algorithm.name](context)
            recipe = recipe_hash(plan, model.fingerprint)
            trainer = Trainer(context, method, plan.probe, recipe=recipe)
            trainer.run()
            _export(trainer, plan)
            ranks.wait()
    return Outcome(context.images, trainer.forwards, context.seconds)


def make_context(
    plan: TrainPlan, model: VelocityModel, ranks: Ranks, folder: Path, jury: Jury | None = None
) -> Context:
    """Student, teachers and anchor opened, and every prompt ready to be embedded.

    Without a jury the scorers work in this process, between what it draws.
    """
    config = plan.config
    roles = open_roles(config, plan.files, model, ranks.count)
    prompts = [record.prompt for found in plan.records.values() for record in found]
    probed = [record.prompt for record in plan.probe.records] if plan.probe else []
    encode = through_cache(config.text_cache, model, prompts + probed, team=ranks)
    return Context(
        config=config,
        model=model,
        roles=roles,
        velocities=Velocities(model, roles, encode),
        reward=plan.reward,
        ranks=ranks,
        records=plan.records,
        folder=folder,
        jury=jury,
    )


def recipe_hash(plan: TrainPlan, fingerprint: str) -> str:
    """Tells one run from another: settings, prompts, adapters and base.

    Not by the number of updates, where more of them go on from fewer.
    """
    prompts = {
        str(entry.path): sha256(entry.path)
        for task in plan.config.tasks.values()
        for entry in task.prompts
    }
    settings = portable(plan, prompts)
    if plan.config.endless:
        del settings["updates"]
    base = [fingerprint, *plan.config.model.surroundings().values()]
    identity = json.dumps([settings, *base], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()


def portable(plan: TrainPlan, prompts: Mapping[str, str]) -> Any:
    """The settings without housekeeping, files by what is in them: a run may be moved.

    `prompts` says what to write for each prompt file.
    """
    config = plan.config.model_dump(mode="json", exclude=HOUSEKEEPING | {"scorers": True})
    config["model"] = {k: v for k, v in config["model"].items() if k not in MODEL_HOUSEKEEPING}
    config = with_scales(config, plan.reward.scales)
    config["scorers"] = scorer_versions(plan)
    adapters = {str(path): files.identity for path, files in plan.files.items()}
    return _replaced(config, adapters | dict(prompts))


def scorer_versions(plan: TrainPlan) -> dict[str, Any]:
    """Of the scorers that the rewards read: their versions, and the settings that count."""
    pairs = zip(plan.config.scorers, plan.scorers, strict=True)
    used = {
        scorer.name: (scorer.version, spec.identity())
        for spec, scorer in pairs
        if scorer in plan.reward.used
    }
    return {
        name: {"version": version, "settings": settings} if settings else version
        for name, (version, settings) in sorted(used.items())
    }


def _replaced(value: Any, known: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _replaced(one, known) for key, one in value.items()}
    if isinstance(value, list):
        return [_replaced(one, known) for one in value]
    return known.get(value, value) if isinstance(value, str) else value


def _export(trainer: Any, plan: TrainPlan) -> None:
    """The adapter, by its averages where there are any, with what it was made from."""
    context, config = trainer.context, plan.config
    tasks = {
        name: {
            "reward": {metric: term.weight for metric, term in task.reward.items()},
            "teacher": plan.files[task.teacher].sha256 if task.teacher else None,
        }
        for name, task in config.tasks.items()
    }
    names = {
        str(entry.path): f"{entry.path.parent.name}/{entry.path.name}, SHA-256 {sha256(entry.path)}"
        for task in config.tasks.values()
        for entry in task.prompts
    }
    metadata = {
        "algorithm": config.algorithm.name,
        "guidance": trained_guidance(config),
        "tasks": tasks,
        "start": plan.files[config.start].sha256 if config.start else None,
        "updates": context.update,
        "images": context.images,
        "recipe": portable(plan, names),
    }
    fetched = {files.sha256: files.origin for files in plan.files.values() if files.origin}
    if fetched:
        metadata["hub"] = fetched
    with trainer.averaged():
        context.roles.student.save(context.folder / ADAPTER, metadata, main=context.ranks.main)


def trained_guidance(config: TrainConfig) -> float:
    """The guidance at which the adapter is meant to be sampled.

    A student of pictures that teachers drew with guidance has that in itself; of pictures that were
    drawn without, it needs its own.
    """
    algorithm = config.algorithm
    if isinstance(algorithm, NFTConfig):
        return 1.0
    if isinstance(algorithm, SFTConfig):
        drawn = {config.teacher_guidance(task) for task in config.tasks}
        return config.rollout.guidance_of(None) if drawn == {1.0} else 1.0
    own = algorithm.student_guidance if isinstance(algorithm, OPDConfig) else None
    return config.rollout.guidance_of(own)

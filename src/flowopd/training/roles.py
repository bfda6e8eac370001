"""Who is who in a run: the student, each task's teacher and the anchor, opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.network import Expert, Network, NetworkFiles, Visitors
from flowopd.policy.protocol import VelocityModel
from flowopd.training.checks import anchor_adapter
from flowopd.training.config import TrainConfig
from flowopd.training.student import FullStudent, LoraStudent, Student, fold_in

STUDENT = "student"


@dataclass
class Roles:
    """One network with adapters, and networks of their own beside it."""

    bank: AdapterBank
    student: Student
    networks: dict[str, Network] = field(default_factory=dict)
    visitors: Visitors | None = None
    """How networks that wait in host memory come to the device; None: they stay there."""
    teachers: dict[str, str] = field(default_factory=dict)
    """What the teacher of each task is called, in the bank or among the networks."""
    anchor: str | None = None
    """What the anchor is called; None: it is the base, or there is none."""
    folded: dict[str, Path] = field(default_factory=dict)
    """The adapters that are merged into copies of their layers, and where they were read."""

    def identity(self, name: str) -> list[Any]:
        """What tells a teacher from others: of its content."""
        if name in self.networks:
            return [self.networks[name].files.identity]
        info = self.bank.adapters[name]
        return [info.sha256, info.config.to_config()]


def open_roles(
    config: TrainConfig, files: Mapping[Path, Expert], model: VelocityModel, processes: int
) -> Roles:
    """The student, then every teacher and the anchor, each file once."""
    bank = AdapterBank(
        model.transformer,
        base_name=model.name,
        fingerprint=model.fingerprint,
        settings=model.settings,
    )
    roles = Roles(bank, _student(config, files, model, bank, processes))
    names: dict[str, str] = {}

    def name_of(path: Path, role: Role) -> str:
        """By its content, so that none is opened twice."""
        expert = files[path]
        if expert.identity not in names:
            name = f"{role} {len(names) + 1}"
            _open(expert, name, role, config, model, roles)
            names[expert.identity] = name
        return names[expert.identity]

    for task, settings in config.tasks.items():
        if settings.teacher is not None:
            roles.teachers[task] = name_of(settings.teacher, Role.TEACHER)
    anchor = anchor_adapter(config)
    if anchor is not None:
        roles.anchor = name_of(anchor, Role.ANCHOR)
    if config.teachers.place == "host" and roles.networks:
        # A step asks the teacher and the anchor in turn: both have to be there.
        roles.visitors = Visitors(model.device, 2 if roles.anchor in roles.networks else 1)
    return roles


def _open(
    expert: Expert,
    name: str,
    role: Role,
    config: TrainConfig,
    model: VelocityModel,
    roles: Roles,
) -> None:
    if isinstance(expert, NetworkFiles):
        host = config.teachers.place == "host"
        device = torch.device("cpu") if host else model.device
        roles.networks[name] = config.model.open_network(expert, device)
        return
    roles.bank.load(name, expert, role)
    if config.teachers.merged:
        roles.bank.fold(name)
        roles.folded[name] = expert.source


def _student(
    config: TrainConfig,
    files: Mapping[Path, Expert],
    model: VelocityModel,
    bank: AdapterBank,
    processes: int,
) -> Student:
    settings, start = config.student, None if config.start is None else files[config.start]
    if settings.full:
        return _full_student(config, start, model, processes)
    if start is None:
        bank.create(
            STUDENT,
            Role.STUDENT,
            rank=settings.rank,
            alpha=settings.alpha,
            targets=settings.targets or model.default_targets,
            seed=config.seed,
        )
    else:
        assert isinstance(start, AdapterFiles)
        bank.load(STUDENT, start, Role.STUDENT)
    return LoraStudent(bank, model.lora_prefix)


def _full_student(
    config: TrainConfig, start: Expert | None, model: VelocityModel, processes: int
) -> FullStudent:
    """From the base, from the base with an adapter folded in, or from another network."""
    base = start if isinstance(start, NetworkFiles) else config.model.own_network()
    network = config.model.open_network(base, model.device, torch.float32)
    if isinstance(start, AdapterFiles):
        fold_in(network, start)
    return FullStudent(model, network, processes)

"""Adapters for sampling and evaluation: checked before weights load, then switched by name."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowopd.policy.adapter_files import AdapterFiles, check_adapter
from flowopd.policy.bank import AdapterBank, Role
from flowopd.policy.network import Expert, NetworkFiles, check_expert, in_its_place
from flowopd.policy.protocol import ModelConfig, VelocityModel


@dataclass(frozen=True)
class Adapters:
    """Adapters that fit the model, or whole networks in place of its own, by name."""

    config: ModelConfig
    files: dict[str, Expert]

    def record(self, name: str) -> dict[str, Any]:
        """What identifies an adapter in a results file."""
        files = self.files[name]
        return {"path": str(files.source), "sha256": files.sha256, **files.origin}


def check_adapters(config: ModelConfig, paths: dict[str, Path]) -> Adapters:
    """Refuse, before any weight is loaded, adapters that do not fit the model."""
    if not paths:
        return Adapters(config, {})
    skeleton, base = config.skeleton(), config.fingerprint()
    found = {name: check_expert(config, path, skeleton, base) for name, path in paths.items()}
    return Adapters(config, found)


def check_loras(config: ModelConfig, paths: dict[str, Path]) -> dict[str, AdapterFiles]:
    """The same for adapters alone: whole networks are no answer."""
    if not paths:
        return {}
    skeleton, base = config.skeleton(), config.fingerprint()
    return {name: check_adapter(path, skeleton, base) for name, path in paths.items()}


class Switch:
    """The adapters in the model; ``using`` makes one of them (or None) the model's own."""

    def __init__(self, model: VelocityModel, adapters: Adapters) -> None:
        self._model, self._adapters = model, adapters
        self._bank = AdapterBank(
            model.transformer,
            base_name=model.name,
            fingerprint=model.fingerprint,
            settings=model.settings,
        )
        for name, files in adapters.files.items():
            if isinstance(files, AdapterFiles):
                self._bank.load(name, files, Role.TEACHER)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        files = None if name is None else self._adapters.files[name]
        if not isinstance(files, NetworkFiles):
            with self._bank.using(name):
                yield
            return
        # One at a time, and gone afterwards: an evaluation may go through several.
        network = self._adapters.config.open_network(files, self._model.device)
        with in_its_place(self._model, network.transformer):
            yield


TEXT_SETTINGS = ("t5", "t5_length")


def adapter_warnings(files: Expert, *, guidance: float, settings: Mapping[str, Any]) -> list[str]:
    """A sentence for each way in which the adapter is used otherwise than it was trained.

    `settings` are the model's. What the adapter's notes do not say is not compared.
    """
    sentences = []
    trained_for = files.notes.get("guidance")
    if isinstance(trained_for, int | float) and float(trained_for) != guidance:
        sentences.append(
            f"the adapter {files.source} was trained for guidance {trained_for:g}, and is sampled "
            f"with {guidance:g}."
        )
    for key in TEXT_SETTINGS:
        if key in files.notes and key in settings and files.notes[key] != settings[key]:
            sentences.append(
                f"the adapter {files.source} was trained with {key}: {_yaml(files.notes[key])}, "
                f"and is used with {key}: {_yaml(settings[key])}."
            )
    return sentences


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

"""What is written of a merge: its parents, what they agreed on, and what to know of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowopd.policy.adapter_files import AdapterFiles
from flowopd.policy.diffusers_lora import DIFFUSERS_WEIGHTS

SETTINGS = ("guidance", "revision", "t5", "t5_length")
"""What an adapter was trained for; a merged one was if all of its parents were."""
LORA_PREFIX = "transformer"


def parents(adapters: Sequence[AdapterFiles], weights: Sequence[float]) -> list[dict[str, Any]]:
    """The adapters by name, weight and SHA-256, and by commit if they are the hub's."""
    names = short_names([adapter.source for adapter in adapters])
    return [
        {"name": name, "weight": weight, "sha256": adapter.sha256, **adapter.origin}
        for name, weight, adapter in zip(names, weights, adapters, strict=True)
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as it takes to tell the paths apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts), default=0) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [path.name for path in paths]


def base_of(adapters: Sequence[AdapterFiles]) -> dict[str, Any]:
    """The base that the adapters name, and its fingerprint."""
    for adapter in adapters:
        if adapter.notes.get("fingerprint"):
            return {key: adapter.notes.get(key, "") for key in ("base", "fingerprint")}
    names = {adapter.notes.get("base") or "" for adapter in adapters}
    return {"base": names.pop() if len(names) == 1 else "", "fingerprint": ""}


def shared_settings(adapters: Sequence[AdapterFiles]) -> dict[str, Any]:
    """The settings that all adapters have, with the same value."""
    first = adapters[0].notes
    return {
        key: first[key]
        for key in SETTINGS
        if all(
            key in adapter.notes and adapter.notes[key] == first.get(key) for adapter in adapters
        )
    }


def parents_warnings(adapters: Sequence[AdapterFiles]) -> list[str]:
    """A sentence for each thing that the adapters disagree on, or do not say."""
    names = short_names([adapter.source for adapter in adapters])
    sentences = []
    for key in SETTINGS:
        said = {n: a.notes[key] for n, a in zip(names, adapters, strict=True) if key in a.notes}
        if any(value != next(iter(said.values())) for value in said.values()):
            listed = ", ".join(f"{value} ({name})" for name, value in said.items())
            sentences.append(
                f"the adapters were trained for different {key}: {listed}; the merged adapter does "
                "not say any."
            )
    silent = [n for n, a in zip(names, adapters, strict=True) if not a.notes.get("fingerprint")]
    if 0 < len(silent) < len(adapters):
        sentences.append(
            f"{', '.join(silent)} does not say which base it was trained on; it is taken to be the "
            "others'."
        )
    return sentences


def lora_prefix(adapters: Sequence[AdapterFiles]) -> str | None:
    """diffusers' prefix of the transformer's keys, if a parent has a file of diffusers' format."""
    return LORA_PREFIX if any(map(_is_for_diffusers, adapters)) else None


def _is_for_diffusers(adapter: AdapterFiles) -> bool:
    return adapter.layout == "diffusers" or (adapter.folder / DIFFUSERS_WEIGHTS).is_file()

"""The adapters and networks that a stage refers to: read, or made up by the stages that make them.

Adapters that are still to be made, or that lie on the hub, are tensors without numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from flowopd.errors import FlowOPDError
from flowopd.hub import hub_name
from flowopd.planning.outline import META
from flowopd.planning.prompt_files import Assumed
from flowopd.policy.adapter_files import PEFT_CONFIG, AdapterFiles
from flowopd.policy.lora import A_SUFFIX, LoraSettings, module_path, parse_settings
from flowopd.policy.lora_match import expected_shapes, linear_layers
from flowopd.policy.network import Expert, NetworkFiles, check_expert, find_network
from flowopd.policy.network_hub import peek
from flowopd.policy.protocol import JOINT_ATTENTION, ModelConfig
from flowopd.policy.weight_files import read_json
from flowopd.study.kinds.merge import MergeStage
from flowopd.training.config import StudentConfig, TrainConfig

Maker = TrainConfig | MergeStage


class Experts:
    """By path. `makers` are the stages that make adapters, by where these will be."""

    def __init__(self, model: ModelConfig, makers: Mapping[Path, Maker], assumed: Assumed) -> None:
        self._model, self._makers, self._assumed = model, makers, assumed
        self._skeleton = model.skeleton()
        self._layers = linear_layers(self._skeleton)
        self._known: dict[Path, Expert] = {}

    def of(self, path: Path) -> Expert:
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def _find(self, path: Path) -> Expert:
        if path in self._makers and not path.exists():
            return self._to_be_made(path, self._makers[path])
        if hub_name(path) is not None and not path.exists():
            return self._on_hub(path)
        return check_expert(self._model, path, self._skeleton, self._model.fingerprint())

    def _to_be_made(self, path: Path, maker: Maker) -> Expert:
        if isinstance(maker, MergeStage):
            return self._merged(path, maker)
        if maker.student.full:
            own = self._model.own_network()
            return NetworkFiles(path, own.folder, own.config, str(path), {})
        if maker.start is not None:
            start = self.of(maker.start)
            if isinstance(start, AdapterFiles):
                return self._blank(path, start.config)
        return self._blank(path, self._settings(maker.student))

    def _settings(self, student: StudentConfig) -> LoraSettings:
        targets = student.targets or JOINT_ATTENTION
        listed = targets if isinstance(targets, str) else tuple(targets)
        return LoraSettings(student.rank, student.alpha, listed)

    def _merged(self, path: Path, maker: MergeStage) -> AdapterFiles:
        """Of the rank that each layer will have."""
        found: dict[str, list[int]] = {}
        for parent in (self._adapter(one) for one, weight in maker.adapters.items() if weight):
            for key, tensor in parent.tensors.items():
                if key.endswith(A_SUFFIX):
                    found.setdefault(module_path(key), []).append(len(tensor))
        largest = maker.rank or max(max(ranks) for ranks in found.values())
        ranks = {layer: self._rank(layer, own, maker, largest) for layer, own in found.items()}
        most = max(ranks.values())
        pattern = {f"^{layer}": rank for layer, rank in ranks.items() if rank != most}
        return self._blank(path, LoraSettings(most, most, tuple(ranks), rank_pattern=pattern))

    def _rank(self, layer: str, ranks: Sequence[int], maker: MergeStage, largest: int) -> int:
        if maker.method == "factors":
            return max(ranks)
        if maker.method == "exact":
            return sum(ranks)
        most = (largest, *self._layers[layer])
        return min(*most, sum(ranks)) if maker.method == "svd" else min(most)

    def _adapter(self, path: Path) -> AdapterFiles:
        found = self.of(path)
        if not isinstance(found, AdapterFiles):
            raise FlowOPDError(f"{path} is a whole network, and only adapters can be merged.")
        return found

    def _on_hub(self, path: Path) -> Expert:
        """By its configuration alone, which is a few KB."""
        from huggingface_hub import hf_hub_download

        name = hub_name(path)
        assert name is not None
        try:
            if find_network(peek(path) or path) is not None:
                return self._model.network(path)
            file = hf_hub_download(name.repository, PEFT_CONFIG, revision=name.revision)
            return self._blank(path, parse_settings(read_json(Path(file)), str(path)))
        except (FlowOPDError, OSError, ValueError):
            settings = self._settings(StudentConfig())
            self._assumed.add(
                f"{path} could not be looked up on the hub; it is taken for a LoRA of rank "
                f"{settings.rank} on the joint attention."
            )
            return self._blank(path, settings)

    def _blank(self, path: Path, settings: LoraSettings) -> AdapterFiles:
        shapes = expected_shapes(settings, self._layers)
        tensors = {
            key: torch.empty(shape, dtype=torch.float32, device=META)
            for key, shape in shapes.items()
        }
        return AdapterFiles(path, "peft", settings, tensors, {}, str(path))

"""A model and scorers that cost nothing, plug-ins that point to them, and files to use them on."""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import typer
from torch import Tensor, nn

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.policy.protocol import ModelConfig, PromptEmbeds
from flowopd.rewards.scorer import MetricInfo, Scores
from flowopd.tasks.prompts import PromptRecord

SHAPE = (3, 8, 8)


class FakeTransformer(nn.Module):
    """Velocity by one linear layer over channels, moved by the prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.to_q = nn.Linear(3, 3)

    def forward(self, x: Tensor, pooled: Tensor) -> Tensor:
        moved = self.to_q(x.movedim(1, -1)).movedim(-1, 1)
        return moved + pooled[:, :, None, None]


class FakeConfig(ModelConfig):
    family: Literal["fake"] = "fake"
    seed: int = 0
    refused: bool = False

    def check(self) -> None:
        if self.refused:
            raise FlowOPDError("This fake model cannot be opened; set refused to false.")

    def fingerprint(self) -> str:
        return f"{self.seed:064x}"

    def skeleton(self) -> nn.Module:
        with torch.device("meta"):
            return FakeTransformer()

    def open(self) -> "FakeModel":
        return FakeModel(self.seed)


class FakeModel:
    name = "fake"
    settings: Mapping[str, Any] = {}
    shift = 1.0
    lora_prefix = None
    default_targets = ("to_q",)
    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, seed: int) -> None:
        self.fingerprint = f"{seed:064x}"
        self.transformer: nn.Module = FakeTransformer()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.transformer.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        return SHAPE

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        codes = [[len(p), p.count("e"), p.count("a")] for p in prompts]
        pooled = torch.tensor(codes, dtype=torch.float32) / 10
        return PromptEmbeds(pooled[:, None], pooled)

    def velocity(self, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
        return self.transformer(x, prompts.pooled)

    def decode(self, latents: Tensor) -> Tensor:
        return torch.sigmoid(latents).repeat_interleave(4, -1).repeat_interleave(4, -2)

    def drop_text_encoders(self) -> None:
        pass


class BrightScorer:
    """Whether the middle pixel is bright (by tag), and how bright the image is."""

    name = "bright"
    version = 1
    metrics = (MetricInfo("bright", 0, 1, strata=True), MetricInfo("level", 0, 1))
    tasks = None
    grouped = False

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        levels = images.mean(axis=(1, 2, 3)) / 255
        return [Scores({"bright": float(level > 0.5), "level": float(level)}) for level in levels]


class PickyScorer:
    """Reads the task "text" only, and can read no prompt with an x in it."""

    name = "picky"
    version = 1
    metrics = (MetricInfo("picky"),)
    tasks = frozenset({"text"})
    grouped = True
    calls: list[list[str]] = []  # noqa: RUF012

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        self.calls.append([record.prompt for record in records])
        return [
            Scores({"picky": None}, {"picky": "an x"}, {"saw": "x"})
            if "x" in record.prompt
            else Scores({"picky": float(image.mean())})
            for image, record in zip(images, records, strict=True)
        ]


class WrongScorer:
    """Gives what its own range does not allow."""

    name = "wrong"
    version = 1
    metrics = (MetricInfo("wrong", 0, 1),)
    tasks = None
    grouped = False

    def score(self, images: np.ndarray, records: Sequence[PromptRecord]) -> list[Scores]:
        return [Scores({"wrong": float("nan")}) for _ in records]


commands = typer.Typer(help="Fake commands.")


@commands.command()
def hello(name: str = "you") -> None:
    typer.echo(f"hello {name}")


@commands.command()
def refuse() -> None:
    raise FlowOPDError("Refused.")


@commands.command()
def interrupted() -> None:
    raise KeyboardInterrupt


POINTS = {
    "models": {"fake": "fakes:FakeConfig", "sd3": "flowopd.policy.sd3:SD3Config"},
    "scorers": {
        "bright": "fakes:BrightScorer",
        "picky": "fakes:PickyScorer",
        "wrong": "fakes:WrongScorer",
        "broken": "no_such_module_here:Scorer",
    },
    "commands": {"fake": "fakes:commands", "broken": "no_such_module_here:app"},
}


@pytest.fixture
def fake_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fakes as the only plug-ins, whatever is installed."""

    def found(group: plugins.Group) -> dict[str, EntryPoint]:
        points = POINTS[group].items()
        return {name: EntryPoint(name, value, f"flowopd.{group}") for name, value in points}

    monkeypatch.setattr(plugins, "found", found)


PROTOCOL = """\
name: fake protocol
prompts:
  - {path: compose.jsonl, task: compose}
  - {path: words.txt, task: text}
scorers: [bright, picky]
images_per_prompt: 2
seed: 5
steps: 2
guidance: 1.0
batch_size: 3
"""


@pytest.fixture
def protocol(tmp_path: Path) -> Path:
    folder = tmp_path / "protocols"
    folder.mkdir()
    lines = [{"prompt": f"a cup {i}", "tag": "ab"[i % 2]} for i in range(4)]
    (folder / "compose.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "words.txt").write_text("the word HI\nan x\nthe word\n")
    (folder / "protocol.yaml").write_text(PROTOCOL)
    return folder / "protocol.yaml"


@pytest.fixture(scope="session")
def fake_adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA for the fake model with seed 0, trained (it says) with guidance 3."""
    folder = tmp_path_factory.mktemp("adapters") / "mine"
    from flowopd.policy.bank import AdapterBank, Role

    model = FakeConfig().open()
    bank = AdapterBank(model.transformer)
    bank.create("mine", Role.STUDENT, rank=2, alpha=2, targets=["to_q"])
    with torch.no_grad():
        for _, parameter in bank.trainable_parameters():
            parameter.add_(1.0)
    metadata = {"base": "fake", "fingerprint": model.fingerprint, "guidance": 3.0}
    bank.save("mine", folder, metadata=metadata, lora_prefix=None)
    return folder

"""The first update's gradient, which is the same in whatever way it is computed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from sd3_runs import lora, sd3_data
from torch import Tensor

from flowopd.config import build
from flowopd.training.config import TrainConfig
from flowopd.training.methods import METHODS
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare
from flowopd.training.trainer import make_batches

OPD = {
    "name": "opd",
    "steps": {"choose": "random", "count": 2},
    "anchor": {"adapter": "base", "weight": 0.5, "share": 0.34},
}
ROLLOUT = {"steps": 4, "guidance": 4.5, "sampler": "flow_sde"}
BATCH = {"prompts": 4, "images_per_prompt": 2, "micro": 4}
PLAIN: dict[str, Any] = {"algorithm": OPD, "rollout": ROLLOUT, "batch": BATCH}
WAYS: dict[str, dict[str, Any]] = {
    "stored": {"algorithm": OPD | {"path": "stored"}},
    "checkpointing": {"model": {"gradient_checkpointing": True}},
    "micro 1": {"batch": BATCH | {"micro": 1}},
    "merged": {"teachers": {"merged": True}},
}


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("teachers")
    return {"shapes": lora(folder / "a", 1), "words": lora(folder / "b", 2)}


def gradient(
    folder: Path, pipeline: Path, taught: dict[str, Path], changes: Mapping[str, Any]
) -> Tensor:
    """Of a student that is away from its start, where half of its weights have none."""
    data = sd3_data(folder, pipeline, taught)
    model = data["model"] | changes.get("model", {})
    config = build(TrainConfig, data | PLAIN | changes | {"model": model})
    context = make_context(prepare(config), config.model.open(), Ranks(), folder)
    generator = torch.Generator().manual_seed(99)
    parameters = [parameter for _, parameter in context.bank.trainable_parameters()]
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    method = METHODS["opd"](context)
    pieces = next(method.updates(method.batch(make_batches(config, method).draw())))
    for piece in pieces:
        piece.loss.backward()
    return torch.cat([p.grad.reshape(-1) for p in parameters if p.grad is not None])


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_no_t5: Path, taught: dict[str, Path]
) -> Tensor:
    return gradient(tmp_path_factory.mktemp("plain"), tiny_pipeline_no_t5, taught, {})


@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_same(
    tmp_path: Path, tiny_pipeline_no_t5: Path, taught: dict[str, Path], expected: Tensor, way: str
) -> None:
    found = gradient(tmp_path / way, tiny_pipeline_no_t5, taught, WAYS[way])
    assert expected.norm() > 1e-3
    assert (found - expected).norm() <= 1e-5 * expected.norm()

"""An update's pieces do not wait for the device: on the meta device nothing can be looked at."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import data_for

from fakes import FakeConfig, FakeModel
from flowopd.config import build
from flowopd.training.config import TrainConfig
from flowopd.training.faults import Faults
from flowopd.training.methods import METHODS
from flowopd.training.ranks import Ranks
from flowopd.training.run import make_context, prepare
from flowopd.training.trainer import make_batches

pytestmark = pytest.mark.usefixtures("fake_plugins")
ANCHOR = {"adapter": "base", "share": 0.5}


class MetaModel(FakeModel):
    """All shapes and no numbers."""

    device = torch.device("meta")

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.transformer.to("meta")


@pytest.mark.parametrize(
    "keys",
    [
        {"path": "fused", "anchor": ANCHOR},
        {"path": "stored", "anchor": ANCHOR, "steps": {"choose": "random", "count": 2}},
        {"path": "fused", "student_guidance": 1.0, "weighting": "released"},
    ],
)
@pytest.mark.parametrize("sampler", ["flow_sde", "cps"])
def test_distillation(
    tmp_path: Path, keys: dict[str, Any], sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = {"steps": 4, "guidance": 3.0, "sampler": sampler}
    config = build(TrainConfig, data_for(tmp_path, {"name": "opd", **keys}, rollout=rollout))
    monkeypatch.setattr(FakeConfig, "open", lambda self: MetaModel(self.seed))
    context = make_context(prepare(config), config.model.open(), Ranks(), tmp_path)
    method = METHODS["opd"](context)
    named = context.roles.student.parameters()
    faults = Faults(named, context.ranks)
    batch = method.batch(make_batches(config, method).draw())
    for pieces in method.updates(batch):
        for piece in pieces:
            piece.loss.backward()
            faults.after(piece)
    assert faults.loss().device.type == "meta"
    assert all(parameter.grad is not None for _, parameter in named)

"""The settings of the algorithms: what is refused, with which sentence."""

from pathlib import Path
from typing import Any

import pytest

from flowopd.algorithms.settings import (
    ALGORITHMS,
    AnchorConfig,
    GRPOConfig,
    NFTConfig,
    OPDConfig,
    StepsConfig,
)
from flowopd.config import Config, build
from flowopd.errors import FlowOPDError

RANDOM = {"choose": "random", "count": 2}
PG = {"loss": "policy_gradient"}


@pytest.mark.parametrize(
    ("cls", "data", "sentence"),
    [
        (StepsConfig, {"count": 2}, "count goes with every choice of steps but 'all'"),
        (StepsConfig, {"choose": "random"}, "count goes with every choice of steps but 'all'"),
        (StepsConfig, {"choose": "some", "count": 2}, "'choose' is 'some'"),
        (StepsConfig, RANDOM | {"count": 0}, "'count' is 0"),
        (StepsConfig, RANDOM | {"slide_every": 2}, "slide_every is for choose: window"),
        (StepsConfig, RANDOM | {"reweight": False}, "reweight: false is for choose: beta"),
        (GRPOConfig, {"clip": 0}, "'clip' is 0"),
        (GRPOConfig, {"kl": -0.1}, "'kl' is -0.1"),
        (GRPOConfig, {"spread": "task"}, "'spread' is 'task'"),
        (GRPOConfig, {"horizon": "step"}, "Unknown key 'horizon'"),
        (NFTConfig, {"beta": 0}, "'beta' is 0"),
        (NFTConfig, {"old": {"highest": 1.0}}, "'old.highest' is 1.0"),
        (AnchorConfig, {}, "'adapter' is missing"),
        (AnchorConfig, {"adapter": "base", "share": 0}, "'share' is 0"),
        (AnchorConfig, {"adapter": "base", "weight": 0}, "'weight' is 0"),
        (OPDConfig, {"weighting": "exact"}, "'weighting' is 'exact'"),
        (OPDConfig, {"horizon": "step"}, "horizon would do nothing with loss: pathwise"),
        (
            OPDConfig,
            {"clip": 0.1, "normalise": False},
            "clip, normalise would do nothing with loss: pathwise",
        ),
        (
            OPDConfig,
            PG | {"path": "fused"},
            "path: fused is not possible, because loss: policy_gradient needs the whole trajectory",
        ),
        (
            OPDConfig,
            {"path": "fused", "updates_per_rollout": 2},
            "path: fused is not possible, because a rollout that serves several updates",
        ),
        (
            OPDConfig,
            PG | {"steps": RANDOM | {"ode_elsewhere": True}},
            "ode_elsewhere leaves the other steps without a KL, which horizon: trajectory needs",
        ),
    ],
)
def test_what_is_refused(cls: type[Config], data: dict[str, Any], sentence: str) -> None:
    with pytest.raises(FlowOPDError) as caught:
        build(cls, data)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_has_its_name_and_can_be_written_down_and_read_back(name: str) -> None:
    config = build(ALGORITHMS[name], {"name": name})
    assert config.name == name
    assert build(ALGORITHMS[name], config.model_dump(mode="json")) == config


@pytest.mark.parametrize("keys", [{}, PG, {"anchor": "base"}, {"anchor": "a/b", "steps": RANDOM}])
def test_a_distillation_is_read_back_as_it_was_written(keys: dict[str, Any]) -> None:
    config = build(OPDConfig, keys)
    assert build(OPDConfig, config.model_dump(mode="json")) == config


class TestAnchor:
    def test_may_be_a_path_or_the_base(self) -> None:
        context = {"folder": "/recipes"}
        base = build(OPDConfig, {"anchor": "base"}, context=context).anchor
        path = build(OPDConfig, {"anchor": "quality"}, context=context).anchor
        assert base is not None
        assert path is not None
        assert base.adapter == "base"
        assert path.adapter == Path("/recipes/quality")
        assert base.weight == 0.02

    def test_a_folder_of_that_name_is_told_by_a_path(self) -> None:
        anchor = build(OPDConfig, {"anchor": "./base"}, context={"folder": "/recipes"}).anchor
        assert anchor is not None
        assert anchor.adapter == Path("/recipes/base")


@pytest.mark.parametrize(
    ("keys", "fused"),
    [
        ({}, True),
        ({"path": "fused"}, True),
        ({"path": "stored"}, False),
        ({"updates_per_rollout": 2}, False),
        ({"loss": "policy_gradient"}, False),
        ({"loss": "both"}, False),
        ({"loss": "mixed"}, False),
        ({"steps": {**RANDOM, "ode_elsewhere": True}}, True),
    ],
)
def test_a_step_is_fused_wherever_it_can_be(keys: dict[str, Any], fused: bool) -> None:
    assert build(OPDConfig, keys).fused is fused


def test_which_losses_a_name_stands_for() -> None:
    parts = {
        name: (config.pathwise, config.policy_gradient)
        for name in ("pathwise", "policy_gradient", "both", "mixed")
        for config in [build(OPDConfig, {"loss": name})]
    }
    assert parts == {
        "pathwise": (True, False),
        "policy_gradient": (False, True),
        "both": (True, True),
        "mixed": (False, True),
    }


def test_the_published_defaults() -> None:
    grpo, opd, nft = GRPOConfig(), OPDConfig(), NFTConfig()
    assert (grpo.clip, grpo.advantage_clip, grpo.kl, grpo.spread) == (1e-4, 5.0, 0.04, "global")
    assert (opd.loss, opd.weighting, opd.clip) == ("pathwise", "kl", 1e-4)
    assert (nft.old.slope, nft.old.highest, nft.old.after) == (0.001, 0.5, 0)

"""The base model that ships: whole, small, reproducible from its card, alive, with room left."""

import json
from collections import defaultdict

import numpy as np
import pytest
import torch

from flowopd.errors import FlowOPDError
from flowopd.policy.generate import SamplingConfig, generate
from flowopd.policy.protocol import VelocityModel
from flowopd.world import assets
from flowopd.world.grammar import evaluation_prompts
from flowopd.world.model import WorldConfig
from flowopd.world.readers.compose import ComposeReader
from flowopd.world.readers.text import TextReader
from flowopd.world.recipe import PretrainConfig

TEN_STEPS = SamplingConfig(steps=10, guidance=1.0)


@pytest.fixture(scope="module")
def model() -> VelocityModel:
    config = WorldConfig()
    config.check()
    return config.open()


def test_the_card_tells_how_to_make_it_again() -> None:
    card = assets.read_card(assets.FOLDER)
    assert PretrainConfig(**card["recipe"]) == PretrainConfig()
    assert (assets.FOLDER / assets.WEIGHTS).stat().st_size <= 8_000_000


def test_the_skeleton_is_the_transformer_without_weights(model: VelocityModel) -> None:
    skeleton = WorldConfig().skeleton()
    shapes = {name: p.shape for name, p in model.transformer.named_parameters()}
    assert {name: p.shape for name, p in skeleton.named_parameters()} == shapes
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("reader", "seeds", "low", "high"),
    [(ComposeReader(), range(256), 0.35, 0.75), (TextReader(), range(512, 768), 0.25, 0.70)],
)
def test_the_base_is_alive_and_leaves_room(
    model: VelocityModel, reader, seeds: range, low: float, high: float
) -> None:
    """Half of recipes/world/eval.yaml's prompts and seeds: strict scores, every tag above 0.15."""
    metric = reader.metrics[0].name
    records = evaluation_prompts(metric, 512, seed=0)[: len(seeds)]
    prompts = [record.prompt for record in records]
    images = np.concatenate(list(generate(model, prompts, seeds, TEN_STEPS, batch_size=64)))
    by_tag = defaultdict(list)
    for score, record in zip(reader.score(images, records), records, strict=True):
        by_tag[record.tag].append(score.values[metric])
    means = {tag: float(np.mean(values)) for tag, values in by_tag.items()}
    assert low <= np.mean(list(means.values())) <= high
    assert min(means.values()) > 0.15


def test_same_seed_same_picture_whatever_the_batch_split(model: VelocityModel) -> None:
    records = evaluation_prompts("compose", 2, seed=1) + evaluation_prompts("text", 1, seed=1)
    prompts, seeds = [record.prompt for record in records], list(range(3))
    for sampling in (
        TEN_STEPS,
        SamplingConfig(steps=6, guidance=2.5),
        SamplingConfig(steps=6, guidance=1.0, sampler="flow_sde"),
        SamplingConfig(steps=6, guidance=1.0, sampler="cps"),
    ):
        one, other = (
            np.concatenate(list(generate(model, prompts, seeds, sampling, batch_size=size)))
            for size in (3, 2)
        )
        assert np.array_equal(one, other)
        reseeded = np.concatenate(
            list(generate(model, prompts, [*seeds[1:], 99], sampling, batch_size=3))
        )
        assert not np.array_equal(one, reseeded)


def test_prompts_are_refused_before_anything_is_drawn(model: VelocityModel) -> None:
    with pytest.raises(FlowOPDError, match="does not know dog"):
        list(generate(model, ["a dog"], [0], TEN_STEPS, batch_size=1))


def test_other_sizes_are_refused(model: VelocityModel) -> None:
    with pytest.raises(FlowOPDError, match="32 by 32 pixels, not 64 by None"):
        model.latent_shape(64)
    assert model.latent_shape(32, 32) == model.latent_shape() == (48, 8, 8)


def test_freed_text_encoder_is_said(model: VelocityModel) -> None:
    other = WorldConfig().open()
    other.drop_text_encoders()
    with pytest.raises(FlowOPDError, match="has been freed"):
        other.encode_prompts(["a circle"])


def test_nothing_of_the_base_is_trainable(model: VelocityModel) -> None:
    assert not any(p.requires_grad for p in model.transformer.parameters())
    with torch.no_grad():
        assert json.dumps(model.fingerprint)

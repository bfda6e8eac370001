"""imagereward on a tiny checkpoint in its layout, against the same written out in arithmetic."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from pair_pictures import PROMPTS, assert_one_by_one, pictures, values
from transformers import AutoTokenizer

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.imagereward.layout import convert
from flowopd.rewards.preparing import cropped
from flowopd.rewards.scorer import Scorer
from plain_networks import blip_picture, blip_read, rate
from tiny_clip import SIZE, image_reward_tensors, save_bert_tokenizer

WHERE = Path("ImageReward.pt")
MEAN, STD = 0.16717362830052426, 1.0333394966054072
UNUSED = ("blip.vision_proj", "blip.text_proj", "blip.text_encoder.embeddings.position_ids")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_bert_tokenizer(tmp_path_factory.mktemp("imagereward"))
    torch.save(image_reward_tensors(), folder / WHERE.name)
    return folder


def imagereward(folder: Path, **settings: object) -> Scorer:
    places = {"model": str(folder), "tokenizer": str(folder)}
    return plugins.load_scorer({"name": "imagereward", "device": "cpu", **places, **settings})


def reward(
    folder: Path, pixels: torch.Tensor, prompt: str, epsilon: Mapping[str, float] | None = None
) -> float:
    tensors, epsilons = image_reward_tensors(), dict(epsilon or {})
    tokens = AutoTokenizer.from_pretrained(folder)(prompt, truncation=True, max_length=35).input_ids
    seen = blip_picture(tensors, pixels, epsilon=epsilons.get("picture", 1e-6))
    read = blip_read(tensors, tokens, seen, epsilon=epsilons.get("text", 1e-12))
    return (rate(tensors, read[0], "mlp.layers") - MEAN) / STD


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (81, 40), (SIZE, SIZE), (20, 10)])
def test_the_converted_networks_are_the_published_ones(
    shape: tuple[int, int], folder: Path
) -> None:
    images = pictures(len(PROMPTS), *shape)
    expected = [
        reward(folder, pixels, prompt)
        for pixels, prompt in zip(cropped(images, SIZE), PROMPTS, strict=True)
    ]
    found = values(imagereward(folder), images, PROMPTS)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [{"picture": 1e-5}, {"text": 1e-5}])
def test_the_comparison_would_see_another_epsilon(other: Mapping[str, float], folder: Path) -> None:
    pixels = cropped(pictures(1), SIZE)[0]
    assert abs(reward(folder, pixels, "dog") - reward(folder, pixels, "dog", other)) > 1e-4


def test_pairs_are_scored_one_by_one(folder: Path) -> None:
    for batch_size in (1, 4):
        assert_one_by_one(imagereward(folder, batch_size=batch_size), 1e-5)


def test_a_prompt_is_cut_at_35_tokens(folder: Path) -> None:
    images = np.repeat(pictures(1), 3, 0)
    long = ["red " * 33 + end for end in ("dog", "square")]
    cut, same, shorter = values(imagereward(folder), images, [*long, "red " * 32 + "dog"])
    assert abs(cut - same) < 1e-5
    assert abs(cut - shorter) > 1e-4


@pytest.mark.parametrize(
    "name", sorted(n for n in image_reward_tensors() if not n.startswith(UNUSED))
)
def test_a_missing_key_is_refused_by_name(name: str) -> None:
    tensors = image_reward_tensors()
    del tensors[name]
    with pytest.raises(FlowOPDError, match=f"{WHERE} lacks {re.escape(name)} "):
        convert(tensors, WHERE)


def test_what_is_not_used_may_be_missing() -> None:
    tensors = {k: t for k, t in image_reward_tensors().items() if not k.startswith(UNUSED)}
    convert(tensors, WHERE)


@pytest.mark.parametrize("name", ["blip.text_decoder.bert.weight", "mlp.layers.8.weight"])
def test_an_unknown_key_is_refused_by_name(name: str) -> None:
    tensors = {**image_reward_tensors(), name: torch.zeros(1)}
    with pytest.raises(FlowOPDError, match=f"{WHERE} has the unknown {re.escape(name)} "):
        convert(tensors, WHERE)

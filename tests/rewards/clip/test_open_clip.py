"""hpsv2 on a tiny checkpoint in open_clip's layout, against the same written out in arithmetic."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pair_pictures import PROMPTS, assert_one_by_one, pictures, values
from torch import Tensor
from transformers import AutoTokenizer

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.clip.open_clip import clean, convert
from flowopd.rewards.preparing import padded
from flowopd.rewards.scorer import Scorer
from plain_networks import cosine, open_clip_picture, open_clip_text, quick_gelu
from tiny_clip import SIZE, open_clip_tensors, save_clip_tokenizer

WHERE = Path("HPS_v2.1_compressed.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint as its authors save it, and a tokenizer."""
    folder = save_clip_tokenizer(tmp_path_factory.mktemp("hpsv2"))
    torch.save({"state_dict": open_clip_tensors()}, folder / WHERE.name)
    return folder


def hpsv2(folder: Path, **settings: object) -> Scorer:
    places = {"model": str(folder), "tokenizer": str(folder)}
    return plugins.load_scorer({"name": "hpsv2", "device": "cpu", **places, **settings})


def tokens(folder: Path, prompt: str) -> list[int]:
    ids: list[int] = AutoTokenizer.from_pretrained(folder)(
        prompt, truncation=True, max_length=77
    ).input_ids
    return ids


@pytest.mark.parametrize("shape", [(64, 64), (48, 80), (81, 40), (SIZE, SIZE), (20, 10)])
def test_the_converted_network_is_the_published_one(shape: tuple[int, int], folder: Path) -> None:
    tensors, images = open_clip_tensors(), pictures(len(PROMPTS), *shape)
    expected = [
        cosine(open_clip_picture(tensors, pixels), open_clip_text(tensors, tokens(folder, prompt)))
        for pixels, prompt in zip(padded(images, SIZE), PROMPTS, strict=True)
    ]
    np.testing.assert_allclose(values(hpsv2(folder), images, PROMPTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("other", [{"act": quick_gelu}, {"epsilon": 1e-6}, {"heads": 8}])
def test_the_comparison_would_see_another_network(other: Mapping[str, Any]) -> None:
    tensors, pixels = open_clip_tensors(), padded(pictures(1), SIZE)[0]
    text = [3, 7, 100, 9, len(tensors["token_embedding.weight"]) - 1]
    seen, read = open_clip_picture(tensors, pixels), open_clip_text(tensors, text)
    true = cosine(seen, read)
    assert abs(cosine(open_clip_picture(tensors, pixels, **other), read) - true) > 1e-4
    assert abs(cosine(seen, open_clip_text(tensors, text, **other)) - true) > 1e-4


def test_pairs_are_scored_one_by_one(folder: Path) -> None:
    for batch_size in (1, 4):
        assert_one_by_one(hpsv2(folder, batch_size=batch_size), 1e-6)


def test_the_file_may_be_named_itself(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "my.pt"
    torch.save(open_clip_tensors(), bare)
    scorer = plugins.load_scorer(
        {"name": "hpsv2", "model": str(bare), "tokenizer": str(folder), "device": "cpu"}
    )
    images = pictures(2)
    assert values(scorer, images, PROMPTS[:2]) == values(hpsv2(folder), images, PROMPTS[:2])


def test_another_file_of_the_repository(folder: Path, tmp_path: Path) -> None:
    torch.save({"state_dict": open_clip_tensors(seed=1)}, tmp_path / "HPS_v2_compressed.pt")
    scorer = plugins.load_scorer(
        {
            "name": "hpsv2",
            "model": str(tmp_path),
            "file": "HPS_v2_compressed.pt",
            "tokenizer": str(folder),
            "device": "cpu",
        }
    )
    images = pictures(2)
    assert values(scorer, images, PROMPTS[:2]) != values(hpsv2(folder), images, PROMPTS[:2])


@pytest.mark.parametrize("name", sorted(open_clip_tensors()))
def test_a_missing_key_is_refused_by_name(name: str) -> None:
    tensors = open_clip_tensors()
    del tensors[name]
    with pytest.raises(FlowOPDError, match=f"{WHERE} lacks {re.escape(name)} "):
        convert(tensors, WHERE)


@pytest.mark.parametrize("name", ["visual.attn_pool.query", "score_predictor.layers.0.weight"])
def test_an_unknown_key_is_refused_by_name(name: str) -> None:
    tensors: dict[str, Tensor] = {**open_clip_tensors(), name: torch.zeros(1)}
    with pytest.raises(FlowOPDError, match=f"{WHERE} has the unknown {re.escape(name)} "):
        convert(tensors, WHERE)


def test_a_tensor_of_another_shape_is_refused_by_name() -> None:
    tensors = {**open_clip_tensors(), "visual.transformer.resblocks.1.ln_2.bias": torch.zeros(3)}
    with pytest.raises(FlowOPDError, match=r"layers\.1\.layer_norm2\.bias of the shape \(3,\)"):
        convert(tensors, WHERE)


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("a &amp;amp; b", "a & b"),
        ("“it’s”", '"it\'s"'),
        ("ＷＩＤＥ　ﬁsh", "WIDE fish"),
        ("\ufeffcafé ", "café"),
        ("", ""),
    ],
)
def test_texts_begin_as_in_open_clip(text: str, plain: str) -> None:
    assert clean(text) == plain

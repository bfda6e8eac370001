"""pickscore, clipscore and aesthetic on a tiny CLIP, against transformers called directly."""

import gc
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from pair_pictures import PROMPTS, assert_one_by_one, pictures, spread, values
from transformers import AutoTokenizer, CLIPModel

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards.scorer import ChecksItself, Loads, Scorer, ShowsItself
from flowopd.tasks.prompts import PromptRecord
from plain_networks import rate
from tiny_clip import FEATURES, rating_tensors, save_clip, save_json

CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
AUTO_MAP = {"AutoTokenizer": ["mine.Mine", None]}
SHAPES = [(64, 64), (48, 80), (90, 33), (32, 32), (20, 20)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP folder. Read it, never write to it."""
    return save_clip(tmp_path_factory.mktemp("clip") / "clip")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    torch.save(rating_tensors(FEATURES), folder / "sac+logos+ava1-l14-linearMSE.pth")
    return folder


def scorer_of(name: str, clip: Path, head: Path, **settings: Any) -> Scorer:
    places = {
        "pickscore": {"model": str(clip), "processor": str(clip)},
        "clipscore": {"model": str(clip)},
        "aesthetic": {"model": str(clip), "head": str(head)},
    }
    return plugins.load_scorer({"name": name, "device": "cpu", **places[name], **settings})


def inputs(
    clip: Path, images: NDArray[np.uint8], prompts: Sequence[str]
) -> tuple[CLIPModel, dict[str, torch.Tensor]]:
    """What the released scorers give to transformers."""
    kind = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    pixels = kind.from_pretrained(clip)(images=list(images), return_tensors="pt")
    tokenizer = AutoTokenizer.from_pretrained(clip)
    tokens = tokenizer(
        list(prompts), padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    model = CLIPModel.from_pretrained(clip).eval()
    return model, {"pixel_values": pixels["pixel_values"], **tokens}


@pytest.mark.parametrize("name", ["pickscore", "clipscore"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pair_is_what_transformers_gives(
    name: str, shape: tuple[int, int], clip: Path, head: Path
) -> None:
    images = pictures(len(PROMPTS), *shape)
    model, given = inputs(clip, images, PROMPTS)
    with torch.no_grad():
        logits = model(**given).logits_per_image.diagonal().double().numpy()
    found = values(scorer_of(name, clip, head), images, PROMPTS)
    assert spread(found) > 1
    np.testing.assert_allclose(found, logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_aesthetic_is_the_rating_of_the_features(
    shape: tuple[int, int], clip: Path, head: Path
) -> None:
    images = pictures(5, *shape)
    model, given = inputs(clip, images, [""])
    with torch.no_grad():
        seen = model.vision_model(pixel_values=given["pixel_values"]).pooler_output
        features = model.visual_projection(seen).double()
    features /= torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    ratings = [rate(rating_tensors(FEATURES), one) for one in features]
    found = values(scorer_of("aesthetic", clip, head), images, ["any"] * 5)
    assert spread(found) > 1e-3
    np.testing.assert_allclose(found, ratings, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "tolerance"), [("pickscore", 2e-5), ("clipscore", 2e-5), ("aesthetic", 1e-6)]
)
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_pairs_are_scored_one_by_one(
    name: str, tolerance: float, batch_size: int, clip: Path, head: Path
) -> None:
    assert_one_by_one(scorer_of(name, clip, head, batch_size=batch_size), tolerance)


def test_batch_size_does_not_matter(clip: Path, head: Path) -> None:
    images = pictures(len(PROMPTS))
    found = [
        values(scorer_of("pickscore", clip, head, batch_size=size), images, PROMPTS)
        for size in (1, 2, 5, 64)
    ]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=0, atol=2e-5)


def test_the_prompt_matters_to_two_of_them(clip: Path, head: Path) -> None:
    images = np.repeat(pictures(1), len(PROMPTS), 0)
    assert spread(values(scorer_of("pickscore", clip, head), images, PROMPTS)) > 1
    assert spread(values(scorer_of("aesthetic", clip, head), images, PROMPTS)) < 1e-6


def test_a_long_prompt_is_cut(clip: Path, head: Path) -> None:
    images = np.repeat(pictures(1), 2, 0)
    scorer = scorer_of("clipscore", clip, head)
    same = values(scorer, images, ["a " * 75 + "dog", "a " * 75 + "red square"])
    assert spread(same) < 1e-5
    different = values(scorer, images, ["a " * 74 + "dog", "a " * 74 + "red square"])
    assert spread(different) > 1e-3


def test_the_same_weights_pickled(clip: Path, head: Path, tmp_path: Path) -> None:
    model = CLIPModel.from_pretrained(clip)
    pickled = shutil.copytree(clip, tmp_path / "pickled")
    (pickled / "model.safetensors").unlink()
    counting = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({**model.state_dict(), **counting}, pickled / "pytorch_model.bin")
    images = pictures(3)
    assert values(scorer_of("clipscore", pickled, head), images, PROMPTS[:3]) == values(
        scorer_of("clipscore", clip, head), images, PROMPTS[:3]
    )


def test_what_is_no_number_is_missing(clip: Path, head: Path, tmp_path: Path) -> None:
    broken = rating_tensors(FEATURES)
    broken["layers.7.bias"] = torch.tensor([float("nan")])
    torch.save(broken, tmp_path / "broken.pth")
    scorer = scorer_of("aesthetic", clip, tmp_path / "broken.pth")
    (score,) = scorer.score(pictures(1), [PromptRecord("a dog")])
    assert score.values == {"aesthetic": None}
    assert score.reasons == {"aesthetic": "the network gave nan"}


def test_a_closed_one_holds_no_network_and_loads_again(clip: Path, head: Path) -> None:
    scorer = scorer_of("aesthetic", clip, head)
    before = values(scorer, pictures(2), PROMPTS[:2])
    network = weakref.ref(scorer._network)
    scorer.close()
    gc.collect()
    assert network() is None
    assert values(scorer, pictures(2), PROMPTS[:2]) == before


def test_nothing_to_score(clip: Path, head: Path) -> None:
    assert scorer_of("clipscore", clip, head).score(pictures(0), []) == []


@pytest.mark.parametrize(
    ("name", "scale"),
    [("pickscore", 26), ("clipscore", 30), ("aesthetic", 1), ("hpsv2", 1), ("imagereward", 1)],
)
def test_what_they_say_of_themselves(name: str, scale: float) -> None:
    scorer = plugins.load_scorer(name)
    assert isinstance(scorer, Scorer)
    assert isinstance(scorer, Loads)
    assert isinstance(scorer, ChecksItself)
    assert isinstance(scorer, ShowsItself)
    (info,) = scorer.metrics
    assert (info.name, info.scale) == (name, scale)
    assert not scorer.grouped
    assert scorer.about.models
    assert scorer.about.licence
    assert scorer.about.cost
    image, record = scorer.example()
    assert image.shape == (512, 512, 3)
    assert record.prompt == "a red square"


def test_the_self_check_runs_on_any_network(clip: Path, head: Path) -> None:
    """A random network cannot tell a square from a dog, but it can read its pictures alone."""
    for name in ("pickscore", "clipscore", "aesthetic"):
        findings = scorer_of(name, clip, head).self_check()
        assert len(findings) == 4
        assert findings[-1].good, findings[-1]


def test_a_head_for_another_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    torch.save(rating_tensors(FEATURES + 1), tmp_path / "head.pth")
    scorer = scorer_of("aesthetic", clip, tmp_path / "head.pth")
    with pytest.raises(FlowOPDError) as refused:
        scorer.load()
    assert str(refused.value) == (
        f"The head in {tmp_path / 'head.pth'} rates features of 25 numbers, and the network before "
        "it gives 24; a head needs the network that it was made for."
    )


def test_an_incomplete_head_is_refused(clip: Path, tmp_path: Path) -> None:
    tensors = rating_tensors(FEATURES)
    del tensors["layers.4.bias"]
    torch.save({**tensors, "layers.9.weight": torch.zeros(1)}, tmp_path / "head.pth")
    scorer = scorer_of("aesthetic", clip, tmp_path / "head.pth")
    with pytest.raises(FlowOPDError) as refused:
        scorer.load()
    assert "lacks layers.4.bias (1) and has the unknown layers.9.weight (1)" in str(refused.value)
    assert str(tmp_path / "head.pth") in str(refused.value)


@pytest.mark.parametrize("key", ["logit_scale", "vision_model.encoder.layers.1.mlp.fc2.bias"])
def test_an_incomplete_clip_is_refused(key: str, clip: Path, head: Path, tmp_path: Path) -> None:
    state = CLIPModel.from_pretrained(clip).state_dict()
    del state[key]
    folder = shutil.copytree(clip, tmp_path / "clip")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(FlowOPDError, match=f"lacks {key}"):
        scorer_of("pickscore", folder, head).load()


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config.json": {"tokenizer_class": "Mine", "auto_map": AUTO_MAP}},
        {
            "tokenizer_config.json": {"tokenizer_class": "Mine", "auto_map": AUTO_MAP},
            "config.json": None,
        },
        {
            "tokenizer_config.json": None,
            "config.json": {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
        },
    ],
    ids=["beside a CLIP", "alone", "by its configuration"],
)
def test_code_that_comes_with_a_tokenizer_is_not_run(
    files: dict[str, object], clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where somebody, or something, says yes to whatever is asked."""
    folder = shutil.copytree(clip, tmp_path / "theirs")
    for name, content in files.items():
        (folder / name).unlink() if content is None else save_json(folder / name, content)
    (folder / "mine.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n"
        "from transformers import CLIPConfig as Config, CLIPTokenizer as Mine\n"
    )
    monkeypatch.setattr("builtins.input", lambda _: "y")
    scorer = plugins.load_scorer(
        {"name": "pickscore", "device": "cpu", "model": str(clip), "processor": str(folder)}
    )
    with pytest.raises(FlowOPDError, match=r"tokenizer in .*theirs cannot .* code .* is not run"):
        scorer.load()
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "published", "own"),
    [
        ("pickscore", ["yuvalkirstain/PickScore_v1", CLIP_H], ["clip", "clip"]),
        ("clipscore", [CLIP_L], ["clip"]),
        ("aesthetic", [CLIP_L, "trl-lib/ddpo-aesthetic-predictor"], ["clip", "my_head.pth"]),
    ],
)
def test_the_models_that_they_say_are_those_of_their_settings(
    name: str, published: list[str], own: list[str], clip: Path, head: Path, tmp_path: Path
) -> None:
    """A service tells them to whoever asks: a file or folder by its name, not by where it is."""
    about = plugins.load_scorer(name).about
    assert about.models == tuple(published)
    assert "MIT" in about.licence
    shutil.copy(next(head.iterdir()), tmp_path / "my_head.pth")
    about = scorer_of(name, clip, tmp_path / "my_head.pth").about
    assert about.models == tuple(own)
    assert about.licence == "that of the models"


@pytest.mark.parametrize(
    ("name", "model", "tokenizer"),
    [
        ("hpsv2", "xswu/HPSv2", CLIP_H),
        ("imagereward", "THUDM/ImageReward", "google-bert/bert-base-uncased"),
    ],
)
def test_a_tokenizer_is_shown_as_such(name: str, model: str, tokenizer: str, clip: Path) -> None:
    assert plugins.load_scorer(name).about.models == (model, f"{tokenizer} (tokenizer)")
    own = plugins.load_scorer({"name": name, "model": "me/mine@v2", "tokenizer": str(clip)})
    assert own.about.models == ("me/mine@v2", "clip (tokenizer)")
    assert own.about.licence == "that of the models"


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(FlowOPDError, match=r"Unknown key 'pickscore.modle'.*'pickscore.model'"):
        plugins.load_scorer({"name": "pickscore", "modle": "a/b"})

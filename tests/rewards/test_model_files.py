"""Models of scorers by hub id: found in the cache; a sentence when they cannot be had."""

import shutil
from pathlib import Path

import pytest
import torch
from pair_pictures import PROMPTS, pictures, values

from flowopd import plugins
from flowopd.errors import FlowOPDError
from flowopd.rewards import model_files
from hub_cache import HubCache, hub
from tiny_clip import (
    FEATURES,
    image_reward_tensors,
    open_clip_tensors,
    rating_tensors,
    save_bert_tokenizer,
    save_clip,
    save_clip_tokenizer,
)

__all__ = ["hub"]

CLIP_L, CLIP_H = "openai/clip-vit-large-patch14", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
REPOSITORIES = {
    "pickscore": ["yuvalkirstain/PickScore_v1", CLIP_H],
    "clipscore": [CLIP_L],
    "aesthetic": [CLIP_L, "trl-lib/ddpo-aesthetic-predictor"],
    "hpsv2": ["xswu/HPSv2", CLIP_H],
    "imagereward": ["THUDM/ImageReward", "google-bert/bert-base-uncased"],
}


@pytest.fixture(autouse=True)
def nothing_fetched_before() -> None:
    model_files._fetched.cache_clear()


@pytest.fixture
def published(tmp_path: Path, hub: HubCache) -> dict[str, Path]:
    """A folder for each repository, all of them in the cache too."""
    clip = save_clip(tmp_path / "clip")
    heads, hps, reward, bert = (tmp_path / name for name in ("heads", "hps", "reward", "bert"))
    for folder in (heads, hps, reward):
        folder.mkdir()
    torch.save(rating_tensors(FEATURES), heads / "aesthetic-model.pth")
    torch.save({"state_dict": open_clip_tensors()}, hps / "HPS_v2.1_compressed.pt")
    torch.save(image_reward_tensors(), reward / "ImageReward.pt")
    folders = {
        CLIP_L: clip,
        "yuvalkirstain/PickScore_v1": clip,
        CLIP_H: clip,
        "trl-lib/ddpo-aesthetic-predictor": heads,
        "xswu/HPSv2": hps,
        "THUDM/ImageReward": reward,
        "google-bert/bert-base-uncased": save_bert_tokenizer(bert),
    }
    for repository, folder in folders.items():
        hub.put(repository, folder)
    return folders


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_scorer_by_its_name_alone(name: str, published: dict[str, Path]) -> None:
    scorer = plugins.load_scorer({"name": name, "device": "cpu"})
    scorer.load()
    assert len(values(scorer, pictures(2), PROMPTS[:2])) == 2


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_scorer_without_a_network(name: str, hub: HubCache) -> None:
    """It can be made, and says what it lacks when it is used."""
    scorer = plugins.load_scorer({"name": name, "device": "cpu"})
    with pytest.raises(FlowOPDError) as refused:
        scorer.score(pictures(1), [scorer.example()[1]])
    sentence = str(refused.value)
    assert sentence.startswith(f"The scorer '{name}' has no ")
    assert f"hf download {REPOSITORIES[name][0]}" in sentence
    assert f"{{name: {name}, model: FOLDER}}" in sentence


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_repository_fetched_in_part(
    name: str, published: dict[str, Path], hub: HubCache, tmp_path: Path
) -> None:
    for number, repository in enumerate(REPOSITORIES[name]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "README.md").write_text("nothing else")
        place = hub.folder / f"models--{repository.replace('/', '--')}"
        kept = place.rename(tmp_path / f"kept{number}")
        hub.put(repository, folder)
        scorer = plugins.load_scorer({"name": name, "device": "cpu"})
        with pytest.raises(FlowOPDError, match=f"'{name}' has {repository} .*fetched in part"):
            scorer.load()
        shutil.rmtree(place)
        kept.rename(place)
        model_files._fetched.cache_clear()


def test_a_revision(published: dict[str, Path], hub: HubCache) -> None:
    commit = "a" * 40
    hub.put(CLIP_L, published[CLIP_L], revision="v2", commit=commit)
    folder = model_files.network_folder("clipscore", "model", f"{CLIP_L}@v2")
    assert folder.name == commit


def test_a_folder_of_ones_own(tmp_path: Path, hub: HubCache) -> None:
    save_clip(tmp_path / "mine")
    settings = {"name": "clipscore", "device": "cpu", "model": "mine"}
    scorer = plugins.load_scorer(settings, folder=tmp_path)
    assert len(values(scorer, pictures(2), PROMPTS[:2])) == 2


def test_a_place_that_is_nowhere(tmp_path: Path, hub: HubCache) -> None:
    with pytest.raises(FlowOPDError, match=r"'hpsv2.model' is 'weights/HPS\.pt'.*no hub id"):
        plugins.load_scorer({"name": "hpsv2", "model": "weights/HPS.pt"}, folder=tmp_path)


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    save_clip_tokenizer(tmp_path / "empty")
    scorer = plugins.load_scorer({"name": "hpsv2", "model": str(tmp_path / "empty")})
    with pytest.raises(FlowOPDError, match=r"there is none of HPS_v2\.1_compressed\.pt\."):
        scorer.load()


def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    scorer = plugins.load_scorer({"name": "clipscore", "device": "cuda:99"})
    with pytest.raises(FlowOPDError, match="device 'cuda:99' cannot be used"):
        scorer.load()

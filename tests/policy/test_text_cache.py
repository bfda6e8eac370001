"""Prompt embeddings on disk: found again, told apart, never half written."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flowopd.errors import FlowOPDError
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3 import SD3Config
from flowopd.policy.text_cache import PromptEncoder, TextCache

PROMPTS = ["a red circle", "two green triangles", ""]


class CountingEncoder:
    """Embeddings that are a function of the prompt, and a count of what was asked."""

    device = torch.device("cpu")

    def __init__(self, text_key: str = "weights, lengths, precision") -> None:
        self.text_key = text_key
        self.asked: list[str] = []
        self.dropped = False
        self.value = 1.0

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        if self.dropped:
            raise FlowOPDError("The text encoders have been dropped.")
        self.asked += prompts
        lengths = torch.tensor([float(len(prompt)) for prompt in prompts]).bfloat16()
        sequence = self.value * lengths[:, None, None].expand(-1, 3, 4)
        return PromptEmbeds(sequence, lengths[:, None].expand(-1, 2))


@pytest.fixture
def encoder() -> CountingEncoder:
    return CountingEncoder()


@pytest.fixture
def cache(tmp_path: Path, encoder: CountingEncoder) -> TextCache:
    return TextCache(tmp_path / "cache", encoder)


def test_each_prompt_is_encoded_once(cache: TextCache, encoder: CountingEncoder) -> None:
    first = cache.get([PROMPTS[0], PROMPTS[1], PROMPTS[0]])
    assert encoder.asked == PROMPTS[:2]
    assert first.sequence[:, 0, 0].tolist() == [12, 19, 12]
    again = cache.get([PROMPTS[1], PROMPTS[2], PROMPTS[0]])
    assert encoder.asked == PROMPTS
    assert again.sequence[:, 0, 0].tolist() == [19, 0, 12]
    assert again.sequence.dtype == torch.bfloat16


def test_hit_after_the_encoders_are_dropped(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = SD3Config(path=str(tiny_pipeline), dtype="bf16", device="cpu", t5_length=16)
    model = config.open()
    fresh = TextCache(tmp_path, model).get(PROMPTS)
    model.drop_text_encoders()
    kept = TextCache(tmp_path, model).get(PROMPTS)
    assert torch.equal(kept.sequence, fresh.sequence)
    assert torch.equal(kept.pooled, fresh.pooled)
    with pytest.raises(FlowOPDError, match=r"'a new one' is not in the text cache.*dropped"):
        TextCache(tmp_path, model).get([*PROMPTS, "a new one"])


def test_a_full_cache_loads_no_text_encoder(tiny_pipeline: Path, tmp_path: Path) -> None:
    config = SD3Config(path=str(tiny_pipeline), dtype="fp32", device="cpu", t5_length=16)
    TextCache(tmp_path, config.open()).get(PROMPTS)
    later = config.open()
    TextCache(tmp_path, later).get(PROMPTS)
    assert later._text._pipeline is None


@pytest.mark.parametrize(
    "change", [{"t5_length": 17}, {"dtype": "bf16"}, {"t5": False}], ids=["length", "dtype", "t5"]
)
def test_key_depends_on_the_settings(
    tiny_pipeline: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    settings = {"path": str(tiny_pipeline), "dtype": "fp32", "device": "cpu", "t5_length": 16}
    caches = [TextCache(tmp_path, SD3Config(**s).open()) for s in (settings, settings | change)]
    assert caches[0].path("a") != caches[1].path("a")
    before, after = (cache.get(["a red circle"]) for cache in caches)
    assert before.sequence.shape != after.sequence.shape or not torch.equal(
        before.sequence, after.sequence
    )


def test_key_depends_on_prompt_and_encoders(tmp_path: Path) -> None:
    ours, same, other = (
        TextCache(tmp_path, CountingEncoder(key)) for key in ("one", "one", "other")
    )
    assert ours.path("a") == same.path("a")
    assert len({ours.path("a"), ours.path("b"), ours.path("a "), other.path("a")}) == 4


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def noise(path: Path) -> None:
    path.write_bytes(bytes(range(200)))


def other_tensors(path: Path) -> None:
    save_file({"x": torch.ones(1)}, path, metadata={"prompt": PROMPTS[0]})


def other_prompt(path: Path) -> None:
    save_file(load_file(path), path, metadata={"prompt": "something else"})


def not_finite(path: Path) -> None:
    tensors = load_file(path)
    tensors["pooled"][0] = torch.nan
    save_file(tensors, path, metadata={"prompt": PROMPTS[0]})


@pytest.mark.parametrize(
    "damage",
    [half, empty, noise, other_tensors, other_prompt, not_finite],
    ids=lambda f: f.__name__,
)
def test_a_damaged_file_is_made_anew_or_refused_by_name(
    cache: TextCache, encoder: CountingEncoder, damage: Any
) -> None:
    fresh = cache.get(PROMPTS)
    path = cache.path(PROMPTS[0])
    damage(path)
    encoder.dropped = True
    with pytest.raises(FlowOPDError, match=f"{path.name} in the text cache is damaged"):
        cache.get(PROMPTS)
    encoder.dropped = False
    encoder.asked.clear()
    assert torch.equal(cache.get(PROMPTS).sequence, fresh.sequence)
    assert encoder.asked == [PROMPTS[0]]
    encoder.dropped = True
    assert torch.equal(cache.get(PROMPTS).pooled, fresh.pooled)


def test_writing_is_whole_or_not_at_all(cache: TextCache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.get(PROMPTS[:1])

    def fail(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half of a")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flowopd.policy.text_cache.save_tensors", fail)
    with pytest.raises(FlowOPDError, match="cannot be written: No space left"):
        cache.get(PROMPTS)
    assert not cache.path(PROMPTS[1]).exists()
    files = [path for path in cache.folder.rglob("*") if path.is_file()]
    assert files == [cache.path(PROMPTS[0])]


def test_what_is_not_finite_is_not_cached(cache: TextCache, encoder: CountingEncoder) -> None:
    encoder.value = torch.inf
    with pytest.raises(FlowOPDError, match=r"'a red circle'.* is not finite"):
        cache.get(PROMPTS)
    assert not cache.path(PROMPTS[0]).exists()


def test_fill_encodes_what_is_missing_in_chunks(cache: TextCache, encoder: CountingEncoder) -> None:
    cache.get(["prompt 3"])
    prompts = [f"prompt {number}" for number in range(40)]
    done: list[int] = []
    assert cache.fill([*prompts, *prompts], done.append) == 39
    assert sum(done) == 39
    assert len(done) > 1
    assert cache.fill(prompts) == 0
    encoder.dropped = True
    assert len(cache.get(prompts)) == 40


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(FlowOPDError, match="cannot be made"):
        TextCache(tmp_path / "file" / "cache", CountingEncoder())


def test_no_prompt_is_refused(cache: TextCache) -> None:
    with pytest.raises(FlowOPDError, match="no prompt"):
        cache.get([])


def test_a_model_without_a_text_key_is_told_apart(encoder: CountingEncoder) -> None:
    assert isinstance(encoder, PromptEncoder)
    del encoder.text_key
    assert not isinstance(encoder, PromptEncoder)

"""Prompt embeddings on disk: computed once, then read, so that text encoders can be freed."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from flowopd.errors import FlowOPDError
from flowopd.files import replacing, save_tensors
from flowopd.policy.protocol import PromptEmbeds, VelocityModel, require_finite
from flowopd.policy.weight_files import sha256_json
from flowopd.team import Alone, Team

CHUNK = 16
"""How many prompts are encoded before they are written."""


@runtime_checkable
class PromptEncoder(Protocol):
    """What the cache needs of a model; `isinstance` tells whether a model can be cached."""

    text_key: str
    """SHA-256 of all that an embedding depends on but the prompt: the text encoders' weights,
    the tokenizers, the lengths, the precision."""

    @property
    def device(self) -> torch.device: ...

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds: ...


class Lookup(NamedTuple):
    """One prompt's embedding, or what is wrong with its file (empty if there is no file)."""

    embeds: PromptEmbeds | None
    damage: str = ""


def through_cache(
    folder: Path | None,
    model: VelocityModel,
    prompts: Sequence[str],
    on_chunk: Callable[[int], None] | None = None,
    *,
    team: Team | None = None,
) -> Callable[[Sequence[str]], PromptEmbeds]:
    """How to embed these prompts: by the model, or from a folder, with the text encoders freed.

    The processes of a team each fill a part of the folder, and read all of it.
    """
    if folder is None:
        return model.encode_prompts
    if not isinstance(model, PromptEncoder):
        raise FlowOPDError(f"The model {model.name} has no text cache; leave text_cache out.")
    cache = TextCache(folder, model)
    team = team or Alone()
    cache.fill(team.mine(list(dict.fromkeys(["", *prompts]))), on_chunk)
    team.wait()
    model.drop_text_encoders()
    return cache.get


class TextCache:
    """A folder with one safetensors file per prompt, named by what the embedding depends on.

    Files are written whole or not at all, so several processes may share a folder. A damaged file
    is made anew if the model still has its text encoders, and refused by name if not.
    """

    def __init__(self, folder: str | Path, model: PromptEncoder) -> None:
        self.folder = Path(folder)
        self._model = model
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FlowOPDError(
                f"The text cache {folder} cannot be made: {error.strerror}. Give another folder."
            ) from None

    def get(self, prompts: Sequence[str]) -> PromptEmbeds:
        """The prompts' embeddings in order, on the model's device; what is missing is encoded."""
        if not prompts:
            raise FlowOPDError("There is no prompt to look up; give at least one.")
        unique = list(dict.fromkeys(prompts))
        found: dict[str, PromptEmbeds] = {}
        damaged: dict[str, str] = {}
        for prompt in unique:
            lookup = self._read(prompt)
            if lookup.embeds is not None:
                found[prompt] = lookup.embeds
            elif lookup.damage:
                damaged[prompt] = lookup.damage
        missing = [prompt for prompt in unique if prompt not in found]
        for chunk, embeds in self._encode(missing, damaged):
            found.update({prompt: embeds.select([i]) for i, prompt in enumerate(chunk)})
        return PromptEmbeds.cat([found[prompt] for prompt in prompts]).to(self._model.device)

    def fill(self, prompts: Sequence[str], on_chunk: Callable[[int], None] | None = None) -> int:
        """Encode what is missing, keeping nothing in memory; how many prompts that were."""
        missing, damaged = [], {}
        for prompt in dict.fromkeys(prompts):
            lookup = self._read(prompt)
            if lookup.embeds is None:
                missing.append(prompt)
            if lookup.damage:
                damaged[prompt] = lookup.damage
        for chunk, _ in self._encode(missing, damaged):
            if on_chunk is not None:
                on_chunk(len(chunk))
        return len(missing)

    def path(self, prompt: str) -> Path:
        """The prompt's file."""
        key = sha256_json([self._model.text_key, prompt])
        return self.folder / key[:2] / f"{key}.safetensors"

    def _encode(
        self, prompts: list[str], damaged: dict[str, str]
    ) -> Iterator[tuple[list[str], PromptEmbeds]]:
        for start in range(0, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            try:
                embeds = self._model.encode_prompts(chunk)
            except FlowOPDError as error:
                raise FlowOPDError(self._cannot_encode(chunk, damaged, error)) from error
            require_finite(embeds, chunk)
            embeds = embeds.to("cpu")
            for index, prompt in enumerate(chunk):
                self._write(prompt, embeds.sequence[index], embeds.pooled[index])
            yield chunk, embeds

    def _cannot_encode(self, chunk: list[str], damaged: dict[str, str], error: FlowOPDError) -> str:
        broken = next((prompt for prompt in chunk if prompt in damaged), None)
        if broken is not None:
            return (
                f"{self.path(broken)} in the text cache is damaged ({damaged[broken]}) and cannot "
                f"be made anew: {error}"
            )
        return f"The prompt {chunk[0]!r} is not in the text cache {self.folder}. {error}"

    def _read(self, prompt: str) -> Lookup:
        path = self.path(prompt)
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                sequence, pooled = file.get_tensor("sequence"), file.get_tensor("pooled")
            if metadata.get("prompt") != prompt:
                return Lookup(None, f"it holds the prompt {metadata.get('prompt')!r}")
            embeds = PromptEmbeds(sequence[None], pooled[None])
            require_finite(embeds, [prompt])
        except FileNotFoundError:
            return Lookup(None)
        except (SafetensorError, OSError, FlowOPDError) as error:
            return Lookup(None, str(error).rstrip("."))
        return Lookup(embeds)

    def _write(self, prompt: str, sequence: Tensor, pooled: Tensor) -> None:
        tensors = {"sequence": sequence.contiguous(), "pooled": pooled.contiguous()}
        try:
            with replacing(self.path(prompt)) as temporary:
                save_tensors(tensors, temporary, metadata={"prompt": prompt})
        except OSError as error:
            raise FlowOPDError(
                f"The text cache {self.folder} cannot be written: {error.strerror or error}."
            ) from error

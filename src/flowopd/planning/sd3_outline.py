"""Stable Diffusion 3 without weights: its parts on the meta device, from their config.json."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowopd.errors import FlowOPDError
from flowopd.hub import hub_errors
from flowopd.planning.outline import META, frozen
from flowopd.policy import sd3_files
from flowopd.policy.network import Network, NetworkFiles
from flowopd.policy.protocol import PromptEmbeds
from flowopd.policy.sd3 import DTYPES, SD3Config, SD3Model
from flowopd.policy.sd3_text import CHUNK
from flowopd.policy.sd3_transformer import sd3_velocity
from flowopd.policy.weight_files import read_json

CLIP, T5 = ("CLIPTextModelWithProjection", "CLIPTextConfig"), ("T5EncoderModel", "T5Config")


class OutlinedSD3Config(SD3Config):
    """The same model, of which nothing but shapes is opened."""

    def check(self) -> None:
        """Configuration files are enough."""

    def fingerprint(self) -> None:
        """There may be no weights to tell it from."""

    def open(self) -> "SD3Outline":
        return SD3Outline(self, PartFiles(self))

    def own_network(self) -> NetworkFiles:
        folder = self._transformer_in(self._base())
        config = sd3_files.transformer_config(folder)
        return NetworkFiles(folder, folder, config, self.path, {})

    def open_network(
        self, files: NetworkFiles, device: torch.device, dtype: torch.dtype | None = None
    ) -> Network:
        from diffusers import SD3Transformer2DModel

        with META:
            transformer = SD3Transformer2DModel.from_config(dict(files.config))
        if self.gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        computed = DTYPES[self.dtype]
        return Network(
            files,
            frozen(transformer, dtype or computed),
            lambda network, x, t, prompts: sd3_velocity(network, x, t, prompts, computed),
        )


class SD3Outline(SD3Model):
    """An SD3 model that computes shapes, by the real model's own code."""

    def __init__(self, config: SD3Config, files: "PartFiles") -> None:
        self.name = config.path
        self.fingerprint = ""
        self.shift = 1.0
        self._dtype = DTYPES[config.dtype]
        self._device = META
        self.transformer: Any = frozen(config.skeleton(), self._dtype)
        if config.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.vae = frozen(_vae(files.config("vae")), DTYPES[config.vae_dtype])
        t5 = sd3_files.resolve_t5(files.root, config.t5)
        self.settings: Mapping[str, Any] = {"t5": t5, "t5_length": config.t5_length}
        parts = [*sd3_files.CLIPS, *(sd3_files.T5 if t5 else {})]
        self.encoders = {
            part: _text_encoder(part, files.config(part), self._dtype) for part in parts
        }

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        """Embeddings of the right shape; what the encoders need is for `run_encoders` to say."""
        config = self.transformer.config
        tokens = self._clip_length + self.settings["t5_length"]
        sequence = (len(prompts), tokens, config.joint_attention_dim)
        pooled = (len(prompts), config.pooled_projection_dim)
        return PromptEmbeds(
            torch.empty(sequence, dtype=self._dtype, device=META),
            torch.empty(pooled, dtype=self._dtype, device=META),
        )

    @torch.no_grad()
    def run_encoders(self) -> None:
        """Each text encoder, on as many prompts as go through it at a time."""
        for part, encoder in self.encoders.items():
            clip = part in sd3_files.CLIPS
            tokens = self._clip_length if clip else self.settings["t5_length"]
            ids = torch.zeros(CHUNK, tokens, dtype=torch.int64, device=META)
            encoder(ids, output_hidden_states=clip)

    def drop_text_encoders(self) -> None:
        """There is nothing to free."""

    @property
    def _clip_length(self) -> int:
        return int(self.encoders["text_encoder"].config.max_position_embeddings)


class PartFiles:
    """The configuration files of a pipeline's parts, here or on the hub."""

    def __init__(self, config: SD3Config) -> None:
        self._hub = config.path if sd3_files.is_hub_id(config.path) else None
        self._revision = config.revision
        self.root = Path(config.path).expanduser()
        if self._hub is not None:
            self.root = self._fetched("model_index.json").parent

    def config(self, part: str) -> dict[str, Any]:
        name = f"{part}/config.json"
        return read_json(self.root / name if self._hub is None else self._fetched(name))

    def _fetched(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        assert self._hub is not None
        try:
            return Path(hf_hub_download(self._hub, name, revision=self._revision))
        except hub_errors() as error:
            reason = " ".join(str(error).split())
            raise FlowOPDError(
                f"Planning needs the configuration files of {self._hub} (no weights), and {name} "
                f"cannot be fetched from the Hugging Face hub: {reason} Plan where the hub can be "
                "reached, or give model.path a folder that holds the pipeline."
            ) from None


def _vae(config: Mapping[str, Any]) -> nn.Module:
    from diffusers import AutoencoderKL

    with META:
        vae: nn.Module = AutoencoderKL.from_config(dict(config))
    return vae


def _text_encoder(part: str, config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """As transformers loads it: in float16, T5 keeps some layers in float32."""
    import transformers

    model, settings = (
        getattr(transformers, name) for name in (CLIP if part in sd3_files.CLIPS else T5)
    )
    with META:
        encoder = model(settings.from_dict(dict(config)))
    kept = getattr(model, "_keep_in_fp32_modules", None) if dtype is torch.float16 else None
    return frozen(encoder, dtype, tuple(kept or ()))

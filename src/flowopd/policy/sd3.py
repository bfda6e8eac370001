"""The Stable Diffusion 3 family: SD3, SD3.5-Medium and SD3.5-Large, from a diffusers folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from flowopd.devices import pick_device
from flowopd.errors import FlowOPDError
from flowopd.hub import hub_name
from flowopd.policy import sd3_files
from flowopd.policy.attention import AttentionBackend
from flowopd.policy.network import Network, NetworkFiles, read_network
from flowopd.policy.protocol import JOINT_ATTENTION, ModelConfig, PromptEmbeds
from flowopd.policy.sd3_parts import load_part
from flowopd.policy.sd3_text import SD3TextEncoders
from flowopd.policy.sd3_transformer import load_transformer, look_at, sd3_velocity
from flowopd.policy.weight_files import sha256_json

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class SD3Config(ModelConfig):
    """Where a pipeline is, and how it is run."""

    whole_networks: ClassVar[bool] = True

    family: Literal["sd3"] = "sd3"
    path: str = Field(min_length=1, description="A folder that diffusers opens, or a hub id.")
    revision: str | None = Field(None, description="A hub id's branch, tag or commit.")
    dtype: Precision = Field("bf16", description="Of the transformer and the text encoders.")
    vae_dtype: Precision = Field("fp32", description="Of the autoencoder.")
    device: str = Field("auto", description="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")
    t5: bool | None = Field(None, description="Whether to use T5; null: if the pipeline has it.")
    t5_length: int = Field(256, ge=1, le=512, description="Tokens of T5 (77 of CLIP are added).")
    attention_backend: AttentionBackend | None = Field(None, description="null: torch's choice.")
    gradient_checkpointing: bool = Field(False, description="Less memory, slower.")
    compile: bool = Field(False, description="torch.compile of the blocks; slow at first.")
    transformer: str | None = Field(
        None, description="A folder with another transformer, in place of the pipeline's own."
    )

    @field_validator("path", "transformer")
    @classmethod
    def _beside_the_recipe(cls, path: str | None, info: ValidationInfo) -> str | None:
        """A relative path may be relative to the configuration file that names it."""
        folder = (info.context or {}).get("folder")
        if folder is None or path is None or not (Path(folder) / path).is_dir():
            return path
        return str(Path(folder) / path)

    def check(self) -> None:
        pick_device(self.device)
        if self.transformer is not None:
            sd3_files.transformer_config(self._transformer_in(Path()))
        if sd3_files.is_hub_id(self.path):
            return
        if self.revision is not None:
            raise FlowOPDError(
                f"revision is {self.revision!r}, but {self.path} is no hub id (org/name), and a "
                "folder has no revisions; leave it out."
            )
        sd3_files.check_folder(self._local, self.t5)

    def check_training(self) -> None:
        if self.dtype == "fp16":
            raise FlowOPDError(
                "model.dtype is fp16, in which most gradients of a mean over many pictures are too "
                "small to be told from 0; train with bf16, or fp32."
            )

    def fingerprint(self) -> str | None:
        if self.transformer is None and sd3_files.is_hub_id(self.path):
            return None
        return sd3_files.fingerprint_of(self._transformer_in(self._local))

    def surroundings(self) -> dict[str, str]:
        if sd3_files.is_hub_id(self.path):
            return {}
        return {"surroundings": sd3_files.surroundings(self._local, self.t5)}

    def skeleton(self) -> nn.Module:
        from diffusers import SD3Transformer2DModel

        if not sd3_files.is_hub_id(self.path):
            self.check()
        folder = self._transformer_in(self._base())
        with torch.device("meta"):
            return SD3Transformer2DModel.from_config(sd3_files.transformer_config(folder))

    def network(self, source: Path) -> NetworkFiles:
        return look_at(source, self._transformer_in(self._base()))

    def own_network(self) -> NetworkFiles:
        return read_network(self._transformer_in(self._base()))

    def open_network(
        self, files: NetworkFiles, device: torch.device, dtype: torch.dtype | None = None
    ) -> Network:
        computed = DTYPES[self.dtype]
        transformer = load_transformer(self, files.fetched(), dtype or computed, device)

        def velocity(network: nn.Module, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
            return sd3_velocity(network, x, t, prompts, computed)

        return Network(files, transformer, velocity)

    def open(self) -> "SD3Model":
        self.check()
        folder = self._local
        if sd3_files.is_hub_id(self.path):
            folder = sd3_files.download(self.path, self.revision, self.t5)
            sd3_files.check_folder(folder, self.t5)
        return SD3Model(self, folder, self._transformer_in(folder))

    def _base(self) -> Path:
        """The pipeline's folder, with at least the transformer's configuration."""
        if sd3_files.is_hub_id(self.path):
            return sd3_files.download_config(self.path, self.revision)
        return self._local

    def _transformer_in(self, pipeline: Path) -> Path:
        """The transformer's folder: the pipeline's own, or the one in its place."""
        if self.transformer is None:
            return pipeline / "transformer"
        folder = Path(self.transformer).expanduser()
        if not folder.exists() and hub_name(folder) is not None:
            raise FlowOPDError(
                f"model.transformer is {self.transformer!r}, which is no folder; where it is on "
                f"the hub, fetch it (hf download {self.transformer}) and name the folder."
            )
        return read_network(folder).folder

    @property
    def _local(self) -> Path:
        return Path(self.path).expanduser()


class SD3Model:
    """A frozen SD3 transformer with its text encoders and autoencoder."""

    lora_prefix: str | None = "transformer"
    default_targets: tuple[str, ...] = JOINT_ATTENTION

    def __init__(self, config: SD3Config, folder: Path, transformer: Path) -> None:
        """The pipeline in `folder`, with the transformer of another folder or its own."""
        self.name = config.path
        self.shift = sd3_files.read_shift(folder)
        self.fingerprint = sd3_files.fingerprint_of(transformer)
        self._dtype = DTYPES[config.dtype]
        self._device = pick_device(config.device)
        self.transformer = load_transformer(config, transformer, self._dtype, self._device)
        self.vae = self._load_vae(config, folder)
        t5 = sd3_files.resolve_t5(folder, config.t5)
        self.text_key = _text_key(config, folder, t5, self.transformer)
        self.settings: Mapping[str, Any] = {
            "revision": config.revision,
            "t5": t5,
            "t5_length": config.t5_length,
        }
        self._text = SD3TextEncoders(
            folder,
            self.transformer,
            t5=t5,
            t5_length=config.t5_length,
            dtype=self._dtype,
            device=self._device,
        )

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    def latent_shape(
        self, height: int | None = None, width: int | None = None
    ) -> tuple[int, int, int]:
        config: Any = self.transformer.config
        pixels = 2 ** (len(self.vae.config.block_out_channels) - 1)
        unit, largest = pixels * config.patch_size, config.pos_embed_max_size * config.patch_size
        sides = []
        for name, given in (("height", height), ("width", width)):
            side = config.sample_size * pixels if given is None else given
            if side < unit or side % unit or side // pixels > largest:
                raise FlowOPDError(
                    f"The {name} is {side}; {self.name} makes images of a multiple of {unit} "
                    f"pixels, up to {largest * pixels}."
                )
            sides.append(side // pixels)
        return config.in_channels, sides[0], sides[1]

    def encode_prompts(self, prompts: Sequence[str]) -> PromptEmbeds:
        return self._text.encode(prompts)

    def velocity(self, x: Tensor, t: Tensor, prompts: PromptEmbeds) -> Tensor:
        return sd3_velocity(self.transformer, x, t, prompts, self._dtype)

    def decode(self, latents: Tensor) -> Tensor:
        config = self.vae.config
        latents = latents.to(self._device).float() / config.scaling_factor
        latents = latents + (config.shift_factor or 0.0)
        images = self.vae.decode(latents.to(self.vae.dtype), return_dict=False)[0]
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def drop_text_encoders(self) -> None:
        self._text.drop()

    def _load_vae(self, config: SD3Config, folder: Path) -> Any:
        from diffusers import AutoencoderKL

        precision = sd3_files.load_in(DTYPES[config.vae_dtype])
        return load_part(AutoencoderKL, folder / "vae", precision).to(self._device)


def _text_key(config: SD3Config, folder: Path, t5: bool, transformer: Any) -> str:
    """SHA-256 of all that an embedding depends on, but the prompt."""
    return sha256_json(
        {
            "encoders": sd3_files.text_fingerprint(folder, t5),
            "t5_length": config.t5_length,
            "width": transformer.config.joint_attention_dim,
            "dtype": config.dtype,
        }
    )

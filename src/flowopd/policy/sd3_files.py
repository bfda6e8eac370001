"""The folder of a Stable Diffusion 3 pipeline: where it is, and what may be wrong with it.

Everything here happens before weights are loaded.
"""

import math
from pathlib import Path
from typing import Any

from flowopd.errors import FlowOPDError
from flowopd.files import sha256
from flowopd.flow.schedule import TRAINING_LEVELS
from flowopd.hub import REPOSITORY, hub_errors, not_fetched
from flowopd.policy.weight_files import (
    fingerprint,
    read_header,
    read_json,
    sha256_json,
    weight_files,
)

PIPELINE = "StableDiffusion3Pipeline"
TRANSFORMER = "SD3Transformer2DModel"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
OTHER_SCHEDULES = (
    "use_dynamic_shifting",
    "use_karras_sigmas",
    "use_exponential_sigmas",
    "use_beta_sigmas",
    "shift_terminal",
    "invert_sigmas",
    "stochastic_sampling",
)
"""Settings of the scheduler that lead to other noise levels, or another step, than (4) takes."""
CORE = {"transformer": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}
CLIPS = {"text_encoder": "model", "text_encoder_2": "model"}
T5 = {"text_encoder_3": "model"}


def is_hub_id(path: str) -> bool:
    """Whether the text names a repository (``org/name``) and no folder that is here."""
    return REPOSITORY.fullmatch(path) is not None and not Path(path).exists()


def has_t5(folder: Path) -> bool:
    """Whether the pipeline brings the third text encoder."""
    listed = read_json(folder / "model_index.json").get("text_encoder_3") or [None]
    return listed[0] is not None


def resolve_t5(folder: Path, wanted: bool | None) -> bool:
    """Whether T5 is used: as wanted, or (None) if it is there."""
    if wanted and not has_t5(folder):
        raise FlowOPDError(
            f"t5 is true, but {folder} has no text_encoder_3; use t5: false, or a folder with T5."
        )
    return has_t5(folder) if wanted is None else wanted


def check_folder(folder: Path, t5: bool | None) -> None:
    """Refuse a folder that does not hold a whole Stable Diffusion 3 pipeline."""
    if not folder.is_dir():
        raise FlowOPDError(
            f"There is no folder {folder}; give the folder of a {PIPELINE}, or a hub id (org/name)."
        )
    if not (folder / "model_index.json").is_file():
        raise FlowOPDError(
            f"{folder} is no pipeline folder: it has no model_index.json. Give a folder that "
            f"{PIPELINE}.from_pretrained opens."
        )
    found = read_json(folder / "model_index.json").get("_class_name")
    if found != PIPELINE:
        raise FlowOPDError(f"{folder} holds a {found}; the family sd3 opens a {PIPELINE}.")
    parts = CORE | CLIPS | (T5 if resolve_t5(folder, t5) else {})
    for part, stem in parts.items():
        _check_part(folder / part, stem)
        if part not in CORE:
            _check_tokenizer(folder / tokenizer_of(part))
    transformer_config(folder / "transformer")
    read_shift(folder)


def _check_part(folder: Path, stem: str) -> None:
    if not (folder / "config.json").is_file():
        raise FlowOPDError(f"The pipeline is not whole: {folder / 'config.json'} is missing.")
    for path in weight_files(folder, stem):
        read_header(path)


def _check_tokenizer(folder: Path) -> None:
    if not any(folder.glob("*")):
        raise FlowOPDError(f"The pipeline is not whole: the tokenizer {folder} is missing.")


def tokenizer_of(part: str) -> str:
    """``text_encoder_2`` has ``tokenizer_2``."""
    return part.replace("text_encoder", "tokenizer")


def transformer_config(folder: Path) -> dict[str, Any]:
    """The transformer's config.json, which must be that of an SD3 transformer."""
    path = folder / "config.json"
    config = read_json(path)
    if config.get("_class_name") != TRANSFORMER:
        raise FlowOPDError(
            f"{path} is of a {config.get('_class_name')}; it should be a {TRANSFORMER}."
        )
    return config


def read_shift(folder: Path) -> float:
    """The schedule's shift, from the configuration of a scheduler that has nothing but a shift."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = read_json(path)
    found = config.get("_class_name")
    if found != SCHEDULER:
        raise FlowOPDError(f"{path} is of a {found}; it should be a {SCHEDULER}.")
    set_otherwise = [name for name in OTHER_SCHEDULES if config.get(name)]
    if set_otherwise:
        name = set_otherwise[0]
        raise FlowOPDError(
            f"{path} sets {name} to {config[name]!r}, which is not supported: the schedule here "
            f"is a fixed shift (Stable Diffusion 3 uses 3.0). Take {name} out."
        )
    levels = config.get("num_train_timesteps", TRAINING_LEVELS)
    if levels != TRAINING_LEVELS:
        raise FlowOPDError(
            f"{path} says num_train_timesteps is {levels!r}; the family sd3 was trained on "
            f"{TRAINING_LEVELS}."
        )
    shift = config.get("shift", 1.0)
    is_number = isinstance(shift, int | float) and not isinstance(shift, bool)
    if not is_number or not 0 < shift < math.inf:
        raise FlowOPDError(
            f"{path} says shift is {shift!r}; it should be a number above 0 (Stable Diffusion 3 "
            "uses 3.0)."
        )
    return float(shift)


def fingerprint_of(folder: Path) -> str:
    """Of the transformer in a folder."""
    return fingerprint(transformer_config(folder), weight_files(folder, CORE["transformer"]))


def text_fingerprint(folder: Path, t5: bool) -> str:
    """SHA-256 of what turns a prompt into embeddings: text encoders, and tokenizers byte by byte.

    Models that share their text encoders (SD3.5-Medium and -Large) share it.
    """
    parts = {}
    for part, stem in (CLIPS | (T5 if t5 else {})).items():
        config = read_json(folder / part / "config.json")
        parts[part] = fingerprint(config, weight_files(folder / part, stem))
        for path in sorted((folder / tokenizer_of(part)).iterdir()):
            if path.is_file():
                parts[f"{part}/{path.name}"] = sha256(path)
    return sha256_json(parts)


def surroundings(folder: Path, t5: bool | None) -> str:
    """SHA-256 of what pictures depend on beside the transformer: autoencoder, shift, encoders."""
    vae = folder / "vae"
    return sha256_json(
        {
            "vae": fingerprint(read_json(vae / "config.json"), weight_files(vae, CORE["vae"])),
            "shift": read_shift(folder),
            "encoders": text_fingerprint(folder, resolve_t5(folder, t5)),
        }
    )


def load_in(dtype: Any) -> dict[str, Any]:
    """The argument of diffusers' `from_pretrained` that sets the precision, by its present name."""
    import diffusers
    from packaging.version import Version

    renamed = Version(diffusers.__version__) >= Version("0.42")
    return {"dtype" if renamed else "torch_dtype": dtype}


def download(hub_id: str, revision: str | None, t5: bool | None) -> Path:
    """The local folder of a hub pipeline, fetched on first use; no T5 if it is not wanted."""
    from huggingface_hub import snapshot_download

    parts = [*CORE, *CLIPS, "tokenizer", "tokenizer_2", "scheduler"]
    parts += [] if t5 is False else [*T5, "tokenizer_3"]
    try:
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=["model_index.json", *(f"{part}/*" for part in parts)],
            ignore_patterns=["*.fp16*", "*.bin", "*.msgpack", "*.onnx*"],
        )
    except hub_errors() as error:
        raise FlowOPDError(not_fetched(hub_id, revision, error)) from error
    return Path(folder)


def download_config(hub_id: str, revision: str | None) -> Path:
    """A folder with the hub pipeline's transformer/config.json and nothing else for sure."""
    from huggingface_hub import hf_hub_download

    try:
        path = hf_hub_download(hub_id, "transformer/config.json", revision=revision)
    except hub_errors() as error:
        raise FlowOPDError(not_fetched(hub_id, revision, error)) from error
    return Path(path).parent.parent

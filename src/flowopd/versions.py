"""Which versions of what numbers depend on are installed."""

import platform
from importlib.metadata import PackageNotFoundError, version

from flowopd import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "safetensors",
    "numpy",
    "scipy",
    "pillow",
)
OPTIONAL = ("tensorboard", "wandb", "onnxruntime", "rapidocr", "fastapi", "xformers", "flash-attn")


def versions() -> dict[str, str]:
    """Python's, ours, and those of the packages that are installed."""
    found = {"python": platform.python_version(), "flowopd": __version__}
    installed = {name: installed_version(name) for name in PACKAGES}
    return found | {name: number for name, number in installed.items() if number is not None}


def installed_version(package: str) -> str | None:
    """None when the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
